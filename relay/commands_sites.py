"""The commands that change sites, targets and pools (relay/commands.py runs them).

What relay.toml declares is changed there: here only its switches and its pools.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from relay.config import fields as f
from relay.config.models import Section, Site, Target
from relay.config.rules import broken_rules
from relay.control import ControlError, Lines
from relay.core.model import Address, Method, RouteKind
from relay.declare import definitions
from relay.store import blocked, site_definitions, sites
from relay.store.directory import SiteView, TargetView
from relay.store.engine import Tx
from relay.store.noting import always
from relay.store.site_definitions import EditionPassed
from relay.store.sites import DeclaredElsewhere, SiteDefinition
from relay.workplace import Command, Workplace

#: Pool addresses that one command may add.
MOST_ADDRESSES = 10_000


class AddSite(Section):
    """``key`` None: one is generated."""

    site: f.SiteName
    origins: Annotated[f.Listed[f.Origin], Field(min_length=1)]
    key: f.SiteKey | None = None
    tracking: bool = True
    send_to_crm: bool = True
    bots: Literal["none", "lease"] = "none"


async def add_site(place: Workplace, given: AddSite) -> Lines:
    site = Site.model_construct(
        name=given.site,
        key=given.key or f"pk_{secrets.token_urlsafe(12)}",
        origins=given.origins,
        tracking=given.tracking,
        send_to_crm=given.send_to_crm,
        bots=given.bots,
    )
    definition, now = _defined(place, site), place.clock()
    await place.redefine(lambda tx: sites.create(tx, definition, now))
    return {"site": definition.name, "key": definition.key}


class NamedSite(Section):
    site: f.SiteName


async def remove_site(place: Workplace, given: NamedSite) -> Lines:
    """Its routes go on forwarding, without attribution, for retention.routes."""
    now = place.clock()
    if not await place.redefine(lambda tx: sites.remove(tx, given.site, now)):
        raise ControlError(f"there is no site named {given.site!r}", "site")
    return {"site": given.site}


class SwitchSite(Section):
    site: f.SiteName
    on: bool


async def switch_tracking(place: Workplace, given: SwitchSite) -> Lines:
    site = place.site(given.site)
    await place.redefine(lambda tx: sites.switch(tx, site.id, tracking=given.on), always)
    return {"site": site.name, "on": given.on}


async def switch_crm(place: Workplace, given: SwitchSite) -> Lines:
    site = place.site(given.site)
    await place.redefine(lambda tx: sites.switch(tx, site.id, send_to_crm=given.on), always)
    return {"site": site.name, "on": given.on}


class AddTarget(Target):
    site: f.SiteName


async def add_target(place: Workplace, given: AddTarget) -> Lines:
    """A target of a site that is not declared; its first pool comes with it."""
    site = place.site(given.site)
    if given.address.key in site.by_address:
        raise ControlError(f"{given.address} is a target of site {site.name!r} already", "address")
    _refuse_broken(place, _raw(given))
    _refuse_destinations(place, given.pool)
    base = () if given.domain is None else (Address(given.address.local, given.domain),)
    await _refuse_mail_domains(place, (*given.pool, *base))
    await _refuse_circle(place, given)
    (target,) = _defined(place, _around(given)).targets
    definition = await _stored(place, site)
    await _define(place, site, definition, targets=(*definition.targets, target))
    made = place.site(site.name).by_address[given.address.key]
    return {"site": site.name, "address": str(given.address), "pool": await _pool(place, made)}


class NamedTarget(Section):
    site: f.SiteName
    address: f.Mailbox


async def remove_target(place: Workplace, given: NamedTarget) -> Lines:
    """Its routes go on forwarding, without attribution, for retention.routes."""
    site = place.site(given.site)
    _target(site, given.address)
    definition = await _stored(place, site)
    left = tuple(target for target in definition.targets if target.address.key != given.address.key)
    await _define(place, site, definition, targets=left)
    return {"site": site.name, "address": str(given.address)}


class AddToPool(NamedTarget):
    pool: Annotated[f.Listed[f.Mailbox], Field(min_length=1, max_length=MOST_ADDRESSES)]


async def add_to_pool(place: Workplace, given: AddToPool) -> Lines:
    site = place.site(given.site)
    target = _pooled(site, given.address)
    raw = {
        "address": str(given.address),
        "forward_to": target.forward_to or "",
        "next_hop": target.next_hop or "",  # sealed: the rules ask whether there is one
        "pool": [str(address) for address in given.pool],
    }
    _refuse_broken(place, raw)
    _refuse_destinations(place, given.pool)
    await _refuse_mail_domains(place, given.pool)
    now = place.clock()
    await place.redefine(lambda tx: sites.add_to_pool(tx, site.id, target.id, given.pool, now), always)
    return {"pool": [str(address) for address in given.pool]}


class GrowPool(NamedTarget):
    count: Annotated[int, Field(ge=1, le=MOST_ADDRESSES)]


async def grow_pool(place: Workplace, given: GrowPool) -> Lines:
    site = place.site(given.site)
    target = _pooled(site, given.address)
    now = place.clock()

    def grow(tx: Tx) -> list[Address]:
        return sites.grow_pool(tx, site.id, target.id, target.address.local, target.domain, given.count, now)

    try:
        made = await place.redefine(grow)
    except ValueError as error:
        raise ControlError(f"{given.address}: {error}", "address") from None
    return {"pool": [str(address) for address in made]}


class BlockSender(NamedSite):
    sender: Annotated[str, f.by(f.blocked_sender)]


async def block_sender(place: Workplace, given: BlockSender) -> Lines:
    """Its letters become no deals any more; they are forwarded as before."""
    site, now = place.site(given.site), place.clock()
    try:
        await place.write(lambda tx: blocked.block(tx, site.id, given.sender, now), always)
    except blocked.TooMany as error:
        raise ControlError(str(error), "sender") from None
    return {"site": site.name, "sender": given.sender}


async def unblock_sender(place: Workplace, given: BlockSender) -> Lines:
    site = place.site(given.site)
    if not await place.write(lambda tx: blocked.unblock(tx, site.id, given.sender)):
        raise ControlError(f"{given.sender} is not blocked at site {site.name!r}", "sender")
    return {"site": site.name, "sender": given.sender}


COMMANDS: Mapping[str, Command] = {
    "site.add": Command(AddSite, add_site),
    "site.remove": Command(NamedSite, remove_site),
    "site.tracking": Command(SwitchSite, switch_tracking),
    "site.crm": Command(SwitchSite, switch_crm),
    "target.add": Command(AddTarget, add_target),
    "target.remove": Command(NamedTarget, remove_target),
    "target.pool.add": Command(AddToPool, add_to_pool),
    "target.pool.grow": Command(GrowPool, grow_pool),
    "site.block": Command(BlockSender, block_sender),
    "site.unblock": Command(BlockSender, unblock_sender),
}


def _target(site: SiteView, address: Address) -> TargetView:
    target = site.by_address.get(address.key)
    if target is None:
        raise ControlError(f"{address} is no target of site {site.name!r}", "address")
    return target


def _pooled(site: SiteView, address: Address) -> TargetView:
    target = _target(site, address)
    if target.method is not Method.POOL:
        raise ControlError(f"{address} has no pool: its method is {target.method.value}", "address")
    return target


async def _define(place: Workplace, site: SiteView, before: SiteDefinition, **changes: Any) -> None:
    """Change a definition that was read just now; raises ControlError when somebody else has done so meanwhile."""
    now, edition = place.clock(), site_definitions.edition(before)
    wanted = replace(before, tracking=None, send_to_crm=None, **changes)

    def define(tx: Tx) -> int:
        site_definitions.expect(tx, site.id, edition)
        return sites.define(tx, wanted, now)

    try:
        await place.redefine(define)
    except EditionPassed:
        raise ControlError(f"somebody else has changed site {site.name!r} meanwhile: try again", "site") from None


def _defined(place: Workplace, site: Site) -> SiteDefinition:
    (definition,) = definitions(place.config.model_copy(update={"sites": (site,)}), place.keys.seal)
    return definition


def _around(target: Target) -> Site:
    """A site that has only this target."""
    return Site.model_construct(name="", key="", origins=(), targets=(target,))


async def _stored(place: Workplace, site: SiteView) -> SiteDefinition:
    """What defines the site now; raises DeclaredElsewhere. Webhooks are left out: they live apart from it."""
    if site.declared:
        raise DeclaredElsewhere(site.name)
    substitutes = {target.id: await place.store.sites.substitutes(target.id) for target in site.targets}
    return site_definitions.of_view(site, substitutes)


async def _pool(place: Workplace, target: TargetView) -> list[str]:
    rows = await place.store.sites.substitutes(target.id)
    return [row["address"] for row in rows if row["kind"] == RouteKind.POOL.value]


def _raw(target: Target) -> dict[str, Any]:
    """A target as relay.toml would say it, for the rules."""
    raw: dict[str, Any] = {"address": str(target.address), "method": target.method.value, "domain": target.domain or ""}
    if target.pool:
        raw["pool"] = [str(address) for address in target.pool]
    if target.pool_size is not None:
        raw["pool_size"] = target.pool_size
    raw["forward_to"] = "" if target.forward_to is None else str(target.forward_to)
    raw["next_hop"] = target.next_hop or ""
    return raw


def _refuse_broken(place: Workplace, target: Mapping[str, Any]) -> None:
    """Judge a target by the rules for relay.toml; raises ControlError with all that is wrong."""
    operator = place.config.operator
    found = broken_rules(
        {
            "operator": "" if operator is None else str(operator),
            "forward": {"next_hop": place.config.forward.next_hop or ""},
            "site": [{"target": [dict(target)]}],
        }
    )
    place_of = "site[0].target[0]"
    lines: Sequence[str] = [
        str(problem).replace(f"{place_of}.", "").replace(place_of, "the target").replace(' (site "")', "")
        for problem in found
    ]
    if lines:
        raise ControlError("; ".join(lines), lines[0].partition(":")[0].partition("[")[0])


def _refuse_destinations(place: Workplace, pool: Sequence[Address]) -> None:
    """No address that some target's mail goes to may become a substitute; raises ControlError."""
    destinations = {
        f.address(target.forward_to or str(target.address)).key
        for site in place.store.sites.by_id.values()
        for target in site.targets
    }
    for address in pool:
        if address.key in destinations:
            raise ControlError(f"{address} is where a target's mail goes: it cannot be a substitute", "pool")


async def _refuse_mail_domains(place: Workplace, substitutes: Sequence[Address]) -> None:
    """No domain to whose MX some target's mail goes may become one of substitutes; raises ControlError."""
    if place.config.forward.next_hop is not None:
        return
    refused = place.store.sites.mail_domains() - await place.store.routes.domains()
    for address in substitutes:
        if address.domain in refused:
            raise ControlError(
                f"a target's mail goes to the MX of {address.domain}: {address} cannot be a substitute", "pool"
            )


async def _refuse_circle(place: Workplace, target: Target) -> None:
    """Mail must not be sent where it comes back from; raises ControlError. (Within relay.toml the rules see to it.)"""
    destination = target.forward_to or target.address
    where = "forward_to" if target.forward_to else "address"
    found = await place.store.routes.find([(*destination.key, None)])
    if found is not None and found[0].kind is not RouteKind.BASE:
        raise ControlError(f"{destination} is a substitute: its mail would come back here", where)
    by_mx = target.next_hop is None and place.config.forward.next_hop is None
    if by_mx and destination.domain in await place.store.routes.domains():
        raise ControlError(
            f"{destination.domain} is a domain of substitutes, so mail for {destination} would come back here: "
            "give a next hop",
            "next_hop",
        )
