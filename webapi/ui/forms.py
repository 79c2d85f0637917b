"""Forms and the models of the API: from what a form sends to the JSON that an operation takes, from an answer of the
API to what a form shows, and the errors of both back to the fields.

    browser ── name=value ──▶ Form.read ── JSON ──▶ the operation's model
    browser ◀── Form.filled ◀── JSON ── the operation's answer
    browser ◀── Form.typed (what was typed) and Errors ◀── Problem

A field is named as the API names its member (``conditions.max_size``, ``targets[0].lease``), so that an error finds
its field by its path. What a member may hold is the model's to judge: a form only says what is no JSON of its type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webapi.problems import Problem

#: What a form shows in a field: a text, whether a box is ticked, or which of several are.
Shown = str | bool | list[str]
#: What a browser sends: all values of each name.
Given = Mapping[str, Sequence[str]]

_LINE = re.compile(r"\r\n|\r|\n")
_SEPARATOR = re.compile(r"[\r\n,;]+")
_WHOLE = re.compile(r"[0-9]{1,18}").fullmatch
_SIZE = re.compile(r"([0-9]{1,18}) *([kMG]?)B?", re.IGNORECASE).fullmatch
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}  # as the pages show sizes (render.size)
_MEMBER = re.compile(r"\b(targets|statics|sources)\[([0-9]{1,4})\](?:\.([a-z_]+)(?:\[[0-9]+\])?)?")


def last(given: Sequence[str]) -> str:
    """What counts of a field that is sent several times."""
    return given[-1] if given else ""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of field is read, shown and kept. ``read`` raises ValueError with words for who has typed it."""

    read: Callable[[Sequence[str]], Any]
    show: Callable[[Any], Shown]
    keep: Callable[[Sequence[str]], Shown] = last


def _text(given: Sequence[str]) -> str:
    return last(given).strip()


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _optional(given: Sequence[str]) -> str | None:
    return _text(given) or None


def _block(given: Sequence[str]) -> str:
    return _LINE.sub("\n", last(given)).strip("\n")


def _items(given: Sequence[str]) -> list[str]:
    return [item for piece in _SEPARATOR.split(last(given)) if (item := piece.strip())]


def _whole(given: Sequence[str]) -> int:
    if not _WHOLE(_text(given)):
        raise ValueError("must be a whole number" if _text(given) else "is required")
    return int(_text(given))


def _whole_or_none(given: Sequence[str]) -> int | None:
    return _whole(given) if _text(given) else None


def _octets(given: Sequence[str]) -> int:
    match = _SIZE(_text(given) or "0")
    if match is None:
        raise ValueError('must be a size such as "500 kB" or "10 MB"')
    return int(match[1]) * _UNITS["k" if match[2].lower() == "k" else match[2].upper()]


def _size(octets: int) -> str:
    """The shortest way to write a size exactly; nothing for none."""
    for name in ("G", "M", "k"):
        if octets and octets % _UNITS[name] == 0:
            return f"{octets // _UNITS[name]} {name}B"
    return str(octets) if octets else ""


def _as_site(given: Sequence[str]) -> bool | str:
    answer = _text(given)
    return {"yes": True, "no": False}.get(answer, answer)


def _as_site_shown(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, "site")


def _pairs(separator: str) -> Callable[[Sequence[str]], dict[str, str]]:
    def read(given: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in filter(None, map(str.strip, _LINE.split(last(given)))):
            name, between, value = line.partition(separator)
            if not between or not name.strip():
                raise ValueError(f'"{line:.60}" is not a line such as "name{separator} value"')
            if name.strip() in found:
                raise ValueError(f'"{name.strip():.60}" is there twice')
            found[name.strip()] = value.strip()
        return found

    return read


#: One line; an empty one is an empty string, or null for OPTIONAL.
TEXT = Kind(_text, _plain)
OPTIONAL = Kind(_optional, _plain)
#: A text as it is, of several lines.
BLOCK = Kind(_block, _plain)
#: A list, one item a line or with commas.
ITEMS = Kind(_items, "\n".join)
NUMBER = Kind(_whole, _plain)
OPTIONAL_NUMBER = Kind(_whole_or_none, _plain)
#: Octets, or "10 MB"; an empty field is 0.
SIZE = Kind(_octets, _size)
BOX = Kind(lambda given: bool(last(given)), bool, lambda given: bool(last(given)))
#: "site", yes or no.
AS_SITE = Kind(_as_site, _as_site_shown)
BOXES = Kind(list, list, list)
#: Header fields, one a line; and variables.
HEADERS = Kind(_pairs(":"), lambda _: "")
VARIABLES = Kind(_pairs("="), lambda _: "")


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form by their names, which are the paths of the API's members."""

    fields: Mapping[str, Kind]

    def read(self, given: Given, prefix: str = "") -> dict[str, Any]:
        """The JSON that an operation takes, of the fields whose names begin with ``prefix``; raises Problem 400."""
        document: dict[str, Any] = {}
        errors = []
        for name, kind in self.fields.items():
            try:
                _put(document, name, kind.read(given.get(prefix + name, ())))
            except ValueError as error:
                errors.append((prefix + name, str(error)))
        if errors:
            raise Problem(400, errors[0][1], errors=tuple(errors))
        return document

    def typed(self, given: Given, prefix: str = "") -> dict[str, Shown]:
        """What was typed, to be shown again."""
        return {prefix + name: kind.keep(given.get(prefix + name, ())) for name, kind in self.fields.items()}

    def filled(self, document: Mapping[str, Any], prefix: str = "") -> dict[str, Shown]:
        """What the form shows of an answer of the API; a member that it lacks is shown as none."""
        found = {}
        for name, kind in self.fields.items():
            value = _get(document, name)
            found[prefix + name] = kind.show(value) if value is not None else kind.keep(())
        return found


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *way, member = path.split(".")
    for step in way:
        document = document.setdefault(step, {})
    document[member] = value


def _get(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True, slots=True)
class Errors:
    """What was wrong: by field, and what is nobody's in particular. Falsy where nothing was."""

    by_field: Mapping[str, str]
    general: tuple[str, ...] = ()

    def of(self, name: str) -> str:
        return self.by_field.get(name, "")

    def __bool__(self) -> bool:
        return bool(self.by_field or self.general)


NONE = Errors({})


def errors_of(
    problem: Problem, names: Iterable[str], document: Mapping[str, Any] | None = None, prefix: str = ""
) -> Errors:
    """A problem by the fields of a form that have these names.

    ``prefix`` is where the form's part lies in ``document``, the body that was refused. Raises the problem itself when
    no form is to blame for it.
    """
    if problem.status not in (400, 409) and not (problem.status == 403 and problem.errors):  # of one field of it
        raise problem
    fields = sorted(names, key=len, reverse=True)
    found: dict[str, list[str]] = {}
    general: list[str] = []
    for path, detail in problem.errors or (("", problem.detail or ""),):
        words = in_words(detail, document)
        own = path.removeprefix(prefix)
        name = next((name for name in fields if own == name or own.startswith((f"{name}.", f"{name}["))), None)
        if name is not None and path.startswith(prefix):
            found.setdefault(name, []).append(words)
        else:
            where = in_words(path, document)
            general.append(words if where == "" or words.startswith(f"{where}:") else f"{where}: {words}")
    return Errors({name: "; ".join(dict.fromkeys(said)) for name, said in found.items()}, tuple(general))


def in_words(detail: str, document: Mapping[str, Any] | None) -> str:
    """A detail whose paths into ``document`` are the names of things: "the pool of sales@example.com"."""

    def named(match: re.Match[str]) -> str:
        kind, index, member = match[1], int(match[2]), match[3]
        things = (document or {}).get(kind) or ()
        thing = things[index] if index < len(things) else {}
        name = thing.get("address") or thing.get("marker") or f"number {index + 1}"
        whole = {"targets": str(name), "statics": f"static address {name}", "sources": f"rule {name}"}[kind]
        return f"{_MEMBERS.get(member, member)} of {whole}" if member else whole

    return _MEMBER.sub(named, detail)


_MEMBERS = {
    "address": "the address",
    "pool": "the pool",
    "pool_size": "the size of the pool",
    "forward_to": "the mailbox",
    "next_hop": "the mail server",
    "lease": "the lease",
    "domain": "the domain",
    "label": "the label",
    "target": "the target",
}
