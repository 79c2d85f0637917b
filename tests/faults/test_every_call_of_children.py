"""The sweep of test_every_call.py over the daemon's processes: those that read, post, and make requests.

A letter is received, forwarded, read and posted while all three are traced. Then each of their calls is struck while
another letter goes its way: the process is killed there, or the call fails with whatever it can fail with. To the mail
that never matters: the letter is at the next hop once. It and the letter after it are posted within a bounded time,
under one id each, and are in the History with their text and attachments.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from tests.faults.calls import A_WAY, CALLS, PUT_OFF, Case, Sweep, cases, chosen, errors_at, one_of_each
from tests.faults.injection import Holder, ended, injecting, is_dead, is_held, require_strace, struck, tracing
from tests.faults.test_kill import drained
from tests.ledger import SOAK, Account, Ledger, seeded
from tests.scenarios.world import world
from tests.smtp_sink import Close, SmtpSink
from tests.webhook_receiver import deal

pytestmark = pytest.mark.fault

#: The processes by what their first thread is called here, and their modules.
MODULES = {"reader": "relay.extract_worker", "poster": "webapi.poster_worker", "requester": "webapi.request_worker"}
#: A letter of theirs: a text to be read, and an attachment, which is the rest of it.
TEXT = "Hello,\nis it still to be had?"
_HEAD = (
    b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=part\r\n\r\n"
    b"--part\r\nContent-Type: text/plain\r\n\r\n" + TEXT.replace("\n", "\r\n").encode() + b"\r\n"
    b'--part\r\nContent-Type: application/octet-stream\r\nContent-Disposition: attachment; filename="list.bin"\r\n'
)
#: Each has a connection of its own, and an answer that is to be recorded at once.
ANSWER = replace(deal(17), headers={"Content-Type": "application/json", "Connection": "close"})
#: What descriptors are, in strace's words, on which no call fails as on a file: sockets, and the kernel's own.
_SOCKETS, _KERNELS = ("TCP", "TCPv6", "UNIX-STREAM"), "anon_inode"
_ON_FILES = {"EIO", "ENOSPC"}
#: What fails since two of the processes have a limit of memory.
_LIMITED = {"mmap": ("ENOMEM",)}
#: Cases of which the suite tries so many: after a kill or a failed request a letter waits for some seconds.
KILLS, ERRORS = 1, 4
#: Parts of the soak's run, each with a data_dir of its own.
PARTS = 8
#: Seconds that a start may take under strace.
A_START = 5.0
#: Seconds from its 250 within which a letter is posted: a request is given up after 25 s, and made again after 5.
BOUND = 45.0


def can_fail(call: str, kind: str) -> tuple[str, ...]:
    """What a call can fail with where each is on its own."""
    found = errors_at(call, "TCP" if kind in _SOCKETS else kind) + _LIMITED.get(call, ())
    if kind in _SOCKETS or (kind == _KERNELS and call != "epoll_ctl"):
        found = tuple(fault for fault in found if fault not in _ON_FILES)
    return found


def arguments(pid: int) -> list[str]:
    """A process's; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def processes(pid: int) -> dict[str, int]:
    """Those of MODULES that are below a daemon now, by name."""
    found: dict[str, int] = {}
    below = [pid]
    while below:
        pid = below.pop()
        found |= {name: pid for name, module in MODULES.items() if module in arguments(pid)}
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            for task in Path(f"/proc/{pid}/task").iterdir():
                below += [int(child) for child in (task / "children").read_text().split()]
    return found


def role(name: str, pid: int, thread: int) -> str:
    assert thread == pid, f"the {name} has a thread of which nobody has thought"
    return name


def start_role(name: str, pid: int, thread: int) -> str | None:
    return name if thread == pid else None  # of a process that it starts itself


@dataclass
class ChildSweep(Sweep):
    """And what became of the processes and of the letters' posts."""

    ends: Counter[str] = field(default_factory=Counter)  # processes that an error ended
    exposed: set[int] = field(default_factory=set)  # letters whose post may come twice
    met: set[tuple[str, int]] = field(default_factory=set)  # processes
    latest: float = 0.0  # seconds from a 250 to the post that was recorded as delivered

    async def trace(self, folder: Path) -> list[Case]:
        """All cases, by one clean delivery of each size."""
        found: list[Case] = []
        for large in (False, True):
            await self.arrived(await self.send(large=large))  # once before, so that all threads are there
            pids = processes(self.relay.daemon.pid)
            assert pids.keys() == MODULES.keys()
            async with AsyncExitStack() as stack:
                for name, pid in pids.items():
                    await stack.enter_async_context(tracing(pid, folder / name, CALLS))
                await self.arrived(await self.send(large=large))
            for name, pid in pids.items():
                found += cases(folder / name, partial(role, name, pid), large, can_fail)
        return found

    async def trace_starts(self, folder: Path, holder: Holder) -> list[Case]:
        """All cases of the processes' starts, each with the letter that waits for it."""
        found: list[Case] = []
        for name in MODULES:
            pid = await self.start_anew(name, holder)
            async with tracing(pid, folder / name, CALLS):
                os.kill(pid, signal.SIGCONT)
                await self.arrived(await self.send())
            found += cases(folder / name, partial(start_role, name, pid), False, can_fail)
        return found

    async def start_anew(self, name: str, holder: Holder) -> int:
        """Kill a process; its successor, which is held before it has done anything."""
        holder.hold(MODULES[name])
        old = processes(self.relay.daemon.pid)[name]
        os.kill(old, signal.SIGKILL)
        assert await ended(old, A_WAY)  # a letter that was given to it would have ended two, and be given up
        if name == "reader":
            await self.send()  # nobody misses it before

        async def held() -> int:
            pid = processes(self.relay.daemon.pid).get(name, 0)
            return pid if pid and is_held(pid) else 0

        return await self.relay.until(held, bool)

    async def strike(self, case: Case, output: Path, holder: Holder | None = None) -> None:
        """A process dies at this call, or the call fails; the letter and the one after it go their ways.

        With ``holder`` this is another process of its kind, from its start on.
        """
        name = case.thread
        pid = processes(self.relay.daemon.pid)[name] if holder is None else await self.start_anew(name, holder)
        self.met |= processes(self.relay.daemon.pid).items()
        await self.expose()
        number = self.ledger.begun
        self.exposed.add(number)
        async with injecting(pid, case.rule, only=[pid], output=output):
            if holder is not None:
                os.kill(pid, signal.SIGCONT)
            await self.send(large=case.large)
            dies, arrives = asyncio.create_task(ended(pid, A_WAY)), asyncio.create_task(self.arrived(number))
            soon = PUT_OFF if holder is None else A_START
            await asyncio.wait([dies, arrives], return_when=asyncio.FIRST_COMPLETED, timeout=soon)
            died = is_dead(pid)
        for task in (dies, arrives):
            task.cancel()
        if not died and not struck(output):
            self.missed.append(case)
        self.ends[case.fault] += died
        after = await self.send()
        async with asyncio.timeout(BOUND):
            await self.arrived(after)

    async def through(self, tried: list[Case], of: int, folder: Path, holder: Holder | None = None) -> None:
        """Try these cases, and say in one line what they came to."""
        daemon, ledger = self.relay.daemon, self.ledger
        pid = daemon.pid
        for case in tried:
            try:
                await self.strike(case, folder / "calls.txt", holder)
                assert not is_dead(pid), "the daemon ended"
                if SOAK:
                    await self.settle()
            except Exception as error:
                raise AssertionError(f"{case}; {daemon.log[-20:]}") from error
        account = await self.settle()
        faults = ", ".join(f"{count} {fault}" for fault, count in Counter(case.fault for case in tried).items())
        print(
            f"{len(tried)} of {of} cases: {faults}; never reached {len(self.missed)}; ended a process: "
            f"{dict(+self.ends)}; {len(ledger.acknowledged)} letters acknowledged, {account.repeats} came twice, "
            f"{account.reposts} were posted twice, the last was posted after {self.latest:.1f} s"
        )
        self.must_have_struck(tried)

    async def expose(self) -> None:
        """What waits may be struck, too."""
        rows = await self.relay.rows(
            "SELECT messages.subject FROM posts JOIN events ON events.id = posts.event_id "
            "JOIN messages ON messages.id = events.message_id WHERE posts.state = 'waiting'"
        )
        self.exposed |= {int(subject.removeprefix("letter ")) for (subject,) in rows}

    async def settle(self) -> Account:
        """Wait for the end of all work, and draw up the account."""
        relay = self.relay
        async with asyncio.timeout(BOUND):
            await drained(relay)
        account = await asyncio.to_thread(Account.of, relay.daemon, relay.sink.accepted, relay.crm.posts)
        account.must_balance(self.ledger, Counter())  # nobody killed the daemon: each came to the next hop once
        for number, ids in account.posted.items():
            assert len(ids) == 1 or number in self.exposed, f"letter {number} was posted {len(ids)} times"
        for post in relay.crm.posts:
            assert (post.json["text"], [file["name"] for file in post.json["attachments"]]) == (TEXT, ["list.bin"])
        await self.must_be_in_history()
        await self.must_have_ended()
        await relay.until(self.left, lambda left: not left)
        return account

    async def left(self) -> set[tuple[str, int]]:
        """Processes that nobody needs any more and that are there still."""
        before = self.met - processes(self.relay.daemon.pid).items()
        return {(name, pid) for name, pid in before if MODULES[name] in arguments(pid)}

    def number(self, message: int) -> int:
        return next(number for number, known in self.ledger.acknowledged.items() if known == message)

    async def must_be_in_history(self) -> None:
        rows = await self.relay.rows(
            "SELECT messages.id, messages.extraction, messages.attachments, texts.head FROM messages "
            "LEFT JOIN texts ON texts.message_id = messages.id"
        )
        for message, extraction, attachments, text in rows:
            number = self.number(message)
            letter = self.ledger.letter(number)
            size = len(letter) - letter.index(b"\r\n\r\n", letter.index(b"list.bin")) - 4
            files = [(part["name"], part["size"]) for part in json.loads(attachments or "[]")]
            assert (extraction, text, files) == ("done", TEXT, [("list.bin", size)]), f"letter {number}"

    async def must_have_ended(self) -> None:
        """Every post is delivered, soon enough and with its deal, and nothing is claimed any more."""
        rows = await self.relay.rows(
            "SELECT events.message_id, events.state, events.deal_id, posts.state, posts.claim, posts.finished_at "
            "FROM events LEFT JOIN posts ON posts.event_id = events.id"
        )
        for message, *states, finished_at in rows:
            assert states == ["posted", "17", "delivered", None], (message, states)
            self.latest = max(self.latest, finished_at - self.ledger.heard[self.number(message)])
        assert self.latest < BOUND
        assert await self.relay.rows("SELECT id FROM deliveries WHERE claim IS NOT NULL") == []


@pytest.mark.parametrize("part", range(PARTS) if SOAK else [0])
async def test_whatever_a_process_of_the_daemon_meets_mail_is_forwarded_once_and_posted_soon(
    part: int, tmp_path: Path
) -> None:
    async with sweeping("every call of its processes", tmp_path) as (sweep, chance):
        found = await sweep.trace(tmp_path)
        await sweep.through(chosen(found, chance, slice(part, None, PARTS), KILLS, ERRORS), len(found), tmp_path)


@pytest.mark.skipif(not SOAK, reason="processes are struck at their starts by `make soak`")
@pytest.mark.parametrize("part", range(PARTS) if SOAK else [0])
async def test_whatever_a_process_meets_at_its_start_mail_is_forwarded_once_and_posted_soon(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 25,000 cases, most of them of Python's imports: one of each call and fault is tried, by chance."""
    holder = Holder(tmp_path / "holder")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "holder"))
    async with sweeping("starts of its processes", tmp_path) as (sweep, chance):
        found = await sweep.trace_starts(tmp_path, holder)
        tried = one_of_each(found, chance, lambda case: f"{case.call} {case.fault}")
        await sweep.through(tried, len(found), tmp_path, holder)


@contextlib.asynccontextmanager
async def sweeping(what: str, folder: Path) -> AsyncIterator[tuple[ChildSweep, random.Random]]:
    """A daemon, and a sweep over its processes. Skips where there is no strace."""
    require_strace(what)
    chance = seeded(what)
    large = set[int]()
    ledger = Ledger(chance.randrange(10**6), large.__contains__, fields=_HEAD)
    sink = SmtpSink(script={"dot": lambda session, line: Close("250 2.0.0 taken")})
    async with world(folder, sink=sink, crm=ANSWER, start=False) as relay:
        await asyncio.to_thread(relay.daemon.start)
        yield ChildSweep(relay, ledger, large), chance
