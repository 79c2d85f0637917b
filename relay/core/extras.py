"""What a webhook's body holds beyond the reference's keys: for webhooks with ``extras``, for templates, and in events
of other types than ``message.received``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from relay.core.model import Attribution
from relay.core.payload import PayloadVisit
from relay.core.source import levels


@dataclass(frozen=True, slots=True)
class PayloadExtras:
    """Times are seconds since the epoch. ``candidates`` are (number of a visit, probability), likeliest first.

    ``data``: what an event of another type is about.
    """

    event: str
    site: str
    received_at: float
    written_at: float
    message_id: str | None
    in_reply_to: str | None
    references: tuple[str, ...]
    mail_from: str
    size: int
    automatic: str | None
    bounce: bool
    html: str | None
    channel: str | None
    candidates: tuple[tuple[str, float], ...]
    first_touch: PayloadVisit | None
    deal_id: str | None
    deal_url: str | None
    data: Mapping[str, Any] = field(default_factory=dict)


def build(extras: PayloadExtras, attribution: Attribution) -> dict[str, object]:
    """The further members of the body, in the order of the schema."""
    return {
        "event": extras.event,
        "site": extras.site,
        "received_at": _moment(extras.received_at),
        "received_epoch": int(extras.received_at),
        "written_at": _moment(extras.written_at),
        "message_id": extras.message_id or None,
        "in_reply_to": extras.in_reply_to or None,
        "references": list(extras.references),
        "mail_from": extras.mail_from or None,
        "size": extras.size,
        "automatic": extras.automatic,
        "bounce": extras.bounce,
        "channel": extras.channel,
        "attribution": {
            "state": attribution.state.value,
            "method": attribution.method,
            "candidates": [{"visit_id": visit, "probability": share} for visit, share in extras.candidates],
        },
        "authentication": {"spf": None, "dkim": None, "dmarc": None},
        "first_touch": _touch(extras.first_touch),
        "html": extras.html or None,
        "deal": {"id": extras.deal_id, "url": extras.deal_url},
        **extras.data,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _touch(visit: PayloadVisit | None) -> dict[str, str | None] | None:
    if visit is None:
        return None
    level_1, level_2 = levels(visit.marker)
    return {
        "visit_id": visit.number or None,
        "marker": visit.marker,
        "referrer": visit.referrer,
        "domain": visit.domain,
        "landing_page": visit.landing_page,
        "utm_source": visit.utm_source,
        "utm_medium": visit.utm_medium,
        "utm_campaign": visit.utm_campaign,
        "utm_term": visit.utm_term,
        "utm_content": visit.utm_content,
        "source_level_1": level_1,
        "source_level_2": level_2,
    }


_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_WHOLE: dict[str, Any] = {"type": "integer"}
_MOMENT: dict[str, Any] = {"type": "string", "format": "date-time"}
_TOUCH_KEYS = (
    *("visit_id", "marker", "referrer", "domain", "landing_page"),
    *("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content", "source_level_1", "source_level_2"),
)


def _closed(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """An object with exactly these members."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


# key, its schema, what it promises, an example
FIELDS: tuple[tuple[str, dict[str, Any], str, object], ...] = (
    ("event", {"type": "string"}, "What happened: the type of the event. Readers tolerate new values.",
     "message.received"),
    ("site", {"type": "string"}, "Name of the site.", "example"),
    ("received_at", _MOMENT, "When the message came in, RFC 3339 in UTC.", "2026-01-31T12:00:00.000Z"),
    ("received_epoch", _WHOLE, "The same in whole seconds since 1970.", 1769860800),
    ("written_at", _MOMENT, "Its Date, between receipt and five days before: what the visit was looked up for.",
     "2026-01-31T11:59:30.000Z"),
    ("message_id", _TEXT, "Its Message-ID without angle brackets (RFC 5322 §3.6.4).", "1.a@mail.com"),
    ("in_reply_to", _TEXT, "The Message-ID it answers.", "0.a@mail.com"),
    ("references", {"type": "array", "items": {"type": "string"}}, "The Message-IDs of its thread, oldest first.",
     ["0.a@mail.com"]),
    ("mail_from", _TEXT, "Its reverse-path; null for the null sender.", "email_1@mail.com"),
    ("size", _WHOLE, "Octets as received.", 4096),
    ("automatic", _TEXT, "Why it counts as automatic mail, or null.", "mailing list"),
    ("bounce", {"type": "boolean"}, "Whether it is a bounce.", False),
    ("channel", _TEXT,
     "Kind of the source that the site's touch states: direct, search, social, ai, email, ads, campaign, referral.",
     "campaign"),
    ("attribution",
     _closed({
         "state": {"type": "string"},
         "method": {"type": "string"},
         "candidates": {"type": "array", "items": _closed({
             "visit_id": {"type": "string"}, "probability": {"type": "number"},
         })},
     }),
     "How certain the visit is (exact, inferred, likely, claimed, none), by which rule; of a likely one all candidates "
     "with their probabilities.",
     {"state": "exact", "method": "plus/1", "candidates": []}),
    ("authentication", _closed({"spf": _TEXT, "dkim": _TEXT, "dmarc": _TEXT}),
     "Results as in Authentication-Results (RFC 8601); null where nothing was checked.",
     {"spf": None, "dkim": None, "dmarc": None}),
    ("first_touch", _closed(dict.fromkeys(_TOUCH_KEYS, _TEXT), type=["object", "null"]),
     "The same browser's first visit and its source; the stated visit where that was the first; null if unknown.",
     {**dict.fromkeys(_TOUCH_KEYS), "visit_id": "1001", "marker": "google", "source_level_1": "google"}),
    ("html", _TEXT, "The HTML as the sender wrote it, at most 256 Ki characters: anything may be in it. Null for mail "
     "without, and for mail that was read before a webhook asked for it.", "<p>Test message</p>"),
    ("deal", _closed({"id": _TEXT, "url": _TEXT}), "The deal that this letter or its thread has already.",
     {"id": "17", "url": "https://crm.example.com/deals/17"}),
)  # fmt: skip

_FAILURE = _closed(
    {
        "recipient": {"type": "string", "description": "The substitute.", "examples": ["info1@track.example.com"]},
        "forward_to": {"type": "string", "description": "The real address.", "examples": ["sales@example.com"]},
        "code": {"type": ["integer", "null"], "description": "SMTP reply code.", "examples": [550]},
        "answer": {**_TEXT, "description": "What the next hop said.", "examples": ["5.1.1 no such user"]},
        "host": {**_TEXT, "description": "The next hop.", "examples": ["mx.example.com[192.0.2.1]:25"]},
    },
    description="Why the message is held.",
    examples=[
        {
            "recipient": "info1@track.example.com",
            "forward_to": "sales@example.com",
            "code": 550,
            "answer": "5.1.1 no such user",
            "host": "mx.example.com[192.0.2.1]:25",
        }
    ],
)
_PREVIOUS = _closed(
    {
        "state": {"type": "string", "description": "What it was before.", "examples": ["likely"]},
        "method": {"type": "string", "description": "By which rule.", "examples": ["pool/2"]},
        "visit_id": {**_TEXT, "description": "The visit that was stated.", "examples": ["123455"]},
    },
    description="The attribution before.",
    examples=[{"state": "likely", "method": "pool/2", "visit_id": None}],
)
#: What events of other types have besides.
DATA: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "message.received": {},
    "message.failed": {"failure": _FAILURE},
    "attribution.changed": {"previous": _PREVIOUS},
}
#: What an attachment has besides its name and link.
ATTACHMENT: Mapping[str, dict[str, Any]] = {
    "size": {**_WHOLE, "description": "Octets, decoded.", "examples": [3021]},
    "type": {"type": "string", "description": "Media type the sender stated.", "examples": ["application/pdf"]},
    "inline": {"type": "boolean", "description": "An image that is shown in the text.", "examples": [False]},
}


def properties(event: str) -> dict[str, Any]:
    """The schemas of the further members of an event of this type."""
    found = {key: {**schema, "description": about, "examples": [example]} for key, schema, about, example in FIELDS}
    return {**found, **DATA[event]}
