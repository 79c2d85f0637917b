"""From the final dot to the next hop's answer, with a real store and real sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from relay.core.model import DeliveryState, Outcome, OutcomeKind
from relay.forward import settle
from relay.smtp_limits import Settings
from relay.store import queue_by_hand
from relay.store.messages import Job
from relay.store.schema import messages, paths
from relay.tls import TlsFiles
from tests.certificates import Certificate
from tests.dns_server import DnsServer
from tests.parts import MAIL, PATIENCE, running_parts
from tests.smtp_client import LONG_SENDER, SmtpClient
from tests.smtp_sink import Close, Received, SmtpSink


@pytest.fixture
async def sink() -> AsyncIterator[SmtpSink]:
    async with SmtpSink() as found:
        yield found


def split(received: Received) -> tuple[bytes, bytes]:
    """Our fields, and what follows them."""
    start = received.content.index(b"X-Visit-Relay: ")
    end = received.content.index(b"\r\n", start) + 2
    while received.content[end:].startswith(b"X-Visit-"):
        end = received.content.index(b"\r\n", end) + 2
    return received.content[:end], received.content[end:]


async def test_the_bytes_received_follow_our_fields_unchanged(tmp_path: Path, sink: SmtpSink) -> None:
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        assert (await parts.send("sales+77@track.example.com")).startswith("250 2.0.0")
        (received,) = await sink.wait_for_messages(1)
        ours, theirs = split(received)
        assert received.wire.endswith(MAIL)
        assert theirs == MAIL.replace(b"\r\n..", b"\r\n.")
        assert ours.startswith(b"Received: from client.test ([127.0.0.1])")
        assert b"for <sales+77@track.example.com>" in ours.replace(b"\r\n\t", b" ")
        assert b"X-Visit-Id" not in ours  # the number is only claimed
        assert received.recipients == ["sales@example.com"]
        assert received.mail_from.startswith("SRS0=")
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        assert (row["attribution"], row["claimed_number"], row["attempts"]) == ("claimed", "77", 1)


@pytest.mark.parametrize(("greeting", "kind"), [("HELO", "SMTP"), ("EHLO", "ESMTP")])
async def test_the_trace_says_how_the_client_greeted(tmp_path: Path, sink: SmtpSink, greeting: str, kind: str) -> None:
    """In clear, and once more behind STARTTLS."""
    certificate = Certificate.make(tmp_path, "mx.test")
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        tls = TlsFiles(certificate.cert, certificate.key)
        parts.smtp.configure(Settings("mx.track.example.com", tls=tls))
        async with await SmtpClient.connect(parts.port) as client:
            await client.answer()
            await client.command(f"{greeting} client.test")
            assert (await client.mail(MAIL + b".\r\n", "<sales@track.example.com>")).code == 250
            await client.starttls(certificate.client_context())
            await client.command(f"{greeting} client.test")
            assert (await client.mail(b"X: 2\r\n" + MAIL + b".\r\n", "<sales@track.example.com>")).code == 250
        traces = [split(received)[0] for received in await sink.wait_for_messages(2)]
        said = {trace.replace(b"\r\n\t", b" ").partition(b" with ")[2].partition(b" ")[0] for trace in traces}
        assert said == {kind.encode(), b"ESMTPS"}


async def test_our_fields_go_behind_an_mbox_line(tmp_path: Path, sink: SmtpSink) -> None:
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send("card@track.example.com", mail=b"From alice Mon Jan  1 00:00:00 2024\r\n" + MAIL)
        (received,) = await sink.wait_for_messages(1)
        assert received.content.startswith(b"From alice Mon Jan  1 00:00:00 2024\r\nReceived: ")
        assert received.wire.endswith(b"business%20card\r\n" + MAIL)


@pytest.mark.parametrize("sender", [LONG_SENDER, "a@x-.test", "a@[192.0.2.1]"])
async def test_a_sender_that_srs_cannot_carry_goes_on_as_a_token_whose_bounce_comes_home(
    sender: str, tmp_path: Path, sink: SmtpSink
) -> None:
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        assert (await parts.send(sender=sender)).startswith("250 2.0.0")
        (received,) = await sink.wait_for_messages(1)
        assert received.mail_from.startswith("vr0=")
        assert (await parts.send(received.mail_from, sender="")).startswith("250 2.0.0")
        rows = await parts.store.reader.all(
            select(messages.c.mail_from, paths.c.kind).join(paths).order_by(messages.c.id)
        )
        assert rows == [(sender, "first"), ("", "collected")]


@pytest.mark.parametrize("size", [100, 600_000])
async def test_fields_that_claim_to_be_ours_are_cut_from_small_and_large_mail(
    tmp_path: Path, sink: SmtpSink, size: int
) -> None:
    forged = b"X-Visit-Id: 1\r\nAuthentication-Results: mx.track.example.com; dkim=pass\r\n"
    foreign = b"Authentication-Results: mx.other.test; dkim=pass\r\n"
    body = b"\r\n" + b"x" * 70 + b"\r\n" * (size // 72)
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send("sales@track.example.com", mail=b"Subject: a\r\n" + forged + foreign + body)
        (received,) = await sink.wait_for_messages(1)
        assert split(received)[1] == b"Subject: a\r\n" + foreign + body


async def test_each_real_address_gets_one_copy_and_sees_no_other_recipient(tmp_path: Path, sink: SmtpSink) -> None:
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send(
            "sales+1@track.example.com", "card@track.example.com", "p1@track.example.com", "p2@track.example.com"
        )
        received = await sink.wait_for_messages(2)
        assert sorted(m.recipients[0] for m in received) == ["info@example.com", "sales@example.com"]
        rows = await parts.until(lambda rows: {row["state"] for row in rows} == {"forwarded"})
        assert [(row["recipient"], row["attribution"]) for row in rows] == [
            ("card@track.example.com", "exact"),
            ("p1@track.example.com", "none"),
        ]


async def test_a_refusal_is_held_with_its_bytes_and_retried_by_hand(tmp_path: Path, sink: SmtpSink) -> None:
    sink.script["rcpt"] = ["550 5.1.1 no such user", None]
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send("sales@track.example.com")
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "failed")
        async with asyncio.timeout(PATIENCE):
            await parts.held.wait()  # webhooks may want to know, at once
        assert (row["code"], row["answer"]) == (550, "RCPT: 550 5.1.1 no such user")
        now = parts.clock()
        assert await parts.store.write(lambda tx: queue_by_hand.retry(tx, [row["id"]], now, now + 60)) == [row["id"]]
        parts.forwarder.wake()
        await sink.wait_for_messages(1)
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        assert row["attempts"] == 2


async def test_what_was_deferred_is_sent_when_its_time_has_come(tmp_path: Path, sink: SmtpSink) -> None:
    sink.script["rcpt"] = ["451 4.3.0 later", None]
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send("sales@track.example.com")
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert 60 <= row["next_at"] - parts.clock() + 5 <= 90
        parts.clock.ahead = 100
        parts.forwarder.wake()
        await sink.wait_for_messages(1)


async def test_a_retry_on_the_next_day_has_the_same_envelope(tmp_path: Path, sink: SmtpSink) -> None:
    sink.script["rcpt"] = ["451 4.7.1 greylisted", None]
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send()
        await parts.until(lambda rows: rows[0]["state"] == "deferred")
        parts.clock.ahead = 86_400
        parts.forwarder.wake()
        await sink.wait_for_messages(1)
    envelopes = {command.partition(" SIZE")[0] for command in sink.commands if command.startswith("MAIL FROM:<SRS0=")}
    assert (sink.commands.count("RSET"), len(envelopes)) == (1, 1)


async def test_an_answer_lost_after_the_dot_is_sent_again_and_flagged(tmp_path: Path, sink: SmtpSink) -> None:
    sink.script["dot"] = [Close(), None]
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send("sales@track.example.com")
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert row["possibly_repeated"] == 1
        parts.clock.ahead = 100
        parts.forwarder.wake()
        await sink.wait_for_messages(1)
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        assert row["possibly_repeated"] == 1


async def test_a_dead_destination_is_tried_by_one_message_when_its_back_off_ends(tmp_path: Path) -> None:
    async with SmtpSink() as gone:
        address, port = gone.address, gone.port
    async with running_parts(tmp_path, f"smtp://{address}") as parts:
        await parts.send("sales@track.example.com")
        await parts.until(lambda rows: rows[0]["state"] == "deferred")
        for number in range(5):
            await parts.send("sales@track.example.com", mail=MAIL + b"%d\r\n" % number)
        rows = await parts.delivery_rows()
        assert [row["state"] for row in rows] == ["deferred", *["queued"] * 5]
        assert [row["attempts"] for row in rows] == [1, 0, 0, 0, 0, 0]
        async with SmtpSink(port=port) as back:
            parts.clock.ahead = 100
            parts.forwarder.wake()
            await back.wait_for_messages(6)
            await parts.until(lambda rows: {row["state"] for row in rows} == {"forwarded"})


async def test_without_a_next_hop_the_mx_of_the_real_address_gets_the_mail(tmp_path: Path, sink: SmtpSink) -> None:
    zone = {
        ("example.com", "MX"): ["10 mail.example.com."],
        ("mail.example.com", "A"): ["127.0.0.1"],
    }
    async with (
        DnsServer(zone) as dns,
        running_parts(tmp_path, None, nameservers=(dns.address,), mx_port=sink.port) as parts,
    ):
        await parts.send("sales@track.example.com")
        await sink.wait_for_messages(1)
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        assert row["host"].startswith("mail.example.com")
        assert row["destination"] == "example.com"


async def test_claims_left_by_a_crash_are_voided_flagged_and_delivered(tmp_path: Path, sink: SmtpSink) -> None:
    async with running_parts(tmp_path, f"smtp://{sink.address}", start_forwarding=False) as parts:
        parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]  # the process dies here
        await parts.send("sales@track.example.com")
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await sink.wait_for_messages(1)
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        assert (row["possibly_repeated"], row["attempts"]) == (1, 2)


async def test_mail_that_is_longer_than_memory_waits_in_the_store(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.core.destinations.MEMORY", 10)
    # Without the poll, which takes one delivery that is longer than memory and may look before the row is read.
    async with running_parts(tmp_path, f"smtp://{sink.address}", start_forwarding=False) as parts:
        assert not parts.forwarder.takes("anywhere", len(MAIL))
        await parts.send("sales@track.example.com")
        (row,) = await parts.delivery_rows()
        assert (row["claim"], row["attempts"]) == (None, 0)
        monkeypatch.undo()
        await parts.forwarder.start()
        await sink.wait_for_messages(1)


async def test_a_body_that_is_gone_is_an_error_that_can_be_read(tmp_path: Path, sink: SmtpSink) -> None:
    async with running_parts(tmp_path, f"smtp://{sink.address}", start_forwarding=False) as parts:
        parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        await parts.send("sales@track.example.com", mail=b"Subject: x\r\n\r\n" + b"y" * 400_000 + b"\r\n")
        for file in (tmp_path / "bodies").iterdir():
            file.unlink()
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert "No such file" in row["answer"]


@pytest.mark.parametrize("field", [b"", b"X-Visit-Id: 9\r\n"], ids=["as it came", "with a field cut out"])
@pytest.mark.parametrize(("octets", "what"), [(-1000, "shorter"), (-300_000, "shorter"), (1000, "longer")])
async def test_of_a_body_whose_length_has_changed_nothing_arrives(
    field: bytes, octets: int, what: str, tmp_path: Path, sink: SmtpSink
) -> None:
    async with running_parts(tmp_path, f"smtp://{sink.address}", start_forwarding=False) as parts:
        parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        await parts.send("sales@track.example.com", mail=field + b"Subject: x\r\n\r\n" + b"y" * 400_000 + b"\r\n")
        (file,) = (tmp_path / "bodies").iterdir()
        os.truncate(file, file.stat().st_size + octets)
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert row["answer"] == f"content: OSError: the file is {what} than it was"
        assert sink.messages == []


JOB = Job(
    delivery_id=1,
    message_id=1,
    claim="c",
    attempts=1,
    recipient="a@b",
    forward_to="c@d",
    next_hop=None,
    destination="d",
    mail_from="",
    received_at=0.0,
    due_at=0.0,
    expires_at=1000.0,
    stored_size=1,
    data=b"x",
    file=None,
    cut=(),
    ip="::1",
    helo="h",
    tls=None,
    esmtp=True,
    visit=None,
    source=None,
    joined=False,
)


@pytest.mark.parametrize(
    ("kind", "now", "state", "repeated"),
    [
        (OutcomeKind.DELIVERED, 10.0, DeliveryState.FORWARDED, False),
        (OutcomeKind.PERMANENT, 10.0, DeliveryState.FAILED, False),
        (OutcomeKind.TEMPORARY, 10.0, DeliveryState.DEFERRED, False),
        (OutcomeKind.AMBIGUOUS, 10.0, DeliveryState.DEFERRED, True),
        (OutcomeKind.TEMPORARY, 950.0, DeliveryState.FAILED, False),
        (OutcomeKind.AMBIGUOUS, 950.0, DeliveryState.FAILED, True),
    ],
)
def test_an_outcome_settles_what_becomes_of_the_delivery(
    kind: OutcomeKind, now: float, state: DeliveryState, repeated: bool
) -> None:
    end = settle(JOB, Outcome(kind, 250, "text", "host"), 5.0, now, 0.0, JOB.expires_at)
    assert (end.state, end.possibly_repeated, end.started_at, end.finished_at) == (state, repeated, 5.0, now)
    if state is DeliveryState.DEFERRED:
        assert end.next_at == now + 60
