"""Who the client is behind a proxy: of two headers the configured one is believed, and of it what our proxies wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from relay.config import Http, Limits
from tests.linear import linear
from tests.webapi_fixtures import serving
from webapi import hops
from webapi.context import CLIENTS, CONTEXT, Clients, client_of

PROXIES = ("127.0.0.0/8", "10.0.0.0/8", "2001:db8:aa::/48")
FORWARDED = "Forwarded"
XFF = "X-Forwarded-For"


def client(name: str, fields: Sequence[tuple[str, str]], peer: str = "127.0.0.1") -> str:
    """The client's address where the proxies write the header ``name`` and these header fields came."""
    http = Http.model_validate({"trusted_proxies": list(PROXIES), "proxy_header": name})
    request = Mock(spec=web.Request)
    request.remote = peer
    request.headers = CIMultiDictProxy(CIMultiDict(fields))
    request.app = {CONTEXT: Mock(http=http), CLIENTS: Clients(tuple(http.trusted_proxies), ())}
    return client_of(request).address


def forwarded(*values: str) -> str:
    return client(FORWARDED, [(FORWARDED, value) for value in values])


class TestForwarded:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([], "127.0.0.1"),
            (["for=198.51.100.7"], "198.51.100.7"),
            (["For=198.51.100.7;Proto=https;By=203.0.113.43"], "198.51.100.7"),
            (["proto=https; FOR=198.51.100.7 ; host=relay.example.com"], "198.51.100.7"),
            (["for=203.0.113.9, for=198.51.100.7"], "198.51.100.7"),
            (["for=198.51.100.7, for=10.1.2.3"], "198.51.100.7"),
            (["for=198.51.100.7,for=10.1.2.3;by=10.1.2.4"], "198.51.100.7"),
            (["for=203.0.113.9", "for=198.51.100.7, for=10.1.2.3"], "198.51.100.7"),
            (["for=203.0.113.9, for=198.51.100.7", "for=10.1.2.3"], "198.51.100.7"),
            (["for=10.1.2.3"], "10.1.2.3"),
            (['for="[2001:db8:cafe::17]:4711"'], "2001:db8:cafe::17"),
            (['for="[2001:db8:cafe::17]"'], "2001:db8:cafe::17"),
            (['for=198.51.100.7, for="[2001:db8:aa::1]:4711";proto=https'], "198.51.100.7"),
            (['for="198.51.100.7:47011"'], "198.51.100.7"),
            (['for="198.51.100.7:_port"'], "198.51.100.7"),
            (['for="\\198.51.100.7"'], "198.51.100.7"),
            (['for="[::ffff:198.51.100.7]"'], "198.51.100.7"),
            (["for=[2001:db8:cafe::17]:4711"], "2001:db8:cafe::17"),  # not RFC 7239, but seen
        ],
    )
    def test_the_last_hop_that_is_no_proxy_of_ours(self, values: list[str], expected: str) -> None:
        assert forwarded(*values) == expected

    @pytest.mark.parametrize(
        "element",
        [
            *(
                "for=unknown",
                "for=_hidden",
                'for="_SEVKISEK:4711"',
                "for=",
                'for=""',
                "proto=https",
                "",
                "198.51.100.7",
            ),
            *("for=198.51.100.7 for=198.51.100.8", "for=198.51.100.7;for=198.51.100.8", 'for="198.51.100.7'),
            *("for==198.51.100.7", "for=198.51.100.7=8", "=198.51.100.7", f"for={'1' * 200}", 'for="[198.51.100.7"x'),
        ],
    )
    def test_what_tells_no_address_ends_the_reading_at_the_hop_before(self, element: str) -> None:
        assert forwarded(f"for=203.0.113.9, {element}") == "127.0.0.1"
        assert forwarded(f"for=203.0.113.9, {element}, for=10.1.2.3") == "10.1.2.3"

    @pytest.mark.parametrize(
        "prefix", ['"', '\\"', '"\\', 'for="', 'for=";', 'a"b"c"', 'for="203.0.113.9, for=', "for=203.0.113.9;", "\\"]
    )
    def test_nothing_that_a_client_sends_hides_what_the_proxy_adds(self, prefix: str) -> None:
        assert forwarded(f'{prefix}, for="198.51.100.7:4711";proto=https') == "198.51.100.7"
        assert forwarded(f"{prefix}, for=198.51.100.7") == "198.51.100.7"
        assert forwarded(prefix, "for=198.51.100.7") == "198.51.100.7"

    @given(st.text(max_size=200))
    def test_no_text_before_it_changes_what_the_proxy_says(self, text: str) -> None:
        added = 'for="198.51.100.7:4711";proto=https'
        assert forwarded(f"{text},{added}") == "198.51.100.7"

    @given(st.text(alphabet='for=;,"\\[]:.127 _x', max_size=60))
    def test_no_text_is_too_strange(self, text: str) -> None:
        assert forwarded(text)

    def test_a_comma_in_a_quoted_string_divides_nothing(self) -> None:
        assert forwarded('for=198.51.100.7;ext="a, for=10.1.2.3, \\"b"') == "198.51.100.7"


class TestXForwardedFor:
    @pytest.mark.parametrize("value", ["for=198.51.100.7", '"198.51.100.7"', "_hidden", ""])
    def test_it_has_no_syntax_but_commas(self, value: str) -> None:
        assert client(XFF, [(XFF, value)]) == "127.0.0.1"

    def test_several_fields_are_one_list(self) -> None:
        assert client(XFF, [(XFF, "203.0.113.9"), (XFF, "198.51.100.7,10.0.0.1"), (XFF, "10.0.0.2")]) == "198.51.100.7"


@pytest.mark.parametrize(
    ("believed", "other", "real", "invented"),
    [(XFF, FORWARDED, "198.51.100.7", "for=203.0.113.9"), (FORWARDED, XFF, "for=198.51.100.7", "203.0.113.9")],
)
class TestTheOther:
    def test_a_header_that_our_proxies_do_not_write_is_ignored(
        self, believed: str, other: str, real: str, invented: str
    ) -> None:
        assert client(believed, [(believed, real), (other, invented)]) == "198.51.100.7"
        assert client(believed, [(other, invented)]) == "127.0.0.1"

    def test_a_peer_that_is_no_proxy_is_the_client_whatever_it_sends(
        self, believed: str, other: str, real: str, invented: str
    ) -> None:
        assert client(believed, [(believed, real), (other, invented)], peer="192.0.2.1") == "192.0.2.1"

    async def test_it_is_so_over_http(
        self, tmp_path: Path, believed: str, other: str, real: str, invented: str
    ) -> None:
        http = Http.model_validate({"trusted_proxies": ["127.0.0.0/8"], "proxy_header": believed})
        limits = Limits(exempt=(), binds_per_address_per_minute=1)
        async with serving(tmp_path, limits=limits, http=http) as api:
            assert (await api.bind(headers={believed: real, other: invented}))[0] == 200
            assert (await api.bind(headers={believed: real}))[0] == 429
            assert (await api.bind(headers={other: invented}))[0] == 200  # the proxy itself


class TestBounds:
    @pytest.mark.parametrize(("name", "hop"), [(XFF, "10.0.0.1"), (FORWARDED, "for=10.0.0.1")])
    def test_a_chain_of_ten_thousand_proxies_is_read_as_far_as_one_may_be_long(self, name: str, hop: str) -> None:
        endless = [(name, ", ".join([hop] * 100))] * 100
        assert client(name, [(name, "198.51.100.7"), *endless]) == "10.0.0.1"
        assert len(list(hops.read(name, [value for _, value in endless]))) == hops.MOST

    @pytest.mark.parametrize("name", [XFF, FORWARDED])
    @pytest.mark.parametrize("piece", [",", '"', "\\", '\\"', "for=", ";", "for=10.0.0.1,", 'for="', "; ", "a" * 50])
    def test_any_header_is_read_in_linear_time(self, name: str, piece: str) -> None:
        values = [piece * (1_000_000 // len(piece))]  # a hundred times what the server takes: quadratic work is hours
        with linear():
            found = list(hops.read(name, values))
        assert len(found) <= hops.MOST

    def test_a_hop_longer_than_any_address_is_none(self) -> None:
        assert client(XFF, [(XFF, "198.51.100.7%" + "z" * 5000)]) == "127.0.0.1"
