"""Pool sizes: Erlang's tables, and real arrivals played again."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.sizing import MINIMUM, erlang_b, recommend

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


def test_a_hundred_thousand_visits_are_replayed_in_any_order() -> None:
    starts = [2.6 * index for index in range(100_000)]
    random.Random(1).shuffle(starts)
    assert recommend(seen_once(starts), LEASE).size == pytest.approx(900 / 2.6, abs=5)
