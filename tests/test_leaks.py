"""That the search for leaked secrets (leaks.py) would find one: else finding none would mean nothing."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from tests.leaks import leaks

SECRET = 'canary/of+the"mine=17'


@pytest.mark.parametrize(
    ("way", "written"),
    [
        ("plain", SECRET),
        ("plain", json.dumps({"answer": SECRET})),
        ("hex", SECRET.encode().hex()),
        ("hex", SECRET.encode().hex().upper()),
        ("url", quote(SECRET, safe="")),
        ("url", quote_plus(SECRET)),
        ("base64", base64.b64encode(SECRET.encode()).decode()),
        ("base64", base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")),
        ("base64", base64.b64encode(f"u:{SECRET}".encode()).decode()),
        ("base64", base64.b64encode(f"us:{SECRET}".encode()).decode()),
        ("base64", base64.b64encode(f"\0user\0{SECRET}".encode()).decode()),
        ("base64", base64.b64encode(f"u:{SECRET} and more".encode()).decode()),
    ],
)
def test_every_way_to_write_it_is_found(way: str, written: str) -> None:
    assert way in leaks(f"before {written} after", {"secret": SECRET})["secret"]


def test_octets_are_found_in_hex_and_base64() -> None:
    key = bytes(range(200, 232))
    assert leaks(f"x{key.hex()}y", {"key": key}) == {"key": ["hex"]}
    assert leaks(base64.b64encode(b"ab" + key).decode(), {"key": key})


def test_nothing_is_found_where_nothing_is() -> None:
    assert leaks("canary/of the mine, without its number", {"secret": SECRET}) == {}


def test_what_is_too_short_is_refused() -> None:
    with pytest.raises(AssertionError):
        leaks("", {"short": "short"})
