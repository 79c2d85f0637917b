"""Sites and webhooks in Chromium: from an empty instance to a letter that was posted, seen in the log and replayed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.script_site import html, serving
from tests.browser.ui_browser import complaints_of, daemon_pages, daemon_url, looked_at, pictured, violations
from tests.daemon import Daemon
from tests.ports import dead_port
from tests.smtp_sink import SmtpSink
from tests.webhook_receiver import Receiver, deal

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SALES = "sales@example.test"
LETTER = b"From: Ann <ann@customer.test>\r\nSubject: Windows for a school\r\n\r\nHow much?\r\n"


async def test_from_nothing_to_a_letter_that_is_posted_and_replayed(browser: Browser, tmp_path: Path) -> None:
    port = dead_port()  # the tag names it
    async with SmtpSink() as sink, Receiver(deal("D-17", "https://crm.test/17")) as crm, serving() as website:
        settings = {
            "http": {"listen": [f"127.0.0.1:{port}"], "public_url": f"http://127.0.0.1:{port}"},
            "forward": {"next_hop": f"smtp://{sink.address}"},
            "webhooks": {"allow_private_addresses": True},
        }
        async with daemon_pages(tmp_path, browser, settings) as (daemon, page):
            url = daemon_url(daemon)
            await page.clock.install()
            await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
            tag = await make_site(page, url, website.url)
            website.pages["/"] = html(f"<p id=mail>{SALES}</p>", tag)
            async with await browser.new_context() as visitor, await visitor.new_page() as reader:
                await reader.goto(f"{website.url}/?utm_source=fair")
                await reader.wait_for_function("window.mailtrack && mailtrack.visit")
                await page.clock.fast_forward(2000)  # when the page asks again
                await expect(page.locator("#seen")).to_contain_text(f", on {website.url}/")
                await pictured(page, "site")
                await change_site(page, url)
                await without_script(browser, page, url)
                await make_webhook(page, url, crm)
                await reader.goto(f"{website.url}/?utm_source=fair")
                await expect(reader.locator("#mail")).to_have_text("sales1@track.test")
            await follow_letter(page, url, daemon, crm)


async def make_site(page: Page, url: str, origin: str) -> str:
    """A site in the browser; the tag that its page gives."""
    await page.goto(f"{url}/ui/sites")
    await page.get_by_role("button", name="Make the first one").click()
    await page.get_by_label("Name", exact=True).fill("my site")
    await page.get_by_label("Where its pages are").fill(origin)
    await page.get_by_label("Real address").fill(SALES)
    await page.get_by_label("Domain of the substitutes").fill("track.test")
    await page.get_by_label("How many addresses").fill("5")
    await page.get_by_role("button", name="Make the site").click()
    name = page.get_by_label("Name", exact=True)
    await expect(name).to_have_attribute("aria-invalid", "true")
    await expect(page.locator("#wrong-name")).to_contain_text("must be 1 to 64 letters")
    await expect(page.get_by_label("Real address")).to_have_value(SALES)
    assert await violations(page) == []
    complaints_of(page).clear()  # that the answer was 400
    await name.fill("my-site")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{url}/ui/sites/my-site?done=site_made")
    await expect(page.locator("#seen")).to_contain_text("Not seen yet")
    copy = page.locator("button[data-copy]")
    await copy.click()
    await expect(copy).to_have_text("Copied")
    tag: str = await page.evaluate("navigator.clipboard.readText()")
    assert tag == f'<script async src="{url}/mailtrack.js?site={tag.partition("site=")[2][:19]}"></script>'
    return tag


async def change_site(page: Page, url: str) -> None:
    """Switches by keyboard, a static address, an address more on the pages, a setting."""
    switch = page.get_by_role("switch", name="Track e-mails")
    await switch.focus()
    for state in ("false", "true"):
        await page.keyboard.press("Space")
        await expect(switch).to_have_attribute("aria-checked", state)
        await switch.focus()
    await page.get_by_text("Add a static address").click()
    await page.locator("#statics").get_by_label("Address", exact=True).fill("card@track.test")
    await page.locator("#statics").get_by_label("Label", exact=True).fill("business card")
    await page.get_by_role("button", name="Add", exact=True).click()
    await expect(page.locator("#statics table")).to_contain_text("card@track.test")

    await page.get_by_role("button", name="Add an address").click()
    await page.get_by_label("Real address").fill("help@example.test")
    await page.get_by_label("Plus").check()
    await expect(page.get_by_label("Lease")).to_be_hidden()
    await page.get_by_label("Domain of the substitutes").fill("track.test")
    await page.get_by_role("button", name="Add the address").click()
    await page.get_by_role("link", name="help@example.test").click()
    await page.goto(f"{url}/ui/sites/my-site/targets/{SALES}")
    await page.get_by_label("Make so many more").fill("2")
    await page.get_by_role("button", name="Add to the pool").click()
    await expect(page.get_by_role("heading", name="Pool of 7 addresses")).to_be_visible()

    await page.goto(f"{url}/ui/sites/my-site/sources")
    await page.get_by_label("Has the parameter").fill("ref")
    await page.get_by_label("Then it came from").fill("partner_spring")
    await page.get_by_role("button", name="Add").click()
    await page.goto(f"{url}/ui/sites/my-site/settings")
    await page.get_by_label("Browsers steered by programs").select_option("lease")
    await page.get_by_role("button", name="Save").click()
    await expect(page).to_have_url(f"{url}/ui/sites/my-site?done=site_changed")


async def without_script(browser: Browser, page: Page, url: str) -> None:
    """The tag can be read and the switches turned where no script runs."""
    cookies = await page.context.cookies()
    async with await browser.new_context(java_script_enabled=False) as context, await context.new_page() as plain:
        await context.add_cookies([{key: each[key] for key in ("name", "value", "domain", "path")} for each in cookies])
        await plain.goto(f"{url}/ui/sites/my-site")
        await expect(plain.locator("#tag")).to_contain_text("/mailtrack.js?site=pk_")
        await expect(plain.locator("button[data-copy]")).to_be_hidden()
        switch = plain.get_by_role("switch", name="Send to CRM")
        for state in ("false", "true"):
            await switch.click()
            await expect(switch).to_have_attribute("aria-checked", state)


async def make_webhook(page: Page, url: str, crm: Receiver) -> None:
    """A webhook in the browser, and its test."""
    await page.get_by_role("button", name="New webhook").click()
    await page.get_by_label("URL").fill(crm.url)
    await page.get_by_label("Further header fields").fill("X-Api-Key: k3y")
    await expect(page.get_by_label("The template", exact=True)).to_be_hidden()
    await page.get_by_role("button", name="Make the webhook").click()
    secret = await page.locator("#secret").inner_text()
    await page.get_by_role("button", name="To the webhook").click()
    await page.get_by_role("button", name="Send a test").click()
    await expect(page.locator("#trial")).to_contain_text("Test: it was taken")
    await expect(page.locator("#trial")).to_contain_text("the deal is D-17")
    (test,) = crm.posts
    test.verify(secret)
    assert test.headers["x-api-key"] == "k3y"


async def follow_letter(page: Page, url: str, daemon: Daemon, crm: Receiver) -> None:
    """A letter through the daemon: in the log by itself, its request, its replay; then a failure."""
    await asyncio.to_thread(daemon.send, "ann@customer.test", ["sales1@track.test"], LETTER)
    await crm.wait_for(2)
    assert crm.posts[1].json["utm_source"] == "fair"
    await daemon.logged("post", status=200)
    await page.clock.fast_forward(3000)
    row = page.locator("table.log tbody tr").first
    await expect(row).to_contain_text("Windows for a school")
    await expect(row).to_contain_text("delivered")
    await page.get_by_role("link", name="Windows for a school").click()
    chosen = page.locator("#post")
    await expect(chosen).to_contain_text('"utm_source": "fair"')
    await expect(chosen).to_contain_text(crm.posts[1].headers["webhook-id"])
    await expect(chosen).not_to_contain_text("k3y")
    await looked_at(page, "webhook")
    crm.script = 503
    await chosen.get_by_role("button", name="Replay").click()
    await expect(page.get_by_role("status")).to_have_text("One post is sent again.")
    await crm.wait_for(3)
    assert crm.posts[2].headers["webhook-id"] == crm.posts[1].headers["webhook-id"]
    await daemon.logged("post", status=503)
    await page.goto(f"{url}/ui/webhooks")
    await expect(page.locator("table.hooks")).to_contain_text(crm.url)
    await pictured(page, "webhooks")
    await page.goto(f"{url}/ui/sites")
    await expect(page.locator("table.sites")).to_contain_text("my-site")
