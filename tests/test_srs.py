"""Sender Rewriting Scheme: the reference implementation's vectors, and what must not be reversed."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.address import parse
from relay.core.model import Address
from relay.core.srs import MAX_AGE_DAYS, SrsError, forward, reverse
from tests.corpora import corpus

ALIAS = "fwd.example.net"
KEY = b"new key"
NOW = 1_768_478_400.0
DAY = 86_400.0


def vectors(quoted: bool) -> list[dict[str, Any]]:
    entries = json.loads((corpus("srs") / "mail-srs-vectors.json").read_text())
    chosen = [entry for entry in entries if entry["sender"].startswith('"') is quoted]
    assert len(chosen) == (9 if quoted else 90)
    return chosen


def signed(local: str, *fields: str) -> Address:
    """``local`` with its first {} filled by the right hash over ``fields``: what reshaping a real address can reach."""
    digest = hmac.digest(KEY, "".join(fields).lower().encode(), hashlib.sha1)
    return Address(local.replace("{}", b64encode(digest).decode()[:8], 1), ALIAS)


# ── the vectors ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_ninety_vectors_are_rewritten_as_by_the_reference_but_for_the_case_of_domains() -> None:
    for vector in vectors(quoted=False):
        rewritten = forward(
            parse(vector["sender"]),
            vector["alias_domain"],
            vector["secret"].encode(),
            vector["time"],
            hash_length=4,
            separator=vector["separator"],
        )
        # The reference keeps the case of a domain, our addresses are lower-case; the hash does not depend on it.
        assert str(rewritten) == vector["forward"].replace("EXAMPLE.com", "example.com")


@pytest.mark.parametrize(("lower", "expected"), [(False, "reverse"), (True, "reverse_lowercased")])
def test_ninety_vectors_are_reversed_as_by_the_reference(lower: bool, expected: str) -> None:
    for vector in vectors(quoted=False):
        rewritten = parse(vector["forward"].lower() if lower else vector["forward"])
        original = reverse(
            rewritten, vector["alias_domain"], [vector["secret"].encode()], vector["time"], hash_length=4
        )
        assert original == parse(vector[expected])


def test_ninety_tampered_vectors_are_refused() -> None:
    for vector in vectors(quoted=False):
        assert vector["tampered_reverse"] is None
        with pytest.raises(SrsError, match="hash does not match"):
            reverse(
                parse(vector["tampered"]),
                vector["alias_domain"],
                [vector["secret"].encode()],
                vector["time"],
                hash_length=4,
            )


def test_nine_quoted_senders_are_left_to_the_caller_where_the_reference_emits_an_invalid_address() -> None:
    for vector in vectors(quoted=True):
        assert forward(parse(vector["sender"]), ALIAS, KEY, NOW) is None


# ── there and back ───────────────────────────────────────────────────────────────────────────────────────────────

locals_ = st.from_regex(r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,6}(\.[a-zA-Z0-9=+-]{1,4}){0,2}", fullmatch=True)
domains = st.sampled_from(["example.com", "a.example", "x-y.example.org"])
prefixes = st.sampled_from(["", "", "SRS0=", "srs0-", "SRS1+", "SRS1=h=a.example==", "SRS0=a=b=c="])


@settings(max_examples=100, deadline=None)
@given(prefixes, locals_, domains, st.sampled_from("=+-"))
def test_whatever_is_rewritten_comes_back(prefix: str, local: str, domain: str, separator: str) -> None:
    sender = Address(prefix + local, domain)
    rewritten = forward(sender, ALIAS, KEY, NOW, separator=separator)
    if rewritten is None:
        return
    assert len(rewritten.local) <= 64
    assert parse(str(rewritten)) == rewritten
    original = reverse(rewritten, ALIAS, [KEY], NOW)
    if rewritten.local.startswith("SRS0"):
        assert original == sender
    else:
        assert original.local.startswith("SRS0")
    lowered = reverse(Address(rewritten.local.lower(), ALIAS), ALIAS, [KEY], NOW)
    assert lowered.key == original.key


def test_a_chain_of_forwarders_never_grows_beyond_two_hosts() -> None:
    sender = Address("alice", "example.com")
    first = forward(sender, "one.example", b"1", NOW)
    assert first is not None
    second = forward(first, "two.example", b"2", NOW)
    assert second is not None
    third = forward(second, "three.example", b"3", NOW)
    assert third is not None
    assert len(third.local) == len(second.local)
    assert reverse(third, "three.example", [b"3"], NOW) == first
    assert reverse(first, "one.example", [b"1"], NOW) == sender


@pytest.mark.parametrize(
    "local", ["SRS1=bare", "SRS1=h=not_a_host==x", "SRS1=h=a.example=x", "SRS0=a=b", "SRS0", "SRS1x"]
)
def test_a_sender_that_only_looks_like_srs_comes_back_as_it_was(local: str) -> None:
    sender = Address(local, "example.com")
    rewritten = forward(sender, ALIAS, KEY, NOW)
    assert rewritten is not None
    assert rewritten.local.startswith("SRS0=")
    assert reverse(rewritten, ALIAS, [KEY], NOW) == sender


def test_the_hash_has_eight_symbols_unless_told_otherwise() -> None:
    rewritten = forward(Address("a", "b.example"), ALIAS, KEY, NOW)
    assert rewritten is not None
    assert len(rewritten.local.split("=")[1]) == 8


def test_a_shorter_hash_than_we_issue_is_refused() -> None:
    short = forward(Address("a", "b.example"), ALIAS, KEY, NOW, hash_length=4)
    assert short is not None
    with pytest.raises(SrsError, match="hash"):
        reverse(short, ALIAS, [KEY], NOW)


# ── when the scheme can't ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("local", ["a b", "", ".a", "a..b", 'a"b', "юлия", "x" * 60])
def test_a_sender_that_does_not_fit_is_left_to_the_caller(local: str) -> None:
    assert forward(Address(local, "example.com"), ALIAS, KEY, NOW) is None


def test_the_local_part_may_have_64_octets_and_no_more() -> None:
    room = 64 - len("SRS0=12345678=tt=example.com=")
    fits = forward(Address("x" * room, "example.com"), ALIAS, KEY, NOW)
    assert fits is not None
    assert len(fits.local) == 64
    assert forward(Address("x" * (room + 1), "example.com"), ALIAS, KEY, NOW) is None


def test_a_result_longer_than_a_path_is_left_to_the_caller() -> None:
    alias = ".".join(["a" * 49] * 5)
    assert forward(Address("a", "b.example"), alias, KEY, NOW) is None


# ── keys and age ─────────────────────────────────────────────────────────────────────────────────────────────────


def rewritten_at(now: float, key: bytes = KEY) -> Address:
    address = forward(Address("alice", "example.com"), ALIAS, key, now)
    assert address is not None
    return address


def test_an_old_key_still_reverses_and_a_foreign_one_never() -> None:
    assert reverse(rewritten_at(NOW, b"old"), ALIAS, [KEY, b"old"], NOW).local == "alice"
    with pytest.raises(SrsError, match="hash"):
        reverse(rewritten_at(NOW, b"foreign"), ALIAS, [KEY, b"old"], NOW)
    with pytest.raises(SrsError, match="hash"):
        reverse(rewritten_at(NOW), ALIAS, [], NOW)


@pytest.mark.parametrize("start", [NOW, 1023 * DAY, 1024 * DAY, 20_479 * DAY])  # also where the day number wraps
def test_an_address_is_good_for_21_days_and_over_a_clock_set_back_past_midnight(start: float) -> None:
    address = rewritten_at(start)
    for days in (-1, 0, 1, MAX_AGE_DAYS):
        assert reverse(address, ALIAS, [KEY], start + days * DAY).local == "alice"
    for days in (-2, MAX_AGE_DAYS + 1, 500):
        with pytest.raises(SrsError, match="too old"):
            reverse(address, ALIAS, [KEY], start + days * DAY)


def test_srs1_has_no_date_of_its_own_and_never_ages() -> None:
    guarded = forward(Address("SRS0=h=tt=a.example=u", "one.example"), ALIAS, KEY, NOW)
    assert guarded is not None
    assert reverse(guarded, ALIAS, [KEY], NOW + 500 * DAY).domain == "one.example"


# ── what is not ours ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "local",
    [
        "alice",
        "",
        "SRS0",
        "SRS2=a=b=c=d",
        "SRS0_a=b=c=d",
        "SRS0=a",
        "SRS0=a=b=c",
        "SRS0==7u=a.b=c",
        "SRS1=a=b",
        "SRS0=ü=7u=a=b",
    ],
)
def test_a_local_part_that_is_no_srs_address_is_refused(local: str) -> None:
    with pytest.raises(SrsError, match="not an SRS address"):
        reverse(Address(local, ALIAS), ALIAS, [KEY], NOW)


def test_another_domain_is_refused_before_anything_else() -> None:
    with pytest.raises(SrsError, match="not our domain"):
        reverse(rewritten_at(NOW), "other.example", [KEY], NOW)


@pytest.mark.parametrize(
    "address",
    [
        signed("SRS0={}=7Ue=xample.com=alice", "7U", "example.com", "alice"),
        signed("SRS0={}=0x=.example=alice", "0x", ".example", "alice"),
        signed("SRS0={}=7U=-e=alice", "7U", "-e", "alice"),
        signed("SRS1={}=a.exampl=e=h=t=b=c", "a.exampl", "e=h=t=b=c"),
        signed("SRS1={}=a..b==h=t=b=c", "a..b", "=h=t=b=c"),
    ],
)
def test_fields_shifted_under_a_true_hash_must_still_be_a_day_a_host_and_a_local_part(address: Address) -> None:
    with pytest.raises(SrsError, match="not an SRS address"):
        reverse(address, ALIAS, [KEY], NOW)
