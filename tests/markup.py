"""What a page consists of: to show that no value has become markup, and to find what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

from tests.corpora import corpus
from tests.ledger import SOAK

#: So many heaps at least come to each field of a form.
FEW = 6
_EMPTY = frozenset(("area", "base", "br", "col", "hr", "img", "input", "link", "meta"))


@dataclass
class _Reader(HTMLParser):
    parts: set[tuple[str, str]] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._area = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.parts |= {(tag, name) for name in ("", *given)}
        self._area = given.get("name", "") if tag == "textarea" else ""
        if tag == "script":
            self.scripts.append(given.get("src", ""))
        self.links += [given[name] for name in ("href", "src", "action", "hx-get", "hx-post") if name in given]
        if "name" in given and tag == "input" and given.get("type") not in ("radio", "checkbox", "hidden"):
            self.values[given["name"]] = given.get("value", "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self._area = ""

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._area:
            self.values[self._area] = self.values.get(self._area, "") + data


def read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader


def parts(page: str) -> set[tuple[str, str]]:
    """Every kind of element, and every attribute that some element of a kind has."""
    return read(page).parts


def check(page: str, known: set[tuple[str, str]]) -> None:
    """Nothing in the page is markup that ``known`` pages have not; it runs and loads only our own."""
    found = read(page)
    assert found.parts <= known, found.parts - known
    assert all(source.startswith("/ui/static/") for source in found.scripts), found.scripts
    assert all(link.startswith(("/", "#", "?", "https://", "http://")) or not link for link in found.links), found.links


def said(page: str) -> str:
    """The text of a page, with single spaces."""
    return " ".join(" ".join(read(page).texts).split())


def values(page: str) -> dict[str, str]:
    """What its text fields hold, their lines ended as a browser ends them."""
    return {name: value.replace("\r\n", "\n") for name, value in read(page).values.items()}


def hostile() -> list[str]:
    """blns, h5sc and csv-injection; what no HTTP form could carry is left out."""
    found = json.loads((corpus("strings-blns") / "blns.json").read_text("utf-8"))
    for name, file in (("xss-h5sc", "vectors.txt"), ("csv-injection", "csv-payload.txt")):
        found += (corpus(name) / file).read_text("utf-8").splitlines()
    return [text for text in found if text.strip()]


def heaps(most: int = 3000) -> list[str]:
    """The same, many in one text."""
    found: list[str] = []
    for text in hostile():
        if found and len(found[-1]) + len(text) < most:
            found[-1] += f" {text}"
        else:
            found.append(text)
    return found


def fillings(names: Sequence[str], most: int = 3000) -> Iterator[dict[str, str]]:
    """A form filled in several ways: each field takes some heaps, together they take all; in a soak each takes all."""
    texts = heaps(most)
    count = len(texts) if SOAK else max(FEW, -(-len(texts) // len(names)))
    for number in range(count):
        yield {name: texts[(at * count + number) % len(texts)] for at, name in enumerate(names)}
