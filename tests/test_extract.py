"""relay/extract.py: batches, deadlines, crashes, and what becomes of the workers."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

import relay.extract
from relay.core.mime import Extracted
from relay.core.wire import stuff
from relay.extract import WAITING, Extractor, ExtractorClosed
from tests.corpora import corpus

Start = Callable[..., Awaitable[Extractor]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Starts extractors that are closed afterwards."""
    started: list[Extractor] = []

    async def make(**arguments: Any) -> Extractor:
        extractor = Extractor(**arguments)
        started.append(extractor)
        await extractor.start()
        return extractor

    yield make
    for extractor in started:
        await extractor.close()


def mail(subject: str, body: str = "text", content_type: str = "text/plain") -> bytes:
    return stuff(f"Subject: {subject}\r\nContent-Type: {content_type}\r\n\r\n{body}\r\n".encode())


def slow_page() -> str:
    """libxml2 takes seconds over so many attributes; without the layout it is quick."""
    return "<a " + " ".join(f"a{n}=1" for n in range(30_000)) + ">x</a>"


def slow_file(folder: Path) -> Path:
    """Tens of milliseconds to read, even carefully."""
    path = folder / "slow"
    header = b"Subject: slow\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    path.write_bytes(header + b"=41\r\n" * 6_000_000)
    return path


# ---- reading


async def test_each_caller_gets_its_own_message_back(start: Start, tmp_path: Path) -> None:
    extractor = await start(workers=2)
    path = tmp_path / "large"
    path.write_bytes(mail("file", ".stuffed\r\n" * 50_000))
    sources: list[bytes | Path] = [mail(f"number {n}", "x" * (n % 7 * 5_000)) for n in range(300)]
    sources[100:100] = [path]
    found = await asyncio.gather(*map(extractor.extract, sources))
    subjects = [result.subject for result in found]
    assert subjects == [f"number {n}" for n in range(100)] + ["file"] + [f"number {n}" for n in range(100, 300)]
    assert found[100].text == "\n".join([".stuffed"] * 50_000)


async def test_a_message_larger_than_a_batch_is_read_from_memory_too(start: Start) -> None:
    extractor = await start()
    found = await extractor.extract(mail("large", "word " * 600_000))
    assert (found.subject, found.partial) == ("large", True)


async def test_every_message_of_the_corpora_is_answered_in_wire_form(start: Start) -> None:
    extractor = await start()
    names = ("mime-mailparser-stalwart", "mime-nodemailer")
    raws = [path.read_bytes() for name in names for path in corpus(name).rglob("*.eml")]
    wires = [stuff(raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")) for raw in raws]
    found = await asyncio.gather(*map(extractor.extract, wires))
    assert len(found) == 117
    assert sum(result.partial for result in found) == 3  # text over 1 MB, and two pages over 256 kB
    assert len(extractor.pids) == 1


async def test_callers_beyond_the_limit_wait_to_be_let_in(start: Start) -> None:
    extractor = await start()
    (pid,) = extractor.pids
    os.kill(pid, signal.SIGSTOP)
    calls = [asyncio.create_task(extractor.extract(mail(str(n)))) for n in range(WAITING + 200)]
    while len(extractor._waiting) < WAITING - relay.extract.BATCH:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(extractor._waiting) <= WAITING
    os.kill(pid, signal.SIGCONT)
    assert [result.subject for result in await asyncio.gather(*calls)] == [str(n) for n in range(WAITING + 200)]


# ---- deadlines and crashes


async def test_a_page_that_takes_too_long_is_read_without_its_layout(start: Start) -> None:
    extractor = await start(timeout=0.6)
    (pid,) = extractor.pids
    found = await extractor.extract(mail("slow page", slow_page(), "text/html"))
    assert (found.subject, (found.text or "").strip(), found.partial) == ("slow page", "x", True)
    assert extractor.pids != (pid,)


async def test_what_takes_too_long_every_time_is_partial_with_what_its_header_gives(
    start: Start, tmp_path: Path
) -> None:
    extractor = await start(timeout=0.03)
    assert await extractor.extract(slow_file(tmp_path)) == Extracted("slow", None, False, (), True)


async def test_a_file_that_is_gone_is_partial_and_empty(start: Start, tmp_path: Path) -> None:
    extractor = await start()
    assert await extractor.extract(tmp_path / "erased") == Extracted(None, None, False, (), True)


async def test_a_file_that_cannot_be_read_at_first_is_read_whole_by_the_next_process(
    start: Start, tmp_path: Path
) -> None:
    extractor = await start()
    (pid,) = extractor.pids
    path = tmp_path / "letter"
    path.mkdir()  # EISDIR
    reading = asyncio.create_task(extractor.extract(path, html=True))
    async with asyncio.timeout(30):
        while extractor.pids == (pid,):
            await asyncio.sleep(0.001)
    path.rmdir()
    path.write_bytes(mail("later", "<p>is it still <b>to be had</b>?</p>", "text/html"))
    found = await reading
    assert (found.subject, found.text, found.partial) == ("later", "is it still to be had?", False)
    assert found.html is not None


async def test_a_file_that_can_never_be_read_is_partial_and_empty(start: Start, tmp_path: Path) -> None:
    extractor = await start()
    assert await extractor.extract(tmp_path) == Extracted(None, None, False, (), True)


async def test_neighbours_of_a_hostile_message_are_read_whole(start: Start) -> None:
    extractor = await start(timeout=1.5)
    wires = [mail(str(n), "<p>page</p>", "text/html") for n in range(20)]
    wires[7] = mail("7", slow_page(), "text/html")
    (pid,) = extractor.pids
    os.kill(pid, signal.SIGSTOP)  # so that all of them are one batch
    first = asyncio.create_task(extractor.extract(mail("first")))
    found = await asyncio.gather(first, *map(extractor.extract, wires))
    assert [result.subject for result in found[1:]] == [str(n) for n in range(20)]
    assert [result.subject for result in found[1:] if result.partial] == ["7"]


async def test_a_worker_that_is_stopped_is_killed_and_its_message_read_by_the_next(start: Start) -> None:
    extractor = await start(timeout=1.0)
    (pid,) = extractor.pids
    os.kill(pid, signal.SIGSTOP)
    found = await asyncio.gather(*(extractor.extract(mail(str(n))) for n in range(5)))
    assert [(result.subject, result.partial) for result in found] == [(str(n), False) for n in range(5)]
    assert extractor.pids != (pid,)


async def test_a_worker_that_answered_while_we_stood_still_is_not_killed(start: Start) -> None:
    extractor = await start(timeout=3.0)
    pids = extractor.pids
    reading = [asyncio.create_task(extractor.extract(mail(str(n)))) for n in range(5)]
    while not extractor._waiting:
        await asyncio.sleep(0)
    while extractor._waiting:
        await asyncio.sleep(0)
    time.sleep(1.2)  # more than an attempt may take, and nothing here goes on, as after SIGSTOP
    assert [(await call).subject for call in reading] == ["0", "1", "2", "3", "4"]
    assert extractor.pids == pids


@pytest.mark.parametrize("busy", [True, False])
async def test_a_worker_killed_from_outside_is_replaced_and_nothing_is_lost(start: Start, busy: bool) -> None:
    extractor = await start()
    await extractor.extract(mail("before"))
    (pid,) = extractor.pids
    call = None
    if busy:
        os.kill(pid, signal.SIGSTOP)
        call = asyncio.create_task(extractor.extract(mail("during")))
        while not extractor._waiting:
            await asyncio.sleep(0)
        while extractor._waiting:
            await asyncio.sleep(0)
    await kill(pid)
    if call:
        assert (await call).subject == "during"
    found = await extractor.extract(mail("after"))
    assert (found.subject, found.text, found.partial) == ("after", "text", False)
    assert len(extractor.pids) == 1
    assert extractor.pids != (pid,)


async def test_a_worker_without_memory_for_a_message_is_replaced_and_the_message_is_partial(
    start: Start, tmp_path: Path
) -> None:
    extractor = await start(memory=100 * 1024 * 1024)
    path = tmp_path / "large"
    path.write_bytes(b"Subject: large\r\n\r\n" + b"..\r\n" * 30_000_000)
    found = await extractor.extract(path)
    assert (found.subject, found.text, found.partial) == ("large", None, True)
    assert (await extractor.extract(mail("next"))).subject == "next"


async def test_a_worker_leaves_after_its_share_of_messages(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay.extract, "_LIFE", 2)
    extractor = await start()
    pids = []
    for n in range(5):
        assert (await extractor.extract(mail(str(n)))).subject == str(n)
        pids.append(extractor.pids)
    assert pids[0] == pids[2] != pids[3] == pids[4]


LIARS = {
    "garbage": "s.sendall(b'\\0\\0\\0\\4' + b'oops')",
    "another shape": "s.sendall(b'\\0\\0\\0\\2' + b'[]')",
    "too long an answer": "s.sendall(b'\\xff\\xff\\xff\\xff')",
    "nothing": "s.close()",
}


@pytest.mark.parametrize("lie", LIARS)
async def test_a_worker_that_lies_is_replaced_and_the_message_is_partial(
    start: Start, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    code = f"import socket\ns = socket.socket(fileno=0)\ns.sendall(b'R')\ns.recv(9999)\n{LIARS[lie]}"
    monkeypatch.setattr(relay.extract, "_popen", lambda channel, arguments: popen(channel, code))
    extractor = await start()
    assert await extractor.extract(mail("hello")) == Extracted("hello", None, False, (), True)


async def test_a_worker_that_cannot_be_started_at_first_is_tried_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = relay.extract._popen
    failures: list[int] = []

    def at_last(channel: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        if len(failures) < 2:
            failures.append(channel)
            return popen(channel, "raise SystemExit(3)")
        return real(channel, arguments)

    monkeypatch.setattr(relay.extract, "_popen", at_last)
    monkeypatch.setattr(relay.extract, "_PAUSE", 0.0)
    with capture_logs() as entries:
        extractor = await start()
        assert extractor.pids == ()
        assert (await extractor.extract(mail("at last"))).subject == "at last"
    said = {"event": "extraction worker can't be started", "log_level": "error"}
    assert entries == [said | {"reason": "OSError: the process ended at its start with exit code 3"}] * 2


async def test_a_process_that_cannot_be_made_leaves_no_socket_and_stops_no_start(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(channel: int, arguments: list[str]) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(relay.extract, "_popen", refuse)
    with capture_logs() as entries:
        extractor = await start()
    assert extractor.pids == ()
    assert [entry["reason"] for entry in entries] == ["BlockingIOError: no more processes"]


async def test_a_successor_that_cannot_be_started_is_tried_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = await start()
    real = relay.extract._popen
    failures: list[int] = []

    def sometimes(channel: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        if len(failures) < 2:
            failures.append(channel)
            raise BlockingIOError("no more processes")
        return real(channel, arguments)

    monkeypatch.setattr(relay.extract, "_popen", sometimes)
    monkeypatch.setattr(relay.extract, "_PAUSE", 0.0)
    await kill(extractor.pids[0])
    assert (await extractor.extract(mail("at last"))).subject == "at last"
    assert len(failures) == 2


async def test_nobody_waits_for_a_worker_that_cannot_be_started_while_another_is_idle(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, loop = asyncio.Event(), asyncio.get_running_loop()

    def refuse(channel: int, arguments: list[str]) -> None:
        loop.call_soon_threadsafe(refused.set)
        raise BlockingIOError("no more processes")

    extractor = await start(workers=2)
    monkeypatch.setattr(relay.extract, "_popen", refuse)
    await kill(extractor.pids[0])
    async with asyncio.timeout(30):
        while not any(worker.gone for worker in extractor._workers):
            await asyncio.sleep(0)
        for n in range(4):  # both workers get their turn
            assert (await extractor.extract(mail(str(n)))).subject == str(n)
        await refused.wait()


# ---- who goes away


async def test_a_caller_that_goes_away_takes_nobody_with_it(start: Start) -> None:
    extractor = await start()
    (pid,) = extractor.pids
    os.kill(pid, signal.SIGSTOP)
    calls = [asyncio.create_task(extractor.extract(mail(str(n)))) for n in range(150)]
    while not extractor._waiting:
        await asyncio.sleep(0)
    for n in (0, 70, 149):
        calls[n].cancel()
    os.kill(pid, signal.SIGCONT)
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in found] == [n in (0, 70, 149) for n in range(150)]
    assert (await extractor.extract(mail("next"))).subject == "next"


async def test_closing_tells_those_who_wait_and_ends_the_workers(start: Start) -> None:
    extractor = await start(workers=2)
    pids = extractor.pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    calls = [asyncio.create_task(extractor.extract(mail(str(n)))) for n in range(WAITING + 50)]
    while len(extractor._waiting) < 100:
        await asyncio.sleep(0)
    await extractor.close()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in found} == {ExtractorClosed}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(ExtractorClosed):
        await extractor.extract(mail("too late"))
    await extractor.close()


async def test_workers_leave_the_terminals_signals_to_the_daemon(start: Start) -> None:
    extractor = await start()
    (pid,) = extractor.pids
    assert os.getpgid(pid) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert (await extractor.extract(mail("still here"))).subject == "still here"
    assert extractor.pids == (pid,)


async def test_workers_see_no_secret_of_our_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_SECRET", "whsec_hidden")
    extractor = await start()
    seen = Path(f"/proc/{extractor.pids[0]}/environ").read_bytes()
    assert {entry.partition(b"=")[0] for entry in seen.split(b"\0") if entry} <= {b"PYTHONPATH", b"LC_CTYPE"}


async def test_workers_have_their_limits(start: Start) -> None:
    extractor = await start(memory=512 * 1024 * 1024)
    limits = Path(f"/proc/{extractor.pids[0]}/limits").read_text()
    rows = {line[:25].strip(): line[25:].split()[:2] for line in limits.splitlines()}
    assert rows["Max address space"] == [str(512 * 1024 * 1024)] * 2
    assert rows["Max core file size"] == ["0", "0"]
    assert rows["Max open files"] == ["64", "64"]


DAEMON = """
import asyncio, sys
from relay.extract import Extractor
async def main():
    extractor = Extractor(workers=2)
    await extractor.start()
    print(*extractor.pids, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_daemon_that_is_killed_leaves_no_workers() -> None:
    root = Path(relay.extract.__file__).parents[1]
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, cwd=root)
    assert daemon.stdout
    with daemon.stdout as out:
        handles = [os.pidfd_open(int(pid)) for pid in out.readline().split()]
        daemon.kill()
        daemon.wait()
    assert len(handles) == 2
    for handle in handles:
        assert select.select([handle], [], [], 30)[0]
        os.close(handle)


def popen(channel: int, code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=channel)


async def kill(pid: int) -> None:
    """Kill a worker and wait until it is dead."""
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([handle], [], [], 30)
    os.close(handle)
    await asyncio.sleep(0)


async def test_a_header_that_breaks_its_reader_makes_an_empty_partial_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> Extracted:
        raise RecursionError

    monkeypatch.setattr(relay.extract, "_from_header", broken)
    assert await Extractor._header(b"Subject: x") == Extracted(None, None, False, (), True)
