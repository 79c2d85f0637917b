"""Settings in Chromium: from the link that the daemon prints to people, tokens and the log of what they did."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.ui_browser import COMPLAINTS, PASSWORD, WIDE, complaints_of, daemon_url, pictured
from tests.daemon import PATIENCE, Daemon, example_site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SITES = {"site": [example_site(), {"name": "orchard", "key": "pk_orchard", "origins": ["https://www.orchard.test"]}]}


async def open_page(browser: Browser) -> Page:
    """A page of a browser of its own, whose complaints are kept."""
    context = await browser.new_context(viewport=WIDE, permissions=["clipboard-read", "clipboard-write"])
    page = await context.new_page()
    complaints = COMPLAINTS[id(page)] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


async def choose_password(page: Page, daemon: Daemon, link: str, name: str = "") -> None:
    await page.goto(f"{daemon_url(daemon)}/ui/welcome/{link.rpartition('/')[2]}")
    if name:
        await page.get_by_label("Name").fill(name)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_label("Once more").fill(PASSWORD)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url("**/ui/history")


async def tab(page: Page, name: str) -> None:
    await page.get_by_role("navigation", name="Settings").get_by_role("link", name=name).click()


def api(daemon: Daemon, token: str) -> int:
    request = urllib.request.Request(f"{daemon_url(daemon)}/v1/sites", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def make_token(page: Page, name: str) -> str:
    await page.get_by_label("Name").fill(name)
    await page.get_by_role("button", name="Make it").click()
    return await page.locator("#token").inner_text()


async def test_from_the_first_link_to_the_log_of_what_was_done(browser: Browser, tmp_path: Path) -> None:
    with Daemon(tmp_path, SITES) as daemon:
        (line,) = daemon.printed
        anna, vera = await open_page(browser), await open_page(browser)
        await choose_password(anna, daemon, line, "Anna")
        await anna.get_by_role("link", name="Settings").click()
        await pictured(anna, "settings")

        await tab(anna, "Users")
        await anna.get_by_label("Name").fill("Vera@shop.test")
        await expect(anna.get_by_label("example")).to_be_hidden()
        await anna.get_by_label("Only these").check()
        await anna.get_by_label("example").check()
        await pictured(anna, "settings-users")
        await anna.get_by_role("button", name="Invite").click()
        link = await anna.locator("#link").inner_text()
        await anna.get_by_role("button", name="Copy").click()
        await expect(anna.get_by_role("button", name="Copied")).to_be_visible()
        assert await anna.evaluate("() => navigator.clipboard.readText()") == link
        await pictured(anna, "settings-link")

        await choose_password(vera, daemon, link)
        await expect(vera.locator("form.who")).to_contain_text("vera@shop.test")
        await vera.get_by_role("link", name="Settings").click()
        await expect(vera.locator("main")).to_contain_text("viewer of example")
        await expect(vera.get_by_role("navigation", name="Settings").get_by_role("link")).to_have_text(["Your account"])
        for path in ("history", "sources", "sites", "addresses", "webhooks", "queue"):
            await vera.goto(f"{daemon_url(daemon)}/ui/{path}")
            await expect(vera.locator("main")).not_to_contain_text("orchard")
        await vera.goto(f"{daemon_url(daemon)}/ui/addresses")
        await expect(vera.locator("main")).to_contain_text("sales@example.test")
        await vera.goto(f"{daemon_url(daemon)}/ui/settings/users")
        await expect(vera.get_by_role("heading", level=1)).to_have_text("Forbidden")
        complaints_of(vera).clear()

        await tab(anna, "API tokens")
        used, lost = await make_token(anna, "reports"), ""
        assert api(daemon, used) == 200
        await tab(anna, "API tokens")
        lost = await make_token(anna, "lost")
        await tab(anna, "API tokens")
        anna.once("dialog", lambda dialog: dialog.accept())
        await anna.get_by_role("button", name="Revoke lost").click()
        await expect(anna.get_by_role("status")).to_contain_text("The token is revoked")
        await expect(anna.locator("tbody tr")).to_have_count(1)
        assert (api(daemon, lost), api(daemon, used)) == (401, 200)

        await tab(anna, "Senders")
        await anna.get_by_label("Block at example").fill("@spam.test")
        await anna.keyboard.press("Enter")
        await expect(anna.locator("ul.senders")).to_contain_text("@spam.test")
        await pictured(anna, "settings-senders")
        for name in ("Retention", "Keys"):
            await tab(anna, name)
            await pictured(anna, f"settings-{name.lower()}")

        await tab(anna, "Changes")
        done = [
            "Blocked a sender",
            "Revoked an API token: lost",
            "Made an API token: lost",
            "Made an API token: reports",
            "Chose a password by a one-time link",
            "Invited a user: vera@shop.test",
            "Chose a password by a one-time link",
        ]
        await expect(anna.locator("tbody tr td:nth-child(3)")).to_have_text(done)
        await expect(anna.locator("tbody tr").nth(5)).to_contain_text("sites example")
        await pictured(anna, "settings-changes")
        for page in (anna, vera):
            assert COMPLAINTS.pop(id(page)) == []
            await page.context.close()
