"""Coming in and going out, in Chromium: the login, one-time links, problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.ui_browser import PASSWORD, complaints_of, daemon_pages, daemon_url, looked_at, pictured
from tests.daemon import Daemon

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_out_and_in_again_and_back_to_where_one_was(browser: Browser, tmp_path: Path) -> None:
    async with daemon_pages(tmp_path, browser) as (daemon, page):
        url = daemon_url(daemon)
        await page.get_by_role("button", name="Log out").click()
        await expect(page).to_have_url(f"{url}/ui/login")
        await pictured(page, "login")
        await page.goto(f"{url}/ui/queue")
        await page.get_by_label("Name").fill("anna")
        await page.get_by_label("Password").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("Wrong name or password.")
        assert complaints_of(page) == ["Failed to load resource: the server responded with a status of 403 (Forbidden)"]
        complaints_of(page).clear()
        await expect(page.get_by_label("Name")).to_have_value("anna")
        await page.get_by_label("Password").fill(PASSWORD)
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{url}/ui/queue")

        await page.goto(f"{url}/ui/nothing")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Not Found")
        await looked_at(page, "problem")
        complaints_of(page).clear()

        await page.goto(url)
        await expect(page).to_have_url(f"{url}/ui/history")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="To the content")).to_be_focused()


async def test_the_first_administrator_comes_by_the_link_that_the_daemon_prints(
    browser: Browser, tmp_path: Path
) -> None:
    with Daemon(tmp_path) as daemon:
        (line,) = daemon.printed
        path = "/ui/welcome/" + line.rpartition("/")[2]
        async with await browser.new_context() as context, await context.new_page() as page:
            await page.goto(daemon_url(daemon) + path)
            await pictured(page, "welcome")
            await page.get_by_label("Name").fill("Anna")
            await page.get_by_label("Password").fill(PASSWORD)
            await page.get_by_label("Once more").fill("something else")
            await page.get_by_role("button", name="Log in").click()
            await expect(page.locator("#wrong-again")).to_have_text("is not the same")
            await page.get_by_label("Password").fill(PASSWORD)
            await page.get_by_label("Once more").fill(PASSWORD)
            await page.get_by_role("button", name="Log in").click()
            await expect(page).to_have_url(f"{daemon_url(daemon)}/ui/history")
            await expect(page.locator("form.who")).to_contain_text("anna")
            await page.goto(daemon_url(daemon) + path)
            await expect(page.get_by_role("heading", level=1)).to_have_text("This link has ended")
            await looked_at(page, "link-over")
