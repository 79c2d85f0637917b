"""The watchdog of the fuzzers: whatever holds the loop up is found out, and what others do is not laid at its door."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.costs import Costs, sleeps, watched
from tests.smtp_client import PATIENCE

#: Seconds that the loop is held up, and how many the fuzzers allow.
HELD, ALLOWED = 0.3, 0.1
#: Computes on the core it is given until it is killed, once it has said that it does.
BUSY = "import os, sys; os.sched_setaffinity(0, [int(sys.argv[1])]); print(flush=True)\nwhile True: pass"

#: Sleep for good, once they have said so: as a loop that has nothing to do, and in a system call that blocks.
IDLE = "import select; print(flush=True); select.epoll().poll()"
BLOCKED = "import sys; print(flush=True); sys.stdin.read()"


@contextmanager
def running(code: str, *arguments: str) -> Iterator[int]:
    """The process id of a Python that runs ``code`` and has written a line."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def compute(clock: Callable[[], float], seconds: float) -> None:
    end = clock() + seconds
    while clock() < end:
        pass


async def look_behind(action: Callable[[], object]) -> Costs:
    """What the watchdog says of a loop that does this and nothing else."""
    async with watched("", 1) as costs:
        await asyncio.sleep(0)  # it begins
        action()
        while not costs.stall:
            await asyncio.sleep(0)
        return costs


@pytest.mark.parametrize("hold", [time.sleep, lambda seconds: compute(time.thread_time, seconds)], ids=["sleep", "cpu"])
async def test_a_loop_that_sleeps_or_computes_is_found_out(hold: Callable[[float], None]) -> None:
    assert (await look_behind(lambda: hold(HELD))).own > ALLOWED


async def test_what_a_thread_sleeps_the_loop_does_not() -> None:
    async with watched("", 1) as costs:
        await asyncio.to_thread(time.sleep, HELD)
    assert 0 < costs.own < HELD


async def test_what_another_process_computes_on_the_same_core_is_not_the_loops_doing() -> None:
    cores = os.sched_getaffinity(0)
    core = min(cores)
    with running(BUSY, str(core)):
        try:
            os.sched_setaffinity(0, [core])  # of this thread alone
            costs = await look_behind(lambda: compute(time.monotonic, 2 * HELD))
        finally:
            os.sched_setaffinity(0, cores)
    print(f"\n{costs}")
    assert costs.stall > 1.9 * HELD
    assert costs.own < 0.75 * costs.stall  # the half, when both get their share


def test_who_sleeps_elsewhere_than_in_a_wait_for_events_is_seen_from_outside() -> None:
    with running(IDLE) as idle, running(BLOCKED) as blocked, sleeps(idle) as of_idle, sleeps(blocked) as of_blocked:
        end = time.monotonic() + PATIENCE
        while max(of_blocked.values(), default=0.0) < ALLOWED:
            assert time.monotonic() < end
            time.sleep(ALLOWED)
    assert of_idle == {}
