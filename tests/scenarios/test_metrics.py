"""The metrics of the real daemon: each documented one exists, each existing one is documented, and they count."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio

from tests.exposition import Metric, documented, parse
from tests.scenarios.world import DOMAIN, World, unique_letter, world
from tests.smtp_client import SmtpClient

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

BASE = f"plus@{DOMAIN}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("metrics")) as made:
        yield made


async def scraped(relay: World) -> dict[str, Metric]:
    async with relay.http.get(f"{relay.daemon.url}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return parse(await response.text())


async def test_what_is_documented_is_there_and_what_is_there_is_documented(relay: World) -> None:
    await relay.bind("pool@example.test")
    await relay.answer(b"\0\r\n", BASE)
    found, known = await scraped(relay), documented()
    assert set(found) == set(known)
    for name, metric in found.items():
        kind, labels = known[name]
        assert metric.kind == kind, name
        assert metric.samples, name
        assert metric.labels == labels, name


async def test_a_letter_shows_in_every_stage(relay: World) -> None:
    address = await relay.shown("sales@example.test")
    before = await scraped(relay)

    def more(found: dict[str, Metric], name: str, **labels: str) -> float:
        return found[name].value(**labels) - before[name].value(**labels)

    message = await relay.mail(address, unique_letter())
    await relay.forwarded(message)
    await relay.posted(message)
    async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
        await client.command("MAIL FROM:<ann@customer.test>")
        assert (await client.command(f"RCPT TO:<nobody@{DOMAIN}>")).code == 550
    found = await scraped(relay)
    for name, labels in (
        ("relay_smtp_messages_total", {"reply": "2xx"}),
        ("relay_accept_seconds", {}),
        ("relay_forward_attempts_total", {"outcome": "delivered"}),
        ("relay_forward_attempt_seconds", {}),
        ("relay_forward_delay_seconds", {}),
        ("relay_webhook_attempts_total", {"state": "delivered"}),
        ("relay_webhook_attempt_seconds", {}),
        ("relay_webhook_delay_seconds", {}),
    ):
        assert more(found, name, **labels) == 1, name
    assert found["relay_smtp_refusals_total"].value(command="RCPT", code="550") == 1
    assert more(found, "relay_store_commit_seconds") >= 3
    assert found["relay_deliveries"].value(state="queued") == 0
    assert found["relay_posts_oldest_age_seconds"].value(site="example", webhook="1") == 0
    assert found["relay_webhook_enabled"].value(site="example", webhook="1") == 1


async def test_what_waits_has_an_age(relay: World) -> None:
    relay.sink.script = {"rcpt": ["450 4.2.1 later"]}
    await relay.forwarded(await relay.mail(BASE, unique_letter()), "deferred")
    found = await scraped(relay)
    assert found["relay_deliveries"].value(state="deferred") == 1
    assert found["relay_deliveries_oldest_age_seconds"].value(state="deferred") > 0
    assert found["relay_forward_attempts_total"].value(outcome="temporary") == 1


async def test_the_process_says_what_the_system_says(relay: World) -> None:
    found, pid = await scraped(relay), relay.daemon.pid
    proc = Path(f"/proc/{pid}")
    resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert found["process_resident_memory_bytes"].value() == pytest.approx(resident, rel=0.2)
    assert found["process_open_fds"].value() == pytest.approx(len(list((proc / "fd").iterdir())), abs=3)
    assert found["process_cpu_seconds_total"].value() > 0
    space = os.statvfs(relay.daemon.data_dir)
    assert found["relay_disk_size_bytes"].value() == space.f_blocks * space.f_frsize
    (ready,) = (entry for entry in relay.daemon.log if entry["event"] == "ready")
    until = datetime.fromisoformat(ready["timestamp"]).timestamp()
    began = relay.daemon.config.stat().st_mtime  # written just before; /proc has no file that is as old as the process
    assert began - 1 < found["process_start_time_seconds"].value() < until


async def test_no_label_is_an_address_and_strangers_make_no_series(relay: World) -> None:
    before = await scraped(relay)
    for number in range(5):
        async with relay.http.get(f"{relay.daemon.url}/made-up-{number}/path") as response:
            assert response.status == 404
        async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
            await client.command(f"XNOTHING{number} x")
    after = await scraped(relay)
    values = {value for metric in after.values() for _, labels in metric.samples for _, value in labels}
    assert not [value for value in values if "@" in value or "made-up" in value or "NOTHING" in value]
    new = sum(len(after[name].samples) - len(before[name].samples) for name in after)
    assert new <= 3  # "other" 4xx, refusals of "other", sessions closed by their client
