"""A site's settings as they are stored."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.channel import Channel, SourceRule
from relay.core.site import LeaseOn, SiteSettings, Touch

RULE = SourceRule("partner_acme", Channel.REFERRAL, referrer="acme.example")


@given(st.builds(SiteSettings, rules=st.lists(st.from_type(SourceRule), max_size=3).map(tuple)))
def test_settings_are_read_as_they_were_written(settings: SiteSettings) -> None:
    assert SiteSettings.from_json(settings.to_json()) == settings


def test_what_an_older_version_did_not_know_has_its_default() -> None:
    assert SiteSettings.from_json("{}") == SiteSettings()
    for name, value in asdict(SiteSettings(rules=(RULE,), lease_on=LeaseOn.INTERACTION, touch=Touch.FIRST)).items():
        read = SiteSettings.from_json(json.dumps({name: value}))
        assert asdict(read) == asdict(SiteSettings()) | {name: (tuple(value) if name == "rules" else value)}


def test_what_a_newer_version_knows_is_left_out() -> None:
    assert SiteSettings.from_json('{"reserve": 5, "colour": "blue"}') == SiteSettings(reserve=5)


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        (SiteSettings(), False),
        (SiteSettings(google_analytics=True), True),
        (SiteSettings(metrica=1), True),
    ],
)
def test_mails_are_counted_where_an_analytics_counter_is_told(settings: SiteSettings, counts: bool) -> None:
    assert settings.counts_mails is counts
