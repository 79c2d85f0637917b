"""Stopping, starting again, a new certificate: what an operator does to a running one."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.ports import dead_port
from tests.scenarios.world import DOMAIN, World, letter, unique_letter, world
from tests.smtp_client import SmtpClient
from tests.smtp_sink import Slow, SmtpSink

pytestmark = pytest.mark.scenario

BASE = f"plus@{DOMAIN}"
LARGE = letter("large", "A line of text that is not so very long.\r\n" * 10_000)


async def test_mail_queued_for_a_dead_next_hop_survives_a_restart_and_arrives_once(tmp_path: Path) -> None:
    port = dead_port()
    async with world(tmp_path, {"forward": {"next_hop": f"smtp://127.0.0.1:{port}"}}) as relay:
        contents = [unique_letter(), LARGE]
        messages = [await relay.mail(await relay.shown("sales@example.test"), content) for content in contents]
        await relay.forwarded(messages[0], "deferred")
        assert len(await relay.crm.wait_for(2)) == 2  # a dead next hop does not hold up the CRM
        assert await asyncio.to_thread(relay.daemon.stop) == 0
        states = await relay.rows("SELECT DISTINCT state FROM deliveries")
        assert set(states) <= {("deferred",), ("queued",)}
        async with SmtpSink(port=port) as revived:
            relay.sink = revived
            await asyncio.to_thread(relay.daemon.start)
            await relay.retry_all()
            for content in contents:
                (received,) = await relay.arrived(content)
                assert received.recipients == ["sales@example.test"]
            for message in messages:
                await relay.forwarded(message)
            assert await relay.rows("SELECT possibly_repeated FROM deliveries") == [(0,), (0,)]
            assert len(relay.crm.posts) == 2


async def test_sigterm_lets_the_message_in_transit_end_and_the_attempt_under_way_be_recorded(tmp_path: Path) -> None:
    async with world(tmp_path, sink=SmtpSink(script={"dot": [Slow(1.0, "250 2.0.0 at last")]})) as relay:
        first, second = unique_letter(), unique_letter()
        await relay.mail(BASE, first)
        await relay.sink.wait(lambda sink: len(sink.messages) == 1)  # and it takes its time to answer
        async with (
            await SmtpClient.hello(relay.daemon.smtp_port) as sending,
            await SmtpClient.hello(relay.daemon.smtp_port) as idle,
        ):
            assert (await sending.start(f"<{BASE}>")).code == 354
            await sending.send(second[:20])
            relay.daemon.terminate()
            assert (await idle.answer()).short == "421 4.3.2"
            with pytest.raises(ConnectionRefusedError):
                await SmtpClient.connect(relay.daemon.smtp_port)
            await sending.send(second[20:] + b".\r\n")
            assert (await sending.answer()).short == "250 2.0.0"
        assert await asyncio.to_thread(relay.daemon.stop) == 0
        rows = await relay.rows("SELECT state, attempts, claim, possibly_repeated FROM deliveries ORDER BY id")
        assert rows[0] == ("forwarded", 1, None, 0)
        assert rows[1][2:] == (None, 0)
        await asyncio.to_thread(relay.daemon.start)
        assert len(await relay.arrived(first)) == 1
        assert len(await relay.arrived(second)) == 1


def serial(of: ssl.SSLObject | None) -> bytes:
    assert of is not None
    found = of.getpeercert(binary_form=True)
    assert found is not None
    return found


async def smtp_certificate(relay: World, context: ssl.SSLContext) -> bytes:
    async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
        await client.starttls(context, "mx.track.test")
        return serial(client.writer.get_extra_info("ssl_object"))


async def https_certificate(relay: World, context: ssl.SSLContext) -> bytes:
    _, writer = await asyncio.open_connection("127.0.0.1", relay.daemon.http_port, ssl=context)
    try:
        return serial(writer.get_extra_info("ssl_object"))
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_new_certificate_is_shown_without_a_restart_and_old_sessions_go_on(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.track.test")
    files = {"tls_cert": str(certificate.cert), "tls_key": str(certificate.key)}
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    async with world(tmp_path, {"smtp": files, "http": files}) as relay:
        before = await smtp_certificate(relay, anyone)
        assert await https_certificate(relay, anyone) == before
        async with await SmtpClient.hello(relay.daemon.smtp_port) as session:
            await session.starttls(anyone, "mx.track.test")
            Certificate.make(tmp_path, "mx.track.test")  # over the same files
            after = await relay.until(lambda: smtp_certificate(relay, anyone), lambda found: found != before)
            assert (await session.command("EHLO still.test")).code == 250
        assert await relay.until(lambda: https_certificate(relay, anyone), lambda found: found != before) == after
