"""The request that posts one event to one webhook: made of the rows it is about, signed, in the receiver's shape."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from html import escape
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import quote

from relay import presets
from relay.core import extras, payload, template
from relay.core.hook import Access
from relay.core.payload import PayloadAttachment
from relay.core.template import Template
from relay.secrets import Keys
from relay.store.post_jobs import Hook, PostJob
from webapi import links, signature

#: Opened secrets kept in memory.
OPENED = 1000
#: Characters from which on a variable is taken for a secret, and not shown where it appears.
_SECRET = 6
_HIDDEN = "***"


class NotWanted(Exception):
    """The receiver's template has no use for this event; ``str()`` says why, for History."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


class Composer:
    """Attachments' links begin with ``public_url`` and live for ``links_live_for`` seconds from receipt."""

    def __init__(self, keys: Keys, public_url: str, links_live_for: float) -> None:
        self._keys = keys
        self._links_at = public_url.rstrip("/") + "/a/"
        self._links_live_for = links_live_for
        self._agent = _user_agent()
        self._opened: dict[str, str] = {}
        self._accesses: dict[str, Access] = {}

    def compose(self, job: PostJob, now: float) -> Request:
        """The request as it is sent ``now``. Raises NotWanted, SealError and TemplateError."""
        hook, access = job.hook, self.access(job.hook)
        shape = presets.of(hook.settings.template) if hook.settings.template else None
        if shape is None:
            body = payload.encode(self._payload(job, hook.settings.extras))
            made = template.Rendered("POST", hook.url, (("Content-Type", "application/json"),), body)
        else:
            made = self._rendered(job, shape, access)
        timestamp = int(now)
        fields = [("User-Agent", self._agent), *made.headers, *access.headers]
        if access.authorization:
            fields.append(("Authorization", access.authorization))
        fields += [
            ("webhook-id", job.uid),
            ("webhook-timestamp", str(timestamp)),
            ("webhook-signature", signature.sign(self._secrets(hook, now), job.uid, timestamp, made.body)),
        ]
        return Request(made.method, made.url, _once(fields), made.body)

    def access(self, hook: Hook) -> Access:
        """What the receiver asks of us; raises SealError."""
        if hook.access is None:
            return _NONE
        found = self._accesses.get(hook.access)
        if found is None:
            if len(self._accesses) >= OPENED:
                self._accesses.clear()
            found = self._accesses[hook.access] = Access.from_json(self._keys.unseal(hook.access))
        return found

    def shown(self, request: Request, hook: Hook) -> Request:
        """The request without what is secret of it: logins, the values of own header fields, long variables."""
        access = self.access(hook)
        own = {name.lower() for name, _ in access.headers} | {"authorization", "webhook-signature"}
        headers = {name: _HIDDEN if name.lower() in own else value for name, value in request.headers.items()}
        url, body = request.url, request.body
        # The longest first: one may be a part of another.
        for value in sorted(access.variables.values(), key=len, reverse=True):
            for text in _spellings(value):
                url = url.replace(text, _HIDDEN)
                body = body.replace(text.encode(), _HIDDEN.encode())
                headers = {name: content.replace(text, _HIDDEN) for name, content in headers.items()}
        return Request(request.method, url, headers, body)

    def _rendered(self, job: PostJob, shape: Template, access: Access) -> template.Rendered:
        values = self._payload(job, extended=True)
        lacking = template.missing(shape, values)
        if lacking is not None:
            raise NotWanted(f"no {lacking}")
        return template.render(shape, job.hook.url, values, access.variables)

    def _payload(self, job: PostJob, extended: bool) -> dict[str, object]:
        received_at = job.created_at if job.extras is None else job.extras.received_at
        message, files = job.message, self._files(job, received_at)
        if files:
            message = replace(message, attachments=files)
        values = payload.build(message, job.visit, job.attribution)
        if job.extras is None or not (extended or job.extras.data):
            return values
        values["attachments"] = [
            {"name": part.name or None, "url": file.url, "size": part.size, "type": part.type, "inline": part.inline}
            for part, file in zip(job.parts, files, strict=True)
        ]
        return values | extras.build(job.extras, job.attribution)

    def _files(self, job: PostJob, received_at: float) -> tuple[PayloadAttachment, ...]:
        if not job.parts:
            return ()
        key, expires = self._keys.current("links"), int(received_at + self._links_live_for)
        return tuple(
            PayloadAttachment(
                part.name,
                f"{self._links_at}{links.make(key, job.message_id, part.index, expires)}/{_in_url(part.name)}",
            )
            for part in job.parts
        )

    def _secrets(self, hook: Hook, now: float) -> list[str]:
        found = [self._open(hook.secret)]
        if hook.previous_secret is not None and (hook.previous_until is None or now < hook.previous_until):
            found.append(self._open(hook.previous_secret))
        return found

    def _open(self, sealed: str) -> str:
        secret = self._opened.get(sealed)
        if secret is None:
            if len(self._opened) >= OPENED:
                self._opened.clear()
            secret = self._opened[sealed] = self._keys.unseal(sealed)
        return secret


_NONE = Access()


def _once(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each field once, the later value of the same name, whatever its capitals (RFC 9110 §5.1)."""
    found: dict[str, tuple[str, str]] = {}
    for name, value in fields:
        found[name.lower()] = (name, value)
    return dict(found.values())


def _spellings(value: str) -> list[str]:
    """A variable as a template's filters may have written it (core/template_filters.py), the longest first."""
    plain = [text for text in (value, value.upper(), value.lower()) if len(text.strip()) >= _SECRET]
    plain += [escape(text) for text in plain]
    plain += [text.strip() for text in plain]
    found = {*plain, *(quote(text, safe="") for text in plain), *(_in_json(text) for text in plain)}
    return sorted(found, key=len, reverse=True)


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _user_agent() -> str:
    try:
        return f"visit-relay/{version('visit-relay')}"
    except PackageNotFoundError:  # run from a source tree
        return "visit-relay"


def _in_url(name: str) -> str:
    return quote(name.encode("utf-8", "replace"), safe="") or "attachment"
