"""The website script and time, in Chromium: leases that end, later pages of a session, and pages that come back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page

from tests.browser.chromium import chromium
from tests.browser.script_site import (
    BOUND,
    HELP,
    LEASE,
    NEXT,
    SALES,
    SHOWN,
    Site,
    bound,
    html,
    opened,
    opened_and_stopped,
    quiet,
    serving,
    stopped,
    visiting,
)

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PAGE = f"<p>{SALES}</p><a href='mailto:{SALES}'>write</a><button data-clipboard-text='{SALES}'>copy</button>"
HIDE = """hidden => {
    Object.defineProperty(document, 'hidden', {get: () => hidden, configurable: true});
    document.dispatchEvent(new Event('visibilitychange', {bubbles: true}));
}"""
#: What is swapped in a document at the moment of the first frame that has a paragraph and a link.
FIRST_FRAME = """const watch = () => requestAnimationFrame(() => {
    const shown = [...document.querySelectorAll('p, a')].map((e) => e.textContent + (e.href || ''));
    if (shown.length === 2) window.painted = shown; else watch();
}); watch();"""


async def with_clock(page: Page, path: str = "/") -> None:
    await page.clock.install()
    await page.goto(path)
    await bound(page)


async def asleep(page: Page, site: Site) -> None:
    """The laptop sleeps beyond the lease: no timer runs, and then all binds fail or wait."""
    await page.evaluate(HIDE, True)
    await page.clock.fast_forward(LEASE + 1000)
    assert len(site.binds) == 1
    await page.evaluate("Object.defineProperty(document, 'hidden', {get: () => false, configurable: true}); 0")


async def shown(page: Page) -> list[str | None]:
    return [
        await page.inner_text("p"),
        await page.get_attribute("a", "href"),
        await page.get_attribute("button", "data-clipboard-text"),
    ]


REAL = [SALES, f"mailto:{SALES}", SALES]


async def test_a_visible_page_renews_at_half_the_lease_and_a_hidden_one_does_not(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await opened_and_stopped(page)
        await page.clock.run_for(LEASE // 2 - 2000)
        assert len(site.binds) == 1
        async with page.expect_response("**/v1/bind") as renewed:
            await page.clock.run_for(4000)
        body = await site.bound(2)
        assert (body["visit"], body["addresses"]) == ("1234567890", [SALES])
        await (await renewed.value).finished()
        await page.evaluate(HIDE, True)
        await page.clock.run_for(3 * LEASE)
        assert len(site.binds) == 2


async def test_a_page_that_is_seen_again_renews_if_it_is_due_and_not_before(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await with_clock(page)
        await page.evaluate(HIDE, True)
        await page.evaluate(HIDE, False)
        await page.clock.run_for(1000)
        assert len(site.binds) == 1
        await page.evaluate(HIDE, True)
        await page.clock.run_for(LEASE // 2 + 1000)
        assert len(site.binds) == 1
        await page.evaluate(HIDE, False)
        await site.bound(2)


async def test_an_answer_that_is_read_after_a_sleep_shows_no_address_whose_lease_has_ended(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        awake = asyncio.Event()

        async def late(body: dict[str, Any]) -> dict[str, Any]:
            await awake.wait()
            return BOUND if len(site.binds) == 1 else BOUND | {"addresses": {}}

        site.answer = late
        await stopped(page)
        await page.goto("/")
        await page.evaluate("""() => {
            window.seen = [];
            const text = document.querySelector('p').firstChild;
            new MutationObserver(() => seen.push(text.data)).observe(text, {characterData: true});
        }""")
        await page.clock.run_for(1)
        await site.bound()
        await page.clock.set_system_time(await page.evaluate("Date.now()") / 1000 + 3600)
        awake.set()
        await bound(page)
        await page.clock.run_for(1)
        await site.bound(2)
        assert await page.evaluate("seen") == []
        assert await shown(page) == REAL


async def test_a_renewal_that_answers_another_address_puts_it_in(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await opened_and_stopped(page)
        site.answer = BOUND | {"addresses": {SALES: NEXT}}
        await page.clock.run_for(LEASE // 2 + 1000)
        await page.wait_for_function(f"document.querySelector('p').textContent === '{NEXT}'")
        assert await shown(page) == [NEXT, f"mailto:{NEXT}", NEXT]
        site.answer = BOUND | {"addresses": {}}
        await page.clock.run_for(LEASE // 2 + 1000)
        await page.wait_for_function(f"document.querySelector('p').textContent === '{SALES}'")
        assert await shown(page) == REAL


async def test_a_page_whose_api_is_down_shows_the_real_address_when_the_lease_has_ended(browser: Browser) -> None:
    async with serving(PAGE) as site, await browser.new_context(base_url=site.url) as visitor:
        page = await visitor.new_page()
        await with_clock(page)
        site.answer = 503
        for _ in range(18):  # minutes, in each of which the last retry can fail
            await page.clock.run_for(60_000)
            await quiet(page)
        assert await shown(page) == REAL
        assert 3 <= len(site.binds) <= 12  # one at first, then from the half of the lease at most one a minute


async def test_between_two_tries_the_real_address_is_back_when_the_lease_ends(browser: Browser) -> None:
    async with serving(PAGE) as site, await browser.new_context(base_url=site.url) as visitor:
        site.answer = BOUND | {"lease": 90}
        page = await visitor.new_page()
        await opened_and_stopped(page)
        site.answer = 503
        async with page.expect_response("**/v1/bind") as failed:
            await page.clock.run_for(46_000)
        await (await failed.value).finished()
        await page.clock.run_for(40_000)
        assert await shown(page) == [SHOWN, f"mailto:{SHOWN}", SHOWN]
        await page.clock.run_for(5_000)
        await page.wait_for_function(f"document.querySelector('p').textContent === '{SALES}'")
        assert await shown(page) == REAL
        assert len(site.binds) == 2  # the next is due 60 seconds after the one that failed


@pytest.mark.parametrize("event", ["visibilitychange", "pointerdown", "click", "keyboard", "pageshow"])
async def test_after_the_lease_the_real_address_is_back_before_anything_else_and_then_a_new_one(
    browser: Browser, event: str
) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await with_clock(page)
        assert await shown(page) == [SHOWN, f"mailto:{SHOWN}", SHOWN]
        await asleep(page, site)
        site.answer = BOUND | {"addresses": {SALES: NEXT}}
        # Who asks in the event itself, behind our listener, sees the real address.
        await page.evaluate("""() => {
            const look = (event) => {
                event.preventDefault();
                const link = document.querySelector('a');
                window.seen = window.seen || [document.querySelector('p').textContent, link.href];
            };
            for (const type of ['pointerdown', 'click', 'keydown'])
                document.querySelector('a').addEventListener(type, look);
            for (const type of ['visibilitychange', 'pageshow']) window.addEventListener(type, look);
        }""")
        actions: dict[str, Any] = {
            "visibilitychange": lambda: page.evaluate(HIDE, False),
            "pointerdown": lambda: page.dispatch_event("a", "pointerdown"),
            "click": lambda: page.dispatch_event("a", "click"),
            "keyboard": lambda: page.press("a", "Enter"),
            "pageshow": lambda: page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"),
        }
        await actions[event]()
        assert await page.evaluate("seen") == [SALES, f"mailto:{SALES}"]
        await site.bound(2)
        await page.wait_for_function(f"document.querySelector('p').textContent === '{NEXT}'")
        assert await shown(page) == [NEXT, f"mailto:{NEXT}", NEXT]


async def test_a_click_after_the_lease_opens_a_mail_to_the_real_address(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await with_clock(page)
        await asleep(page, site)
        site.answer = BOUND | {"addresses": {}}
        session = await page.context.new_cdp_session(page)
        await session.send("Page.enable")
        opening: list[str] = []
        session.on("Page.frameRequestedNavigation", lambda event: opening.append(event["url"]))
        session.on("Page.frameStartedNavigating", lambda event: opening.append(event["url"]))
        # The last to hear of the click sees what the browser follows then, unless somebody has forbidden it.
        await page.evaluate("""() => {
            window.addEventListener('click', (event) => window.followed = [event.target.href, event.defaultPrevented]);
            document.querySelector('a').click();
        }""")
        await quiet(page)
        assert await page.evaluate("followed") == [f"mailto:{SALES}", False]
        assert set(opening) <= {f"mailto:{SALES}"}
        assert await page.get_attribute("a", "href") == f"mailto:{SALES}"


async def test_a_copy_after_the_lease_has_the_real_address(browser: Browser) -> None:
    async with serving(f"<p>Mail {SALES}.</p>") as site, visiting(browser, site) as page:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await with_clock(page)
        await page.evaluate("getSelection().selectAllChildren(document.querySelector('p'))")
        await page.keyboard.press("Control+c")
        assert await page.evaluate("navigator.clipboard.readText()") == f"Mail {SHOWN}."
        await page.evaluate(HIDE, True)
        await page.clock.fast_forward(LEASE + 1000)
        await page.evaluate("Object.defineProperty(document, 'hidden', {get: () => false}); 0")
        site.answer = BOUND | {"addresses": {SALES: NEXT}}
        await page.evaluate("document.execCommand('copy')")
        assert await page.evaluate("navigator.clipboard.readText()") == f"Mail {SALES}."
        await page.wait_for_function(f"document.querySelector('p').textContent === 'Mail {NEXT}.'")


async def test_a_substitute_of_the_page_whose_real_address_nobody_told_stays_when_the_lease_ends(
    browser: Browser,
) -> None:
    async with serving("<p>old3@track.example.com</p>") as site, visiting(browser, site) as page:
        site.answer = BOUND | {"addresses": {"old3@track.example.com": SHOWN}}
        await with_clock(page)
        assert await page.inner_text("p") == SHOWN
        await asleep(page, site)
        site.answer = 503
        await page.route("**/v1/bind", lambda route: route.fulfill(json=BOUND | {"addresses": {}}))
        await page.dispatch_event("p", "pointerdown")
        assert await page.inner_text("p") == "old3@track.example.com"


async def test_the_second_page_is_swapped_before_its_first_frame_and_bound_once(browser: Browser) -> None:
    async with serving() as site:
        head = f"<script src='/mailtrack.js'></script><script>{FIRST_FRAME}</script>"
        body = f"<p>{SALES}</p><a href='mailto:{SALES}'></a>"
        site.pages["/"] = site.pages["/2"] = html(body, "", head)
        async with visiting(browser, site) as page:

            async def slow(body: dict[str, Any]) -> dict[str, Any]:
                await page.wait_for_function("window.painted")  # bind answers after the first frame
                return BOUND

            site.answer = slow
            await page.goto("/")
            await bound(page)
            assert await page.evaluate("painted") == [SALES, f"mailto:{SALES}"]
            await page.goto("/2")
            await site.bound(2)
            await page.wait_for_function("window.painted")
            assert await page.evaluate("painted") == [SHOWN, f"mailto:{SHOWN}"]
            await quiet(page)
            assert len(site.binds) == 2


async def test_the_second_page_is_swapped_while_it_is_still_being_sent(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await page.goto("/")
        await bound(page)
        await page.evaluate("""() => {
            // A frame of the same session whose document stays open, as one that the network brings slowly.
            const frame = document.body.appendChild(document.createElement('iframe'));
            window.slow = frame.contentDocument;
            slow.open();
            slow.write('<!doctype html><p>one</p>');
        }""")
        await page.evaluate(
            """text => new Promise((done) => {
            const script = slow.createElement('script');
            script.src = '/mailtrack.js';
            script.onload = () => { slow.write('<p id="late">' + text + '</p>'); setTimeout(done); };
            slow.head.append(script);
        })""",
            SALES,
        )
        assert await page.evaluate("[slow.readyState, slow.querySelector('#late').textContent]") == ["loading", SHOWN]
        assert len(site.binds) == 1


@pytest.mark.parametrize("why", ["the lease has ended", "the visit is another", "the visit is forgotten"])
async def test_the_second_page_shows_nothing_of_the_session_when(browser: Browser, why: str) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await with_clock(page)
        if why == "the lease has ended":
            await asleep(page, site)
        elif why == "the visit is another":
            await page.evaluate("document.cookie = 'mailtrack_visit=77; path=/'")
        else:
            await page.evaluate("document.cookie = 'mailtrack_visit=; path=/; max-age=0'")
        await page.route("**/v1/bind", lambda route: None)
        await page.goto("/", wait_until="commit")
        await page.wait_for_function("document.readyState !== 'loading' && window.mailtrack")
        await quiet(page)
        assert await shown(page) == REAL


async def test_a_page_without_storage_works(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await page.add_init_script(
            "Object.defineProperty(window, 'sessionStorage',"
            " {get() { throw new DOMException('no', 'SecurityError'); }})"
        )
        for _ in range(2):
            await page.goto("/")
            await bound(page)
            assert await shown(page) == [SHOWN, f"mailto:{SHOWN}", SHOWN]


async def test_another_visit_takes_nothing_from_the_one_before(browser: Browser) -> None:
    async with serving(f"<p>{SALES}</p><b></b>") as site, opened(browser, site) as page:
        site.answer = BOUND | {"visit": "77", "addresses": {HELP: NEXT}}
        await page.evaluate(f"document.querySelector('b').textContent = '{HELP}'")
        await page.wait_for_function(f"document.querySelector('b').textContent === '{NEXT}'")
        assert await page.inner_text("p") == SALES
        assert await page.evaluate("[mailtrack.visit, mailtrack.addresses]") == ["77", {HELP: NEXT}]


async def test_a_page_back_from_the_browsers_cache_shows_what_is_known_and_binds_again() -> None:
    async with (
        chromium(back_forward_cache=True) as browser,
        serving(PAGE) as site,
        visiting(browser, site) as page,
    ):
        site.pages["/other"] = html("<p>other</p>", "")
        await page.goto("/")
        await bound(page)
        await page.evaluate("addEventListener('pageshow', (event) => { window.persisted = event.persisted; })")
        await page.evaluate("location.href = '/other'")
        await page.wait_for_url("**/other")
        site.answer = BOUND | {"addresses": {SALES: NEXT}}
        await page.evaluate("history.back()")
        await page.wait_for_url(f"{site.url}/", wait_until="commit")
        await site.bound(2)
        await page.wait_for_function(f"document.querySelector('p').textContent === '{NEXT}'")
        assert await page.evaluate("window.persisted") is True


async def test_a_prerendered_page_waits_until_it_is_opened(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await page.add_init_script("Object.defineProperty(document, 'prerendering', {value: true, writable: true})")
        await page.goto("/")
        await quiet(page)
        assert (site.binds, await page.evaluate("document.cookie")) == ([], "")
        await page.evaluate("document.prerendering = false; document.dispatchEvent(new Event('prerenderingchange'))")
        await bound(page)
        assert await shown(page) == [SHOWN, f"mailto:{SHOWN}", SHOWN]


async def test_a_page_that_opens_in_the_background_is_bound_once(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})")
        await page.clock.install()
        await page.goto("/")
        await bound(page)
        await page.evaluate(f"document.body.append('{HELP}')")
        await page.clock.run_for(2 * LEASE)
        assert len(site.binds) == 1
        await page.evaluate(HIDE, False)
        assert set((await site.bound(2))["addresses"]) == {SALES, HELP}


async def test_mails_that_came_in_are_told_once_and_not_for_a_visit_that_is_new_to_us(browser: Browser) -> None:
    async with serving(PAGE, tag=_LISTENING, google=1, metrica=55) as site:
        site.answer = BOUND | {"mails": 2}
        async with visiting(browser, site) as page:
            await with_clock(page)
            assert await page.evaluate("told") == []
            site.answer = BOUND | {"mails": 3}
            await page.goto("/")
            await page.wait_for_function("told.length")
            assert await page.evaluate("told") == [3, "event emailtracking", "55 reachGoal emailtracking"]
            await page.goto("/")
            await site.bound(3)
            await bound(page)
            await page.evaluate("new Promise(done => { mailtrack.on('bind', done); mailtrack.refresh(); })")
            assert await page.evaluate("told") == []


_LISTENING = """<script>
told = [];
mailtrack = {q: [["on", "mail", (mails) => told.push(mails)]]};
gtag = (...all) => told.push(all.join(' '));
ym = (...all) => told.push(all.join(' '));
</script><script src='/mailtrack.js'></script>"""


async def test_an_answer_that_comes_after_the_page_was_switched_off_is_not_used(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:

        async def late(body: dict[str, Any]) -> web.Response:
            await page.evaluate("mailtrack.enabled = false")
            return web.json_response(BOUND)

        site.answer = late
        async with page.expect_response("**/v1/bind") as response:
            await page.goto("/")
        await (await response.value).finished()
        await quiet(page)
        assert await shown(page) == REAL
        assert await page.evaluate("document.cookie") == ""
