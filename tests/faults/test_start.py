"""kill -9 at exact system calls of a start: the next one makes an end of whatever was begun, and nothing is lost.

A start after a kill is traced first: which calls it makes about which files of data_dir. Then starts are killed at
these, three before one goes through. The same over an upgrade of the oldest database there is, and over the making of
one. In the suite three kills of an upgrade, in the soak one at every call.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.store.migrate import backup
from relay.store.store import DATABASE, prepare
from tests.daemon import START, DaemonFailed, environment
from tests.faults.calls import KILL
from tests.faults.injection import is_dead, require_strace
from tests.faults.test_kill import settled
from tests.ledger import SOAK, Ledger, seeded
from tests.scenarios.world import World, world
from tests.smtp_sink import Hang, SmtpSink
from tests.test_migrations import OLD, contents, is_sound, unpacked
from tests.webhook_receiver import Post

pytestmark = pytest.mark.fault

#: Those that make, change and sync files.
CALLS = ("openat", "mkdir", "chmod", "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "rename", "unlink")
#: Starts that are killed before one goes through.
IN_A_ROW = 3
#: Letters that wait at a start.
LETTERS = 6
#: The name of a copy has the time of the upgrade in it.
COPY = "-before-"
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)", re.MULTILINE)
_PREPARES = "import sys; from pathlib import Path; from relay.store.store import prepare; prepare(Path(sys.argv[1]))"


@dataclass(frozen=True)
class Point:
    """The how-manyth ``call`` of a thread; counted are those about the file ``path``, unless it is None."""

    call: str
    path: Path | None
    number: int

    @property
    def kind(self) -> str:
        return f"{self.call} {self.path.name if self.path else 'of a copy'}"

    @property
    def command(self) -> tuple[str, ...]:
        """Starts what is given to it, to be killed there."""
        about = ("-P", str(self.path)) if self.path else ()
        rule = f"inject={self.call}:signal={KILL}:when={self.number}"
        return ("strace", "-D", "-f", "-o", "/dev/null", *about, "-e", f"trace={self.call}", "-e", rule)


def tracing(output: Path) -> tuple[str, ...]:
    """Starts what is given to it, and has a line in ``output`` for each of its CALLS."""
    return ("strace", "-D", "-f", "-y", "-o", str(output), "-e", f"trace={','.join(CALLS)}")


def points(output: Path, data_dir: Path) -> list[Point]:
    """All calls about data_dir and files in it, in their order; not those about bodies: who reads them is chance."""
    about = re.compile(rf'[<"]({re.escape(str(data_dir))}(?:/(?!bodies/)[^>"]*)?)[>"]')
    counts = Counter[tuple[str, str, Path | None]]()
    found: dict[Point, None] = {}
    for thread, call, rest in _CALL.findall(output.read_text(errors="replace")):
        counts[thread, call, None] += 1
        if (match := about.search(rest)) is None:
            continue
        path = None if COPY in match[1] else Path(match[1])
        if path is not None:
            counts[thread, call, path] += 1
        elif call == "openat":
            continue  # which number it has among all depends on what Python finds compiled
        found[Point(call, path, counts[thread, call, path])] = None
    print(f"{len(found)} calls: {dict(Counter(point.kind for point in found))}")
    return list(found)


def chosen(found: list[Point], chance: random.Random) -> list[Point]:
    return chance.sample(found, len(found) if SOAK else IN_A_ROW)


async def is_killed(relay: World, point: Point) -> bool:
    """Start the daemon, to be killed at this point; False if it served, as one that does not come there."""
    since = len(relay.daemon.log)
    relay.daemon.spawn(point.command)
    served = False
    with contextlib.suppress(DaemonFailed):
        served = bool(await relay.daemon.logged("ready", since=since, timeout=START))
    assert served or is_dead(relay.daemon.pid), f"neither killed nor serving: {point}; {relay.daemon.log[since:]}"
    code = await asyncio.to_thread(relay.daemon.stop, signal.SIGKILL)
    assert code == -signal.SIGKILL, f"it ended by itself: {point}; {relay.daemon.log[since:]}"
    return not served


@pytest.mark.skipif(not SOAK, reason="starts of the daemon are killed at their calls by `make soak`")
async def test_whichever_call_of_a_start_is_its_last_nothing_acknowledged_is_lost_or_comes_twice(
    tmp_path: Path,
) -> None:
    require_strace("kills at the start")
    chance = seeded("kills at the start")
    ledger = Ledger(chance.randrange(10**6), lambda number: number % 5 == 4)
    takes = asyncio.Event()  # else next hop and CRM leave all that is under way so: the starts find it claimed

    async def thinks(post: Post) -> int:
        await takes.wait()
        return 200

    async def loaded(relay: World) -> None:
        await ledger.send(lambda: relay.daemon.smtp_port, most=LETTERS)
        await asyncio.to_thread(relay.daemon.kill)

    output, missed, account = tmp_path / "calls.txt", list[Point](), ""
    sink = SmtpSink(script={"mail": lambda session, line: None if takes.is_set() else Hang()})
    async with world(tmp_path, sink=sink, crm=thinks, start=False) as relay:
        await asyncio.to_thread(relay.daemon.start)
        await loaded(relay)
        await asyncio.to_thread(relay.daemon.start, tracing(output))
        found = points(output, relay.daemon.data_dir)
        tried = chosen(found, chance)
        for at in range(0, len(tried), IN_A_ROW):
            # What comes first in a start is killed first, and leaves the rest to the next one.
            row = sorted(tried[at : at + IN_A_ROW], key=found.index)
            takes.clear()
            await loaded(relay)
            try:
                missed += [point for point in row if not await is_killed(relay, point)]
                takes.set()
                await asyncio.to_thread(relay.daemon.start)
                await relay.retry_all()
                account = await settled(relay, ledger, Counter())
            except Exception as error:
                raise AssertionError(f"{row}; {relay.daemon.log[-20:]}") from error
        print(f"{len(tried)} kills at the start, never reached {len(missed)}: {account}")
        assert len(missed) < len(tried) / 2


def prepared(data_dir: Path, old: Path | None, command: tuple[str, ...]) -> int:
    """Have ``command`` start what a start does with the old database, or with none; the exit code."""
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir()
    path = data_dir / DATABASE if old is None else unpacked(old, data_dir)
    return subprocess.run([*command, sys.executable, "-c", _PREPARES, path], env=environment(), check=False).returncode


def copied(path: Path) -> Path:
    """A whole copy of a database, as an upgrade makes one first."""
    copy = path.with_name("whole.db")
    backup(path, copy)
    return copy


@pytest.mark.parametrize("what", ["upgrade", "making"] if SOAK else ["upgrade"])
def test_whichever_call_of_an_upgrade_is_its_last_the_next_start_makes_an_end_of_it(what: str, tmp_path: Path) -> None:
    require_strace(f"kills at the {what} of a database")
    chance = seeded(f"kills at the {what} of a database")
    old = OLD[0] if what == "upgrade" else None
    data_dir, output, missed = tmp_path / "data", tmp_path / "calls.txt", 0
    assert prepared(data_dir, old, tracing(output)) == 0
    expected = contents(data_dir / DATABASE)
    before = None if old is None else contents(copied(unpacked(old, tmp_path)))
    tried = chosen(points(output, data_dir), chance)
    for point in tried:
        code = prepared(data_dir, old, point.command)
        assert code in (0, -signal.SIGKILL), point
        missed += code == 0
        prepare(data_dir / DATABASE)
        is_sound(data_dir / DATABASE)
        assert contents(data_dir / DATABASE) == expected, point
        copies = list(data_dir.glob(f"*{COPY}*"))
        assert {copy.suffix for copy in copies} <= {".db"}, f"left behind, {point}: {copies}"
        assert before is None or before in map(contents, copies), f"{point}: {copies}"
    print(f"{len(tried)} kills, never reached {missed}")
    assert missed < len(tried) / 2
