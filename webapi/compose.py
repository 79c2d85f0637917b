"""The request that posts one event to one webhook: made of the rows it is about, signed, in the receiver's shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import quote

from relay import presets
from relay.core import extras, payload, template
from relay.core.hook import Access
from relay.core.payload import PayloadAttachment
from relay.core.template import Template
from relay.secrets import Keys
from relay.store.post import Hook, PostJob
from webapi import links, signature
from webapi.redaction import HIDDEN, REPEATED, Redaction, echoed, rendered, repeats
from webapi.requests import Request

#: Opened secrets kept in memory.
OPENED = 1000
#: Octets of secrets' spellings kept in memory.
REDACTED = 64 << 20


class NotWanted(Exception):
    """The receiver's template has no use for this event; ``str()`` says why, for History."""


class Composer:
    """Attachments' links begin with ``public_url`` and live for ``links_live_for`` seconds from receipt."""

    def __init__(self, keys: Keys, public_url: str, links_live_for: float) -> None:
        self._keys = keys
        self._links_at = public_url.rstrip("/") + "/a/"
        self._links_live_for = links_live_for
        self._agent = _user_agent()
        self._opened: dict[str, str] = {}
        self._accesses: dict[str, Access] = {}
        self._redactions: dict[str, Redaction] = {}
        self._redacted = 0
        self._said: tuple[tuple[object, ...], tuple[object, ...]] = ((), ())  # what the body before said, and that body
        self._encoded = b""

    def compose(self, job: PostJob, now: float) -> Request:
        """The request as it is sent ``now``. Raises NotWanted, SealError and TemplateError."""
        hook, access = job.hook, self.access(job.hook)
        shape = presets.of(hook.settings.template) if hook.settings.template else None
        if shape is None:
            body = self._body(job)
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

    def _body(self, job: PostJob) -> bytes:
        """The reference's body. Webhooks that are told the same of one event follow each other, as a rule."""
        # A letter is compared by identity, for its text is long; jobs that came over a socket share it, but no number.
        letter = (job.message, job.parts, job.visit, job.attribution, job.extras)
        rest = (job.message_id, job.site_id, job.created_at, job.hook.settings.extras)
        before, rest_before = self._said
        if rest != rest_before or any(one is not other for one, other in zip(letter, before, strict=True)):
            self._said, self._encoded = (letter, rest), payload.encode(self._payload(job, job.hook.settings.extras))
        return self._encoded

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
        """The request without what is secret of it: logins, the values of own header fields, long variables.

        Takes up to some 30 ms for a large body, and seconds for one of nothing but secrets: not for the event loop.
        """
        access = self.access(hook)
        own = {name.lower() for name, _ in access.headers} | {"authorization", "webhook-signature"}
        hidden = Redaction(rendered(access))
        headers = {
            name: HIDDEN if name.lower() in own else hidden.text(value) for name, value in request.headers.items()
        }
        return Request(request.method, hidden.text(request.url), headers, hidden.octets(request.body))

    def kept(self, answer: bytes, request: Request, hook: Hook) -> bytes:
        """The beginning of an answer without what ``shown`` hides of its request, for whoever repeats that."""
        sealed = hook.access
        if sealed is not None:
            hidden = self._redactions.get(sealed)
            if hidden is None:
                hidden = Redaction(echoed(self.access(hook)))
                if len(self._redactions) >= OPENED or self._redacted + hidden.size > REDACTED:
                    self._redactions.clear()
                    self._redacted = 0
                self._redactions[sealed] = hidden
                self._redacted += hidden.size
            answer = hidden.octets(answer)
            if repeats(answer, self.access(hook)):
                return REPEATED
        for one in request.headers.get("webhook-signature", "").encode().split():
            for written in (one, one.replace(b"/", b"\\/")):  # PHP's JSON
                answer = answer.replace(written, HIDDEN.encode())
        return answer

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
                f"{self._links_at}{links.make(key, job.message_id, part.index, expires, job.site_id)}/"
                f"{_in_url(part.name)}",
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


def _user_agent() -> str:
    try:
        return f"visit-relay/{version('visit-relay')}"
    except PackageNotFoundError:  # run from a source tree
        return "visit-relay"


def _in_url(name: str) -> str:
    return quote(name.encode("utf-8", "replace"), safe="") or "attachment"
