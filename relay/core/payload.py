"""The webhook's body: the reference's JSON, key for key and in its order (PRODUCT.md, "Webhook").

Every value is a string or null, but for ``attachments``; absent or empty is null. ``id``, ``visit_id`` and
``first_visit`` are decimal numbers written as strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from relay.core.model import Attribution, AttributionState
from relay.core.source import Params, levels


@dataclass(frozen=True, slots=True)
class PayloadAttachment:
    name: str
    url: str


@dataclass(frozen=True, slots=True)
class PayloadMessage:
    """One event's message. ``email_from`` and ``email_to`` are bare addresses."""

    id: str
    email_id: str
    subject: str | None
    text: str | None
    email_from: str | None
    email_to: str
    attachments: tuple[PayloadAttachment, ...] = ()


@dataclass(frozen=True, slots=True)
class PayloadVisit:
    """The stated visit. ``referrer`` and ``landing_page`` without scheme, ``domain`` the site's host."""

    number: str
    first_visit: str | None = None
    referrer: str | None = None
    marker: str | None = None
    city: str | None = None
    country: str | None = None
    ip: str | None = None
    domain: str | None = None
    landing_page: str | None = None
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None
    utm_term: str | None = None
    utm_content: str | None = None
    params: Params = (None, None, None, None, None)
    google_client_id: str | None = None


# key, what it promises, the reference's example
_FIELDS: tuple[tuple[str, str, str | None], ...] = (
    ("id", "Unique number of this message, decimal. The same over retries and replays.", "111"),
    ("email_id", "Our own number of this message, which never changes: the same as id.", "222"),
    (
        "visit_id",
        "Number of the visit the message came from, decimal. Set and every other visit field null: the sender's "
        "address claims a number of which no visit is known: nobody was ever given it, or the visit was deleted since.",
        "123456",
    ),
    ("subject", "Subject, decoded.", "Re: Test"),
    ("text", "Text of the message, at most 1 MB; of an HTML message its text.", "Test message"),
    ("email_from", "Bare address the message says it is from. Not proven.", "email_1@mail.com"),
    ("email_to", "Bare address the message was sent to: the best-attributed substitute.", "email+123456@mail.com"),
    ("attachments", "Attached files; a link is signed and expires.", None),
    ("referrer", "Page that led to the visit: host, path and query without scheme.", "fb.com"),
    ("marker", "Source of the visit.", "fb_new"),
    ("city", "City of the visitor's IP address, English.", "New York"),
    ("country", "Country of the visitor's IP address, English.", "USA"),
    ("ip", "IP address of the visitor.", "161.185.160.93"),
    ("first_visit", "Number of the first visit of the same browser, decimal.", "1001"),
    ("domain", "Host of the website.", "test.com"),
    ("landing_page", "First page of the visit: host, path and query without scheme.", "test.com/new"),
    ("utm_source", "UTM mark of the landing page.", "google"),
    ("utm_medium", "UTM mark of the landing page.", "cpc"),
    ("utm_campaign", "UTM mark of the landing page.", "spring"),
    ("utm_term", "UTM mark of the landing page.", "buy+tiles"),
    ("utm_content", "UTM mark of the landing page.", "banner_1"),
    ("roistat_param_1", "Additional parameter 1 of the visit.", "value 1"),
    ("roistat_param_2", "Additional parameter 2 of the visit.", "value 2"),
    ("roistat_param_3", "Additional parameter 3 of the visit.", "value 3"),
    ("roistat_param_4", "Additional parameter 4 of the visit.", "value 4"),
    ("roistat_param_5", "Additional parameter 5 of the visit.", "value 5"),
    ("google_client_id", "Client id of Google Analytics.", "1034567890.1769860700"),
    ("source_level_1", "The marker up to its first underscore.", "fb"),
    ("source_level_2", "The marker after its first underscore.", "new"),
)

#: The keys in the reference's order.
KEYS: tuple[str, ...] = tuple(key for key, _, _ in _FIELDS)


def build(message: PayloadMessage, visit: PayloadVisit | None, attribution: Attribution) -> dict[str, object]:
    """The body of one event. ``visit`` is the one that the site's ``fill`` allows to state, or None.

    Without a visit every visit field is null, save ``visit_id`` of a claimed number.
    """
    number = visit.number if visit else None
    if visit is None and attribution.state is AttributionState.CLAIMED:
        number = attribution.number
    shown = visit or PayloadVisit(number="")
    level_1, level_2 = levels(shown.marker)
    return {
        "id": message.id or None,
        "email_id": message.email_id or None,
        "visit_id": number or None,
        "subject": message.subject or None,
        "text": message.text or None,
        "email_from": message.email_from or None,
        "email_to": message.email_to or None,
        "attachments": [{"name": part.name or None, "url": part.url or None} for part in message.attachments],
        "referrer": shown.referrer or None,
        "marker": shown.marker or None,
        "city": shown.city or None,
        "country": shown.country or None,
        "ip": shown.ip or None,
        "first_visit": shown.first_visit or None,
        "domain": shown.domain or None,
        "landing_page": shown.landing_page or None,
        "utm_source": shown.utm_source or None,
        "utm_medium": shown.utm_medium or None,
        "utm_campaign": shown.utm_campaign or None,
        "utm_term": shown.utm_term or None,
        "utm_content": shown.utm_content or None,
        **{f"roistat_param_{index}": value or None for index, value in enumerate(shown.params, start=1)},
        "google_client_id": shown.google_client_id or None,
        "source_level_1": level_1,
        "source_level_2": level_2,
    }


def encode(payload: dict[str, object]) -> bytes:
    """Compact JSON in UTF-8. A lone surrogate (JSON can carry one, UTF-8 cannot) goes out as U+FFFD."""
    try:
        return orjson.dumps(payload)
    except orjson.JSONEncodeError:
        text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def schema(further: Mapping[str, Any] | None = None, attachment: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body as JSON Schema (2020-12); ``further`` members and members of an ``attachment`` as core/extras.py has."""
    text = {"type": ["string", "null"]}
    properties: dict[str, Any] = {
        key: {**text, "description": about, "examples": [example]} for key, about, example in _FIELDS
    }
    of_file = {
        "name": {**text, "description": "File name as the sender gave it.", "examples": ["offer.pdf"]},
        "url": {**text, "description": "Link to the file.", "examples": ["https://relay.example.com/a/…/offer.pdf"]},
        **(attachment or {}),
    }
    properties["attachments"] = {
        "type": "array",
        "description": next(about for key, about, _ in _FIELDS if key == "attachments"),
        "examples": [[{name: member["examples"][0] for name, member in of_file.items()}]],
        "items": {
            "type": "object",
            "properties": of_file,
            "required": list(of_file),
            "additionalProperties": False,
        },
    }
    properties |= further or {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A message and the visit it came from",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
