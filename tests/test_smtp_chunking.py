"""Messages in chunks (BDAT, RFC 3030): what is stored, what is refused, and that their octets never become commands."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.bodies import INLINE, BodyWriter
from relay.core import reply
from relay.core.wire import stuff, unstuff
from relay.smtp_limits import Limits
from relay.smtp_session import LARGE_CHUNK
from relay.smtp_transaction import Refused
from tests.corpora import corpus
from tests.smtp_client import HEAD, SmtpClient, bdat, lines, pieces
from tests.smtp_harness import STRICT, Fed, serving

#: What an attacker would like to be read as commands.
COMMANDS = b"\r\nRSET\r\nMAIL FROM:<evil@ext.test>\r\nRCPT TO:<victim@track.test>\r\nDATA\r\n"


@pytest.mark.parametrize(
    ("chunks", "stored"),
    [
        ([b""], b""),
        ([HEAD + b"hello\r\n"], HEAD + b"hello\r\n"),
        ([HEAD, b"hello\r\n", b""], HEAD + b"hello\r\n"),
        ([HEAD + b"a\r", b"\nb\r\n"], HEAD + b"a\r\nb\r\n"),
        ([HEAD + b".\r\n..\r\nx.\r\n", b".y\r\n"], HEAD + b"..\r\n...\r\nx.\r\n..y\r\n"),
        ([b".", b".\r\n"], b"...\r\n"),
        ([HEAD + b"no line end"], HEAD + b"no line end\r\n"),
        ([HEAD + b"one\ntwo\n.\nthree"], HEAD + b"one\r\ntwo\r\n..\r\nthree\r\n"),
        ([HEAD + "Grüße".encode() + b"\xff\xfe\r\n"], HEAD + "Grüße".encode() + b"\xff\xfe\r\n"),
        ([HEAD + COMMANDS], HEAD + COMMANDS),
        ([HEAD, b"y" * 1_000_000 + b"\r\n"], HEAD + b"y" * 1_000_000 + b"\r\n"),
    ],
    ids=[
        "empty",
        "one",
        "0 LAST",
        "CR/LF cut",
        "dots",
        "dot cut",
        "no line end",
        "bare LF",
        "8 bit",
        "commands",
        "1 MB",
    ],
)
async def test_chunks_are_stored_in_the_form_in_which_data_would_have_brought_them(
    chunks: list[bytes], stored: bytes, tmp_path: Path
) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail_in_chunks(*chunks)).text == "2.0.0 Queued as m1"
        assert served.recorder.wires == [stored]
        assert stored.startswith(served.recorder.transactions[0].head)
        assert (await client.mail(stored + b".\r\n")).code == 250
        assert served.recorder.wires == [stored, stored]


async def test_every_chunk_is_answered_and_only_the_last_one_accepts(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        for chunk in (HEAD, b"hello", b"\r\n", b""):
            answer = await client.chunk(chunk)
            assert f"{answer.code} {answer.text}" == reply.CHUNK_OK.line
            assert served.recorder.transactions == []
        assert (await client.chunk(b"end\r\n", last=True)).text == "2.0.0 Queued as m1"
        assert served.recorder.wires == [HEAD + b"hello\r\nend\r\n"]
        assert (await client.mail_in_chunks(HEAD)).text == "2.0.0 Queued as m2"


async def test_a_whole_session_may_come_in_one_packet(tmp_path: Path) -> None:
    envelope = b"MAIL FROM:<ann@ext.test>\r\nRCPT TO:<u1@track.test>\r\n"
    async with serving(tmp_path) as served, await SmtpClient.connect(served.port) as client:
        message = bdat(HEAD) + bdat(COMMANDS, last=True)
        await client.send(b"EHLO c.test\r\n" + (envelope + message) * 2 + b"QUIT\r\n")
        assert [(await client.answer()).code for _ in range(11)] == [220, 250, *[250] * 8, 221]
        assert served.recorder.wires == [HEAD + COMMANDS] * 2


async def test_a_message_whose_octets_come_one_by_one_is_stored_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(monkeypatch)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        for octet in bdat(HEAD + b".\r\n") + bdat(COMMANDS + b".\r\n", last=True):
            goal = fed.octets + 1
            await client.send(bytes((octet,)))
            await fed.reach(goal)
        assert [(await client.answer()).short for _ in range(2)] == ["250 2.0.0"] * 2
        assert unstuff(served.recorder.wires[0]) == HEAD + b".\r\n" + COMMANDS + b".\r\n"


async def test_a_large_message_goes_to_a_file_in_wire_form(tmp_path: Path) -> None:
    message = HEAD + (b".dotted\r\n" + lines(780)) * 1500
    assert len(message) > 4 * INLINE
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail_in_chunks(*pieces(message, 100_003))).code == 250
        (transaction,) = served.recorder.transactions
        assert served.files() == [transaction.body.file]
        assert served.recorder.wires == [stuff(message)]
        assert transaction.head == HEAD


async def test_a_message_is_stored_as_the_same_octets_by_data_and_in_chunks(tmp_path: Path) -> None:
    message = HEAD + b".dotted\r\n..\r\n.\r\n plain\r\n"
    dotted = b"." + HEAD + b"..dotted\r\n...\r\n..\r\n. plain\r\n"  # and two dots that guard none
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        for wire in (stuff(message), dotted):
            assert (await client.mail(wire + b".\r\n")).code == 250
        assert (await client.mail_in_chunks(*pieces(message, 7))).code == 250
        assert served.recorder.wires == [stuff(message)] * 3
        assert len({transaction.body.digest for transaction in served.recorder.transactions}) == 1


# What is refused


@pytest.mark.parametrize(
    ("before", "answer"),
    [
        ([], "503 5.5.1"),
        (["EHLO c.test"], "503 5.5.1"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "503 5.5.1"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>", "RCPT TO:<u1@track.test>", "RSET"], "503 5.5.1"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>", "RCPT TO:<u1@track.test>", "EHLO c.test"], "503 5.5.1"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
async def test_octets_of_a_chunk_without_a_transaction_are_read_off_and_not_carried_out(
    before: list[str], answer: str, last: bool, tmp_path: Path
) -> None:
    async with serving(tmp_path, STRICT) as served, await SmtpClient.connect(served.port) as client:
        await client.answer()
        for line in before:
            assert (await client.command(line)).code == 250
        asked = len(served.recorder.rooms)
        assert (await client.chunk(COMMANDS, last)).short == answer
        assert (await client.command("NOOP")).text == "2.0.0 OK"
        assert len(served.recorder.rooms) == asked
        await served.no_files()


@pytest.mark.parametrize("command", ["DATA", "RCPT TO:<u2@track.test>", "MAIL FROM:<b@ext.test>"])
async def test_between_chunks_only_chunks_are_taken_and_the_message_goes_on(command: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        await client.chunk(HEAD)
        assert (await client.command(command)).short == "503 5.5.1"
        assert (await client.command("NOOP")).code == 250
        assert (await client.chunk(b"end\r\n", last=True)).code == 250
        assert served.recorder.wires == [HEAD + b"end\r\n"]
        assert len(served.recorder.transactions[0].recipients) == 1


@pytest.mark.parametrize("command", ["RSET", "EHLO c.test"])
async def test_a_reset_between_chunks_forgets_them_and_their_file(command: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        await client.chunk(HEAD + lines(4 * INLINE))
        assert (await client.command(command)).code == 250
        await served.no_files()
        assert (await client.chunk(b"rest\r\n", last=True)).short == "503 5.5.1"
        assert (await client.mail_in_chunks(HEAD)).code == 250
        assert served.recorder.wires == [HEAD]


@pytest.mark.parametrize(
    "argument",
    [b"", b" ", b"LAST", b"-1", b"+1", b"1.5", b"0x10", b"5 FIRST", b"5 LAST LAST", b"1" * 21, b"5LAST", "٥".encode()],
)
async def test_a_chunk_of_no_telling_size_is_501_and_ends_the_session(argument: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        await client.send(b"BDAT " + argument + COMMANDS)
        assert (await client.answer()).short == "501 5.5.4"
        client.writer.write_eof()
        assert await client.at_end()
        assert (served.recorder.transactions, len(served.recorder.rooms)) == ([], 1)


@pytest.mark.parametrize("line", [b"BDAT 5\n", b"bdat 5\0\r\n", b"BDAT \xff\r\n", b"BDAT " + b"5" * 3000 + b"\r\n"])
async def test_a_chunk_whose_command_cannot_be_read_ends_the_session(line: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        await client.send(line + COMMANDS)
        assert (await client.answer()).short == "500 5.5.2"
        client.writer.write_eof()
        assert await client.at_end()
        assert (served.recorder.transactions, len(served.recorder.rooms)) == ([], 1)


@pytest.mark.parametrize("step", [1_000_000, 300, 1])
async def test_the_maximum_size_is_of_all_chunks_together(step: int, tmp_path: Path) -> None:
    message = HEAD + lines(1200)
    async with (
        serving(tmp_path, max_message_size=len(message)) as served,
        await SmtpClient.hello(served.port) as client,
    ):
        assert (await client.mail_in_chunks(*pieces(message, step))).code == 250
        assert (await client.mail_in_chunks(*pieces(b"X" + message, step))).short == "552 5.3.4"
        assert (await client.mail_in_chunks(*pieces(b".\r\n" + message[2:], step))).short == "552 5.3.4"
        assert (await client.mail_in_chunks(*pieces(b".\r\n" + message[3:], step))).code == 250  # is stuffed
        assert (await client.mail_in_chunks(*pieces(message[:-2] + b"xx", step))).code == 250  # is ended
        assert (await client.mail_in_chunks(*pieces(message, step))).code == 250
        assert served.recorder.wires == [message, b"..\r\n" + message[3:], message[:-2] + b"xx\r\n", message]


async def test_what_chunks_gain_by_their_dots_takes_bounded_room(tmp_path: Path) -> None:
    async with serving(tmp_path, max_message_size=30_000) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail_in_chunks(b".\r\n" * 10_000)).short == "552 5.3.4"
        assert (await client.mail_in_chunks(b".\r\n" * 7_700)).code == 250


async def test_a_chunk_that_is_too_large_is_read_off_and_the_rest_of_its_message_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, max_message_size=1000) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        await client.send(bdat(HEAD) + bdat(COMMANDS * 20) + bdat(b"end\r\n", last=True) + b"NOOP\r\n")
        answers = [(await client.answer()).short for _ in range(4)]
        assert answers == ["250 2.0.0", "552 5.3.4", "552 5.3.4", "250 2.0.0"]
        assert served.recorder.transactions == []


@pytest.mark.parametrize("refusal", ["disk", "size", "no transaction"])
async def test_refused_chunks_of_one_message_are_one_refusal_however_many_there_are(
    refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(writer: BodyWriter, data: list[bytes]) -> None:
        raise OSError(28, "full")

    first, answer, counted = {
        "disk": (lines(2 * INLINE), "452 4.3.1", {"4xx": 1}),
        "size": (lines(1_000_100), "552 5.3.4", {"5xx": 1}),
        "no transaction": (COMMANDS, "503 5.5.1", {}),
    }[refusal]
    chunks = [HEAD, *pieces(first, INLINE), *[COMMANDS] * (STRICT.errors + 10)]
    async with (
        serving(tmp_path, STRICT, max_message_size=1_000_000) as served,
        await SmtpClient.hello(served.port) as client,
    ):
        tally = served.server.tally
        if refusal != "no transaction":
            await client.envelope()
        with monkeypatch.context() as patch, capture_logs() as entries:
            if refusal == "disk":
                patch.setattr(BodyWriter, "_append", fail)
            await client.send(b"".join(bdat(chunk) for chunk in chunks) + bdat(b"end\r\n", last=True))
            answers = [(await client.answer()).short for _ in range(len(chunks) + 1)]
        assert answers == ["250 2.0.0"] * answers.count("250 2.0.0") + [answer] * answers.count(answer)
        assert answers.count(answer) > STRICT.errors
        assert tally.refusals == {("BDAT", answer[:3]): 1}
        assert tally.messages == counted
        assert [entry["event"] for entry in entries].count("message refused") == sum(counted.values())
        assert (await client.chunk(b"of no message", last=True)).short == "503 5.5.1"
        assert tally.refusals.total() == 2
        assert (await client.mail_in_chunks(HEAD)).code == 250


@pytest.mark.parametrize("command", ["RSET", "EHLO c.test", "MAIL FROM:<b@ext.test>"])
async def test_a_new_transaction_is_none_of_the_refused_message_whose_last_chunk_never_came(
    command: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, max_message_size=1000) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        assert [(await client.chunk(octets)).short for octets in (lines(1100), b"more")] == ["552 5.3.4"] * 2
        assert (await client.command(command)).code == 250
        assert (await client.chunk(b"too early")).short == "503 5.5.1"
        await client.command("RSET")
        assert (await client.mail_in_chunks(HEAD, b"end\r\n")).code == 250
        assert served.recorder.wires == [HEAD + b"end\r\n"]


async def test_what_is_thrown_away_of_a_refused_message_is_bounded_over_all_its_chunks(tmp_path: Path) -> None:
    async with serving(tmp_path, max_message_size=1000) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        assert [(await client.chunk(b"x" * 600)).short for _ in range(3)] == ["250 2.0.0", *["552 5.3.4"] * 2]
        await client.send(bdat(b"x" * 600))
        assert (await client.answer()).short == "552 5.3.4"
        client.writer.write_eof()
        assert await client.at_end()


@pytest.mark.parametrize("size", [2001, 10**9, 10**20 - 1])
async def test_a_chunk_larger_than_anything_that_would_be_thrown_away_ends_the_session_at_once(
    size: int, tmp_path: Path
) -> None:
    async with serving(tmp_path, max_message_size=1000) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        assert (await client.command(f"BDAT {size} LAST")).short == "552 5.3.4"
        client.writer.write_eof()
        assert await client.at_end()
        await served.no_files()


async def test_no_smuggling_sequence_in_chunks_becomes_an_end_of_data_for_the_next_hop(tmp_path: Path) -> None:
    sequences = json.loads((corpus("smtp-smuggling") / "sequences.json").read_text())
    assert len(sequences) == 12
    taken = 0
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        for sequence in sequences:
            message = HEAD + b"before" + bytes.fromhex(sequence["hex"]) + COMMANDS
            for cut in range(len(HEAD), len(message) - len(COMMANDS) + 2):
                answer = await client.mail_in_chunks(message[:cut], message[cut:])
                if answer.code != 250:
                    assert answer.short == "554 5.6.0"
                    continue
                taken += 1
                wire = served.recorder.wires[-1]
                assert b"\n" not in wire.replace(b"\r\n", b"")
                assert b"\r\n.\r\n" not in b"\r\n" + wire
                assert unstuff(wire).endswith(COMMANDS)
        assert taken == len(served.recorder.wires) > 20


async def test_what_the_intake_refuses_leaves_no_file_and_the_session_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        served.recorder.accept_error = Refused(reply.LOOP)
        assert (await client.mail_in_chunks(HEAD, lines(3 * INLINE))).short == "554 5.4.6"
        await served.no_files()
        served.recorder.accept_error = None
        assert (await client.mail_in_chunks(HEAD)).code == 250


async def test_an_error_of_the_disk_is_answered_at_its_chunk_and_the_rest_is_read_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(writer: BodyWriter, data: list[bytes]) -> None:
        raise OSError(28, "full")

    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        with monkeypatch.context() as patch, capture_logs() as entries:
            patch.setattr(BodyWriter, "_append", fail)
            assert (await client.mail_in_chunks(*pieces(HEAD + lines(5 * INLINE), INLINE))).short == "452 4.3.1"
        assert [entry["event"] for entry in entries][:2] == ["message body not written", "message refused"]
        await served.no_files()
        assert (await client.mail_in_chunks(HEAD)).code == 250


# Time, counts and ends


async def test_a_chunk_that_stops_coming_is_421(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(data_timeout=0.05)) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        await client.send(bdat(HEAD + b"x")[:-1])
        assert (await client.answer()).short == "421 4.4.2"
        assert await client.at_end()


async def test_the_next_chunk_has_the_time_of_a_command(tmp_path: Path) -> None:
    limits = Limits(data_timeout=0.02, data_grace=0.0, command_timeout=1.0)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        await client.chunk(HEAD)
        await asyncio.sleep(0.06)  # the slowness is what is tested
        assert (await client.chunk(b"end\r\n", last=True)).code == 250
        await client.envelope()
        await client.chunk(HEAD)
        assert (await client.answer()).short == "421 4.4.2"
        await served.empty()


async def test_chunks_that_trickle_are_421_after_the_grace_whatever_their_number(tmp_path: Path) -> None:
    limits = Limits(data_grace=0.03, data_rate=1_000_000)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()

        async def trickle() -> None:
            while True:
                await client.send(b"BDAT 2\r\nx")
                await asyncio.sleep(0.005)  # the slowness is what is tested
                await client.send(b"x")

        task = asyncio.create_task(trickle())
        while (answer := await client.answer()).code == 250:
            pass
        assert answer.short == "421 4.4.2"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_chunks_of_a_size_do_not_count_as_commands_and_tiny_ones_do(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(STRICT, commands=10)) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail_in_chunks(*pieces(HEAD + lines(40 * LARGE_CHUNK), LARGE_CHUNK))).code == 250
        await client.envelope()
        codes = []
        while not codes or codes[-1] == 250:
            codes.append((await client.chunk(b"x")).code)
        assert codes[-1] == 421
        assert len(codes) < 10


@pytest.mark.parametrize("abort", [True, False], ids=["reset", "end of input"])
async def test_a_client_that_goes_between_chunks_leaves_nothing(abort: bool, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        assert (await client.chunk(HEAD + lines(4 * INLINE))).code == 250
        if abort:
            client.reset()
        else:
            client.writer.write_eof()
            assert await client.at_end()
        await served.empty()
        await served.no_files()
        assert served.recorder.transactions == []


async def test_a_message_in_chunks_may_end_although_the_daemon_stops(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.envelope()
        await client.chunk(HEAD)
        stop = asyncio.create_task(served.server.stop(60))
        await asyncio.sleep(0)  # the stop has begun
        assert (await client.chunk(b"more\r\n")).code == 250
        assert (await client.chunk(b"end\r\n", last=True)).code == 250
        assert (await client.answer()).short == "421 4.3.2"
        client.writer.close()
        await stop
        assert served.recorder.wires == [HEAD + b"more\r\nend\r\n"]


async def test_what_was_said_before_a_chunk_is_answered_while_its_octets_are_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"HELO c.test\r\nMAIL FROM:<a@ext.test>\r\nRCPT TO:<u1@track.test>\r\nBDAT 9 LAST\r\n")
        async with asyncio.timeout(30):
            codes = [(await reader.readline())[:3] for _ in range(4)]
            writer.write(b"a: b\r\n\r\nc")
            last = await reader.readline()
        writer.close()
        assert codes == [b"220", b"250", b"250", b"250"]
        assert last.startswith(b"250 ")
