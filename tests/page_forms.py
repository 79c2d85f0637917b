"""The forms of a page as a browser would send them: with what their fields hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class PageForm:
    """``fields`` are its names and values, those of a name that is sent several times in their order."""

    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)

    def sent(self, changes: Mapping[str, str]) -> dict[str, str | list[str]]:
        """What is posted with other values in some fields. Each of these must be the form's."""
        names = {name for name, _ in self.fields}
        assert set(changes) <= names, (set(changes) - names, self.action)
        given: dict[str, str | list[str]] = {}
        for name in dict.fromkeys(name for name, _ in self.fields if name != "csrf"):
            values = [value for known, value in self.fields if known == name]
            given[name] = values if len(values) > 1 else values[0]
        return given | dict(changes)


@dataclass
class _Reader(HTMLParser):
    forms: list[PageForm] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._form: PageForm | None = None
        self._area: str | None = None
        self._select: str | None = None
        self._options: list[tuple[str, bool]] = []
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and given.get("method") == "post":
            self._form = PageForm(given.get("action", ""))
            self.forms.append(self._form)
        elif self._form is None:
            return
        elif tag == "input" and "name" in given:
            choice = given.get("type") in ("radio", "checkbox")
            if not choice or "checked" in given:
                self._form.fields.append((given["name"], given.get("value", "on" if choice else "")))
        elif tag == "textarea":
            self._area, self._text = given["name"], ""
        elif tag == "select":
            self._select, self._options = given["name"], []
        elif tag == "option":
            self._options.append((given.get("value", ""), "selected" in given))

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        if self._form is None:
            return
        if tag == "textarea" and self._area is not None:
            self._form.fields.append((self._area, self._text.removeprefix("\n")))
            self._area = None
        elif tag == "select" and self._select is not None and self._options:
            chosen = [value for value, selected in self._options if selected] or [self._options[0][0]]
            self._form.fields.append((self._select, chosen[-1]))


def forms_of(page: str) -> Sequence[PageForm]:
    """The forms that are posted."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.forms
