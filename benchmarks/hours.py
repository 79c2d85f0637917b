"""Hours at an even pace: whether every letter comes through once, and what the daemon's memory does meanwhile.

A stretch of each workload in turn, each verified like a run of benchmarks/mail.py when its last letter is through.
Memory is that of the whole process tree. Its slope is that of the line through all samples behind the first quarter
(least squares): until then caches fill up to their bounds.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.mail import WORKLOADS, Options, run
from benchmarks.processes import pss
from benchmarks.relay import Relay
from benchmarks.workplace import Workplace

#: Hours, and messages a second, by the goal.
HOURS, RATE = 2.0, 20.0
#: Seconds of one workload before the next has its turn, and between two looks at the memory.
STRETCH, LOOK = 300.0, 10.0
#: What 20 a second can be: 10 MB each is not.
MIXED = WORKLOADS[:3]
#: Octets an hour that the memory may grow by, by the goal.
GOAL = 1_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """``at``: hours since the beginning; ``memory``: octets (PSS)."""

    at: float
    memory: int


class Sampling:
    """Looks at the memory of a process tree while the block runs."""

    def __init__(self, root: int, step: float = LOOK) -> None:
        self.samples: list[Sample] = []
        self._root = root
        self._step = step
        self._began = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._done.wait(self._step):
            self.samples.append(Sample((time.monotonic() - self._began) / 3600, pss(self._root)))

    def __enter__(self) -> Sampling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def slope(samples: Sequence[Sample]) -> float:
    """Octets an hour, behind the first quarter of the time. Raises statistics.StatisticsError for fewer than two."""
    settled = [sample for sample in samples if sample.at >= samples[-1].at / 4]
    return statistics.linear_regression([s.at for s in settled], [s.memory for s in settled]).slope


def measure(place: Workplace, relay: Relay, hours: float, rate: float, stretch: float = STRETCH) -> None:
    """Send ``rate`` messages a second for ``hours`` and judge; ``stretch``: seconds of one workload at a time."""
    report = place.report
    report.line()
    report.line(f"hours · {hours:g} h at {rate:g} messages/s, {', '.join(workload.name for workload in MIXED)} in turn")
    options = Options(rate=rate)
    letters, faults = 0, []
    deadline = time.monotonic() + hours * 3600
    with Sampling(relay.pid, min(LOOK, stretch / 10)) as sampling:
        while (left := deadline - time.monotonic()) > 0:
            turn = MIXED[len(faults) % len(MIXED)]
            messages = max(1, round(rate * min(stretch, left)))
            faults.append(run(place, relay, replace(turn, messages=messages), options, messages).faults)
            letters += messages
    found = sorted({fault for each in faults for fault in each})
    memory = [sample.memory / 1e6 for sample in sampling.samples]
    hourly = slope(sampling.samples)
    report.figures["hours"] = {"letters": letters, "slope": hourly, "memory": memory}
    report.line(
        f"  {letters} letters; memory {memory[0]:.0f} MB at first, {memory[len(memory) // 4]:.0f} after a quarter, "
        f"{memory[-1]:.0f} at the end, {max(memory):.0f} at most"
    )
    report.judge(
        "hours: every message exactly once, unchanged, indexed, posted", not found, "; ".join(found) or "verified"
    )
    report.judge(
        f"hours: memory grows by less than {GOAL / 1e6:g} MB an hour", hourly < GOAL, f"{hourly / 1e6:+.2f} MB/h"
    )
