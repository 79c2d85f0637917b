"""The daemon's pages in Chromium: a real daemon as a process, and somebody logged in.

async with daemon_pages(tmp_path, browser, {"site": [example_site()]}) as (daemon, page):
    await page.goto(daemon_url(daemon) + "/ui/history")
    await looked_at(page, "history")
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page

from relay.control import call
from tests.daemon import ROOT, Daemon
from tests.ui_fixtures import Pages
from webapi.ui.session import COOKIE

#: Where screenshots go: RELAY_SCREENSHOTS, else where CI is set a folder that it keeps. Without both none are taken.
_FOLDER = os.environ.get("RELAY_SCREENSHOTS") or (ROOT / "build" / "screenshots" if os.environ.get("CI") else None)
SCREENSHOTS = None if _FOLDER is None else Path(_FOLDER)
AXE = ROOT / "webapi" / "script" / "node_modules" / "axe-core" / "axe.min.js"
PASSWORD = "a horse, a staple"
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

#: Options of axe.run.
ALL: dict[str, Any] = {}
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
BUT_CONTRAST = {"rules": {"color-contrast": {"enabled": False}}}

#: What the browser complained about, by page: its console, uncaught errors, refused loads (CSP).
COMPLAINTS: dict[int, list[str]] = {}


def daemon_url(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.http_port}"


@contextlib.asynccontextmanager
async def daemon_pages(
    directory: Path, browser: Browser, settings: Any = None, *, role: str = "admin"
) -> AsyncIterator[tuple[Daemon, Page]]:
    """A running daemon and a page of a browser that has logged in by an invitation as "anna"."""
    with Daemon(directory, settings) as daemon:
        async with signed_in(browser, daemon, "anna", role) as page:
            yield daemon, page


@contextlib.asynccontextmanager
async def signed_in(
    browser: Browser, daemon: Daemon, name: str, role: str = "admin", sites: list[str] | None = None, **context: Any
) -> AsyncIterator[Page]:
    """A browser of its own for a new user. Whatever it complains about on its console fails the test."""
    link = call(daemon.data_dir / "control.sock", "user.create", {"name": name, "role": role, "sites": sites})["link"]
    path = "/ui/welcome/" + str(link).rpartition("/")[2]
    async with quiet(browser, **context) as page:
        await page.goto(daemon_url(daemon) + path)
        await page.get_by_label("Password").fill(PASSWORD)
        await page.get_by_label("Once more").fill(PASSWORD)
        await page.get_by_role("button", name="Log in").click()
        await page.wait_for_url("**/ui/history")
        yield page


@contextlib.asynccontextmanager
async def visiting(browser: Browser, p: Pages, *, known: bool = True) -> AsyncIterator[Page]:
    """A browser in which the user of pages without a daemon is logged in; nobody, unless ``known``."""
    async with quiet(browser) as page:
        if known:
            cookie = {"name": COOKIE, "value": p.cookie, "domain": "127.0.0.1", "path": "/ui"}
            await page.context.add_cookies([cookie])  # type: ignore[list-item]
        yield page


@contextlib.asynccontextmanager
async def quiet(browser: Browser, **context: Any) -> AsyncIterator[Page]:
    """A page in a browser of its own. Whatever it complains about on its console fails the test."""
    async with await browser.new_context(viewport=WIDE, **context) as visitor, await visitor.new_page() as page:
        complaints = COMPLAINTS[id(page)] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        assert COMPLAINTS.pop(id(page)) == []


def complaints_of(page: Page) -> list[str]:
    """What the browser complained about so far; clear it of what a test provoked."""
    return COMPLAINTS[id(page)]


async def pictured(page: Page, name: str) -> None:
    """Keep what a journey has come to, where that is kept; its page is judged elsewhere (test_ui_looks.py)."""
    if SCREENSHOTS is not None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


async def looked_at(page: Page, name: str) -> None:
    """Keep what the page looks like, and judge it: axe finds nothing, nothing needs scrolling to the side.

    Every rule once, those that colours and width can break again in the dark and on a phone.
    """
    for scheme, rules in (("light", ALL), ("dark", CONTRAST)):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        await pictured(page, f"{name}-{scheme}")
        assert await violations(page, rules) == [], f"{name}, {scheme}"
    await page.emulate_media(color_scheme="light", reduced_motion="reduce")
    await page.set_viewport_size(PHONE)
    await pictured(page, f"{name}-phone")
    assert await violations(page, BUT_CONTRAST) == [], f"{name}, phone"
    assert await page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"], f"{name}, phone"
    await page.set_viewport_size(WIDE)


async def violations(page: Page, rules: Any = None) -> list[str]:
    """What axe finds wrong: the rule, and where. ``rules`` are options of axe.run."""
    if not await page.evaluate("() => 'axe' in window"):
        await page.evaluate(AXE.read_text("utf-8"))  # by the debugger: the page's policy forbids a foreign script
    run = "async (rules) => (await axe.run({ resultTypes: ['violations'], ...rules })).violations"
    found = await page.evaluate(run, rules or {})
    return [f"{rule['id']}: {rule['help']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]
