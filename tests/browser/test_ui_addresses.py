"""The addresses of a site in Chromium: page views lease them, mail comes to one, the pool grows by one click."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.ui_browser import complaints_of, daemon_pages, daemon_url, looked_at, pictured, signed_in, violations
from tests.daemon import Daemon, example_site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SALES = {
    "address": "sales@example.test",
    "domain": "track.test",
    "pool": [f"info{number}@track.test" for number in (1, 2, 3)],
}
HELP = {"address": "help@example.test", "domain": "track.test", "method": "plus"}
JOBS = {"address": "jobs@example.test", "domain": "track.test", "method": "unique"}
CARD = {"address": "card@track.test", "target": "sales@example.test", "label": "business card"}
#: At a provider's domain, where nothing can be made by us.
OFFICE = {"address": "office@firm.test", "pool": ["office1@firm.test"]}
SETTINGS = {
    "forward": {"next_hop": "smtp://127.0.0.1:9"},
    "site": [
        example_site(target=[SALES, HELP, JOBS], static=[CARD]),
        {"name": "firm", "key": "pk_firm", "origins": ["https://www.firm.test"], "target": [OFFICE]},
    ],
}


def bind(daemon: Daemon) -> tuple[str, str]:
    """(visit, address) of a new visitor's page view, by the API that the script uses."""
    body = {"site": "pk_example", "page": "https://www.example.test/", "addresses": ["sales@example.test"]}
    headers = {
        "Origin": "https://www.example.test",
        "Content-Type": "text/plain",
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    }
    request = urllib.request.Request(f"{daemon.url}/v1/bind", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)
    return found["visit"], found["addresses"]["sales@example.test"]


def attended(daemon: Daemon, site: str, per_day: int) -> None:
    """Three days behind us, busy by day and quiet by night."""
    now = time.time()
    with closing(sqlite3.connect(daemon.data_dir / "relay.db", timeout=30, isolation_level=None)) as database:
        ((site_id,),) = database.execute("SELECT id FROM sites WHERE name = ?", (site,)).fetchall()
        rows = []
        for index in range(3 * per_day):
            day = index / per_day
            began = now - 3600 - 86_400 * (day + 0.16 * math.sin(day * 2 * math.pi))
            rows.append((site_id, f"7{index:06}", began, began + index * 37 % 900))
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT INTO visits (site_id, number, own, started_at, last_seen_at) VALUES (?, ?, 0, ?, ?)", rows
        )
        database.execute("COMMIT")


def row(page: Page, address: str) -> Locator:
    return page.locator("table.addresses tbody tr").filter(has=page.get_by_text(address, exact=True)).first


async def no_sideways_scroll(page: Page) -> None:
    assert await page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


async def test_from_a_page_view_to_a_letter_and_a_larger_pool(browser: Browser, tmp_path: Path) -> None:
    async with daemon_pages(tmp_path, browser, SETTINGS) as (daemon, page):
        visit, address = await asyncio.to_thread(bind, daemon)
        letter = f"From: ann@customer.test\r\nTo: {address}\r\nSubject: An offer\r\n\r\nPlease.\r\n".encode()
        await asyncio.to_thread(daemon.send, "ann@customer.test", [address], letter)
        await asyncio.to_thread(attended, daemon, "example", 600)
        await asyncio.to_thread(attended, daemon, "firm", 300)

        await page.goto(f"{daemon_url(daemon)}/ui/history")
        await page.get_by_role("link", name="Addresses").click()
        held = row(page, address)
        await expect(held).to_contain_text("leased")
        await expect(held.get_by_role("link", name=visit)).to_have_attribute(
            "href", f"/ui/history?site=example&visit={visit}"
        )
        await expect(held).to_contain_text("exact")
        await expect(row(page, "info2@track.test")).to_contain_text("never used")
        await expect(row(page, "card@track.test")).to_contain_text("business card")
        await expect(page.locator("#verdict")).to_contain_text("Too few: 3 of the")
        await expect(page.get_by_role("img", name="Share of visits that find no free address")).to_be_visible()
        await looked_at(page, "addresses")

        await grown_by_keyboard(page)
        await retired_and_used_again(page)
        await everything_open(page)
        await created_at_a_provider(page, daemon)

        await page.goto(f"{daemon_url(daemon)}/ui/addresses?site=example&target=jobs@example.test")
        await expect(page.get_by_role("heading", name="Every visit gets an address of its own")).to_be_visible()
        await no_sideways_scroll(page)
        async with signed_in(browser, daemon, "vera", "viewer", ["firm"]) as theirs:
            await theirs.goto(f"{daemon_url(daemon)}/ui/addresses")
            await expect(theirs.get_by_role("heading", level=2).first).to_contain_text("office@firm.test")
            await expect(theirs.locator("main form[method=post]")).to_have_count(0)


async def grown_by_keyboard(page: Page) -> None:
    """One click; here the Enter key does it."""
    button = page.get_by_role("button", name="addresses at track.test")
    await button.focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_have_text("The pool has grown. The new addresses work at once.")
    await expect(page.locator("#verdict")).to_contain_text("Enough:")
    await expect(row(page, "sales1@track.test")).to_contain_text("never used")


async def retired_and_used_again(page: Page) -> None:
    await row(page, "sales2@track.test").locator("summary").press("Enter")
    await row(page, "sales2@track.test").get_by_role("button", name="Retire").click()
    await expect(page.get_by_role("status")).to_contain_text("Retired.")
    await page.get_by_role("link", name="Retired 1").click()
    await expect(page.locator("table.addresses tbody tr")).to_have_count(1)
    await row(page, "sales2@track.test").get_by_role("button", name="Use again").click()
    await expect(page.get_by_role("status")).to_have_text("Added to the pool.")
    await page.get_by_role("link", name="Show all").click()
    await expect(row(page, "sales2@track.test")).to_contain_text("never used")
    await page.get_by_role("searchbox").fill("SALES2@")
    await page.keyboard.press("Enter")
    await expect(page.locator("table.addresses tbody tr")).to_have_count(1)


async def everything_open(page: Page) -> None:
    """What is folded away is as readable as the rest."""
    await page.wait_for_load_state()  # all of it is there
    for summary in await page.locator("main .plots summary, main details.card > summary").all():
        await summary.click()
    await expect(page.get_by_text("links an address to a visit for 15 minutes")).to_be_visible()
    await pictured(page, "addresses-open")
    assert await violations(page) == []


async def created_at_a_provider(page: Page, daemon: Daemon) -> None:
    await page.get_by_label("Site").select_option("firm")
    await expect(page.get_by_role("heading", level=2).first).to_contain_text("office@firm.test")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.get_by_role("button", name="Copy the list").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied: str = await page.evaluate("() => navigator.clipboard.readText()")
    names = copied.split()
    assert names[:2] == ["office2@firm.test", "office3@firm.test"]
    await no_sideways_scroll(page)
    await page.get_by_label("Addresses, one a line").fill(f"{names[0]}\nnonsense")
    await page.get_by_role("button", name="I have created them").click()
    await expect(page.get_by_role("alert")).to_contain_text("Nothing was changed")
    assert complaints_of(page) == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
    complaints_of(page).clear()
    await expect(page.locator("#wrong-addresses")).to_contain_text("nonsense")
    await pictured(page, "addresses-provider")
    await page.get_by_label("Addresses, one a line").fill(copied)
    await page.get_by_role("button", name="I have created them").click()
    await expect(page.locator("#verdict")).to_contain_text("Enough:")
    assert len(daemon.query("SELECT 1 FROM routes WHERE domain = 'firm.test' AND kind = 'pool'")) == len(names) + 1
