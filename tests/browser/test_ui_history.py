"""The History in Chromium: letters that come by SMTP appear by themselves, and are found again."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.ui_browser import daemon_url, looked_at, pictured, signed_in
from tests.scenarios.world import DOMAIN, letter, world
from tests.webhook_receiver import deal

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

GOOGLE = "https://www.example.test/?utm_source=google&utm_medium=cpc"


async def test_letters_appear_by_themselves_and_are_found_again(browser: Browser, tmp_path: Path) -> None:
    given = deal("D-17", "https://crm.example.test/17")
    settings = {"http": {"public_url": "http://127.0.0.1"}}
    async with (
        world(tmp_path, settings, crm=given) as relay,
        signed_in(browser, relay.daemon, "anna", accept_downloads=True) as page,
    ):
        await expect(page.get_by_role("heading", name="No mail yet")).to_be_visible()
        await expect(page.get_by_role("status")).to_have_text("New letters appear by themselves")

        bound = await relay.bind("sales@example.test", page=GOOGLE)
        address = bound["addresses"]["sales@example.test"]
        await relay.mail(address, letter("An oak table", "Is the table still to be had?\r\n"))
        rows = page.locator("#letters tr")
        row = rows.filter(has_text="An oak table")
        await expect(row).to_contain_text("forwarded")  # nobody has reloaded
        for said in ("ann@customer.test", address, bound["visit"], "google_cpc", "exact", "D-17"):
            await expect(row).to_contain_text(said)
        await expect(row.get_by_role("link", name="D-17")).to_have_attribute("href", "https://crm.example.test/17")

        await relay.mail(f"plus+4711@{DOMAIN}", letter("Re: a claimed number"))
        for number in range(2):
            pooled = await relay.shown("pool@example.test", page=f"{GOOGLE}&utm_campaign={number}")
        await relay.mail(pooled, letter("A pool address with <b>marks</b>", "A lamp\r\n"))
        await relay.mail(f"card@{DOMAIN}", letter("A list's letter", "Hello\r\n", "List-Id: <a.b.example>"))
        await expect(rows).to_have_count(4)
        await expect(rows.first).to_contain_text("not sent: automatic mail")
        await expect(page.locator("#figures dd").first).to_have_text("4")
        await expect(page.locator("[data-moving]")).to_have_count(0)
        await looked_at(page, "history")

        await page.locator("body").press("/")
        await page.keyboard.type("oak tab")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{daemon_url(relay.daemon)}/ui/history?q=oak+tab")
        await expect(rows).to_have_count(1)
        await page.get_by_role("link", name="Words: oak tab").click()
        await expect(rows).to_have_count(4)

        await page.get_by_text("More filters").click()
        await page.get_by_label("Deal").select_option("With a deal")
        await page.wait_for_url("**?deal=yes")
        await expect(page.get_by_label("Deal")).to_be_visible()
        await page.get_by_label("Source").fill("google")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**source=google**")
        await expect(row).to_have_count(1)
        await pictured(page, "history-filtered")
        async with page.expect_download() as download:
            await page.get_by_role("link", name="Export as CSV").click()
        file = await (await download.value).path()
        lines = list(csv.DictReader(file.read_text("utf-8-sig").splitlines()))
        assert len(lines) == await rows.count()
        assert lines[-1]["subject"] == "An oak table"

        await page.get_by_label("Period").select_option("Between two days")
        await page.get_by_label("From").fill("2020-01-01")
        await page.get_by_label("Until").fill("2020-01-02")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("heading", name="No letter passes these filters")).to_be_visible()
        await pictured(page, "history-nothing")
