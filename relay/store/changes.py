"""The log of changes: who did what, newest last. It is only added to, and ends by age (retention.changes)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy import insert as insert_into

from relay.store.engine import Statement, Tx
from relay.store.reader import Reader
from relay.store.schema import changes, deliveries, sites

#: Characters of a subject and of the details that are kept.
MOST = 2000
#: Rows deleted in one transaction.
BITE = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """``kind`` and ``name`` say who: a user, a token, or whoever ran a command."""

    at: float
    kind: str
    name: str
    action: str
    site_id: int | None = None
    subject: str | None = None
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChangeRow:
    id: int
    change: Change
    site: str | None


_INSERT = Statement(insert_into(changes), "at kind name action site_id subject details")
_OF_MESSAGE = Statement(
    select(deliveries.c.site_id)
    .where(deliveries.c.message_id == bindparam("number"), deliveries.c.site_id.is_not(None))
    .distinct()
)
_NUMBERS = func.json_each(bindparam("numbers")).table_valued("value").c.value
_OF_DELIVERIES = Statement(
    select(deliveries.c.site_id)
    .where(deliveries.c.id.in_(select(_NUMBERS)), deliveries.c.site_id.is_not(None))
    .distinct()
)
_OLD = Statement(
    delete(changes).where(changes.c.id.in_(select(changes.c.id).where(changes.c.at < bindparam("before")).limit(BITE)))
)


def note(tx: Tx, change: Change) -> None:
    details = None if not change.details else json.dumps(change.details, ensure_ascii=False)
    if details is not None and len(details) > MOST:
        details = json.dumps({"fields": sorted(change.details or ())})[:MOST]
    tx.insert(
        _INSERT,
        at=change.at,
        kind=change.kind,
        name=change.name,
        action=change.action,
        site_id=change.site_id,
        subject=change.subject and change.subject[:MOST],
        details=details,
    )


async def sites_of(reader: Reader, message: int | None = None, deliveries: Sequence[int] = ()) -> frozenset[int]:
    """Which sites a message is for, or which these deliveries are of; raises StoreUnavailable."""
    if message is not None:
        rows = await reader.run(_OF_MESSAGE, number=message)
    else:
        rows = await reader.run(_OF_DELIVERIES, numbers=json.dumps(list(deliveries)))
    return frozenset(site for (site,) in rows)


def forget(tx: Tx, before: float) -> bool:
    """Delete a bite of what is older; True when there may be more."""
    return tx.run(_OLD, before=before) == BITE


async def page(reader: Reader, visible: frozenset[int] | None, before: int | None, limit: int) -> list[ChangeRow]:
    """At most ``limit`` changes, newest first, of these sites (None: all, and those of no site)."""
    query = (
        select(
            changes.c.id,
            changes.c.at,
            changes.c.kind,
            changes.c.name,
            changes.c.action,
            changes.c.site_id,
            changes.c.subject,
            changes.c.details,
            sites.c.name,
        )
        .outerjoin(sites, sites.c.id == changes.c.site_id)
        .order_by(changes.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(changes.c.id < before)
    if visible is not None:
        query = query.where(changes.c.site_id.in_(sorted(visible)))
    return [
        ChangeRow(change_id, Change(at, kind, name, action, site_id, subject, json.loads(details or "{}")), site)
        for change_id, at, kind, name, action, site_id, subject, details, site in await reader.all(query)
    ]
