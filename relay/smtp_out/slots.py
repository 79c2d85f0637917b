"""How many connections to one destination there may be at a time, and whose turn is next.

    a place is free                          the next in turn has it
    refused, and others have places          not more than these for a while; whoever was refused comes next
    refused, and nobody else has one         all that were refused have failed, and the full number may be tried again
                                             (sender.py: first what other destinations keep at that server gives way)

A next hop that takes few connections of one client refuses only those beyond (421, RFC 5321 §3.8): its mail waits for
the sessions that work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

#: Seconds for which no more connections are tried than the next hop took.
FEWER_FOR = 300.0


class Slots:
    """``on_all`` is called when the full number, ``most``, may be tried again."""

    def __init__(self, most: int, on_all: Callable[[], None] = lambda: None) -> None:
        self.taken = 0
        self._most = self._limit = most
        self._on_all = on_all
        self._turn: deque[asyncio.Future[bool]] = deque()
        self._refused: deque[asyncio.Future[bool]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def are_fewer(self) -> bool:
        return self._timer is not None

    async def take(self, *, was_refused: bool = False) -> bool:
        """Wait for a place, to be given back with :meth:`give`. False, only for who was refused: there is none."""
        ahead = self._refused or (self._turn if not was_refused else ())
        if self.taken < self._limit and not ahead:
            self.taken += 1
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        turn = self._refused if was_refused else self._turn
        turn.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter in turn:
                turn.remove(waiter)
            elif not waiter.cancelled() and waiter.result():
                self.give()
            raise

    def give(self) -> None:
        self.taken -= 1
        self._grant()

    def lower(self, others: int) -> None:
        """The next hop takes no more than these for now."""
        self._limit = min(self._limit, max(1, others))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(FEWER_FOR, self._all)

    def fail_refused(self) -> None:
        """Nobody has a session that works: who was refused need not wait for one."""
        while self._refused:
            waiter = self._refused.popleft()
            if not waiter.done():
                waiter.set_result(False)
        if self._timer is not None:
            self._all()

    def _all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._limit = self._most
        self._grant()
        self._on_all()

    def _grant(self) -> None:
        while self.taken < self._limit and (turn := self._refused or self._turn):
            waiter = turn.popleft()
            if not waiter.done():
                self.taken += 1
                waiter.set_result(True)
