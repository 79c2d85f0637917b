"""A database that is a copy, and what it takes for it to go on in its original's place: after a restore, or a rollback.

    when it is made      what waits is flagged, for the original has most likely forwarded it by the time that anybody
                         puts the copy in its place; numbers that leave the house leap ahead of all that it still gives
    at its first start   each pool address was held by nobody knows whom since then: mail of who was shown it meanwhile
                         would be stated as that of who held it before

In between ``PRAGMA user_version`` says when it was made; a program that is too old to know of it does not mind it.
"""

from __future__ import annotations

import sqlite3

from sqlalchemy import select, text, update

from relay.core.model import RouteKind
from relay.store import routes as route_verbs
from relay.store.engine import Statement, Tx
from relay.store.reader import Reader
from relay.store.schema import LISTED, OPEN, deliveries, messages, routes, webhooks

#: Tables whose ids are known outside: in payloads, signed links and return paths, in the API's addresses.
NUMBERED = (messages.name, deliveries.name, webhooks.name)
#: Ids that are left to the original. A start adds one for each second since the copy was made, so that one copy that
#: is put in place twice does not give the same ones again.
LEAP = 1_000_000
#: Seconds in the unit of user_version, which has 32 bits.
_UNIT = 60

_REPEATED = Statement(update(deliveries).where(OPEN).values(possibly_repeated=1))
_MADE_AT = Statement(text("PRAGMA user_version"))
_POOL = Statement(
    select(routes.c.id, routes.c.site_id, routes.c.target_id).where(LISTED, routes.c.kind == RouteKind.POOL.value)
)


def as_copy(connection: sqlite3.Connection, made_at: float) -> None:
    """Make a database of any revision a copy of one that goes on: one transaction, of which Python begins none itself.

    What is a copy already stays as old as it is.
    """
    connection.execute("BEGIN IMMEDIATE")
    tx = Tx(connection)
    tx.run(_REPEATED)
    _leap(tx, LEAP)
    if _made_at(tx) is None:
        _mark(tx, made_at)
    connection.execute("COMMIT")


async def is_copy(reader: Reader) -> bool:
    """Whether this is a copy, and has not taken its original's place yet. Raises StoreUnavailable."""
    return bool((await reader.run(_MADE_AT))[0][0])


def take_place(tx: Tx, now: float) -> None:
    """At a start, for a copy: put down what is not known of the time since it was made."""
    begun = _made_at(tx) or now
    ended = max(begun, now)  # a clock that is behind is set, and what begins later than it says goes along (clock.py)
    _leap(tx, int(ended - begun))
    for route_id, site_id, target_id in tx.all(_POOL):
        route_verbs.keep_holding(tx, route_id, target_id, (site_id, begun, ended), now)
    _mark(tx, 0.0)


def _leap(tx: Tx, by: int) -> None:
    for table in NUMBERED:
        if not tx.sql("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = ? RETURNING seq", (by, table)):
            tx.sql("INSERT INTO sqlite_sequence (seq, name) VALUES (?, ?)", (by, table))


def _mark(tx: Tx, made_at: float) -> None:
    tx.sql(f"PRAGMA user_version = {int(made_at // _UNIT)}")


def _made_at(tx: Tx) -> float | None:
    """When the copy was made, up to a minute early; None: it is none, or has taken its original's place."""
    row = tx.one(_MADE_AT)
    assert row is not None
    return row[0] * float(_UNIT) or None
