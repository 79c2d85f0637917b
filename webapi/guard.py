"""No webhook reaches the inside: the address that is really connected to is judged, whatever name led to it.

A URL can spell 127.0.0.1 in a dozen ways, and a name can resolve to a public address when it is looked at and to a
private one when it is used (DNS rebinding). So nothing is judged before the socket: aiohttp asks for a socket with
the very sockaddr that it will connect, and none is made for an address that is not public.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.connector import AddrInfoType

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# IPv6: global unicast is 2000::/3 (RFC 4291 §2.4). Everything else is unassigned, local, multicast or a wrapping of
# IPv4: v4-compatible ::/96, NAT64 64:ff9b::/96 and 64:ff9b:1::/48, SRv6 5f00::/16, site-local fec0::/10.
_UNICAST = ipaddress.IPv6Network("2000::/3")
# What ``is_global`` takes for public and is not.
_SPECIAL_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "168.63.129.16/32",  # the host of a virtual machine in Azure, which gives it its configuration
            "192.0.0.0/24",  # IETF protocol assignments (RFC 6890)
            "192.88.99.0/24",  # 6to4 relays (RFC 7526)
            "224.0.0.0/4",  # multicast
        ),
    )
)
_SPECIAL_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # IETF protocol assignments: Teredo wraps IPv4 (RFC 4380)
            "2002::/16",  # 6to4 wraps IPv4 (RFC 3056)
            "3fff::/20",  # documentation (RFC 9637)
        ),
    )
)


#: Octets of an answer that the system holds (Linux: twice that). The event loop stands still while aiohttp parses what
#: has come in, and thousands of 1xx answers fit into the quarter of a MiB that it would otherwise take at once.
RECEIVED = 16 * 1024
#: Octets that may come in on a connection between two times that something is sent: the answer that is read, its
#: header, and what TLS adds. A receiver could else send 1xx answers, or chunks' extensions, for all of an attempt.
MOST_RECEIVED = 256 * 1024


class _Bounded(socket.socket):
    """A socket on which an answer has an end. asyncio takes octets by ``recv``, and by ``recv_into`` behind TLS;
    it sends them by ``send`` and, since Python 3.12, ``sendmsg``.

    Other event loops may take its descriptor and go past this (relay/eventloop.py).
    """

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self._received = 0

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        self._received = 0
        return super().send(data, flags)

    def sendmsg(self, *arguments: Any) -> int:
        self._received = 0
        return super().sendmsg(*arguments)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(size, flags)
        self._count(len(data))
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        size = super().recv_into(buffer, nbytes, flags)
        self._count(size)
        return size

    def _count(self, octets: int) -> None:
        self._received += octets
        if self._received > MOST_RECEIVED:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the answer has no end")


class ForbiddenAddress(PermissionError):
    """The name or address leads to one that is not public. Says no address: what a name means inside is not told."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the host's address is not a public one (webhooks.allow_private_addresses)")


def is_forbidden(ip: str) -> bool:
    """Is this IP address (as in a sockaddr, IPv6 with or without a scope) any but a public unicast one?"""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return True
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            special = any(address in network for network in _SPECIAL_V6)
            return special or address not in _UNICAST or not address.is_global
        address = address.ipv4_mapped
    return not address.is_global or any(address in network for network in _SPECIAL_V4)


def guarded_connector(
    allow_private: bool, limit: int = 100, limit_per_host: int = 0, resolver: AbstractResolver | None = None
) -> aiohttp.TCPConnector:
    """A connector whose sockets go to public addresses only, or anywhere if ``allow_private``.

    At most ``limit`` connections in all and ``limit_per_host`` to one host and port, 0: any number. A refusal comes
    as aiohttp.ClientConnectorError with ForbiddenAddress as its ``os_error``. A ClientSession on it must leave
    ``trust_env`` off: a proxy from the environment would be connected in the host's place.

    Raises RuntimeError on an event loop on which answers would have no end.
    """
    if not isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        raise RuntimeError("requests to receivers are made on asyncio's own event loop")
    return aiohttp.TCPConnector(
        limit=limit,
        limit_per_host=limit_per_host,
        resolver=resolver,
        socket_factory=_socket if allow_private else _public_socket,
    )


def _public_socket(target: AddrInfoType) -> socket.socket:
    if is_forbidden(str(target[4][0])):
        raise ForbiddenAddress
    return _socket(target)


def _socket(target: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = target
    made = _Bounded(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)
    return made
