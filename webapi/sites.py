"""Sites, targets and pools over HTTP. What relay.toml declares is changed there; here only its switches and pools."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, Field

from relay.config import fields as f
from relay.core import sizing
from relay.core.address import AddressError, parse
from relay.core.model import Address, Method, RouteKind
from relay.store import figures, site_definitions, sites
from relay.store.directory import SiteView, TargetView
from relay.store.engine import Tx
from relay.store.noting import always
from relay.store.site_definitions import EditionPassed
from relay.store.sites import AddressTaken, DeclaredElsewhere, NameTaken
from webapi import site_models as models
from webapi.advisor import ATTENDANCE, MOST_VISITS, USUAL_LEASE
from webapi.auth import Role, visible_site
from webapi.operation import Call, Operation
from webapi.problems import Outdated, Problem, not_found
from webapi.site_models import (
    Added,
    ChangedSite,
    NewSite,
    PoolAddition,
    SiteBody,
    SiteList,
    SiteShown,
    Substitute,
    Switches,
    TargetList,
    TargetSubstitutes,
)
from webapi.values import moment_or_none

T = TypeVar("T")


class Pool(BaseModel):
    address: str
    addresses: int = Field(description="Addresses of its pool now.")
    size: int = Field(description="Addresses recommended.")
    shared: float = Field(description="Share of visits that would still find no address of their own.")
    peak_per_hour: int
    method: str


class Recommendation(BaseModel):
    """Pool sizes by the attendance of the last three days; a site without pools gets that of one leased for 15m."""

    visits: int
    pools: list[Pool]


async def list_sites(call: Call) -> SiteList:
    views = call.context.store.sites.by_name.values()
    return SiteList(items=[models.summary(site) for site in views if call.caller.sees(site.id)])


async def show_site(call: Call) -> SiteShown:
    return await _shown(call, _site(call))


async def create_site(call: Call) -> SiteShown:
    body: NewSite = call.body
    if call.caller.sites is not None:
        raise Problem(403, "this takes a token for all sites")
    await _judge(call, body, None)
    key = body.key or f"pk_{secrets.token_urlsafe(12)}"
    wanted = models.definition(body.name, key, body, None, call.context.keys)
    now = call.context.clock()
    await _redefine(call, body, lambda tx: sites.create(tx, wanted, now))
    return await _shown(call, _site(call, body.name))


async def change_site(call: Call) -> SiteShown:
    body: ChangedSite = call.body
    site = _site(call)
    if body.name not in (None, site.name):
        raise Problem(400, "a site keeps its name", field="name")
    await _judge(call, body, site)
    wanted = models.definition(site.name, body.key or site.key, body, site, call.context.keys)
    now = call.context.clock()

    def change(tx: Tx) -> int:
        if body.edition is not None:
            site_definitions.expect(tx, site.id, body.edition)
        return sites.define(tx, wanted, now)

    await _redefine(call, body, lambda tx: _told(call, tx, site, change))
    return await _shown(call, _site(call))


async def switch_site(call: Call) -> SiteShown:
    body: Switches = call.body
    site = _site(call)
    if body.tracking is None and body.send_to_crm is None:
        raise Problem(400, "give tracking or send_to_crm")

    def switch(tx: Tx) -> None:
        sites.switch(tx, site.id, body.tracking, body.send_to_crm)

    await call.redefine(lambda tx: _told(call, tx, site, switch), always)
    return await _shown(call, _site(call))


def _told(call: Call, tx: Tx, site: SiteView, verb: Callable[[Tx], T]) -> T:
    """Run a verb over a site and let the log of changes say what has become another by it."""
    before = site_definitions.stored(tx, site.id)
    answer = verb(tx)
    after = site_definitions.stored(tx, site.id)
    if call.note is not None and before is not None and after is not None:
        call.note.tell(site_definitions.difference(before, after))
    return answer


async def delete_site(call: Call) -> None:
    site = _site(call)
    now = call.context.clock()
    await _redefine(call, None, lambda tx: sites.remove(tx, site.name, now))


async def list_targets(call: Call) -> TargetList:
    site = _site(call)
    items = []
    for target in site.targets:
        rows = await call.context.store.sites.substitutes(target.id)
        items.append(
            TargetSubstitutes(
                address=str(target.address),
                method=target.method.value,
                domain=target.domain,
                lease=f.format_duration(target.lease),
                substitutes=[Substitute(**row | {"leased_until": moment_or_none(row["leased_until"])}) for row in rows],
            )
        )
    return TargetList(items=items)


async def add_to_pool(call: Call) -> Added:
    body: PoolAddition = call.body
    site = _site(call)
    target = _target(site, call.path["address"])
    if bool(body.addresses) == (body.grow is not None):
        raise Problem(400, "give either addresses or grow", field="grow")
    if target.method is not Method.POOL:
        raise Problem(409, f"{target.address} has no pool: its method is {target.method.value}")
    now = call.context.clock()
    if body.grow is None:
        if problems := models.broken_addition(target, body.addresses, call.context.forward.next_hop):
            raise Problem(400, f"{problems[0][0]}: {problems[0][1]}", errors=problems)
        await _refuse_destinations(call, body.addresses)
        await _refuse_mail_domains(call, body.addresses)
        await _redefine(call, None, lambda tx: sites.add_to_pool(tx, site.id, target.id, body.addresses, now), always)
        return Added(added=[str(address) for address in body.addresses])
    count, stem = body.grow, target.address.local
    try:
        made = await _redefine(
            call, None, lambda tx: sites.grow_pool(tx, site.id, target.id, stem, target.domain, count, now)
        )
    except ValueError as error:
        raise Problem(409, str(error), field="grow") from None
    return Added(added=[str(address) for address in made])


async def retire_substitute(call: Call) -> None:
    """Take a pool or static address out of use. It goes on forwarding, without attribution, until retention."""
    site = _site(call)
    address = _address(call.path["address"], "substitute")
    now = call.context.clock()
    if not await _redefine(call, None, lambda tx: sites.retire_substitute(tx, site.id, address, now)):
        raise not_found("substitute")


async def recommend(call: Call) -> Recommendation:
    site = _site(call)
    store = call.context.store
    stays = await figures.stays(store.reader, site.id, call.context.clock() - ATTENDANCE, MOST_VISITS)
    pools = [
        _pool(str(target.address), target.pool_size, await _recommended(stays, target.lease))
        for target in site.targets
        if target.method is Method.POOL
    ]
    return Recommendation(visits=len(stays), pools=pools or [_pool("", 0, await _recommended(stays, USUAL_LEASE))])


async def _recommended(stays: list[sizing.Stay], lease: float) -> sizing.Recommendation:
    # Off the loop: with many visits the replay takes half a second.
    return await asyncio.to_thread(sizing.recommend, stays, lease)


def _pool(address: str, addresses: int, found: sizing.Recommendation) -> Pool:
    return Pool(
        address=address,
        addresses=addresses,
        size=found.size,
        shared=found.shared,
        peak_per_hour=found.peak_per_hour,
        method=found.method,
    )


def _site(call: Call, name: str | None = None) -> SiteView:
    return visible_site(call.context.store, call.caller, name or call.path["name"])


def _address(text: str, what: str) -> Address:
    try:
        return parse(text)
    except AddressError:
        raise not_found(what) from None


def _target(site: SiteView, text: str) -> TargetView:
    target = site.by_address.get(_address(text, "target").key)
    if target is None:
        raise not_found("target")
    return target


async def _shown(call: Call, site: SiteView) -> SiteShown:
    store = call.context.store
    substitutes = {target.id: await store.sites.substitutes(target.id) for target in site.targets}
    return models.shown(site, substitutes, call.context.keys)


async def _judge(call: Call, body: SiteBody, site: SiteView | None) -> None:
    """Raise Problem for a definition that relay.toml could not hold either, or that would send mail in a circle."""
    _refuse_next_hops(call, body, site)
    next_hop = call.context.forward.next_hop
    problems = models.broken(body, next_hop, call.context.public_url)
    if problems:
        field, detail = problems[0]
        raise Problem(400, f"{field}: {detail}", errors=problems)
    routes = call.context.store.routes
    for index, target in enumerate(body.targets):
        field = f"targets[{index}].{'forward_to' if target.forward_to else 'address'}"
        destination = target.forward_to or target.address
        found = await routes.find([(*destination.key, None)])
        if found is not None and found[0].kind is not RouteKind.BASE:
            raise Problem(400, f"{destination} is a substitute: its mail would come back here", field=field)
        if not (target.next_hop or next_hop) and destination.domain in await routes.domains():
            raise Problem(
                400,
                f"{destination.domain} is a domain of substitutes: give a next hop",
                field=f"targets[{index}].next_hop",
            )
    statics = tuple(static.address for static in body.statics)
    substitutes = (*(address for target in body.targets for address in target.pool), *statics)
    await _refuse_destinations(call, substitutes, body)
    bases = (Address(target.address.local, target.domain) for target in body.targets if target.domain is not None)
    await _refuse_mail_domains(call, (*substitutes, *bases), body, site)


def _refuse_next_hops(call: Call, body: SiteBody, site: SiteView | None) -> None:
    """Raise Problem 403: who has some sites only would reach every port of the inside, and read what it answers.

    What stands there already may stay. By the address it could not be told: a name may lead elsewhere later.
    """
    if call.caller.sites is None:
        return
    for index, target in enumerate(body.targets):
        if target.next_hop is not None and not models.keeps_next_hop(target, site, call.context.keys):
            detail = "only who administers all sites may set a next hop: leave it as it is or empty"
            raise Problem(403, detail, field=f"targets[{index}].next_hop")


async def _refuse_destinations(call: Call, addresses: tuple[Address, ...], body: SiteBody | None = None) -> None:
    """No address that some target's mail goes to may become a substitute: the mail would go in a circle."""
    destinations = {
        _address(target.forward_to or str(target.address), "target").key
        for site in call.context.store.sites.by_id.values()
        for target in site.targets
    }
    for address in addresses:
        if address.key in destinations:
            text = f"{address} is where a target's mail goes: it cannot be a substitute"
            raise Problem(409, text, field=_place_of(str(address), body))


async def _refuse_mail_domains(
    call: Call, addresses: tuple[Address, ...], body: SiteBody | None = None, site: SiteView | None = None
) -> None:
    """No domain to whose MX some target's mail goes may become one of substitutes: the mail would not be ours.

    The targets of a ``site`` that is changed are judged by what they are to be.
    """
    if call.context.forward.next_hop is not None:
        return
    store = call.context.store
    refused = store.sites.mail_domains(None if site is None else site.id) - await store.routes.domains()
    for address in addresses:
        if address.domain in refused:
            text = f"a target's mail goes to the MX of {address.domain}: {address} cannot be a substitute"
            raise Problem(409, text, field=_place_of(str(address), body))


async def _redefine(
    call: Call, body: SiteBody | None, verb: Callable[[Tx], T], changed: Callable[[T], bool] = bool
) -> T:
    """Run a verb over the sites; raises Problem 409 for what it refuses."""
    try:
        return await call.redefine(verb, changed)
    except EditionPassed:
        raise Outdated("the site") from None
    except NameTaken as error:
        raise Problem(409, f"this {error.field} is another site's already", field=error.field) from None
    except AddressTaken as error:
        raise Problem(409, str(error), field=_place_of(error.address, body)) from None
    except DeclaredElsewhere:
        raise Problem(
            409, "it is defined in relay.toml; here only its switches and pool additions can be changed"
        ) from None


def _place_of(address: str, body: SiteBody | None) -> str:
    for index, target in enumerate(body.targets if body else ()):
        for place, member in enumerate(target.pool):
            if str(member) == address:
                return f"targets[{index}].pool[{place}]"
        if target.domain is not None and str(Address(target.address.local, target.domain)) == address:
            return f"targets[{index}].address"  # its base, as relay.toml's rules name it
    for index, static in enumerate(body.statics if body else ()):
        if str(static.address) == address:
            return f"statics[{index}].address"
    return "targets" if body else "addresses"


_ONE = "/v1/sites/{name}"
OPERATIONS = (
    Operation("GET", "/v1/sites", "The sites.", list_sites, Role.VIEWER, SiteList),
    Operation(
        "POST",
        "/v1/sites",
        "A new site.",
        create_site,
        Role.ADMIN,
        SiteShown,
        body=NewSite,
        status=201,
        problems=(409,),
    ),
    Operation("GET", _ONE, "A site with its targets and pools.", show_site, Role.VIEWER, SiteShown, problems=(404,)),
    Operation(
        "PUT",
        _ONE,
        "Change its whole definition; what is gone goes on forwarding.",
        change_site,
        Role.ADMIN,
        SiteShown,
        body=ChangedSite,
        problems=(404, 409),
    ),
    Operation(
        "PATCH",
        _ONE,
        "Its switches: Track e-mails, Send to CRM.",
        switch_site,
        Role.MANAGER,
        SiteShown,
        body=Switches,
        problems=(404,),
    ),
    Operation(
        "DELETE",
        _ONE,
        "Remove it; its addresses go on forwarding.",
        delete_site,
        Role.ADMIN,
        None,
        problems=(404, 409),
    ),
    Operation(
        "GET",
        f"{_ONE}/targets",
        "Its targets with their pool and static addresses.",
        list_targets,
        Role.VIEWER,
        TargetList,
        problems=(404,),
    ),
    Operation(
        "POST",
        f"{_ONE}/targets/{{address}}/pool",
        "More pool addresses.",
        add_to_pool,
        Role.MANAGER,
        Added,
        body=PoolAddition,
        status=201,
        problems=(404, 409),
    ),
    Operation(
        "DELETE",
        f"{_ONE}/substitutes/{{address}}",
        "Take a pool or static address out of use; it goes on forwarding.",
        retire_substitute,
        Role.ADMIN,
        None,
        problems=(404, 409),
    ),
    Operation(
        "GET",
        f"{_ONE}/recommendation",
        "How many pool addresses its attendance asks for.",
        recommend,
        Role.VIEWER,
        Recommendation,
        problems=(404,),
    ),
)
