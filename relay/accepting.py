"""Listening sockets: how many connections may wait for us, and what happens when there is no descriptor for one.

An event loop's own server either closes such a connection (libuv), or tries to accept it as often as connections may
wait, with a traceback for the log each time (asyncio). Here it waits in the kernel until there is a descriptor again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import structlog

log = structlog.get_logger()

Listen = tuple[str, int] | socket.socket
Protocol = Callable[[], asyncio.BaseProtocol]

#: Connections that the kernel holds for us while the event loop is busy. One too many is dropped, and its client tries
#: again after a second, three, seven; but who is the last of very many waits as long for the others.
BACKLOG = 2048
#: Connections that are accepted in one turn of the loop at most. A turn is long while many sessions have something to
#: do, and a sender waits for all who came before him.
A_TURN = 16
#: Seconds until the next try, where the system had no descriptor or memory for a connection.
PAUSE = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: What the system says of an address that it does not have.
_ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
#: Seconds in which a client must have agreed upon TLS, and in which it must answer that we end it.
HANDSHAKE = 10.0
SHUTDOWN = 5.0


class Listener:
    """Accepts on one socket, which is its own, from now until it is closed: up to A_TURN connections in each turn."""

    def __init__(self, protocol: Protocol, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._tls: dict[str, Any] = {}
        if tls is not None:
            self._tls = {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE, "ssl_shutdown_timeout": SHUTDOWN}
        self._again: asyncio.TimerHandle | None = None
        self._adopting: set[asyncio.Task[None]] = set()
        self.socket = sock
        sock.setblocking(False)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(BACKLOG)  # one that was handed over listens already, as whoever made it wants it
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Connections that were accepted go on. May be called twice."""
        if self._again is not None:
            self._again.cancel()
        if self.socket.fileno() >= 0:
            self._loop.remove_reader(self.socket)
            self.socket.close()

    async def handed_over(self) -> None:
        """Until each connection that was accepted has its protocol, or is closed; behind TLS, after its handshake."""
        if self._adopting:
            await asyncio.wait(self._adopting)

    def _accept(self) -> None:
        for _ in range(A_TURN):
            try:
                accepted, _ = self.socket.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                return  # else nobody waits, the client is gone already (accept(2)), or another process has taken it
            accepted.setblocking(False)
            task = self._loop.create_task(self._adopt(accepted))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    def _pause(self, error: OSError) -> None:
        log.error("out of system resource, connections wait", error=error.strerror, seconds=PAUSE)
        self._loop.remove_reader(self.socket)
        self._again = self._loop.call_later(PAUSE, self._loop.add_reader, self.socket, self._accept)

    async def _adopt(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, accepted, **self._tls)
        except OSError:
            accepted.close()  # the client is gone, or does not agree upon TLS
        except BaseException:
            accepted.close()
            raise


async def serve(protocol: Protocol, listen: Sequence[Listen], tls: ssl.SSLContext | None = None) -> list[Listener]:
    """Listen on (host, port) pairs, port 0 for any free one, and on bound sockets, which become ours.

    Of a name that stands for several addresses, those count that this host has; a pair of a protocol that it does not
    have (IPv6) is passed over with a warning, unless there is no other. Raises OSError; then none is listened on.
    """
    listeners: list[Listener] = []
    absent: OSError | None = None
    try:
        for where in listen:
            try:
                sockets = await _sockets(where)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                absent = error
                log.warning("not listened on", address=where, error=error.strerror)
            else:
                listeners += [Listener(protocol, sock, tls) for sock in sockets]
        if absent is not None and not listeners:
            raise absent
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


async def _sockets(where: Listen) -> list[socket.socket]:
    """A bound socket for each address of it that this host has. Raises OSError; then none is left open."""
    if isinstance(where, socket.socket):
        return [where]
    found: list[socket.socket] = []
    absent: OSError | None = None
    with contextlib.ExitStack() as made:
        for family, address in await _addresses(*where):
            try:
                found.append(made.enter_context(socket.create_server(address, family=family, backlog=BACKLOG)))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error  # localhost is ::1, too, in /etc/hosts of hosts without IPv6
        if absent is not None and not found:
            raise absent
        made.pop_all()
    return found


async def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """What a name stands for here, each once."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
