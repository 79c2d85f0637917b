"""Forms and the API's models: both ways, every member, and each error at its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.config.models import SiteOptions, SourceOf, Static, Target
from relay.config.webhook import HookConditions, HookOptions
from webapi.hook_models import ChangedWebhook, NewWebhook
from webapi.problems import Problem
from webapi.site_models import PoolAddition, SiteShown
from webapi.ui import forms, hook_forms, site_forms
from webapi.ui.forms import Form, errors_of, in_words


def sent(**fields: str | list[str]) -> dict[str, list[str]]:
    return {name: [value] if isinstance(value, str) else value for name, value in fields.items()}


class TestKinds:
    @pytest.mark.parametrize(
        ("kind", "typed", "value"),
        [
            (forms.TEXT, " a b ", "a b"),
            (forms.OPTIONAL, " ", None),
            (forms.BLOCK, "\r\na = 1\r\n b\r\n", "a = 1\n b"),
            (
                forms.ITEMS,
                "a@x.example, b@x.example;\r\n\r\n c@x.example ",
                ["a@x.example", "b@x.example", "c@x.example"],
            ),
            (forms.ITEMS, "", []),
            (forms.NUMBER, " 7 ", 7),
            (forms.OPTIONAL_NUMBER, "", None),
            (forms.SIZE, "", 0),
            (forms.SIZE, "10 MB", 10_000_000),
            (forms.SIZE, "3kb", 3000),
            (forms.SIZE, "17", 17),
            (forms.BOX, "on", True),
            (forms.AS_SITE, "yes", True),
            (forms.AS_SITE, "no", False),
            (forms.AS_SITE, "site", "site"),
            (forms.HEADERS, "X-Api-Key: a:b\r\n\r\nX-B:\r\n", {"X-Api-Key": "a:b", "X-B": ""}),
            (forms.VARIABLES, "code = a=b", {"code": "a=b"}),
        ],
    )
    def test_what_is_typed_becomes_the_members_json(self, kind: forms.Kind, typed: str, value: Any) -> None:
        assert kind.read([typed]) == value

    @pytest.mark.parametrize(
        ("kind", "typed", "words"),
        [
            (forms.NUMBER, "", "is required"),
            (forms.NUMBER, "-1", "must be a whole number"),
            (forms.NUMBER, "1" * 19, "must be a whole number"),
            (forms.NUMBER, "٣", "must be a whole number"),
            (forms.SIZE, "big", 'must be a size such as "500 kB" or "10 MB"'),
            (forms.HEADERS, "X-Api-Key", '"X-Api-Key" is not a line such as "name: value"'),
            (forms.HEADERS, "A: 1\nA: 2", '"A" is there twice'),
        ],
    )
    def test_what_is_no_json_of_the_members_type_is_said(self, kind: forms.Kind, typed: str, words: str) -> None:
        with pytest.raises(ValueError) as caught:
            kind.read([typed])
        assert str(caught.value) == words

    @pytest.mark.parametrize("octets", [0, 1, 999, 1000, 1_500_000, 7_000_000, 1 << 50])
    def test_a_size_is_shown_as_it_can_be_typed(self, octets: int) -> None:
        shown = forms.SIZE.show(octets)
        assert isinstance(shown, str)
        assert forms.SIZE.read([shown]) == octets

    def test_of_a_field_that_is_sent_twice_the_last_counts(self) -> None:
        assert Form({"a": forms.TEXT}).read({"a": ["1", "2"]}) == {"a": "2"}


class TestEveryMember:
    """A member that the API gains must get its field: these fail until it has."""

    def test_of_a_site(self) -> None:
        assert set(SiteOptions.model_fields) == {"tracking", "send_to_crm", "sources", *site_forms.SETTINGS.fields}

    def test_of_a_target(self) -> None:
        assert set(Target.model_fields) == set(site_forms.NEW_TARGET.fields)

    def test_of_statics_rules_and_additions(self) -> None:
        assert set(Static.model_fields) == set(site_forms.STATIC.fields)
        assert set(SourceOf.model_fields) == set(site_forms.RULE.fields)
        assert set(PoolAddition.model_fields) == set(site_forms.ADDITION.fields)

    def test_of_a_webhook(self) -> None:
        plain = {name for name in hook_forms.NAMES if "." not in name} - {"shape", "login"}
        assert plain == set(NewWebhook.model_fields) - {"conditions"}
        assert set(ChangedWebhook.model_fields) - {"enabled", "edition"} == set(HookOptions.model_fields) | {"url"}
        conditions = {name.removeprefix("conditions.") for name in hook_forms.NAMES if "." in name}
        assert conditions == set(HookConditions.model_fields)


SITE = {
    "name": "garden",
    "key": "pk_garden",
    "declared": False,
    "edition": "0123456789abcdef",
    "origins": ["https://www.garden.example", "https://*.garden.example"],
    "tracking": True,
    "send_to_crm": False,
    "bots": "none",
    "lease_on": "interaction",
    "reserve": 25,
    "visit_timeout": "12h",
    "touch": "last_non_direct",
    "visit_cookie": None,
    "marker_cookie": "other_marker",
    "cookie_domain": "garden.example",
    "server_cookies": True,
    "respect_gpc": True,
    "google_analytics": False,
    "metrica": 17,
    "require_visit": False,
    "skip_bounces": True,
    "skip_automatic": False,
    "sources": [
        {"marker": "a_b", "channel": "ads", "referrer": "x.example", "parameter": "ref", "value": "1", "page": "/p/*"}
    ],
    "targets": [
        {
            "address": "sales@garden.example",
            "method": "pool",
            "domain": "t.garden.example",
            "pool": ["a@t.garden.example"],
            "lease": "15m",
            "additional": True,
            "forward_to": "box@garden.example",
            "next_hop": "smtp://user:***@mail.garden.example:25",
        }
    ],
    "statics": [{"address": "card@t.garden.example", "target": "sales@garden.example", "label": "card"}],
}


def shown(**changes: Any) -> SiteShown:
    return SiteShown.model_validate(SITE | changes)


def typed_of(values: dict[str, Any]) -> dict[str, list[str]]:
    """What a browser sends of a form that shows these values."""
    found = {}
    for name, value in values.items():
        if isinstance(value, list):
            found[name] = value
        elif value is not False:
            found[name] = ["on" if value is True else value]
    return found


class TestSite:
    def test_settings_that_are_sent_as_they_are_shown_change_nothing(self) -> None:
        definition = site_forms.definition(shown())
        values = site_forms.SETTINGS.filled(definition)
        read = definition | site_forms.SETTINGS.read(typed_of(values))
        assert read | {"visit_cookie": None} == definition  # an empty text is none as well
        assert read["visit_cookie"] == ""

    def test_a_rule_that_is_sent_as_it_is_shown_stays(self) -> None:
        rule = SITE["sources"][0]  # type: ignore[index]
        assert site_forms.RULE.read(typed_of(site_forms.RULE.filled(rule))) == rule

    def test_a_target_keeps_its_pool_and_its_hidden_password(self) -> None:
        before = site_forms.definition(shown())["targets"][0]
        values = site_forms.TARGET.filled(before)
        del values["pool"], values["pool_size"]  # the form of one with a pool has no such fields
        assert site_forms.target_of(site_forms.TARGET.read(typed_of(values)), before) == before

    def test_another_method_ends_the_pool(self) -> None:
        before = site_forms.definition(shown())["targets"][0]
        given = site_forms.TARGET.read(sent(method="plus", domain="t.garden.example", lease="15m", pool="x@y.example"))
        assert site_forms.target_of(given, before)["pool"] == []

    def test_a_new_pool_without_list_and_size_has_thirty(self) -> None:
        given = site_forms.NEW_TARGET.read(sent(address="a@b.example", method="pool", domain="t.b.example"))
        assert site_forms.target_of(given)["pool_size"] == 30
        listed = site_forms.NEW_TARGET.read(sent(address="a@b.example", method="pool", pool="x@y.example"))
        assert "pool_size" not in site_forms.target_of(listed)

    def test_a_rule_in_words(self) -> None:
        words = site_forms.rule_in_words(shown().sources[0])
        assert words == "comes from x.example and has ?ref=1 and begins on /p/*"

    def test_no_form_sends_the_switches(self) -> None:
        assert not {"tracking", "send_to_crm"} & site_forms.definition(shown()).keys()


HOOK: dict[str, Any] = {
    "id": "3",
    "site": "garden",
    "url": "https://crm.example/hook",
    "fill": "likely",
    "events": ["message.received", "message.failed"],
    "extras": True,
    "concurrency": 3,
    "login": "bearer",
    "headers": ["X-Api-Key"],
    "variables": ["key"],
    "template": "body = '{}'\nvariables = [\"key\"]",
    "deal_id": "/lead/id",
    "deal_url": "",
    "conditions": {
        "require_visit": True,
        "skip_bounces": False,
        "skip_automatic": "site",
        "skip_blocked": "site",
        "attribution": "exact",
        "first_letter": "30d",
        "min_size": 10,
        "max_size": 5_000_000,
        "max_recipients": 5,
        "recipients": ["sales@garden.example"],
        "subject": "^offer",
    },
}


class TestWebhook:
    def test_what_is_sent_as_it_is_shown_changes_nothing_and_touches_no_secret(self) -> None:
        body = hook_forms.read(typed_of(hook_forms.filled(HOOK)), new=False)
        assert not {"basic", "bearer", "headers", "variables", "secret"} & set(body)
        assert body == {name: HOOK[name] for name in body}
        ChangedWebhook.model_validate_json(json.dumps(body))

    def test_what_is_typed_takes_the_place_of_what_was_kept(self) -> None:
        form = typed_of(hook_forms.filled(HOOK)) | sent(headers="X-New: 1", login="basic", basic="u:p", bearer="old")
        body = hook_forms.read(form, new=False)
        assert (body["headers"], body["basic"], body["bearer"]) == ({"X-New": "1"}, "u:p", "")

    def test_what_is_kept_no_longer_ends(self) -> None:
        form = typed_of(hook_forms.filled(HOOK))
        del form["headers_kept"]
        body = hook_forms.read(form | sent(login="none"), new=False)
        assert (body["headers"], body["basic"], body["bearer"]) == ({}, "", "")

    def test_without_a_template_its_variables_end(self) -> None:
        body = hook_forms.read(typed_of(hook_forms.filled(HOOK)) | sent(shape=""), new=False)
        assert (body["template"], body["variables"]) == ("", {})

    def test_a_new_one_has_the_products_defaults(self) -> None:
        form = typed_of(hook_forms.filled(hook_forms.NEW_VALUES)) | sent(url="https://crm.example/hook")
        body = hook_forms.read(form, new=True)
        made = NewWebhook.model_validate_json(json.dumps(body))
        assert made == NewWebhook(url="https://crm.example/hook")

    def test_all_errors_are_said_at_once(self) -> None:
        form = typed_of(hook_forms.filled(HOOK)) | sent(
            concurrency="x", headers="no", **{"conditions.min_size": "big", "conditions.max_recipients": ""}
        )
        with pytest.raises(Problem) as caught:
            hook_forms.read(form, new=False)
        errors = errors_of(caught.value, hook_forms.NAMES)
        assert set(errors.by_field) == {
            "concurrency",
            "headers",
            "conditions.min_size",
            "conditions.max_recipients",
        }

    def test_conditions_in_words(self) -> None:
        words = hook_forms.conditions(HOOK["conditions"], shown())
        assert words == [
            "has a visit, or was sent to a static address",
            "comes from no blocked sender",
            "has an exact attribution",
            "is the sender's first in 30d",
            "is at least 10 octets large",
            "is at most 5 MB large",
            "has at most 5 of our addresses as recipients",
            "was sent to sales@garden.example",
            "has a subject that matches ^offer",
        ]
        assert hook_forms.site_conditions(shown()) == ["is no bounce", "comes from no blocked sender"]


class TestErrors:
    def test_each_goes_to_the_field_whose_path_it_has(self) -> None:
        problem = Problem(
            400,
            "first",
            errors=(
                ("targets[1].pool[3]", '"x" is not an address'),
                ("targets[1].pool[4]", '"y" is not an address'),
                ("targets[1]", "needs a domain"),
                ("targets[0].lease", "must be a duration"),
                ("origins", "must not be empty"),
            ),
        )
        document = {"targets": [{"address": "a@x.example"}, {"address": "b@x.example"}]}
        errors = errors_of(problem, site_forms.NEW_TARGET.fields, document, "targets[1].")
        assert errors.by_field == {"pool": '"x" is not an address; "y" is not an address'}
        assert errors.general == (
            "b@x.example: needs a domain",
            "the lease of a@x.example: must be a duration",
            "origins: must not be empty",
        )

    def test_details_name_things_instead_of_paths(self) -> None:
        document = {"targets": [{"address": "a@x.example"}], "statics": []}
        assert in_words("x@y is already targets[0].pool[7]", document) == "x@y is already the pool of a@x.example"
        assert in_words("see statics[4].label", document) == "see the label of static address number 5"

    @pytest.mark.parametrize("status", [403, 404, 429])
    def test_what_no_form_is_to_blame_for_is_raised(self, status: int) -> None:
        problem = Problem(status, "no")
        with pytest.raises(Problem) as caught:
            errors_of(problem, ("a",))
        assert caught.value is problem

    def test_a_conflict_without_a_field_is_general(self) -> None:
        assert errors_of(Problem(409, "it is taken"), ("a",)).general == ("it is taken",)
