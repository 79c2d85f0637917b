"""Trying deliveries again as the API and the command line do it: in steps, so that mail comes in meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from relay.core.model import DeliveryState
from relay.store import queue_by_hand, queue_view
from relay.store.engine import Tx
from relay.store.queue_view import QueueFilter
from relay.store.reader import Reader

#: What runs a step durably: Store.write, or one that notes the change with it.
Write = Callable[[Callable[[Tx], list[int]]], Awaitable[list[int]]]

#: Deliveries of one transaction: some 20 ms of the writer.
STEP = 500
#: What "all" means: what is queued is being tried as soon as there is room.
AGAIN = frozenset((DeliveryState.DEFERRED, DeliveryState.FAILED))


async def retry(write: Write, delivery_ids: Sequence[int], now: float, expires_at: float) -> list[int]:
    """Try these deliveries now; the ids of those that were waiting or held.

    Raises StoreUnavailable; what was done until then stays done.
    """
    changed: list[int] = []
    for start in range(0, len(delivery_ids), STEP):
        step = delivery_ids[start : start + STEP]
        changed += await write(lambda tx: queue_by_hand.retry(tx, step, now, expires_at))  # noqa: B023
    return changed


async def retry_named(reader: Reader, write: Write, named: QueueFilter, now: float, expires_at: float) -> set[int]:
    """Try those now that are named, what is carried by what carries it; the named ones of which that came true.

    Raises as :func:`retry` does.
    """
    carriers = await queue_view.ids(reader, named)
    changed = set(await retry(write, list(dict.fromkeys(carriers.values())), now, expires_at))
    return {id_ for id_, carrier in carriers.items() if carrier in changed}


async def retry_all(reader: Reader, write: Write, wanted: QueueFilter, now: float, expires_at: float) -> list[int]:
    """Try everything now that is meant; the ids of it. Raises as :func:`retry` does."""
    carriers = dict.fromkeys((await queue_view.ids(reader, wanted)).values())
    return await retry(write, list(carriers), now, expires_at)
