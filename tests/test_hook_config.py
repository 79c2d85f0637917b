"""What a webhook may be told: that every option survives storing, and that templates are read where they may be."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from relay.commands_webhooks import AddWebhook, ChangeWebhook
from relay.config import ConfigError, load, parse
from relay.config.models import Webhook
from relay.config.problems import OptionError, problems_of
from relay.config.webhook import HookChange, HookConditions, HookOptions, changed, options_of
from relay.core.conditions import Conditions, overlaid
from relay.core.hook import Access, HookSettings
from webapi.hook_models import ChangedWebhook, NewWebhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OWN = "body = '{\"k\": {{ variables.k|tojson }}}'"
HOOK = f"""
hostname = "mx.example.com"
[[site]]
name = "example"
key = "pk_example"
origins = ["https://www.example.com"]
[[site.webhook]]
url = "https://crm.example.com/hook"
secret = "{SECRET}"
"""

#: Two values of every option, neither of them its default.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "fill": ("exact", "likely"),
    "events": (["message.failed"], ["attribution.changed", "message.received"]),
    "extras": (True, True),
    "headers": ({"X-Key": "k"}, {"X-A": "", "x-b": "b, c"}),
    "basic": ("user:pass:word", "Jörg:"),
    "bearer": ("t0ken==", "a.b.c"),
    "concurrency": (1, 100),
    "deal_id": ("/a/0/b", "/~0~1"),
    "deal_url": ("/u", "/"),
    "template": (OWN, "bitrix24"),
    "variables": ({"k": "v"}, {"entity_type": "2", "source_id": "x y"}),
    "conditions": (
        {"require_visit": True, "skip_bounces": False, "attribution": "exact", "first_letter": "90s", "min_size": 1},
        {
            "skip_automatic": True,
            "skip_blocked": False,
            "first_letter": "250ms",
            "max_size": 5,
            "max_recipients": 2,
            "recipients": ["a@example.com", "b@example.com"],
            "subject": "(?i)^offer \\d+",
        },
    ),
}
CONDITIONS: dict[str, Any] = {
    "require_visit": False,
    "skip_bounces": True,
    "skip_automatic": False,
    "skip_blocked": True,
    "attribution": "likely",
    "first_letter": "365d",
    "min_size": 1 << 40,
    "max_size": 1 << 40,
    "max_recipients": 10_000,
    "recipients": ["a@example.com"],
    "subject": "x",
}


def given(name: str, index: int) -> HookOptions:
    values = {name: OPTIONS[name][index]}
    if name == "variables":
        values["template"] = OPTIONS["template"][index]
    return HookOptions(**values)


def stored(options: HookOptions) -> HookOptions:
    """What comes back of what was written."""
    settings = HookSettings.from_json(options.settings().to_json())
    return options_of(options.fill, settings, Access.from_json(options.access().to_json()))


def test_every_option_and_every_condition_is_tried_here() -> None:
    assert set(OPTIONS) == set(HookOptions.model_fields)
    assert set(CONDITIONS) == set(HookConditions.model_fields)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_survives_being_stored(name: str, index: int) -> None:
    options = given(name, index)
    assert getattr(options, name) != getattr(HookOptions(), name)
    assert stored(options) == options


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_survives_being_stored_and_reaches_the_judge(name: str) -> None:
    options = HookOptions.model_validate({"conditions": {name: CONDITIONS[name]}})
    assert stored(options) == options
    asked = overlaid({}, HookSettings.from_json(options.settings().to_json()).conditions)
    assert asked == overlaid({}, options.settings().conditions)
    if getattr(HookConditions(), name) != "site":
        assert asked != Conditions()


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("require_visit", "require_visit"),
        ("skip_bounces", "refuse_bounces"),
        ("skip_automatic", "refuse_automatic"),
        ("skip_blocked", "refuse_blocked"),
    ],
)
def test_what_a_webhook_says_goes_over_what_its_site_says(name: str, asked: str, value: bool) -> None:
    of_webhook = HookOptions.model_validate({"conditions": {name: value}}).settings().conditions
    assert getattr(overlaid({asked: not value}, of_webhook), asked) is value
    assert getattr(overlaid({asked: not value}, HookOptions().settings().conditions), asked) is not value


def test_nothing_given_is_nothing_stored() -> None:
    assert HookOptions().settings() == HookSettings()
    assert HookOptions().access() == Access()
    assert stored(HookOptions()) == HookOptions()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_change_of_one_option_leaves_the_others(name: str, index: int) -> None:
    before = HookOptions(
        **{other: values[0] for other, values in OPTIONS.items() if other not in ("basic", "template", "variables")},
        template="kommo",
        variables={"tag": "x"},
    )
    if name in ("template", "variables"):
        change = HookChange(template=OPTIONS["template"][index], variables=OPTIONS["variables"][index])
    elif name == "basic":
        change = HookChange(basic=OPTIONS["basic"][index], bearer="")
    else:
        change = HookChange(**{name: OPTIONS[name][index]})
    after = changed(before, change)
    assert {field for field in HookOptions.model_fields if getattr(after, field) != getattr(before, field)} <= (
        change.model_fields_set
    )
    assert all(getattr(after, field) == getattr(change, field) for field in change.model_fields_set)


@pytest.mark.parametrize(
    ("before", "change", "field"),
    [
        ({"bearer": "t"}, {"basic": "a:b"}, "bearer"),
        ({"basic": "a:b"}, {"bearer": "t"}, "bearer"),
        ({"basic": "a:b"}, {"headers": {"AUTHORIZATION": "x"}}, "headers"),
        ({"headers": {"Authorization": "x"}}, {"bearer": "t"}, "headers"),
        ({"template": "kommo", "variables": {"tag": "x"}}, {"template": ""}, "variables"),
        ({}, {"variables": {"tag": "x"}}, "variables"),
    ],
)
def test_a_change_that_contradicts_what_stays_is_named(
    before: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    with pytest.raises(OptionError) as caught:
        changed(HookOptions(**before), HookChange(**change))
    assert caught.value.field == field


@pytest.mark.parametrize("model", [HookOptions, NewWebhook, AddWebhook, Webhook])
def test_the_same_contradiction_is_refused_wherever_a_webhook_is_described(model: type[HookOptions]) -> None:
    more = {"url": "https://crm.example", "secret": SECRET, "site": "example"}
    values = {name: value for name, value in more.items() if name in model.model_fields}
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values | {"basic": "a:sesame", "bearer": "sesame"})
    (problem,) = problems_of(caught.value, model)
    assert problem.path == "bearer"
    assert "sesame" not in str(problem)


def test_secrets_are_not_in_a_representation() -> None:
    values: dict[str, Any] = {"headers": {"X": "sesame"}, "template": "kommo", "variables": {"tag": "sesame"}}
    for model in (HookOptions, HookChange, ChangedWebhook):
        for login in ({"basic": "user:sesame"}, {"bearer": "sesame"}):
            assert "sesame" not in repr(model(**values | login))


def test_a_login_is_what_http_wants() -> None:
    sent = HookOptions(basic="Jörg:pass:word").access().authorization
    assert base64.b64decode(sent.removeprefix("Basic ")).decode() == "Jörg:pass:word"
    assert HookOptions(bearer="t").access().authorization == "Bearer t"


class TestTemplateFiles:
    def test_relay_toml_names_a_file_beside_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "own.toml").write_text(OWN, "utf-8")
        (tmp_path / "etc" / "relay.toml").write_text(f'{HOOK}template = "own.toml"\nvariables = {{ k = "v" }}')
        (tmp_path / "own.toml").write_text("body = 'another'")
        monkeypatch.chdir(tmp_path)
        loaded = load(Path("etc/relay.toml"))
        assert loaded.sites[0].webhooks[0].template == OWN

    def test_a_presets_name_comes_before_a_file_of_that_name(self, tmp_path: Path) -> None:
        (tmp_path / "kommo").write_text(OWN)
        assert parse(f'{HOOK}template = "kommo"', tmp_path).sites[0].webhooks[0].template == "kommo"

    def test_its_text_may_stand_in_relay_toml(self, tmp_path: Path) -> None:
        text = f'{HOOK}template = """\nbody = \'{{}}\'\n# as in own.toml"""'
        assert parse(text, tmp_path).sites[0].webhooks[0].template == "body = '{}'\n# as in own.toml"

    def test_one_that_may_not_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "own.toml").mkdir()
        with pytest.raises(ConfigError) as caught:
            parse(f'{HOOK}template = "own.toml"', tmp_path)
        assert str(caught.value) == "site[0].webhook[0].template: cannot be read: Is a directory"

    @pytest.mark.parametrize("model", [HookOptions, HookChange, NewWebhook, ChangedWebhook, AddWebhook, ChangeWebhook])
    def test_nobody_else_reads_a_file_by_its_name(
        self, model: type[HookChange], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "own.toml").write_text("body = '{}'")
        monkeypatch.chdir(tmp_path)
        for name in ("own.toml", str(tmp_path / "own.toml"), "./own.toml"):
            with pytest.raises(ValidationError) as caught:
                model.model_validate({"template": name})
            named = {problem.path: problem.message for problem in problems_of(caught.value, model)}
            assert named["template"].startswith('is neither "bitrix24"')
            assert named["template"].endswith("nor the text of a template")
