"""SMTP smuggling: of everything that is not CR LF . CR LF nothing ends a message, here or at the next hop.

The twelve endings are those of data/corpora/smtp-smuggling. Each stands in the middle of a body and is followed by
commands and a second message; the whole is cut in two at every octet, so that every state of the reader meets every
end of a chunk.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from relay.core.wire import unstuff
from relay.tls import TlsFiles
from tests.certificates import Certificate
from tests.corpora import corpus
from tests.smtp_client import Answer, SmtpClient
from tests.smtp_harness import Fed, Served, serving

BEFORE = b"Subject: first\r\n\r\nbefore"
AFTER = b"MAIL FROM:<evil@ext.test>\r\nRCPT TO:<victim@track.test>\r\nDATA\r\nSubject: second\r\n\r\nsmuggled"
END = b"\r\n.\r\n"


def sequences() -> list[bytes]:
    entries = json.loads((corpus("smtp-smuggling") / "sequences.json").read_text())
    found = [bytes.fromhex(entry["hex"]) for entry in entries]
    assert len(found) == 12
    return found


def carries_bare_cr_or_nul(sequence: bytes) -> bool:
    return b"\0" in sequence or re.search(rb"\r(?!\n)", sequence + b"M") is not None


def ends_of_data(wire: bytes, line_end: bytes) -> int:
    """How often a next hop that takes ``line_end`` for the end of a line would see the end of the data."""
    return len(re.findall(rb"(?:^|(?<=\n))\.(?:" + line_end + rb")", wire + b".\r\n"))


async def one_answer(client: SmtpClient) -> Answer:
    """The answer to the message, and proof that the server has not seen a second end of data or any command."""
    answer = await client.answer()
    assert (await client.command("NOOP")).text == "2.0.0 OK"
    return answer


async def in_two(client: SmtpClient, fed: Fed, stream: bytes, cut: int) -> Answer:
    """The answer to a message whose first ``cut`` octets the server gets by themselves."""
    assert (await client.start()).code == 354
    goal = fed.octets + cut
    await client.send(stream[:cut])
    await fed.reach(goal)
    await client.send(stream[cut:])
    return await one_answer(client)


def check(served: Served, sequence: bytes, answer: Answer, before: int, bare_lf: str) -> None:
    taken = served.recorder.wires[before:]
    refused = carries_bare_cr_or_nul(sequence) or bare_lf == "refuse"
    if refused:
        assert (answer.short, taken) == ("554 5.6.0", [])
        return
    assert answer.short == "250 2.0.0"
    assert len(taken) == 1
    assert unstuff(taken[0]).endswith(b"smuggled\r\n")
    for line_end in (b"\r\n", b"\r?\n"):  # a strict next hop, and one that lets a bare LF end a line
        assert ends_of_data(taken[0], line_end) == 1
    assert b"\n" not in taken[0].replace(b"\r\n", b"")


async def test_no_sequence_ends_a_message_whatever_octet_a_chunk_ends_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: Counter[int] = Counter()
    fed = Fed(monkeypatch)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        for sequence in sequences():
            stream = BEFORE + sequence + AFTER + END
            for cut in range(1, len(stream)):
                before = len(served.recorder.wires)
                answer = await in_two(client, fed, stream, cut)
                check(served, sequence, answer, before, "normalise")
                outcomes[answer.code] += 1
    splits = dict.fromkeys((False, True), 0)
    for sequence in sequences():
        splits[carries_bare_cr_or_nul(sequence)] += len(BEFORE + sequence + AFTER + END) - 1
    assert outcomes == {250: splits[False], 554: splits[True]}
    assert min(splits.values()) > 300  # three sequences are made of LF alone, nine hold a bare CR or NUL


async def test_no_sequence_ends_a_message_that_comes_octet_by_octet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(monkeypatch)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        for sequence in sequences():
            before = len(served.recorder.wires)
            assert (await client.start()).code == 354
            for octet in BEFORE + sequence + AFTER + END:
                goal = fed.octets + 1
                await client.send(bytes((octet,)))
                await fed.reach(goal)
            check(served, sequence, await one_answer(client), before, "normalise")


async def test_no_sequence_ends_a_message_over_tls_whatever_octet_of_it_a_record_ends_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader and its states are those of plain text: so the octets of the sequences and round them will do."""
    certificate, fed, records = Certificate.make(tmp_path, "mx.test"), Fed(monkeypatch), 0
    files = TlsFiles(certificate.cert, certificate.key)
    async with serving(tmp_path, tls=files) as served, await SmtpClient.hello(served.port) as client:
        await client.starttls(certificate.client_context())
        assert (await client.command("EHLO client.test")).code == 250
        for sequence in sequences():
            for cut in range(len(BEFORE), len(BEFORE + sequence) + 2):
                before = len(served.recorder.wires)
                answer = await in_two(client, fed, BEFORE + sequence + AFTER + END, cut)
                check(served, sequence, answer, before, "normalise")
                records += 1
    assert records == sum(map(len, sequences())) + 2 * 12


@pytest.mark.parametrize("bare_lf", ["normalise", "refuse"])
async def test_every_sequence_is_taken_as_one_message_or_refused_over_plain_text(tmp_path: Path, bare_lf: str) -> None:
    async with serving(tmp_path, bare_lf=bare_lf) as served, await SmtpClient.hello(served.port) as client:
        for sequence in sequences():
            before = len(served.recorder.wires)
            assert (await client.start()).code == 354
            await client.send(BEFORE + sequence + AFTER + END)
            check(served, sequence, await one_answer(client), before, bare_lf)


@pytest.mark.parametrize("bare_lf", ["normalise", "refuse"])
async def test_every_sequence_is_taken_as_one_message_or_refused_over_tls(tmp_path: Path, bare_lf: str) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    files = TlsFiles(certificate.cert, certificate.key)
    async with serving(tmp_path, bare_lf=bare_lf, tls=files) as served, await SmtpClient.hello(served.port) as client:
        await client.starttls(certificate.client_context())
        assert (await client.command("EHLO client.test")).code == 250
        for sequence in sequences():
            before = len(served.recorder.wires)
            assert (await client.start()).code == 354
            await client.send(BEFORE + sequence + AFTER + END)
            check(served, sequence, await one_answer(client), before, bare_lf)
