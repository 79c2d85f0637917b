"""Attribution: tables of cases in, one Attribution out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.attribution import (
    ENOUGH_DELAYS,
    HALF_LIFE,
    LEARNED_METHOD,
    POOL_METHOD,
    Delays,
    agreed,
    attribute_again,
    attribute_plus,
    attribute_pool,
    attribute_sender,
    attribute_static,
    attribute_thread,
    attribute_unique,
    best,
    stated_visit,
    written_at,
)
from relay.core.model import Attribution, AttributionState, Candidate, Holding
from tests.linear import linear

EXACT, LIKELY, CLAIMED, INFERRED, NONE = (
    AttributionState.EXACT,
    AttributionState.LIKELY,
    AttributionState.CLAIMED,
    AttributionState.INFERRED,
    AttributionState.NONE,
)
HOUR, DAY = 3600.0, 86400.0
NOW = 1_800_000_000.0  # when the mail of every case below was written
LEASE = 900.0


def held(visit: int, began: float, length: float = LEASE) -> Holding:
    """A holding that began ``began`` seconds after writing (negative: before)."""
    return Holding(visit, NOW + began, NOW + began + length)


def probabilities(attribution: Attribution) -> dict[int, float]:
    return {candidate.visit: candidate.probability for candidate in attribution.candidates}


@pytest.mark.parametrize(
    ("date", "written"),
    [
        pytest.param(None, NOW, id="without a Date it was written when it came"),
        pytest.param(NOW - HOUR, NOW - HOUR, id="a late mail was written when it says"),
        pytest.param(NOW - 5 * DAY, NOW - 5 * DAY, id="five days are believed"),
        pytest.param(NOW - 5 * DAY - 1, NOW - 5 * DAY, id="more than five days are not"),
        pytest.param(0.0, NOW - 5 * DAY, id="a dead clock's 1970 is not"),
        pytest.param(-6e10, NOW - 5 * DAY, id="the year 102 is not"),
        pytest.param(NOW + 1, NOW, id="an early Date is receipt"),
        pytest.param(NOW + 40 * 365 * DAY, NOW, id="a forged future is receipt"),
    ],
)
def test_writing_time_is_the_date_between_receipt_less_five_days_and_receipt(
    date: float | None, written: float
) -> None:
    assert written_at(date, NOW) == written


@pytest.mark.parametrize(
    ("holdings", "received", "state", "answer"),
    [
        pytest.param([], 60, NONE, None, id="nobody ever held it"),
        pytest.param([held(1, 120)], 60, NONE, None, id="the only holder began after the mail came"),
        pytest.param([held(1, -60)], 5, EXACT, 1, id="one holder at writing time"),
        pytest.param([held(1, -HOUR)], 5, EXACT, 1, id="one holder, its lease over"),
        pytest.param([held(1, -3 * DAY)], 5, EXACT, 1, id="three days late and nobody since"),
        pytest.param([held(1, -90 * DAY)], 5, EXACT, 1, id="three months late and nobody since"),
        pytest.param([held(1, -HOUR), held(1, -60)], 5, EXACT, 1, id="several holdings of one visit are one holder"),
        pytest.param([held(2, -26 * HOUR), held(1, -60)], 5, EXACT, 1, id="another, but more than 24 h before"),
        pytest.param([held(2, -24 * HOUR), held(1, -60)], 5, LIKELY, {1, 2}, id="another ended within 24 h"),
        pytest.param([held(2, -DAY - LEASE), held(1, -60)], 5, LIKELY, {1, 2}, id="another ended 24 h before sharp"),
        pytest.param([held(1, -60, 60), held(2, 1)], 5, LIKELY, {1, 2}, id="another began before the mail came"),
        pytest.param([held(1, -60, 60), held(2, 5)], 5, LIKELY, {1, 2}, id="another began when the mail came"),
        pytest.param([held(1, -60, 60), held(2, 6)], 5, EXACT, 1, id="another began after the mail came"),
        pytest.param([held(1, -60, 60), held(1, 2)], 5, EXACT, 1, id="the same visit came back before the mail"),
        pytest.param([held(1, 30)], 60, EXACT, 1, id="the Date is wrong, but only one ever saw the address"),
        pytest.param([held(1, 30), held(2, 930)], DAY, LIKELY, {1, 2}, id="the Date is wrong and two saw it"),
        pytest.param([held(1, -25.5 * HOUR), held(2, 30)], 60, LIKELY, {1, 2}, id="a new holder is not stated as fact"),
        pytest.param([held(1, -80 * HOUR), held(2, -72 * HOUR)], 5, LIKELY, {1, 2}, id="late, and two held it lately"),
        pytest.param([held(1, -6 * DAY), held(2, -72 * HOUR)], 5, EXACT, 2, id="late, and the other held it long ago"),
        pytest.param([held(1, -30 * HOUR), held(2, -HOUR - LEASE)], 5, EXACT, 2, id="prompt: an hour after the lease"),
        pytest.param([held(1, -30 * HOUR), held(2, -HOUR - LEASE - 1)], 5, LIKELY, {1, 2}, id="a second later is late"),
        pytest.param([held(1, -5 * DAY - LEASE), held(2, -2 * HOUR)], 5, LIKELY, {1, 2}, id="late: five days sharp"),
        pytest.param([held(1, -5 * DAY - LEASE - 1), held(2, -2 * HOUR)], 5, EXACT, 2, id="late: five days and more"),
        pytest.param([held(1, -6 * DAY - LEASE - 60), held(2, -6 * DAY)], 5, LIKELY, {1, 2}, id="later than five days"),
        pytest.param([held(1, -11 * DAY), held(2, -6 * DAY)], 5, LIKELY, {1, 2}, id="five days before its end sharp"),
        pytest.param([held(1, -11 * DAY - 1), held(2, -6 * DAY)], 5, EXACT, 2, id="five days before its end and more"),
    ],
)
def test_pool_address_is_attributed_by_who_held_it(
    holdings: list[Holding], received: float, state: AttributionState, answer: int | set[int] | None
) -> None:
    for order in (holdings, holdings[::-1]):
        found = attribute_pool(order, NOW, NOW + received)
        assert (found.state, found.method) == (state, "pool/2")
        if state is LIKELY:
            assert found.visit is None
            assert probabilities(found).keys() == answer
        else:
            assert (found.visit, found.candidates) == (answer, ())


@pytest.mark.parametrize(
    ("holdings", "astray", "answer"),
    [
        pytest.param([held(1, -60)], {2}, {1: 0.5, 2: 0.5}, id="beside the only holder"),
        pytest.param([], {2}, {2: 1.0}, id="alone"),
        pytest.param([held(1, -60)], {1}, {1: 1.0}, id="the same visit"),
    ],
)
def test_who_began_later_than_now_makes_nobody_certain(
    holdings: list[Holding], astray: set[int], answer: dict[int, float]
) -> None:
    found = attribute_pool(holdings, NOW, NOW + 5, astray=astray)
    assert (found.state, found.visit) == (LIKELY, None)
    assert probabilities(found) == pytest.approx(answer)


def test_the_window_is_a_setting() -> None:
    holdings = [held(1, -2 * HOUR), held(2, -60)]
    assert attribute_pool(holdings, NOW, NOW, window=HOUR).visit == 2
    assert attribute_pool(holdings, NOW, NOW, window=2 * HOUR).state is LIKELY


@pytest.mark.parametrize(("kept", "state"), [(95 * DAY - LEASE, EXACT), (95 * DAY - LEASE - 1, LIKELY)])
def test_nobody_is_certain_where_retention_may_have_removed_another(kept: float, state: AttributionState) -> None:
    """Ninety days late: who held the address in the five days before would count."""
    assert attribute_pool([held(1, -90 * DAY)], NOW, NOW, known_since=NOW - kept).state is state


def test_an_ended_lease_weighs_half_after_an_hour() -> None:
    found = attribute_pool([held(1, -HOUR - LEASE), held(2, -60)], NOW, NOW)
    assert [candidate.visit for candidate in found.candidates] == [2, 1]
    assert probabilities(found) == pytest.approx({2: 2 / 3, 1: 1 / 3})


def test_a_lease_that_ends_at_writing_weighs_one() -> None:
    found = attribute_pool([held(1, -LEASE), held(2, -HOUR - LEASE)], NOW, NOW)
    assert probabilities(found) == pytest.approx({1: 2 / 3, 2: 1 / 3})


def test_the_greatest_weight_of_a_visit_counts_once() -> None:
    once = attribute_pool([held(1, -2 * HOUR), held(2, -60)], NOW, NOW)
    often = attribute_pool([held(1, -9 * HOUR), held(1, -2 * HOUR), held(1, -4 * HOUR), held(2, -60)], NOW, NOW)
    assert once == often


def test_who_began_after_writing_is_the_hundredth_candidate() -> None:
    found = attribute_pool([held(1, -60, 60), held(2, 10)], NOW, NOW + 60)
    assert probabilities(found) == pytest.approx({1: 100 / 101, 2: 1 / 101})


def test_a_delayed_mail_is_not_given_to_who_holds_the_address_now() -> None:
    found = attribute_pool([held(1, -HOUR), held(2, 20 * HOUR)], NOW, NOW + 20 * HOUR + 60)
    assert found.candidates[0].visit == 1
    assert found.candidates[0].probability > 0.98


def test_a_forged_early_date_is_given_to_the_recent_holder_but_never_as_fact() -> None:
    """Clamped to five days before receipt, when somebody quite different had held the address long before."""
    received = NOW + 5 * DAY
    found = attribute_pool([held(1, -5 * DAY), held(2, 5 * DAY - 600)], written_at(0.0, received), received)
    assert found.state is LIKELY
    assert found.candidates[0].visit == 2
    assert found.candidates[0].probability > 0.99


def test_a_late_mail_is_given_to_who_held_the_address_when_it_was_written() -> None:
    received = NOW + 3 * DAY
    since = [held(visit, visit * HOUR) for visit in range(2, 60)]
    found = attribute_pool([held(1, -60), *since], written_at(NOW, received), received)
    assert found.candidates[0].visit == 1
    assert found.candidates[0].probability > 0.9
    assert len(found.candidates) == 59


def exact(visit: int | None) -> Attribution:
    return Attribution(EXACT, "unique/1", visit=visit)


def likely(**shares: float) -> Attribution:
    return Attribution(LIKELY, "pool/2", candidates=tuple(Candidate(int(v[1:]), p) for v, p in shares.items()))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        pytest.param([exact(1)], None, id="one recipient"),
        pytest.param([exact(1), exact(1)], None, id="one visit"),
        pytest.param([exact(1), exact(11)], None, id="two visits of one browser"),
        pytest.param([exact(1), exact(None)], None, id="a visit and a card"),
        pytest.param([exact(1), attribute_plus("7", None)], None, id="a visit and a claimed number"),
        pytest.param([exact(1), attribute_thread(2)], None, id="a visit and one that no address names"),
        pytest.param([exact(1), likely(v1=0.5, v2=0.5)], None, id="a visit that may be the other's, too"),
        pytest.param([exact(1), likely(v11=0.5, v2=0.5)], None, id="a browser that may be the other's, too"),
        pytest.param([likely(v1=0.5, v2=0.5), likely(v3=0.5, v4=0.5)], None, id="nobody is certain anyway"),
        pytest.param([exact(1), exact(2)], {1: 0.5, 2: 0.5}, id="two visits"),
        pytest.param([exact(1), exact(2), exact(2)], {2: 2 / 3, 1: 1 / 3}, id="one of them twice"),
        pytest.param([exact(1), likely(v2=0.5, v3=0.5)], {1: 0.5, 2: 0.25, 3: 0.25}, id="a visit and two others"),
    ],
)
def test_recipients_of_different_people_make_nobody_certain(
    said: list[Attribution], answer: dict[int, float] | None
) -> None:
    found = agreed(said, {1: "1", 11: "1", 2: "2"})
    if answer is None:
        assert found == said
        return
    assert len(set(found)) == 1
    assert (found[0].state, found[0].method, found[0].visit) == (LIKELY, "several/1", None)
    assert list(probabilities(found[0])) == list(answer)
    assert probabilities(found[0]) == pytest.approx(answer)


def test_what_names_no_visit_stays_beside_those_that_contradict_each_other() -> None:
    said = [exact(None), exact(1), attribute_plus("7", None), exact(2), attribute_sender(3)]
    found = agreed(said, {})
    assert (found[0], found[2]) == (said[0], said[2])
    assert {found[i].method for i in (1, 3, 4)} == {"several/1"}


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        pytest.param(exact(1), None, id="the same visit"),
        pytest.param(exact(11), None, id="a later visit of the same browser"),
        pytest.param(exact(2), {1: 0.9, 2: 0.1}, id="another person"),
        pytest.param(likely(v2=0.75, v3=0.25), {1: 0.9, 2: 0.075, 3: 0.025}, id="other people"),
        pytest.param(likely(v2=1.0, v1=1e-15), {1: 0.9, 2: 0.1}, id="another, and hardly the same"),
        pytest.param(likely(v2=1.0, v1=0.0), {1: 0.9, 2: 0.1}, id="another, and the same past all counting"),
        pytest.param(likely(v2=0.5, v11=0.5), {11: 0.95, 2: 0.05}, id="another, and a later visit of the same browser"),
    ],
)
def test_who_wrote_to_the_address_before_makes_nobody_else_certain(
    said: Attribution, answer: dict[int, float] | None
) -> None:
    found = attribute_again(said, 1, {1: "1", 11: "1", 2: "2"})
    if answer is None:
        assert found == said
        return
    assert (found.state, found.method, found.visit) == (LIKELY, "again/1", None)
    assert list(probabilities(found)) == list(answer)
    assert probabilities(found) == pytest.approx(answer)


def test_ties_are_broken_by_visit_so_that_the_answer_is_stable() -> None:
    holdings = [held(7, -60), held(3, -60), held(5, -60)]
    assert [candidate.visit for candidate in attribute_pool(holdings, NOW, NOW).candidates] == [3, 5, 7]


seconds = st.floats(-20 * DAY, 20 * DAY)
some_holdings = st.lists(
    st.builds(lambda visit, began, length: held(visit, began, length), st.integers(1, 6), seconds, st.floats(1, DAY))
)


@given(some_holdings, st.floats(0, 5 * DAY), st.floats(1, 3 * DAY))
def test_probabilities_sum_to_one_and_every_candidate_held_the_address(
    holdings: list[Holding], delay: float, window: float
) -> None:
    received = NOW + delay
    found = attribute_pool(holdings, NOW, received, window)
    before = {holding.visit for holding in holdings if holding.start <= received}
    near = {holding.visit for holding in holdings if holding.start <= received and holding.end >= NOW - window}
    if found.state is NONE:
        assert not before
    elif found.state is EXACT:
        assert found.visit in before
        assert near <= {found.visit}
    else:
        assert found.state is LIKELY
        odds = probabilities(found)
        assert len(odds) == len(found.candidates) > 1
        assert near <= odds.keys() <= before
        assert sum(odds.values()) == pytest.approx(1)
        ranked = [candidate.probability for candidate in found.candidates]
        assert ranked == sorted(ranked, reverse=True)
        assert all(0 <= probability <= 1 for probability in ranked)


def test_long_holdings_of_bots_take_linear_time() -> None:
    holdings = [held(visit, -float(visit), 1.0) for visit in range(200_000)]
    with linear():  # quadratic work on so many takes half an hour
        found = attribute_pool(holdings, NOW, NOW)
    assert len(found.candidates) == 86_401 + 1  # one a second through the window, both ends included


@pytest.mark.parametrize(
    ("tag", "visit", "expected"),
    [
        ("123456", 7, Attribution(EXACT, "plus/1", visit=7)),
        ("123456", None, Attribution(CLAIMED, "plus/1", number="123456")),
        ("00042", None, Attribution(CLAIMED, "plus/1", number="00042")),
        ("9" * 20, None, Attribution(CLAIMED, "plus/1", number="9" * 20)),
        ("9" * 21, None, Attribution(NONE, "plus/1")),
        ("", None, Attribution(NONE, "plus/1")),
        ("news", None, Attribution(NONE, "plus/1")),
        ("12a", None, Attribution(NONE, "plus/1")),
        ("-1", None, Attribution(NONE, "plus/1")),
        ("１２", None, Attribution(NONE, "plus/1")),
        ("²", None, Attribution(NONE, "plus/1")),
    ],
)
def test_plus_number_is_exact_when_known_and_claimed_when_not(
    tag: str, visit: int | None, expected: Attribution
) -> None:
    assert attribute_plus(tag, visit) == expected


def test_unique_address_is_exact_until_its_visit_is_erased() -> None:
    assert attribute_unique(4) == Attribution(EXACT, "unique/1", visit=4)
    assert attribute_unique(None) == Attribution(NONE, "unique/1")


def test_static_substitute_is_exact_without_a_visit() -> None:
    assert attribute_static("card") == Attribution(EXACT, "static/1", label="card")


def test_best_ranks_exact_inferred_likely_claimed_none_and_takes_the_first_on_a_tie() -> None:
    ranked = [Attribution(state, "x") for state in (EXACT, INFERRED, LIKELY, CLAIMED, NONE)]
    for worse in range(1, len(ranked)):
        assert best([ranked[worse], ranked[worse - 1]]) == 1
    assert best([ranked[4], ranked[2], ranked[2]]) == 1


def test_best_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError):
        best([])


@pytest.mark.parametrize(
    ("attribution", "exact", "inferred", "likely"),
    [
        (Attribution(EXACT, "x", visit=1), 1, 1, 1),
        (Attribution(INFERRED, "x", visit=1), None, 1, 1),
        (Attribution(LIKELY, "x", candidates=(Candidate(2, 0.6), Candidate(3, 0.4))), None, None, 2),
        (Attribution(CLAIMED, "x", number="5"), None, None, None),
        (Attribution(NONE, "x"), None, None, None),
        (attribute_static("card"), None, None, None),
    ],
)
def test_fill_says_which_visit_the_webhook_states(
    attribution: Attribution, exact: int | None, inferred: int | None, likely: int | None
) -> None:
    assert stated_visit(attribution, "exact") == exact
    assert stated_visit(attribution, "inferred") == inferred
    assert stated_visit(attribution, "likely") == likely


ages = st.floats(-10 * DAY, 400 * DAY)
enough = st.lists(ages, min_size=ENOUGH_DELAYS, max_size=ENOUGH_DELAYS + 20).map(Delays.of)


def evenly(low: float, high: float, count: int) -> list[float]:
    return [low + (high - low) * (place + 0.5) / count for place in range(count)]


SPREAD = Delays.of(evenly(-LEASE, 0, 100) + evenly(0, HOUR, 50) + evenly(HOUR, DAY, 50))


class TestDelays:
    @pytest.mark.parametrize(("count", "learned"), [(0, False), (199, False), (200, True), (2000, True)])
    def test_two_hundred_exact_mails_are_enough(self, count: int, learned: bool) -> None:
        assert Delays.of([60.0] * count).learned is learned

    def test_with_fewer_the_half_life_counts(self) -> None:
        few = Delays.of([1e6] * (ENOUGH_DELAYS - 1))
        assert [few.log2_weight(age) for age in (-DAY, 0.0, HALF_LIFE, 2 * HALF_LIFE)] == [0, 0, -1, -2]

    def test_a_weight_is_how_much_mail_is_written_at_that_distance_from_the_lease(self) -> None:
        """Half of it evenly in the quarter of an hour of the lease, a quarter in the next hour, the rest in a day."""
        weights = [2 ** SPREAD.log2_weight(age) for age in (-LEASE / 2, HOUR / 2, DAY / 2)]
        assert weights == pytest.approx([0.5 / LEASE, 0.25 / HOUR, 0.25 / (DAY - HOUR)], rel=0.25)

    def test_later_than_anybody_ever_wrote_weighs_least_and_less_with_time(self) -> None:
        day, week, year = (SPREAD.log2_weight(age) for age in (DAY / 2, 7 * DAY, 365 * DAY))
        assert day > week > year

    def test_delays_that_are_all_the_same_weigh_like_those_of_one_minute(self) -> None:
        assert Delays.of([0.0] * 200).log2_weight(0.0) <= 0

    @settings(max_examples=50, deadline=None)
    @given(enough, ages)
    def test_no_age_weighs_nothing(self, delays: Delays, age: float) -> None:
        assert 0.0 < 2 ** delays.log2_weight(age) < 1.0

    @given(st.lists(ages, max_size=50), st.randoms())
    def test_the_order_of_the_samples_is_no_matter(self, found: list[float], random: Any) -> None:
        shuffled = list(found)
        random.shuffle(shuffled)
        assert Delays.of(shuffled) == Delays.of(found)

    def test_the_method_says_by_what_the_candidates_weigh(self) -> None:
        holdings = [held(1, -60), held(2, -HOUR - LEASE)]
        few, many = Delays.of([0.0] * 199), SPREAD
        by_half_life = attribute_pool(holdings, NOW, NOW + 5, DAY, few)
        learned = attribute_pool(holdings, NOW, NOW + 5, DAY, many)
        assert (by_half_life.method, learned.method) == (POOL_METHOD, LEARNED_METHOD)
        assert probabilities(by_half_life) == pytest.approx({1: 2 / 3, 2: 1 / 3})
        assert probabilities(learned) == pytest.approx({1: 0.98, 2: 0.02}, abs=0.02)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.builds(held, st.integers(1, 4), st.floats(-3 * DAY, DAY)), max_size=6), enough)
    def test_delays_change_the_probabilities_and_nothing_else(self, holdings: list[Holding], delays: Delays) -> None:
        plain = attribute_pool(holdings, NOW, NOW + HOUR)
        learned = attribute_pool(holdings, NOW, NOW + HOUR, delays=delays)
        assert (learned.state, learned.visit) == (plain.state, plain.visit)
        assert set(probabilities(learned)) == set(probabilities(plain))
        if learned.candidates:
            assert sum(probabilities(learned).values()) == pytest.approx(1)
            assert min(probabilities(learned).values()) > 0


def test_a_thread_and_a_known_sender_infer_a_visit_and_say_how() -> None:
    assert attribute_thread(7) == Attribution(INFERRED, "thread/1", visit=7)
    assert attribute_sender(7) == Attribution(INFERRED, "sender/1", visit=7)
