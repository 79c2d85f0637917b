"""What happens to the website script while something else happens: late targets, other tabs, refusals, moved nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Route, expect

from tests.browser.script_site import (
    BOUND,
    HELP,
    SALES,
    SHOWN,
    bound,
    cookies,
    html,
    opened,
    opened_and_stopped,
    quiet,
    serving,
    stopped,
    visiting,
)

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

CRM = "x-sales@track.example.com"
#: Notes what stood in the first paragraph when the first frame was drawn that has one.
FIRST_FRAME = """<script>const watch = () => requestAnimationFrame(() => {
  const first = document.querySelector('p');
  if (first) window.painted = first.textContent; else watch();
}); watch();</script>"""
#: What the server's cookies say.
COOKIES = {"mailtrack_visit": BOUND["visit"], "mailtrack_first": BOUND["first_visit"]}
#: Notes what scripts write into cookies.
WRITING = """{
    written = [];
    const {get, set} = Object.getOwnPropertyDescriptor(Document.prototype, 'cookie');
    Object.defineProperty(Document.prototype, 'cookie', {get, set(text) { written.push(text); set.call(this, text); }});
}"""

#: Counts the walks over what is on the page.
WALKING = """{
    walks = 0;
    const walker = Document.prototype.createTreeWalker;
    Document.prototype.createTreeWalker = function (...all) { walks++; return walker.apply(this, all); };
}"""


async def test_a_target_that_appears_while_the_answer_is_on_its_way_is_asked_for_next(browser: Browser) -> None:
    async with serving(f"<p>{SALES}</p>") as site, visiting(browser, site) as page:
        footer_is_there = asyncio.Event()

        async def answer(body: Any) -> Any:
            await footer_is_there.wait()
            shown = {address: f"x-{address.partition('@')[0]}@track.example.com" for address in body["addresses"]}
            return web.json_response(BOUND | {"addresses": shown})

        site.answer = answer
        await stopped(page)
        await page.goto("/")
        await page.clock.run_for(1)
        await site.bound()
        footer = f"Object.assign(document.createElement('footer'), {{textContent: '{HELP}'}})"
        await page.evaluate(f"document.body.append({footer})")
        footer_is_there.set()
        await expect(page.locator("p")).to_have_text(CRM)
        await page.clock.run_for(1000)
        await expect(page.locator("footer")).to_have_text("x-help@track.example.com")
        assert [body["addresses"] for body in site.binds] == [[SALES], [SALES, HELP]]


async def test_a_refresh_while_the_answer_is_on_its_way_is_a_bind_of_its_own(browser: Browser) -> None:
    async with serving(f"<p>{SALES}</p>") as site, visiting(browser, site) as page:
        refreshed = asyncio.Event()

        async def answer(body: Any) -> Any:
            await refreshed.wait()
            return web.json_response(BOUND)

        site.answer = answer
        await stopped(page)
        await page.goto("/")
        await page.clock.run_for(1)
        await site.bound()
        await page.evaluate("mailtrack.params = {1: 'changed'}; mailtrack.refresh(); mailtrack.refresh()")
        refreshed.set()
        await expect(page.locator("p")).to_have_text(SHOWN)
        await page.clock.run_for(1000)
        await site.bound(2)
        assert [body.get("params") for body in site.binds] == [None, {"1": "changed"}]


async def test_what_was_out_of_the_page_is_not_edited_behind_the_back_of_what_keeps_it(browser: Browser) -> None:
    """Editors put an element into the page, measure it, and put it where it belongs later."""
    body = f"<p>{SALES}</p><div contenteditable></div><section data-mailtrack-ignore></section>"
    async with serving(body) as site, opened(browser, site) as page:
        await page.evaluate(
            """async () => {
              for (const box of document.querySelectorAll('div, section')) {
                const element = Object.assign(document.createElement('b'), {textContent: 'sales@example.com'});
                box.append(element);
                element.remove();
                await new Promise(done => setTimeout(done));
                box.append(element);
              }
            }"""
        )
        await quiet(page)
        assert [await page.inner_text(box) for box in ("div", "section")] == [SALES, SALES]


async def test_a_cookie_from_before_there_was_a_cookie_domain_does_not_hide_the_new_one(browser: Browser) -> None:
    async with serving(domain="example.test", api="/v1/bind") as site, visiting(browser, site) as page:
        asked: list[Any] = []

        async def served(route: Route) -> None:
            if route.request.url.endswith("/bind"):
                asked.append(route.request.post_data_json)
                await route.fulfill(json=BOUND | {"visit": "222"})
            elif route.request.url.endswith(".js"):
                await route.fulfill(body=site.rendered(), content_type="text/javascript")
            else:
                await route.fulfill(body=html(SALES), content_type="text/html")

        await page.route("https://www.example.test/**", served)
        old = {"name": "mailtrack_visit", "value": "111", "url": "https://www.example.test"}
        await page.context.add_cookies([old])  # type: ignore[list-item]
        for path in ("?utm_source=new", "inner"):
            async with page.expect_response("**/bind"):  # the second page shows at once what the tab remembers
                await page.goto(f"https://www.example.test/{path}")
        assert [body["visit"] for body in asked] == ["111", "222"]


@pytest.mark.parametrize("written", [f"({HELP})", f"({HELP}", f"[{HELP}\\", f"{HELP})"])
async def test_brackets_round_an_additional_address_stop_nothing(browser: Browser, written: str) -> None:
    async with serving(f"<p data-mailtrack-add='{written}'>{SALES}</p>") as site, opened(browser, site) as page:
        assert await page.inner_text("p") == SHOWN


async def test_a_person_gets_the_address_that_was_kept_from_a_page_nobody_had_touched(browser: Browser) -> None:
    async with serving(f"<p>{SALES}</p>") as site, visiting(browser, site) as page:
        site.answer = lambda body: BOUND if body.get("interacted") else BOUND | {"addresses": {}, "reserved": True}
        await page.goto("/")
        await bound(page)
        assert await page.inner_text("p") == SALES
        await page.mouse.move(50, 50)
        await page.wait_for_function(f"document.querySelector('p').textContent === '{SHOWN}'")
        assert len(site.binds) == 2


def setting_cookies(_: Any) -> web.Response:
    """What a bind is answered where the server sets the cookies."""
    response = web.json_response(BOUND)
    for name, number in COOKIES.items():
        response.headers.add("Set-Cookie", f"{name}={number}; Path=/; Max-Age=1209600")
    return response


@pytest.mark.parametrize("settings", [{}, {"credentials": "include"}], ids=["script", "server"])
async def test_a_tab_goes_on_with_its_own_visit_and_leaves_the_cookie_to_the_later_one(
    browser: Browser, settings: dict[str, Any]
) -> None:
    async with serving(f"<p>{SALES}</p>", **settings) as site, visiting(browser, site) as page:
        if settings:
            site.answer = setting_cookies
        await opened_and_stopped(page)
        await page.evaluate("document.cookie = 'mailtrack_visit=999; path=/'")  # a second tab, from another campaign
        await page.evaluate("mailtrack.on('bind', () => { window.renewed = true; })")
        await page.clock.run_for(451_000)  # half of the lease
        await page.wait_for_function("window.renewed")
        assert (await site.bound(2))["visit"] == BOUND["visit"]
        assert (await cookies(page.context))["mailtrack_visit"] == "999"


async def test_what_the_server_has_set_is_not_written_again(browser: Browser) -> None:
    """Browsers that let a script's cookies live for a week would do so with those of the server."""
    settings = {"credentials": "include", "domain": "127.0.0.1"}
    async with serving(f"<p>{SALES}</p>", **settings) as site, visiting(browser, site) as page:
        site.answer = setting_cookies
        await page.add_init_script(WRITING)
        for times in (1, 2):
            await page.goto("/")
            body = await site.bound(times)
            await bound(page)
            assert body.get("visit") == (BOUND["visit"] if times == 2 else None)
            assert await page.evaluate("written") == []
            assert await cookies(page.context) == COOKIES


async def test_who_refuses_while_the_answer_is_on_its_way_keeps_no_cookie_of_it(browser: Browser) -> None:
    async with serving(f"<p>{SALES}</p>", credentials="include") as site, visiting(browser, site) as page:
        refused = asyncio.Event()

        async def answer(body: Any) -> Any:
            await refused.wait()
            response = web.json_response(BOUND)
            response.headers["Set-Cookie"] = f"mailtrack_visit={BOUND['visit']}; Path=/"
            return response

        site.answer = answer
        await stopped(page)
        await page.goto("/")
        await page.clock.run_for(1)
        await site.bound()
        await page.evaluate("mailtrack.consent(false)")
        async with page.expect_event("requestfinished"):
            refused.set()
        await page.wait_for_function("!document.cookie")
        assert await cookies(page.context) == {}
        assert await page.evaluate("JSON.stringify(sessionStorage)") == "{}"
        assert await page.inner_text("p") == SALES


async def test_a_counter_whose_tag_stands_below_ours_calls_its_hook_alone(browser: Browser) -> None:
    hook = "<script>calls = []; onRoistatModuleLoaded = () => calls.push(roistat.visit)</script>"
    counter = "<script>roistatProjectId = 'x'; roistat = {visit: 5}; onRoistatModuleLoaded()</script>"
    async with serving() as site:
        site.pages["/"] = html(f"<p>{SALES}</p>{counter}", "", f"{hook}<script src='/mailtrack.js'></script>")
        async with opened(browser, site) as page:
            assert await page.evaluate("calls") == [5]


async def test_on_later_pages_the_documented_tag_from_the_cache_can_swap_before_the_first_frame(
    browser: Browser,
) -> None:
    """An async script runs when the browser lets it; from the cache, where nobody else wants the cores, that is nearly
    always before anything is drawn."""
    async with serving() as site:
        site.script_headers = {"Cache-Control": "public, max-age=300"}
        head = f"<script async src='/mailtrack.js?site=pk_x'></script>{FIRST_FRAME}"
        site.pages["/"] = html(f"<p>{SALES}</p>", "", head)
        async with opened(browser, site) as page:
            painted: list[str] = []
            while len(painted) < 10 or (SHOWN not in painted and len(painted) < 100):
                await page.goto("/")
                await page.wait_for_function("window.painted")
                painted.append(await page.evaluate("window.painted"))
            print(f"swapped before the first frame: {painted.count(SHOWN)} of {len(painted)}")
            assert SHOWN in painted
            assert set(painted) <= {SHOWN, SALES}


@pytest.mark.parametrize(
    "restore",
    [
        "box.textContent = 'sales@example.com'",
        "box.innerHTML = '<b>sales@example.com</b>'",
        "box.replaceChildren(Object.assign(document.createElement('b'), {textContent: 'sales@example.com'}))",
    ],
)
async def test_another_script_that_writes_back_in_new_nodes_each_time_does_not_hang_the_page(
    browser: Browser, restore: str
) -> None:
    async with serving(f"<p>{SALES}</p><div></div>") as site, opened(browser, site) as page:
        fight = f"""() => {{
            window.written = 0;
            const box = document.querySelector('div');
            new MutationObserver(() => {{
                if (box.textContent === 'sales@example.com' || written > 20000) return;
                written++;
                {restore};
            }}).observe(box, {{childList: true, characterData: true, subtree: true}});
            box.textContent = 'sales@example.com';
        }}"""
        await page.evaluate(fight)
        await quiet(page)
        assert 1000 < await page.evaluate("written") <= 5001
        assert await page.inner_text("div") == SALES


async def test_a_page_full_of_additional_addresses_is_looked_over_once_more_and_not_once_each(
    browser: Browser,
) -> None:
    many = "".join(
        f"<i data-mailtrack-add='a{number}@example.com constructor __proto__'></i>" for number in range(1500)
    )
    async with serving(f"{many}<p>{SALES} constructor</p>") as site, visiting(browser, site) as page:
        await page.add_init_script(WALKING)
        await page.goto("/")
        await bound(page)
        assert await page.inner_text("p") == f"{SHOWN} constructor"
        assert 0 < await page.evaluate("walks") < 100


async def test_a_number_that_another_counter_gives_late_is_bound_at_once_from_the_same_page(browser: Browser) -> None:
    async with serving(f"<p>{SALES}</p>", cookie="roistat_visit") as site, visiting(browser, site) as page:
        site.answer = lambda body: BOUND | {"visit": body.get("visit", BOUND["visit"])}
        await page.clock.install()
        await page.goto("/?utm_source=ads")
        await bound(page)
        await page.evaluate("document.cookie = 'roistat_visit=9001; path=/'")
        await page.mouse.move(50, 50)
        second = await site.bound(2)
        assert (second["visit"], second["ours"], second["page"]) == ("9001", False, f"{site.url}/?utm_source=ads")
        await page.wait_for_function("mailtrack.visit === '9001'")
        await page.mouse.move(60, 60)
        await page.clock.run_for(5000)
        await quiet(page)
        assert len(site.binds) == 2
        assert (await cookies(page.context))["mailtrack_visit"] == "9001"


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        pytest.param("", [SHOWN, SHOWN], id="none"),
        pytest.param("onRoistatModuleLoaded = () => {}", [SALES, SHOWN], id="on"),
        pytest.param("onRoistatModuleLoaded = () => { roistat.emailtracking.enabled = false }", [SALES] * 2, id="off"),
    ],
)
async def test_what_the_tab_remembers_waits_for_the_hook_that_may_switch_us_off(
    browser: Browser, hook: str, expected: list[str]
) -> None:
    async with serving(f"<p>{SALES}</p>") as site, opened(browser, site) as page:
        # What stands there as soon as it is parsed, and as soon as the hook was called: nothing is answered by then.
        noting = """<script>seen = [document.querySelector('p').textContent];
            addEventListener('DOMContentLoaded', () => seen.push(document.querySelector('p').textContent));</script>"""
        head = f"<script>{hook}</script><script src='/mailtrack.js'></script>"
        site.pages["/later"] = html(f"<p>{SALES}</p>{noting}", "", head)
        await page.goto("/later")
        assert await page.evaluate("seen") == expected
