"""Unique local parts and pool names: what the check symbol catches, and what mishearing forgives."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.address import parse
from relay.core.substitute import RANDOM_OCTETS, SYMBOLS, is_valid, mint, normalise, pool_names

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
octets = st.binary(min_size=RANDOM_OCTETS, max_size=RANDOM_OCTETS)


def plain(local: str) -> str:
    return local.replace("-", "")


def samples(count: int) -> list[str]:
    source = random.Random(1)
    return [plain(mint(source.randbytes(RANDOM_OCTETS))) for _ in range(count)]


# ── minting ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("random_octets", "local"),
    [
        (bytes(8), "0000-0000-00000"),
        (b"\xff" * 8, "zzzz-zzzz-zzzzr"),
        (bytes.fromhex("0123456789abcdef"), "04hm-asw9-nf6yv"),
    ],
)
def test_the_same_octets_give_the_same_name(random_octets: bytes, local: str) -> None:
    assert mint(random_octets) == local


@settings(max_examples=100, deadline=None)
@given(octets)
def test_a_minted_name_is_thirteen_symbols_in_three_groups_and_a_plain_local_part(random_octets: bytes) -> None:
    local = mint(random_octets)
    assert [len(group) for group in local.split("-")] == [4, 4, 5]
    assert set(plain(local)) <= set(ALPHABET)
    assert len(plain(local)) == SYMBOLS
    assert str(parse(f"{local}@track.example.com")) == f"{local}@track.example.com"
    assert normalise(local) == local
    assert is_valid(local)


@settings(max_examples=100, deadline=None)
@given(octets, octets)
def test_names_differ_when_the_first_sixty_bits_do(one: bytes, two: bytes) -> None:
    assert (mint(one) == mint(two)) == (int.from_bytes(one, "big") >> 4 == int.from_bytes(two, "big") >> 4)


@pytest.mark.parametrize("length", [0, 7, 9])
def test_another_number_of_random_octets_is_an_error(length: int) -> None:
    with pytest.raises(ValueError, match="8 random octets"):
        mint(bytes(length))


# ── what the check symbol catches ────────────────────────────────────────────────────────────────────────────────
#
# The valid words form a linear code: the sum (XOR of values) of two valid words is valid. So an error is caught in
# every word when the error by itself is no valid word, and trying all errors once is a proof.


def added(one: str, two: str) -> str:
    return "".join(ALPHABET[ALPHABET.index(a) ^ ALPHABET.index(b)] for a, b in zip(one, two, strict=True))


@settings(max_examples=100, deadline=None)
@given(octets, octets)
def test_the_sum_of_two_valid_words_is_valid(one: bytes, two: bytes) -> None:
    assert is_valid(added(plain(mint(one)), plain(mint(two))))


def test_no_error_in_one_symbol_is_a_valid_word() -> None:
    for place, symbol in itertools.product(range(SYMBOLS), ALPHABET[1:]):
        assert not is_valid("0" * place + symbol + "0" * (SYMBOLS - place - 1))


def test_no_error_of_two_symbols_swapped_or_of_twins_is_a_valid_word() -> None:
    # a, b -> b, a and a, a -> b, b both differ by a + b at the two places.
    for (one, two), symbol in itertools.product(itertools.combinations(range(SYMBOLS), 2), ALPHABET[1:]):
        error = ["0"] * SYMBOLS
        error[one] = error[two] = symbol
        assert not is_valid("".join(error))


def test_thirty_names_with_any_symbol_wrong_or_any_two_swapped_are_caught() -> None:
    for word in samples(30):
        for place, symbol in itertools.product(range(SYMBOLS), ALPHABET):
            altered = word[:place] + symbol + word[place + 1 :]
            assert is_valid(altered) == (altered == word)
        for one, two in itertools.combinations(range(SYMBOLS), 2):
            swapped = list(word)
            swapped[one], swapped[two] = word[two], word[one]
            assert is_valid("".join(swapped)) == (word[one] == word[two])


# ── what people type ─────────────────────────────────────────────────────────────────────────────────────────────

NAME = mint(bytes.fromhex("00443201842fe107"))


def test_the_name_used_below_has_zeros_and_ones() -> None:
    assert {"0", "1"} <= set(NAME)


@pytest.mark.parametrize(
    "typed",
    [
        NAME.upper(),
        NAME.replace("-", ""),
        NAME.replace("0", "o"),
        NAME.replace("0", "O"),
        NAME.replace("1", "i"),
        NAME.replace("1", "L"),
        "-".join(plain(NAME)),
        f"-{NAME}--",
    ],
)
def test_a_name_is_recognised_as_people_type_what_they_heard(typed: str) -> None:
    assert typed != NAME
    assert normalise(typed) == NAME


@pytest.mark.parametrize(
    "typed",
    ["", "-", "sales", NAME[:-1], NAME + "0", "u" + NAME[1:], "é" + NAME[1:], NAME.replace("-", "."), NAME + "-" * 60],
)
def test_what_can_not_be_a_unique_name_is_none(typed: str) -> None:
    assert normalise(typed) is None
    assert not is_valid(typed)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from(ALPHABET + "oilu-OIL"), max_size=20) | st.text(max_size=20))
def test_what_is_recognised_is_written_in_one_way_only(typed: str) -> None:
    found = normalise(typed)
    if found is not None:
        assert normalise(found) == found


# ── pool names ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_pool_names_count_up_and_pass_over_what_is_taken_in_any_case() -> None:
    assert pool_names("info", 3, []) == ["info1", "info2", "info3"]
    assert pool_names("info", 3, ["INFO2", "sales", "info4"]) == ["info1", "info3", "info5"]
    assert pool_names("info", 0, ["info1"]) == []


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["info", "a.b", "x-"]), st.integers(0, 40), st.sets(st.integers(1, 60)))
def test_pool_names_are_as_many_as_asked_for_new_and_the_same_each_time(stem: str, count: int, taken: set[int]) -> None:
    occupied = {f"{stem}{number}" for number in taken}
    names = pool_names(stem, count, occupied)
    assert len(names) == len(set(names)) == count
    assert not occupied & set(names)
    assert names == pool_names(stem, count, occupied)
    assert all(parse(f"{name}@a.example").local == name for name in names)


@pytest.mark.parametrize("stem", ["", ".info", "info.", "in fo", "a+b", "почта"])
def test_a_stem_that_is_no_plain_local_part_is_an_error(stem: str) -> None:
    with pytest.raises(ValueError, match="stem"):
        pool_names(stem, 1, [])


def test_a_name_longer_than_a_local_part_may_be_is_an_error() -> None:
    assert pool_names("a" * 63, 9, [])[-1] == "a" * 63 + "9"
    with pytest.raises(ValueError, match="64"):
        pool_names("a" * 63, 10, [])
