"""The definition of a site as it is stored, its edition, and what one changes of another.

Whoever changes a definition has read it before, a moment or an hour ago. So that nothing of what others have changed
meanwhile is lost, the edition of what was read is compared in the transaction that writes (:func:`expect`). Switches
and webhooks are not of it: they are changed by themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import bindparam, select

from relay.core.address import parse
from relay.core.channel import SourceRule
from relay.core.model import Address, Method
from relay.core.site import SiteSettings
from relay.store.directory import SITE_COLUMNS, TARGET_COLUMNS, SiteView
from relay.store.engine import Statement, Tx
from relay.store.schema import LISTED, routes, sites, targets
from relay.store.sites import SiteDefinition, StaticDefinition, TargetDefinition

#: Members of a list that are named in a difference.
NAMED = 10
#: What a secret is told as.
CHANGED = "changed"

_SITE = Statement(select(*SITE_COLUMNS).where(sites.c.id == bindparam("site"), sites.c.removed_at.is_(None)))
_TARGETS = Statement(
    select(*TARGET_COLUMNS)
    .where(targets.c.site_id == bindparam("site"), targets.c.removed_at.is_(None))
    .order_by(targets.c.id)
)
_SUBSTITUTES = Statement(
    select(routes.c.local, routes.c.domain, routes.c.kind, routes.c.label)
    .where(routes.c.target_id == bindparam("target"), routes.c.retired_at.is_(None), LISTED)
    .order_by(routes.c.id)
)


class EditionPassed(Exception):
    """Somebody else has changed the definition since it was read."""


def expect(tx: Tx, site_id: int, wanted: str) -> None:
    """Raise EditionPassed unless the site's definition still has this edition."""
    found = stored(tx, site_id)
    if found is None or edition(found) != wanted:
        raise EditionPassed


def stored(tx: Tx, site_id: int) -> SiteDefinition | None:
    """What defines the site now, without its webhooks; None when there is none."""
    row = tx.one(_SITE, site=site_id)
    if row is None:
        return None
    name, key, origins, tracking, send_to_crm, bots, visit_timeout, conditions, settings = row
    found: list[TargetDefinition] = []
    statics: list[StaticDefinition] = []
    for target_id, address, method, domain, lease, forward_to, next_hop, additional in tx.all(_TARGETS, site=site_id):
        listed = [
            (Address(local, at), kind, label) for local, at, kind, label in tx.all(_SUBSTITUTES, target=target_id)
        ]
        target = TargetDefinition(
            address=parse(address),
            method=Method(method),
            domain=domain,
            pool=_pool(listed),
            lease=lease,
            forward_to=forward_to,
            next_hop=next_hop,
            additional=bool(additional),
        )
        found.append(target)
        statics += _statics(target, listed)
    return SiteDefinition(
        name=name,
        key=key,
        origins=tuple(json.loads(origins)),
        tracking=bool(tracking),
        send_to_crm=bool(send_to_crm),
        bots=bots,
        visit_timeout=visit_timeout,
        conditions=json.loads(conditions),
        settings=SiteSettings.from_json(settings),
        targets=tuple(found),
        statics=tuple(statics),
    )


def of_view(site: SiteView, substitutes: Mapping[int, Sequence[Mapping[str, Any]]]) -> SiteDefinition:
    """The same of a site in memory, with the substitutes of each target (Directory.substitutes, by target id)."""
    found: list[TargetDefinition] = []
    statics: list[StaticDefinition] = []
    for view in site.targets:
        listed = [(parse(row["address"]), row["kind"], row["label"]) for row in substitutes[view.id]]
        target = TargetDefinition(
            address=view.address,
            method=view.method,
            domain=view.domain,
            pool=_pool(listed),
            lease=view.lease,
            forward_to=view.forward_to,
            next_hop=view.next_hop,
            additional=view.additional,
        )
        found.append(target)
        statics += _statics(target, listed)
    return SiteDefinition(
        name=site.name,
        key=site.key,
        origins=site.origins,
        tracking=site.tracking,
        send_to_crm=site.send_to_crm,
        bots=site.bots,
        visit_timeout=site.visit_timeout,
        conditions=dict(site.conditions),
        settings=site.settings,
        targets=tuple(found),
        statics=tuple(statics),
    )


_Listed = Sequence[tuple[Address, str, str | None]]


def _pool(listed: _Listed) -> tuple[Address, ...]:
    return tuple(address for address, kind, _ in listed if kind == "pool")


def _statics(target: TargetDefinition, listed: _Listed) -> list[StaticDefinition]:
    return [StaticDefinition(one, str(target.address), label or "") for one, kind, label in listed if kind == "static"]


def edition(definition: SiteDefinition) -> str:
    """What is the same for the same definition and for no other. The order of pool and static addresses counts."""
    told = [
        [definition.key, definition.origins, definition.bots, definition.visit_timeout],
        [definition.conditions, definition.settings.to_json()],
        [[_plain(target), [str(address) for address in target.pool]] for target in definition.targets],
        [[str(static.address), static.target, static.label] for static in definition.statics],
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _plain(target: TargetDefinition) -> dict[str, Any]:
    return {
        "address": str(target.address),
        "method": target.method.value,
        "domain": target.domain,
        "lease": target.lease,
        "forward_to": target.forward_to,
        "next_hop": target.next_hop,
        "additional": target.additional,
    }


def difference(before: SiteDefinition, after: SiteDefinition) -> dict[str, Any]:
    """What is another now: the values before and after, what lists have gained and lost. No secrets."""
    found = values({**_top(before)}, {**_top(after)})
    old_targets = {str(target.address): target for target in before.targets}
    new_targets = {str(target.address): target for target in after.targets}
    found |= members("origins", before.origins, after.origins)
    found |= members(
        "sources", [_rule(one) for one in before.settings.rules], [_rule(one) for one in after.settings.rules]
    )
    found |= members("targets", list(old_targets), list(new_targets))
    for address, new in new_targets.items():
        old = old_targets.get(address)
        if old is not None:
            told = values(_plain(old), _plain(new), secret=("next_hop",))
            told |= members("pool", [str(one) for one in old.pool], [str(one) for one in new.pool])
            found |= {f"{address}.{name}": value for name, value in told.items()}
    old_statics = {str(static.address): static for static in before.statics}
    new_statics = {str(static.address): static for static in after.statics}
    found |= members("statics", list(old_statics), list(new_statics))
    for address in old_statics.keys() & new_statics.keys():
        was, now = old_statics[address], new_statics[address]
        told = values({"label": was.label, "target": was.target}, {"label": now.label, "target": now.target})
        found |= {f"{address}.{name}": value for name, value in told.items()}
    return found


_NAMES = {"refuse_bounces": "skip_bounces", "refuse_automatic": "skip_automatic"}


def _top(definition: SiteDefinition) -> dict[str, Any]:
    settings = asdict(definition.settings)
    del settings["rules"]
    return {
        "key": definition.key,
        "tracking": definition.tracking,
        "send_to_crm": definition.send_to_crm,
        "bots": definition.bots,
        "visit_timeout": definition.visit_timeout,
        **{_NAMES.get(name, name): value for name, value in definition.conditions.items()},
        **settings,
    }


def _rule(rule: SourceRule) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(rule).items() if value is not None)


def values(before: Mapping[str, Any], after: Mapping[str, Any], secret: Sequence[str] = ()) -> dict[str, Any]:
    """Members that differ.

    >>> values({"lease": 60.0, "next_hop": None, "additional": True}, {"lease": 90.0, "next_hop": "x"}, ["next_hop"])
    {'lease': {'before': 60.0, 'after': 90.0}, 'next_hop': 'changed', 'additional': {'before': True, 'after': None}}
    """
    return {
        name: CHANGED if name in secret else {"before": before.get(name), "after": after.get(name)}
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    }


def members(name: str, before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """What a list has gained and lost; nothing where it is the same.

    >>> members("origins", ["a", "b"], ["b", "c"]), members("origins", ["a", "b"], ["b", "a"]), members("x", [], [])
    ({'origins': {'added': ['c'], 'removed': ['a']}}, {'origins': 'another order'}, {})
    """
    known, wanted = set(before), set(after)
    told = {
        "added": _few([one for one in after if one not in known]),
        "removed": _few([one for one in before if one not in wanted]),
    }
    given = {word: some for word, some in told.items() if some}
    if given:
        return {name: given}
    return {} if list(before) == list(after) else {name: "another order"}


def _few(some: Sequence[str]) -> list[str]:
    more = len(some) - NAMED
    return list(some) if more <= 1 else [*some[:NAMED], f"and {more} more"]
