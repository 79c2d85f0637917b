"""chasquid's scripted dialogues (data/corpora/smtp-dialogs-chasquid) and the seeds of its fuzzer, played to our server.

Compared are the classes of the replies (their first digit), with ``bare_lf = "refuse"`` as chasquid does. A script's
lines: ``c tcp_connect``, ``c tls_connect``, ``c close``; ``c -> line``; ``c ~> 'octets'`` (a Python expression);
``c <- reply``, ``c <~ pattern``, ``c <... last line of a reply``.
"""

from __future__ import annotations

import ast
import asyncio
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from relay.core.wire import unstuff
from relay.smtp_limits import Limits
from tests.corpora import corpus
from tests.smtp_client import PATIENCE, SmtpClient
from tests.smtp_harness import Fed, Served, serving

#: chasquid ends a session at its third error, and takes 1 MiB in that test.
LIMITS = Limits(exempt=(), errors=3)
MAX_SIZE = 1024 * 1024

_NO_AUTH = "AUTH is not offered: mail comes in here, nobody submits"
_THIRD_ERROR = "without AUTH each of their steps is an error of ours, and the third ends the session"
_ODD_SENDER = "real servers send from such addresses, and what matters is where the letter goes"
#: Where we mean to differ, by script, in order: the command, their class, ours, why.
DEVIATIONS: dict[str, list[tuple[str, str, str, str]]] = {
    "auth_multi_dialog": [
        ("AUTH PLAIN", "3", "5", _NO_AUTH),
        ("dXNlckB0ZXN0c2VydmVyAHlalala==", "5", "4", _THIRD_ERROR),
        ("AUTH PLAIN", "3", "5", _NO_AUTH),
        ("AUTH PLAIN", "3", "4", _THIRD_ERROR),
    ],
    "bad_data": [
        (".", "5", "2", "a header line without colon is real mail, and what we receive is forwarded as it is"),
    ],
    "bad_mail_from": [
        ("MAIL FROM:<a@xn--->", "5", "2", _ODD_SENDER),
        (f"MAIL FROM:<{'aaaa5aaaaX' * 15}@{'bbbb5bbbbX' * 15}>", "5", "2", _ODD_SENDER),
    ],
}

SCRIPTS = [
    "auth_multi_dialog",
    "auth_not_tls",
    "auth_too_many_failures",
    "bad_data",
    "bad_data_dot",
    "bad_data_dot_2",
    "bad_data_dot_on_message_too_big",
    "bad_mail_from",
    "bad_rcpt_to",
    "data_dot_stuffing",
    "empty_helo",
    "helo",
    "line_too_long",
    "message_too_big",
    "sendmail",
    "unknown_command",
    "wrong_proto",
]


def dialogue(name: str) -> list[str]:
    path = corpus("smtp-dialogs-chasquid") / "minor_dialogs" / f"{name}.cmy"
    return [line for line in path.read_text("utf-8").split("\n") if line and not line.startswith("#")]


def literal(expression: str) -> bytes:
    """``'text'``, or sums and products of texts and numbers, as octets."""

    def value(node: ast.expr) -> str | int:
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
            return node.value
        assert isinstance(node, ast.BinOp), expression
        left, right = value(node.left), value(node.right)
        return left + right if isinstance(node.op, ast.Add) else left * right  # type: ignore[operator]

    result = value(ast.parse(expression, mode="eval").body)
    assert isinstance(result, str)
    return result.encode()


class Player:
    def __init__(self, name: str, served: Served) -> None:
        self.name = name
        self.served = served
        self.client: SmtpClient | None = None
        self.last = ""
        self.over = False
        self.compared = 0
        self.differing: list[tuple[str, str, str]] = []

    async def play(self) -> None:
        try:
            for line in dialogue(self.name):
                await self.step(line)
        finally:
            await self.close()

    async def close(self) -> None:
        if self.client is not None:
            await self.client.__aexit__()
            self.client = None

    async def step(self, line: str) -> None:
        _, verb, *rest = line.split(" ", 2)
        argument = rest[0] if rest else ""
        if verb in ("tcp_connect", "tls_connect"):  # their port with TLS from the start is for submission
            await self.close()
            self.client, self.over = await SmtpClient.connect(self.served.port), False
        elif verb == "close":
            await self.close()
        elif self.over:
            return  # a deviation has ended the session
        elif verb in ("->", "~>"):
            assert self.client is not None
            self.last = argument
            await self.client.send(literal(argument) if verb == "~>" else argument.encode() + b"\r\n")
        else:
            assert verb in ("<-", "<~", "<..."), line
            await self.expect(argument[0])

    async def expect(self, theirs: str) -> None:
        assert self.client is not None
        answer = await self.client.answer()
        ours = str(answer.code)[0]
        self.compared += 1
        if answer.code == 421:
            self.over = True
            assert await self.client.at_end()
        if ours != theirs:
            self.differing.append((self.last, theirs, ours))


@pytest.mark.parametrize("name", SCRIPTS)
async def test_replies_are_of_chasquids_classes_or_a_listed_deviation(name: str, tmp_path: Path) -> None:
    async with serving(tmp_path, LIMITS, bare_lf="refuse", max_message_size=MAX_SIZE) as served:
        player = Player(name, served)
        await player.play()
        assert player.compared > 0
        assert player.differing == [deviation[:3] for deviation in DEVIATIONS.get(name, [])]
        verify = corpus("smtp-dialogs-chasquid") / "minor_dialogs" / f"{name}.cmy.verify"
        if verify.exists():
            assert [unstuff(wire) for wire in served.recorder.wires] == [verify.read_bytes().replace(b"\n", b"\r\n")]


def test_every_dialogue_of_the_corpus_is_played() -> None:
    found = {path.stem for path in (corpus("smtp-dialogs-chasquid") / "minor_dialogs").glob("*.cmy")}
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
async def test_seeds_of_chasquids_fuzzer_get_replies_and_leave_the_server_whole(
    line_end: bytes, tmp_path: Path
) -> None:
    seeds = sorted((corpus("smtp-dialogs-chasquid") / "fuzz-smtpsrv" / "FuzzConnection").iterdir())
    assert len(seeds) == 11
    async with serving(tmp_path, LIMITS) as served:
        for seed in seeds:
            match = re.search(r"\[\]byte\((\".*\")\)", seed.read_text("utf-8"), re.DOTALL)
            assert match is not None
            octets = literal(match[1]).replace(b"\n", line_end)
            async with await SmtpClient.connect(served.port) as client:
                await client.send(octets)
                client.writer.write_eof()
                replies = (await client.rest()).decode("ascii").split("\r\n")
                assert replies.pop() == ""
                assert replies[0] == "220 mx.test ESMTP"
                assert len(replies) > 1
                assert not [reply for reply in replies if reply.startswith("451")]
        await served.empty()
        await served.no_files()


FRAGMENTS = [
    b"EHLO c.test\r\n",
    b"HELO c.test\r\n",
    b"MAIL FROM:<a@b.test>\r\n",
    b"MAIL FROM:<> SIZE=10 BODY=8BITMIME SMTPUTF8\r\n",
    b"RCPT TO:<u1@track.test>\r\n",
    b"RCPT TO:<unknown@track.test>\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"VRFY\r\n",
    b"STARTTLS\r\n",
    b"Subject: x\r\n\r\ny\r\n",
    b".\r\n",
    b"..\r\n",
    b"\n.\n",
    b"\r",
    b"\n",
    b"\0",
    b"\xff\xfe",
    b"<" * 300,
    b"x" * 3000,
]


async def test_any_mixture_of_commands_and_garbage_gets_replies_and_no_internal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(5321)
    fed = Fed(monkeypatch)
    async with serving(tmp_path, replace(LIMITS, errors=20), max_message_size=5000) as served:
        with capture_logs() as entries:
            for _ in range(300):
                transaction = [b"EHLO c.test\r\n", FRAGMENTS[2], FRAGMENTS[4], b"DATA\r\n"] * random.randrange(2)
                pieces = transaction + random.choices(FRAGMENTS, k=random.randrange(1, 30))
                if random.randrange(2):
                    pieces = [b"".join(pieces)]
                replies = await _played(pieces, served, fed)
                assert re.fullmatch(rb"(?:[2345]\d\d[ -][ -~]*\r\n)+", replies), replies
            await served.empty()
        assert {entry["event"] for entry in entries} <= {"SMTP session", "message refused"}
        assert [entry["event"] for entry in entries].count("SMTP session") == 300
        assert len(served.recorder.transactions) > 10
        await served.no_files()


async def _played(pieces: list[bytes], served: Served, fed: Fed) -> bytes:
    """All replies to ``pieces``, each of which the server has read before the next is sent."""
    async with await SmtpClient.connect(served.port) as client:
        for piece in pieces:
            goal = fed.octets + len(piece)
            try:
                await client.send(piece)
            except ConnectionError:
                break  # sent away
            async with asyncio.timeout(PATIENCE):
                while fed.octets < goal and not client.reader.at_eof():
                    await asyncio.sleep(0)
        if client.writer.can_write_eof():
            client.writer.write_eof()
        return await client.rest()
