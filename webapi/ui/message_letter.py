"""The HTML form of a letter in a page of its own, for a frame that runs nothing and loads nothing from elsewhere.

Two locks, neither of which relies on the other: what is shown was made safe by a worker process (relay/letter.py), and
the browser is told to run nothing and to fetch nothing but the pictures that came along, whatever stands in it. Those
are fetched by signed links, for the frame is a stranger to us: no cookie goes with what it asks for.
"""

from __future__ import annotations

import asyncio
import re
from functools import cache
from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from markupsafe import escape

from relay.core.letter import Letter
from relay.core.mimetext import file_name
from relay.core.wire import unstuff
from relay.extract import Extractor, ExtractorClosed
from relay.store import history
from relay.store.history import MessageRow
from webapi import links
from webapi.context import Context
from webapi.ui.assets import assets

#: Seconds that the worker may take for one letter, and octets of address space it may have.
TIME = 3.0
MEMORY = 512 * 1024 * 1024
#: Letters remembered that can't be shown, each of which costs the worker its time again.
HOPELESS = 1000
#: Seconds for which the links to a letter's pictures live: until the frame has loaded them.
PICTURES_LIVE = 900
#: Octets of a message's source that are shown; all of it can be downloaded.
SOURCE = 128 * 1024

HEADERS = {
    "Content-Security-Policy": (
        # Whoever clicks a link opens it in a tab of its own, without knowledge of this page and without these chains.
        "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src 'self' data:; "
        "style-src 'self' 'unsafe-inline'; style-src-elem 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    ),
    "Cache-Control": "private, no-store",
    "X-Robots-Tag": "noindex",
}


class Letters:
    """The worker that makes letters safe: one process, started when the first letter is looked at.

    It is none of those that read the mail: a letter that costs a worker its life holds up nobody but who looks at it.
    """

    def __init__(self) -> None:
        self._extractor: Extractor | None = None
        self._starting = asyncio.Lock()
        self._hopeless: set[int] = set()

    async def read(self, message_id: int, source: bytes | Path) -> Letter:
        """Never raises for what the letter holds; one that can't be shown has no ``html``, and is tried once."""
        if message_id in self._hopeless:
            return Letter(cut=True)
        async with self._starting:
            if self._extractor is None:
                extractor = Extractor(workers=1, timeout=3 * TIME, memory=MEMORY)
                await extractor.start()
                if not extractor.pids:  # the log says why
                    await extractor.close()
                    return Letter(cut=True)
                self._extractor = extractor
        try:
            letter = await self._extractor.letter(source)
        except ExtractorClosed:
            return Letter(cut=True)  # the daemon stops
        if letter.html is None and letter.cut:
            if len(self._hopeless) >= HOPELESS:
                self._hopeless.clear()
            self._hopeless.add(message_id)
        return letter

    async def close(self) -> None:
        if self._extractor is not None:
            await self._extractor.close()


LETTERS = web.AppKey("letters", Letters)


async def close(app: web.Application) -> None:
    """For ``app.on_cleanup``."""
    await app[LETTERS].close()


async def source_of(context: Context, row: MessageRow) -> bytes | Path | None:
    """The stored message in wire form, or its file; None when it is gone."""
    if row.raw_removed_at is not None:
        return None
    data, file = await history.raw(context.store.reader, row.id) or (None, None)
    if data is not None:
        return data
    return context.bodies.path(file) if file else None


def may_have_html(source: bytes | Path | None) -> bool:
    """Whether the letter is worth looking at in its HTML form; a large one is, without looking."""
    return source is not None and (isinstance(source, Path) or b"text/html" in source.lower())


async def head_of(context: Context, source: bytes | Path) -> tuple[str, bool]:
    """The beginning of the message as it was received, and whether there is more. Raises OSError."""
    if isinstance(source, Path):
        data = await asyncio.to_thread(context.bodies.read, source.name, SOURCE + 1)
    else:
        data = source
    return unstuff(data)[:SOURCE].decode("utf-8", "replace"), len(data) > SOURCE


def document(context: Context, row: MessageRow, letter: Letter, text: str | None, site: int | None) -> str:
    """The page in the frame. ``site``: whose share of the message the reader sees, None: all of it."""
    notes = []
    if letter.remote:
        what = "picture from the internet is" if letter.remote == 1 else "pictures from the internet are"
        notes.append(f"{letter.remote} {what} not loaded: that would tell the sender that the letter was opened.")
    if letter.html is None:
        notes.append("The formatted letter cannot be shown safely; this is its text." if letter.cut else "Plain text.")
    elif letter.cut:
        notes.append("The letter is very long; this is its beginning.")
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    if letter.html is None:
        body = f'<div id="plain">{escape(text or "The letter has no text.")}</div>'
    else:
        body = f'<div id="letter">{_with_pictures(context, row, letter, site)}</div>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The letter</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<link rel="stylesheet" href="{assets()["message_letter.css"].url}"></head><body>{said}{body}</body></html>'
    )


def _with_pictures(context: Context, row: MessageRow, letter: Letter, site: int | None) -> str:
    """The letter's HTML with links in the place of its marks; the marker stands nowhere else in it."""
    expires = int(context.clock()) + PICTURES_LIVE
    key = context.keys.current("links")
    parts = {part.index: part for part in row.attachments}

    @cache  # a letter may show one picture tens of thousands of times
    def link(index: int) -> str:
        part = parts.get(index)
        if part is None:
            return '""'
        name = quote(file_name(part.name, part.type, part.index).encode(), safe="")
        return f'"/a/{links.make(key, row.id, part.index, expires, site)}/{name}"'

    assert letter.html is not None
    return re.sub(rf'"{letter.marker}-([0-9]{{1,5}})"', lambda found: link(int(found[1])), letter.html)
