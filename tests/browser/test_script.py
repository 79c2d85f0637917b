"""What the website script does to a page, in Chromium, with an API that answers as told."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Page

from tests.browser.chromium import chromium, executable

pytestmark = pytest.mark.browser

SOURCE = Path(__file__).parents[2] / "webapi/script/mailtrack.js"
SALES = "sales@example.com"
SHOWN = "info1@track.example.com"
PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>
<p id="text">Email:sales@example.com, or (sales@example.com). Not presales@example.com nor sales@example.com.au.</p>
<p id="caps">SALES@EXAMPLE.COM</p>
<a id="link" href="mailto:sales%40example.com?subject=Hi%20sales@example.com">write</a>
<textarea id="area">sales@example.com</textarea><input id="input" value="sales@example.com">
<div id="edit" contenteditable>sales@example.com</div><div id="ignored" data-mailtrack-ignore>sales@example.com</div>
<p id="late"></p><script src="/mailtrack.js"></script>"""


@asynccontextmanager
async def opened(answer: Any, before: str = "") -> AsyncIterator[tuple[Page, list[dict[str, Any]]]]:
    """The page in a browser; ``answer`` is what bind answers, or the status of its failure."""
    executable()
    asked: list[dict[str, Any]] = []

    async def bind(request: web.Request) -> web.Response:
        assert request.content_type == "text/plain"
        assert "Cookie" not in request.headers
        asked.append(json.loads(await request.text()))
        return web.Response(status=answer) if isinstance(answer, int) else web.json_response(answer)

    async def script(request: web.Request) -> web.Response:
        settings = {"site": "pk_x", "api": "/v1/bind", "targets": [SALES], "domains": ["track.example.com"]}
        text = SOURCE.read_text().replace("__MAILTRACK__", json.dumps(settings))
        return web.Response(text=text, content_type="text/javascript")

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=before + PAGE, content_type="text/html")

    app = web.Application()
    app.add_routes([web.post("/v1/bind", bind), web.get("/mailtrack.js", script), web.get("/", page)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with chromium() as browser:
            tab = await browser.new_page()
            async with tab.expect_response("**/v1/bind") if answer is not None else _nothing():
                await tab.goto(f"http://127.0.0.1:{runner.addresses[0][1]}/")
            yield tab, asked
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


BOUND = {"visit": "1234567890", "first_visit": "1234567890", "lease": 900, "addresses": {SALES: SHOWN}}


async def test_addresses_are_swapped_within_their_boundaries_and_nowhere_else() -> None:
    async with opened(BOUND) as (tab, asked):
        await tab.wait_for_function(f"document.getElementById('text').textContent.includes('{SHOWN}')")
        text = f"Email:{SHOWN}, or ({SHOWN}). Not presales@example.com nor sales@example.com.au."
        assert await tab.inner_text("#text") == text
        assert await tab.inner_text("#caps") == SHOWN.upper()
        assert await tab.get_attribute("#link", "href") == f"mailto:{SHOWN}?subject=Hi%20{SALES}"
        assert await tab.input_value("#area") == SALES
        assert await tab.input_value("#input") == SALES
        assert await tab.inner_text("#edit") == SALES
        assert await tab.inner_text("#ignored") == SALES
        assert [(a["site"], a["visit"], a["addresses"]) for a in asked] == [("pk_x", None, [SALES])]
        cookies = {c["name"]: c["value"] for c in await tab.context.cookies()}
        assert cookies == {"mailtrack_visit": "1234567890", "mailtrack_first": "1234567890"}
        assert await tab.evaluate("[mailtrack.visit, mailtrack.addresses]") == ["1234567890", {SALES: SHOWN}]


async def test_late_content_is_swapped_without_asking_again() -> None:
    async with opened(BOUND) as (tab, asked):
        await tab.evaluate("document.getElementById('late').innerHTML = '<b>sales@example.com</b>'")
        await tab.wait_for_function(f"document.querySelector('#late b').textContent === '{SHOWN}'")
        assert len(asked) == 1


async def test_a_failing_api_leaves_the_real_address() -> None:
    async with opened(503) as (tab, asked):
        await tab.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
        assert SALES in await tab.inner_text("#text")
        assert await tab.get_attribute("#link", "href") == "mailto:sales%40example.com?subject=Hi%20sales@example.com"
        assert len(asked) == 1


@pytest.mark.parametrize(
    "switch",
    [
        "window.onRoistatModuleLoaded = function () { window.roistat.emailtracking.enabled = false; };",
        "window.mailtrack = { enabled: false };",
        "window.onMailtrackLoaded = function () { window.mailtrack.enabled = false; };",
    ],
)
async def test_a_page_can_switch_tracking_off_in_our_names_and_the_references(switch: str) -> None:
    async with opened(None, f"<script>{switch}</script>") as (tab, asked):
        await tab.evaluate("new Promise(r => setTimeout(r, 100))")
        assert SALES in await tab.inner_text("#text")
        assert asked == []


async def test_the_visit_of_another_counter_is_used_and_kept() -> None:
    cookie = "<script>document.cookie='roistat_visit=123456'</script>"
    async with opened(BOUND | {"visit": "123456"}, cookie) as (tab, asked):
        assert asked[0]["visit"] == "123456"
        await tab.wait_for_function(f"document.getElementById('caps').textContent === '{SHOWN.upper()}'")


def test_the_script_is_at_most_three_kibibytes_on_the_wire() -> None:
    assert len(gzip.compress(SOURCE.read_bytes(), 9)) <= 3072
