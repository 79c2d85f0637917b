"""What the poster asks of the store, so that it can be asked from a process of its own (webapi/poster_process.py)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from relay.store.post import PostJob, PostResult


class PostStore(Protocol):
    """``claim`` names this run of the poster in the store. A job with another ``edition`` is to be read again.

    All raise StoreUnavailable.
    """

    @property
    def claim(self) -> str: ...
    @property
    def edition(self) -> int: ...
    async def due(self, now: float) -> list[int]:
        """Webhooks for which something is due."""
        ...

    async def take(self, capacity: Mapping[int, int], now: float, held: Collection[int]) -> list[PostJob]:
        """Claim (posts.claim_posts)."""
        ...

    async def next_at(self, now: float) -> float | None:
        """When the next post is due after ``now``."""
        ...

    async def release(self, jobs: Sequence[PostJob]) -> None: ...
    async def tried(self, webhook: int, before: float | None) -> list[int]:
        """Posts that wait for another attempt, in the order of their events.

        With ``before``: those that were last tried before it, but for what a Retry-After may have put off.
        """
        ...

    async def hasten(self, post_ids: Sequence[int], begin: float, now: float) -> None: ...
    async def finish(self, results: Sequence[PostResult], now: float) -> None: ...
