"""Templates to pages: one environment, everything escaped, and the words for values that all pages share."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from relay.config import fields as f
from webapi.ui.assets import assets
from webapi.ui.bytecode import TemplateBytecode
from webapi.ui.notices import DONE

if TYPE_CHECKING:
    from webapi.ui.page import View

FOLDER = Path(__file__).parent / "templates"

#: Nothing but our own files, and no script or style in a page's text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-DNS-Prefetch-Control": "off",  # a link in a letter tells nobody that it was looked at
}

#: The pages in the order of the menu: path, name, and what it shows.
MENU = (
    ("/ui/history", "History"),
    ("/ui/sources", "Sources"),
    ("/ui/sites", "Sites"),
    ("/ui/addresses", "Addresses"),
    ("/ui/webhooks", "Webhooks"),
    ("/ui/queue", "Queue"),
    ("/ui/checks", "Checks"),
    ("/ui/settings", "Settings"),
)


def moment(seconds: float | None, precise: bool = False) -> Markup:
    """A time in UTC that a program can read, too."""
    if seconds is None:
        return Markup("")
    at = datetime.fromtimestamp(seconds, UTC)
    text = f"{at.day} {at:%b %Y, %H:%M:%S}"
    if precise:
        text += f".{at.microsecond // 1000:03d}"
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(timespec="milliseconds"), text)


def duration(seconds: float) -> str:
    """A span in one or two units, as a person says it: "80 ms", "3.2 s", "5 min", "2 h 10 min", "3 d".

    >>> duration(0.0801), duration(3.21), duration(7800), duration(-5)
    ('80 ms', '3.2 s', '2 h 10 min', '−5.0 s')
    """
    if seconds < 0:
        return f"−{duration(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 10 else f"{days} d"


def size(octets: int) -> str:
    """
    >>> size(999), size(15_300), size(52_428_800)
    ('999 B', '15.3 kB', '52.4 MB')
    """
    if octets < 1000:
        return f"{octets} B"
    for unit in ("kB", "MB"):
        octets_of = octets / (1000 if unit == "kB" else 1_000_000)
        if octets_of < 1000:
            return f"{octets_of:.1f} {unit}"
    return f"{octets / 1_000_000_000:.1f} GB"


def number(value: float) -> str:
    """
    >>> number(1234567).split("\N{NARROW NO-BREAK SPACE}")
    ['1', '234', '567']
    """
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def percent(share: float) -> str:
    """What is not all is never "100 %", and what is not nothing never "0 %".

    >>> percent(0.003), percent(0.47), percent(1), percent(0)
    ('0.3 %', '47 %', '100 %', '0 %')
    >>> percent(0.99998), percent(0.00002)
    ('over 99 %', 'under 0.1 %')
    """
    value = share * 100
    if 99.5 <= value < 100:
        return "over 99 %"
    if 0 < value < 0.05:
        return "under 0.1 %"
    return f"{value:.1f} %" if 0 < value < 10 and round(value, 1) != round(value) else f"{value:.0f} %"


def segment(text: object) -> str:
    """A value as one segment of a path."""
    return quote(str(text), safe="")


@functools.cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        bytecode_cache=TemplateBytecode(Path(__file__)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "moment": moment,
        "duration": duration,
        "lasting": f.format_duration,
        "size": size,
        "number": number,
        "percent": percent,
        "segment": segment,
    }
    made.globals |= {"asset": _asset_url, "MENU": MENU}
    return made


def load() -> None:
    """Have every template compiled now: on the first view of each, everything else would wait for it."""
    made = environment()
    for name in made.list_templates():
        made.get_template(name)


def _asset_url(name: str) -> str:
    return assets()[name].url


def render(
    view: View | None, template: str, /, *, status: int = 200, block: str | None = None, **values: Any
) -> web.Response:
    """A page; with ``block`` only that block of it, for htmx. ``view`` None: nobody is logged in."""
    found = environment().get_template(template)
    given = {"view": view, "now": None if view is None else view.context.clock(), "notice": _notice(view), **values}
    text = found.render(given) if block is None else "".join(found.blocks[block](found.new_context(given)))
    return web.Response(status=status, text=text, headers=HEADERS)


def _notice(view: View | None) -> str | None:
    return None if view is None else DONE.get(view.query("done"))
