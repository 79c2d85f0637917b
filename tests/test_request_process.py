"""Requests made in a process of their own: what goes over the socket, and a process that dies, hangs or lies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from relay.secrets import Keys
from relay.store.schema import post_attempts
from tests.poster_fixtures import SECRET, Held, jobs, posting, until_recorded
from tests.store_fixtures import SHOP, hook, world
from tests.webhook_receiver import Answer as Answered
from tests.webhook_receiver import Receiver, retry_after
from webapi import request_process
from webapi.request_frames import ANSWERED, check_lengths, pack_answer, pack_request, read_answer, read_request
from webapi.request_process import RequestProcess
from webapi.requests import ANSWER, OURS, Answer, NoAnswer, Request

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)


@pytest.fixture(autouse=True)
def _started_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_process, "PAUSE", 0.01)


@asynccontextmanager
async def requesting(*, allow_private: bool = True, connections: int = 5) -> AsyncIterator[RequestProcess]:
    process = RequestProcess(allow_private, connections)
    await process.open()
    try:
        yield process
    finally:
        await process.close()


def to(url: str, body: bytes = b"{}") -> Request:
    return Request("POST", url, {"Content-Type": "application/json"}, body)


async def until_replaced(process: RequestProcess, pid: int) -> int:
    async with asyncio.timeout(30):
        while (found := process.pid) in (None, pid):
            await asyncio.sleep(0.02)
    assert found is not None
    return found


class TestFrames:
    def test_a_request_comes_as_it_was(self) -> None:
        request = Request("PUT", "https://crm.example/ä?x=1", {"A": "1", "b": "\n"}, bytes(range(256)))
        frame = pack_request(7, request)
        head = int.from_bytes(frame[4:8])
        assert read_request(frame[12 : 12 + head], frame[12 + head :]) == request

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(200, bytes(range(256)), "120"),
            Answer(500, b""),
            NoAnswer("no connection: the host's name was not found"),
            NoAnswer(OURS, "Traceback …"),
        ],
    )
    def test_an_answer_comes_as_it_was(self, answer: Answer | NoAnswer) -> None:
        frame = pack_answer(9, answer)
        number, status, head, content = ANSWERED.unpack(frame[: ANSWERED.size])
        rest = frame[ANSWERED.size :]
        check_lengths(head, content)
        assert (number, len(rest)) == (9, head + content)
        assert read_answer(status, rest[:head], rest[head:]) == answer

    @pytest.mark.parametrize("lengths", [(2**31, 0), (10, ANSWER + 1)])
    def test_what_is_too_long_is_refused(self, lengths: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match="an answer of"):
            check_lengths(*lengths)

    @pytest.mark.parametrize(
        "head",
        [
            b"",
            b"{}",
            b"5",
            b"null",
            b"[" * 60_000,
            b"[1]",
            b'[null, "\\ud800", null]',
            b"[1, null, null]",
            b'[null, ["x"], null]',
        ],
    )
    def test_what_is_not_a_head_is_refused(self, head: bytes) -> None:
        with pytest.raises(ValueError, match=r"."):
            read_answer(0, head, b"")


async def test_receivers_are_asked_and_their_answers_told_apart() -> None:
    async with Receiver() as crm, requesting() as process:
        crm.script = [Answered(201, b"one"), retry_after(503, "7"), 204]
        found = [await process.request(to(crm.url, b"%d" % number)) for number in range(3)]
        crm.script = held = Held()
        waiting = [asyncio.create_task(process.request(to(crm.url, b"%d" % number))) for number in range(3, 6)]
        await crm.wait_for(6)
        assert not any(task.done() for task in waiting)
        held.open()
        found += await asyncio.gather(*waiting)
        assert found[:3] == [Answer(201, b"one"), Answer(503, b"", "7"), Answer(204, b"")]
        assert [answer.status for answer in found[3:] if isinstance(answer, Answer)] == [200] * 3
        assert sorted(post.body for post in crm.posts) == [b"%d" % number for number in range(6)]


async def test_private_addresses_are_refused_in_the_process() -> None:
    async with Receiver() as crm, requesting(allow_private=False) as process:
        answer = await process.request(to(crm.url))
        assert answer == NoAnswer(
            "no connection: the host's address is not a public one (webhooks.allow_private_addresses)"
        )
        assert not crm.posts


async def test_it_sees_nothing_of_our_environment_and_ends_with_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "secret")
    async with requesting() as process:
        pid = process.pid
        assert b"CANARY" not in Path(f"/proc/{pid}/environ").read_bytes()
        files = [str(found.readlink()) for found in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [name for name in files if name.endswith((".db", ".key", "-wal", "lock"))]
    assert not Path(f"/proc/{pid}").exists()


async def test_it_ends_when_the_daemon_is_killed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = request_process._popen(theirs.fileno(), ["1", "5", str(2**30)])
        theirs.close()
        assert await asyncio.to_thread(ours.recv, 100) == b"ready\n"
        process.send_signal(signal.SIGTERM)  # the daemon's, which has something to finish
        ours.sendall(pack_request(1, to("http://127.0.0.1:9/")))
        assert ANSWERED.unpack(await asyncio.to_thread(ours.recv, ANSWERED.size))[0] == 1  # it goes on all the same
        ours.close()
        assert await asyncio.to_thread(process.wait, 10) == 0


async def test_what_was_under_way_when_it_died_has_no_answer_and_the_next_has() -> None:
    async with Receiver() as crm, requesting() as process:
        crm.script = Held()
        waiting = asyncio.create_task(process.request(to(crm.url)))
        await crm.wait_for(1)
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await waiting == NoAnswer(OURS)
        crm.script = 200
        assert await process.request(to(crm.url)) == Answer(200, b"")  # it waits for the new one
        assert process.pid not in (None, pid)


async def test_one_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_process, "TIMEOUT", 0.2)
    monkeypatch.setattr(request_process, "PATIENCE", 0.3)
    async with Receiver() as crm, requesting() as process:
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert await process.request(to(crm.url)) == NoAnswer(OURS)
        await until_replaced(process, pid)
        monkeypatch.setattr(request_process, "TIMEOUT", 15.0)
        assert await process.request(to(crm.url)) == Answer(200, b"")


async def test_one_that_answered_while_we_stood_still_is_not_taken_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_process, "TIMEOUT", 1.0)
    monkeypatch.setattr(request_process, "PATIENCE", 1.0)
    async with Receiver() as crm, requesting() as process:
        pid = process.pid
        asked = asyncio.create_task(process.request(to(crm.url)))
        await crm.wait_for(1)
        time.sleep(2.2)  # nothing here goes on, as after SIGSTOP
        assert (await asked, process.pid) == (Answer(200, b""), pid)


async def test_one_that_lies_is_replaced() -> None:
    async with Receiver() as crm, requesting() as process:
        worker = process._worker
        assert worker is not None
        pid = process.pid
        worker.reader.feed_data(ANSWERED.pack(1, 200, 10, ANSWER + 1))
        await until_replaced(process, pid or 0)
        assert await process.request(to(crm.url)) == Answer(200, b"")


async def test_one_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    process = RequestProcess(True, 5)
    with pytest.raises(OSError, match="exit code"):
        await process.open()
    await process.close()


async def test_a_post_whose_process_died_is_tried_again_under_its_id(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys")
    async with (
        Receiver() as crm,
        world(tmp_path, replace(SHOP, webhooks=(hook(crm.url, secret=keys.seal(SECRET)),))) as w,
    ):
        w.now = time.time()
        crm.script = Held()
        process = RequestProcess(True, 5)
        async with posting(w, keys, requester=process) as poster:
            poster.submit(await jobs(w, 1, poster.claim))
            await crm.wait_for(1)
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
            assert await until_recorded(w) == [("waiting", None, OURS)]
            assert poster.standing(1).failures == 0  # it says nothing of the receiver
            assert await w.rows(select(post_attempts.c.digest)) == [(None,)]
            crm.script = 200
            w.pass_time(10)
            poster.wake()
            assert (await until_recorded(w, 2))[0][0] == "delivered"
        assert len({post.headers["webhook-id"] for post in crm.posts}) == 1
