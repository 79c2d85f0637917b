"""The accounts of forwarding: who may have how much under way, and who is left alone."""

from __future__ import annotations

import pytest

from relay.core import destinations
from relay.core.destinations import Destinations

AHEAD = 80
LARGEST = 256 * 1024
NOW = 1000.0


@pytest.fixture
def accounts() -> Destinations:
    return Destinations(AHEAD, LARGEST)


def fill(accounts: Destinations, name: str, size: int) -> int:
    """Begin all that may begin; how many that is."""
    begun = 0
    while accounts.takes(name, size) and begun < 10_000:
        accounts.begin(name, size)
        begun += 1
    return begun


@pytest.mark.parametrize("size", [1, 4096, 64 * 1024])
def test_one_alone_may_have_as_much_ahead_as_is_set(accounts: Destinations, size: int) -> None:
    assert fill(accounts, "a", size) == AHEAD
    assert accounts.capacity(["a"], NOW) == {}


@pytest.mark.parametrize("size", [LARGEST, 100 * LARGEST])
def test_large_letters_keep_more_than_all_connections_of_a_destination_busy(accounts: Destinations, size: int) -> None:
    assert accounts.capacity(["a"], NOW)["a"] == fill(accounts, "a", size) > AHEAD / 4


@pytest.mark.parametrize("size", [1, LARGEST])
@pytest.mark.parametrize(("hung", "room"), [(1, 20), (4, 15), (12, 6), (40, 1)])
def test_those_that_hang_leave_the_next_room(accounts: Destinations, hung: int, room: int, size: int) -> None:
    for number in range(hung):
        assert fill(accounts, f"hung{number}", size) >= 1
    assert fill(accounts, "sound", size) >= room
    assert min(accounts.free) >= 0


def test_what_is_claimed_for_all_at_once_fits_and_leaves_none_out(accounts: Destinations) -> None:
    names = [f"{number}" for number in range(40)]
    capacity = accounts.capacity(names, NOW)
    assert list(capacity) == names
    assert sum(capacity.values()) <= destinations.IN_FLIGHT
    assert sum(capacity.values()) * LARGEST <= destinations.MEMORY


def test_nothing_more_begins_when_nothing_is_free(accounts: Destinations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destinations, "MEMORY", LARGEST)
    accounts.begin("a", LARGEST)
    assert not accounts.takes("b", 1)
    assert accounts.capacity(["b"], NOW) == {}
    accounts.end("a", LARGEST, 0)
    assert accounts.capacity(["b", "c"], NOW) == {"b": 1}


def test_one_that_is_down_is_left_alone_and_then_tried_by_one(accounts: Destinations) -> None:
    turn = accounts.begin("a", 1)
    assert accounts.note("a", False, turn, NOW, 0.0) == 1
    accounts.end("a", 1, turn)
    assert not accounts.takes("a", 1)
    assert accounts.capacity(["a"], NOW + 59) == {}
    assert accounts.next_tries(["a", "b"]) == [NOW + 60]
    assert accounts.capacity(["a"], NOW + 60) == {"a": 1}
    turn = accounts.begin("a", 1)
    assert accounts.capacity(["a"], NOW + 60) == {}
    assert accounts.note("a", False, turn, NOW + 60, 0.0) == 2
    assert accounts.next_tries(["a"]) == [NOW + 60 + 120]
    accounts.end("a", 1, turn)
    accounts.retry(NOW + 61)
    assert accounts.capacity(["a"], NOW + 61) == {"a": 1}
    turn = accounts.begin("a", 1)
    accounts.note("a", True, turn, NOW + 62, 0.0)
    assert accounts.takes("a", 1)


def test_all_that_fail_together_are_one_failure(accounts: Destinations) -> None:
    # Each counted, the restart of a next hop with 20 connections open would be 20 failures: an hour's back-off.
    before = [accounts.begin("a", 1) for _ in range(20)]
    assert [accounts.note("a", False, turn, NOW, 0.0) for turn in before] == [1] + [0] * 19
    assert accounts.next_tries(["a"]) == [NOW + 60]


def test_a_probe_that_began_before_a_retry_does_not_undo_it(accounts: Destinations) -> None:
    for _ in range(3):
        turn = accounts.begin("a", 1)
        accounts.note("a", False, turn, NOW - 10, 0.0)
        accounts.end("a", 1, turn)
    turn = accounts.begin("a", 1)
    accounts.retry(NOW)
    assert accounts.capacity(["a"], NOW) == {}  # one at a time
    assert not accounts.note("a", False, turn, NOW, 0.0)
    assert accounts.end("a", 1, turn)
    assert accounts.capacity(["a"], NOW) == {"a": 1}
    assert accounts.note("a", False, accounts.begin("a", 1), NOW, 0.0) == 4
    assert accounts.next_tries(["a"]) == [NOW + 600]


def test_nor_do_those_that_were_under_way_when_it_went_down(accounts: Destinations) -> None:
    before = [accounts.begin("a", 1) for _ in range(3)]
    assert accounts.note("a", False, before[0], NOW, 0.0)
    accounts.retry(NOW + 1)
    assert not accounts.note("a", False, before[1], NOW + 2, 0.0)
    assert accounts.next_tries(["a"]) == [NOW + 1]
    accounts.note("a", True, before[2], NOW + 3, 0.0)
    assert accounts.takes("a", 1)


def test_what_hangs_from_before_it_went_down_keeps_no_probe_back(accounts: Destinations) -> None:
    hangs, refused = accounts.begin("a", 1), accounts.begin("a", 1)
    accounts.note("a", False, refused, NOW, 0.0)
    assert accounts.capacity(["a"], NOW + 59) == {}
    accounts.end("a", 1, refused)
    assert accounts.capacity(["a"], NOW + 60) == {"a": 1}
    probe = accounts.begin("a", 1)
    assert accounts.capacity(["a"], NOW + 60) == {}  # one at a time
    accounts.end("a", 1, hangs)
    assert accounts.capacity(["a"], NOW + 60) == {}
    assert accounts.note("a", False, probe, NOW + 60, 0.0) == 2
    accounts.end("a", 1, probe)
    assert accounts.capacity(["a"], NOW + 60 + 120) == {"a": 1}


def test_nor_does_as_much_as_a_destination_may_have(accounts: Destinations) -> None:
    fill(accounts, "a", LARGEST)
    refused = accounts.begin("a", 1)
    accounts.note("a", False, refused, NOW, 0.0)
    accounts.end("a", 1, refused)
    assert accounts.capacity(["a"], NOW + 60) == {"a": 1}


def test_nor_does_it_when_it_goes_down_a_second_time(accounts: Destinations) -> None:
    hang = []
    for _ in range(2):
        hang.append(accounts.begin("a", 1))
        refused = accounts.begin("a", 1)
        accounts.note("a", False, refused, NOW, 0.0)
        accounts.end("a", 1, refused)
        probe = accounts.begin("a", 1)
        accounts.note("a", True, probe, NOW + 60, 0.0)
        accounts.end("a", 1, probe)
    accounts.note("a", False, accounts.begin("a", 1), NOW + 61, 0.0)
    assert accounts.capacity(["a"], NOW + 121) == {"a": 1}
    for turn in hang:
        accounts.end("a", 1, turn)
    probe = accounts.begin("a", 1)
    assert accounts.capacity(["a"], NOW + 121) == {}


def test_one_that_is_reached_again_does_not_go_down_by_what_began_before(accounts: Destinations) -> None:
    turns = [accounts.begin("a", 1) for _ in range(3)]
    accounts.note("a", False, turns[0], NOW, 0.0)
    accounts.note("a", True, turns[1], NOW + 1, 0.0)
    assert not accounts.note("a", False, turns[2], NOW + 2, 0.0)
    assert accounts.takes("a", 1)
    assert accounts.note("a", False, accounts.begin("a", 1), NOW + 3, 0.0) == 1


def test_the_back_off_has_jitter(accounts: Destinations) -> None:
    accounts.note("a", False, accounts.begin("a", 1), NOW, 0.5)
    assert accounts.next_tries(["a"]) == [NOW + 66]


def test_what_says_nothing_of_the_destination_changes_nothing(accounts: Destinations) -> None:
    turn = accounts.begin("a", 1)
    accounts.note("a", False, turn, NOW, 0.0)
    accounts.end("a", 1, turn)
    turn = accounts.begin("a", 1)
    assert not accounts.note("a", None, turn, NOW + 60, 0.0)
    assert accounts.next_tries(["a"]) == [NOW + 60]


def test_there_is_room_again_at_half_and_in_the_end(accounts: Destinations) -> None:
    for _ in range(10):
        accounts.begin("a", 1)
    accounts.filled(["a"])
    assert [accounts.end("a", 1, 0) for _ in range(10)] == [False] * 4 + [True] + [False] * 4 + [True]
    assert len(accounts) == 0


def test_a_clock_that_goes_back_takes_back_offs_along(accounts: Destinations) -> None:
    accounts.note("a", False, accounts.begin("a", 1), NOW, 0.0)
    accounts.clock_set_back(100)
    assert accounts.next_tries(["a"]) == [NOW - 40]
    accounts.clock_set_back(1e9)
    assert accounts.next_tries(["a"]) == [1.0]
