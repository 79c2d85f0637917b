"""strace on the running daemon: a signal or an error at exactly the N-th of some system call."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.missing import missing

#: Seconds for strace to take hold. Reached only when a test fails.
PATIENCE = 20.0
#: Seconds that strace may take to let go of a process that lives.
LETTING_GO = 5.0
#: Seconds between two looks at what announces nothing.
LOOK = 0.02
#: A thread, its call, and of what kind the descriptor is that it begins with (strace -yy: "TCP", "UNIX-STREAM", …).
_CALL = re.compile(r"^(\d+) +(\w+)\((?:\d+<([\w-]*))?", re.MULTILINE)
_SYNC = re.compile(r"^(?:\d+ +)?([\d.]+) f(?:data)?sync\(.*\) += (-1 .*\(INJECTED\)|0$)", re.MULTILINE)
#: What is made of the write-ahead log besides its syncs. SQLite opens it to write, our own code only to look into it.
LOG_CALLS = "openat,close,pwrite64"
_OF_LOG = re.compile(
    r"^(?:\d+ +)?[\d.]+ (?:(openat)(?=.*O_RDWR)|(close)|(pwrite64)|(fdatasync))\(.*/relay\.db-wal.*\) += (-1)?",
    re.MULTILINE,
)
#: The sync of a commit fails, and a later one succeeds, with no closing and opening of the log between them.
_BELIEVED = re.compile(r"wf(?!co)\w*s")


def require_strace(what: str) -> None:
    """``what`` is not tested where strace cannot inject anything."""
    if shutil.which("strace") is None:
        missing(f"NOT TESTED, {what}: strace is not installed (Debian: apt-get install strace)")
    if problem := _strace_problem():
        pytest.skip(f"NOT TESTED, {what}: strace does not work here: {problem}")


@cache
def _strace_problem() -> str | None:
    tried = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", "-e", "inject=getppid:retval=7", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return (tried.stderr or "no reason given").strip()[-200:]
    return None


def threads(pid: int) -> list[int]:
    """Ids of a process's threads, the oldest first: ids begin anew, so the time of the start (proc(5)) counts first."""
    found = {
        int(entry.name): int((entry / "stat").read_text().rpartition(")")[2].split()[19])
        for entry in Path(f"/proc/{pid}/task").iterdir()
    }
    return sorted(found, key=lambda thread: (found[thread], thread))


@contextlib.asynccontextmanager
async def injecting(
    pid: int,
    *rules: str,
    only: Sequence[int] = (),
    on: Path | None = None,
    output: Path = Path("/dev/null"),
    also: str = "",
) -> AsyncIterator[None]:
    """Rules such as "fdatasync:signal=SIGKILL:when=3" in force on every thread of a process; counts are per thread.

    ``only``: on these threads and no others; ``on``: about this file alone. ``output`` has a line for each of them,
    once strace is away; where there are calls to note ``also``, all descriptors have the names of their files there.
    Inside the block they are in force; leaving it takes strace away, and the process goes on if it still lives.
    """
    calls = ",".join(filter(None, [*(rule.partition(":")[0] for rule in rules), also]))
    options = [*(option for rule in rules for option in ("-e", f"inject={rule}")), *["-y"] * bool(also)]
    options += [word for word in ("-P", str(on)) if on]
    async with _tracing(pid, only, output, "-ttt", "-e", f"trace={calls}", *options):
        yield


@contextlib.asynccontextmanager
async def tracing(pid: int, output: Path, calls: str) -> AsyncIterator[None]:
    """Every one of these system calls (strace's names and classes, with commas) noted in ``output``."""
    async with _tracing(pid, (), output, "-yy", "-e", f"trace={calls}"):
        yield


#: What Python runs first where PYTHONPATH names its folder. A module that is to be held waits before its first import.
_HOLD = """
import contextlib, os, signal, sys
for word in sys.orig_argv:
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(os.path.dirname(__file__), "hold " + word))
        os.kill(os.getpid(), signal.SIGSTOP)
"""


class Holder:
    """Stops the next process that runs some module at its start, among those whose PYTHONPATH has the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_HOLD)

    def hold(self, module: str) -> None:
        (self._folder / f"hold {module}").touch()


def made(output: Path) -> dict[tuple[int, str], list[str]]:
    """Each thread's calls by name, in their order, by strace's output: the kind of the descriptor of each, or ""."""
    found: dict[tuple[int, str], list[str]] = {}
    for thread, call, kind in _CALL.findall(output.read_text(errors="replace")):
        found.setdefault((int(thread), call), []).append(kind)
    return found


def struck(output: Path) -> bool:
    """Whether an error was injected, by strace's output."""
    return "(INJECTED)" in output.read_text(errors="replace")


def syncs(output: Path) -> list[tuple[float, bool]]:
    """When each sync began, and whether it succeeded, by ``injecting``; one that was interrupted did not fail."""
    found = _SYNC.findall(output.read_text(errors="replace"))
    return [(float(time), end == "0") for time, end in found if "EINTR" not in end]


def believes_a_failed_sync(output: Path) -> bool:
    """Whether a sync of the write-ahead log counted although a commit's had failed before on the same descriptor.

    The system tells of such a failure once and takes the pages for written (fsync(2)): to sync again proves nothing.
    By ``injecting`` with LOG_CALLS on the writer's thread. A checkpoint's sync of the log is of what was synced before.
    """
    story = ""
    for opened, closed, written, _, failed in _OF_LOG.findall(output.read_text(errors="replace")):
        story += "o" if opened else "c" if closed else "w" if written else "f" if failed else "s"
    return _BELIEVED.search(story) is not None


@contextlib.asynccontextmanager
async def _tracing(pid: int, only: Sequence[int], output: Path, *options: str) -> AsyncIterator[None]:
    whom = [word for thread in only for word in ("-p", str(thread))] or ["-f", "-p", str(pid)]
    tracer = await asyncio.create_subprocess_exec(
        *["strace", "-o", str(output), *whom, *options],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert tracer.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            for _ in only or (pid,):
                line = await tracer.stderr.readline()
                assert b"attached" in line, line
        yield
    finally:
        await _take_away(tracer, pid)


async def _take_away(tracer: asyncio.subprocess.Process, pid: int) -> None:
    """End strace. One whose process is dead may wait for ever for the last of its threads, so that one is killed."""
    with contextlib.suppress(ProcessLookupError):
        if not is_dead(pid):
            tracer.terminate()
            try:
                async with asyncio.timeout(LETTING_GO):
                    await tracer.wait()
                    return
            except TimeoutError:
                pass  # its process has died meanwhile
        tracer.kill()
    await tracer.wait()


def is_dead(pid: int) -> bool:
    """Whether a child process of ours has ended; one that is traced shows that in no other way until it is let go."""
    return _state(pid) in ("Z", "X")


def is_held(pid: int) -> bool:
    return _state(pid) == "T"


def _state(pid: int) -> str:
    """A letter of proc(5)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return status.rpartition(")")[2].split()[0]


async def ended(pid: int, timeout: float) -> bool:
    """Whether a child process of ours ends within ``timeout`` seconds. It is left to its owner to be waited for."""
    try:
        async with asyncio.timeout(timeout):
            while not is_dead(pid):
                await asyncio.sleep(LOOK)
    except TimeoutError:
        return False
    return True
