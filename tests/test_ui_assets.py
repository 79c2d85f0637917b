"""The pages' own files: named by content, packed, and nothing of anybody else's."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from tests.ui_fixtures import Pages, pages
from webapi.ui.assets import FOLDER, assets
from webapi.ui.render import FOLDER as TEMPLATES

#: First load of a page in octets, packed (README): all shared files together.
SHARED = ("pico.min.css", "app.css", "htmx.min.js", "app.js", "icon.svg")
BUDGET = 40_000


async def test_a_browser_keeps_them_for_good(tmp_path: Path) -> None:
    async with pages(tmp_path) as p:
        for name, asset in assets().items():
            response, octets = await p.api.request("GET", asset.url, headers={"Accept-Encoding": "identity"})
            assert response.status == 200
            assert octets == (FOLDER / name).read_bytes()
            assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_they_come_packed_for_who_can_unpack(tmp_path: Path) -> None:
    async with pages(tmp_path) as p:
        asset = assets()["htmx.min.js"]
        async with p.api.session.get(p.api.url + asset.url, headers={"Accept-Encoding": "br, gzip"}) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert await response.read() == asset.plain  # aiohttp unpacks
        assert gzip.decompress(asset.packed) == asset.plain


@pytest.mark.parametrize(
    "path", ["/ui/static/0000000000000000/app.css", "/ui/static/x/..%2Fpage.py", "/ui/static/x/nothing"]
)
async def test_there_is_nothing_else(path: str, tmp_path: Path) -> None:
    async with pages(tmp_path) as p:
        assert (await Pages(p.api, "", "").get(path)).status == 404


def test_what_every_page_loads_is_small() -> None:
    assert sum(len(assets()[name].packed) for name in SHARED) < BUDGET


def test_no_template_or_style_names_another_host() -> None:
    foreign = re.compile(r"""(?:src|href|action)=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import""")
    files = [*TEMPLATES.iterdir(), *(path for path in FOLDER.iterdir() if ".min." not in path.name)]
    assert len(files) > 10
    assert [path.name for path in files if foreign.search(path.read_text("utf-8"))] == []


def test_no_template_has_what_the_policy_forbids() -> None:
    """Script and style in the text, handlers in attributes: Chromium would refuse them."""
    forbidden = re.compile(r"""<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|\shx-on|javascript:|\|\s*safe\b""")
    assert [path.name for path in TEMPLATES.iterdir() if forbidden.search(path.read_text("utf-8"))] == []
