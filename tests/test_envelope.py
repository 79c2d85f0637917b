from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.address import parse
from relay.core.model import Address
from relay.envelope import Return, read_return, return_path, stamped_at
from tests.smtp_client import LONG_SENDER

KEY = b"k" * 32
NOW = 1_800_000_000.0
DOMAIN = "track.example.com"


def test_the_null_sender_stays_null() -> None:
    assert return_path("", 7, DOMAIN, KEY, NOW) == ""


def test_an_ordinary_sender_is_rewritten_by_srs_and_reversed() -> None:
    path = return_path("alice@example.org", 7, DOMAIN, KEY, NOW)
    assert path.startswith("SRS0=")
    assert path.endswith("@" + DOMAIN)
    assert read_return(parse(path), [KEY], NOW) == Return(Address("alice", "example.org"), None)


DAY = 86_400.0
MIDNIGHT = NOW // DAY * DAY


@pytest.mark.parametrize("day", [0.0, 7.0, 28.0])
def test_a_retry_has_the_same_return_path_for_a_week(day: float) -> None:
    first = MIDNIGHT - 60.0
    times = [first + day * DAY, first + day * DAY + 120.0, first + (day + 7) * DAY - 1.0]
    paths = {return_path("alice@example.org", 7, DOMAIN, KEY, stamped_at(first, now)) for now in times}
    assert len(paths) == 1
    assert return_path("alice@example.org", 7, DOMAIN, KEY, stamped_at(first, times[-1] + 1.0)) not in paths


@pytest.mark.parametrize("age", [-30.0, -1.0, 0.0, 0.5, 6.99, 7.0, 29.0])  # < 0: the clock was set back meanwhile
def test_what_is_returned_two_weeks_after_any_attempt_is_still_ours(age: float) -> None:
    attempt = NOW + age * DAY
    path = parse(return_path("alice@example.org", 7, DOMAIN, KEY, stamped_at(NOW, attempt)))
    for days in (0, 14):
        assert read_return(path, [KEY], attempt + days * DAY) == Return(Address("alice", "example.org"), None)


@pytest.mark.parametrize(
    "sender",
    [
        "иван@example.org",
        '"a b"@example.org',
        "a" * 64 + "@example.org",
        '"a..b"@docomo.ne.jp',
        "a@under_score.x",
        "a@web1-.example.com",
        "a@[192.0.2.1]",
        LONG_SENDER,
    ],
)
def test_a_sender_that_srs_cannot_carry_gets_an_ascii_token_of_its_message(sender: str) -> None:
    path = return_path(sender, 7, DOMAIN, KEY, NOW)
    assert path.isascii()
    assert read_return(parse(path), [KEY], NOW) == Return(None, 7)
    assert read_return(parse(path.upper()), [KEY], NOW) == Return(None, 7)


def test_a_return_path_survives_a_rotated_key_and_no_other() -> None:
    for sender in ("alice@example.org", "иван@example.org"):
        path = parse(return_path(sender, 7, DOMAIN, KEY, NOW))
        assert read_return(path, [b"new" * 8, KEY], NOW) is not None
        assert read_return(path, [b"new" * 8], NOW) is None


@given(st.from_regex(r"(srs[01]=|vr0=)[a-z0-9=+\-]{0,40}", fullmatch=True))
def test_a_forged_return_path_is_nobody(local: str) -> None:
    assert read_return(Address(local, DOMAIN), [KEY], NOW) is None
