"""A TCP proxy on loopback, between a client and a real server, that fails on demand.

    async with FaultProxy(server.port, Cut(Side.SERVER, after=10)) as proxy: ...  # the client connects to proxy.port

``fault`` is what becomes of every connection, or a function of its number, from 1 on. It may be changed meanwhile:

    None               everything passes
    Mute()             accepted, and nothing passes
    Slow(100)          so many octets a second pass, each way
    HalfClose(10)      after so many octets the server seems to send no more; it goes on to be sent what the client says
    Cut(side, 10)      after so many octets of that side both connections end
    AfterDot("close")  what a client says up to the final dot of a message passes; the answer to that is lost, and both
                       connections end ("reset": by RST), or nothing passes any more ("silence")

Where nobody listens is what ``refuse`` makes of it, until ``listen``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Literal

_READ_SIZE = 65536
_DOT = b"\r\n.\r\n"
#: Portions a second in which a slow connection passes what it may.
_PORTIONS = 20


class Side(Enum):
    """Whose octets are meant."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True)
class Mute:
    pass


@dataclass(frozen=True)
class Slow:
    rate: int


@dataclass(frozen=True)
class HalfClose:
    after: int


@dataclass(frozen=True)
class Cut:
    side: Side
    after: int
    reset: bool = False


@dataclass(frozen=True)
class AfterDot:
    """``strikes``: whether it does, with all that the client has said."""

    end: Literal["close", "reset", "silence"]
    strikes: Callable[[bytes], bool] = lambda said: True


Fault = Mute | Slow | HalfClose | Cut | AfterDot | None


class FaultProxy:
    """``server``: the port on 127.0.0.1. ``passed``: octets of each side, over all connections."""

    def __init__(self, server: int, fault: Fault | Callable[[int], Fault] = None) -> None:
        self.fault = fault
        self.port = 0
        self.connections = 0
        self.passed = dict.fromkeys(Side, 0)
        self._server = server
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """As a next hop."""
        return f"smtp://127.0.0.1:{self.port}"

    async def listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Connections are refused from now on; those that are open stay."""
        assert self._listener is not None
        self._listener.close()

    def drop(self) -> None:
        """End every connection that is open."""
        for task in self._tasks:
            task.cancel()

    async def __aenter__(self) -> FaultProxy:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        fault = self.fault(self.connections) if callable(self.fault) else self.fault
        try:
            if isinstance(fault, Mute):
                await _until_gone(reader)
            else:
                await self._relay(fault, reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the two is gone, or the test is over
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _relay(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server)
        line = _Line(self, fault)
        pumps = [
            asyncio.create_task(line.pump(Side.CLIENT, reader, server_writer)),
            asyncio.create_task(line.pump(Side.SERVER, server_reader, writer)),
        ]
        try:
            # What ends first with an exception ends all; an end of what one side says is none.
            await asyncio.gather(*pumps)
        except _End as end:
            if end.reset:
                _reset(writer)
                _reset(server_writer)
            if end.silence:
                await _cancelled(pumps)
                await _until_gone(reader)
        finally:
            await _cancelled(pumps)
            server_writer.close()


class _End(Exception):
    def __init__(self, *, reset: bool = False, silence: bool = False) -> None:
        super().__init__()
        self.reset, self.silence = reset, silence


class _Line:
    """One connection through the proxy."""

    def __init__(self, proxy: FaultProxy, fault: Fault) -> None:
        self._proxy = proxy
        self._fault = fault
        self._passed = dict.fromkeys(Side, 0)
        self._said = bytearray()  # by the client
        self._is_past_dot = False
        self._is_over = False  # what the client reads of the server

    async def pump(self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_SIZE):
            await self._pass(side, data, writer)
        if not self._is_over or side is Side.CLIENT:
            with contextlib.suppress(OSError):
                writer.write_eof()

    async def _pass(self, side: Side, data: bytes, writer: asyncio.StreamWriter) -> None:
        match self._fault:
            case Slow(rate):
                portion = max(1, rate // _PORTIONS)
                for start in range(0, len(data), portion):
                    await self._write(side, data[start : start + portion], writer)
                    await asyncio.sleep(portion / rate)
                return
            case HalfClose(after) if side is Side.SERVER:
                if not self._is_over:
                    await self._write(side, data[: after - self._passed[side]], writer)
                    self._is_over = self._passed[side] >= after
                    if self._is_over:
                        writer.write_eof()
                return
            case Cut(cut, after, reset) if cut is side:
                await self._write(side, data[: max(0, after - self._passed[side])], writer)
                if self._passed[side] >= after:
                    raise _End(reset=reset)
                return
            case AfterDot(end, strikes):
                if side is Side.CLIENT:
                    self._said += data
                    self._is_past_dot = _DOT in self._said[-len(data) - len(_DOT) :]
                elif self._is_past_dot and strikes(bytes(self._said)):
                    raise _End(reset=end == "reset", silence=end == "silence")
        await self._write(side, data, writer)

    async def _write(self, side: Side, data: bytes, writer: asyncio.StreamWriter) -> None:
        self._passed[side] += len(data)
        self._proxy.passed[side] += len(data)
        writer.write(data)
        await writer.drain()


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _until_gone(reader: asyncio.StreamReader) -> None:
    while await reader.read(_READ_SIZE):
        pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """Make the end of a connection a RST."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
