"""When to try again: the tables, their jitter, and Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.backoff import JITTER, MAX_RETRY_AFTER, delay, retry_after, webhook_delay

MINUTE, HOUR, DAY = 60, 3600, 86_400
jitters = st.floats(0, 1, exclude_max=True)


# ── mail ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mail_is_tried_again_after_a_minute_then_ever_later_up_to_an_hour() -> None:
    minutes = [delay(attempt, 0.0) / MINUTE for attempt in range(1, 10)]
    assert minutes == [1, 2, 5, 10, 20, 40, 60, 60, 60]


def test_mail_is_tried_some_hundred_times_in_five_days() -> None:
    spent, attempts = 0.0, 0
    while spent < 5 * DAY:
        attempts += 1
        spent += delay(attempts, 0.5)
    assert 100 <= attempts <= 130


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**9), jitters)
def test_jitter_only_adds_and_at_most_a_fifth(attempt: int, jitter: float) -> None:
    assert delay(attempt, 0.0) <= delay(attempt, jitter) <= delay(attempt, 0.0) * (1 + JITTER)
    assert MINUTE <= delay(attempt, jitter) <= HOUR * (1 + JITTER)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1000))
def test_a_later_attempt_never_waits_less(attempt: int) -> None:
    assert delay(attempt, 0.0) <= delay(attempt + 1, 0.0)


# ── webhooks ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_is_posted_ten_times_on_the_standard_webhooks_schedule() -> None:
    delays = [webhook_delay(made, 0.0) for made in range(12)]
    hours = [2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR]
    assert delays == [0, 5, 5 * MINUTE, 30 * MINUTE, *hours, None, None]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9), jitters)
def test_a_webhook_is_never_tried_before_its_time(made: int, jitter: float) -> None:
    plain, jittered = webhook_delay(made, 0.0), webhook_delay(made, jitter)
    assert plain is not None
    assert jittered is not None
    assert plain <= jittered <= plain * (1 + JITTER)


def test_nonsense_is_an_error() -> None:
    with pytest.raises(ValueError, match="count from 1"):
        delay(0, 0.0)
    with pytest.raises(ValueError, match="negative"):
        webhook_delay(-1, 0.0)
    for jitter in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="jitter"):
            delay(1, jitter)
        with pytest.raises(ValueError, match="jitter"):
            webhook_delay(1, jitter)


# ── Retry-After ──────────────────────────────────────────────────────────────────────────────────────────────────

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 120\t", 120),
        ("00120", 120),
        ("86400", DAY),
        ("86401", DAY),
        ("9" * 10_000, DAY),
        ("Mon, 23 Nov 2026 12:02:00 GMT", 120),
        ("Monday, 23-Nov-26 12:02:00 GMT", 120),
        ("Mon Nov 23 12:02:00 2026", 120),
        ("Tue Dec  1 12:00:00 2026", DAY),
        ("Mon, 23 Nov 2026 12:00:60 GMT", 59),
        ("Mon, 23 Nov 2026 11:59:59 GMT", 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),  # 2094 is more than 50 years ahead: 1994 is meant
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY),
    ],
)
def test_retry_after_is_seconds_or_any_http_date_clamped_to_a_day(header: str, seconds: float) -> None:
    assert retry_after(header, NOW) == seconds


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "-1",
        "+1",
        "1.5",
        "1e3",
        "١٢",
        "soon",
        "120 s",
        "Mon, 23 Nov 2026 12:02:00",
        "Mon, 23 Nov 2026 12:02:00 +0000",
        "Mon, 23 nov 2026 12:02:00 GMT",
        "Mon, 30 Feb 2026 12:02:00 GMT",
        "Mon, 23 Nov 2026 24:00:00 GMT",
        "Mon, 23 Nov 0000 12:00:00 GMT",
        "Mon, 23 Nov 2026 12:02:00 GMT\n",
    ],
)
def test_any_other_retry_after_says_nothing(header: str) -> None:
    assert retry_after(header, NOW) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4_000_000_000), st.integers(-100_000, 100_000))
def test_a_date_is_the_distance_from_now(now: int, offset: int) -> None:
    header = format_datetime(datetime.fromtimestamp(now, UTC).replace(microsecond=0), usegmt=True)
    assert retry_after(header, now - offset) == min(max(offset, 0), MAX_RETRY_AFTER)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_no_header_raises(header: str) -> None:
    found = retry_after(header, NOW)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER
