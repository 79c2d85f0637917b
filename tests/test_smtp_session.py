"""The commands of a session: what each is answered, what the intake gets to see, and what never reaches it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.core import reply
from relay.core.model import Address
from relay.smtp_limits import Settings
from relay.smtp_stream import LINE_LIMIT, SKIP_LIMIT, Stream
from relay.smtp_transaction import Client, Refused
from relay.store.engine import StoreUnavailable
from relay.tls import TlsFiles
from tests.certificates import Certificate
from tests.smtp_client import LONG_SENDER, SmtpClient
from tests.smtp_harness import STRICT, serving

BODY = b"Subject: hi\r\n\r\nhello\r\n.\r\n"
ANN = Address("ann", "ext.test")
EXTENSIONS = {"PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING"}


async def test_greeting_begins_with_the_host_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.connect(served.port) as client:
        answer = await client.answer()
        assert (answer.code, answer.text) == (220, "mx.test ESMTP")


async def test_ehlo_announces_what_is_done_and_no_starttls_without_a_certificate(tmp_path: Path) -> None:
    async with serving(tmp_path, max_message_size=1000) as served, await SmtpClient.connect(served.port) as client:
        await client.answer()
        name, *extensions = (await client.command("EHLO c.test")).lines
        assert name == "mx.test"
        assert set(extensions) == EXTENSIONS
        assert len(extensions) == len(EXTENSIONS)
        assert (await client.command("STARTTLS")).short == "502 5.5.1"


async def test_helo_is_answered_with_one_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.connect(served.port) as client:
        await client.answer()
        assert (await client.command("HELO c.test")).lines == ("mx.test",)


async def test_a_transaction_reaches_the_intake_with_its_whole_envelope(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port, "c.test") as client:
        answer = await client.mail(BODY, "<U1@Track.test>", "<u2@track.test>")
        assert answer.text == "2.0.0 Queued as m1"
        (transaction,) = served.recorder.transactions
        assert transaction.client == Client("127.0.0.1", "c.test", None, esmtp=True)
        assert transaction.mail_from == ANN
        assert transaction.recipients == [
            (Address("U1", "track.test"), "route of U1@track.test"),
            (Address("u2", "track.test"), "route of u2@track.test"),
        ]
        assert transaction.bare_lf == 0
        assert transaction.body.data == transaction.head == BODY[:-3]


async def test_mail_is_taken_after_helo_as_well(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.connect(served.port) as client:
        await client.answer()
        await client.command("HELO c.test")
        assert (await client.mail(BODY)).code == 250
        await client.command("EHLO c.test")
        assert (await client.mail(BODY)).code == 250
        greeted = [transaction.client for transaction in served.recorder.transactions]
        assert greeted == [Client("127.0.0.1", "c.test", None, esmtp=esmtp) for esmtp in (False, True)]


async def test_the_null_sender_is_none(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(BODY, sender="<>")).code == 250
        assert served.recorder.transactions[0].mail_from is None


async def test_postmaster_needs_no_domain(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(BODY, "<PostMaster>")).code == 250
        assert served.recorder.transactions[0].recipients == [("postmaster", "route of postmaster")]


async def test_a_repeated_recipient_is_answered_250_and_kept_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.mail(BODY, "<u1@track.test>", "<U1@TRACK.TEST>")).code == 250
        assert [str(r) for r, _ in served.recorder.transactions[0].recipients] == ["u1@track.test"]
        assert len(served.recorder.asked) == 1


@pytest.mark.parametrize(
    ("before", "command", "answer"),
    [
        ([], "MAIL FROM:<a@b.test>", "503 5.5.1"),
        ([], "RCPT TO:<a@b.test>", "503 5.5.1"),
        ([], "DATA", "503 5.5.1"),
        ([], "EHLO", "501 5.5.4"),
        ([], "HELO", "501 5.5.4"),
        ([], "EHLO " + "x" * 256, "501 5.5.4"),
        ([], "NOOP", "250 2.0.0"),
        ([], "NOOP with words", "250 2.0.0"),
        ([], "noop", "250 2.0.0"),
        ([], "NOOP  ", "250 2.0.0"),
        ([], "RSET", "250 2.0.0"),
        ([], "RSET now", "501 5.5.4"),
        ([], "HELP", "214 2.0.0"),
        ([], "VRFY u1@track.test", "252 2.5.0"),
        ([], "VRFY nobody", "252 2.5.0"),
        ([], "EXPN list", "502 5.5.1"),
        ([], "QUIT now", "501 5.5.4"),
        ([], "QUIT", "221 2.0.0"),
        ([], "AUTH PLAIN", "500 5.5.1"),
        ([], "BDAT 0 LAST", "503 5.5.1"),
        ([], "", "500 5.5.1"),
        ([], " NOOP", "500 5.5.1"),
        ([], "handle_client", "500 5.5.1"),
        (["EHLO c.test"], "RCPT TO:<u1@track.test>", "503 5.5.1"),
        (["EHLO c.test"], "DATA", "503 5.5.1"),
        (["EHLO c.test"], "MAIL", "500 5.5.2"),
        (["EHLO c.test"], "MAIL TO:<a@b.test>", "500 5.5.2"),
        (["EHLO c.test"], "MAIL FROM:", "501 5.1.7"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test", "501 5.1.7"),
        (["EHLO c.test"], "MAIL FROM:<a b@b.test>", "501 5.1.7"),
        (["EHLO c.test"], "mail from:<a@b.test>", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM: <a@b.test>", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:  <a@b.test>", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test>  ", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<@hop.test:a@b.test>", "250 2.1.0"),
        (["EHLO c.test"], f"MAIL FROM:<{LONG_SENDER}>", "250 2.1.0"),
        (["EHLO c.test"], f"MAIL FROM:<{'я' * 33}@b.test> SMTPUTF8", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<a@x-.test>", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<a@[192.0.2.1]>", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SIZE=1000", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SIZE=1001", "552 5.3.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SIZE=99999999999999999999", "552 5.3.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SIZE=100000000000000000000", "501 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SIZE=-1", "501 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SIZE", "501 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SIZE=1 SIZE=1", "501 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> BODY=8BITMIME", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> body=7bit", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> BODY=BINARYMIME", "501 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SMTPUTF8", "250 2.1.0"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> SMTPUTF8=yes", "501 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> RET=HDRS", "555 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> AUTH=<>", "555 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<a@b.test> =x", "501 5.5.4"),
        (["EHLO c.test"], "MAIL FROM:<ü@b.test>", "553 5.6.7"),
        (["EHLO c.test"], "MAIL FROM:<a@bü.test>", "553 5.6.7"),
        (["EHLO c.test"], "MAIL FROM:<ü@b.test> SMTPUTF8", "250 2.1.0"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "MAIL FROM:<a@b.test>", "503 5.5.1"),
        (["EHLO c.test", "MAIL FROM:<>"], "MAIL FROM:<>", "503 5.5.1"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "DATA", "503 5.5.1"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT FROM:<u1@track.test>", "500 5.5.2"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:<>", "501 5.1.3"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:<u1>", "501 5.1.3"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], f"RCPT TO:<{LONG_SENDER}>", "501 5.1.3"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:<u1@[192.0.2.1]>", "501 5.1.3"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:<unknown@track.test>", "550 5.1.1"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:<u1@track.test>", "250 2.1.5"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:  <u1@track.test>", "250 2.1.5"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:<u1@track.test> NOTIFY=NEVER", "555 5.5.4"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:<u1@track.test> ==", "501 5.5.4"),
        (["EHLO c.test", "MAIL FROM:<a@b.test>"], "RCPT TO:<ü@track.test>", "553 5.6.7"),
        (["EHLO c.test", "MAIL FROM:<a@b.test> SMTPUTF8"], "RCPT TO:<ü@track.test>", "250 2.1.5"),
        (["EHLO c.test", "MAIL FROM:<>", "RCPT TO:<u1@track.test>"], "DATA now", "501 5.5.4"),
        (["EHLO c.test", "MAIL FROM:<>", "RCPT TO:<u1@track.test>", "RSET"], "DATA", "503 5.5.1"),
        (["EHLO c.test", "MAIL FROM:<>", "RCPT TO:<u1@track.test>", "EHLO c.test"], "DATA", "503 5.5.1"),
        (["EHLO c.test", "MAIL FROM:<>", "RCPT TO:<u1@track.test>", "HELO c.test"], "RCPT TO:<u1@x.y>", "503 5.5.1"),
    ],
)
async def test_a_command_is_answered(before: list[str], command: str, answer: str, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, STRICT, max_message_size=1000) as served,
        await SmtpClient.connect(served.port) as client,
    ):
        await client.answer()
        for line in before:
            assert (await client.command(line)).code == 250
        assert (await client.command(command)).short == answer


@pytest.mark.parametrize(
    "octets",
    [b"RSET\n", b"RSET\r\r\n", b"RS\0ET\r\n", b"RSET \x1b[2J\r\n", b"RSET\t\r\n", b"RSET \x7f\r\n", b"RSET \xff\r\n"],
)
async def test_a_line_with_a_bare_end_a_control_or_no_utf8_is_no_command(octets: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path, STRICT) as served, await SmtpClient.hello(served.port) as client:
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<u1@track.test>")
        await client.send(octets)
        assert (await client.answer()).short == "500 5.5.2"
        assert (await client.command("DATA")).code == 354  # it was not reset


async def test_a_command_line_may_be_as_long_as_the_limit(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.command("NOOP " + "x" * (LINE_LIMIT - 7))).code == 250
        assert (await client.command("NOOP " + "x" * (LINE_LIMIT - 6))).short == "500 5.5.2"
        assert (await client.command("NOOP " + "x" * 100_000)).short == "500 5.5.2"
        assert (await client.command("NOOP")).code == 250


async def test_an_endless_command_line_ends_the_session(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.send(b"x" * (SKIP_LIMIT + LINE_LIMIT + 1))
        assert (await client.answer()).short == "500 5.5.2"
        client.writer.write_eof()
        assert await client.at_end()


async def test_http_is_shown_the_door_at_its_first_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.connect(served.port) as client:
        await client.answer()
        await client.send(b"POST / HTTP/1.1\r\nHost: mx.test\r\n\r\nEHLO c.test\r\nMAIL FROM:<>\r\n")
        assert (await client.answer()).short == "500 5.5.1"
        assert await client.at_end()
        assert served.recorder.rooms == []


async def test_the_name_a_client_gives_is_kept_harmless(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port, "[::1] (by (ü<b>;") as client:
        assert (await client.mail(BODY)).code == 250
        assert served.recorder.transactions[0].client.helo == "[::1]??by????b??"


async def test_a_group_of_commands_is_answered_by_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = 0
    flush = Stream.flush

    async def counting(stream: Stream) -> None:
        nonlocal writes
        writes += 1
        await flush(stream)

    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        monkeypatch.setattr(Stream, "flush", counting)
        await client.send(
            b"RSET\r\nMAIL FROM:<ann@ext.test>\r\nRCPT TO:<u1@track.test>\r\nRCPT TO:<unknown@track.test>\r\nDATA\r\n"
        )
        answers = [(await client.answer()).short for _ in range(5)]
        assert answers == ["250 2.0.0", "250 2.1.0", "250 2.1.5", "550 5.1.1", "354"]
        assert writes == 1


async def test_commands_behind_the_final_dot_are_carried_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        group = b"MAIL FROM:<ann@ext.test>\r\nRCPT TO:<u1@track.test>\r\nDATA\r\n"
        await client.send(group)
        for _ in range(3):
            assert (await client.answer()).code in (250, 354)
        await client.send(BODY + group)
        assert [(await client.answer()).code for _ in range(4)] == [250, 250, 250, 354]
        await client.send(BODY + b"QUIT\r\n")
        assert [(await client.answer()).code for _ in range(2)] == [250, 221]
        assert await client.at_end()
        assert len(served.recorder.transactions) == 2


@pytest.mark.parametrize("before", [b"", b"MAIL FROM:<>\r\n", b"MAIL FROM:<>\r\nRCPT TO:<u1@track.test>\r\n"])
async def test_octets_behind_data_before_the_354_end_the_session(before: bytes, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.send(before + b"DATA\r\n" + BODY + b"MAIL FROM:<evil@ext.test>\r\n")
        for _ in range(before.count(b"\n")):
            assert (await client.answer()).code == 250
        assert (await client.answer()).text == reply.EARLY_DATA.line.removeprefix("554 ")
        client.writer.write_eof()
        assert await client.at_end()
        assert served.recorder.transactions == []


async def test_commands_are_refused_with_452_when_there_is_no_room(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        served.recorder.has_room = False
        assert (await client.command("MAIL FROM:<> SIZE=123")).short == "452 4.3.1"
        assert (await client.command("RCPT TO:<u1@track.test>")).short == "503 5.5.1"
        served.recorder.has_room = True
        assert (await client.mail(BODY)).code == 250
        assert served.recorder.rooms == [123, 0]


@pytest.mark.parametrize("error", [StoreUnavailable("disk I/O error"), RuntimeError("secret"), OSError(5, "secret")])
async def test_an_error_of_ours_is_451_with_one_log_line_and_no_word_of_it(error: Exception, tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.command("MAIL FROM:<ann@ext.test>")
        served.recorder.route_error = error
        with capture_logs() as entries:
            answer = await client.command("RCPT TO:<u1@track.test>")
        assert "451 " + answer.text == reply.INTERNAL_ERROR.line
        assert [entry["event"] for entry in entries] == ["SMTP command failed"]
        served.recorder.route_error = None
        assert (await client.command("RCPT TO:<u1@track.test>")).code == 250


async def test_the_intake_may_refuse_a_recipient_with_a_reply_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.command("MAIL FROM:<ann@ext.test>")
        served.recorder.route_error = Refused(reply.STORE_UNAVAILABLE)
        assert (await client.command("RCPT TO:<u1@track.test>")).short == "451 4.3.2"


async def test_a_session_leaves_exactly_one_line_in_the_log(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with capture_logs() as entries:
            async with await SmtpClient.hello(served.port, "c.test") as client:
                await client.mail(BODY)
                await client.command("NONSENSE")
                await client.command("QUIT")
                assert await client.at_end()
            await served.empty()
        (entry,) = entries
        assert 0 <= entry.pop("duration") < 10
        assert re.fullmatch("[0-9a-f]{8}", entry.pop("session"))
        assert entry == {
            "event": "SMTP session",
            "log_level": "info",
            "ip": "127.0.0.1",
            "helo": "c.test",
            "tls": None,
            "messages": 1,
            "refused": 1,
            "commands": 6,
            "end": "quit",
        }


async def test_an_error_between_commands_is_451_and_closes_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "_skip_line", None)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        with capture_logs() as entries:
            await client.send(b"x" * (LINE_LIMIT + 1))
            assert (await client.answer()).short == "451 4.3.0"
            client.writer.write_eof()
            assert await client.at_end()
            await served.empty()
        assert [entry["event"] for entry in entries] == ["SMTP session failed", "SMTP session"]


# STARTTLS


async def test_starttls_forgets_everything_and_needs_a_new_ehlo(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    async with serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served:
        async with await SmtpClient.connect(served.port) as client:
            await client.answer()
            assert "STARTTLS" in (await client.command("EHLO before.test")).lines
            await client.command("MAIL FROM:<before@ext.test>")
            await client.starttls(certificate.client_context())
            assert (await client.command("MAIL FROM:<ann@ext.test>")).short == "503 5.5.1"
            assert "STARTTLS" not in (await client.command("EHLO after.test")).lines
            assert (await client.command("STARTTLS")).short == "503 5.5.1"
            assert (await client.mail(BODY)).code == 250
            assert (await client.command("QUIT")).code == 221
            assert await client.at_end()
        (transaction,) = served.recorder.transactions
        assert transaction.mail_from == ANN
        assert transaction.client.helo == "after.test"
        assert transaction.client.tls is not None
        assert transaction.client.tls.startswith("TLSv1.3 TLS_")


@pytest.mark.parametrize("announced", [True, False], ids=["withdrawn", "added"])
async def test_a_session_does_what_it_announced_though_the_settings_change_under_it(
    announced: bool, tmp_path: Path
) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    tls = TlsFiles(certificate.cert, certificate.key)
    small = Settings("mx.test", 1000, tls=tls if announced else None)
    large = Settings("mx.test", 2000, tls=None if announced else tls)
    extensions = EXTENSIONS | ({"STARTTLS"} if announced else set())
    async with serving(tmp_path, max_message_size=1000, tls=small.tls) as served:
        async with await SmtpClient.connect(served.port) as before:
            await before.answer()
            served.server.configure(large)
            assert set((await before.command("EHLO c.test")).lines[1:]) == extensions
            if announced:
                await before.starttls(certificate.client_context())
                assert set((await before.command("EHLO c.test")).lines[1:]) == EXTENSIONS
            else:
                assert (await before.command("STARTTLS")).short == "502 5.5.1"
            assert (await before.command("MAIL FROM:<> SIZE=1001")).short == "552 5.3.4"
        async with await SmtpClient.connect(served.port) as after:
            await after.answer()
            lines = (await after.command("EHLO c.test")).lines
            assert ("SIZE 2000" in lines, "STARTTLS" in lines) == (True, not announced)
            assert (await after.command("MAIL FROM:<> SIZE=1001")).code == 250


async def test_plain_text_behind_starttls_is_refused_and_never_carried_out(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    async with serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served:
        async with await SmtpClient.hello(served.port) as client:
            await client.send(b"STARTTLS\r\nMAIL FROM:<evil@ext.test>\r\n")
            assert (await client.answer()).short == "554 5.5.0"
            client.writer.write_eof()
            assert await client.at_end()
        assert served.recorder.rooms == []


async def test_starttls_takes_no_argument(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    async with (
        serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served,
        await SmtpClient.hello(served.port) as client,
    ):
        assert (await client.command("STARTTLS now")).short == "501 5.5.4"


@pytest.mark.parametrize("octets", [b"MAIL FROM:<evil@ext.test>\r\n" * 20, b""])
async def test_a_failed_handshake_ends_the_session_with_one_line(octets: bytes, tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    async with serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served:
        with capture_logs() as entries:
            async with await SmtpClient.hello(served.port) as client:
                assert (await client.command("STARTTLS")).code == 220
                if octets:
                    await client.send(octets)
                else:
                    client.writer.write_eof()
                await client.reader.read()  # an alert, or nothing
            await served.empty()
        assert [entry["event"] for entry in entries] == ["SMTP session"]
        assert "TLS handshake" in entries[0]["end"]


async def test_an_aborted_connection_during_the_handshake_ends_the_session(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    async with (
        serving(tmp_path, tls=TlsFiles(certificate.cert, certificate.key)) as served,
        await SmtpClient.hello(served.port) as client,
    ):
        assert (await client.command("STARTTLS")).code == 220
        await served.server.stop(0)
        assert served.server.connections == 0
