"""A table as a download: its headers, and its pieces as they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from aiohttp import web

from webapi import csv_file

#: Seconds that a reader may take for one piece.
PATIENCE = 60.0


async def begin(request: web.Request, file: str) -> web.StreamResponse:
    """The response with its headers sent; a request by HEAD has no more than these."""
    headers = {
        "Content-Type": "text/csv; charset=utf-8",
        "Content-Disposition": f'attachment; filename="{file}"',
        "Cache-Control": "no-store",
    }
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


async def write_header(response: web.StreamResponse, columns: Sequence[object]) -> None:
    await _write(response, csv_file.BOM + csv_file.rows([columns]))


async def write(response: web.StreamResponse, lines: Iterable[Sequence[object]]) -> None:
    """Send these lines; raises ConnectionError when whoever asked is gone, or takes too long."""
    if text := csv_file.rows(lines):
        await _write(response, text)


async def _write(response: web.StreamResponse, text: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            await response.write(text.encode(errors="replace"))
    except TimeoutError:
        raise ConnectionAbortedError("nobody reads it") from None
