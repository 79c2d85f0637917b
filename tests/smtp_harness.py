"""A real SmtpServer on loopback with an intake that remembers what it took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.bodies import Bodies
from relay.core.model import Address
from relay.smtp_in import SmtpServer
from relay.smtp_limits import Limits, Settings
from relay.smtp_session import Session
from relay.smtp_transaction import Recipient, Transaction
from tests.smtp_client import PATIENCE

#: Limits that spare nobody: loopback is exempt by default.
STRICT = Limits(exempt=())


@dataclass
class Recorder:
    """Knows every recipient whose local part doesn't begin with "unknown", and takes every message."""

    bodies: Bodies
    transactions: list[Transaction] = field(default_factory=list)
    wires: list[bytes] = field(default_factory=list)
    asked: list[Recipient] = field(default_factory=list)
    rooms: list[int] = field(default_factory=list)
    has_room: bool = True
    #: Raised by the next calls, where set.
    route_error: Exception | None = None
    accept_error: Exception | None = None
    #: Set when accept() is entered; it goes on when ``go`` is set.
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.go.set()

    async def route(self, recipient: Recipient, mail_from: Address | None) -> object | None:
        self.asked.append(recipient)
        if self.route_error is not None:
            raise self.route_error
        if not isinstance(recipient, str) and recipient.local.startswith("unknown"):
            return None
        return f"route of {recipient}"

    def room(self, size: int) -> bool:
        self.rooms.append(size)
        return self.has_room

    async def accept(self, transaction: Transaction) -> str:
        self.entered.set()
        await self.go.wait()
        if self.accept_error is not None:
            raise self.accept_error
        body = transaction.body
        self.transactions.append(transaction)
        self.wires.append(body.data if body.data is not None else self.bodies.read(body.file or ""))
        return f"m{len(self.transactions)}"


@dataclass
class Served:
    server: SmtpServer
    recorder: Recorder
    directory: Path

    @property
    def port(self) -> int:
        return self.server.ports[0]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())

    async def written(self) -> None:
        """Until no thread writes any more, and what it wrote for nothing is removed. Nothing can be received then."""
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)  # the callbacks of its last writes

    async def no_files(self) -> None:
        """Until no file is left: threads remove what is refused or given up, once it is written."""
        async with asyncio.timeout(PATIENCE):
            while self.files():
                await asyncio.sleep(0.001)

    async def empty(self) -> None:
        """Until no session is left."""
        async with asyncio.timeout(PATIENCE):
            while tasks := [session.task for session in self.server._service.sessions]:
                await asyncio.wait(tasks)


@asynccontextmanager
async def serving(directory: Path, limits: Limits | None = None, **settings: Any) -> AsyncIterator[Served]:
    """A server for "mx.test", stopped without grace at the end."""
    bodies = Bodies(directory / "bodies")
    bodies.prepare()
    recorder = Recorder(bodies)
    server = SmtpServer(recorder, bodies, Settings("mx.test", limits=limits or Limits(), **settings))
    await server.start([("127.0.0.1", 0)])
    try:
        yield Served(server, recorder, directory / "bodies")
    finally:
        recorder.go.set()
        await server.stop(0)


class Fed:
    """Tells when a server's sessions have been handed so many octets: TCP must not join what a test keeps apart."""

    def __init__(self, monkeypatch: Any) -> None:
        self.octets = 0
        self._more = asyncio.Event()
        original: Callable[[Session, bytes], None] = Session.data_received

        def data_received(session: Session, data: bytes) -> None:
            original(session, data)
            self.octets += len(data)
            self._more.set()

        monkeypatch.setattr(Session, "data_received", data_received)

    async def reach(self, octets: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.octets < octets:
                self._more.clear()
                await self._more.wait()
