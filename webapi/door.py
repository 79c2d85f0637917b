"""How many connections there are at once, in all and of one network, how long each may take, and what is no HTTP.

Behind a web server all come from it, so proxies of ours are counted in all alone, as is who is exempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import structlog
from aiohttp import web

from webapi.context import CLIENTS, NOBODY, Clients
from webapi.problems import Problem

log = structlog.get_logger()

#: On every answer that does not say otherwise: nothing here is to be framed, guessed at, or to run anything.
SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)

#: Connections that are open at once; mail needs files, too. And those of one network (a /24, a /64).
CONNECTIONS = 1000
CONNECTIONS_PER_NETWORK = 200
#: Seconds in which a client must take what was sent to it, as far as more of it waits than the kernel holds.
UNREAD = 60.0
#: Seconds that a connection may be without a whole request, and in which the rest of a body is read that nobody wants.
IDLE_TIMEOUT = 60.0
LINGER = 5.0
#: What we call ourselves, without a version.
SERVER = "visit-relay"
#: How aiohttp handles requests. Bodies are not unpacked: nobody needs to pack what is this small, and a small one may
#: unpack to a large one.
HANDLING: dict[str, Any] = {"access_log": None, "auto_decompress": False}


def door(
    runner: web.AppRunner,
    most: int = CONNECTIONS,
    each: int = CONNECTIONS_PER_NETWORK,
    unread: float = UNREAD,
) -> Callable[[], asyncio.Protocol]:
    """The protocol factory of a runner that was set up."""
    server = runner.server
    assert server is not None
    house = _House(server, runner.app.get(CLIENTS) or Clients((), ()), most, each, unread)
    return lambda: _Guest(house)


class _Handler(web.RequestHandler):
    """What is no request is answered as every error is. aiohttp would log it as an error of ours, with the line that it
    could not read, which may hold anybody's cookie, and say that line and its own version to the client."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError) and (self.transport is None or self.transport.is_closing()):
            raise exc  # the client is gone, as clients go: nobody to tell, and nothing that the operator could mend
        if status == 500:  # past the middleware that catches everything
            log.error("http.failed", exc_info=exc)
        else:
            log.debug("http.no_request", ip=request.remote, error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        response = Problem(status, "this is no request that is understood here").response()
        response.headers.update({**dict(SECURITY_HEADERS), "Server": SERVER})
        response.force_close()
        return response


class _House:
    """Who is in, by network."""

    def __init__(self, server: web.Server, clients: Clients, most: int, each: int, unread: float) -> None:
        self.server = server
        self.unread = unread
        self._clients = clients
        self._most = most
        self._each = each
        self._inside: Counter[str] = Counter()

    def enter(self, address: str) -> str | None:
        """What to leave() by; None for one too many."""
        client = self._clients.known(address) or NOBODY
        network = "" if client.exempt or client.trusted else client.bucket
        if self._inside.total() >= self._most or (network and self._inside[network] >= self._each):
            return None
        self._inside[network] += 1
        return network

    def leave(self, network: str) -> None:
        self._inside[network] -= 1
        if not self._inside[network]:
            del self._inside[network]


class _Guest(asyncio.Protocol):
    """A connection: closed at once, or passed on to aiohttp's handler of requests."""

    _transport: asyncio.Transport
    _handler: asyncio.Protocol | None = None
    _network: str | None = None
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, house: _House) -> None:
        self._house = house

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        plain = transport.get_extra_info("socket")
        if plain is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # Little that waits in the transport, below the mark at which it says so, has no timer of ours.
            with contextlib.suppress(OSError):  # the client is gone already, as we are told in a moment
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._house.unread * 1000))
        peer = transport.get_extra_info("peername")
        self._network = self._house.enter(peer[0] if isinstance(peer, tuple) else "")
        if self._network is None:
            self._transport.abort()
            return
        self._handler = _Handler(
            self._house.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_TIMEOUT,
            lingering_time=LINGER,
            **HANDLING,
        )
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._handler is not None:
            self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._handler is None else self._handler.eof_received()

    def pause_writing(self) -> None:
        if self._handler is not None:
            self._handler.pause_writing()
            self._timer = asyncio.get_running_loop().call_later(self._house.unread, self._transport.abort)

    def resume_writing(self) -> None:
        self._stop_timer()
        if self._handler is not None:
            self._handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()
        if self._network is not None:
            self._house.leave(self._network)
        if self._handler is not None:
            # Who reads a body gets the error: by its kind he knows that the client is gone, by whatever fault of TLS.
            gone = error is None or isinstance(error, ConnectionError)
            self._handler.connection_lost(error if gone else ConnectionResetError(str(error)))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
