"""A webhook's template: another system's URL, headers and body, written in Jinja (docs/crm/templates.md).

``check`` says at definition time what is wrong, ``render`` makes one request of one event. What a template may do and
what a rendering may cost stands in ``template_engine``; here stands what a request must be: to the webhook's own host,
with single-line headers that are not HTTP's own, and with a body that its content type's parser reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from jsonpointer import EndOfList, JsonPointer, JsonPointerException

from relay.core.hook import is_reserved
from relay.core.template_engine import MAX_SOURCE, Names, TemplateError, compile_field, render_field
from relay.core.template_filters import STEP, Budget, Refused, without_surrogates
from relay.core.template_samples import DEAL, HOSTILE, INJECTED, PAYLOAD, REQUEST, SAMPLES

__all__ = ["Rendered", "Template", "TemplateError", "check", "deal_url", "missing", "render", "resolve"]

METHODS = ("POST", "PUT", "PATCH", "GET")
FORM = "application/x-www-form-urlencoded"
MAX_HEADERS = 32
#: Characters of a rendered URL, of a rendered header's value and of the value of a variable.
MAX_URL = 8192
MAX_HEADER = 8192
MAX_VARIABLE = 4096
#: Characters of a JSON pointer.
MAX_POINTER = 200
# What a number, a key or one side of a string costs where the body is read.
_VALUE = 16

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # RFC 9110 §5.6.2
_CONTENT_TYPE = re.compile(r"[\w!#$&^.+-]{1,64}/[\w!#$&^.+-]{1,64}( *; *[\w-]+=[\w.-]+){0,4}", re.ASCII)
_VARIABLE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_URL = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Template:
    """``url`` empty: the webhook's own. ``deal_id`` and ``deal_url``: JSON pointers (RFC 6901) into the answer, ""
    for none; a ``deal_url`` that does not begin with "/" is Jinja with ``deal_id``, ``url`` and ``variables``.

    ``requires``: keys of the payload without which nothing is sent. ``variables``: those that must be given; others
    that the template names are optional.
    """

    body: str
    method: str = "POST"
    url: str = ""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    deal_id: str = "/deal_id"
    deal_url: str = "/deal_url"
    requires: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rendered:
    """One request. ``headers`` begin with Content-Type where there is a body."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def check(template: Template, url: str, variables: Mapping[str, str]) -> None:
    """Try a template with messages of every kind.

    :raises TemplateError: naming the field and what to do.
    """
    _check_shape(template)
    _check_variables(template, variables)
    for label, payload in SAMPLES:
        try:
            render(template, url, payload, variables)
        except TemplateError as error:
            raise TemplateError(error.field, f"{error.message} ({label})") from None
    if not template.deal_url.startswith("/"):
        for sample in ("17", HOSTILE):
            link = _link(template, url, sample, variables)
            if link and not _is_link(link):
                raise TemplateError("deal_url", "is no http(s) URL for every deal: use |urlencode on deal_id")


def missing(template: Template, payload: Mapping[str, object]) -> str | None:
    """The first of ``requires`` that is null or empty; then nothing is to be sent."""
    return next((name for name in template.requires if payload.get(name) in (None, "", [], {})), None)


def render(
    template: Template,
    url: str,
    payload: Mapping[str, object],
    variables: Mapping[str, str],
    budget: Budget | None = None,
) -> Rendered:
    """The request for one event; ``url`` is the webhook's own. All fields share one ``budget`` of work.

    :raises TemplateError: when a limit is passed, or the request would not be one that may be sent.
    """
    budget = budget or Budget()
    values: dict[str, object] = {name: payload.get(name) for name in PAYLOAD}
    values |= {"variables": dict(variables), "url": url}

    def field(source: str, name: str) -> str:
        return without_surrogates(render_field(source, name, REQUEST, values, budget))

    target = _target(field(template.url, "url").strip(), url) if template.url else url
    headers = tuple((name, _header(field(value, f"headers.{name}"), name)) for name, value in template.headers)
    body = field(template.body, "body")
    if template.method == "GET":
        return Rendered(template.method, target, headers, b"")
    _readable(template.content_type, body, budget)
    return Rendered(template.method, target, (("Content-Type", template.content_type), *headers), body.encode())


def deal_url(template: Template, url: str, deal_id: str, variables: Mapping[str, str]) -> str | None:
    """The link to a deal where the template makes one of its id; None where it is a pointer or comes to no http(s) URL.

    :raises TemplateError: when the template does not render.
    """
    if template.deal_url.startswith("/"):
        return None
    link = _link(template, url, deal_id, variables)
    return link if _is_link(link) else None


def check_pointer(text: str) -> None:
    """:raises ValueError: saying what is wrong, when the text is neither empty nor a JSON pointer (RFC 6901 §3)."""
    if text and (not text.startswith("/") or len(text) > MAX_POINTER or not text.isprintable()):
        raise ValueError(f'must be a JSON pointer such as "/deal/id" (RFC 6901), of at most {MAX_POINTER} characters')
    try:
        JsonPointer(text)
    except JsonPointerException:
        raise ValueError('must have "~" only in "~0" (for ~) and "~1" (for /), as in RFC 6901') from None


def resolve(pointer: str, answer: object) -> object:
    """What a JSON pointer (RFC 6901) finds in a parsed answer; None for "" and where there is nothing."""
    if not pointer:
        return None
    found: object = JsonPointer(pointer).resolve(answer, None)
    return None if isinstance(found, EndOfList) else found


def _link(template: Template, url: str, deal_id: str, variables: Mapping[str, str]) -> str:
    values = {"deal_id": deal_id, "url": url, "variables": dict(variables)}
    return render_field(template.deal_url, "deal_url", DEAL, values).strip()


def _is_link(text: str) -> bool:
    parts = _split(text) if len(text) <= MAX_URL and _URL.fullmatch(text) else None
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)


def _check_shape(template: Template) -> None:
    if template.method not in METHODS:
        raise TemplateError("method", f"must be one of {', '.join(METHODS)}")
    if not _CONTENT_TYPE.fullmatch(template.content_type):
        raise TemplateError("content_type", 'must be a media type such as "application/json"')
    if template.method == "GET" and template.body:
        raise TemplateError("body", "must be empty: GET sends none")
    if len(template.headers) > MAX_HEADERS or sum(len(value) for _, value in template.headers) > MAX_SOURCE:
        raise TemplateError("headers", f"are more than {MAX_HEADERS}, or longer than {MAX_SOURCE} characters together")
    texts = (template.url, template.body, template.deal_url, *(value for _, value in template.headers))
    if sum(map(len, texts)) > 2 * MAX_SOURCE:
        raise TemplateError("template", f"is longer than {2 * MAX_SOURCE} characters in all its fields")
    seen = set()
    for name, _ in template.headers:
        low = name.lower()
        if not _TOKEN.fullmatch(name):
            raise TemplateError(f"headers.{name[:64]}", "is not a header name")
        if is_reserved(name):
            hint = ": use content_type" if low == "content-type" else ": it is set by the program"
            raise TemplateError(f"headers.{name}", f"may not be given{hint}")
        if low in seen:
            raise TemplateError(f"headers.{name}", "is given twice")
        seen.add(low)
    for name in template.requires:
        if name not in PAYLOAD:
            raise TemplateError("requires", f"{name[:64]!r} is not a key of the payload")
    _check_pointers(template)


def _check_pointers(template: Template) -> None:
    for field, pointer in (("deal_id", template.deal_id), ("deal_url", template.deal_url)):
        if field == "deal_url" and not pointer.startswith("/"):
            continue
        try:
            check_pointer(pointer)
        except ValueError as error:
            raise TemplateError(field, str(error)) from None


def _check_variables(template: Template, given: Mapping[str, str]) -> None:
    named: set[str] | None = set(template.variables)
    for source, field, names in _sources(template):
        used = compile_field(source, field, names).variables
        named = None if named is None or used is None else named | used
    for name in template.variables:
        if not _VARIABLE.fullmatch(name):
            raise TemplateError(f"variables.{name[:64]}", "must be a name of small letters, digits and _")
        if not given.get(name):
            raise TemplateError(f"variables.{name}", "must be given")
    for name, value in given.items():
        if named is not None and name not in named:
            known = f"it has {', '.join(sorted(named))}" if named else "it has none"
            raise TemplateError(f"variables.{name[:64]}", f"the template has no such variable: {known}")
        if len(value) > MAX_VARIABLE or _CONTROLS.search(value):
            raise TemplateError(f"variables.{name[:64]}", f"must be one line of at most {MAX_VARIABLE} characters")


def _sources(template: Template) -> list[tuple[str, str, Names]]:
    found = [(template.url, "url", REQUEST), (template.body, "body", REQUEST)]
    found += [(value, f"headers.{name}", REQUEST) for name, value in template.headers]
    if not template.deal_url.startswith("/"):
        found.append((template.deal_url, "deal_url", DEAL))
    return found


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _target(url: str, own: str) -> str:
    if not _URL.fullmatch(url) or "\\" in url or "#" in url:
        raise TemplateError("url", "holds a space, a control, a letter beyond ASCII, a \\ or a #: use |urlencode")
    if len(url) > MAX_URL:
        raise TemplateError("url", f"is longer than {MAX_URL} characters")
    parts, ours = _split(url), _split(own)
    if parts is None or ours is None or _place(parts) != _place(ours):
        raise TemplateError("url", "must keep scheme, host and port of the webhook's own url: begin with {{ url }}")
    # A client takes /a/../b for /b, so a text in the path could choose another method of the API.
    if any(unquote(step) in (".", "..") for step in parts.path.split("/")):
        raise TemplateError("url", "has a . or .. in its path")
    return url


def _place(parts: SplitResult) -> tuple[str, str | None, int | None, str | None, str | None]:
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port, parts.username, parts.password


def _header(value: str, name: str) -> str:
    line = _CONTROLS.sub(" ", value).strip()
    if len(line) > MAX_HEADER:
        raise TemplateError(f"headers.{name}", f"is longer than {MAX_HEADER} characters")
    return line


def _readable(content_type: str, body: str, budget: Budget) -> None:
    media = content_type.partition(";")[0].strip().lower()
    reader: Callable[[str, Budget], object] | None = None
    if media == "application/json" or media.endswith("+json"):
        reader, what, advice = _read_json, "JSON", "use |tojson on every value, without quotes around it"
    elif media == FORM:
        reader, what, advice = _read_form, "form", "use |urlencode on every value"
    if reader is None:
        return
    try:
        reader(body, budget)
    except Refused as error:
        raise TemplateError("body", str(error)) from None
    except (RecursionError, ValueError) as error:
        raise TemplateError("body", f"does not come out as {what} ({str(error)[:120]}): {advice}") from None


def _read_json(body: str, budget: Budget) -> object:
    # What takes time is not text but values, so what is outside of strings is paid for.
    quoted = body.replace("\\\\", "").replace('\\"', "")
    budget.spend(_VALUE * quoted.count('"'))
    outside = "".join(quoted.split('"')[::2])
    budget.spend(STEP * (outside.count("[") + outside.count("{")) + _VALUE * (outside.count(",") + outside.count(":")))
    return json.loads(body, parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read_form(body: str, budget: Budget) -> None:
    if not _URL.fullmatch(body):
        raise ValueError("a space, a line end or a letter beyond ASCII")
    budget.spend(STEP * body.count("&"))
    for field in body.split("&"):
        if "=" not in field:
            raise ValueError(f"a field without =: {field:.40}")
    if f"&{INJECTED}=" in body:
        raise ValueError("a value brought in a field of its own")
