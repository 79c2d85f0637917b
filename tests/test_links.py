"""webapi/links.py: tokens that expire, are ours alone, and have one spelling."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapi.links import LinkExpired, LinkInvalid, make, read

KEY, OLD, FOREIGN = b"k" * 32, b"o" * 32, b"f" * 32
EXPIRES = 1_800_000_000


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(1, 2**40 - 1),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_a_token_gives_back_what_it_was_made_for_until_it_expires(
    message: int, part: int, expires: int, site: int | None
) -> None:
    token = make(KEY, message, part, expires, site)
    assert re.fullmatch(r"[A-Za-z0-9_-]{32,54}", token)
    assert read([KEY], token, expires - 0.001) == (message, part, site)
    for later in (expires, expires + 1e9):
        with pytest.raises(LinkExpired) as caught:
            read([KEY], token, later)
        assert (caught.value.link, caught.value.expires) == ((message, part, site), expires)


@pytest.mark.parametrize(
    ("message", "part", "token"),
    [
        (5, 1, "AGtJ0gAAAQWU_wLqnss5rV83kjLbr1-D"),
        (70_000, 65_535, "AGtJ0gD__wERcF7kTPD5RnHa8sy0wXM4C88"),
        (2**64 - 1, 0, "AGtJ0gAAAP__________WLpC8V6i-M6YLewhYxUVDQ"),
    ],
)
def test_a_token_from_before_tokens_named_a_site_is_good(message: int, part: int, token: str) -> None:
    assert read([KEY], token, EXPIRES - 1) == (message, part, None)
    assert make(KEY, message, part, EXPIRES, None) == token


def test_the_site_makes_a_token_longer_by_three_characters() -> None:
    assert len(make(KEY, 70_000, 0, EXPIRES, 200)) == len(make(KEY, 70_000, 0, EXPIRES, None)) + 3


def test_a_token_of_an_earlier_key_is_good_while_that_key_is_kept() -> None:
    token = make(OLD, 5, 1, EXPIRES, 3)
    assert read([KEY, OLD], token, 0) == (5, 1, 3)
    with pytest.raises(LinkInvalid):
        read([KEY], token, 0)
    with pytest.raises(LinkInvalid):
        read([], token, 0)


def test_a_forged_token_is_invalid_even_when_it_says_it_has_expired() -> None:
    with pytest.raises(LinkInvalid):
        read([KEY], make(FOREIGN, 5, 1, 1, 3), EXPIRES)


@given(
    st.integers(0, 34), st.sampled_from(string.ascii_letters + string.digits + "-_"), st.none() | st.integers(0, 300)
)
def test_no_character_of_a_token_can_be_exchanged(position: int, character: str, site: int | None) -> None:
    token = make(KEY, 5, 1, EXPIRES, site)
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]
    if changed == token:
        assert read([KEY], changed, 0) == (5, 1, site)
    else:
        with pytest.raises(LinkInvalid):
            read([KEY], changed, 0)


@pytest.mark.parametrize("message", [5, 70_000, 2**40, 2**63])
@pytest.mark.parametrize("site", [None, 1, 300])
def test_a_token_has_one_spelling(message: int, site: int | None) -> None:
    token = make(KEY, message, 1, EXPIRES, site)
    others = [token[:-1] + character for character in string.ascii_letters + string.digits + "-_"]
    for other in (*others, token + "=", token + "==", token + " ", token + "\n", " " + token, token + "!", token[:-1]):
        if other != token:
            with pytest.raises(LinkInvalid):
                read([KEY], other, 0)


@given(st.one_of(st.text(max_size=80), st.text(string.ascii_letters + "-_=", max_size=80), st.binary().map(repr)))
def test_any_garbage_is_invalid(token: str) -> None:
    with pytest.raises(LinkInvalid):
        read([KEY, OLD], token, 0)


def test_a_very_long_token_is_invalid() -> None:
    with pytest.raises(LinkInvalid):
        read([KEY], "A" * 1_000_000, 0)


@pytest.mark.parametrize(
    ("message", "part", "expires", "site"),
    [
        (-1, 0, 1, None),
        (0, -1, 1, None),
        (0, 0, -1, None),
        (0, 0, 1, -1),
        (2**64, 0, 1, None),
        (0, 2**16, 1, 3),
        (0, 0, 2**40, 3),
        (0, 0, 1, 2**64),
    ],
)
def test_no_token_is_made_of_a_number_out_of_range(message: int, part: int, expires: int, site: int | None) -> None:
    with pytest.raises(ValueError, match="out of range"):
        make(KEY, message, part, expires, site)
