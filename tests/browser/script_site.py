"""A website with the built script, for tests in Chromium: real pages, a real server, a bind that answers as told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from playwright.async_api import Browser, BrowserContext, Page

SCRIPT = Path(__file__).parents[2] / "webapi/script"
SALES = "sales@example.com"
HELP = "help@example.com"
SHOWN = "info1@track.example.com"
NEXT = "info2@track.example.com"
#: A lease in milliseconds, and a little more.
LEASE = 900_000
BOUND: dict[str, Any] = {"visit": "1234567890", "first_visit": "1001", "lease": 900, "addresses": {SALES: SHOWN}}


@dataclass
class Site:
    """What its pages hold, what its API answers, and what it was asked."""

    url: str = ""
    pages: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    script_headers: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    #: The document of the answer, a status, a response, or what makes one of the request's body.
    answer: Any = field(default_factory=lambda: BOUND)
    binds: list[dict[str, Any]] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def bound(self, times: int = 1) -> dict[str, Any]:
        """Waits for so many binds in all; the last one's body."""
        async with asyncio.timeout(30), self.asked:
            await self.asked.wait_for(lambda: len(self.binds) >= times)
        return self.binds[times - 1]

    async def bind(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        body = json.loads(await request.text())
        async with self.asked:
            self.binds.append(body)
            self.asked.notify_all()
        answer = self.answer(body) if isinstance(self.answer, Callable) else self.answer  # type: ignore[arg-type]
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, int):
            return web.Response(status=answer)
        response = answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)
        if origin := request.headers.get("Origin"):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Credentials"] = "true"
        return response

    def rendered(self) -> str:
        text = (SCRIPT / "mailtrack.js").read_text()
        assert text.count("__MAILTRACK__") == 1
        return text.replace("__MAILTRACK__", json.dumps(self.settings))

    async def script(self, request: web.Request) -> web.Response:
        return web.Response(text=self.rendered(), content_type="text/javascript", headers=self.script_headers)

    async def page(self, request: web.Request) -> web.Response:
        content = self.pages.get(request.path)
        if content is None:
            return web.Response(status=404)
        kind = "text/javascript" if request.path.endswith(".js") else "text/html"
        return web.Response(text=content, content_type=kind, charset="utf-8", headers=self.headers)


@asynccontextmanager
async def serving(
    body: str = "", *, tag: str = "<script src='/mailtrack.js'></script>", **settings: Any
) -> AsyncIterator[Site]:
    """A site whose page ``/`` has this body, and then the script; settings as the server bakes them in."""
    site = Site()
    app = web.Application()
    app.add_routes([web.route("*", "/v1/bind", site.bind), web.get("/mailtrack.js", site.script)])
    app.add_routes([web.get("/{path:.*}", site.page)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        site.settings = {
            "site": "pk_x",
            "api": f"{site.url}/v1/bind",
            "targets": [SALES, HELP],
            "domains": ["track.example.com"],
            **settings,
        }
        site.pages["/"] = html(body, tag)
        yield site
    finally:
        await runner.cleanup()


def html(body: str, tag: str = "<script src='/mailtrack.js'></script>", head: str = "") -> str:
    return (
        f"<!doctype html><html><head><meta charset='utf-8'><link rel='icon' href='data:,'>{head}</head>"
        f"<body>{body}{tag}</body></html>"
    )


@asynccontextmanager
async def visiting(browser: Browser, site: Site, **context: Any) -> AsyncIterator[Page]:
    """A new visitor's empty tab; whatever the browser complains about on its console fails the test."""
    async with await browser.new_context(base_url=site.url, **context) as visitor:
        page = await visitor.new_page()
        complaints = listening(page)
        yield page
        assert complaints == []


def listening(page: Page) -> list[str]:
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints


@asynccontextmanager
async def opened(browser: Browser, site: Site, path: str = "/", **context: Any) -> AsyncIterator[Page]:
    """The same with the site's page in it, bound and swapped."""
    async with visiting(browser, site, **context) as page:
        await page.goto(path)
        await bound(page)
        yield page


async def bound(page: Page) -> None:
    await page.wait_for_function("window.mailtrack && mailtrack.visit")


async def stopped(page: Page) -> None:
    """From here on its clock stands still: only run_for sets it on, which timers of 0 wait for, too.

    So no answer comes too late, however slow the machine is: the script gives a bind up after three seconds.
    """
    await page.clock.install()
    await page.clock.pause_at(time.time() + 3600)  # behind it, whatever time this takes: back it cannot be set


async def opened_and_stopped(page: Page, path: str = "/") -> None:
    """The same with the site's page in it, bound and swapped."""
    await stopped(page)
    await page.goto(path)
    await page.clock.run_for(1)
    await bound(page)


async def cookies(context: BrowserContext) -> dict[str, str]:
    return {cookie["name"]: cookie["value"] for cookie in await context.cookies()}


async def quiet(page: Page) -> None:
    """Until whatever the last step made the script do at once has been done: mutations, timers of 0, a frame."""
    await page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(() => setTimeout(done))))")
