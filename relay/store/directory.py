"""The sites as the API and the bind endpoint see them: few, read all the time, so kept in memory and reloaded whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select, text

from relay.core.address import parse
from relay.core.model import Address, Method
from relay.core.site import SiteSettings
from relay.core.source import host_of
from relay.store.engine import Statement
from relay.store.post import Hook
from relay.store.post_jobs import HOOK_COLUMNS, read_hook
from relay.store.reader import Reader
from relay.store.schema import LISTED, routes, sites, targets, webhooks
from relay.store.webhooks import ON_PURPOSE

#: What a site, and a target, is defined by.
SITE_COLUMNS = (
    sites.c.name,
    sites.c.key,
    sites.c.origins,
    sites.c.tracking,
    sites.c.send_to_crm,
    sites.c.bots,
    sites.c.visit_timeout,
    sites.c.conditions,
    sites.c.settings,
)
TARGET_COLUMNS = (
    targets.c.id,
    targets.c.address,
    targets.c.method,
    targets.c.domain,
    targets.c.lease,
    targets.c.forward_to,
    targets.c.next_hop,
    targets.c.additional,
)
_POOL_SIZE = (
    select(func.count())
    .where(routes.c.target_id == targets.c.id, text("routes.kind = 'pool' AND routes.retired_at IS NULL"))
    .scalar_subquery()
)
_SITES = Statement(
    select(sites.c.id, *SITE_COLUMNS, sites.c.declared).where(sites.c.removed_at.is_(None)).order_by(sites.c.name)
)
_TARGETS = Statement(
    select(targets.c.site_id, *TARGET_COLUMNS, _POOL_SIZE).where(targets.c.removed_at.is_(None)).order_by(targets.c.id)
)
_WEBHOOKS = Statement(
    select(
        webhooks.c.site_id,
        webhooks.c.fill,
        webhooks.c.enabled,
        webhooks.c.disabled_reason,
        webhooks.c.declared,
        *HOOK_COLUMNS,
    )
    .where(webhooks.c.removed_at.is_(None))
    .order_by(webhooks.c.id)
)


@dataclass(frozen=True, slots=True)
class TargetView:
    id: int
    address: Address
    method: Method
    domain: str | None
    lease: float
    forward_to: str | None
    next_hop: str | None
    additional: bool
    pool_size: int  # live addresses that are leased


@dataclass(frozen=True, slots=True)
class WebhookView:
    """``hook`` is what an attempt needs, its secrets sealed."""

    id: int
    url: str
    fill: str
    enabled: bool
    disabled_reason: str | None
    declared: bool
    hook: Hook


@dataclass(frozen=True, slots=True)
class SiteView:
    """A live site with its targets and webhooks.

    ``own_hosts`` are the hosts of its origins in lower case; of a wildcard the domain itself and "*." before it.
    """

    id: int
    name: str
    key: str
    origins: tuple[str, ...]
    tracking: bool
    send_to_crm: bool
    bots: str
    visit_timeout: float
    conditions: Mapping[str, Any]
    settings: SiteSettings
    declared: bool
    own_hosts: frozenset[str]
    targets: tuple[TargetView, ...]
    webhooks: tuple[WebhookView, ...]
    by_address: Mapping[tuple[str, str], TargetView] = field(repr=False)


class Directory:
    """Every live site, by key, by name and by id."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.by_key: dict[str, SiteView] = {}
        self.by_name: dict[str, SiteView] = {}
        self.by_id: dict[int, SiteView] = {}
        self.wants_html = False  # whether some webhook wants more than the text of a message

    async def load(self) -> None:
        """Read all sites anew; raises StoreUnavailable."""
        site_rows = await self._reader.run(_SITES)
        targets_of = await self._targets()
        webhooks_of = await self._webhooks()
        loaded = [_site(row, targets_of.get(row[0], []), webhooks_of.get(row[0], [])) for row in site_rows]
        self.by_key = {site.key: site for site in loaded}
        self.by_name = {site.name: site for site in loaded}
        self.by_id = {site.id: site for site in loaded}
        self.wants_html = any(
            hook.hook.settings.extended and hook.disabled_reason not in ON_PURPOSE
            for site in loaded
            for hook in site.webhooks
        )

    def mail_domains(self, but: int | None = None) -> set[str]:
        """The domains to whose MX targets' mail goes where [forward] has no next hop; not those of the site ``but``."""
        return {
            parse(target.forward_to or str(target.address)).domain
            for site in self.by_id.values()
            if site.id != but
            for target in site.targets
            if target.next_hop is None
        }

    async def _targets(self) -> dict[int, list[TargetView]]:
        found: dict[int, list[TargetView]] = {}
        for row in await self._reader.run(_TARGETS):
            site_id, target_id, address, method, domain, lease, forward_to, next_hop, additional, pool_size = row
            view = TargetView(
                id=target_id,
                address=parse(address),
                method=Method(method),
                domain=domain,
                lease=lease,
                forward_to=forward_to,
                next_hop=next_hop,
                additional=bool(additional),
                pool_size=pool_size,
            )
            found.setdefault(site_id, []).append(view)
        return found

    async def _webhooks(self) -> dict[int, list[WebhookView]]:
        found: dict[int, list[WebhookView]] = {}
        for site_id, fill, enabled, reason, declared, *columns in await self._reader.run(_WEBHOOKS):
            hook = read_hook(tuple(columns))
            view = WebhookView(hook.id, hook.url, fill, bool(enabled), reason, bool(declared), hook)
            found.setdefault(site_id, []).append(view)
        return found

    async def substitutes(self, target_id: int) -> list[dict[str, Any]]:
        """The live pool and static substitutes of a target: address, kind, label, leased_until."""
        rows = await self._reader.all(
            select(routes.c.local, routes.c.domain, routes.c.kind, routes.c.label, routes.c.leased_until)
            .where(routes.c.target_id == target_id, routes.c.retired_at.is_(None), LISTED)
            .order_by(routes.c.id)
        )
        return [
            {"address": str(Address(local, domain)), "kind": kind, "label": label, "leased_until": leased_until or None}
            for local, domain, kind, label, leased_until in rows
        ]


def _site(row: tuple[Any, ...], of_site: list[TargetView], hooks: list[WebhookView]) -> SiteView:
    site_id, name, key, origins, tracking, send_to_crm, bots, visit_timeout, conditions, settings, declared = row
    origin_list = tuple(json.loads(origins))
    hosts = {host_of(origin.replace("*.", "")) for origin in origin_list}
    wild = {f"*.{host_of(origin.replace('*.', ''))}" for origin in origin_list if "*." in origin}
    return SiteView(
        id=site_id,
        name=name,
        key=key,
        origins=origin_list,
        tracking=bool(tracking),
        send_to_crm=bool(send_to_crm),
        bots=bots,
        visit_timeout=visit_timeout,
        conditions=json.loads(conditions),
        settings=SiteSettings.from_json(settings),
        declared=bool(declared),
        own_hosts=frozenset(filter(None, hosts | wild)),
        targets=tuple(of_site),
        webhooks=tuple(hooks),
        by_address={target.address.key: target for target in of_site},
    )
