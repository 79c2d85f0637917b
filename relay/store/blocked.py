"""Senders whose letters become no deals at a site. Their mail is forwarded all the same."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy import insert as insert_into

from relay.store.engine import Statement, Tx
from relay.store.reader import Reader
from relay.store.schema import blocked_senders

#: Blocked senders of one site.
MOST = 10_000

_INSERT = Statement(insert_into(blocked_senders), "site_id address created_at")
_THIS = (blocked_senders.c.site_id == bindparam("site"), blocked_senders.c.address == bindparam("sender"))
_FIND = Statement(select(blocked_senders.c.created_at).where(*_THIS))
_DELETE = Statement(delete(blocked_senders).where(*_THIS))
_COUNT = Statement(select(func.count()).where(blocked_senders.c.site_id == bindparam("site")))
_LIST = Statement(
    select(blocked_senders.c.address)
    .where(blocked_senders.c.site_id == bindparam("site"))
    .order_by(blocked_senders.c.address)
)


class TooMany(Exception):
    """The site has as many blocked senders as one may have."""


def block(tx: Tx, site_id: int, address: str, now: float) -> None:
    """Block an address, or a domain as ``@example.com``; as ``sender_key`` writes it. Raises TooMany."""
    if tx.one(_FIND, site=site_id, sender=address) is not None:
        return
    row = tx.one(_COUNT, site=site_id)
    if row is not None and row[0] >= MOST:
        raise TooMany(f"a site can block {MOST} senders: block a whole domain instead")
    tx.run(_INSERT, site_id=site_id, address=address, created_at=now)


def unblock(tx: Tx, site_id: int, address: str) -> bool:
    """False when it was not blocked."""
    return tx.run(_DELETE, site=site_id, sender=address) > 0


async def listing(reader: Reader, site_id: int) -> list[str]:
    """The blocked addresses and domains of a site, sorted; raises StoreUnavailable."""
    return [row[0] for row in await reader.run(_LIST, site=site_id)]


async def which(reader: Reader, addresses: Collection[str], site_ids: Collection[int]) -> set[tuple[int, str]]:
    """Of these addresses and domains, (site id, address) of those that are blocked at these sites."""
    query = select(blocked_senders.c.site_id, blocked_senders.c.address).where(
        blocked_senders.c.site_id.in_(sorted(site_ids)), blocked_senders.c.address.in_(sorted(addresses))
    )
    return {(site, address) for site, address in await reader.all(query)}
