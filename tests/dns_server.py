"""A real DNS server on loopback, UDP and TCP on one port, that answers from a table.

    async with DnsServer({("example.com", "MX"): ["10 mx.example.com."]}) as dns:
        Resolver([dns.address])

A name with no entry at all is NXDOMAIN; a name with entries of other types is NODATA. A name can also be given a
``Fault``. CNAMEs are followed inside the table, in a circle too. The table may be changed while the server runs.
"""

from __future__ import annotations

import asyncio
import struct
from enum import Enum
from types import TracebackType
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

_MAX_CHAIN = 8


class Fault(Enum):
    SERVFAIL = "servfail"
    REFUSED = "refused"
    YXDOMAIN = "yxdomain"
    SILENT = "silent"  # the question is read and never answered
    LAME = "lame"  # the server knows nothing of the name and refers to others, with no error
    FOREIGN = "foreign"  # the answer is to another question
    GARBAGE = "garbage"  # the answer is no DNS message
    TRUNCATED = "truncated"  # UDP answers carry TC and nothing else, TCP the records of the real entry "name/type/tcp"


Key = tuple[str, str]
Table = dict[Key, list[str] | Fault]


class DnsServer:
    """``table``: (lower-case name without final dot, type) → records in zone file form, or a Fault.

    A truncated entry's records stand under (name, type + "/tcp"). ``queries`` lists what was asked: (name, type,
    "udp" or "tcp"). ``ttl``: seconds, of records and of negative answers. ``slowness``: seconds until an answer over
    UDP.
    """

    def __init__(self, table: Table | None = None, *, ttl: int = 300, slowness: float = 0.0) -> None:
        self.table: Table = dict(table or {})
        self.ttl = ttl
        self.slowness = slowness
        self.queries: list[tuple[str, str, str]] = []
        self.address = ""
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> DnsServer:
        loop = asyncio.get_running_loop()
        for _ in range(20):  # the free TCP port may be taken for UDP
            self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", 0)
            port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), ("127.0.0.1", port))
            except OSError:
                self._tcp.close()
                continue
            self.address = f"127.0.0.1:{port}"
            return self
        raise OSError("no port is free for both UDP and TCP")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._udp is not None
        assert self._tcp is not None
        self._udp.close()
        self._tcp.close()
        for task in self._sessions:
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        await self._tcp.wait_closed()

    def answer(self, wire: bytes, over: str) -> bytes | None:
        """The response to one query, or None for silence."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, rdtype = _text(question.name), dns.rdatatype.to_text(question.rdtype)
        self.queries.append((name, rdtype, over))
        response = dns.message.make_response(query, recursion_available=True)
        entry = self._entry(name, rdtype, over)
        if entry is Fault.SILENT:
            return None
        if isinstance(entry, Fault):
            return _faulty(response, entry)
        self._fill(response, name, rdtype, over)
        return response.to_wire(max_size=65535)

    def _entry(self, name: str, rdtype: str, over: str) -> list[str] | Fault | None:
        entry = self.table.get((name, rdtype))
        if entry is Fault.TRUNCATED and over == "tcp":
            return self.table[name, rdtype + "/tcp"]
        return entry

    def _fill(self, response: dns.message.Message, name: str, rdtype: str, over: str) -> None:
        for _ in range(_MAX_CHAIN):
            entry = self._entry(name, rdtype, over)
            if isinstance(entry, list) and entry:
                response.answer.append(dns.rrset.from_text(name + ".", self.ttl, "IN", rdtype, *entry))
                return
            alias = self.table.get((name, "CNAME"))
            if not isinstance(alias, list):
                break
            response.answer.append(dns.rrset.from_text(name + ".", self.ttl, "IN", "CNAME", *alias))
            name = alias[0].rstrip(".").lower()
        if not any(known == name for known, _ in self.table):
            response.set_rcode(dns.rcode.NXDOMAIN)
        soa = f"ns.test. root.test. 1 3600 600 86400 {self.ttl}"
        response.authority.append(dns.rrset.from_text(".", self.ttl, "IN", "SOA", soa))

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                response = self.answer(await reader.readexactly(length), "tcp")
                if response is not None:
                    writer.write(struct.pack("!H", len(response)) + response)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            self._sessions.discard(task)
            writer.close()


def _faulty(response: dns.message.Message, fault: Fault) -> bytes:
    match fault:
        case Fault.TRUNCATED:
            response.flags |= dns.flags.TC
        case Fault.LAME:
            response.flags &= ~dns.flags.RA
            response.authority.append(dns.rrset.from_text(".", 3600, "IN", "NS", "a.root-servers.test."))
        case Fault.FOREIGN:
            response.question = [dns.rrset.from_text("elsewhere.test.", 0, "IN", "A")]
            response.answer.append(dns.rrset.from_text("elsewhere.test.", 300, "IN", "A", "127.0.0.1"))
        case Fault.GARBAGE:
            return response.to_wire()[:2] + b"nonsense"
        case _:
            response.set_rcode(dns.rcode.from_text(fault.value.upper()))
    return response.to_wire()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = self._server.answer(data, "udp")
        if response is not None:
            asyncio.get_running_loop().call_later(self._server.slowness, self._send, response, addr)

    def _send(self, response: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(response, addr)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
