"""What a webhook may be told besides its URL (docs/configuration.md, [[site.webhook]]), and what only it may know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any


class EventType(StrEnum):
    """What can be posted. A webhook gets the first unless it asks for others."""

    RECEIVED = "message.received"
    FAILED = "message.failed"  # a delivery is held: the mail did not reach its real address
    REATTRIBUTED = "attribution.changed"  # somebody had a message attributed anew, and it came out otherwise


#: Header fields that neither a webhook nor a template may set: those of the connection (RFC 9110 §7.6.1) and of the
#: body's framing, which the client makes, and the content type, which a template has a key for.
_RESERVED = frozenset(
    (
        *("connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    )
)


def is_reserved(header: str) -> bool:
    """Whether a header field is ours to set, whatever its capitals; all of ``webhook-…`` is (Standard Webhooks)."""
    name = header.lower()
    return name in _RESERVED or name.startswith("webhook-")


#: Attempts that one webhook has under way at once, unless it says otherwise.
CONCURRENCY = 10


@dataclass(frozen=True, slots=True)
class HookSettings:
    """``conditions``: those that differ from the site's (core/conditions.py). ``deal_id``, ``deal_url``: JSON pointers
    into the answer; empty: the template's, or the product's own names. ``template``: the name of a shipped one, or the
    text of an own one (relay/presets); empty for none."""

    events: tuple[str, ...] = (EventType.RECEIVED.value,)
    extras: bool = False
    concurrency: int = CONCURRENCY
    deal_id: str = ""
    deal_url: str = ""
    template: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> HookSettings:
        """What :meth:`to_json` wrote; what an older version did not know has its default, a newer one's is left out."""
        return _read(text)

    @property
    def extended(self) -> bool:
        """Whether more than the reference's keys is needed for a post."""
        return self.extras or bool(self.template)


@lru_cache(maxsize=256)
def _read(text: str) -> HookSettings:
    known = {each.name for each in fields(HookSettings)}
    values = {name: value for name, value in json.loads(text).items() if name in known}
    if "events" in values:
        values["events"] = tuple(values["events"])
    return HookSettings(**values)


@dataclass(frozen=True, slots=True)
class Access:
    """What the receiver asks of us: secrets, so stored sealed. ``authorization``: the value of that field, or empty."""

    headers: tuple[tuple[str, str], ...] = ()
    authorization: str = ""
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Access:
        values = json.loads(text)
        headers = tuple((name, value) for name, value in values.get("headers", ()))
        return cls(headers, values.get("authorization", ""), values.get("variables", {}))
