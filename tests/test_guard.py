"""webapi/guard.py: no spelling, no name and no resolver gets a connection to an address that is not public."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from relay import eventloop
from webapi.guard import MOST_RECEIVED, RECEIVED, ForbiddenAddress, _Bounded, guarded_connector, is_forbidden

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)

FORBIDDEN_V4 = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254"),
    "168.63.129.16",
    *("100.64.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
]
FORBIDDEN_V6 = [
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::"),
    *("100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fe80::1", "fec0::1"),
    "ff02::1",
]
OUTSIDE = ["93.184.216.34", "2606:4700::1111"]
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "192.0.1.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"]


def spellings(address: str) -> list[str]:
    """Nine ways to write an address as the host of a URL."""
    if ":" in address:
        value = ipaddress.IPv6Address(address)
        groups = value.exploded.split(":")
        low = ipaddress.IPv4Address(int(value) & 0xFFFFFFFF)
        dotted = ":".join(groups[:6]) + f":{low}"
        forms = [address, value.exploded, address.upper(), value.exploded.upper(), str(value), dotted]
        forms += [":".join(group.lstrip("0") or "0" for group in groups), f"{value}%25lo", f"{value}%251"]
        return [f"[{form}]" for form in forms]
    value4 = int(ipaddress.IPv4Address(address))
    a, b, c, d = address.split(".")
    return [
        address,
        address + ".",
        str(value4),
        hex(value4),
        "0" + oct(value4)[2:],
        f"{a}.{b}.{int(c) * 256 + int(d)}",
        f"0x{int(a):x}.{b}.0{int(c):o}.{d}",
        f"[::ffff:{address}]",
        f"[::ffff:{value4 >> 16:x}:{value4 & 0xFFFF:x}]",
    ]


@dataclass
class Inside:
    """A web server on loopback that nobody may reach, and every attempt of this process to connect anywhere.

    An attempt to connect any other machine is noted and refused: tests have no network.
    """

    port: int
    accepted: list[str] = field(default_factory=list)
    attempts: list[tuple[str, int]] = field(default_factory=list)

    def outside(self) -> set[str]:
        """The addresses of the attempts, of which none was to the inside."""
        assert self.accepted == []
        tried = {address[0] for address in self.attempts}
        assert not any(is_forbidden(address) for address in tried)
        return tried


def reaches_this_machine(ip: str) -> bool:
    address = ipaddress.ip_address(ip.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


@pytest_asyncio.fixture
async def inside(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inside]:
    found = Inside(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.accepted.append(str(writer.get_extra_info("sockname")[0]))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    loop = asyncio.get_running_loop()
    real = loop.sock_connect

    async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
        found.attempts.append(address)
        if not reaches_this_machine(address[0]):
            raise ConnectionRefusedError("no network in tests")
        await real(sock, address)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as v4:
        found.port = v4.sockets[0].getsockname()[1]
        async with await asyncio.start_server(answer, "::1", found.port):
            yield found


async def get(url: str, allow_private: bool = False, resolver: AbstractResolver | None = None) -> str:
    connector = guarded_connector(allow_private, resolver=resolver)
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url, allow_redirects=False) as answer:
        return await answer.text()


@pytest.mark.parametrize("address", FORBIDDEN_V4 + FORBIDDEN_V6)
async def test_no_spelling_of_an_inside_address_is_connected(inside: Inside, address: str) -> None:
    hosts = spellings(address)
    for host in hosts:
        with pytest.raises((aiohttp.ClientError, ValueError)):
            await get(f"http://{host}:{inside.port}/")
    assert len(set(hosts)) >= 5
    assert len(hosts) == 9
    assert (inside.accepted, inside.attempts) == ([], [])


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "[::ffff:127.0.0.1]"])
async def test_they_are_connected_when_private_addresses_are_allowed(inside: Inside, host: str) -> None:
    assert await get(f"http://{host}:{inside.port}/", allow_private=True) == "ok"
    assert len(inside.accepted) == 1


async def test_a_refusal_says_so_and_tells_no_address(inside: Inside) -> None:
    with pytest.raises(aiohttp.ClientConnectorError, match="not a public one") as refusal:
        await get(f"http://localhost:{inside.port}/")
    assert isinstance(refusal.value.os_error, ForbiddenAddress)
    assert isinstance(refusal.value.os_error, OSError)
    assert "127.0.0.1" not in str(refusal.value.os_error)
    assert inside.attempts == []


class Rebinding(AbstractResolver):
    """Answers each question for the name with the next of its answers."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in self._answers.pop(0)
        ]

    async def close(self) -> None:
        pass


async def test_a_name_that_was_public_when_it_was_looked_at_is_judged_again_when_it_is_connected(
    inside: Inside,
) -> None:
    resolver = Rebinding(["93.184.216.34"], ["127.0.0.1"])
    (looked_at,) = await resolver.resolve("rebind.example", inside.port)
    assert not is_forbidden(looked_at["host"])
    with pytest.raises(aiohttp.ClientConnectorError) as refusal:
        await get(f"http://rebind.example:{inside.port}/", resolver=resolver)
    assert isinstance(refusal.value.os_error, ForbiddenAddress)
    assert (inside.accepted, inside.attempts) == ([], [])


@pytest.mark.parametrize("address", FORBIDDEN_V4 + FORBIDDEN_V6)
async def test_of_32_addresses_in_9_spellings_by_3_ways_none_is_connected(inside: Inside, address: str) -> None:
    """The product: 32 addresses x 9 spellings x 3 ways by which a name leads to them, 864 in all, 0 connections.

    The ways: the name means the address; it means a public one at the first post and the address at the next
    (rebinding); it means public ones and the address at once, in any order. A resolver may answer in any spelling, as a
    URL may have any (above).
    """
    ways = 0
    for spelling in spellings(address):
        answer = unquote(spelling.strip("[]"))
        with pytest.raises(aiohttp.ClientError) as refusal:
            await get("http://inside.example/", resolver=Rebinding([answer]))
        assert isinstance(getattr(refusal.value, "os_error", None), ForbiddenAddress)
        assert inside.attempts == []

        rebinding = Rebinding(["93.184.216.34"], [answer])
        for expected in ({"93.184.216.34"}, set()):
            inside.attempts.clear()
            with pytest.raises(aiohttp.ClientConnectorError):
                await get("http://rebind.example/", resolver=rebinding)
            assert inside.outside() == expected

        for mix in ([answer, *OUTSIDE], [*OUTSIDE, answer], [OUTSIDE[0], answer, OUTSIDE[1]]):
            inside.attempts.clear()
            with pytest.raises(aiohttp.ClientConnectorError):
                await get("http://mix.example/", resolver=Rebinding(mix))
            assert inside.outside() == set(OUTSIDE)
        inside.attempts.clear()
        ways += 3
    assert ways * len(FORBIDDEN_V4 + FORBIDDEN_V6) == 864


async def test_a_name_with_several_inside_addresses_is_refused_with_the_same_words(inside: Inside) -> None:
    resolver = Rebinding(["127.0.0.1", "::1", "10.0.0.1", "::ffff:127.0.0.1"])
    with pytest.raises(aiohttp.ClientConnectorError) as refusal:
        await get(f"http://many.example:{inside.port}/", resolver=resolver)
    assert isinstance(refusal.value.os_error, ForbiddenAddress)
    assert (inside.accepted, inside.attempts) == ([], [])


async def test_a_public_address_is_let_through_to_the_socket(inside: Inside) -> None:
    with pytest.raises(aiohttp.ClientConnectorError):
        await get("http://outside.example:81/", resolver=Rebinding(["127.0.0.1", "93.184.216.34"]))
    assert set(inside.attempts) == {("93.184.216.34", 81)}


async def test_a_proxy_of_the_environment_is_not_used(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
    with pytest.raises(aiohttp.ClientConnectorError):
        await get("http://192.0.2.1/")
    assert (inside.accepted, inside.attempts) == ([], [])


async def test_the_limits_of_connections_are_the_callers() -> None:
    async with guarded_connector(False, limit=7, limit_per_host=2) as connector:
        assert (connector.limit, connector.limit_per_host) == (7, 2)


@pytest.mark.parametrize("allow_private", [True, False])
async def test_little_of_an_answer_is_taken_at_once(
    inside: Inside, allow_private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
        taken.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        await connect(sock, address)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    monkeypatch.setattr("webapi.guard.is_forbidden", lambda address: False)
    assert await get(f"http://127.0.0.1:{inside.port}/", allow_private) == "ok"
    assert len(taken) == 1
    assert taken[0] <= 2 * RECEIVED


def exchange(count: int, ask: Callable[[socket.socket], object]) -> None:
    """So many answers of 64 KiB on one connection; ``ask`` is called before each."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        _Bounded(socket.AF_INET, socket.SOCK_STREAM, 0) as client,
    ):
        client.connect(server.getsockname())
        receiver, _ = server.accept()
        with receiver:
            for _ in range(count):
                ask(client)
                for _ in range(64):
                    receiver.sendall(bytes(1024))
                    assert client.recv(1024, socket.MSG_WAITALL)


REQUESTS: list[Callable[[socket.socket], object]] = [
    lambda client: client.send(b"request"),
    lambda client: client.sendmsg([b"header", b"body"]),
]


@pytest.mark.parametrize("ask", REQUESTS, ids=["send", "sendmsg"])
def test_each_request_on_a_connection_may_have_its_answer(ask: Callable[[socket.socket], object]) -> None:
    exchange(2 * MOST_RECEIVED // 65_536, ask)


def test_an_answer_without_an_end_is_cut_off() -> None:
    exchange(MOST_RECEIVED // 65_536, lambda client: None)
    with pytest.raises(ConnectionAbortedError, match="no end"):
        exchange(MOST_RECEIVED // 65_536 + 1, lambda client: None)


@pytest.mark.parametrize("address", FORBIDDEN_V4 + FORBIDDEN_V6 + [f"::ffff:{address}" for address in FORBIDDEN_V4])
def test_an_address_that_is_not_public_is_forbidden(address: str) -> None:
    assert is_forbidden(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not_forbidden(address: str) -> None:
    assert not is_forbidden(address)


@pytest.mark.parametrize("address", ["", "localhost", "127.1", "1.2.3.4.5", "fe80::1%lo"])
def test_what_is_no_address_or_has_a_local_scope_is_forbidden(address: str) -> None:
    assert is_forbidden(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_the_same_when_it_is_mapped(address: ipaddress.IPv4Address) -> None:
    assert is_forbidden(str(address)) == is_forbidden(f"::ffff:{address}")


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_that_python_calls_private_is_let_through(address: ipaddress.IPv4Address) -> None:
    assert is_forbidden(str(address)) or address.is_global


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_outside_of_global_unicast_is_let_through(address: ipaddress.IPv6Address) -> None:
    unicast = address in ipaddress.IPv6Network("2000::/3") and address.is_global
    assert is_forbidden(str(address)) or unicast or address.ipv4_mapped is not None


async def test_an_event_loop_that_goes_past_its_sockets_is_refused() -> None:
    with pytest.raises(RuntimeError, match="asyncio's own"):
        await asyncio.to_thread(lambda: eventloop.run(made()))


async def made() -> None:
    guarded_connector(True)
