"""What happens to a message between 354 and the answer to its final dot, and to a client that goes away."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.bodies import INLINE, BodyWriter
from relay.core import reply
from relay.core.wire import DataReader
from relay.smtp_limits import Limits
from relay.smtp_session import Session
from relay.smtp_transaction import Refused
from tests.smtp_client import HEAD, PATIENCE, Answer, SmtpClient, lines, pieces
from tests.smtp_harness import Fed, Served, serving

DOT = b".\r\n"


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\r\n",
        HEAD + b"y" * 1_000_000 + b"\r\n",
        b"Subject: " + "Grüße, привет".encode() + b"\xff\xfe\r\n\r\nn\xe4h\r\n",
        HEAD + b"..stuffed\r\n...\r\n",
        b"no header at all\r\n",
        HEAD + lines(INLINE + 100_000),
    ],
    ids=["empty", "line", "1 MB line", "8 bit", "dots", "no header", "file"],
)
async def test_octets_reach_the_intake_as_they_were_sent(wire: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(wire + DOT)).short == "250 2.0.0"
        assert served.recorder.wires == [wire]
        assert wire.startswith(served.recorder.transactions[0].head)
        assert served.recorder.transactions[0].body.size == len(wire)


async def test_a_dot_that_guards_no_dot_is_not_stored(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        sent = b".Subject: hi\r\n.X-Visit-Id: 1\r\n\r\n" + (b".text\r\n..\r\n" + lines(780)) * 500
        assert (await client.mail(sent + DOT)).code == 250
        (wire,) = served.recorder.wires
        assert wire == b"Subject: hi\r\nX-Visit-Id: 1\r\n\r\n" + (b"text\r\n..\r\n" + lines(780)) * 500
        (transaction,) = served.recorder.transactions
        assert wire.startswith(transaction.head)
        assert transaction.body.size == len(wire)


async def test_a_large_body_is_in_a_file_with_its_header_block_as_the_head(tmp_path: Path) -> None:
    wire = HEAD + lines(3 * INLINE)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(wire + DOT)).code == 250
        (transaction,) = served.recorder.transactions
        assert served.files() == [transaction.body.file]
        assert transaction.head == HEAD


async def test_the_recipient_after_the_hundredth_is_deferred_and_the_others_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.command("MAIL FROM:<ann@ext.test>")
        await client.send(b"".join(b"RCPT TO:<u%d@track.test>\r\n" % number for number in range(103)))
        answers = [(await client.answer()).short for _ in range(103)]
        assert answers == ["250 2.1.5"] * 100 + ["452 4.5.3"] * 3
        assert (await client.command("DATA")).code == 354
        await client.send(HEAD + DOT)
        assert (await client.answer()).code == 250
        assert len(served.recorder.transactions[0].recipients) == 100


async def test_a_message_of_the_maximum_size_is_taken_and_one_octet_more_is_refused(tmp_path: Path) -> None:
    wire = HEAD + lines(1_000_000)
    async with serving(tmp_path, max_message_size=len(wire)) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(wire + DOT)).code == 250
        assert (await client.mail(b"X" + wire + DOT)).short == "552 5.3.4"
        assert (await client.mail(wire + DOT)).code == 250
        await served.written()
        assert len(served.recorder.transactions) == len(served.files()) == 2


@pytest.mark.parametrize("size", [10_000, 1_000_000], ids=["in memory", "file"])
async def test_doubled_dots_and_what_bare_lfs_are_given_do_not_count(size: int, tmp_path: Path) -> None:
    sent = HEAD + b"..dot\r\nbare\n" + lines(size) + b"..\r\n"
    maximum = len(sent) - 2  # RFC 1870 §5
    async with serving(tmp_path, max_message_size=maximum) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(sent + DOT)).code == 250
        assert (await client.mail(b"X" + sent + DOT)).short == "552 5.3.4"
        assert served.recorder.wires == [sent.replace(b"bare\n", b"bare\r\n")]
        await served.written()
        assert len(served.files()) == (1 if size > INLINE else 0)


async def test_doubled_dots_take_bounded_room(tmp_path: Path) -> None:
    async with serving(tmp_path, max_message_size=30_000) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(b"..\r\n" * 10_000 + DOT)).short == "552 5.3.4"
        assert (await client.mail(b"..\r\n" * 7_700 + DOT)).code == 250


async def test_an_endless_message_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path, max_message_size=100_000) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.start()).code == 354
        await client.send(lines(400_000))
        assert (await client.answer()).short == "552 5.3.4"
        client.writer.write_eof()
        assert await client.at_end()
        await served.no_files()


async def test_an_over_large_message_has_bounded_time_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.smtp_data.DRAIN_TIME", -1.0)
    fed = Fed(monkeypatch)
    async with serving(tmp_path, max_message_size=1000) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.start()).code == 354
        goal = fed.octets + 1092
        await client.send(lines(1092))
        await fed.reach(goal)
        await client.send(b"x")
        assert (await client.answer()).short == "552 5.3.4"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_452_at_the_end_and_leaves_no_file(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _broken_disk("_append", OSError(code, "full"), "452 4.3.1", tmp_path, monkeypatch)


async def test_an_error_of_the_disk_while_data_come_is_451_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _broken_disk("_append", OSError(errno.EIO, "secret"), "451 4.3.0", tmp_path, monkeypatch)


async def test_an_error_of_the_last_sync_is_451_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _broken_disk("_finish", OSError(errno.EIO, "secret"), "451 4.3.0", tmp_path, monkeypatch)


async def test_an_error_while_a_message_at_the_limit_is_counted_again_is_451_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int, count: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "secret")

    sent = HEAD + b"..dot\r\n" + lines(3 * INLINE)
    maximum = len(sent) - 1  # without the dot that SMTP doubles
    async with serving(tmp_path, max_message_size=maximum) as served, await SmtpClient.hello(served.port) as client:
        with monkeypatch.context() as patch, capture_logs() as entries:
            patch.setattr("relay.bodies.os.pread", fail)
            assert (await client.mail(sent + DOT)).short == "451 4.3.0"
        assert [entry["event"] for entry in entries] == ["message not received", "message refused"]
        await served.no_files()
        assert served.recorder.transactions == []
        assert (await client.mail(sent + DOT)).code == 250


async def _broken_disk(step: str, error: OSError, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(writer: BodyWriter, data: bytes) -> None:
        raise error

    wire = HEAD + lines(3 * INLINE) + DOT
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        with monkeypatch.context() as patch, capture_logs() as entries:
            patch.setattr(BodyWriter, step, fail)
            assert (await client.mail(wire)).short == answer
        assert [entry["event"] for entry in entries] == ["message body not written", "message refused"]
        assert entries[1]["answer"].startswith(answer)
        assert (entries[1]["sender"], entries[1]["recipients"]) == ("ann@ext.test", 1)
        await served.no_files()
        assert (await client.mail(wire)).code == 250


async def _by_data(client: SmtpClient, octets: bytes) -> Answer:
    return await client.mail(octets.removesuffix(b"\r\n") + b"\r\n" + DOT)


async def _by_chunks(client: SmtpClient, octets: bytes) -> Answer:
    return await client.mail_in_chunks(*pieces(octets, 1000))


async def _by_octets(client: SmtpClient, octets: bytes) -> Answer:
    return await client.mail_in_chunks(*pieces(octets, 1))


@pytest.mark.parametrize("send", [_by_data, _by_chunks, _by_octets])
@pytest.mark.parametrize(
    ("octets", "normalise", "refuse"),
    [
        (b"a\nb\r\n", "250 2.0.0", reply.BARE_LF),
        (b"a\rb\r\n", "554 5.6.0", reply.BARE_CR),
        (b"a\r\n\r", "554 5.6.0", reply.BARE_CR),
        (b"a\0b\r\n", "554 5.6.0", reply.NUL_IN_MESSAGE),
        (b"a\0\r\n\nb\r\n", "554 5.6.0", reply.NUL_IN_MESSAGE),
    ],
)
async def test_bare_line_ends_and_nul_are_judged_at_the_end_of_data(
    send: Callable[[SmtpClient, bytes], Awaitable[Answer]],
    octets: bytes,
    normalise: str,
    refuse: reply.Reply,
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await send(client, HEAD + octets)).short == normalise
        assert [t.bare_lf for t in served.recorder.transactions] == [1] * normalise.startswith("2")
    async with serving(tmp_path, bare_lf="refuse") as served, await SmtpClient.hello(served.port) as client:
        answer = await send(client, HEAD + octets)
        assert f"{answer.code} {answer.text}" == refuse.line
        assert (await send(client, HEAD)).code == 250  # nothing of it is left


async def test_what_the_intake_refuses_leaves_no_file_and_the_session_goes_on(tmp_path: Path) -> None:
    wire = HEAD + lines(3 * INLINE) + DOT
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        served.recorder.accept_error = Refused(reply.LOOP)
        assert (await client.mail(wire)).short == "554 5.4.6"
        await served.no_files()
        served.recorder.accept_error = None
        assert (await client.mail(wire)).code == 250


async def test_an_unknown_error_of_the_intake_is_451_and_keeps_the_file_whose_row_may_be_committed(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        served.recorder.accept_error = RuntimeError("secret")
        with capture_logs() as entries:
            answer = await client.mail(HEAD + lines(3 * INLINE) + DOT)
        assert f"{answer.code} {answer.text}" == reply.INTERNAL_ERROR.line
        assert [entry["event"] for entry in entries] == ["message not accepted", "message refused"]
        assert "secret" not in str(entries[1])
        await served.written()
        assert len(served.files()) == 1


async def test_an_unknown_error_while_data_come_ends_the_session_because_their_end_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(reader: DataReader, chunk: bytes) -> bytes:
        raise RuntimeError("secret")

    monkeypatch.setattr(DataReader, "feed", fail)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        with capture_logs() as entries:
            assert (await client.mail(HEAD)).short == "451 4.3.0"
            client.writer.write_eof()
            assert await client.at_end()
            await served.empty()
        assert [entry["event"] for entry in entries] == ["message not received", "SMTP session"]


async def test_an_unknown_error_after_the_end_of_data_is_451_and_the_session_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        with monkeypatch.context() as patch:
            patch.setattr(BodyWriter, "close", None)
            assert (await client.mail(HEAD + DOT)).short == "451 4.3.0"
        assert (await client.mail(HEAD + DOT)).code == 250


async def test_a_command_behind_a_message_that_we_failed_to_write_is_answered_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(writer: BodyWriter) -> None:
        raise RuntimeError("secret")

    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        with monkeypatch.context() as patch, capture_logs() as entries:
            patch.setattr("relay.bodies.INLINE", 0)
            patch.setattr(BodyWriter, "flush", fail)
            assert (await client.start()).code == 354
            await client.send(HEAD + DOT + b"VRFY ann\r\nNOOP\r\n")
            assert [(await client.answer()).short for _ in range(3)] == ["451 4.3.0", "252 2.5.0", "250 2.0.0"]
        assert [entry["event"] for entry in entries] == ["message not received", "message refused"]
        assert (await client.mail(HEAD + DOT)).code == 250


async def test_data_that_stop_coming_are_421(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(data_timeout=0.05)) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.start()).code == 354
        await client.send(HEAD)
        assert (await client.answer()).short == "421 4.4.2"
        assert await client.at_end()
        assert served.recorder.transactions == []


async def test_data_that_come_too_slowly_are_421_after_the_grace(tmp_path: Path) -> None:
    limits = Limits(data_grace=0.02, data_rate=1_000_000)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.start()).code == 354
        trickle = asyncio.create_task(_trickle(client))
        assert (await client.answer()).short == "421 4.4.2"
        trickle.cancel()
        await asyncio.gather(trickle, return_exceptions=True)
        assert served.recorder.transactions == []


async def _trickle(client: SmtpClient) -> None:
    while True:
        await client.send(b"x")
        await asyncio.sleep(0.005)  # the slowness is what is tested


async def test_a_fast_message_outlives_the_grace(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(data_grace=0.0)) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(HEAD + lines(1_000_000) + DOT)).code == 250


async def test_nothing_is_read_while_the_disk_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = HEAD + lines(20_000_000)
    flush = BodyWriter.flush
    busy, free = asyncio.Event(), asyncio.Event()

    async def slow(writer: BodyWriter) -> None:
        busy.set()
        await free.wait()
        await flush(writer)

    monkeypatch.setattr(BodyWriter, "flush", slow)
    held, received = asyncio.Event(), Session.data_received

    def data_received(session: Session, data: bytes) -> None:
        received(session, data)
        if session._held:
            held.set()

    monkeypatch.setattr(Session, "data_received", data_received)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.start()).code == 354
        client.writer.write(wire + DOT)
        async with asyncio.timeout(PATIENCE):
            await busy.wait()
            await held.wait()
        (session,) = served.server._service.sessions
        assert len(session._buffer) < 512 * 1024
        free.set()
        assert (await client.answer()).code == 250
        assert served.recorder.wires == [wire]


# The client goes away


async def _gone(served: Served, client: SmtpClient) -> None:
    client.reset()
    await served.empty()
    await served.no_files()


Stage = Callable[[SmtpClient], Awaitable[object]]
STAGES: dict[str, Stage] = {
    "greeting": lambda client: client.answer(),
    "EHLO": lambda client: client.command("NOOP"),
    "half a command": lambda client: client.send(b"MAIL FR"),
    "MAIL": lambda client: client.command("MAIL FROM:<ann@ext.test>"),
    "DATA": lambda client: client.start(),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("abort", [True, False], ids=["reset", "end of input"])
async def test_a_client_that_goes_before_its_message_leaves_nothing(stage: str, abort: bool, tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with capture_logs() as entries:
            async with await SmtpClient.connect(served.port) as client:
                if stage not in ("greeting",):
                    await client.answer()
                    await client.command("EHLO c.test")
                await STAGES[stage](client)
                if abort:
                    client.reset()
                else:
                    client.writer.write_eof()
                    assert await client.at_end()
                await served.empty()
        assert [entry["event"] for entry in entries] == ["SMTP session"]
        assert served.recorder.transactions == []
        await served.no_files()


@pytest.mark.parametrize("size", [100, 3 * INLINE])
@pytest.mark.parametrize("tail", [b"", b".", b".\r"])
async def test_a_client_that_goes_before_the_final_dot_leaves_nothing(
    size: int, tail: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(monkeypatch)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.start()).code == 354
        octets = HEAD + lines(size) + tail
        goal = fed.octets + len(octets)
        await client.send(octets)
        await fed.reach(goal)
        await _gone(served, client)
        assert served.recorder.transactions == []


@pytest.mark.parametrize("size", [100, 3 * INLINE])
@pytest.mark.parametrize("abort", [True, False], ids=["reset", "end of input"])
async def test_a_message_whose_final_dot_was_read_is_accepted_though_the_client_is_gone(
    size: int, abort: bool, tmp_path: Path
) -> None:
    wire = HEAD + lines(size)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        served.recorder.go.clear()
        assert (await client.start()).code == 354
        await client.send(wire + DOT)
        await served.recorder.entered.wait()
        (session,) = served.server._service.sessions
        if abort:
            client.reset()
            async with asyncio.timeout(PATIENCE):
                while session.transport is not None and not session._held:
                    await asyncio.sleep(0)  # until the event loop has told the session; where it does not read, never
        else:
            client.writer.write_eof()
        served.recorder.go.set()
        await served.empty()
        assert served.recorder.wires == [wire]


async def test_everything_sent_before_a_half_close_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.start()).code == 354
        await client.send(HEAD + DOT + b"NOOP\r\nQUIT\r\n")
        client.writer.write_eof()
        assert [(await client.answer()).code for _ in range(3)] == [250, 250, 221]
        assert await client.at_end()
