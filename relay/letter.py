"""A stranger's HTML made safe to look at: words, tables, colours, and the pictures that came along with it.

    what the sender wrote                          what is left of it
    ---------------------------------------------  ---------------------------------------------------------------
    script, style, svg, math, frames, media …      nothing, nor of what stands in them
    any other tag that is not listed here          what stands in it
    <img src="cid:…"> of a picture that came too   <img src="MARKER-3">, attachment 3: whoever shows it puts its
                                                   address there
    <img src="data:image/png;base64,…">            itself
    any other picture                              its alternative text; it is counted
    href                                           http, https, mailto and tel only
    style="…"                                      properties that change only looks, with values that load nothing

Parsing and writing are nh3's (ammonia on html5ever, the parser that browsers' rules were written down for). The page
that shows the result forbids scripts and the network all the same; neither lock relies on the other.

It takes time and memory as its input wants it: some 20 KB of formatting tags make gigabytes. So it runs in a worker
process alone (relay/extract_worker.py), which is killed for that.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

import nh3

from relay.core.letter import Letter

#: Characters of a page that are read, and that may come of them.
MAX_READ = 1024 * 1024
MAX_SAFE = 4 * 1024 * 1024
_MOST_COUNTED = 1000  # pictures that were not fetched


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TAGS = _words(
    "a abbr address article aside b bdi bdo big blockquote br caption center cite code col colgroup dd del details dfn "
    "div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i img ins kbd li main mark nav ol p pre q "
    "s samp section small span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
_WITH_CONTENT = _words(
    "script style svg math iframe frameset object embed applet noscript noembed noframes template title audio "
    "video canvas select textarea xmp"
)
_BOX = frozenset({"align", "valign", "width", "height", "bgcolor"})
_ATTRIBUTES: dict[str, set[str]] = {
    "*": {"style", "dir", "lang", "title"},
    "a": {"href"},
    "img": {"src", "alt", "width", "height", "align", "border", "hspace", "vspace"},
    "font": {"color", "face", "size"},
    "table": {*_BOX, "border", "cellpadding", "cellspacing"},
    **{tag: {*_BOX, "colspan", "rowspan", "nowrap"} for tag in ("td", "th")},
    **{tag: set(_BOX) for tag in ("tr", "thead", "tbody", "tfoot", "col", "colgroup")},
    **{tag: {"align"} for tag in ("p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "caption")},
    "ol": {"start", "type"},
    "ul": {"type"},
    "li": {"value"},
    "time": {"datetime"},
}
_SCHEMES = frozenset({"http", "https", "mailto", "tel", "cid", "data"})

_SIDES = ("", "-top", "-right", "-bottom", "-left")
_LOOKS = frozenset(
    (
        *("color", "background", "background-color", "opacity", "direction", "display", "visibility"),
        *("font", "font-family", "font-size", "font-style", "font-variant", "font-weight", "line-height"),
        *("letter-spacing", "word-spacing", "text-align", "text-decoration", "text-indent", "text-transform"),
        *("vertical-align", "white-space", "word-break", "word-wrap", "overflow-wrap", "list-style-type"),
        *("width", "min-width", "max-width", "height", "min-height", "max-height", "box-sizing", "float", "clear"),
        *("table-layout", "border-collapse", "border-spacing", "border-radius"),
        *(f"{name}{side}" for name in ("margin", "padding", "border") for side in _SIDES),
        *(f"border{side}-{what}" for side in _SIDES for what in ("color", "style", "width")),
    )
)
# property ":" value, of characters of which no escape, comment, string with a bracket in it, or rule can be made
_DECLARATION = re.compile(r"\s*([a-z-]{1,40})\s*:\s*([a-z0-9#%.,()'\"!+/ \t\n-]{1,300})", re.IGNORECASE | re.ASCII)
_FUNCTION = re.compile(r"([a-z0-9-]*)\s*\(", re.IGNORECASE | re.ASCII)
_FUNCTIONS = frozenset({"rgb", "rgba", "hsl", "hsla", "calc"})  # none of these loads anything
_DATA = re.compile(r"data:image/(?:png|jpeg|gif|webp|bmp);base64,[A-Za-z0-9+/=\s]+\Z", re.IGNORECASE | re.ASCII)
_REMOTE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_LINK = re.compile(r"(?:https?://|mailto:|tel:)[^\x00-\x20\x7f]*\Z", re.IGNORECASE)


@dataclass(slots=True)
class _Rules:
    """What becomes of an attribute's value. It must not raise: nh3 would leave the value as it is."""

    pictures: Mapping[str, int]
    marker: str
    remote: int = 0
    _seen: set[str] = field(default_factory=set)

    def filter(self, tag: str, name: str, value: str) -> str | None:
        try:
            if name == "style":
                return _looks(value)
            if name == "src":
                return self._picture(value.strip()) if tag == "img" else None  # nh3 asks for what it removes, too
            if name == "href":
                return value.strip() if _LINK.match(value.strip()) else None
        except Exception:
            return None
        return value

    def _picture(self, address: str) -> str | None:
        if address[:4].lower() == "cid:":
            index = self.pictures.get(unquote(address[4:]).strip())
            return None if index is None else f"{self.marker}-{index}"
        if _DATA.match(address):
            return address
        if _REMOTE.match(address) and address not in self._seen and len(self._seen) < _MOST_COUNTED:
            self._seen.add(address)
            self.remote += 1
        return None


def safe(page: str, pictures: Mapping[str, int], cut: bool = False) -> Letter:
    """``page`` as a fragment to put into a page of ours; ``pictures``: attachments by their Content-ID without <>."""
    rules = _Rules(pictures, secrets.token_hex(8))
    cleaned = nh3.clean(
        page[:MAX_READ],
        tags=set(_TAGS),
        clean_content_tags=set(_WITH_CONTENT),
        attributes=_ATTRIBUTES,
        attribute_filter=rules.filter,
        url_schemes=set(_SCHEMES),
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer nofollow",
        strip_comments=True,
    )
    if len(cleaned) > MAX_SAFE:
        return Letter(cut=True)
    return Letter(cleaned, rules.marker, rules.remote, cut or len(page) > MAX_READ)


def _looks(style: str) -> str | None:
    """The declarations of a style attribute that are kept, None when there are none."""
    kept = []
    for declaration in style[:10_000].split(";")[:100]:
        match = _DECLARATION.fullmatch(declaration.strip())
        if match is None or match[1].lower() not in _LOOKS or "/*" in match[2]:
            continue
        if all(name.lower() in _FUNCTIONS for name in _FUNCTION.findall(match[2])):
            kept.append(f"{match[1].lower()}:{match[2].strip()}")
    return ";".join(kept) or None
