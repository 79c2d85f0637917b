"""What each answer of a next hop, or of DNS, makes of a delivery, and that everything else goes on."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from relay.core.backoff import JITTER, MAIL_DELAYS
from relay.store import queue_by_hand
from relay.store.schema import attempts
from tests.certificates import Certificate
from tests.dns_server import DnsServer, Fault, Table
from tests.parts import MAIL, Parts, running_parts
from tests.smtp_sink import SmtpSink

#: Past the first back-off, of a delivery as of a destination.
LATER = MAIL_DELAYS[0] * (1 + JITTER) + 1


async def tried_again(parts: Parts) -> None:
    parts.clock.ahead += LATER
    parts.forwarder.wake()


def is_down(parts: Parts, destination: str) -> bool:
    """Whether new mail for it waits in the store."""
    return not parts.forwarder.takes(destination, 1)


ANSWERS: list[tuple[str, str, str, bool]] = [
    # where, the answer, the state it leads to, whether no other mail is sent there until the back-off is over
    ("connect", "421 4.3.2 busy", "deferred", True),
    ("connect", "554 5.7.1 go away", "deferred", True),
    ("ehlo", "451 4.3.0 later", "deferred", True),
    ("ehlo", "550 5.7.1 not you", "deferred", True),
    ("mail", "452 4.3.1 disk full", "deferred", False),
    ("mail", "550 5.7.1 bad sender", "deferred", False),
    ("rcpt", "450 4.2.0 greylisted", "deferred", False),
    ("rcpt", "550 5.1.1 no such user", "failed", False),
    ("data", "451 4.3.0 later", "deferred", False),
    ("data", "554 5.7.1 no", "deferred", False),
    ("dot", "451 4.7.1 try later", "deferred", False),
    ("dot", "554 5.7.1 looks like spam", "failed", False),
]


@pytest.mark.parametrize(("stage", "answer", "state", "down"), ANSWERS, ids=[f"{a[0]}-{a[1][:3]}" for a in ANSWERS])
async def test_every_refusal_has_its_state_is_recorded_and_makes_no_bounce(
    stage: str, answer: str, state: str, down: bool, tmp_path: Path
) -> None:
    async with SmtpSink(script={stage: [answer]}) as sink, running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send()
        (row,) = await parts.until(lambda rows: rows[0]["state"] != "queued")
        assert (row["state"], row["code"], row["possibly_repeated"]) == (state, int(answer[:3]), 0)
        assert row["answer"].endswith(answer)
        assert is_down(parts, sink.address) is down
        ((outcome, code, text),) = await parts.store.reader.all(
            select(attempts.c.outcome, attempts.c.code, attempts.c.answer)
        )
        assert (outcome, code, text) == (
            "permanent" if state == "failed" else "temporary",
            row["code"],
            row["answer"],
        )
        if state == "failed":
            assert parts.held.is_set()
            await tried_again(parts)
            assert await parts.forwarder._claim() > 0
        else:
            assert 0 < row["next_at"] - parts.clock() <= MAIL_DELAYS[0] * (1 + JITTER)
            await tried_again(parts)
            await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        # Whoever was the author gets nothing back: what comes to nothing is held and shown.
        assert [message.recipients for message in sink.accepted] == [["sales@example.com"]] * (state != "failed")
        assert [row["recipient"] for row in await parts.delivery_rows()] == ["sales@track.example.com"]


@pytest.mark.parametrize("answer", ["454 4.7.0 TLS not available", "501 5.5.4 syntax"])
async def test_refused_starttls_defers_only_where_tls_is_required(answer: str, tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "127.0.0.1")
    async with SmtpSink(script={"starttls": [answer, answer]}, tls=certificate) as sink:
        for scheme, state in (("smtp+starttls", "deferred"), ("smtp", "forwarded")):
            folder = tmp_path / scheme
            folder.mkdir()
            async with running_parts(folder, f"{scheme}://{sink.address}") as parts:
                await parts.send()
                (row,) = await parts.until(lambda rows: rows[0]["state"] != "queued")
                assert row["state"] == state
                assert is_down(parts, row["destination"]) is (state == "deferred")
                if state == "deferred":
                    assert row["answer"] == f"TLS: {answer}"
        (message,) = sink.accepted
        assert not message.tls


async def test_one_recipient_that_is_refused_leaves_the_others_their_mail(tmp_path: Path) -> None:
    script: dict[str, Any] = {"rcpt": lambda _, line: "550 5.1.1 no" if "<info@" in line else None}
    async with SmtpSink(script=script) as sink, running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send("sales@track.example.com", "p1@track.example.com", "card@track.example.com")
        rows = await parts.until(lambda rows: {row["state"] for row in rows} == {"forwarded", "failed"})
        assert {row["forward_to"]: row["state"] for row in rows} == {
            "sales@example.com": "forwarded",
            "info@example.com": "failed",
        }
        assert [message.recipients for message in sink.accepted] == [["sales@example.com"]]


async def test_a_refusal_for_now_is_repeated_at_growing_intervals_until_its_time_is_over(tmp_path: Path) -> None:
    retry_for = 4 * 3600.0
    async with (
        SmtpSink(script={"rcpt": "450 4.2.1 later"}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}", policy={"retry_for": retry_for}) as parts,
    ):
        await parts.send()
        for made in range(1, 20):
            (row,) = await parts.until(lambda rows, made=made: rows[0]["claim"] is None and rows[0]["attempts"] == made)
            if row["state"] != "deferred":
                break
            parts.clock.ahead += row["next_at"] - parts.clock() + 0.01
            parts.forwarder.wake()
        assert (row["state"], row["code"]) == ("failed", 450)
        times = [
            at for (at,) in await parts.store.reader.all(select(attempts.c.started_at).order_by(attempts.c.started_at))
        ]
        waits = [after - before for before, after in itertools.pairwise(times)]
        steps = [MAIL_DELAYS[min(n, len(MAIL_DELAYS) - 1)] for n in range(len(waits))]
        assert len(waits) >= len(MAIL_DELAYS)
        assert all(step <= wait < step * (1 + JITTER) + 5 for step, wait in zip(steps, waits, strict=True)), waits
        assert times[-1] - times[0] < retry_for
        assert sink.accepted == []


async def test_mail_for_a_destination_that_stays_dead_is_held_when_its_time_is_over_whether_it_was_tried_or_not(
    tmp_path: Path,
) -> None:
    async with SmtpSink() as gone:
        address = gone.address
    async with running_parts(tmp_path, f"smtp://{address}", policy={"retry_for": 3600.0}) as parts:
        await parts.send()
        await parts.until(lambda rows: rows[0]["state"] == "deferred")
        for number in range(5):
            await parts.send(mail=MAIL + b"%d\r\n" % number)
        parts.clock.ahead = 1800.0
        parts.forwarder.wake()
        await parts.until(lambda rows: sum(row["attempts"] for row in rows) == 2)
        await parts.send(mail=MAIL + b"late\r\n")
        parts.clock.ahead = 3700.0
        with capture_logs() as entries:
            parts.forwarder.wake()
            await parts.until(lambda rows: [row["state"] for row in rows].count("failed") == 6)
            rows = await parts.until(lambda _: not parts.forwarder._flights)
        told = [entry for entry in entries if entry["event"] == "delivery" and entry["state"] == "failed"]
        columns = ("id", "message_id", "forward_to", "host", "code", "answer", "attempts")
        names = ("id", "message", "to", "host", "code", "answer", "attempt")
        assert {tuple(entry[name] for name in names) for entry in told} == {
            tuple(row[column] for column in columns) for row in rows[:6]
        }
        assert [row["state"] for row in rows] == ["failed"] * 6 + ["queued"]
        assert sum(row["attempts"] for row in rows) == 3
        assert {row["answer"] for row in rows[:6]} == {"connect: Connection refused"}
        assert parts.held.is_set()
        async with SmtpSink(port=int(address.rpartition(":")[2])) as back:  # what is held is not lost
            now = parts.clock()
            await parts.store.write(lambda tx: queue_by_hand.retry(tx, [row["id"] for row in rows], now, now + 3600))
            parts.forwarder.retry_now()
            await back.wait_for_messages(7)


async def test_after_a_standstill_the_first_failure_gives_nothing_up_whose_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmtpSink() as gone:
        address = gone.address
    policy = {"retry_for": 3600.0}
    async with running_parts(tmp_path, f"smtp://{address}", policy=policy, start_forwarding=False) as parts:
        monkeypatch.setattr(parts.forwarder, "takes", lambda *_: False)
        for number in range(3):
            await parts.send(mail=MAIL + b"%d\r\n" % number)
        parts.clock.ahead = 86_400.0
        await parts.forwarder.start()
        await parts.until(lambda rows: all(row["attempts"] == 1 and row["claim"] is None for row in rows))
        assert [row["state"] for row in await parts.delivery_rows()] == ["deferred"] * 3
        await tried_again(parts)
        await parts.until(lambda rows: all(row["state"] == "failed" for row in rows))


SOUND: Table = {("example.com", "MX"): ["10 mx.example.com."], ("mx.example.com", "A"): ["127.0.0.1"]}
BROKEN: dict[str, tuple[Table, str]] = {
    "nxdomain": ({}, "does not exist (NXDOMAIN)"),
    "null-mx": ({("example.com", "MX"): ["0 ."]}, "null MX"),
    "servfail": ({("example.com", "MX"): Fault.SERVFAIL}, "SERVFAIL"),
    "refused": ({("example.com", "MX"): Fault.REFUSED}, "REFUSED"),
    "silent": ({("example.com", "MX"): Fault.SILENT}, "no answer in time"),
    "lame": ({("example.com", "MX"): Fault.LAME, ("example.com", "A"): ["127.0.0.1"]}, "refers to others"),
    "garbage": ({("example.com", "MX"): Fault.GARBAGE}, "MX of example.com"),
    "circle": ({**SOUND, ("mx.example.com", "A"): [], ("mx.example.com", "CNAME"): ["mx.example.com."]}, "mx.example"),
    "mx-servfail": ({**SOUND, ("mx.example.com", "A"): Fault.SERVFAIL}, "A of mx.example.com: SERVFAIL"),
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_whatever_dns_says_the_mail_waits_and_arrives_when_it_is_mended(fault: str, tmp_path: Path) -> None:
    # NXDOMAIN and null MX too: a typing error in a zone must not cost an enquiry.
    broken, reason = BROKEN[fault]
    async with (
        DnsServer({**broken, ("example.net", "A"): ["127.0.0.1"]}, ttl=0) as dns,
        SmtpSink() as sink,
        running_parts(
            tmp_path,
            None,
            nameservers=(dns.address,),
            dns_lifetime=1.0,
            mx_port=sink.port,
        ) as parts,
    ):
        await parts.send()
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert row["answer"].startswith("DNS: ")
        assert reason in row["answer"]
        assert is_down(parts, "example.com")
        assert not is_down(parts, "example.net")
        assert sink.sessions == 0
        for key in [key for key in dns.table if key[0] != "example.net"]:
            del dns.table[key]
        dns.table |= SOUND
        await tried_again(parts)
        await sink.wait_for_messages(1)


async def test_mail_is_accepted_while_dns_is_silent(tmp_path: Path) -> None:
    async with (
        DnsServer({("example.com", "MX"): Fault.SILENT}) as dns,
        running_parts(tmp_path, None, nameservers=(dns.address,), dns_lifetime=60.0, grace=0.0) as parts,
    ):
        for number in range(3):
            assert (await parts.send(mail=MAIL + b"%d\r\n" % number)).startswith("250")
        await parts.until(lambda rows: len(rows) == 3)
        assert {row["state"] for row in await parts.delivery_rows()} == {"queued"}
        assert {row["attempts"] for row in await parts.delivery_rows()} == {1}


@pytest.fixture
async def v6() -> AsyncIterator[SmtpSink]:
    async with SmtpSink(host="::1") as found:
        yield found


async def test_the_other_family_and_the_next_host_are_tried_when_an_address_is_dead(
    tmp_path: Path, v6: SmtpSink
) -> None:
    table: Table = {
        ("example.com", "MX"): Fault.TRUNCATED,
        ("example.com", "MX/tcp"): ["5 none.test.", "10 dead.test.", "20 alias.test."],
        ("none.test", "TXT"): ['"no address"'],
        ("dead.test", "A"): ["127.0.0.1"],
        ("alias.test", "CNAME"): ["both.test."],
        ("both.test", "A"): ["127.0.0.1"],
        ("both.test", "AAAA"): ["::1"],
    }
    async with (
        DnsServer(table, slowness=0.02) as dns,
        running_parts(tmp_path, None, nameservers=(dns.address,), mx_port=v6.port) as parts,
    ):
        await parts.send()
        await v6.wait_for_messages(1)
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        assert row["host"] == f"alias.test[::1]:{v6.port}"
        assert ("example.com", "MX", "tcp") in dns.queries
