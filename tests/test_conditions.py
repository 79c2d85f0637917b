"""Deal conditions: facts in, a reason or None out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.conditions import PATTERN, SUBJECT, Conditions, Facts, compiled, overlaid, verdict
from relay.core.model import AttributionState
from tests.linear import linear

EXACT, NONE = AttributionState.EXACT, AttributionState.NONE
DAY = 86_400.0


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
        (Facts(EXACT, blocked=True), "blocked sender"),
        (Facts(NONE, bounce=True, auto="auto-submitted"), "bounce"),
        (Facts(NONE, auto="auto-submitted", blocked=True), "automatic mail (auto-submitted)"),
        (Facts(NONE, blocked=True), "blocked sender"),
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
        (Facts(EXACT, blocked=True), Conditions(refuse_blocked=False)),
    ],
)
def test_condition_switched_off_does_not_count(facts: Facts, conditions: Conditions) -> None:
    assert verdict(facts) is not None
    assert verdict(facts, conditions) is None


@pytest.mark.parametrize(
    ("least", "passing"),
    [("exact", {"exact"}), ("inferred", {"exact", "inferred"}), ("likely", {"exact", "inferred", "likely"})],
)
@pytest.mark.parametrize("state", list(AttributionState))
def test_attribution_at_least_so_certain(least: Any, passing: set[str], state: AttributionState) -> None:
    reason = verdict(Facts(state), Conditions(require_visit=False, attribution=least))
    assert reason == (None if state.value in passing else f"the attribution is {state.value}, not {least}")


@pytest.mark.parametrize(
    ("asked", "passes", "fails", "reason"),
    [
        ({"min_size": 100}, {"size": 100}, {"size": 99}, "smaller than 100 octets"),
        ({"max_size": 100}, {"size": 100}, {"size": 101}, "larger than 100 octets"),
        ({"max_recipients": 2}, {"recipients": 2}, {"recipients": 3}, "more than 2 recipients"),
        (
            {"first_letter": 30 * DAY},
            {"previous": 30 * DAY},
            {"previous": 30 * DAY - 1},
            "not the sender's first letter in 30 days",
        ),
        ({"first_letter": DAY}, {"previous": None}, {"previous": 0.0}, "not the sender's first letter in 1 days"),
        ({"first_letter": 5400.0}, {"previous": None}, {"previous": 1.0}, "not the sender's first letter in 1.5 hours"),
        (
            {"addresses": ("sales@example.com", "info@track.example.com")},
            {"addresses": frozenset({"x@example.com", "info@track.example.com"})},
            {"addresses": frozenset({"x@example.com"})},
            "sent to other addresses",
        ),
        ({"addresses": ("a@b",)}, {"addresses": frozenset({"a@b"})}, {}, "sent to other addresses"),
        ({"subject": r"^order \d+$"}, {"subject": "Order 17"}, {"subject": "Order"}, "the subject does not match"),
        ({"subject": "order"}, {"subject": "your ORDER here"}, {"subject": ""}, "the subject does not match"),
    ],
)
def test_border_of_a_condition(
    asked: dict[str, Any], passes: dict[str, Any], fails: dict[str, Any], reason: str
) -> None:
    assert verdict(Facts(EXACT, **passes), Conditions(**asked)) is None
    assert verdict(Facts(EXACT, **fails), Conditions(**asked)) == reason


def test_nothing_and_zero_ask_nothing() -> None:
    facts = Facts(EXACT, size=1 << 40, recipients=1000, previous=0.0)
    asked = Conditions(
        attribution=None, first_letter=0.0, min_size=0, max_size=0, max_recipients=0, addresses=(), subject=""
    )
    assert verdict(facts, asked) is None


class TestOverlaid:
    def test_without_a_word_it_is_the_products(self) -> None:
        assert overlaid({}, {}) == Conditions()

    def test_the_site_speaks_for_its_webhooks_and_a_webhook_for_itself(self) -> None:
        of_site = {"require_visit": False, "min_size": 10, "subject": "order", "addresses": ["a@b"]}
        assert overlaid(of_site, {}) == Conditions(False, min_size=10, subject="order", addresses=("a@b",))
        of_webhook = {"require_visit": True, "min_size": 0, "subject": None, "addresses": [], "max_size": 5}
        assert overlaid(of_site, of_webhook) == Conditions(max_size=5)

    def test_unknown_names_count_for_nothing(self) -> None:
        assert overlaid({"later": 1}, {"newer": [2], "max_size": 5}) == Conditions(max_size=5)

    def test_what_was_read_from_json_can_be_hashed(self) -> None:
        assert hash(overlaid({"addresses": ["a@b"]}, {})) == hash(Conditions(addresses=("a@b",)))


class TestSubject:
    LONG = "a" * SUBJECT

    @pytest.mark.parametrize(
        "pattern",
        [
            r"^(a+)+$",
            r"^(a|aa)+$",
            r"^(a*)*b",
            r"(x+x+)+y",
            r"^(([a-z])+.)+[A-Z]([a-z])+$",
            r"(.*)(.*)(.*)(.*)(.*)!",
            r"((((a?){10}){10}){9})!",
            r"(?:.?){900}!",
        ],
    )
    @pytest.mark.parametrize("subject", [LONG + "!", "я" * SUBJECT + "!", "aя" * SUBJECT])
    def test_catastrophic_patterns_come_to_an_end(self, pattern: str, subject: str) -> None:
        """Backtracking would take longer than anybody waits."""
        with linear():
            found = verdict(Facts(EXACT, subject=subject), Conditions(subject=pattern))
        assert found in (None, "the subject does not match")

    def test_they_match_what_they_say(self) -> None:
        for pattern in (r"^(a+)+$", r"^(a|aa)+$"):
            assert verdict(Facts(EXACT, subject=self.LONG), Conditions(subject=pattern)) is None
            assert verdict(Facts(EXACT, subject=self.LONG[1:] + "!"), Conditions(subject=pattern)) is not None

    def test_only_the_first_characters_are_searched(self) -> None:
        asked = Conditions(subject="end")
        assert verdict(Facts(EXACT, subject="." * (SUBJECT - 3) + "end"), asked) is None
        assert verdict(Facts(EXACT, subject="." * (SUBJECT - 2) + "end"), asked) == "the subject does not match"

    @pytest.mark.parametrize(
        ("pattern", "words"),
        [
            (r"(?=order)", "(?="),
            (r"(?<!re: )order", "(?<"),
            (r"(a)\1", "invalid escape sequence"),
            (r"a{1001}", "invalid repetition size"),
            (r"((a{100}){100}){100}", "repetition size"),
            (r"(\pL{0,200}|\pN{0,200}){4}", "too large"),
            (r"(", "missing )"),
            (r"*", "no argument for repetition operator"),
            (r"[z-a]", "invalid character class range"),
            (r"(?P<n>a", "missing )"),
        ],
    )
    def test_what_re2_refuses_is_refused_in_words(self, pattern: str, words: str) -> None:
        with pytest.raises(ValueError, match=f"is not a regular expression of RE2: .*{re.escape(words)}"):
            compiled(pattern)

    def test_a_pattern_has_a_longest(self) -> None:
        compiled("a" * PATTERN)
        with pytest.raises(ValueError, match="must have at most 500 characters"):
            compiled("a" * (PATTERN + 1))

    @pytest.mark.parametrize("subject", ["ЗАЯВКА на окна", "Re: заявка", "Заявка"])
    def test_case_does_not_count_in_any_script(self, subject: str) -> None:
        assert verdict(Facts(EXACT, subject=subject), Conditions(subject="заяВка")) is None
        assert verdict(Facts(EXACT, subject="заказ"), Conditions(subject="заяВка")) is not None

    def test_a_pattern_may_ask_for_case(self) -> None:
        assert verdict(Facts(EXACT, subject="order"), Conditions(subject="(?-i)Order")) is not None
        assert verdict(Facts(EXACT, subject="Order"), Conditions(subject="(?-i)Order")) is None

    @pytest.mark.parametrize("subject", ["\udc80order", "order\udfff", "\0order"])
    def test_what_is_no_text_is_searched_all_the_same(self, subject: str) -> None:
        assert verdict(Facts(EXACT, subject=subject), Conditions(subject="order")) is None

    def test_a_stored_pattern_that_compiles_no_more_withholds(self) -> None:
        assert verdict(Facts(EXACT, subject="("), Conditions(subject="(")) == "the subject does not match"


FACTS = st.builds(
    Facts,
    attribution=st.sampled_from(AttributionState),
    bounce=st.booleans(),
    null_sender=st.booleans(),
    auto=st.none() | st.sampled_from(["", "mailing list"]),
    blocked=st.booleans(),
    size=st.integers(0, 300),
    recipients=st.integers(0, 4),
    addresses=st.frozensets(st.sampled_from(["a@x", "b@x", "c@x"])),
    subject=st.text(max_size=20),
    previous=st.none() | st.floats(0, 3 * DAY),
)
CONDITIONS = st.builds(
    Conditions,
    require_visit=st.booleans(),
    refuse_bounces=st.booleans(),
    refuse_automatic=st.booleans(),
    refuse_blocked=st.booleans(),
    attribution=st.none() | st.sampled_from(["exact", "inferred", "likely"]),
    first_letter=st.floats(0, 3 * DAY),
    min_size=st.integers(0, 300),
    max_size=st.integers(0, 300),
    max_recipients=st.integers(0, 4),
    addresses=st.lists(st.sampled_from(["a@x", "b@x", "d@x"])).map(tuple),
    subject=st.none() | st.text(max_size=5) | st.just("[a-z]"),
)
#: What switches the condition off that gives a reason which begins so.
OFF: dict[str, dict[str, Any]] = {
    "bounce": {"refuse_bounces": False},
    "automatic mail": {"refuse_automatic": False},
    "blocked": {"refuse_blocked": False},
    "no visit": {"require_visit": False},
    "the attribution": {"attribution": None},
    "not the sender's first": {"first_letter": 0.0},
    "smaller": {"min_size": 0},
    "larger": {"max_size": 0},
    "more than": {"max_recipients": 0},
    "sent to other": {"addresses": ()},
    "the subject": {"subject": None},
}


@given(facts=FACTS, asked=CONDITIONS)
def test_a_refused_letter_passes_once_the_conditions_that_refuse_it_are_off(facts: Facts, asked: Conditions) -> None:
    given_so_far: list[str] = []
    while (reason := verdict(facts, asked)) is not None:
        (name,) = [name for name in OFF if reason.startswith(name)]
        assert name not in given_so_far  # one that is off gives no reason any more
        assert reason.isprintable()
        given_so_far.append(name)
        asked = replace(asked, **OFF[name])
