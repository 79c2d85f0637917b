"""The pages' own files: named by their content, so a browser keeps them for good, and packed once."""

from __future__ import annotations

import functools
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from webapi.problems import not_found
from webapi.ui.session import ROOT

FOLDER = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    url: str
    media_type: str
    plain: bytes
    packed: bytes


@functools.cache
def assets() -> dict[str, Asset]:
    """Every file of the folder by its name."""
    return {path.name: _asset(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}


def _asset(path: Path) -> Asset:
    plain = path.read_bytes()
    digest = hashlib.sha256(plain).hexdigest()[:16]
    url = f"{ROOT}/static/{digest}/{path.name}"
    return Asset(url, TYPES[path.suffix], plain, gzip.compress(plain, mtime=0))


async def asset(request: web.Request) -> web.Response:
    """Public: they are in everybody's copy of the program."""
    found = assets().get(request.match_info["name"])
    if found is None or found.url != request.path:
        raise not_found("file")
    headers = {
        "Content-Type": f"{found.media_type}; charset=utf-8",
        "Cache-Control": "public, max-age=31536000, immutable",
        "Vary": "Accept-Encoding",
    }
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return web.Response(body=found.packed, headers=headers | {"Content-Encoding": "gzip"})
    return web.Response(body=found.plain, headers=headers)
