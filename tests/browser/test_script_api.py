"""What a page can tell the website script, and what it is told, in Chromium: window.mailtrack, consent, events."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.browser.script_site import (
    BOUND,
    NEXT,
    SALES,
    SHOWN,
    bound,
    cookies,
    html,
    opened,
    quiet,
    serving,
    visiting,
)

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SCRIPT = "<script src='/mailtrack.js'></script>"
PAGE = f"<p>{SALES}</p><a href='mailto:{SALES}' onclick='event.preventDefault()'>write</a>"
INFO = "info@example.com"


def after(code: str) -> str:
    return f"<script>{code}</script>{SCRIPT}"


async def untouched(page: Page) -> bool:
    """No cookie, no storage, and the real address."""
    await quiet(page)
    kept = await page.evaluate("document.cookie + JSON.stringify(sessionStorage) + JSON.stringify(localStorage)")
    return kept == "{}{}" and await page.inner_text("p") == SALES


@pytest.mark.parametrize(
    "switch",
    [
        "window.onRoistatModuleLoaded = function () { window.roistat.emailtracking.enabled = false; };",
        "window.roistat = {emailtracking: {enabled: false}};",
        "window.mailtrack = { enabled: false };",
        "window.onMailtrackLoaded = function () { window.mailtrack.enabled = false; };",
        "window.mailtrack = {q: [(api) => { api.enabled = false; }]};",
    ],
)
async def test_a_page_can_switch_it_off_in_our_names_and_the_references(browser: Browser, switch: str) -> None:
    async with serving(PAGE, tag=after(switch)) as site, visiting(browser, site) as page:
        await page.goto("/")
        assert await untouched(page)
        assert site.binds == []


@pytest.mark.parametrize(
    ("hook", "switch"), [("onRoistatModuleLoaded", "roistat.emailtracking"), ("onMailtrackLoaded", "mailtrack")]
)
async def test_a_hook_that_stands_below_the_tag_is_called_all_the_same_and_each_once(
    browser: Browser, hook: str, switch: str
) -> None:
    code = f"calls = 0; window.{hook} = () => {{ calls++; {switch}.enabled = false; }}"
    async with serving() as site, visiting(browser, site) as page:
        for page_html in (html(f"<p>{SALES}</p><script>{code}</script>", "", SCRIPT), html(PAGE, after(code))):
            site.pages["/"] = page_html
            await page.goto("/")
            await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            assert await untouched(page)
            assert await page.evaluate("calls") == 1
        assert site.binds == []


async def test_switched_off_later_it_puts_the_real_address_back_and_switched_on_it_starts(browser: Browser) -> None:
    async with serving(PAGE) as site, opened(browser, site) as page:
        for switch in ("mailtrack", "roistat.emailtracking"):
            await page.evaluate(f"{switch}.enabled = false; mailtrack.refresh()")
            assert await page.inner_text("p") == SALES
            assert await page.get_attribute("a", "href") == f"mailto:{SALES}"
            await page.evaluate("document.querySelector('p').append(' sales@example.com')")
            await quiet(page)
            assert await page.inner_text("p") == f"{SALES} {SALES}"
            await page.evaluate(f"{switch}.enabled = true; mailtrack.refresh()")
            await page.wait_for_function(f"document.querySelector('p').textContent === '{SHOWN} {SHOWN}'")
            await page.evaluate(f"document.querySelector('p').textContent = '{SALES}'")
            await quiet(page)


async def test_switched_off_without_a_refresh_nothing_stale_is_followed_and_nothing_is_sent(browser: Browser) -> None:
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await page.clock.install()
        await page.goto("/")
        await bound(page)
        await page.evaluate("mailtrack.enabled = false")
        await page.clock.run_for(2_000_000)
        await page.click("a")
        assert await page.get_attribute("a", "href") == f"mailto:{SALES}"
        assert len(site.binds) == 1


async def test_off_from_the_start_it_starts_with_a_refresh(browser: Browser) -> None:
    async with serving(PAGE, tag=after("mailtrack = {enabled: false}")) as site, visiting(browser, site) as page:
        await page.goto("/")
        assert await untouched(page)
        await page.evaluate("mailtrack.enabled = true; mailtrack.refresh()")
        await bound(page)
        assert await page.inner_text("p") == SHOWN


async def test_a_real_counter_keeps_its_object_and_its_hook(browser: Browser) -> None:
    counter = (
        "calls = 0; roistatProjectId = 'abc'; onRoistatModuleLoaded = () => { calls++; };"
        "roistat = theirs = {visit: 5, emailtracking: {version: 315}}"
    )
    async with serving(PAGE, tag=after(counter)) as site, opened(browser, site) as page:
        assert await page.evaluate("[roistat === theirs, roistat.visit, roistat.emailtracking, calls]") == [
            True,
            5,
            {"version": 315},
            0,
        ]
        await page.evaluate("roistat = {emailtracking: {enabled: false}}; mailtrack.refresh()")
        assert await page.inner_text("p") == SALES


async def test_a_counter_that_is_announced_makes_its_object_itself_and_one_without_mail_gets_ours(
    browser: Browser,
) -> None:
    there = "roistat = theirs = {visit: 5}"
    early = "roistatProjectId = 'abc'; addEventListener('DOMContentLoaded', () => { seen = typeof window.roistat; })"
    async with serving(PAGE, tag=after(early)) as site, opened(browser, site) as page:
        assert await page.evaluate("seen") == "undefined"
    async with serving(PAGE, tag=after(there)) as site, opened(browser, site) as page:
        assert await page.evaluate("[roistat === theirs, roistat.emailtracking.enabled]") == [True, True]
        await page.evaluate("roistat.emailtracking.refresh()")
        await site.bound(2)
    async with serving(PAGE, tag=after("roistat = Object.freeze({visit: 5})")) as site, opened(browser, site) as page:
        assert await page.inner_text("p") == SHOWN


async def test_an_announced_counter_that_something_blocks_does_not_silence_the_pages_off_switch(
    browser: Browser,
) -> None:
    blocked = (
        "calls = 0; roistatProjectId = 'abc';"
        "onRoistatModuleLoaded = () => { calls++; roistat.emailtracking.enabled = false; }"
    )
    async with serving(PAGE, tag=after(blocked)) as site, visiting(browser, site) as page:
        await page.goto("/")
        await page.wait_for_function("calls === 1")
        await page.evaluate("dispatchEvent(new Event('pageshow'))")
        assert await page.evaluate("[calls, roistat.emailtracking.enabled]") == [1, False]
        assert await page.inner_text("p") == SALES


async def test_a_queue_is_run_in_order_and_then_pushes_at_once(browser: Browser) -> None:
    queue = """
    window.mailtrack = window.mailtrack || {q: []};
    mailtrack.q.push(['add', 'info@example.com'], ['nonsense', 1], null);
    mailtrack.q.push(['on', 'bind', (answer) => { answered = answer.visit; }]);
    mailtrack.q.push((api) => { api.params = {1: 'x'}; first = api === mailtrack; }, () => { throw Error('page'); });"""
    async with serving(f"<p>{INFO}</p>", tag=after(queue)) as site, visiting(browser, site) as page:
        site.answer = BOUND | {"addresses": {INFO: NEXT}}
        await page.goto("/")
        await bound(page)
        assert await page.inner_text("p") == NEXT
        assert await page.evaluate("[first, answered]") == [True, BOUND["visit"]]
        assert (site.binds[0]["addresses"], site.binds[0]["params"]) == ([INFO], {"1": "x"})
        assert await page.evaluate("(() => { let now = 0; mailtrack.q.push(() => { now = 1; }); return now; })()") == 1


async def test_additional_addresses_are_added_by_call_and_by_attribute_early_and_late(browser: Browser) -> None:
    more = "<i data-mailtrack-add='Info@example.com, hr@example.com'></i>"
    body = f"<p>{INFO} hr@example.com a@example.com b@example.com</p>{more}"
    async with serving(body) as site, visiting(browser, site) as page:
        site.answer = lambda body: (
            BOUND | {"addresses": {a: f"{a.split('@')[0]}-1@track.example.com" for a in body["addresses"]}}
        )
        await page.goto("/")
        await bound(page)
        assert (await page.inner_text("p")).startswith("info-1@track.example.com hr-1@track.example.com a@example.com")
        assert len(site.binds) == 1
        await page.evaluate("mailtrack.add('A@example.com')")
        await page.wait_for_function("document.querySelector('p').textContent.includes(' a-1@track')")
        await page.evaluate("document.body.insertAdjacentHTML('beforeend', '<i data-mailtrack-add=\"b@example.com\">')")
        await page.wait_for_function("document.querySelector('p').textContent.includes(' b-1@track')")
        assert [len(body["addresses"]) for body in site.binds] == [2, 3, 4]


async def test_errors_of_the_pages_functions_are_swallowed(browser: Browser) -> None:
    code = """
    onMailtrackLoaded = onRoistatModuleLoaded = () => { throw Error('page'); };
    told = 0;
    mailtrack = {q: [['on', 'bind', () => { throw Error('page'); }], ['on', 'bind', () => { told++; }]]};
    gtag = ym = () => { throw Error('page'); };"""
    async with serving(PAGE, tag=after(code), google=1, metrica=5) as site, opened(browser, site) as page:
        await page.click("a")
        await page.click("p")
        assert (await page.inner_text("p"), await page.evaluate("told")) == (SHOWN, 1)


REQUIRING = {
    "attribute": SCRIPT.replace("<script", "<script data-consent='required'"),
    "module": "<script type='module' data-consent='required' src='/mailtrack.js?site=pk_x'></script>",
    "setting": SCRIPT,
}


@pytest.mark.parametrize("how", REQUIRING)
async def test_without_consent_nothing_is_read_kept_or_sent(browser: Browser, how: str) -> None:
    tag = REQUIRING[how]
    settings = {"consent": 1} if how == "setting" else {}
    async with serving(PAGE, tag=tag, **settings) as site, visiting(browser, site) as page:
        await page.add_init_script(_READING)
        await page.goto("/")
        await page.mouse.move(5, 5)
        await page.click("a")
        await page.evaluate("mailtrack.refresh()")
        await quiet(page)
        assert await page.evaluate("read") == []
        assert await untouched(page)
        assert site.binds == []
        await page.evaluate("mailtrack.consent(true)")
        await bound(page)
        assert await page.inner_text("p") == SHOWN
        assert set(await cookies(page.context)) == {"mailtrack_visit", "mailtrack_first"}


_READING = """
read = [];
for (const [object, name] of [[Document.prototype, 'cookie'], [window, 'sessionStorage']]) {
    const {get, set} = Object.getOwnPropertyDescriptor(object, name);
    Object.defineProperty(object, name, {configurable: true, set, get() { read.push(name); return get.call(this); }});
}"""


async def test_consent_that_is_taken_back_leaves_nothing_and_given_again_starts_anew(browser: Browser) -> None:
    async with serving(PAGE) as site, opened(browser, site) as page:
        await page.evaluate("mailtrack.consent(false)")
        assert await untouched(page)
        assert await page.get_attribute("a", "href") == f"mailto:{SALES}"
        assert await page.evaluate("[mailtrack.visit, mailtrack.addresses]") == [None, {}]
        await page.evaluate("mailtrack.refresh()")
        assert await untouched(page)
        assert len(site.binds) == 1
        await page.evaluate("mailtrack.consent(true)")
        await bound(page)
        assert "visit" not in site.binds[1]
        assert await page.inner_text("p") == SHOWN


async def test_consent_in_the_queue_counts(browser: Browser) -> None:
    tag = after("mailtrack = {q: [['consent', true]]}")
    async with serving(PAGE, tag=tag, consent=1) as site, opened(browser, site) as page:
        assert (await page.inner_text("p"), len(site.binds)) == (SHOWN, 1)


async def test_global_privacy_control_is_a_refusal_for_good_where_the_site_respects_it(browser: Browser) -> None:
    signal = "Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', {get: () => true})"
    async with serving(PAGE, gpc=1) as site, visiting(browser, site) as page:
        await page.goto("/")
        await bound(page)
        await page.add_init_script(signal)
        await page.goto("/")
        await page.evaluate("mailtrack.consent(true)")
        assert await untouched(page)
        assert len(site.binds) == 1
    async with serving(PAGE) as site, visiting(browser, site) as page:
        await page.add_init_script(signal)
        await page.goto("/")
        await bound(page)


async def test_lazily_it_waits_for_a_person(browser: Browser) -> None:
    async with serving(PAGE, lazy=1) as site, visiting(browser, site) as page:
        await page.goto("/")
        await page.evaluate("document.dispatchEvent(new Event('scroll')); document.body.click()")
        assert await untouched(page)
        assert site.binds == []
        await page.keyboard.press("Shift")
        await bound(page)
        assert site.binds[0]["interacted"] is True
        assert await page.inner_text("p") == SHOWN


@pytest.mark.parametrize("sign", ["pointerdown", "keydown", "wheel", "mousemove", "touch"])
async def test_any_sign_of_a_person_counts(browser: Browser, sign: str) -> None:
    body = f"{PAGE}<div style='height: 5000px'></div>"
    async with serving(body, lazy=1) as site, visiting(browser, site, has_touch=True) as page:
        actions: dict[str, Any] = {
            "pointerdown": lambda: page.mouse.down(),
            "keydown": lambda: page.keyboard.press("a"),
            "wheel": lambda: page.mouse.wheel(0, 50),
            "mousemove": lambda: page.mouse.move(9, 9),
            "touch": lambda: page.touchscreen.tap(50, 50),
        }
        await page.goto("/")
        await actions[sign]()
        await bound(page)


async def test_what_a_page_and_a_resting_pointer_do_by_themselves_is_no_sign_of_a_person(browser: Browser) -> None:
    noting = """window.seen = []; for (const type of ['scroll', 'mousemove'])
        addEventListener(type, (event) => seen.push([type, event.isTrusted]))"""
    body = f"{PAGE}<div style='height: 5000px'></div>"
    async with serving(body, tag="", lazy=1) as site, visiting(browser, site) as page:
        await page.goto("/")
        await page.mouse.move(9, 9)
        await page.add_script_tag(url="/mailtrack.js")
        await page.evaluate(noting)
        await page.evaluate("scrollTo(0, 50)")
        await page.wait_for_function("seen.length === 1")
        await page.mouse.move(9, 9)
        await page.wait_for_function("seen.length === 2")
        assert await page.evaluate("seen") == [["scroll", True], ["mousemove", True]]
        assert await untouched(page)
        assert site.binds == []
        await page.mouse.move(10, 10)
        await bound(page)


EVENTS = """
told = [];
mailtrack = {q: [['on', 'click', (a) => told.push('click ' + a)], ['on', 'copy', (a) => told.push('copy ' + a)]]};"""
GTAG = "gtag = (...all) => told.push('gtag ' + all.join(' '));"
LAYER = "dataLayer = {push: (what) => told.push('layer ' + what.event)};"
YM = "ym = (...all) => told.push('ym ' + all.join(' '));"


@pytest.mark.parametrize(
    ("code", "settings", "goals"),
    [
        (GTAG + YM, {}, []),
        (GTAG + LAYER + YM, {"google": 1}, ["gtag event {}"]),
        (LAYER, {"google": 1}, ["layer {}"]),
        (YM, {"metrica": 55}, ["ym 55 reachGoal {}"]),
        (GTAG + YM, {"google": 1, "metrica": 55}, ["gtag event {}", "ym 55 reachGoal {}"]),
        ("", {"google": 1, "metrica": 55}, []),
    ],
)
async def test_a_click_and_a_copy_are_told_to_the_page_and_to_the_analytics_that_are_set(
    browser: Browser, code: str, settings: dict[str, Any], goals: list[str]
) -> None:
    tag = after(EVENTS + code)
    real = f"<a href='mailto:{SALES}' onclick='event.preventDefault()'>real</a>"
    body = (
        f"{PAGE}<b>nothing</b><a id='other' href='#{SALES}'>other</a><input value='{SALES}'>"
        f"<i data-mailtrack-ignore>{real}</i><u contenteditable>{real}</u><span></span>"
    )
    async with serving(body, tag=tag, **settings) as site, opened(browser, site) as page:
        await page.click("b")
        await page.click("#other")
        await page.evaluate(
            "real => { document.querySelector('span').attachShadow({mode: 'open'}).innerHTML = real; }", real
        )
        for place in ("i", "u", "span"):
            await page.click(f"{place} a")
        await page.evaluate("getSelection().selectAllChildren(document.querySelector('b'))")
        await page.keyboard.press("Control+c")
        await page.focus("input")
        await page.keyboard.press("Control+a")
        await page.keyboard.press("Control+c")
        assert await page.evaluate("told") == []
        await page.click("a >> nth=0")
        click = [f"click {SHOWN}", *(goal.format("mailtrack_click") for goal in goals)]
        assert await page.evaluate("told") == click
        await page.evaluate(
            "document.activeElement.blur(); getSelection().selectAllChildren(document.querySelector('p'))"
        )
        await page.keyboard.press("Control+c")
        copy = [f"copy {SHOWN}", *(goal.format("mailtrack_copy") for goal in goals)]
        assert await page.evaluate("told") == click + copy


async def test_a_click_before_the_answer_is_none_of_a_substitute(browser: Browser) -> None:
    async with serving(PAGE, tag=after(EVENTS)) as site, visiting(browser, site) as page:
        site.answer = BOUND | {"addresses": {}}
        await page.goto("/")
        await bound(page)
        await page.click("a")
        assert await page.evaluate("told") == []
