"""What processes cost, read from /proc: CPU seconds and memory of whole trees, and the work of everything else."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def tree(root: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children[int(fields[1])].append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children[pid]
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of the tree, children included that have ended and were waited for."""
    return sum(sum(map(int, fields[11:15])) for pid in tree(root) if (fields := _stat(pid))) / _TICK


def pss(root: int) -> int:
    """Octets of memory of the tree, pages shared between processes counted once (proportional set size)."""
    return _memory(tree(root), "Pss:")


def pss_anonymous(root: int) -> int:
    """The same without pages of files, which count for less while any other program has the same library open."""
    return _memory(tree(root), "Pss_Anon:")


def descriptors(root: int) -> int:
    """File descriptors that the tree has open."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):  # it has ended
            total += sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    return total


def rss(pid: int) -> int:
    """Octets of memory of the one process, shared pages and all (resident set size)."""
    return _memory([pid], "Rss:")


def _memory(pids: Iterable[int], kind: str) -> int:
    total = 0
    for pid in pids:
        try:
            rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(kind))
    return total * 1024


def machine_seconds() -> float:
    """CPU seconds that the whole machine has worked; waiting for disks is no work."""
    ticks = [int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICK


def turned_away() -> int:
    """Connections that the kernel has dropped since it started, of anybody here: too many waited to be accepted."""
    names, values = [
        line.split() for line in (_PROC / "net" / "netstat").read_text().splitlines() if line.startswith("TcpExt:")
    ]
    return int(values[names.index("ListenOverflows")])


def file_system(path: Path) -> str:
    """The type of the file system that ``path`` is on ("ext4", "tmpfs")."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (_PROC / "self" / "mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return "unknown"


def wait_until(condition: Callable[[], bool], patience: float, step: float = 0.05) -> bool:
    """Look every ``step`` seconds; whether it came true within ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(step)
    return True


class Foreign:
    """CPU cores that were busy while the block ran with what is neither the tree's nor this process's work."""

    def __init__(self, root: int) -> None:
        self.cores = 0.0
        self._root = root
        self._began = self._worked = 0.0

    def _look(self) -> tuple[float, float]:
        return time.monotonic(), machine_seconds() - cpu_seconds(self._root) - time.process_time()

    def __enter__(self) -> Foreign:
        self._began, self._worked = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        now, worked = self._look()
        self.cores = max(0.0, worked - self._worked) / (now - self._began)


class Watch:
    """What ``measure`` says of a tree (its memory, in octets) while the block runs, every ``step`` seconds: (seconds
    since the start, value)."""

    def __init__(self, root: int, step: float = 0.5, measure: Callable[[int], int] = pss) -> None:
        self.samples: list[tuple[float, int]] = []
        self._root = root
        self._step = step
        self._measure = measure
        self._began = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    @property
    def peak(self) -> int:
        return max(value for _, value in self.samples)

    def _look(self) -> None:
        while True:
            self.samples.append((time.monotonic() - self._began, self._measure(self._root)))
            if self._done.wait(self._step):
                return

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def give_way() -> None:
    """Have this process play the machines of other people: ours does their work when it has nothing else to do."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(40)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, …; empty when the process has ended."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []
