"""When to try again: mail, webhooks, and what a Retry-After header asks for. All results are seconds from now.

Jitter is the caller's random number in [0, 1). It only ever adds, up to a fifth, so that a crowd which failed
together does not come back together and nothing is tried earlier than the tables say.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from relay.core.date import MONTHS

_MINUTE = 60.0
_HOUR = 3600.0

#: Share of a delay that full jitter adds to it.
JITTER = 0.2

#: Delay of a mail after its first, second, … failed attempt; the last one repeats. RFC 5321 §4.5.4.1 wants 30
#: minutes between attempts or something cleverer, and several early: the first minute passes most greylisting (one
#: to five minutes) and the restart of a next hop, which is the operator's own server; then it doubles. Postfix
#: waits 5 minutes and caps at 67; a cap of one hour makes some 125 attempts in five days.
MAIL_DELAYS = (1 * _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 20 * _MINUTE, 40 * _MINUTE, 1 * _HOUR)

#: Delay before the first, second, … attempt to post an event (Standard Webhooks, "Delivery attempts"): 75 h in all.
WEBHOOK_DELAYS = (
    0.0,
    5.0,
    5 * _MINUTE,
    30 * _MINUTE,
    2 * _HOUR,
    5 * _HOUR,
    10 * _HOUR,
    14 * _HOUR,
    20 * _HOUR,
    24 * _HOUR,
)

#: A receiver can put us off for no longer than the longest step of our own schedule.
MAX_RETRY_AFTER = 24 * _HOUR


def delay(attempt: int, jitter: float) -> float:
    """Seconds to wait after mail attempt number ``attempt`` (1 is the first) failed for now. Raises ValueError."""
    if attempt < 1:
        raise ValueError("attempts count from 1")
    return _jittered(MAIL_DELAYS[min(attempt, len(MAIL_DELAYS)) - 1], jitter)


def webhook_delay(attempt: int, jitter: float) -> float | None:
    """Seconds to wait when ``attempt`` attempts to post an event were made (0: none yet); None when that was all.

    Raises ValueError.
    """
    if attempt < 0:
        raise ValueError("attempts made can't be negative")
    if attempt >= len(WEBHOOK_DELAYS):
        return None
    return _jittered(WEBHOOK_DELAYS[attempt], jitter)


def retry_after(header: str, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110 §10.2.3): delta-seconds or HTTP-date, 0 to MAX_RETRY_AFTER.

    None when the header is neither. ``now`` is seconds since the epoch; dates in the past are 0.
    """
    value = header.strip(" \t")
    if value.isascii() and value.isdigit():
        if len(value) > 9:
            return MAX_RETRY_AFTER
        return min(float(value), MAX_RETRY_AFTER)
    moment = _http_date(value, now)
    if moment is None:
        return None
    return min(max(moment - now, 0.0), MAX_RETRY_AFTER)


def _jittered(seconds: float, jitter: float) -> float:
    if not 0 <= jitter < 1:
        raise ValueError("jitter is in [0, 1)")
    return seconds * (1 + JITTER * jitter)


# HTTP-date (RFC 9110 §5.6.7): one form to send and two obsolete ones to accept. strptime would read the month in the
# process's locale.
_MONTH = "(?P<month>" + "|".join(MONTHS) + ")"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = (
    re.compile(rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),  # IMF-fixdate
    re.compile(rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),  # RFC 850
    re.compile(rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),  # asctime()
)


def _http_date(value: str, now: float) -> float | None:
    for form in _DATES:
        match = form.fullmatch(value)
        if match is None:
            continue
        year = int(match["year"])
        if len(match["year"]) == 2:
            # Two digits that seem more than 50 years ahead mean the past century (RFC 9110 §5.6.7).
            this_year = datetime.fromtimestamp(now, UTC).year
            year += this_year - this_year % 100
            year -= 100 if year > this_year + 50 else 0
        try:
            moment = datetime(
                year,
                MONTHS.index(match["month"]) + 1,
                int(match["day"]),
                int(match["hour"]),
                int(match["minute"]),
                min(int(match["second"]), 59),  # a leap second is written 60
                tzinfo=UTC,
            )
        except ValueError:
            return None
        return moment.timestamp()
    return None
