"""Sites and what belongs to them: targets, substitutes, webhooks. Declared in relay.toml or made by API and CLI.

A definition is applied as a whole: what is new is created, what is gone is retired (its routes go on forwarding),
what stays keeps its state. A declared site's switches follow relay.toml only when the file itself changes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy import insert as insert_into

from relay.core.model import Address, Method, RouteKind
from relay.core.site import SiteSettings
from relay.core.substitute import pool_names
from relay.store import routes as route_verbs
from relay.store import scopes, webhooks
from relay.store.engine import Statement, Tx
from relay.store.routes import AddressTaken
from relay.store.schema import routes, sites, targets
from relay.store.webhooks import WebhookDefinition


@dataclass(frozen=True, slots=True)
class TargetDefinition:
    """``pool`` lists substitutes; in ``domain`` plus and unique ones, and those of an exhausted pool, are made."""

    address: Address
    method: Method
    domain: str | None
    pool: tuple[Address, ...]
    lease: float
    forward_to: str | None = None
    next_hop: str | None = None
    generate: int = 0  # pool addresses to have at ``domain`` besides, their names made up
    additional: bool = False  # shown only on pages that name it


@dataclass(frozen=True, slots=True)
class StaticDefinition:
    address: Address
    target: str
    label: str


@dataclass(frozen=True, slots=True)
class SiteDefinition:
    name: str
    key: str
    origins: tuple[str, ...]
    tracking: bool | None  # None: as it is; a new site has it on
    send_to_crm: bool | None
    bots: str
    visit_timeout: float
    conditions: dict[str, Any] = field(default_factory=dict)
    settings: SiteSettings = field(default_factory=SiteSettings)
    targets: tuple[TargetDefinition, ...] = ()
    statics: tuple[StaticDefinition, ...] = ()
    webhooks: tuple[WebhookDefinition, ...] = ()


class NameTaken(Exception):
    """Another site has this name or key. ``field`` says which."""

    def __init__(self, field_name: str, value: str) -> None:
        super().__init__(f"{field_name} {value!r} is another site's already")
        self.field = field_name


class DeclaredElsewhere(Exception):
    """The site is defined in relay.toml; only its switches, pool additions and deals can be changed here."""


_BY_NAME = Statement(
    select(sites.c.id, sites.c.declared, sites.c.declared_switches).where(
        sites.c.name == bindparam("name"), sites.c.removed_at.is_(None)
    )
)
_BY_KEY = Statement(select(sites.c.id, sites.c.name).where(sites.c.key == bindparam("key")))
_INSERT = Statement(
    insert_into(sites),
    "name key origins tracking send_to_crm bots visit_timeout conditions settings declared declared_switches "
    "created_at",
)
_UPDATE = Statement(
    update(sites).where(sites.c.id == bindparam("site")),
    "key origins bots visit_timeout conditions settings declared declared_switches",
)
_SWITCHES = Statement(
    update(sites)
    .where(sites.c.id == bindparam("site"))
    .values(
        tracking=func.coalesce(bindparam("tracking_"), sites.c.tracking),
        send_to_crm=func.coalesce(bindparam("send_to_crm_"), sites.c.send_to_crm),
    )
)
_DECLARED = Statement(select(sites.c.name).where(sites.c.declared == 1, sites.c.removed_at.is_(None)))
_REMOVE = Statement(
    update(sites)
    .where(sites.c.id == bindparam("site"))
    .values(removed_at=bindparam("now"), tracking=0, name=bindparam("gone_name"), key=bindparam("gone_key"))
)
_TARGETS = Statement(
    select(targets.c.id, targets.c.address).where(
        targets.c.site_id == bindparam("site"), targets.c.removed_at.is_(None)
    )
)
_INSERT_TARGET = Statement(
    insert_into(targets), "site_id address method domain lease forward_to next_hop additional created_at"
)
_UPDATE_TARGET = Statement(
    update(targets).where(targets.c.id == bindparam("target")), "method domain lease forward_to next_hop additional"
)
_REMOVE_TARGET = Statement(update(targets).where(targets.c.id == bindparam("target")), "removed_at")
_SUBSTITUTES = Statement(
    select(routes.c.id, routes.c.domain, routes.c.local).where(
        routes.c.target_id == bindparam("target"), routes.c.retired_at.is_(None), routes.c.defined == 1
    )
)
_POOL_SIZE = Statement(
    select(func.count()).where(
        routes.c.target_id == bindparam("target"), routes.c.retired_at.is_(None), routes.c.kind == "pool"
    )
)
_OWNER_METHOD = Statement(select(targets.c.method).where(targets.c.id == bindparam("target")))
_GIVE = Statement(update(routes).where(routes.c.id == bindparam("route")), "site_id target_id kind label defined")

_SUBSTITUTE = Statement(
    select(routes.c.id, routes.c.defined, sites.c.declared)
    .join(sites, sites.c.id == routes.c.site_id)
    .where(
        routes.c.domain == bindparam("domain"),
        routes.c.local == bindparam("local_part"),
        routes.c.site_id == bindparam("site"),
        routes.c.kind.in_([RouteKind.POOL.value, RouteKind.STATIC.value]),
        routes.c.retired_at.is_(None),
    )
)


def declare_all(tx: Tx, definitions: Sequence[SiteDefinition], now: float) -> list[str]:
    """Apply relay.toml: every declared site as it says, declared sites that it names no more removed. Their names."""
    names = {definition.name for definition in definitions}
    gone = [name for (name,) in tx.all(_DECLARED) if name not in names]
    for name in gone:
        remove(tx, name, now, declared=True)
    for definition in definitions:  # first what goes, everywhere: an address may move to another site or target
        row = tx.one(_BY_NAME, name=definition.name)
        if row is not None:
            _retire_gone(tx, row[0], definition, now)
    for definition in definitions:
        define(tx, definition, now, declared=True)
    return gone


def define(tx: Tx, definition: SiteDefinition, now: float, *, declared: bool = False) -> int:
    """Create the site or change it to this definition; raises NameTaken, AddressTaken, DeclaredElsewhere. Its id."""
    row = tx.one(_BY_NAME, name=definition.name)
    other = tx.one(_BY_KEY, key=definition.key)
    if other is not None and (row is None or other[0] != row[0]):
        raise NameTaken("key", definition.key)
    wanted = json.dumps(_switches(definition))
    values = {
        "key": definition.key,
        "origins": json.dumps(definition.origins),
        "bots": definition.bots,
        "visit_timeout": definition.visit_timeout,
        "conditions": json.dumps(definition.conditions),
        "settings": definition.settings.to_json(),
        "declared": int(declared),
        "declared_switches": wanted if declared else None,
    }
    if row is None:
        switches = {name: int(on is not False) for name, on in _switches(definition).items()}
        site_id = tx.insert(_INSERT, name=definition.name, created_at=now, **values, **switches)
    else:
        site_id, was_declared, was_wanted = row
        if was_declared and not declared:
            raise DeclaredElsewhere(definition.name)
        tx.run(_UPDATE, site=site_id, **values)
        if not declared or was_wanted != wanted:
            switch(tx, site_id, **_switches(definition))
    _retire_gone(tx, site_id, definition, now)
    _set_targets(tx, site_id, definition, now, declared=declared)
    webhooks.define(tx, site_id, definition.webhooks, now, declared=declared)
    return int(site_id)


def _switches(definition: SiteDefinition) -> dict[str, bool | None]:
    return {"tracking": definition.tracking, "send_to_crm": definition.send_to_crm}


def create(tx: Tx, definition: SiteDefinition, now: float) -> int:
    """A new site; raises NameTaken for its name too, and AddressTaken. Its id."""
    if tx.one(_BY_NAME, name=definition.name) is not None:
        raise NameTaken("name", definition.name)
    return define(tx, definition, now)


def remove(tx: Tx, name: str, now: float, *, declared: bool = False) -> bool:
    """Retire a site with its targets, and who may see it; routes go on forwarding. False when there is none."""
    row = tx.one(_BY_NAME, name=name)
    if row is None:
        return False
    site_id, was_declared, _ = row
    if was_declared and not declared:
        raise DeclaredElsewhere(name)
    for target_id, _ in tx.all(_TARGETS, site=site_id):
        _remove_target(tx, target_id, now)
    for webhook_id, *_ in tx.all(webhooks.OF_SITE, site=site_id):
        webhooks.remove(tx, webhook_id, now)
    scopes.leave_out(tx, name)
    tx.run(_REMOVE, site=site_id, now=now, gone_name=f"{name}#{site_id}", gone_key=f"#{site_id}")
    return True


def switch(tx: Tx, site_id: int, tracking: bool | None = None, send_to_crm: bool | None = None) -> None:
    """Set the switches that are given; they survive a restart with an unchanged relay.toml."""
    tx.run(
        _SWITCHES,
        site=site_id,
        tracking_=None if tracking is None else int(tracking),
        send_to_crm_=None if send_to_crm is None else int(send_to_crm),
    )


def add_to_pool(tx: Tx, site_id: int, target_id: int, addresses: Sequence[Address], now: float) -> None:
    """More pool addresses for a target; raises AddressTaken."""
    for address in addresses:
        route_verbs.create(tx, address, RouteKind.POOL, site_id, target_id, now)


def retire_substitute(tx: Tx, site_id: int, address: Address, now: float) -> bool:
    """Take a pool or static address out of use; it goes on forwarding. False when there is none.

    Raises DeclaredElsewhere for one that stands in relay.toml, which would bring it back.
    """
    domain, local = address.key
    row = tx.one(_SUBSTITUTE, domain=domain, local_part=local, site=site_id)
    if row is None:
        return False
    route_id, defined, declared = row
    if defined and declared:
        raise DeclaredElsewhere(str(address))
    tx.run(route_verbs.RETIRE, route=route_id, retired_at=now)
    return True


def _substitutes(
    definition: SiteDefinition, target: TargetDefinition
) -> dict[tuple[str, str], tuple[Address, RouteKind, str | None]]:
    """What a definition names for a target, by key: address, kind, label."""
    wanted: dict[tuple[str, str], tuple[Address, RouteKind, str | None]] = {}
    if target.domain is not None:
        base = Address(target.address.local, target.domain)
        wanted[base.key] = (base, RouteKind.BASE, None)
    for address in target.pool:
        wanted[address.key] = (address, RouteKind.POOL, None)
    for static in definition.statics:
        if static.target == str(target.address):
            wanted[static.address.key] = (static.address, RouteKind.STATIC, static.label)
    return wanted


def _retire_gone(tx: Tx, site_id: int, definition: SiteDefinition, now: float) -> None:
    named = {str(target.address): target for target in definition.targets}
    for target_id, address in tx.all(_TARGETS, site=site_id):
        target = named.get(address)
        if target is None:
            _remove_target(tx, target_id, now)
            continue
        wanted = _substitutes(definition, target)
        for route_id, domain, local in tx.all(_SUBSTITUTES, target=target_id):
            if (domain, local) not in wanted:
                tx.run(route_verbs.RETIRE, route=route_id, retired_at=now)


def _set_targets(tx: Tx, site_id: int, definition: SiteDefinition, now: float, *, declared: bool) -> None:
    ids = {address: target_id for target_id, address in tx.all(_TARGETS, site=site_id)}
    for target in definition.targets:
        address = str(target.address)
        values = {
            "method": target.method.value,
            "domain": target.domain,
            "lease": target.lease,
            "forward_to": target.forward_to,
            "next_hop": target.next_hop,
            "additional": int(target.additional),
        }
        if address in ids:
            tx.run(_UPDATE_TARGET, target=ids[address], **values)
        else:
            ids[address] = tx.insert(_INSERT_TARGET, site_id=site_id, address=address, created_at=now, **values)
    for target in definition.targets:
        target_id = ids[str(target.address)]
        for substitute, kind, label in _substitutes(definition, target).values():
            if not _settled(tx, site_id, target_id, target.method, substitute, kind, label, declared=declared):
                route_verbs.create(
                    tx, substitute, kind, site_id, target_id, now, label, defined=True, from_any_site=declared
                )
        if target.generate:
            ((size,),) = tx.all(_POOL_SIZE, target=target_id)
            grow_pool(tx, site_id, target_id, target.address.local, target.domain, target.generate - size, now)


def grow_pool(
    tx: Tx, site_id: int, target_id: int, stem: str, domain: str | None, count: int, now: float
) -> list[Address]:
    """``count`` more pool addresses with made-up names (info1, info2, …) that nobody has; raises ValueError."""
    if count <= 0:
        return []
    if domain is None:
        raise ValueError("the target has no domain in which addresses could be made")
    low, high = route_verbs.stem_range(stem)
    rows = tx.all(route_verbs.NAMES_WITH_STEM, domain=domain, low=low, high=high)
    made = [Address(local, domain) for local in pool_names(stem, count, {row[0] for row in rows})]
    add_to_pool(tx, site_id, target_id, made, now)
    return made


def _settled(
    tx: Tx,
    site_id: int,
    target_id: int,
    method: Method,
    address: Address,
    kind: RouteKind,
    label: str | None,
    *,
    declared: bool,
) -> bool:
    """Whether nothing is left to create because another target has this address, or had it and has given it up.

    Only plus targets show their base address. Where targets of other methods share one, the first keeps it; whoever
    needs it to be shown takes it from them, since nobody ever was shown it. From another site only relay.toml takes it:
    mail comes there nevertheless, and who may define one site must not turn another's to himself.
    """
    domain, local = address.key
    owner = tx.one(route_verbs.OWNER, domain=domain, local=local)
    if owner is None or owner[2] == target_id:
        return False
    route_id, owner_site, owner_target, owner_kind, retired_at = owner
    shown = kind is not RouteKind.BASE or method is Method.PLUS
    if retired_at is not None:
        return not shown and owner_site != site_id and not declared
    if not shown:
        return True
    owner_method = tx.one(_OWNER_METHOD, target=owner_target)
    given = owner_site == site_id or declared
    if not given or owner_kind != RouteKind.BASE.value or owner_method == (Method.PLUS.value,):
        return False  # creating it will say that it is taken
    tx.run(_GIVE, route=route_id, site_id=site_id, target_id=target_id, kind=kind.value, label=label, defined=1)
    return True


def _remove_target(tx: Tx, target_id: int, now: float) -> None:
    tx.run(_REMOVE_TARGET, target=target_id, removed_at=now)
    tx.run(route_verbs.RETIRE_TARGET, target=target_id, retired_at=now)


__all__ = [
    "AddressTaken",
    "DeclaredElsewhere",
    "NameTaken",
    "SiteDefinition",
    "StaticDefinition",
    "TargetDefinition",
    "WebhookDefinition",
    "add_to_pool",
    "create",
    "declare_all",
    "define",
    "remove",
    "retire_substitute",
    "switch",
]
