"""Pool sizes: Erlang's tables, and real arrivals played again."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.sizing import (
    MINIMUM,
    Stay,
    advise,
    at_once,
    erlang_b,
    headroom,
    held_by,
    recommend,
    turned_away,
)

LEASE = 900.0
HOUR = 3600.0


def seen_once(starts: list[float]) -> list[tuple[float, float]]:
    return [(start, start) for start in starts]


@pytest.mark.parametrize(("per_hour", "one_percent", "one_per_mille"), [(60, 24, 28), (200, 64, 71), (1000, 273, 291)])
def test_erlang_b_agrees_with_the_published_table(per_hour: int, one_percent: int, one_per_mille: int) -> None:
    offered = per_hour * LEASE / HOUR
    for servers, share in ((one_percent, 0.01), (one_per_mille, 0.001)):
        assert erlang_b(offered, servers) <= share < erlang_b(offered, servers - 1)


@pytest.mark.parametrize(
    ("offered", "servers", "blocking"), [(1.0, 1, 0.5), (2.0, 2, 0.4), (5.0, 0, 1.0), (0.0, 0, 1.0), (0.0, 3, 0.0)]
)
def test_erlang_b_of_small_systems_is_exact(offered: float, servers: int, blocking: float) -> None:
    assert erlang_b(offered, servers) == pytest.approx(blocking)


def test_erlang_b_stays_finite_for_large_systems() -> None:
    assert 0 < erlang_b(10_000.0, 10_000) < 0.01
    assert erlang_b(1e-9, 10_000) == 0.0


@pytest.mark.parametrize(("offered", "servers"), [(-1.0, 1), (1.0, -1)])
def test_erlang_b_of_negative_numbers_is_an_error(offered: float, servers: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        erlang_b(offered, servers)


@pytest.mark.parametrize(
    ("lease", "share", "message"),
    [(0.0, 0.01, "lease"), (-1.0, 0.01, "lease"), (900.0, 0.0, "share"), (900.0, 1.0, "share")],
)
def test_senseless_lease_or_share_is_an_error(lease: float, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recommend([], lease, share)


def test_a_site_without_visits_gets_the_minimum() -> None:
    found = recommend([], LEASE)
    assert (found.size, found.shared, found.peak_per_hour, found.method) == (MINIMUM, 0.0, 0, "erlang-b")


def test_thin_data_are_sized_by_the_busiest_hour() -> None:
    visits = [1e6 + 60.0 * minute for minute in range(60)] + [2e6, 3e6, 4e6]
    found = recommend(seen_once(visits), LEASE, share=0.01)
    assert (found.size, found.peak_per_hour, found.method) == (24, 60, "erlang-b")
    assert found.shared == pytest.approx(erlang_b(15.0, 24))


def test_peak_counts_a_sliding_hour_and_not_its_next_first_second() -> None:
    assert recommend(seen_once([1800.0, 1800.0 + HOUR - 1]), LEASE).peak_per_hour == 2
    assert recommend(seen_once([1800.0, 1800.0 + HOUR]), LEASE).peak_per_hour == 1


def test_even_arrivals_need_as_many_addresses_as_leases_overlap() -> None:
    found = recommend(seen_once([10.0 * index for index in range(1000)]), LEASE)
    assert (found.size, found.shared, found.method) == (90, 0.0, "replay")
    assert found.peak_per_hour == 360


def test_a_burst_needs_an_address_each_less_the_share() -> None:
    assert recommend(seen_once([5.0] * 1000), LEASE, share=0.005).size == 995
    assert recommend(seen_once([5.0] * 1000), LEASE, share=0.005).shared == 0.005
    assert recommend(seen_once([5.0] * 1000), LEASE, share=0.0001).size == 1000


def test_many_visits_that_never_overlap_need_the_minimum() -> None:
    found = recommend(seen_once([1000.0 * index for index in range(260)]), LEASE)
    assert (found.size, found.shared, found.method) == (MINIMUM, 0.0, "replay")


def test_a_visit_holds_its_address_until_a_lease_after_it_was_seen_last() -> None:
    """Every 10 s somebody who stays for half an hour: (1800 + 900) / 10 addresses are held at once."""
    found = recommend([(10.0 * index, 10.0 * index + 1800) for index in range(1000)], LEASE, share=0.0005)
    assert (found.size, found.shared) == (270, 0.0)
    thin = recommend([(60.0 * minute, 60.0 * minute + 900) for minute in range(60)], LEASE, share=0.01)
    assert thin.shared == pytest.approx(erlang_b(30.0, thin.size))
    assert thin.shared <= 0.01 < erlang_b(30.0, thin.size - 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e4)), min_size=200, max_size=300))
def test_with_any_stays_the_recommended_pool_leaves_no_more_than_the_share_without(
    found: list[tuple[float, float]],
) -> None:
    stays = [(began, began + length) for began, length in found]
    assert recommend(stays, LEASE).shared <= 0.005


def without_address(starts: list[float], lease: float, pool: int) -> int:
    """The slow way: addresses with their lease ends, the one that ended longest ago is taken first."""
    ends = [float("-inf")] * pool
    without = 0
    for start in sorted(starts):
        if ends[0] <= start - lease:
            heapq.heapreplace(ends, start)
        else:
            without += 1
    return without


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(200, 400), st.floats(100, 100_000), st.sampled_from([0.005, 0.02, 0.1]))
def test_replay_finds_the_smallest_pool_that_is_enough(seed: int, count: int, span: float, share: float) -> None:
    rng = random.Random(seed)
    starts = [rng.uniform(0, span) for _ in range(count)]
    found = recommend(seen_once(starts), LEASE, share)
    assert found.shared == without_address(starts, LEASE, found.size) / count <= share
    if found.size > MINIMUM:
        assert without_address(starts, LEASE, found.size - 1) / count > share


def turned_away_by(held: list[Stay], pool: int) -> int:
    """The replay of one size: whose number an address has does not matter, only how many are leased."""
    ends: list[float] = []
    without = 0
    for began, end in held:
        while ends and ends[0] <= began:
            heapq.heappop(ends)
        if len(ends) < pool:
            heapq.heappush(ends, end)
        else:
            without += 1
    return without


#: On a coarse clock many visits begin when others end, which is where a pass can go wrong.
STAYS = st.lists(
    st.one_of(
        st.tuples(st.floats(0, 1e5), st.floats(0, 1e4)),
        st.tuples(st.integers(0, 60).map(lambda n: n * 300.0), st.integers(0, 6).map(lambda n: n * 300.0)),
    ),
    max_size=250,
).map(lambda found: [(began, began + length) for began, length in found])


@settings(max_examples=80, deadline=None)
@given(STAYS)
def test_one_pass_turns_away_as_many_as_the_replay_of_each_size(stays: list[Stay]) -> None:
    held = held_by(stays, LEASE)
    without = turned_away(held)
    assert without == [turned_away_by(held, pool) for pool in range(len(without))]
    assert without[-1] == 0
    assert len(without) == 1 or without[-2] > 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e4)), min_size=200, max_size=300))
def test_the_advice_says_of_each_size_what_its_replay_says(found: list[tuple[float, float]]) -> None:
    stays = [(began, began + length) for began, length in found]
    advice, held = advise(stays, LEASE), held_by(stays, LEASE)
    for size in range(len(advice.shares) + 3):
        assert advice.shared(size) == turned_away_by(held, size) / len(held)
    assert advice.recommendation == recommend(stays, LEASE)


def test_the_advice_for_thin_data_is_the_formulas_curve() -> None:
    advice = advise(seen_once([60.0 * minute for minute in range(60)]), LEASE, share=0.01)
    assert [advice.shared(size) for size in range(40)] == pytest.approx(
        [erlang_b(15.0, size) for size in range(40)], abs=1e-4
    )
    assert (advice.recommendation.size, advice.estimate, advice.rule, advice.hold) == (24, 24, 24, LEASE)


def test_the_estimate_counts_how_long_visits_stay_and_the_rule_one_lease() -> None:
    advice = advise([(60.0 * minute, 60.0 * minute + 900) for minute in range(300)], LEASE, share=0.01)
    assert (advice.hold, advice.rule) == (1800.0, 24)
    assert erlang_b(30.0, advice.estimate) <= 0.01 < erlang_b(30.0, advice.estimate - 1)
    assert advice.recommendation.size == 30  # even arrivals need no more than are held at once


def test_nobody_came_nobody_is_turned_away() -> None:
    assert advise([], LEASE).shares == (1.0, 0.0)
    assert turned_away([]) == [0]


@settings(max_examples=40, deadline=None)
@given(STAYS, st.integers(-3, 40), st.integers(1, 20))
def test_at_once_is_the_most_that_are_held_at_any_moment_of_a_span(stays: list[Stay], first: int, count: int) -> None:
    held, since, span = held_by(stays, LEASE), first * 450.0, 450.0
    moments = sorted({began for began, _ in held})

    def held_at(moment: float) -> int:
        return sum(began <= moment < end for began, end in held)

    for index, most in enumerate(at_once(held, since, span, count)):
        start = since + index * span
        within = [moment for moment in moments if start <= moment < start + span]
        assert most == max(held_at(moment) for moment in [start, *within])


def test_twice_the_addresses_do_for_more_than_twice_the_visits() -> None:
    assert headroom(40, 40) == 1.0
    assert 2.0 < headroom(80, 40) < 2.5
    assert headroom(20, 40) < 0.5
    assert headroom(0, 40) == 0.0


def test_a_hundred_thousand_visits_are_replayed_in_any_order() -> None:
    starts = [2.6 * index for index in range(100_000)]
    random.Random(1).shuffle(starts)
    assert recommend(seen_once(starts), LEASE).size == pytest.approx(900 / 2.6, abs=5)
