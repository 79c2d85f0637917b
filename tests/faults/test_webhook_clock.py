"""The clock jumps a year while events wait, are under way and go on coming: nothing waits that long, nothing floods."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import Executable, select

from relay import app
from relay.config import parse
from relay.core.wire import stuff
from relay.pace import Pace
from relay.store.schema import post_attempts, posts
from relay.store.store import Store
from tests.daemon import BASE, merged, toml
from tests.parts import Clock
from tests.scenarios.world import DOMAIN, PUBLIC_URL, SECRET, SITE, letter
from tests.smtp_client import SmtpClient
from tests.smtp_sink import SmtpSink
from tests.webhook_receiver import Post, Receiver, Step, retry_after
from webapi.compose import Composer
from webapi.poster_frames import Settings
from webapi.request_process import RequestProcess
from webapi.stored_posts import StoredPosts
from webapi.webhooks import ATTEMPTS, Poster

pytestmark = pytest.mark.fault

YEAR = 365 * 86_400.0
#: Attempts that a webhook may have under way.
PER_WEBHOOK = 3
#: Seconds for anything that should happen soon, the first retry (5 s) included. Reached only when a test fails.
PATIENCE = 30.0
#: Fewer than make the poster leave a failing webhook alone for a while.
EVENTS = 9
#: Seconds between two looks of the loops under test, and of ours at what announces nothing.
OFTEN, LOOK = 0.1, 0.02
ATTACHMENT = (
    "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHello\r\n"
    '--b\r\nContent-Disposition: attachment; filename="offer.txt"\r\n\r\nan offer\r\n--b--\r\n'
)


@dataclass
class Relay:
    """The daemon in this process, its clock in our hand."""

    daemon: app.Daemon
    clock: Clock
    sent: int = 0

    async def mail(self, count: int = 1) -> None:
        """Send new letters, all with an attachment, and see each accepted."""
        async with await SmtpClient.hello(self.daemon.smtp.ports[0]) as client:
            for _ in range(count):
                self.sent += 1
                head, _, text = ATTACHMENT.partition("\r\n\r\n")
                content = letter(f"letter {self.sent}", text, head)
                assert (await client.mail(stuff(content) + b".\r\n", f"<plus+{self.sent}@{DOMAIN}>")).code == 250

    async def download(self, post: Post) -> bytes:
        """The attachment that a post links to."""
        (attachment,) = post.json["attachments"]
        link: str = attachment["url"].removeprefix(PUBLIC_URL)
        url = f"http://127.0.0.1:{self.daemon.http_ports[0]}{link}"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            assert response.status == 200, url
            return await response.read()


def _here(store: Store, settings: Settings, clock: Callable[[], float], pace: Pace) -> Poster:
    """The poster in this process, where its clock is in our hand, too."""
    composer = Composer(settings.keys, settings.public_url, settings.links_live_for)
    return Poster(StoredPosts(store), composer, RequestProcess(True, ATTEMPTS), clock=clock)


@contextlib.asynccontextmanager
async def running(
    directory: Path, crm: Receiver, clock: Clock, next_hop: SmtpSink | None = None
) -> AsyncIterator[Relay]:
    async with next_hop or SmtpSink() as next_hop:
        settings: dict[str, Any] = {
            "forward": {"next_hop": f"smtp://{next_hop.address}"},
            "webhooks": {"allow_private_addresses": True},
            "http": {"public_url": PUBLIC_URL},
            "site": [{"webhook": [{"url": crm.url, "secret": SECRET, "concurrency": PER_WEBHOOK}], **SITE}],
        }
        async with app.running(parse(toml(merged(BASE, settings)), directory), clock, _here) as daemon:
            yield Relay(daemon, clock)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops that look every 5 s do so at once; what they find is what is tested."""
    monkeypatch.setattr("relay.clockwatch.INTERVAL", OFTEN)
    monkeypatch.setattr("webapi.webhooks.POLL", OFTEN)


def ids(received: list[Post]) -> Counter[str]:
    """How often each event came."""
    return Counter(post.headers["webhook-id"] for post in received)


async def test_what_waits_for_a_retry_while_the_clock_goes_back_a_year_gets_it_in_time(tmp_path: Path) -> None:
    async with Receiver(503) as crm, running(tmp_path, crm, Clock()) as relay:
        await relay.mail(EVENTS)
        before = list(await crm.wait_for(EVENTS))
        await recorded(relay, EVENTS)
        crm.script = 200
        relay.clock.ahead = -YEAR
        await relay.mail(5)
        came = await crm.wait_for(2 * EVENTS + 5)
        await all_delivered(relay)
        assert sorted(ids(came).values()) == [1] * 5 + [2] * EVENTS
        assert crm.most_under_way <= PER_WEBHOOK
        assert [await relay.download(post) for post in (before[0], came[-1])] == [b"an offer", b"an offer"]


async def test_what_waits_for_an_hour_while_the_clock_leaps_a_year_ahead_is_posted_at_once_but_not_all_at_a_time(
    tmp_path: Path,
) -> None:
    async with Receiver(retry_after(503, "3600")) as crm, running(tmp_path, crm, Clock()) as relay:
        await relay.mail(EVENTS)
        await crm.wait_for(EVENTS)
        await recorded(relay, EVENTS)

        async def thinks(post: Post) -> Step:
            await asyncio.sleep(0.05)  # for others to come meanwhile, if they are let
            return 200

        crm.script, crm.most_under_way = thinks, 0
        relay.clock.ahead = YEAR
        await relay.mail(5)
        came = await crm.wait_for(2 * EVENTS + 5)
        await all_delivered(relay)
        assert sorted(ids(came).values()) == [1] * 5 + [2] * EVENTS
        assert 1 < crm.most_under_way <= PER_WEBHOOK
        newest = next(post for post in came if ids(came)[post.headers["webhook-id"]] == 1)
        assert await relay.download(newest) == b"an offer"


async def test_what_is_under_way_or_claimed_while_the_clock_leaps_a_year_ahead_is_posted_once(tmp_path: Path) -> None:
    """Its claim has run out by the clock, but it is in hand."""
    release = asyncio.Event()
    async with Receiver(holds(release)) as crm, running(tmp_path, crm, Clock()) as relay:
        await relay.mail(PER_WEBHOOK + 10)
        await crm.wait_for(PER_WEBHOOK)
        claimed = select(posts.c.id).where(posts.c.claim.is_not(None))
        await rows(relay, claimed, lambda found: len(found) == PER_WEBHOOK + 10)
        relay.clock.ahead = YEAR
        # Nothing announces that the poster has looked, and it need not have done anything: this is some ten looks.
        await asyncio.sleep(10 * OFTEN)
        release.set()
        await all_delivered(relay)
        came = ids(crm.posts)
        assert (len(came), max(came.values())) == (PER_WEBHOOK + 10, 1)
        assert crm.most_under_way <= PER_WEBHOOK


async def test_what_waits_for_a_wrong_year_is_posted_when_the_clock_was_corrected_over_a_restart(
    tmp_path: Path,
) -> None:
    clock = Clock(YEAR)
    async with Receiver(503) as crm:
        async with running(tmp_path, crm, clock) as relay:
            await relay.mail()
            await recorded(relay, 1)
        clock.ahead, crm.script = 0.0, 200
        async with running(tmp_path, crm, clock) as relay:
            await all_delivered(relay)


def holds(release: asyncio.Event) -> Callable[[Post], Awaitable[Step]]:
    async def held(post: Post) -> Step:
        await release.wait()
        return 200

    return held


async def all_delivered(relay: Relay) -> None:
    """Until nothing waits to be posted or is under way, and each was delivered."""
    states = select(posts.c.state, posts.c.claim).distinct()
    await rows(relay, states, lambda found: found == [("delivered", None)])


async def recorded(relay: Relay, attempts: int) -> None:
    await rows(relay, select(post_attempts.c.id), lambda found: len(found) >= attempts)


async def rows(
    relay: Relay, query: Executable, condition: Callable[[list[Any]], bool], patience: float = PATIENCE
) -> None:
    """Until the rows of a query are as they should be."""
    async with asyncio.timeout(patience):
        while not condition([tuple(row) for row in await relay.daemon.store.reader.all(query)]):
            await asyncio.sleep(LOOK)
