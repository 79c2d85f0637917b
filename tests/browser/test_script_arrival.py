"""Where a visitor came from is not lost when the bind of the first page is not answered, in Chromium."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser

from tests.browser.script_site import bound, html, serving, stopped, visiting

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

OLDER = {"mailtrack_visit": "12", "mailtrack_first": "3"}
GOING_ON = {
    "by a link": "document.querySelector('a').click()",
    "within the application": "history.pushState({}, '', '/other')",
}


@pytest.mark.parametrize("jar", [{}, OLDER], ids=["a new visitor", "an older visit"])
@pytest.mark.parametrize("how", GOING_ON)
async def test_an_arrival_that_was_not_answered_is_said_by_the_next_bind_and_by_no_further_one(
    browser: Browser, how: str, jar: dict[str, str]
) -> None:
    links = "<a href='/other'>on</a>"
    async with serving(links) as site, await browser.new_context(base_url=site.url) as visitor:
        site.pages["/other"] = html(links)
        await visitor.add_cookies([{"name": n, "value": v, "url": site.url} for n, v in jar.items()])
        page = await visitor.new_page()
        await stopped(page)
        await page.route("**/v1/bind", lambda route: None)  # never answered
        async with page.expect_event("requestfailed"):
            await page.goto("/?utm_source=a#top", referer="https://ads.example/")
            await page.clock.run_for(3_100)
        await page.unroute("**/v1/bind")
        await page.evaluate(GOING_ON[how])
        await page.wait_for_url("**/other")
        await page.clock.fast_forward(60_000)
        body = await site.bound()
        assert (body["page"], body["referrer"]) == (f"{site.url}/?utm_source=a", "https://ads.example/")
        assert body.get("visit") == jar.get("mailtrack_visit")
        await bound(page)
        await page.goto("/other", referer=f"{site.url}/")
        await page.clock.run_for(1)
        await bound(page)
        assert (site.binds[-1]["page"], site.binds[-1]["referrer"]) == (f"{site.url}/other", f"{site.url}/")


async def test_a_new_arrival_takes_the_place_of_one_that_was_not_answered(browser: Browser) -> None:
    async with serving() as site, await browser.new_context(base_url=site.url) as visitor:
        page = await visitor.new_page()
        await page.route("**/v1/bind", lambda route: route.abort())
        async with page.expect_event("requestfailed"):
            await page.goto("/?utm_source=a")
        await page.unroute("**/v1/bind")
        await page.goto("/?utm_source=b", referer="https://ads.example/")
        await bound(page)
        assert (site.binds[-1]["page"], site.binds[-1]["referrer"]) == (
            f"{site.url}/?utm_source=b",
            "https://ads.example/",
        )


async def test_who_follows_a_link_of_a_page_that_is_still_loading_is_said_to_come_from_where_that_was_found(
    browser: Browser,
) -> None:
    body = "<a href='/other'>on</a><script src='/slow.js'></script>"
    async with serving(lazy=1) as site, visiting(browser, site) as page:
        site.pages["/"] = html(body, "", "<script src='/mailtrack.js'></script>")
        site.pages["/other"] = html("")
        await page.route("**/slow.js", lambda route: None)  # never answered
        await page.goto("/?utm_source=a", wait_until="commit")
        await page.wait_for_selector("a")
        assert await page.evaluate("JSON.stringify(sessionStorage)") == "{}"
        await page.click("a")
        await page.wait_for_url("**/other")
        await page.keyboard.press("Shift")
        await bound(page)
        assert [body["page"] for body in site.binds] == [f"{site.url}/?utm_source=a"]
