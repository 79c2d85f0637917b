"""Attachments in Chromium: what strangers attach runs nothing, wherever it is opened, and is downloaded."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import Browser, Download, Error, Page

from tests.file_fixtures import attachments, of_one_file, stored
from tests.webapi_fixtures import Api, serving

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


@dataclass
class Elsewhere:
    """Another website. Scripts that run report to it: a request for /ran. It serves ``page`` under ``/``."""

    url: str = ""
    page: bytes = b""
    type: str = "text/html"
    ran: list[str] = field(default_factory=list)

    async def home(self, _: web.Request) -> web.Response:
        return web.Response(body=self.page, content_type=self.type)

    async def report(self, request: web.Request) -> web.Response:
        self.ran.append(request.query_string)
        return web.Response(headers={"Access-Control-Allow-Origin": "*"})


@asynccontextmanager
async def elsewhere() -> AsyncIterator[Elsewhere]:
    site = Elsewhere()
    app = web.Application()
    app.router.add_get("/", site.home)
    app.router.add_get("/ran", site.report)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    site.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    await web.SockSite(runner, listener).start()
    try:
        yield site
    finally:
        await runner.cleanup()


def canary(sink: str) -> str:
    return f"document.title = 'ran'; new Image().src = '{sink}/ran?in=' + encodeURIComponent(location.origin)"


def hostile(kind: str, sink: str) -> bytes:
    """A file of this type that reports when it is opened as what it is."""
    script = canary(sink)
    html = f"<!doctype html><title>file</title><script>{script}</script><img src={sink}/ran?by=image>"
    xml = "<?xml version='1.0'?>"
    xhtml = f"{xml}<html xmlns='http://www.w3.org/1999/xhtml'><title>f</title><script>{script}</script></html>"
    documents = {
        "text/html": html,
        "image/svg+xml": f"{xml}<svg xmlns='http://www.w3.org/2000/svg'><script>{script}</script></svg>",
        "application/xhtml+xml": xhtml,
        "text/xml": xhtml,
        "message/rfc822": f"MIME-Version: 1.0\r\nSubject: f\r\nContent-Type: text/html\r\n\r\n{html}",
        "text/plain": html,
    }
    return documents[kind].encode()


async def link(api: Api, kind: str, octets: bytes) -> str:
    message, part = of_one_file(octets, "offer", kind)
    (shown,) = await attachments(api, await stored(api, message, attachments=[part]))
    url: str = shown["url"]
    return url


@asynccontextmanager
async def page_of(browser: Browser) -> AsyncIterator[Page]:
    async with await browser.new_context(accept_downloads=True) as context, await context.new_page() as page:
        yield page


TYPES = ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "message/rfc822", "text/plain"]


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml"])
async def test_the_canary_sings_where_a_server_serves_such_a_file_as_what_it_is(browser: Browser, kind: str) -> None:
    async with elsewhere() as site, page_of(browser) as page:
        site.page, site.type = hostile(kind, site.url), kind
        await page.goto(site.url)
        await page.wait_for_function("document.title === 'ran'" if "svg" not in kind else "true")
        async with asyncio.timeout(10):
            while not any(query.startswith("in=http") for query in site.ran):
                await page.evaluate("new Promise(requestAnimationFrame)")


@pytest.mark.parametrize("kind", TYPES)
async def test_a_file_that_is_opened_runs_nothing_and_is_downloaded(
    browser: Browser, tmp_path: Path, kind: str
) -> None:
    async with serving(tmp_path) as api, elsewhere() as site, page_of(browser) as page:
        octets = hostile(kind, site.url)
        url = await link(api, kind, octets)
        async with page.expect_download() as started:
            with pytest.raises(Error, match="Download is starting"):
                await page.goto(url)
        download = await started.value
        assert download.suggested_filename.startswith("offer")
        assert Path(await download.path()).read_bytes() == octets
        assert (page.url, await page.title(), site.ran) == ("about:blank", "", [])


@pytest.mark.parametrize("kind", TYPES)
async def test_a_file_in_a_page_of_somebody_else_runs_nothing_and_is_downloaded(
    browser: Browser, tmp_path: Path, kind: str
) -> None:
    elements = {
        "iframe": "<iframe src='{}'></iframe>",
        "iframe without downloads": "<iframe sandbox='allow-scripts allow-same-origin' src='{}'></iframe>",
        "embed": "<embed src='{}'>",
        "object": "<object data='{}'></object>",
    }
    async with serving(tmp_path) as api, elsewhere() as site, page_of(browser) as page:
        url = await link(api, kind, hostile(kind, site.url))
        downloads: list[Download] = []
        page.on("download", lambda download: downloads.append(download))
        for element, tag in elements.items():
            site.page = f"<title>mine</title>{tag.format(url)}".encode()
            if "without" in element:
                async with page.expect_request(url):
                    await page.goto(site.url)
                await settled(page)
            else:
                async with page.expect_download():  # what becomes a download becomes no document
                    await page.goto(site.url)
            assert (site.ran, await page.title()) == ([], "mine"), element
            assert not any(frame.url.startswith(api.url) for frame in page.frames), element
        assert len(downloads) == 3


async def settled(page: Page) -> None:
    """What had begun when this was called has run: a script of a file would have, too."""
    await page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "text/plain"])
async def test_a_file_is_no_script_for_another_page(browser: Browser, tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as api, elsewhere() as site, page_of(browser) as page:
        url = await link(api, kind, canary(site.url).encode())
        await page.goto(site.url)
        failed = await page.evaluate(
            """url => new Promise(done => {
              const script = document.createElement('script');
              script.onload = () => done(false);
              script.onerror = () => done(true);
              script.src = url;
              document.head.append(script);
            })""",
            url,
        )
        await settled(page)
        assert (failed, site.ran) == (True, [])
