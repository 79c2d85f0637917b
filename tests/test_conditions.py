"""Deal conditions: facts in, a reason or None out."""

from __future__ import annotations

import pytest

from relay.core.conditions import Conditions, Facts, verdict
from relay.core.model import AttributionState

EXACT, NONE = AttributionState.EXACT, AttributionState.NONE


@pytest.mark.parametrize("state", [state for state in AttributionState if state is not NONE])
def test_every_attribution_but_none_has_a_visit(state: AttributionState) -> None:
    assert verdict(Facts(state)) is None


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(NONE), "no visit"),
        (Facts(EXACT, bounce=True), "bounce"),
        (Facts(EXACT, null_sender=True), "bounce"),
        (Facts(EXACT, auto="mailing list"), "automatic mail (mailing list)"),
        (Facts(NONE, bounce=True, auto="auto-submitted"), "bounce"),
        (Facts(NONE, auto="auto-submitted"), "automatic mail (auto-submitted)"),
    ],
)
def test_letter_that_fails_the_defaults_says_why(facts: Facts, reason: str) -> None:
    assert verdict(facts) == reason


@pytest.mark.parametrize(
    ("facts", "conditions"),
    [
        (Facts(NONE), Conditions(require_visit=False)),
        (Facts(EXACT, bounce=True, null_sender=True), Conditions(refuse_bounces=False)),
        (Facts(EXACT, auto="mailing list"), Conditions(refuse_automatic=False)),
    ],
)
def test_condition_switched_off_does_not_count(facts: Facts, conditions: Conditions) -> None:
    assert verdict(facts) is not None
    assert verdict(facts, conditions) is None
