"""Every page and export with hostile strings in all that strangers can write: no script runs, no formula is exported.

A page that let one of them become markup would show in three ways: Chromium reports what the policy refused, a dialog
opens, or the document has elements and attributes that no template wrote.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from playwright.async_api import Browser, Page

from tests.browser.ui_browser import WIDE
from tests.hostile_world import fill, spoil, vectors
from tests.store_fixtures import OTHER, SHOP
from tests.ui_fixtures import Pages, pages
from webapi.csv_file import DANGEROUS
from webapi.ui import history_query
from webapi.ui.pages import PAGES
from webapi.ui.session import COOKIE

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

LETTERS = 4
#: What no page of ours contains: handlers in attributes, addresses that are scripts, elements of strangers.
_FOREIGN = """() => {
  const found = [];
  for (const element of document.querySelectorAll("*")) {
    for (const { name, value } of element.attributes) {
      if (name.startsWith("on")) found.push(`${element.tagName} ${name}=${value}`);
      if (/^(href|src|action|formaction|xlink:href|data|srcdoc)$/.test(name)) {
        const url = new URL(value, document.baseURI);
        if (!["http:", "https:", "mailto:"].includes(url.protocol)) found.push(`${element.tagName} ${name}=${value}`);
      }
    }
    if (/^(object|embed|base|meta|style|applet|frameset|math|marquee|video|audio|keygen)$/i.test(element.tagName) &&
        !(element.tagName === "META" && /^(viewport|color-scheme|htmx-config)$/.test(element.name)) &&
        !(element.tagName === "META" && element.hasAttribute("charset"))) found.push(element.outerHTML.slice(0, 200));
    if (element.tagName === "SCRIPT" && !new URL(element.src).pathname.startsWith("/ui/static/")) {
      found.push(element.outerHTML.slice(0, 200));
    }
  }
  return found;
}"""


#: Whoever opens a dialog has run.
_NOTED = "for (const name of ['alert', 'confirm', 'prompt', 'print']) window[name] = () => console.error(name, 'ran');"


#: No pages by themselves: htmx asks for them and puts them into one.
FRAGMENTS = ("/ui/sites/{name}/seen", "/ui/webhooks/{id}/log", "/ui/checks/progress")
#: What is put into addresses: ends an attribute, an element, a string; each field has one of the corpora besides.
BREAKS_OUT = "\"'><svg onload=alert(1)><img src=x onerror=alert(1)></textarea></title><script>alert(1)</script>"


def known(p: Pages) -> dict[str, list[str]]:
    """What there is for the parameter of paths that begin like this."""
    shop = p.world.site()
    return {
        "/ui/messages/{id}": [str(number) for number in range(1, LETTERS + 1)],
        "/ui/webhooks/{id}": [str(hook.id) for hook in shop.webhooks],
        "/ui/sites/{name}": [shop.name],
        "/ui/settings/users/{name}": [p.name],
    }


def of_all(p: Pages, path: str) -> list[str]:
    """A path of PAGES, with each value of its parameters."""
    start = next((start for start in known(p) if path.startswith(start)), None)
    if start is None:
        return [path]
    name = start[start.index("{") : start.index("}") + 1]
    target = quote(str(p.world.site().targets[0].address))
    return [path.replace(name, value).replace("{address}", target) for value in known(p)[start]]


def paths(p: Pages) -> list[str]:
    """Every page that can be looked at; the stream of the History has an end of its own (tests/test_ui_history.py)."""
    gets = [page.path for page in PAGES if page.method == "GET" and not page.path.endswith("/events")]
    return [path for each in gets if each not in FRAGMENTS for path in of_all(p, each)]


def inside(p: Pages) -> list[str]:
    """What else the pages show of what is stored: other tabs, a chosen row, a report by something else."""
    hook = p.world.site().webhooks[0].id
    messages = [f"/ui/messages/{number}?show={show}" for number in (1, 2) for show in ("letter", "source")]
    reports = [f"/ui/sources?period=all&by={by}" for by in ("campaign", "landing_page", "target")]
    return [
        *messages,
        "/ui/messages/1?whole=1",
        *reports,
        "/ui/sources?period=all&plot=visits",
        "/ui/history?period=30d&deal=yes",
        f"/ui/webhooks/{hook}?state=failed&post=2",
        f"/ui/webhooks/{hook}?state=delivered&post=1",
        "/ui/queue?show=held",
        "/ui/addresses?site=shop&target=jobs@example.com",
        "/ui/sites/shop/sources?rule=0",
    ]


def reflected(rng: random.Random) -> list[str]:
    """Addresses with hostile values in every field that a page reads from them: of its filters, its drill-down."""
    texts = [text[:200] for text in vectors()]

    def query(*names: str) -> str:
        return urlencode({name: f"{BREAKS_OUT} {rng.choice(texts)}" for name in names})

    fields = [name for name in history_query.FIELDS if name not in ("site", "state", "visit")]
    return [
        f"/ui/history?{query('q')}",
        f"/ui/history?{query('source', 'sender')}",
        f"/ui/history?{query(*fields)}&period=custom",
        f"/ui/history?{query('site')}",
        f"/ui/history?{query('state')}",
        f"/ui/history?{query('visit', 'cursor')}",
        f"/ui/queue?{query('destination', 'sender', 'show')}",
        f"/ui/queue?{query('site')}",
        f"/ui/queue?show=held&{query('cursor')}",
        f"/ui/sources?period=all&{query('source', 'by', 'sort', 'plot', 'touch', 'rows')}",
        f"/ui/sources?period=custom&{query('since', 'until')}",
        f"/ui/sources?{query('site')}",
        f"/ui/addresses?{query('site')}",
        f"/ui/addresses?site=shop&{query('target', 'q', 'state')}",
        f"/ui/messages/1?{query('show', 'part', 'whole', 'done')}",
        f"/ui/webhooks/1?{query('state')}",
        f"/ui/webhooks/1?{query('post', 'replayed', 'cursor')}",
        f"/ui/webhooks/new?{query('site')}",
        f"/ui/sites/shop/sources?{query('rule')}",
        f"/ui/settings/changes?{query('cursor')}",
        f"/ui/sites/{quote(BREAKS_OUT, safe='')}",
        f"/ui/settings/users/{quote(BREAKS_OUT, safe='')}",
        f"/ui/login?{query('next')}",
    ]


@dataclass
class Looker:
    """A browser that looks at pages. ``said`` is what it complains about of the one it is at."""

    p: Pages
    page: Page
    said: list[str]

    async def exported(self, path: str) -> bool:
        """A table: no cell of it is a formula."""
        answer = await self.p.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/csv; charset=utf-8"), path
        for line in csv.reader(io.StringIO(answer.text.removeprefix("\ufeff"), newline="")):
            assert not [cell for cell in line if cell.startswith(DANGEROUS) and not _is_number(cell)], path
        return True

    async def downloaded(self, path: str) -> bool:
        """A letter as it was received: saved and never shown."""
        answer = await self.p.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "message/rfc822"), path
        assert answer.headers["Content-Disposition"].startswith("attachment"), path
        return True

    async def look(self, path: str, *statuses: int) -> None:
        self.said.clear()
        answer = await self.page.goto(self.p.api.url + path)
        assert answer is not None
        assert answer.status in (statuses or (200,)), (path, answer.status)
        # What is no day is no value of a field for days, and none of the answers here is an error that nobody expects.
        usual = ("does not conform to the required format", "the server responded with a status of 40")
        self.said[:] = [said for said in self.said if not any(words in said for words in usual)]
        await self.judge(path)

    async def put_in(self, path: str) -> None:
        """A part of a page, put into one as htmx does it."""
        answer = await self.p.get(path, **{"HX-Request": "true"})
        assert answer.status == 200, (path, answer.status)
        await self.look("/ui/settings/retention")
        await self.page.evaluate("(text) => { document.querySelector('main').innerHTML = text; }", answer.text)
        await self.judge(path)

    async def judge(self, path: str) -> None:
        assert await self.page.evaluate(_FOREIGN) == [], path
        assert self.said == [], path


@asynccontextmanager
async def looking(browser: Browser, p: Pages) -> AsyncIterator[Looker]:
    async with await browser.new_context(viewport=WIDE) as context, await context.new_page() as page:
        await context.add_cookies([{"name": COOKIE, "value": p.cookie, "domain": "127.0.0.1", "path": "/ui"}])
        await context.add_init_script(_NOTED)
        said: list[str] = []
        page.on("console", lambda line: said.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"a dialog: {dialog.message}"))
        yield Looker(p, page, said)


async def test_no_script_runs_and_no_formula_is_exported(browser: Browser, tmp_path: Path) -> None:
    seed = random.randrange(1 << 20)
    print(f"seed {seed}")
    async with pages(tmp_path, SHOP, OTHER) as p:
        await fill(p.world, LETTERS)
        assert len(vectors()) > 500
        assert await p.world.store.write(lambda tx: spoil(tx, seed)) > 200
        await p.world.store.redefine(lambda tx: None)
        async with looking(browser, p) as looker:
            downloads, exports = 0, 0
            for path in [*paths(p), *inside(p)]:
                if path.endswith("/raw"):
                    downloads += await looker.downloaded(path)
                elif path.endswith(("/csv", ".csv")):
                    exports += await looker.exported(path)
                else:
                    await looker.look(path)
            assert (downloads, exports) == (LETTERS, 2)
            for fragment in FRAGMENTS:
                for path in of_all(p, fragment):
                    await looker.put_in(path)
            for path in reflected(random.Random(seed)):
                await looker.look(path, 200, 400, 404)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
