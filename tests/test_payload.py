"""The webhook's body, key by key against the reference's printed example."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator

from relay.core.model import Attribution, AttributionState
from relay.core.payload import KEYS, PayloadAttachment, PayloadMessage, PayloadVisit, build, encode, schema

# As printed in the reference document, less its comments.
REFERENCE = """
{ "id": "111", "email_id": "222", "visit_id": "123456", "subject": "Re: Test", "text": "Test message",
  "email_from": "email_1@mail.com", "email_to": "email+123456@mail.com", "attachments": [], "referrer": "fb.com",
  "marker": "fb_new", "city": "New York", "country": "USA", "ip": "161.185.160.93", "first_visit": "1001",
  "domain": "test.com", "landing_page": "test.com/new", "utm_source": null, "utm_medium": null,
  "utm_campaign": null, "utm_term": null, "utm_content": null, "roistat_param_1": null, "roistat_param_2": null,
  "roistat_param_3": null, "roistat_param_4": null, "roistat_param_5": null, "google_client_id": null,
  "source_level_1": "fb", "source_level_2": "new" }
"""

MESSAGE = PayloadMessage(
    id="111",
    email_id="222",
    subject="Re: Test",
    text="Test message",
    email_from="email_1@mail.com",
    email_to="email+123456@mail.com",
)
VISIT = PayloadVisit(
    number="123456",
    first_visit="1001",
    referrer="fb.com",
    marker="fb_new",
    city="New York",
    country="USA",
    ip="161.185.160.93",
    domain="test.com",
    landing_page="test.com/new",
)
EXACT = Attribution(AttributionState.EXACT, "plus/1", visit=1)
VISIT_KEYS = (*KEYS[8:], "visit_id")


def test_the_references_example_comes_out_key_by_key_in_its_order() -> None:
    expected = json.loads(REFERENCE)
    found = build(MESSAGE, VISIT, EXACT)
    for key, value in expected.items():
        assert found[key] == value, key
    assert list(found) == list(expected) == list(KEYS)
    assert json.loads(encode(found)) == expected


def test_every_field_of_a_visit_reaches_its_own_key() -> None:
    visit = PayloadVisit(
        number="1", first_visit="2", referrer="3", marker="4_5", city="6", country="7", ip="8", domain="9",
        landing_page="10", utm_source="11", utm_medium="12", utm_campaign="13", utm_term="14", utm_content="15",
        params=("16", "17", "18", "19", "20"), google_client_id="21",
    )  # fmt: skip
    found = build(MESSAGE, visit, EXACT)
    assert [found[key] for key in ("visit_id", "first_visit", "referrer", "marker", "city", "country", "ip")] == [
        "1", "2", "3", "4_5", "6", "7", "8",
    ]  # fmt: skip
    assert [found[key] for key in KEYS[14:27]] == [str(number) for number in range(9, 22)]
    assert (found["source_level_1"], found["source_level_2"]) == ("4", "5")


def test_attachments_are_names_and_links() -> None:
    message = PayloadMessage(
        "1", "2", None, None, None, "a@b", (PayloadAttachment("o.pdf", "https://x/a/1"), PayloadAttachment("", "u"))
    )
    assert build(message, None, EXACT)["attachments"] == [
        {"name": "o.pdf", "url": "https://x/a/1"},
        {"name": None, "url": "u"},
    ]


@pytest.mark.parametrize(
    "attribution",
    [
        Attribution(AttributionState.NONE, "pool/2"),
        Attribution(AttributionState.LIKELY, "pool/2"),
        Attribution(AttributionState.EXACT, "static/1"),
    ],
)
def test_without_a_stated_visit_every_visit_field_is_null(attribution: Attribution) -> None:
    found = build(MESSAGE, None, attribution)
    assert list(found) == list(KEYS)
    assert all(found[key] is None for key in VISIT_KEYS)


def test_claimed_number_is_the_visit_id_and_nothing_else() -> None:
    found = build(MESSAGE, None, Attribution(AttributionState.CLAIMED, "plus/1", number="987"))
    assert found["visit_id"] == "987"
    assert all(found[key] is None for key in VISIT_KEYS if key != "visit_id")


def test_empty_texts_are_null() -> None:
    message = PayloadMessage("", "", "", "", "", "")
    visit = PayloadVisit("", "", "", "", "", "", "", "", "", "", "", "", "", "", ("", "", "", "", ""), "")
    found = build(message, visit, EXACT)
    assert all(found[key] is None for key in KEYS if key != "attachments")
    assert found["attachments"] == []


def test_encoding_is_compact_utf_8() -> None:
    assert encode({"subject": "Grüße\n\x00", "text": None, "attachments": []}) == (
        '{"subject":"Grüße\\n\\u0000","text":null,"attachments":[]}'.encode()
    )


@pytest.mark.parametrize(("text", "shown"), [("a\ud83db", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00", "😀")])
def test_lone_surrogates_become_the_replacement_character(text: str, shown: str) -> None:
    assert json.loads(encode({"text": text})) == {"text": shown}


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_encoded(text: str) -> None:
    decoded = json.loads(encode({"text": text}).decode("utf-8"))["text"]
    assert "\ufffd" in decoded or decoded == text


def test_schema_describes_every_key_with_the_references_example() -> None:
    found = schema()
    properties = found["properties"]
    assert isinstance(properties, dict)
    assert tuple(properties) == tuple(found["required"]) == KEYS  # type: ignore[arg-type]
    reference = json.loads(REFERENCE)
    for key, described in properties.items():
        assert described["description"]
        (example,) = described["examples"]
        assert example == reference[key] or (example and not reference[key]), key  # an example for what it leaves null
        assert described["type"] == ("array" if key == "attachments" else ["string", "null"])


def test_schema_accepts_what_is_built_and_refuses_more() -> None:
    message = PayloadMessage("1", "2", None, "t", "a@b", "c@d", (PayloadAttachment("o.pdf", "https://x"),))
    for body in (json.loads(REFERENCE), build(message, VISIT, EXACT), build(message, None, EXACT)):
        Draft202012Validator(schema()).validate(body)
    for bad in ({**json.loads(REFERENCE), "more": "x"}, {**json.loads(REFERENCE), "id": 111}, {}):
        assert not Draft202012Validator(schema()).is_valid(bad)
