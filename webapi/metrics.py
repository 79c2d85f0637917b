"""GET /metrics: what the web API itself and the store have to tell; docs/metrics.md says what each figure means."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence

from aiohttp import web

from relay.core.metrics import Family, counter, each, gauge, histogram
from relay.store import figures
from relay.store.directory import SiteView
from relay.store.errors import StoreUnavailable
from relay.store.store import Store
from webapi.bind import TALLY, Tally
from webapi.context import CONTEXT, Context

#: Answers by part and class of the status.
ANSWERED = web.AppKey("answered", Counter[tuple[str, str]])
#: What the parts of the web server are called, by the first segment of a path.
_PARTS = {"v1": "api", "ui": "pages", "a": "files"}


def note(request: web.Request, status: int) -> None:
    """Count an answer. Of the path only what a route names: nobody invents a label."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else ""
    part = (
        "bind"
        if path in ("/v1/bind", request.app[CONTEXT].http.bind_path)
        else _PARTS.get(path.split("/")[1] if path else "", "other")
    )
    request.app[ANSWERED][part, f"{status // 100}xx"] += 1


async def families(app: web.Application) -> list[Family]:
    """Every metric of the daemon; without those that are read from the database while it cannot be read."""
    context, tally, answered = app[CONTEXT], app[TALLY], app[ANSWERED]
    sites = list(context.store.sites.by_id.values())
    found = [
        *context.measures(),
        *_webhooks(context, sites),
        each("counter", "relay_binds_total", "Page views by outcome.", "site outcome", tally.views),
        *_store(context.store),
        each("counter", "relay_http_answers_total", "Answers to HTTP requests.", "part status", answered),
    ]
    with contextlib.suppress(StoreUnavailable):  # that it is damaged has to be seen all the same
        found += await _read(context, sites, tally)
    return found


async def _read(context: Context, sites: Sequence[SiteView], tally: Tally) -> list[Family]:
    """What is read from the database; raises StoreUnavailable."""
    now = context.clock()
    depths = await figures.depths(context.store.reader)
    pools = await figures.pools(context.store.reader, now)
    return [*_queues(depths, now), *_posts(sites, depths, now), *_pools(sites, pools, tally)]


def _queues(depths: figures.Depths, now: float) -> Iterable[Family]:
    waiting = {(state,): depth for state, depth in depths.deliveries.items()}
    yield gauge("relay_messages_held", "Messages with a delivery that has failed.", depths.held)
    yield each(
        "gauge",
        "relay_deliveries",
        "Deliveries that are not done; failed ones are held.",
        "state",
        {key: depth.count for key, depth in waiting.items()},
    )
    yield each(
        "gauge",
        "relay_deliveries_oldest_age_seconds",
        "Age of the oldest message among them.",
        "state",
        {key: _age(depth, now) for key, depth in waiting.items()},
    )
    yield gauge("relay_extractions_waiting", "Messages whose text is to be read.", depths.unextracted.count)
    yield gauge(
        "relay_extractions_oldest_age_seconds", "Age of the oldest message among them.", _age(depths.unextracted, now)
    )


def _webhooks(context: Context, sites: Iterable[SiteView]) -> Iterable[Family]:
    hooks = {(site.name, str(webhook.id)): webhook for site in sites for webhook in site.webhooks}
    standings = {key: context.standing(webhook.id) for key, webhook in hooks.items()}
    enabled = {key: int(webhook.enabled) for key, webhook in hooks.items()}
    about = "1 while it is posted to, 0 when it is disabled."
    yield each("gauge", "relay_webhook_enabled", about, "site webhook", enabled)
    failures = {key: standing.failures for key, standing in standings.items()}
    about = "Attempts in a row that showed that the receiver is not well."
    yield each("gauge", "relay_webhook_consecutive_failures", about, "site webhook", failures)
    rests = {key: standing.rests_for or 0.0 for key, standing in standings.items()}
    about = "Seconds until it is tried again; 0 when it does not rest."
    yield each("gauge", "relay_webhook_rest_seconds", about, "site webhook", rests)


def _posts(sites: Iterable[SiteView], depths: figures.Depths, now: float) -> Iterable[Family]:
    waiting = {
        (site.name, str(webhook.id)): depths.posts.get(webhook.id, figures.NOTHING)
        for site in sites
        for webhook in site.webhooks
    }
    yield each(
        "gauge",
        "relay_posts_waiting",
        "Posts that wait.",
        "site webhook",
        {key: depth.count for key, depth in waiting.items()},
    )
    yield each(
        "gauge",
        "relay_posts_oldest_age_seconds",
        "Age of the oldest event among them.",
        "site webhook",
        {key: _age(depth, now) for key, depth in waiting.items()},
    )


def _pools(sites: Iterable[SiteView], pools: dict[int, tuple[int, int]], tally: Tally) -> Iterable[Family]:
    keys = {target.id: (site.name, str(target.id)) for site in sites for target in site.targets if target.id in pools}
    yield each(
        "gauge",
        "relay_pool_addresses",
        "Addresses of a target's pool.",
        "site target",
        {key: pools[target][0] for target, key in keys.items()},
    )
    yield each(
        "gauge",
        "relay_pool_addresses_held",
        "Those that a visit holds just now.",
        "site target",
        {key: pools[target][1] for target, key in keys.items()},
    )
    yield each(
        "counter",
        "relay_pool_exhausted_total",
        "Page views that found all of them held.",
        "site target",
        {key: tally.exhausted[key] for key in keys.values()},
    )


def _store(store: Store) -> Iterable[Family]:
    stats, damage = store.writer.stats, store.damage
    yield each(
        "gauge",
        "relay_database_trouble",
        "Whether the database is damaged, or being looked through for damage; mail is put off in both cases.",
        "kind",
        {("damaged",): int(damage.reason is not None), ("looking",): int(damage.looking)},
    )
    yield counter("relay_store_transactions_total", "Transactions of the writer.", stats.batches)
    yield counter("relay_store_verbs_total", "Verbs in them.", stats.verbs)
    yield counter("relay_store_failures_total", "Transactions that died.", stats.failures)
    yield histogram("relay_store_batch_verbs", "Verbs that share one transaction.", stats.sizes)
    yield histogram("relay_store_commit_seconds", "Time of COMMIT, with its sync.", stats.commits)
    text = "Time in which the write-ahead log was brought into the database."
    yield histogram("relay_store_checkpoint_seconds", text, stats.checkpoints)


def _age(depth: figures.Depth, now: float) -> float:
    return 0.0 if depth.oldest is None else max(0.0, now - depth.oldest)
