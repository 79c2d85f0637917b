"""Each figure has the value of what happened: one that is always 0 would pass where only its name is asked for."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from relay.core.metrics import text
from relay.loopwatch import LoopWatch
from relay.measures import Measures, process
from relay.smtp_limits import Limits, Settings
from tests.exposition import Metric, parse
from tests.parts import Parts, running_parts
from tests.smtp_client import SmtpClient
from tests.store_fixtures import DAY, TRACK
from tests.webapi_fixtures import Api, serving
from webapi import poster_frames
from webapi.breaker import Standing
from webapi.poster_process import PosterProcess

CARD = f"card@{TRACK}"
#: Seconds for anything that should happen soon. Reached only when a test fails.
PATIENCE = 30.0


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with running_parts(tmp_path, None, start_forwarding=False) as found:
        yield found


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


def measured(parts: Parts, loop: LoopWatch | None = None, floor: int = 0) -> dict[str, Metric]:
    """What the mail side tells."""
    settings = poster_frames.Settings(parts.keys, "https://relay.example/", DAY, True, ("error", "json"))
    poster = PosterProcess(parts.store, settings, time.time)
    made = Measures(parts.intake, parts.smtp, parts.forwarder, poster, loop or LoopWatch(), floor)
    return parse(text(made.families()))


async def scraped(api: Api) -> dict[str, Metric]:
    """What the web API and the store tell."""
    response, octets = await api.request("GET", "/metrics")
    assert response.status == 200
    return parse(octets.decode())


async def test_sessions_that_are_open_how_many_there_may_be_and_how_they_ended(parts: Parts) -> None:
    limits = replace(Limits(), connections=7)
    parts.smtp.configure(Settings("mx.track.example.com", limits=limits))
    async with await SmtpClient.hello(parts.port) as first, await SmtpClient.hello(parts.port):
        found = measured(parts)
        assert (found["relay_smtp_connections"].value(), found["relay_smtp_connections_max"].value()) == (2, 7)
        assert not found["relay_smtp_sessions_total"].samples
        assert (await first.command("QUIT")).code == 221
    async with asyncio.timeout(PATIENCE):
        while (found := measured(parts))["relay_smtp_connections"].value():
            await asyncio.sleep(0.005)
    ended = found["relay_smtp_sessions_total"]
    assert {labels: count for (_, labels), count in ended.samples.items()} == {
        (("end", "quit"),): 1,
        (("end", "closed by client"),): 1,
    }


async def test_the_disk_by_its_size_what_is_free_and_the_floor(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_bavail=3, f_blocks=9, f_frsize=4096))
    found = measured(parts, floor=5000)
    values = [found[f"relay_disk_{name}_bytes"].value() for name in ("free", "size", "floor")]
    assert values == [3 * 4096, 9 * 4096, 5000]


async def test_the_lag_of_the_event_loop(parts: Parts) -> None:
    loop = LoopWatch()
    for lag in (0.004, 0.3, 0.02):
        loop.note(lag, 1000.0, 0.0)
    found = measured(parts, loop)
    lags = found["relay_event_loop_lag_seconds"]
    assert (lags.value(), lags.above("0.01"), lags.above("0.25")) == (3, 2, 1)
    assert found["relay_event_loop_lag_max_seconds"].value() == 0.3


def test_how_many_descriptors_the_process_may_have() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert parse(text(process()))["process_max_fds"].value() == soft - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_messages_that_are_to_be_read_and_the_age_of_the_oldest(api: Api) -> None:
    ids = []
    for number in range(3):
        ids.append((await api.letter(CARD, number=number)).message_id)
        api.w.pass_time(10)
    for left, age in ((3, 30), (2, 20), (1, 10), (0, 0)):
        found = await scraped(api)
        assert found["relay_extractions_waiting"].value() == left
        assert found["relay_extractions_oldest_age_seconds"].value() == age
        if left:
            await api.w.extract(ids.pop(0))


async def test_http_answers_by_part_and_class(api: Api) -> None:
    await api.bind()
    await api.bind("nowhere")
    for path in ("/v1/sites", "/v1/messages", "/healthz", "/a/nonsense/x.pdf"):
        await api.request("GET", path)
    answers = (await scraped(api))["relay_http_answers_total"]
    assert {tuple(dict(labels).values()): count for (_, labels), count in answers.samples.items()} == {
        ("bind", "2xx"): 1,
        ("bind", "4xx"): 1,
        ("api", "4xx"): 2,
        ("other", "2xx"): 1,
        ("files", "4xx"): 1,
    }


async def test_the_failures_of_a_webhook_in_a_row_and_its_rest(tmp_path: Path) -> None:
    async with serving(tmp_path, standing=lambda _: Standing(12, 75.0)) as api:
        webhook = {"site": "shop", "webhook": str(api.w.site().webhooks[0].id)}
        found = await scraped(api)
        assert found["relay_webhook_consecutive_failures"].value(**webhook) == 12
        assert found["relay_webhook_rest_seconds"].value(**webhook) == 75


async def test_transactions_and_the_verbs_that_share_one(api: Api) -> None:
    write, before = api.w.store.write, await scraped(api)
    begun, gate = threading.Event(), threading.Event()

    def held(_: object) -> bool:
        begun.set()
        return gate.wait(PATIENCE)

    writes = [asyncio.create_task(write(held))]
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    writes += [asyncio.create_task(write(lambda _: True)) for _ in range(3)]
    await asyncio.sleep(0)  # all of them stand in line
    gate.set()
    assert all(await asyncio.gather(*writes))
    after = await scraped(api)

    def more(name: str) -> float:
        return after[name].value() - before[name].value()

    sizes = "relay_store_batch_verbs"
    assert [more(f"relay_store_{name}_total") for name in ("transactions", "verbs")] == [2, 4]
    assert (more(sizes), after[sizes].above("2") - before[sizes].above("2")) == (2, 1)


async def test_checkpoints(api: Api) -> None:
    name = "relay_store_checkpoint_seconds"
    before = (await scraped(api))[name].value()
    for _ in range(20):  # of 40 pages each, as is guessed before the first checkpoint; 500 are a reason for one
        await api.w.store.write(lambda _: None)
    assert (await scraped(api))[name].value() > before
