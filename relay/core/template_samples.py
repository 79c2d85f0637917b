"""What a template sees of a message, and the samples that it is tried with before it is accepted."""

from __future__ import annotations

from typing import Any

from relay.core.payload import KEYS
from relay.core.template_engine import Names

#: Top-level names besides the payload's own keys (docs/crm/templates.md says what each holds).
EXTRAS: tuple[str, ...] = (
    "event",
    "received_at",
    "written_at",
    "received_epoch",
    "message_id",
    "in_reply_to",
    "references",
    "mail_from",
    "size",
    "site",
    "channel",
    "automatic",
    "bounce",
    "attribution",
    "authentication",
    "first_touch",
    "html",
    "deal",
)
PAYLOAD: tuple[str, ...] = (*KEYS, *EXTRAS)

_UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
_FIRST_TOUCH = (
    "visit_id",
    "marker",
    "referrer",
    "domain",
    "landing_page",
    *_UTM,
    "source_level_1",
    "source_level_2",
)
_OBJECTS = (
    ("attribution", frozenset({"state", "method", "candidates"})),
    ("authentication", frozenset({"spf", "dkim", "dmarc"})),
    ("first_touch", frozenset(_FIRST_TOUCH)),
    ("deal", frozenset({"id", "url"})),
)
#: What URL, headers and body may name, and what the link to a deal may.
REQUEST = Names(frozenset({*PAYLOAD, "variables", "url"}), _OBJECTS)
DEAL = Names(frozenset({"deal_id", "variables", "url"}))

#: A form's field that only a value which was not encoded can bring in.
INJECTED = "brought_in_by_a_value"
# Everything that some syntax lives by: JSON, Jinja, URLs, forms, headers, HTML, lines.
HOSTILE = (
    "\"\\'<b>&amp;</b>\r\n\t\x00\x07\x7f\u0085\u2028\u2029😀\ud800 {{ 7*7 }} {% for x in y %} {# #} {{ id.__class__ }} "
    f'&{INJECTED}=1 #? %0d%0a%00 ../../ ","x":"1"}}]}} who@example.net who%40example.net ' + "ё" * 300
)

_EXAMPLE: dict[str, Any] = {
    "id": "111",
    "email_id": "222",
    "visit_id": "123456",
    "subject": "Re: Test",
    "text": "Test message",
    "email_from": "email_1@mail.com",
    "email_to": "email+123456@mail.com",
    "attachments": [
        {
            "name": "offer.pdf",
            "url": "https://relay.example.com/a/token/offer.pdf",
            "size": 1024,
            "type": "application/pdf",
            "inline": False,
        }
    ],
    "referrer": "fb.com",
    "marker": "fb_new",
    "city": "New York",
    "country": "USA",
    "ip": "161.185.160.93",
    "first_visit": "1001",
    "domain": "test.com",
    "landing_page": "test.com/new",
    "utm_source": "fb",
    "utm_medium": "cpc",
    "utm_campaign": "new",
    "utm_term": "test",
    "utm_content": "banner",
    **{f"roistat_param_{index}": f"value {index}" for index in range(1, 6)},
    "google_client_id": "1234567890.1700000000",
    "source_level_1": "fb",
    "source_level_2": "new",
    "event": "message.received",
    "received_at": "2026-01-02T03:04:05Z",
    "written_at": "2026-01-02T03:04:00Z",
    "received_epoch": 1767323045,
    "message_id": "id@mail.com",
    "in_reply_to": "earlier@mail.com",
    "references": ["first@mail.com", "earlier@mail.com"],
    "mail_from": "email_1@mail.com",
    "size": 4096,
    "site": "example",
    "channel": "social",
    "automatic": "auto-replied",
    "bounce": True,
    "attribution": {
        "state": "likely",
        "method": "pool/1",
        "candidates": [{"visit_id": "123456", "probability": 0.75}, {"visit_id": "123455", "probability": 0.25}],
    },
    "authentication": {"spf": "pass", "dkim": "pass", "dmarc": "pass"},
    "first_touch": {
        "visit_id": "1001",
        "marker": "google_brand",
        "referrer": "google.com",
        "domain": "test.com",
        "landing_page": "test.com",
        **dict.fromkeys(_UTM, "first"),
        "source_level_1": "google",
        "source_level_2": "brand",
    },
    "html": "<p>Test message</p>",
    "deal": {"id": "17", "url": "https://crm.example.com/deals/17"},
}
_NULLS: dict[str, Any] = {
    **dict.fromkeys(PAYLOAD),
    **{name: _EXAMPLE[name] for name in ("event", "received_at", "written_at", "received_epoch", "size", "site")},
    "attachments": [],
    "references": [],
    "bounce": False,
    "attribution": {"state": "none", "method": "", "candidates": []},
    "authentication": dict.fromkeys(("spf", "dkim", "dmarc")),
    "deal": {"id": None, "url": None},
}
# Numbers, times and what we name ourselves are no sender's to choose.
_OURS = ("id", "visit_id", "first_visit", "event", "received_at", "written_at", "site")
_HOSTILE: dict[str, Any] = {
    **{name: HOSTILE if isinstance(value, str) else value for name, value in _EXAMPLE.items()},
    **{name: _EXAMPLE[name] for name in _OURS},
    "attachments": [{**_EXAMPLE["attachments"][0], "name": HOSTILE, "type": HOSTILE}] * 3,
    "references": [HOSTILE] * 3,
    "first_touch": {**dict.fromkeys(_FIRST_TOUCH, HOSTILE), "visit_id": "1001"},
    "deal": {"id": HOSTILE, "url": HOSTILE},
}

#: (what the sample is, its payload)
SAMPLES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("an ordinary message", _EXAMPLE),
    ("a message of which nothing is known", _NULLS),
    ("a message full of quotes, line ends and braces", _HOSTILE),
)
