"""Queue and Checks in Chromium: mail that waits for a real next hop, until that is mended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.ui_browser import daemon_pages, daemon_url, looked_at, pictured
from tests.daemon import Daemon, example_site
from tests.dead_ends import SECRET
from tests.dns_server import DnsServer
from tests.smtp_sink import SmtpSink

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

CARD = {"address": "card@track.test", "target": "sales@example.test", "label": "business card"}
HOOK = {"url": "http://127.0.0.1:9/hook", "secret": SECRET}


@dataclass
class Scene:
    daemon: Daemon
    page: Page
    sink: SmtpSink
    url: str

    async def letter(self, subject: str, answer: str) -> None:
        """A letter from outside, to which the next hop gives this answer, once."""
        steps = self.sink.script.setdefault("rcpt", [])
        assert isinstance(steps, list)
        steps.append(answer)
        since = len(self.daemon.log)
        content = f"From: Ann <ann@example.org>\r\nSubject: {subject}\r\n\r\nHello\r\n".encode()
        await asyncio.to_thread(self.daemon.send, "ann@example.org", ["card@track.test"], content)
        await self.daemon.logged("delivery", since=since, answer=f"RCPT: {answer}")

    async def forwarded(self, count: int, since: int) -> None:
        """Until so many are recorded as forwarded in the log from there on: a page that is opened before shows them."""
        for _ in range(count):
            entry = await self.daemon.logged("delivery", since=since, state="forwarded")
            since = self.daemon.log.index(entry) + 1

    async def queue(self) -> None:
        await self.page.goto(f"{self.url}/ui/queue")

    def row(self, subject: str) -> Locator:
        return self.page.get_by_role("row").filter(has_text=subject)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scene(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    directory: Path = tmp_path_factory.mktemp("queue")
    async with SmtpSink() as sink, DnsServer({("track.test", "MX"): ["10 mx.track.test."]}) as dns:
        settings = {
            "forward": {"next_hop": f"smtp://{sink.address}"},
            "dns": {"nameservers": [dns.address], "timeout": "1s"},
            "site": [example_site(static=[CARD], webhook=[HOOK])],
            "webhooks": {"allow_private_addresses": True},
        }
        async with daemon_pages(directory, browser, settings) as (daemon, page):
            yield Scene(daemon, page, sink, daemon_url(daemon))


async def test_nothing_waits(scene: Scene) -> None:
    await scene.queue()
    await expect(scene.page.get_by_role("heading", name="Nothing waits")).to_be_visible()


async def test_mail_waits_says_why_and_arrives_when_the_next_hop_is_mended(scene: Scene) -> None:
    page = scene.page
    await scene.letter("Brass lamps", "450 4.7.1 Greylisted, come again")
    await scene.letter("Two doors", "550 5.1.1 moved away")
    await scene.letter("Sash windows", "550 5.7.1 relay access denied")
    await scene.letter("Spam", "450 4.2.1 not now")
    await scene.queue()
    waits, held = scene.row("Brass lamps"), scene.row("Two doors")
    await expect(waits).to_contain_text("(greylisting): this passes by itself")
    await expect(waits).to_contain_text("RCPT: 450 4.7.1 Greylisted, come again")
    await expect(held).to_contain_text("The mailbox does not exist there", ignore_case=True)
    await looked_at(page, "queue")

    # The next hop is well again: it takes what it is given from now on.
    since = len(scene.daemon.log)
    await waits.get_by_role("button", name="Retry").click()
    await expect(page.get_by_role("status")).to_contain_text("Tried again now")
    (arrived,) = await scene.sink.wait_for_messages(1)
    assert b"Subject: Brass lamps" in arrived.content
    await scene.forwarded(1, since)
    await scene.queue()
    await expect(scene.row("Brass lamps")).to_have_count(0)

    # By keyboard: all that is held is ticked at once, then tried again.
    held_part = page.get_by_role("region", name="Held deliveries")
    await held_part.get_by_role("checkbox", name="Select all of this page").press("Space")
    await expect(held_part.get_by_role("checkbox", checked=True)).to_have_count(3)
    await page.get_by_role("button", name="Retry selected").first.press("Enter")
    subjects = {
        message.content.partition(b"Subject: ")[2].partition(b"\r\n")[0]
        for message in await scene.sink.wait_for_messages(3)
    }
    assert subjects == {b"Brass lamps", b"Two doors", b"Sash windows"}
    await scene.forwarded(3, since)
    await scene.queue()
    await expect(page.get_by_role("heading", name="Held")).to_have_count(0)


async def test_a_drop_is_asked_about_and_done(scene: Scene) -> None:
    page = scene.page
    await scene.queue()
    await scene.row("Spam").get_by_role("button", name="Drop…").click()
    await expect(page.get_by_role("heading", name="Drop this delivery?")).to_be_visible()
    await pictured(page, "queue-drop")
    await page.locator("a", has_text="Keep it").click()
    await scene.row("Spam").get_by_role("button", name="Drop…").click()
    await page.get_by_role("button", name="Drop it").click()
    await expect(page.get_by_role("status")).to_contain_text("Dropped.")
    await expect(page.get_by_role("heading", name="Nothing waits")).to_be_visible()
    assert scene.daemon.query("SELECT state FROM messages WHERE subject = 'Spam'") == [("dropped",)]


async def test_checks_say_what_is_wrong_and_what_to_do(scene: Scene) -> None:
    page = scene.page
    scene.sink.script["rcpt"] = "554 5.7.1 relay access denied"
    await page.goto(f"{scene.url}/ui/checks")
    await expect(page.get_by_role("status")).to_contain_text("failed", timeout=20_000)
    hops = page.get_by_role("region", name="Next hops")
    await expect(hops).to_contain_text("554 5.7.1 relay access denied")
    await expect(hops).to_contain_text("What to do: it must take mail for this address from this host")
    await expect(page.get_by_role("region", name="Webhooks")).to_contain_text("see that the URL is right")
    disk = page.get_by_role("region", name="Disk")
    await expect(disk.locator("h2 .badge")).to_have_text("ok")
    order = await page.locator("section.check h2").all_inner_texts()
    assert order.index("Disk ok") > max(order.index("Next hops failed"), order.index("Webhooks failed"))
    await looked_at(page, "checks")

    scene.sink.script.clear()
    before = len(scene.sink.accepted)
    await hops.get_by_role("button", name="Test connection").click()
    await expect(hops.locator("h2 .badge")).to_have_text("ok", timeout=20_000)
    await expect(hops).to_contain_text("250 2.1.5 ok")
    assert len(scene.sink.accepted) == before  # no mail was sent


async def test_without_script_everything_works(scene: Scene, browser: Browser) -> None:
    await scene.letter("Oak stairs", "450 4.2.1 not now")
    cookies = await scene.page.context.cookies()
    async with await browser.new_context(java_script_enabled=False) as plain, await plain.new_page() as page:
        await plain.add_cookies(cookies)  # type: ignore[arg-type]
        await page.goto(f"{scene.url}/ui/queue")
        await page.get_by_role("row").filter(has_text="Oak stairs").get_by_role("checkbox").check()
        await page.get_by_role("button", name="Drop selected…").click()
        await page.get_by_role("button", name="Drop it").click()
        await expect(page.get_by_role("status")).to_contain_text("Dropped.")
        await page.goto(f"{scene.url}/ui/checks")
        await page.get_by_role("button", name=re.compile("Test again ?: Disk")).click()
        disk = page.get_by_role("region", name="Disk").locator("h2 .badge")
        await page.get_by_role("link", name="Checks").click()
        while await disk.inner_text() == "testing":
            await page.get_by_role("link", name="Checks").click()
        await expect(disk).to_have_text("ok")
