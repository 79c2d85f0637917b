"""Which way mail goes where targets have next hops of their own, and where it goes once they have got others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, update

from relay.core.backoff import JITTER, MAIL_DELAYS
from relay.core.model import Method
from relay.secrets import Keys
from relay.store import queue, queue_by_hand
from relay.store.engine import Statement
from relay.store.schema import deliveries
from relay.store.sites import SiteDefinition, declare_all
from tests.certificates import Certificate
from tests.parts import DOMAIN, MAIL, SITE, running_parts
from tests.smtp_client import SmtpClient
from tests.smtp_sink import SmtpSink
from tests.store_fixtures import fresh_keys, target_of

_RENAME = Statement(update(deliveries).values(destination=bindparam("name")))
#: Past the first back-off, of a delivery as of a destination.
LATER = MAIL_DELAYS[0] * (1 + JITTER) + 1


def by(**next_hops: str) -> SiteDefinition:
    """A site with a target NAME@example.com for each of these sealed next hops."""
    targets = (target_of(Method.PLUS, f"{name}@example.com", DOMAIN, next_hop=hop) for name, hop in next_hops.items())
    return replace(SITE, targets=tuple(targets), statics=())


#: What does not get in at a next hop, and what does at the same one, for "info:secret".
WAYS = {
    "password": ("smtp://info:wrong@", "smtp://info:secret@"),
    "user": ("smtp://nobody:wrong@", "smtp://info:secret@"),
    "certificate": ("smtp+starttls://info:secret@", "smtp://info:secret@"),
}


@pytest.mark.parametrize(("bad", "good"), WAYS.values(), ids=list(WAYS))
async def test_a_target_that_is_not_let_in_stops_no_mail_of_another_to_the_same_host(
    bad: str, good: str, tmp_path: Path
) -> None:
    keys = fresh_keys(tmp_path / "keys")
    certificate = Certificate.make(tmp_path, "127.0.0.1")  # of an authority that nobody knows
    async with SmtpSink(logins={"info": "secret"}, tls=certificate) as sink:
        hops = {f"{name}@example.com": keys.seal(way + sink.address) for name, way in (("bad", bad), ("good", good))}
        targets = tuple(target_of(Method.PLUS, address, DOMAIN, next_hop=hop) for address, hop in hops.items())
        async with running_parts(tmp_path, None, sites=(replace(SITE, targets=targets),)) as parts:
            await parts.send(f"bad@{DOMAIN}")
            (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
            assert row["answer"].startswith(("AUTH: 535", "TLS: "))
            assert not parts.forwarder.takes(row["destination"], len(MAIL))
            await parts.send(f"good@{DOMAIN}")
            _, row = await parts.until(lambda rows: rows[-1]["attempts"] == 1 and rows[-1]["claim"] is None)
            assert (row["state"], row["forward_to"]) == ("forwarded", "good@example.com")


async def test_a_next_hop_that_is_redefined_takes_what_waits_along_at_once(tmp_path: Path) -> None:
    keys = fresh_keys(tmp_path / "keys")
    async with SmtpSink(logins={"info": "secret"}) as sink:
        wrong, right = (
            by(sales=keys.seal(f"smtp://info:{password}@{sink.address}")) for password in ("wrong", "secret")
        )
        async with running_parts(tmp_path, None, sites=(wrong,)) as parts:
            await parts.send()
            (waits,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
            await parts.store.redefine(lambda tx: declare_all(tx, [right], parts.clock()))
            parts.forwarder.wake()
            (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
            assert row["destination"] != waits["destination"]


async def test_what_was_held_goes_the_way_that_its_target_has_when_it_is_retried(tmp_path: Path) -> None:
    keys = fresh_keys(tmp_path / "keys")
    async with SmtpSink() as gone:
        nobody = keys.seal(f"smtp://{gone.address}")
    async with SmtpSink() as sink, running_parts(tmp_path, None, sites=(by(sales=nobody, info=nobody),)) as parts:
        await parts.send()
        await parts.until(lambda rows: rows[0]["state"] == "deferred")
        await parts.send(f"info@{DOMAIN}")  # never tried: it would go first where the held one would have gone
        await parts.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'failed' WHERE id = 1"))
        mended = by(sales=keys.seal(f"smtp://{sink.address}"), info=nobody)
        await parts.store.redefine(lambda tx: declare_all(tx, [mended], parts.clock()))
        parts.forwarder.wake()
        await parts.until(lambda _: parts.forwarder._defined is parts.store.sites.by_id)
        now = parts.clock()
        await parts.store.write(lambda tx: queue_by_hand.retry(tx, [1], now, now + 60))
        parts.forwarder.retry_now()
        await sink.wait_for_messages(1)


async def test_a_retry_is_taken_while_others_are_held_by_what_the_last_try_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, may_end = asyncio.Event(), asyncio.Event()

    async def slow(*_: Any) -> None:
        holding.set()
        await may_end.wait()

    keys = fresh_keys(tmp_path / "keys")
    async with SmtpSink() as gone:
        nobody = by(sales=keys.seal(f"smtp://{gone.address}"))
    async with SmtpSink() as sink, running_parts(tmp_path, None, sites=(nobody,)) as parts:
        monkeypatch.setattr(parts.forwarder, "_hold_expired", slow)
        await parts.send()
        await parts.until(lambda rows: rows[0]["state"] == "deferred")
        parts.clock.ahead = LATER
        parts.forwarder.wake()
        await holding.wait()
        mended = by(sales=keys.seal(f"smtp://{sink.address}"))
        await parts.store.redefine(lambda tx: declare_all(tx, [mended], parts.clock()))
        parts.forwarder.wake()
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        assert (row["attempts"], row["possibly_repeated"]) == (3, 0)
        may_end.set()
        await parts.until(lambda _: not parts.forwarder._flights)


async def test_a_letter_goes_the_way_that_its_target_has_at_the_dot(tmp_path: Path) -> None:
    keys = fresh_keys(tmp_path / "keys")
    async with SmtpSink() as gone:
        nobody = by(sales=keys.seal(f"smtp://{gone.address}"))
    async with SmtpSink() as sink, running_parts(tmp_path, None, sites=(nobody,)) as parts:
        async with await SmtpClient.hello(parts.port) as client:
            assert (await client.start(f"<sales@{DOMAIN}>")).code == 354
            mended = by(sales=keys.seal(f"smtp://{sink.address}"))
            await parts.store.redefine(lambda tx: declare_all(tx, [mended], parts.clock()))
            await client.send(MAIL + b".\r\n")
            assert (await client.answer()).code == 250
        (row,) = await parts.until(lambda rows: rows[0]["state"] != "queued")
        assert (row["state"], row["destination"]) == ("forwarded", sink.address)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (None, "sealed with a key that is not in data_dir/keys, or altered"),
        ("lmtp://mail.example.com", "the next hop must start with smtp://, smtps:// or smtp+starttls://"),
    ],
    ids=["keys lost", "no longer taken"],
)
async def test_mail_for_a_next_hop_that_cannot_be_read_is_taken_and_waits_until_it_is_redefined(
    tmp_path: Path, url: str | None, why: str
) -> None:
    keys, lost = fresh_keys(tmp_path / "keys"), Keys.load(tmp_path / "lost")

    async with SmtpSink() as sink:
        unreadable = by(sales=lost.seal(f"smtp://{sink.address}") if url is None else keys.seal(url))
        async with running_parts(tmp_path, None, sites=(unreadable,)) as parts:
            assert (await parts.send()).startswith("250 ")
            (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
            assert row["answer"] == f"not sent: {why}"
            parts.forwarder._defined = None
            await parts.forwarder._move()  # raises nothing, which would keep all the others waiting
            mended = by(sales=keys.seal(f"smtp://{sink.address}"))
            await parts.store.redefine(lambda tx: declare_all(tx, [mended], parts.clock()))
            parts.forwarder.wake()
            await sink.wait_for_messages(1)


async def test_what_was_named_otherwise_by_an_older_version_goes_the_way_of_its_target(tmp_path: Path) -> None:
    keys = fresh_keys(tmp_path / "keys")
    async with SmtpSink(logins={"info": "secret"}) as sink:
        shop = by(sales=keys.seal(f"smtp://info:secret@{sink.address}"))
        async with running_parts(tmp_path, None, sites=(shop,), start_forwarding=False) as parts:
            parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
            await parts.send()
            await parts.store.write(lambda tx: tx.run(_RENAME, name=sink.address))
            del parts.forwarder.submit
            await parts.store.write(queue.void_claims)
            await parts.forwarder.start()
            (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
            assert row["destination"].startswith("smtp://info@")
