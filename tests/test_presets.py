"""The templates that come with the program, against the field names that their systems publish.

The schemas name what we send and nothing else; each says where the names are published.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from jsonschema_rs import Draft202012Validator

from relay import presets
from relay.core.template import Template, TemplateError, check, deal_url, missing, render, resolve
from relay.core.template_filters import MAX_WORK, Budget
from relay.core.template_samples import SAMPLES
from tests.webhook_receiver import Answer, Receiver

EXAMPLE, NULLS, HOSTILE = (payload for _, payload in SAMPLES)
LONG: dict[str, Any] = {
    **EXAMPLE,
    **dict.fromkeys(("subject", "marker", "utm_source", "utm_term", "referrer", "landing_page"), "ё" * 5000),
    "text": "\x01😀" * 500_000,
    "attachments": EXAMPLE["attachments"] * 1000,
}


def _text(limit: int, least: int = 0) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": limit}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


# crm.item.add: https://apidocs.bitrix24.com/api-reference/crm/universal/crm-item-add.html (fields of a lead and of a
# deal; fm is the lead's), source: https://github.com/bitrix24/b24restdocs. The lengths are our own bounds.
BITRIX24 = _object(
    {
        "entityTypeId": {"enum": [1, 2]},
        "fields": _object(
            {
                "title": _text(255, 1),
                "sourceId": _text(50, 1),
                "sourceDescription": _text(255),
                "comments": _text(20_000, 1),
                "assignedById": {"type": "integer"},
                "originatorId": _text(255),
                "originId": {"type": ["string", "null"], "maxLength": 255},
                **{f"utm{name}": _text(255) for name in ("Source", "Medium", "Campaign", "Term", "Content")},
                "fm": {
                    "type": "array",
                    "items": _object(
                        {"typeId": {"const": "EMAIL"}, "valueType": {"const": "WORK"}, "value": {"type": "string"}},
                        ["typeId", "valueType", "value"],
                    ),
                    "minItems": 1,
                },
            },
            ["title", "comments"],
        ),
    },
    ["entityTypeId", "fields"],
)

# leads/complex: https://developers.kommo.com/reference/complex-leads; field_id, field_code, values and tracking_data:
# https://developers.kommo.com/reference/custom-fields; tags, request_id and contacts also in the vendor's
# https://github.com/amocrm/amocrm-api-php (examples/leads_complex_actions.php). The codes UTM_… are those that
# GET /api/v4/leads/custom_fields answers for the predefined tracking fields; no page of the vendor's lists them.
UTM = ["UTM_SOURCE", "UTM_MEDIUM", "UTM_CAMPAIGN", "UTM_TERM", "UTM_CONTENT"]
_VALUES = {"type": "array", "minItems": 1, "maxItems": 1}
KOMMO = {
    "type": "array",
    "minItems": 1,
    "maxItems": 50,
    "items": _object(
        {
            "name": _text(250, 1),
            "created_at": {"type": "integer"},
            "pipeline_id": {"type": "integer"},
            "status_id": {"type": "integer"},
            "responsible_user_id": {"type": "integer"},
            "request_id": {"type": ["string", "null"]},
            "custom_fields_values": {
                "type": "array",
                "minItems": 1,
                "maxItems": 40,
                "items": {
                    **_object(
                        {
                            "field_code": {
                                "enum": [f"UTM_{n}" for n in ["SOURCE", "MEDIUM", "CAMPAIGN", "TERM", "CONTENT"]]
                            },
                            "field_id": {"type": "integer"},
                            "values": {**_VALUES, "items": _object({"value": _text(20_000, 1)}, ["value"])},
                        },
                        ["values"],
                    ),
                    "oneOf": [{"required": ["field_code"]}, {"required": ["field_id"]}],
                },
            },
            "_embedded": _object(
                {
                    "contacts": {
                        **_VALUES,
                        "items": _object(
                            {
                                "name": _text(250, 1),
                                "custom_fields_values": {
                                    **_VALUES,
                                    "items": _object(
                                        {
                                            "field_code": {"const": "EMAIL"},
                                            "values": {
                                                **_VALUES,
                                                "items": _object(
                                                    {"value": {"type": "string"}, "enum_code": {"const": "WORK"}},
                                                    ["value", "enum_code"],
                                                ),
                                            },
                                        },
                                        ["field_code", "values"],
                                    ),
                                },
                            },
                            ["name", "custom_fields_values"],
                        ),
                    },
                    "tags": {**_VALUES, "items": _object({"name": _text(250, 1)}, ["name"])},
                },
                [],
            )
            | {"minProperties": 1},
        },
        ["name"],
    ),
}

# Deals: https://developers.hubspot.com/docs/guides/api/crm/objects/deals (dealname, dealstage, pipeline,
# hubspot_owner_id) and https://knowledge.hubspot.com/crm-deals/hubspots-default-deal-properties (Deal Description,
# internal name description, as GET /crm/v3/properties/deals answers). The lengths are our own bounds.
_HUBSPOT = {
    "dealname": _text(255, 1),
    "pipeline": _text(255, 1),
    "dealstage": _text(255, 1),
    "hubspot_owner_id": _text(20, 1),
    "description": _text(65_536, 1),
}
HUBSPOT = _object({"properties": _object(_HUBSPOT, ["dealname", "pipeline", "dealstage"])}, ["properties"])
HUBSPOT_OWN = _object(
    {
        "properties": _object(
            {**_HUBSPOT, "visit": _text(255), "source": _text(255), "message": _text(255)},
            ["visit", "source", "message"],
        )
    },
    ["properties"],
)

# Body and limits: https://developers.google.com/analytics/devguides/collection/protocol/ga4/sending-events; names and
# values: https://support.google.com/analytics/answer/9267744 (40 and 100 characters, 25 parameters); generate_lead:
# https://developers.google.com/analytics/devguides/collection/protocol/ga4/reference/events
GA4 = _object(
    {
        "client_id": _text(100),
        "timestamp_micros": {"type": "integer", "minimum": 10**15, "maximum": 10**16},
        "events": {
            "type": "array",
            "minItems": 1,
            "maxItems": 25,
            "items": _object(
                {
                    "name": {"const": "generate_lead"},
                    "params": _object(
                        {"currency": _text(3, 3), "value": {"type": "number"}, "lead_source": _text(100, 1)},
                        ["lead_source"],
                    )
                    | {"maxProperties": 25, "propertyNames": {"maxLength": 40}},
                },
                ["name", "params"],
            ),
        },
    },
    ["client_id", "timestamp_micros", "events"],
)


@dataclass(frozen=True)
class Case:
    """A preset as an operator uses it. ``answer``: the published example; ``deal``: the id in it, and our link."""

    name: str
    schema: dict[str, Any]
    url: str
    target: str
    answer: Any
    deal: tuple[object, str | None]
    variables: dict[str, str] = field(default_factory=dict)


ANALYTICS = {"measurement_id": "G-ABC123", "api_secret": "s&cret"}
ANALYTICS_QUERY = "?measurement_id=G-ABC123&api_secret=s%26cret"
CASES = [
    Case(
        "bitrix24",
        BITRIX24,
        "https://a.bitrix24.com/rest/1/",
        "/rest/1/abcdefgh12345678/crm.item.add",
        # crm-item-add.html, "Response Handling", shortened
        {"result": {"item": {"id": 13, "title": "Lead #13"}}, "time": {"start": 1720598208.5}},
        (13, "https://a.bitrix24.com/crm/lead/details/13/"),
        {"code": "abcdefgh12345678"},
    ),
    Case(
        "bitrix24",
        BITRIX24,
        "https://a.bitrix24.com/rest/1",
        "/rest/1/a%2Fb%3Fc/crm.item.add",
        {"result": {"item": {"id": 13}}},
        (13, "https://a.bitrix24.com/crm/deal/details/13/"),
        {"code": "a/b?c", "entity_type": "2", "source_id": "WEB", "assigned_by": "6"},
    ),
    Case(
        "kommo",
        KOMMO,
        "https://a.kommo.com",
        "/api/v4/leads/complex",
        # complex-leads, "Response example"
        [{"id": 9774766, "contact_id": 12117258, "company_id": 12117260, "request_id": ["1"], "merged": False}],
        (9774766, "https://a.kommo.com/leads/detail/9774766"),
    ),
    Case(
        "kommo",
        KOMMO,
        "https://a.amocrm.ru/",
        "/api/v4/leads/complex",
        [{"id": 9774766}],
        (9774766, "https://a.amocrm.ru/leads/detail/9774766"),
        {
            "pipeline_id": "1",
            "status_id": "2",
            "responsible_user_id": "3",
            "tag": 'e-"mail"',
            "text_field_id": "4",
            "visit_field_id": "5",
            "message_field_id": "6",
        },
    ),
    Case(
        "hubspot",
        HUBSPOT,
        "https://api.hubapi.com",
        "/crm/v3/objects/deals",
        # objects/deals, "Create deals": the record that is answered
        {
            "id": "512",
            "properties": {"dealname": "New deal"},
            "createdAt": "2019-10-30T03:30:17.883Z",
            "archived": False,
        },
        ("512", None),
    ),
    Case(
        "hubspot",
        HUBSPOT_OWN,
        "https://api.hubapi.com/",
        "/crm/v3/objects/deals",
        {"id": "512"},
        ("512", "https://app.hubspot.com/contacts/99/record/0-3/512"),
        {
            "pipeline": "sales",
            "stage": "new",
            "owner_id": "910901",
            "visit_property": "visit",
            "source_property": "source",
            "message_property": "message",
            "portal_id": "99",
        },
    ),
    Case(
        "ga4",
        GA4,
        "https://www.google-analytics.com/mp/collect",
        "/mp/collect" + ANALYTICS_QUERY,
        None,  # 204 without a body
        (None, None),
        ANALYTICS,
    ),
    Case(
        "ga4",
        GA4,
        "https://www.google-analytics.com/debug/mp/collect",
        "/debug/mp/collect" + ANALYTICS_QUERY,
        {"validationMessages": []},
        (None, None),
        {**ANALYTICS, "currency": "EUR", "value": "25.5"},
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def body(case: Case, payload: dict[str, Any]) -> Any:
    return json.loads(render(presets.load(case.name), case.url, payload, case.variables).body)


def test_these_presets_come_with_the_program() -> None:
    assert presets.names() == ("bitrix24", "ga4", "hubspot", "kommo")
    assert {case.name for case in CASES} == set(presets.names())
    assert presets.load("kommo") is presets.load("kommo")


def test_an_unknown_preset_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(TemplateError, match="template: must be one of bitrix24, ga4, hubspot, kommo") as caught:
        presets.load("salesforce")
    assert caught.value.field == "template"


@each_case
def test_a_preset_passes_the_check(case: Case) -> None:
    check(presets.load(case.name), case.url, case.variables)


@each_case
@pytest.mark.parametrize("payload", [EXAMPLE, NULLS, HOSTILE, LONG], ids=["example", "nulls", "hostile", "long"])
def test_a_preset_sends_only_published_fields_within_their_limits(case: Case, payload: dict[str, Any]) -> None:
    errors = [str(error) for error in Draft202012Validator(case.schema).iter_errors(body(case, payload))]
    assert errors == []


@each_case
def test_the_longest_message_takes_a_fraction_of_the_work_that_is_allowed(case: Case) -> None:
    budget = Budget()
    render(presets.load(case.name), case.url, LONG, case.variables, budget)
    assert budget.spent < MAX_WORK / 4


@each_case
def test_the_deal_is_found_in_the_published_answer(case: Case) -> None:
    template = presets.load(case.name)
    found, link = case.deal
    assert resolve(template.deal_id, case.answer) == found
    assert deal_url(template, case.url, str(found), case.variables) == link


@each_case
async def test_a_preset_makes_a_request_that_a_server_reads(case: Case) -> None:
    template = presets.load(case.name)
    own = urlsplit(case.url)
    async with Receiver(Answer(200, json.dumps(case.answer).encode())) as crm, aiohttp.ClientSession() as session:
        made = render(template, crm.at(own.path), EXAMPLE, case.variables)
        async with session.request(made.method, made.url, data=made.body, headers=made.headers) as response:
            assert resolve(template.deal_id, await response.json(content_type=None)) == case.deal[0]
    (post,) = crm.posts
    assert (post.method, post.path) == ("POST", case.target)
    assert parse_qs(urlsplit(post.path).query) == parse_qs(urlsplit(case.target).query)
    assert post.headers["content-type"] == "application/json"
    assert post.headers["content-length"] == str(len(made.body))
    assert json.loads(post.body) == body(case, EXAMPLE)


# What each of them makes.


def test_bitrix24_gets_a_lead_with_address_marks_and_text() -> None:
    fields = body(CASES[0], EXAMPLE)["fields"]
    assert fields["fm"] == [{"typeId": "EMAIL", "valueType": "WORK", "value": "email_1@mail.com"}]
    assert (fields["title"], fields["originId"], fields["utmCampaign"]) == ("Re: Test", "111", "new")
    assert fields["comments"].split("\n") == [
        "Test message",
        "",
        "From: email_1@mail.com",
        "To: email+123456@mail.com",
        "Visit: 123456",
        "First visit: 1001",
        "Source: fb_new",
        "Referrer: fb.com",
        "Page: test.com/new",
        "City: New York",
        "Files:",
        "https://relay.example.com/a/token/offer.pdf",
    ]


def test_bitrix24_gets_a_deal_where_there_are_no_leads() -> None:
    made = body(CASES[1], EXAMPLE)
    assert made["entityTypeId"] == 2
    assert "fm" not in made["fields"]
    assert (made["fields"]["sourceId"], made["fields"]["assignedById"]) == ("WEB", 6)


def test_kommo_gets_a_lead_with_its_contact_and_marks() -> None:
    (lead,) = body(CASES[3], EXAMPLE)
    values = {
        each.get("field_code") or each["field_id"]: each["values"][0]["value"] for each in lead["custom_fields_values"]
    }
    assert values.pop(4).startswith("Test message\n\nFrom: email_1@mail.com\nTo: ")
    assert values == {
        "UTM_SOURCE": "fb",
        "UTM_MEDIUM": "cpc",
        "UTM_CAMPAIGN": "new",
        "UTM_TERM": "test",
        "UTM_CONTENT": "banner",
        5: "123456",
        6: "111",
    }
    (contact,) = lead["_embedded"]["contacts"]
    assert contact["custom_fields_values"][0]["values"] == [{"value": "email_1@mail.com", "enum_code": "WORK"}]
    assert lead["_embedded"]["tags"] == [{"name": 'e-"mail"'}]


def test_kommo_gets_no_empty_lists() -> None:
    (lead,) = body(CASES[2], NULLS)
    assert set(lead) == {"name", "created_at", "request_id"}


def test_hubspot_gets_a_deal_with_stage_and_own_properties() -> None:
    made = body(CASES[5], EXAMPLE)["properties"]
    assert (made["dealname"], made["pipeline"], made["dealstage"]) == ("Re: Test", "sales", "new")
    assert (made["visit"], made["source"], made["hubspot_owner_id"]) == ("123456", "fb_new", "910901")
    assert made["message"] == "111"
    assert "\nutm_campaign: new\n" in made["description"]
    assert "\nMessage: 111\n" in made["description"]


@pytest.mark.parametrize("payload", [EXAMPLE, HOSTILE, LONG], ids=["example", "hostile", "long"])
@pytest.mark.parametrize(
    "marker",
    ["who@example.net", "who%40example.net", "a_who@example.net_b", None],
    ids=["plain", "encoded", "in", "no"],
)
def test_analytics_gets_no_address_and_nothing_of_the_message(payload: dict[str, Any], marker: str | None) -> None:
    template = presets.load("ga4")
    stranger = {**payload, "marker": marker, "utm_source": "who@example.net", "google_client_id": "1.2who@example.net"}
    for each in (payload, stranger):
        sent = render(template, CASES[6].url, each, ANALYTICS)
        assert not re.search(rb"@|%40", sent.body + sent.url.encode())
        for private in ("subject", "text", "email_from", "email_to", "ip", "city", "visit_id"):
            assert json.dumps(each[private], ensure_ascii=False).encode("utf-8", "replace") not in sent.body


def test_analytics_gets_nothing_without_a_client_id() -> None:
    template = presets.load("ga4")
    assert missing(template, NULLS) == missing(template, {**EXAMPLE, "google_client_id": ""}) == "google_client_id"
    assert missing(template, EXAMPLE) is None


@pytest.mark.parametrize(
    ("name", "variables", "lacking"),
    [("ga4", {"measurement_id": "G-1"}, "api_secret"), ("bitrix24", {"source_id": "WEB"}, "code")],
)
def test_a_preset_needs_its_secret(name: str, variables: dict[str, str], lacking: str) -> None:
    with pytest.raises(TemplateError, match=rf"variables\.{lacking}: must be given"):
        check(presets.load(name), "https://crm.example.com/", variables)


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("bitrix24", {"code": "c", "assigned_by": "Ann"}),
        ("kommo", {"pipeline_id": "sales"}),
        ("kommo", {"text_field_id": "text"}),
        ("ga4", {**ANALYTICS, "currency": "EUR", "value": "much"}),
    ],
)
def test_a_variable_that_must_be_a_number_is_refused_otherwise(name: str, variables: dict[str, str]) -> None:
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(TemplateError, match="body: does not come out as JSON"):
        check(presets.load(name), case.url, variables)


# The documentation.

PAGE = (Path(__file__).parent.parent / "docs/crm/templates.md").read_text("utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_example_of_the_documentation_passes_the_check() -> None:
    hooks = [tomllib.loads(block)["site"]["webhook"][0] for block in BLOCKS if block.startswith("[[site.webhook]]")]
    for hook in hooks:
        check(presets.load(hook["template"]), hook["url"], hook["variables"])
        assert hook["secret"].startswith("whsec_")
    assert {hook["template"] for hook in hooks} == set(presets.names())
    check(presets.read(BLOCKS[-1]), "https://help.example.com", {"queue": "sales"})


def test_every_variable_of_a_preset_is_documented() -> None:
    for name in presets.names():
        template = presets.load(name)
        for variable in re.findall(r"variables\.(\w+)", template.body + template.url + template.deal_url):
            assert f"`{variable}`" in PAGE


# An operator's own file.


def test_an_own_file_has_the_presets_format() -> None:
    template = presets.read(
        """
        body = "{{ subject }}"
        method = "PUT"
        url = "{{ url }}/x"
        content_type = "text/plain"
        deal_id = "/id"
        deal_url = ""
        requires = ["visit_id"]
        variables = ["key"]
        [headers]
        X-Key = "{{ variables.key }}"
        X-Visit = "{{ visit_id }}"
        """
    )
    assert template == Template(
        "{{ subject }}",
        "PUT",
        "{{ url }}/x",
        "text/plain",
        (("X-Key", "{{ variables.key }}"), ("X-Visit", "{{ visit_id }}")),
        "/id",
        "",
        ("visit_id",),
        ("key",),
    )
    assert presets.read("body = '{}'") == Template("{}")
    assert presets.read("method = 'GET'") == Template("", method="GET")


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("", "body", "is missing"),
        ("body = 1", "body", "must be a string"),
        ("body = ''\nurl = []", "url", "must be a string"),
        ("body = ''\nvariables = 'key'", "variables", "must be a list of strings"),
        ("body = ''\nrequires = [1]", "requires", "must be a list of strings"),
        ("body = ''\nheaders = ['X: y']", "headers", "must be a table"),
        ("body = ''\nheaders = { X = 1 }", "headers.X", "must be a string"),
        ("body = ''\nbodies = ''", "bodies", "unknown key; the keys are body, method"),
        ("body = '", "template", "is not TOML"),
        ("body = " + "[" * 5000, "template", "is not TOML"),
        ("#" * (128 * 1024 + 1), "template", "is longer than"),
    ],
)
def test_what_is_wrong_in_an_own_file_is_named(text: str, field: str, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        presets.read(text)
    assert caught.value.field == field
    assert words in caught.value.message
