"""What goes out beyond the reference's keys, and its schema: whatever is built is what the schema promises."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from relay.core import extras, payload
from relay.core.extras import ATTACHMENT, DATA, FIELDS, PayloadExtras
from relay.core.hook import EventType
from relay.core.model import Attribution, AttributionState, Candidate
from relay.core.payload import KEYS, PayloadAttachment, PayloadMessage, PayloadVisit

EXACT = Attribution(AttributionState.EXACT, "plus/1", visit=1)
LIKELY = Attribution(AttributionState.LIKELY, "pool/2", candidates=(Candidate(7, 0.75), Candidate(8, 0.25)))
FULL = PayloadExtras(
    event="message.received",
    site="shop",
    received_at=1769860800.0009,
    written_at=1769860770.25,
    message_id="1.a@mail.com",
    in_reply_to="0.a@mail.com",
    references=("x@mail.com", "0.a@mail.com"),
    mail_from="ann@mail.com",
    size=4096,
    automatic="mailing list",
    bounce=True,
    html="<p>Привет</p>",
    channel="campaign",
    candidates=(("1001", 0.75), ("1002", 0.25)),
    first_touch=PayloadVisit("1001", marker="fb_new_1", utm_source="fb", city="Rome", ip="192.0.2.1"),
    deal_id="17",
    deal_url="https://crm.example/17",
)
EMPTY = PayloadExtras(
    event="message.received",
    site="shop",
    received_at=0.0,
    written_at=0.0,
    message_id=None,
    in_reply_to=None,
    references=(),
    mail_from="",
    size=0,
    automatic=None,
    bounce=False,
    html=None,
    channel=None,
    candidates=(),
    first_touch=None,
    deal_id=None,
    deal_url=None,
)
FAILURE = {"recipient": "a@b", "forward_to": "c@d", "code": None, "answer": None, "host": "mx[192.0.2.1]:25"}
PREVIOUS = {"state": "likely", "method": "pool/2", "visit_id": None}
OF_TYPE: dict[str, dict[str, Any]] = {
    "message.received": {},
    "message.failed": {"failure": FAILURE},
    "attribution.changed": {"previous": PREVIOUS},
}


def schema_of(event: str) -> dict[str, Any]:
    return payload.schema(extras.properties(event), ATTACHMENT)


def body(event: str, further: PayloadExtras, attribution: Attribution = EXACT) -> dict[str, Any]:
    """The body as it goes out with one attachment (webapi/compose.py), through JSON and back."""
    message = PayloadMessage("1", "1", None, None, None, "a@b", (PayloadAttachment("o.pdf", "https://x/a/1"),))
    values = payload.build(message, None, attribution)
    values["attachments"] = [
        {"name": "o.pdf", "url": "https://x/a/1", "size": 3, "type": "application/pdf", "inline": False}
    ]
    values |= extras.build(replace(further, event=event, data=OF_TYPE[event]), attribution)
    found: dict[str, Any] = json.loads(payload.encode(values))
    return found


def test_every_member_reaches_its_own_key() -> None:
    assert extras.build(FULL, LIKELY) == {
        "event": "message.received",
        "site": "shop",
        "received_at": "2026-01-31T12:00:00.000Z",
        "received_epoch": 1769860800,
        "written_at": "2026-01-31T11:59:30.250Z",
        "message_id": "1.a@mail.com",
        "in_reply_to": "0.a@mail.com",
        "references": ["x@mail.com", "0.a@mail.com"],
        "mail_from": "ann@mail.com",
        "size": 4096,
        "automatic": "mailing list",
        "bounce": True,
        "channel": "campaign",
        "attribution": {
            "state": "likely",
            "method": "pool/2",
            "candidates": [{"visit_id": "1001", "probability": 0.75}, {"visit_id": "1002", "probability": 0.25}],
        },
        "authentication": {"spf": None, "dkim": None, "dmarc": None},
        "first_touch": {
            "visit_id": "1001",
            "marker": "fb_new_1",
            "referrer": None,
            "domain": None,
            "landing_page": None,
            "utm_source": "fb",
            "utm_medium": None,
            "utm_campaign": None,
            "utm_term": None,
            "utm_content": None,
            "source_level_1": "fb",
            "source_level_2": "new_1",
        },
        "html": "<p>Привет</p>",
        "deal": {"id": "17", "url": "https://crm.example/17"},
    }


def test_what_is_not_known_is_null_and_never_missing() -> None:
    found = extras.build(EMPTY, EXACT)
    nulls = {"message_id", "in_reply_to", "mail_from", "automatic", "channel", "first_touch", "html"}
    assert {key for key, value in found.items() if value is None} == nulls
    assert found["deal"] == {"id": None, "url": None}
    assert found["references"] == []
    assert found["received_at"] == "1970-01-01T00:00:00.000Z"


def test_empty_texts_are_null() -> None:
    found = extras.build(replace(FULL, message_id="", in_reply_to="", mail_from="", html=""), EXACT)
    assert [found[key] for key in ("message_id", "in_reply_to", "mail_from", "html")] == [None] * 4


def test_a_first_touch_without_a_number_or_source_is_all_null() -> None:
    touch = extras.build(replace(FULL, first_touch=PayloadVisit("")), EXACT)["first_touch"]
    assert isinstance(touch, dict)
    assert set(touch.values()) == {None}


def test_the_references_keys_and_the_further_ones_are_apart() -> None:
    """Where they met, one would take the other's place."""
    further = [key for key, *_ in FIELDS]
    assert set(further).isdisjoint(KEYS)
    assert all(set(data).isdisjoint({*KEYS, *further}) for data in DATA.values())
    assert list(extras.build(FULL, EXACT)) == further


def test_there_is_a_schema_of_every_type_of_event() -> None:
    assert set(DATA) == {kind.value for kind in EventType} == set(OF_TYPE)


@pytest.mark.parametrize("event", [kind.value for kind in EventType])
class TestSchema:
    @pytest.mark.parametrize("further", [FULL, EMPTY])
    @pytest.mark.parametrize("attribution", [EXACT, LIKELY, Attribution(AttributionState.NONE, "pool/2")])
    def test_what_is_built_is_valid(self, event: str, further: PayloadExtras, attribution: Attribution) -> None:
        Draft202012Validator(schema_of(event), validate_formats=True).validate(body(event, further, attribution))

    def test_it_is_closed_and_everything_is_promised(self, event: str) -> None:
        validator, good = Draft202012Validator(schema_of(event)), body(event, FULL)
        assert not validator.is_valid({**good, "later": 1})
        for key in good:
            assert not validator.is_valid({name: value for name, value in good.items() if name != key}), key

    def test_its_data_is_closed_and_all_of_it_is_promised(self, event: str) -> None:
        validator, good = Draft202012Validator(schema_of(event)), body(event, FULL)
        for key, data in OF_TYPE[event].items():
            assert not validator.is_valid({**good, key: {**data, "later": 1}})
            for name in data:
                assert not validator.is_valid({**good, key: {one: data[one] for one in data if one != name}}), name

    def test_a_wrong_type_is_not_valid(self, event: str) -> None:
        validator, good = Draft202012Validator(schema_of(event)), body(event, FULL)
        for key, value in (
            ("size", "4096"),
            ("bounce", None),
            ("received_at", 1),
            ("references", None),
            ("deal", None),
        ):
            assert not validator.is_valid({**good, key: value}), key

    def test_its_examples_are_valid_and_described(self, event: str) -> None:
        described = schema_of(event)
        for key, member in described["properties"].items():
            assert member["description"], key
            assert member["examples"], key
            for example in member["examples"]:
                Draft202012Validator(member, validate_formats=True).validate(example)
        whole = {key: member["examples"][0] for key, member in described["properties"].items()}
        Draft202012Validator(described, validate_formats=True).validate(whole)

    def test_the_schema_is_a_schema(self, event: str) -> None:
        json.dumps(schema_of(event))
        Draft202012Validator({"$ref": "https://json-schema.org/draft/2020-12/schema"}).validate(schema_of(event))
