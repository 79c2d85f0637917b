"""Hours at an even pace: whether every letter comes through once, and what the daemon keeps meanwhile.

A stretch of each workload in turn, each verified like a run of benchmarks/mail.py when its last letter is through.
Memory is that of the whole process tree, without pages of files: those belong to whoever has them open. Its slope is
that of the line through all samples behind the first quarter (least squares): until then caches fill up to their
bounds. A burst goes before: what many letters under way at once need is not given back, and would be a step in the
line whenever the disk or the machine is slow for a moment. Before that one another, and a restart: a daemon looks how
late people write at its start and every hour, and the pages of the database that it reads for that fill the cache of a
connection, once; with an empty database that would be a step after an hour. File descriptors come and go with
connections, so their medians of the second and the last quarter are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.mail import WORKLOADS, Options, run
from benchmarks.processes import Watch, descriptors, pss_anonymous
from benchmarks.relay import Relay
from benchmarks.workplace import Workplace

#: Hours, and messages a second, by the goal.
HOURS, RATE = 2.0, 20.0
#: Seconds of one workload before the next has its turn, and between two looks at the memory.
STRETCH, LOOK = 300.0, 10.0
#: Messages of each workload in the burst before, as fast as they go.
BURST = 2000
#: What 20 a second can be: 10 MB each is not.
MIXED = WORKLOADS[:3]
#: Octets an hour that the memory may grow by, by the goal.
GOAL = 1_000_000
#: Descriptors that one quarter may have open more than another.
FLAT = 2


def slope(samples: Sequence[tuple[float, int]]) -> float:
    """Octets an hour, behind the first quarter of the time. Raises statistics.StatisticsError for fewer than two."""
    settled = [(at / 3600, memory) for at, memory in samples if at >= samples[-1][0] / 4]
    return statistics.linear_regression(*zip(*settled, strict=True)).slope


def grown(samples: Sequence[tuple[float, int]]) -> float:
    """By how much the median of the last quarter is above that of the second."""
    quarter = samples[-1][0] / 4
    second = [value for at, value in samples if quarter <= at < 2 * quarter]
    last = [value for at, value in samples if at >= 3 * quarter]
    return statistics.median(last) - statistics.median(second)


def measure(
    place: Workplace, relay: Relay, hours: float, rate: float, stretch: float = STRETCH, burst: int = BURST
) -> None:
    """Send ``rate`` messages a second for ``hours`` and judge; ``stretch``: seconds of one workload at a time."""
    report = place.report
    report.line()
    report.line(f"hours · {hours:g} h at {rate:g} messages/s, {', '.join(workload.name for workload in MIXED)} in turn")
    options = Options(rate=rate)
    faults = [run(place, relay, replace(turn, messages=burst), Options(), burst).faults for turn in MIXED]
    relay.stop()
    relay.start()
    faults += [run(place, relay, replace(turn, messages=burst), Options(), burst).faults for turn in MIXED]
    letters = burst * len(faults)
    deadline = time.monotonic() + hours * 3600
    step = min(LOOK, stretch / 10)
    with Watch(relay.pid, step, pss_anonymous) as watch, Watch(relay.pid, step, descriptors) as opened:
        while (left := deadline - time.monotonic()) > 0:
            turn = MIXED[len(faults) % len(MIXED)]
            messages = max(1, round(rate * min(stretch, left)))
            faults.append(run(place, relay, replace(turn, messages=messages), options, messages).faults)
            letters += messages
    found = sorted({fault for each in faults for fault in each})
    memory = [octets / 1e6 for _, octets in watch.samples]
    hourly = slope(watch.samples)
    files = [count for _, count in opened.samples]
    more = grown(opened.samples)
    report.figures["hours"] = {"letters": letters, "slope": hourly, "memory": memory, "descriptors": files}
    report.line(
        f"  {letters} letters; memory {memory[0]:.0f} MB at first, {memory[len(memory) // 4]:.0f} after a quarter, "
        f"{memory[-1]:.0f} at the end, {max(memory):.0f} at most; {min(files)} to {max(files)} descriptors"
    )
    report.judge(
        "hours: every message exactly once, unchanged, indexed, posted", not found, "; ".join(found) or "verified"
    )
    report.judge(
        f"hours: memory grows by less than {GOAL / 1e6:g} MB an hour", hourly < GOAL, f"{hourly / 1e6:+.2f} MB/h"
    )
    report.judge("hours: as many descriptors are open as before", more <= FLAT, f"{more:+g}")
