"""A real store in a temporary directory and short ways to fill it, for the tests of the store and of who uses it.

async with world(tmp_path) as w:                      # the sites of SHOP, time stands still at NOW
    bound = await w.bind()                            # a page view of the shop
    accepted = await w.accept(bound.substitutes[w.target().id])
    jobs = await w.extract(accepted.message_id)
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Executable, select

from relay.core.address import lookup_keys, parse
from relay.core.classify import classify
from relay.core.mime import Extracted, Part
from relay.core.model import Address, DeliveryState, Method, Outcome, OutcomeKind
from relay.core.source import parse_page
from relay.secrets import Keys
from relay.sources import referrers
from relay.store import bindings, events, messages, queue, retention
from relay.store.bindings import Asked, BindRequest, Bound
from relay.store.directory import SiteView, TargetView
from relay.store.engine import Statement
from relay.store.messages import Accepted, Evidence, Incoming, Job, Recipient
from relay.store.migrate import migrate
from relay.store.post import PostJob
from relay.store.queue import Finish
from relay.store.retention import Cut, Swept
from relay.store.schema import metadata, routes
from relay.store.sites import SiteDefinition, StaticDefinition, TargetDefinition, declare_all
from relay.store.store import DATABASE, Store
from relay.store.visits import Visitor
from relay.store.webhooks import WebhookDefinition

#: A Monday in January 2027; seconds since the epoch.
NOW = 1_800_000_000.0
DAY = 86_400.0
LEASE = 900.0
TRACK = "track.example.com"


def pool_target(address: str = "sales@example.com", *pool: str, **changes: Any) -> TargetDefinition:
    """A pool target; its substitutes are made at TRACK when its list is exhausted."""
    listed = pool or (f"info1@{TRACK}", f"info2@{TRACK}")
    target = TargetDefinition(parse(address), Method.POOL, TRACK, tuple(parse(name) for name in listed), LEASE)
    return replace(target, **changes)


def target_of(method: Method, address: str, domain: str = TRACK, **changes: Any) -> TargetDefinition:
    return replace(TargetDefinition(parse(address), method, domain, (), LEASE), **changes)


def static(address: str, target: str = "sales@example.com", label: str = "card") -> StaticDefinition:
    return StaticDefinition(parse(address), target, label)


def site(name: str = "shop", *targets: TargetDefinition, **changes: Any) -> SiteDefinition:
    definition = SiteDefinition(
        name=name,
        key=f"pk_{name}",
        origins=(f"https://www.{name}.example",),
        tracking=True,
        send_to_crm=True,
        bots="none",
        visit_timeout=14 * DAY,
        targets=targets,
    )
    return replace(definition, **changes)


def hook(url: str = "https://crm.example/hook", **changes: Any) -> WebhookDefinition:
    return replace(WebhookDefinition(url, "sealed", "inferred"), **changes)


#: A pool of two, a plus and a unique target, a card and a webhook.
SHOP = site(
    "shop",
    pool_target(),
    target_of(Method.PLUS, "help@example.com"),
    target_of(Method.UNIQUE, "jobs@example.com"),
    statics=(static(f"card@{TRACK}"),),
    webhooks=(hook(),),
)
#: Another site whose pool target has the same real address.
OTHER = site(
    "other",
    pool_target("sales@example.com", "other1@track.other.example", domain="track.other.example"),
    webhooks=(hook("https://crm.other.example/hook"),),
)

#: Nothing is old enough to go.
NEVER = Cut(raw=0.0, messages=0.0, visits=0.0, routes=0.0, visitor_ip=0.0)
#: The index of a letter is as good a body as any other.
BODY = b"From: Ann <ann@example.org>\r\nSubject: Hi\r\n\r\nHello\r\n"


def _made_once() -> Path:
    """A directory for what every test of this process gets a copy of."""
    directory = Path(tempfile.mkdtemp(prefix="relay-template-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def template() -> Path:
    """A migrated, empty database, made once: the migration is the slow part of a store."""
    path = _made_once() / DATABASE
    migrate(path)
    return path


def fresh_database(directory: Path) -> Path:
    """A migrated, empty database in ``directory``."""
    return Path(shutil.copy(template(), directory / DATABASE))


@functools.cache
def _key_files() -> Path:
    directory = _made_once()
    Keys.load(directory)
    return directory


def fresh_keys(directory: Path) -> Keys:
    """Keys in ``directory``, copied from one set: made anew, each would be synced to disk twice."""
    return Keys.load(Path(shutil.copytree(_key_files(), directory)))


@contextlib.asynccontextmanager
async def opened(directory: Path, now: float | None = None) -> AsyncIterator[Store]:
    """An empty store in ``directory``, or the one that is there already; ``now`` as of Store.open."""
    if not (directory / DATABASE).exists():
        fresh_database(directory)
    store = Store(directory / DATABASE)
    await store.open(now=now)
    try:
        yield store
    finally:
        await store.close()


@dataclass
class World:
    """A store, and what time it is in it."""

    store: Store
    now: float = NOW

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    async def declare(self, *definitions: SiteDefinition) -> None:
        """What a start of the daemon does with relay.toml."""
        await self.store.redefine(lambda tx: declare_all(tx, definitions, self.now))

    def site(self, name: str = "shop") -> SiteView:
        return self.store.sites.by_name[name]

    def target(self, address: str = "sales@example.com", name: str = "shop") -> TargetView:
        return self.site(name).by_address[parse(address).key]

    def request(self, name: str = "shop", *targets: str, **changes: Any) -> BindRequest:
        """A page view asking for ``targets`` (all of the site's by default); ``page`` is its address."""
        view = self.site(name)
        wanted = [self.target(address, name) for address in targets] or list(view.targets)
        page = changes.pop("page", f"https://www.{name}.example/")
        marks, referrer = parse_page(page), changes.get("referrer")
        request = BindRequest(
            site_id=view.id,
            tracking=view.tracking,
            visit_timeout=view.visit_timeout,
            own_hosts=view.own_hosts,
            number=None,
            first_visit=None,
            marks=marks,
            source=classify(marks, page, referrer, view.own_hosts, view.settings.rules, referrers()),
            referrer=None,
            params={},
            google_client_id=None,
            visitor=Visitor(ip="192.0.2.7", user_agent="Mozilla/5.0"),
            asked=tuple(Asked(t.id, t.method, t.address.local, t.domain, t.lease) for t in wanted),
        )
        return replace(request, **changes)

    async def bind(self, name: str = "shop", *targets: str, **changes: Any) -> Bound:
        request, now = self.request(name, *targets, **changes), self.now
        bound = await self.store.write(lambda tx: bindings.bind(tx, request, now))
        self.store.routes.forget(bound.created)
        return bound

    async def shown(self, target: str = "sales@example.com", name: str = "shop", **changes: Any) -> tuple[str, str]:
        """(visit number, substitute) of a page view that asks for one target."""
        bound = await self.bind(name, target, **changes)
        return bound.visit, bound.substitutes[self.target(target, name).id]

    async def recipient(self, address: str) -> Recipient:
        """What RCPT makes of an address; one that is no substitute is the operator's."""
        found = await self.store.routes.find(lookup_keys(parse(address)))
        if found is None:
            return Recipient(address, None, None, "operator@example.net", None, "example.net")
        route, tag = found
        domain = route.real_address.rpartition("@")[2]
        return Recipient(address, route, tag, route.real_address, route.next_hop, domain)

    async def accept(
        self, *addresses: str, claim: str | None = "forwarder", looped: bool = False, **changes: Any
    ) -> Accepted:
        message = incoming(received_at=self.now, **changes)
        recipients = [await self.recipient(address) for address in addresses]
        return await self.store.write(
            lambda tx: messages.accept(
                tx,
                message,
                recipients,
                claim=claim,
                expires_at=message.received_at + 5 * DAY,
                evidence=Evidence(DAY),
                looped=looped,
            )
        )

    async def extract(
        self, message_id: int, claim: str | None = None, passed_over: Collection[int] = (), **changes: Any
    ) -> list[PostJob]:
        result = extracted(**changes)
        jobs, _ = await self.store.write(
            lambda tx: events.extracted(tx, message_id, result, self.now, claim, passed_over)
        )
        return jobs

    async def finish(self, job: Job, kind: OutcomeKind = OutcomeKind.DELIVERED, **changes: Any) -> Finish | None:
        end = ending(job, kind, self.now, **changes)
        return await self.store.write(lambda tx: queue.finish(tx, end))

    async def sweep(self, **cut: float) -> Swept:
        """One bite of what is older than these times."""
        return await self.store.write(lambda tx: retention.sweep(tx, replace(NEVER, **cut), self.now))

    async def rows(self, query: Executable) -> list[tuple[Any, ...]]:
        return await self.store.reader.all(query)


@contextlib.asynccontextmanager
async def world(directory: Path, *definitions: SiteDefinition) -> AsyncIterator[World]:
    """A store with these sites declared (SHOP by default)."""
    chosen = definitions or (SHOP,)
    if chosen in ((SHOP,), (SHOP, OTHER)) and not (directory / DATABASE).exists():
        shutil.copy(await _declared(chosen), directory / DATABASE)
        async with opened(directory) as store:
            yield World(store)
        return
    async with opened(directory) as store:
        found = World(store)
        await found.declare(*chosen)
        yield found


_DECLARED: dict[tuple[str, ...], Path] = {}  # by the sites' names


async def _declared(definitions: tuple[SiteDefinition, ...]) -> Path:
    """A database in which these sites are declared, made once: nearly every test begins with one of two."""
    names = tuple(definition.name for definition in definitions)
    if names not in _DECLARED:
        directory = _made_once()
        async with opened(directory) as store:
            await World(store).declare(*definitions)
        _DECLARED[names] = directory / DATABASE
    return _DECLARED[names]


def incoming(received_at: float = NOW, body: bytes = BODY, **changes: Any) -> Incoming:
    """A message as intake hands it over, received and written at ``received_at``."""
    message = Incoming(
        received_at=received_at,
        written_at=received_at,
        mail_from="ann@example.org",
        sender="ann@example.org",
        subject="Hi",
        message_id="1@example.org",
        in_reply_to=None,
        references=(),
        size=len(body),
        stored_size=len(body),
        data=body,
        file=None,
        cut=(),
        digest=hashlib.sha256(body).digest(),
        ip="192.0.2.9",
        helo="mail.example.org",
        tls=None,
        esmtp=True,
        automatic=None,
        bounce=False,
        bare_lf=0,
    )
    return replace(message, **changes)


def extracted(
    text: str | None = "Hello", subject: str | None = "Hi", attachments: Sequence[Part] = (), partial: bool = False
) -> Extracted:
    return Extracted(subject, text, html_only=False, attachments=tuple(attachments), partial=partial)


def part(index: int = 0, name: str = "offer.pdf") -> Part:
    return Part(index, name, "application/pdf", 3, inline=False, start=10, length=4, encoding="base64")


_STATES = {
    OutcomeKind.DELIVERED: DeliveryState.FORWARDED,
    OutcomeKind.TEMPORARY: DeliveryState.DEFERRED,
    OutcomeKind.AMBIGUOUS: DeliveryState.DEFERRED,
    OutcomeKind.PERMANENT: DeliveryState.FAILED,
}
_CODES = {OutcomeKind.DELIVERED: 250, OutcomeKind.TEMPORARY: 450, OutcomeKind.PERMANENT: 550}


def ending(job: Job, kind: OutcomeKind, now: float, **changes: Any) -> Finish:
    """How an attempt ended, as the forwarder would say it."""
    outcome = Outcome(kind, _CODES.get(kind), f"it is {kind.value}", "mx.example.com[192.0.2.1]:25")
    end = Finish(job, outcome, _STATES[kind], now + 60, now - 1, now, kind is OutcomeKind.AMBIGUOUS)
    return replace(end, **changes)


def address(local: str, domain: str = TRACK) -> Address:
    return Address(local, domain)


async def owner(w: World, substitute: str) -> tuple[str, str, bool] | None:
    """(site, real address, whether it is attributed) of a substitute; None when it has no route."""
    recipient = await w.recipient(substitute)
    if recipient.route is None:
        return None
    names = {view.id: view.name for view in w.store.sites.by_id.values()}
    return names.get(recipient.route.site_id, "gone"), recipient.forward_to, recipient.route.attributed


async def live(w: World) -> dict[str, str]:
    """The live substitutes and their kinds."""
    query = select(routes.c.local, routes.c.domain, routes.c.kind).where(routes.c.retired_at.is_(None))
    return {str(Address(local, domain)): kind for local, domain, kind in await w.rows(query)}


_EVERY_ROW = {table.name: Statement(select(table)) for table in metadata.sorted_tables}


async def everything(w: World) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, to show that nothing was changed."""
    return {name: await w.store.reader.run(statement) for name, statement in _EVERY_ROW.items()}
