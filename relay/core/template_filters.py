"""What the templates of webhooks may call, and what it costs.

Every filter whose work or result grows with the text pays for it, in characters, from the rendering's ``Budget``
before the work where the size is known, so neither a template nor a message can make a rendering long or large. There
is no filter with a regular expression, with padding or with a repetition.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

from jinja2 import Undefined, pass_context
from jinja2.runtime import Context

#: Characters that filters, concatenations, comparisons, loops and output of one rendering may come to together.
MAX_WORK = 14 * 1024 * 1024
#: What a step that handles no text costs, and a character of what takes longer than copying it.
STEP = 64
SLOW = 3
#: Where a rendering's context keeps its budget. No template can spell this name, nor those of ``INTERNAL``.
BUDGET = " budget"
_MAX_ORIGIN = 8192
# RFC 3986 §2.3; every other octet is written by its number.
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PERCENT = [chr(octet) if octet in _UNRESERVED else f"%{octet:02X}" for octet in range(256)]


class Refused(Exception):
    """A template does what it may not; the text is one sentence for the operator."""


class Budget:
    """Counts the work of one rendering. A count, not a clock: the same template and message always come out alike."""

    __slots__ = ("limit", "spent")

    def __init__(self, limit: int = MAX_WORK) -> None:
        self.limit = limit
        self.spent = 0

    def spend(self, characters: int) -> None:
        """:raises Refused: when it would be too much; ``spent`` never passes ``limit``."""
        if self.spent + characters > self.limit:
            raise Refused(f"the rendering takes more work than is allowed ({self.limit} characters)")
        self.spent += characters


def text_of(value: object) -> str:
    """A plain value as text: null is empty, true and false are as in JSON."""
    _known(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    kind = "a list" if isinstance(value, list | tuple) else "an object"
    raise Refused(f"{kind} has no text of its own: use |tojson, |join or a loop")


def without_surrogates(text: str) -> str:
    """The text with pairs of surrogates joined, and every lone one, which UTF-8 cannot carry, as U+FFFD.

    Takes 0.2 µs for each of them: no template may write any (template_engine.py), so only a payload's own can come.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _known(value: object) -> None:
    if isinstance(value, Undefined):
        str(value)  # StrictUndefined raises UndefinedError with its own words


def _pay(context: Context, characters: int) -> None:
    budget = context[BUDGET]
    assert isinstance(budget, Budget)
    budget.spend(characters)


def _paid(context: Context, value: object) -> str:
    text = text_of(value)
    _pay(context, len(text))
    return text


def _paid_for_case(context: Context, value: object) -> str:
    text = _paid(context, value)
    if not text.isascii():
        _pay(context, len(text) * (SLOW - 1))
    return text


def _pay_for_all(context: Context, value: object) -> None:
    """Pay for a value with everything in it. It is no deeper than the template's source and the payload."""
    _known(value)
    _pay(context, STEP + (len(value) if isinstance(value, str) else 0))
    if isinstance(value, dict):
        for key, each in value.items():
            _pay_for_all(context, key)
            _pay_for_all(context, each)
    elif isinstance(value, list | tuple):
        for each in value:
            _pay_for_all(context, each)


def _not_json(value: object) -> NoReturn:
    _known(value)
    raise Refused("this value has no JSON")


def as_json(value: object) -> str:
    """A value as ``|tojson`` writes it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_not_json)
    # Valid in JSON, but line ends to JavaScript before 2019 and to whatever splits its log with splitlines().
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def percent_encoded(octets: bytes) -> str:
    """The UTF-8 of a text as ``|urlencode`` writes it; takes half of the time that quote() takes."""
    return "".join(map(_PERCENT.__getitem__, octets))


@pass_context
def _tojson(context: Context, value: object) -> str:
    _pay_for_all(context, value)
    text = as_json(value)
    _pay(context, len(text))
    return text


@pass_context
def _urlencode(context: Context, value: object) -> str:
    octets = without_surrogates(_paid(context, value)).encode()
    _pay(context, SLOW * len(octets))
    encoded = percent_encoded(octets)
    _pay(context, len(encoded))
    return encoded


@pass_context
def _escape(context: Context, value: object) -> str:
    escaped = html.escape(_paid(context, value), quote=True)
    _pay(context, len(escaped))
    return escaped


@pass_context
def _upper(context: Context, value: object) -> str:
    return _paid_for_case(context, value).upper()


@pass_context
def _lower(context: Context, value: object) -> str:
    return _paid_for_case(context, value).lower()


@pass_context
def _trim(context: Context, value: object) -> str:
    return _paid(context, value).strip()


@pass_context
def _truncate(context: Context, value: object, length: int = 255, end: str = "…") -> str:
    if not isinstance(length, int) or isinstance(length, bool) or length < 0 or not isinstance(end, str):
        raise Refused("|truncate takes a number of characters and the text that ends what was cut")
    text = text_of(value)
    _pay(context, min(len(text), length))
    return text if len(text) <= length else text[: max(length - len(end), 0)] + end[:length]


@pass_context
def _replace(context: Context, value: object, old: str, new: str) -> str:
    if not isinstance(old, str) or not isinstance(new, str) or not old:
        raise Refused("|replace takes two texts, the first of them not empty")
    text = _paid(context, value)
    _pay(context, max(len(text) + text.count(old) * (len(new) - len(old)), 0))
    return text.replace(old, new)


@pass_context
def _join(context: Context, value: object, separator: str = "", attribute: str | None = None) -> str:
    listed = _listed(value)
    _pay(context, len(listed) * (STEP + len(separator)))
    if attribute is not None:
        listed = [each.get(attribute) if isinstance(each, dict) else None for each in listed]
    parts = [text_of(each) for each in listed]
    _pay(context, sum(map(len, parts)))
    return separator.join(parts)


def _default(value: object, default: object = "", boolean: bool = False) -> object:
    """Jinja's, but null counts as missing too: in the payload whatever is absent is null."""
    missing = isinstance(value, Undefined) or value is None
    return default if missing or (boolean and not value) else value


def _first(value: object) -> object:
    _known(value)
    return value[0] if isinstance(value, str | list | tuple) and value else None


def _last(value: object) -> object:
    _known(value)
    return value[-1] if isinstance(value, str | list | tuple) and value else None


def _length(value: object) -> int:
    _known(value)
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _int(value: object, default: int = 0) -> int:
    text = text_of(value)
    try:
        return int(text) if len(text) <= 20 else default  # int() of a long text takes the square of its length
    except ValueError:
        return default


@pass_context
def _origin(context: Context, value: object) -> str:
    """Scheme, host and port of a URL, without its path: a link into the CRM whose webhook's path is a secret."""
    text = _paid(context, value)
    if len(text) > _MAX_ORIGIN:  # urlsplit keeps what it has seen
        raise Refused("|origin takes a URL")
    parts = urlsplit(text)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _listed(value: object) -> list[Any] | tuple[Any, ...]:
    _known(value)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise Refused("only a list can be looped over or joined")
    return value


@pass_context
def _items(context: Context, value: object, weight: int) -> list[Any] | tuple[Any, ...]:
    """What a loop runs over. ``weight``: parts of the template inside the loop."""
    listed = _listed(value)
    _pay(context, len(listed) * weight * STEP)
    return listed


@pass_context
def _concat(context: Context, parts: list[object]) -> str:
    texts = [text_of(part) for part in parts]
    _pay(context, sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _operand(context: Context, value: object) -> object:
    """One side of a comparison, which reads all of it."""
    nested = value if isinstance(value, list | tuple) else ()
    if isinstance(value, dict) or any(isinstance(each, dict | list | tuple) for each in nested):
        raise Refused("objects and nested lists cannot be compared")
    _pay_for_all(context, value)
    return value


FILTERS: dict[str, Callable[..., Any]] = {
    "d": _default,
    "default": _default,
    "e": _escape,
    "escape": _escape,
    "first": _first,
    "int": _int,
    "join": _join,
    "last": _last,
    "length": _length,
    "lower": _lower,
    "origin": _origin,
    "replace": _replace,
    "string": text_of,
    "tojson": _tojson,
    "trim": _trim,
    "truncate": _truncate,
    "upper": _upper,
    "urlencode": _urlencode,
}
#: What the engine puts in the place of ``~``, of what a loop runs over and of what is compared.
INTERNAL: dict[str, Callable[..., Any]] = {" concat": _concat, " items": _items, " operand": _operand}
TESTS: tuple[str, ...] = ("boolean", "defined", "false", "none", "number", "string", "true", "undefined")
