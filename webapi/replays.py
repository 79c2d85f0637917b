"""Replays as the API and the command line do them: in bites, so that mail flows meanwhile; attributed anew if asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

from relay.core import substitute
from relay.core.address import AddressError, lookup_keys, parse
from relay.store import post_log, reattribution, replay
from relay.store.engine import Tx
from relay.store.messages import Evidence
from relay.store.post import BITE, PACE
from relay.store.replay import Selection
from relay.store.routes import Route
from relay.store.store import Store

#: What runs a step durably: Store.write unless another is given, which notes the change with it.
Write = Callable[[Callable[[Tx], int]], Awaitable[int]]


async def replay_selected(
    store: Store,
    webhook_id: int,
    site_id: int,
    wanted: Selection,
    now: float,
    evidence: Evidence | None = None,
    write: Write | None = None,
) -> int:
    """Post what is selected again to one webhook; the number of posts. With ``evidence`` attributed anew before.

    Raises replay.OutOfUse and StoreUnavailable; what was done until then stays done.
    """
    count = 0
    async for bite in _bites(store, webhook_id, site_id, wanted):
        if evidence is not None:
            for message_id in await post_log.message_of(store.reader, bite):
                await reattribute(store, message_id, evidence, now, (site_id,), write)
        begin = now + count / PACE
        count += await (write or store.write)(lambda tx: replay.replay_to(tx, webhook_id, bite, begin, now))  # noqa: B023
    return count


async def _bites(store: Store, webhook_id: int, site_id: int, wanted: Selection) -> AsyncIterator[list[int]]:
    """The events that are selected, oldest first; none that came after the beginning, so that it ends."""
    after, last = 0, await replay.newest(store.reader)
    while event_ids := await replay.selected(store.reader, webhook_id, site_id, wanted, after, last):
        for start in range(0, len(event_ids), BITE):
            yield event_ids[start : start + BITE]
        after = event_ids[-1]


async def replay_posts(write: Write, webhook_id: int, event_ids: Sequence[int], now: float) -> int:
    """Post just these events again, whatever the conditions say; raises replay.OutOfUse and StoreUnavailable."""
    return await write(lambda tx: replay.replay_to(tx, webhook_id, event_ids, now, now, forced=True))


async def reattribute(
    store: Store,
    message_id: int,
    evidence: Evidence,
    now: float,
    sites: Collection[int] | None,
    write: Write | None = None,
) -> int:
    """Attribute a message anew at these sites (None: all); how many deliveries came out otherwise.

    Raises StoreUnavailable.
    """
    routing: dict[str, tuple[Route, str | None]] = {}
    for (address,) in await store.reader.run(reattribution.RECIPIENTS, message=message_id):
        found = await _route(store, address)
        if found is not None:
            routing[address] = found
    return await (write or store.write)(
        lambda tx: reattribution.reattribute(tx, message_id, routing, evidence, now, sites)
    )


async def _route(store: Store, address: str) -> tuple[Route, str | None] | None:
    """Where the address leads now, as intake would find it."""
    try:
        recipient = parse(address)
    except AddressError:
        return None
    found = await store.routes.find(lookup_keys(recipient))
    heard = substitute.normalise(recipient.local)
    if found is None and heard is not None:
        return await store.routes.find([(recipient.domain, heard, None)])
    return found
