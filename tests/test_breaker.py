"""What failures in a row come to."""

from __future__ import annotations

import pytest

from webapi.breaker import FAILING, HASTEN_AGAIN, MOST_RESTS, RESTING, Breaker, says_ill


def failing(count: int) -> Breaker:
    breaker = Breaker()
    for _ in range(count):
        breaker.failed(None)
    return breaker


@pytest.mark.parametrize(("failures", "slots"), [(0, 7), (FAILING - 1, 7), (FAILING, 1), (RESTING, 1)])
def test_a_failing_webhook_gets_one_attempt_at_a_time(failures: int, slots: int) -> None:
    assert failing(failures).slots(7) == slots


def test_rests_double_to_a_limit() -> None:
    breaker = failing(RESTING - 1)
    rests = [breaker.failed(None) for _ in range(2000)]
    assert rests[:6] == [1, 2, 4, 8, 16, MOST_RESTS]
    assert set(rests[6:]) == {MOST_RESTS}
    assert failing(RESTING - 2).failed(None) is None


def test_a_success_makes_it_sound() -> None:
    breaker = failing(RESTING + 5)
    breaker.succeeded(0.0)
    assert (breaker.slots(7), breaker.failed(None)) == (7, None)


@pytest.mark.parametrize(("failures", "hastened"), [(0, False), (RESTING - 1, False), (RESTING, True)])
def test_what_waits_is_hastened_for_one_that_was_down(failures: int, hastened: bool) -> None:
    assert failing(failures).succeeded(5.0) is hastened


def test_one_that_comes_and_goes_keeps_to_the_schedule() -> None:
    breaker = failing(RESTING)
    assert breaker.succeeded(0.0)
    for at, hastened in ((HASTEN_AGAIN - 1, False), (HASTEN_AGAIN, True)):
        for _ in range(RESTING):
            breaker.failed(None)
        assert breaker.succeeded(at) is hastened


def test_the_latest_retry_after_counts() -> None:
    breaker = Breaker()
    for until in (50.0, 70.0, None, 60.0):
        breaker.failed(until)
    assert breaker.not_before == 70.0


@pytest.mark.parametrize(
    ("state", "status", "ill"),
    [
        ("delivered", 200, False),
        ("waiting", None, True),
        ("waiting", 429, True),
        ("failed", 503, True),
        ("failed", 410, False),
        ("waiting", 404, False),
        ("waiting", 302, False),
    ],
)
def test_other_answers_are_about_their_event(state: str, status: int | None, ill: bool) -> None:
    assert says_ill(state, status) is ill
