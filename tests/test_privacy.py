"""relay/core/privacy.py: of a visitor's address, what was asked for is kept and no bit more."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.model import IpDetail
from relay.core.privacy import kept_ip


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("198.51.100.207", "198.51.100.0"),
        ("198.51.100.0", "198.51.100.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("2001:db8::1", "2001:db8::"),
        ("::ffff:198.51.100.207", "198.51.100.0"),
        ("fe80::1%eth0", "fe80::"),
        ("2002:c633:64cf::1", "2002:c633:6400::"),  # 6to4: 198.51.100.207 stands in it
        ("127.0.0.1", "127.0.0.0"),
    ],
)
def test_of_a_network_the_first_24_or_48_bits_are_kept(ip: str, network: str) -> None:
    assert kept_ip(ip, IpDetail.NETWORK) == network


@given(st.ip_addresses())
def test_the_bits_that_tell_machines_apart_are_zero(ip: IPv4Address | IPv6Address) -> None:
    kept = kept_ip(str(ip), IpDetail.NETWORK)
    assert kept is not None
    address = ip_address(kept)
    assert int(address) & (0xFF if address.version == 4 else (1 << 80) - 1) == 0
    assert kept_ip(kept, IpDetail.NETWORK) == kept


def test_full_keeps_the_address_as_it_is() -> None:
    assert kept_ip("2001:db8::1", IpDetail.FULL) == "2001:db8::1"


def test_none_keeps_nothing() -> None:
    assert kept_ip("198.51.100.7", IpDetail.NONE) is None


@pytest.mark.parametrize("detail", IpDetail)
def test_of_nobody_nothing_is_kept(detail: IpDetail) -> None:
    assert kept_ip(None, detail) is None


@pytest.mark.parametrize("text", ["", "unknown", "198.51.100.7:80", "198.51.100.7, 203.0.113.9"])
def test_what_is_no_address_cannot_be_cut_and_is_not_kept(text: str) -> None:
    assert kept_ip(text, IpDetail.NETWORK) is None
