"""Sources in Chromium: visits from several sources write by SMTP, and somebody looks at what each brought."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.ui_browser import daemon_url, looked_at, signed_in
from tests.scenarios.world import DOMAIN, ORIGIN, World, site, target, unique_letter, world
from tests.webhook_receiver import deal

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SHOP = site(
    target("sales@example.test", "unique"),
    target("plus@example.test", "plus"),
    target("pool@example.test", "pool", pool=[f"pool1@{DOMAIN}"], lease="1s"),
    static=[{"address": f"card@{DOMAIN}", "target": "sales@example.test", "label": "business card"}],
)
#: Page views by the query of their page, and how many of them write.
VISITS = {
    "utm_source=google&utm_medium=cpc&utm_campaign=spring": (5, 3),
    "utm_source=google&utm_medium=organic": (3, 1),
    "rs=fb_new": (4, 2),
    "utm_source=newsletter&utm_campaign=november": (2, 1),
    "": (6, 1),
}


async def fill(relay: World) -> None:
    messages = []
    for query, (seen, written) in VISITS.items():
        for number in range(seen):
            page = f"{ORIGIN}/offers/{number % 2}?{query}"
            address = await relay.shown("sales@example.test", page=page)
            if number < written:
                messages.append(await relay.mail(address, unique_letter(sender=f"{query[-9:]}{number}@customer.test")))
    pooled = await relay.shown("pool@example.test", page=f"{ORIGIN}/?rs=fb_0")

    async def shared() -> dict[str, str]:
        """Who comes next has the only address of the pool as soon as its lease has ended."""
        return (await relay.bind("pool@example.test", page=f"{ORIGIN}/?rs=vk_1", visit="77"))["addresses"]  # type: ignore[no-any-return]

    await relay.until(shared, bool)
    messages.append(await relay.mail(pooled, unique_letter(sender="pool@customer.test")))
    messages.append(await relay.mail(f"card@{DOMAIN}", unique_letter(sender="card@customer.test")))
    messages.append(await relay.mail(f"plus+4711@{DOMAIN}", unique_letter(sender="claimed@customer.test")))
    for message in messages:
        await relay.forwarded(message)

    async def unposted() -> int:
        return (await relay.row("SELECT count(*) FROM events WHERE state = 'waiting'"))[0]  # type: ignore[no-any-return]

    async def deals() -> int:
        return (await relay.row("SELECT count(*) FROM events WHERE deal_id IS NOT NULL"))[0]  # type: ignore[no-any-return]

    await relay.until(unposted, lambda count: count == 0)
    await relay.until(deals, lambda count: count >= 5)


async def test_what_each_source_brought(browser: Browser, tmp_path: Path) -> None:
    settings = {"http": {"public_url": "http://127.0.0.1"}}
    async with (
        world(tmp_path, settings, sites=(SHOP,), crm=deal("D-17", "https://crm.example.test/17")) as relay,
        signed_in(browser, relay.daemon, "anna", "viewer", accept_downloads=True) as page,
    ):
        url = f"{daemon_url(relay.daemon)}/ui/sources"
        await page.goto(url)
        await expect(page.get_by_role("heading", name="Nothing came in this period")).to_be_visible()

        await fill(relay)
        await page.get_by_role("link", name="Sources").first.click()
        rows = page.locator("table.ranked tbody tr")
        google = rows.filter(has_text="google")
        await expect(google.locator("td").nth(0)).to_have_text("8")
        await expect(google.locator("td").nth(1)).to_have_text("4")
        await expect(google.locator("td").nth(3)).to_have_text("50 %")
        await expect(rows.filter(has_text="business card").locator("td").nth(1)).to_have_text("1")
        await expect(rows.filter(has_text="Unknown").locator("td").nth(1)).to_have_text("1")
        await expect(rows.filter(has_text="fb").locator("td.likely").first).not_to_have_text("–")
        await expect(page.get_by_role("img", name="Enquiries by day")).to_be_visible()
        await expect(page.locator("nav.tiles strong").nth(1)).to_have_text("10")
        await expect(page.locator("nav.tiles > a").nth(1)).to_contain_text("beside them 1 only likely")
        await looked_at(page, "sources")

        await page.get_by_label("Period").select_option("Last 7 days")  # sent by itself
        await page.wait_for_url("**period=7d**")
        await google.get_by_role("link", name="google", exact=True).click()
        await expect(rows).to_have_count(2)
        await expect(page.locator(".chip")).to_contain_text("Source: google")
        await page.get_by_role("link", name="Campaigns").click()
        await expect(rows.filter(has_text="spring").locator("td").nth(1)).to_have_text("3")

        async with page.expect_download() as download:
            await page.get_by_role("link", name="CSV", exact=True).click()
        file = await (await download.value).path()
        lines = {line["campaign"]: line for line in csv.DictReader(file.read_text("utf-8-sig").splitlines())}
        assert (lines["spring"]["visits"], lines["spring"]["enquiries"]) == ("5", "3")

        await page.locator(".chip").press("Enter")
        await (
            page.get_by_role("navigation", name="What the plot shows").get_by_role("link", name="Visits").press("Enter")
        )
        await expect(page.get_by_role("img", name="Visits by day")).to_be_visible()
        await page.get_by_text("As a table").press("Enter")
        await expect(page.get_by_role("region", name="Figures by day")).to_be_visible()
        await page.get_by_label("Period").select_option("Between two days")
        await page.get_by_label("From", exact=True).fill("2020-01-02")
        await page.get_by_label("Until").fill("2020-01-01")
        await page.get_by_role("button", name="Show", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("behind the last one")
