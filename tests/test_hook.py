"""What a webhook is told besides its URL: written, and read again by another version."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from relay.core.hook import CONCURRENCY, Access, EventType, HookSettings

FULL = HookSettings(
    events=("message.received", "message.failed"),
    extras=True,
    concurrency=3,
    deal_id="/lead/id",
    deal_url="/lead/url",
    template="ga4",
    conditions={"first_letter": 86400.0, "addresses": ["sales@example.com"], "subject": None},
)
ACCESS = Access((("X-Key", "k"), ("X-Key", "ключ")), "Basic YTpi", {"token": "t"})


class TestSettings:
    @pytest.mark.parametrize("settings", [HookSettings(), FULL])
    def test_what_is_written_is_read(self, settings: HookSettings) -> None:
        assert HookSettings.from_json(settings.to_json()) == settings

    def test_the_full_one_differs_from_the_default_in_every_member(self) -> None:
        """Else the round trip shows nothing of that member."""
        same = [
            each.name for each in fields(HookSettings) if getattr(FULL, each.name) == getattr(HookSettings(), each.name)
        ]
        assert same == []

    def test_by_default_it_gets_received_messages_in_the_references_shape(self) -> None:
        read = HookSettings.from_json("{}")
        assert read == HookSettings()
        assert read.events == (EventType.RECEIVED,)
        assert (read.extras, read.concurrency, read.template, read.conditions) == (False, CONCURRENCY, "", {})

    @pytest.mark.parametrize("name", [each.name for each in fields(HookSettings)])
    def test_what_an_older_version_did_not_know_has_its_default(self, name: str) -> None:
        values = json.loads(FULL.to_json())
        del values[name]
        read = HookSettings.from_json(json.dumps(values))
        assert getattr(read, name) == getattr(HookSettings(), name)
        others = [each.name for each in fields(HookSettings) if each.name != name]
        assert [getattr(read, each) for each in others] == [getattr(FULL, each) for each in others]

    def test_what_a_newer_version_knows_is_left_out(self) -> None:
        values = json.loads(FULL.to_json()) | {"later": {"a": 1}}
        assert HookSettings.from_json(json.dumps(values)) == FULL

    def test_settings_that_differ_only_in_their_conditions_are_not_equal(self) -> None:
        """They are the key of a cache of what is asked."""
        one, other = HookSettings(conditions={"min_size": 1}), HookSettings(conditions={"min_size": 2})
        assert hash(one) == hash(other)
        assert one != other

    @pytest.mark.parametrize(
        ("settings", "extended"),
        [(HookSettings(), False), (HookSettings(extras=True), True), (HookSettings(template="ga4"), True)],
    )
    def test_extras_and_templates_need_more_than_the_references_keys(
        self, settings: HookSettings, extended: bool
    ) -> None:
        assert settings.extended is extended

    def test_the_further_events_are_off_by_default(self) -> None:
        assert set(EventType) - set(HookSettings().events) == {EventType.FAILED, EventType.REATTRIBUTED}


class TestAccess:
    @pytest.mark.parametrize("access", [Access(), ACCESS])
    def test_what_is_written_is_read(self, access: Access) -> None:
        assert Access.from_json(access.to_json()) == access

    @pytest.mark.parametrize("name", [each.name for each in fields(Access)])
    def test_what_is_missing_has_its_default(self, name: str) -> None:
        values = json.loads(ACCESS.to_json())
        del values[name]
        assert getattr(Access.from_json(json.dumps(values)), name) == getattr(Access(), name)

    def test_what_a_newer_version_knows_is_left_out(self) -> None:
        assert Access.from_json(json.dumps(json.loads(ACCESS.to_json()) | {"later": 1})) == ACCESS
