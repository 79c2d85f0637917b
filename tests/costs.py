"""What inputs of strangers cost: growth of this process, and how long its event loop had no pause."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from threading import Event

_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Seconds between two looks of the watchdog.
_LOOK = 0.001


class Costs:
    """Growth of this process, and the longest that its event loop went without a pause, in seconds.

    ``stall`` is by the clock, others on the machine included. ``own`` is what the program itself is to blame for:
    what the loop's thread computed, slept, or waited for a file or a lock.
    """

    def __init__(self, what: str, cases: int) -> None:
        self.what = what
        self.cases = cases
        self.stall = 0.0
        self.own = 0.0
        self.measured = False
        self._warm = max(cases // 10, 1)
        self._began = time.monotonic()
        self._memory = 0.0
        self.growth = 0.0

    def count(self, number: int) -> None:
        """Case ``number`` is done, from 0 on: the first tenth makes warm what stays warm."""
        if number + 1 == self._warm:
            self._memory = self._resident()
        elif number + 1 == self.cases:
            self.growth = self._resident() - self._memory

    def _resident(self) -> float:
        gc.collect()
        self.measured = True  # and that took its time
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE

    def __str__(self) -> str:
        seconds = time.monotonic() - self._began
        return (
            f"{self.what}: {self.cases:,} cases in {seconds:.0f} s, memory {self.growth / 1e6:+.1f} MB,"
            f" event loop held up for {self.own * 1000:.1f} ms at most ({self.stall * 1000:.1f} ms by the clock)"
        )


def _queued() -> dict[str, int]:
    """Nanoseconds for which each thread of this process has waited for a core (Linux, sched-stats, field 2).

    Nothing where the kernel does not tell (CONFIG_SCHED_INFO).
    """
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            found[thread.name] = int((thread / "schedstat").read_text().split()[1])
    return found


def _queued_since(before: dict[str, int]) -> float:
    """Seconds for which all threads together have waited since: what one of them holds, others wait for."""
    if not before:
        return math.inf
    return sum(waited - before.get(thread, 0) for thread, waited in _queued().items()) / 1e9


@asynccontextmanager
async def watched(what: str, cases: int) -> AsyncIterator[Costs]:
    """A watchdog in the event loop that looks for its turn all the time.

    As in the daemon, what was there before is out of the garbage collector's sight: to walk over all that the tests
    have imported takes 0.1 s.
    """
    gc.collect()
    gc.freeze()
    costs = Costs(what, cases)

    async def watch() -> None:
        while True:
            queued, clock, used = _queued(), time.monotonic(), time.thread_time()
            await asyncio.sleep(_LOOK)
            late, used = time.monotonic() - clock - _LOOK, time.thread_time() - used
            if not costs.measured:
                costs.stall = max(costs.stall, late)
                costs.own = max(costs.own, used, late - _queued_since(queued))
            costs.measured = False

    watchdog = asyncio.create_task(watch())
    try:
        yield costs
    finally:
        watchdog.cancel()


async def each(costs: Costs, case: Callable[[int], object]) -> None:
    """Every case, and a turn for the watchdog after each."""
    for number in range(costs.cases):
        case(number)
        costs.count(number)
        await asyncio.sleep(0)


#: Where a loop sleeps that has nothing to do, by two generations of kernels.
_IDLE = ("ep_poll", "do_epoll_wait")
#: Seconds between two looks from outside.
_GLANCE = 0.005


@contextmanager
def sleeps(pid: int) -> Iterator[dict[str, float]]:
    """Seconds for which the main thread of another process slept on end, by the kernel's function that it slept in.

    Its waiting for events is left out. As long as its count of voluntary switches is the same it has not been awake;
    a wait for a core is none, and one for the interpreter's lock ends every 5 ms (sys.setswitchinterval).
    """
    found, ended = dict[str, float](), Event()
    where, status = Path(f"/proc/{pid}/wchan"), Path(f"/proc/{pid}/status")

    def look() -> None:
        before, since = ("", ""), 0.0
        while not ended.wait(_GLANCE):
            now = time.monotonic()
            seen = (where.read_text(), status.read_text().rpartition("\nvoluntary_ctxt_switches:")[2].split()[0])
            if seen != before:
                before, since = seen, time.monotonic()
            elif seen[0] != "0" and seen[0] not in _IDLE:
                found[seen[0]] = max(found.get(seen[0], 0.0), now - since)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield found
        finally:
            ended.set()
            looking.result()
