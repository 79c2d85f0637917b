"""The SMTP server: it listens, makes a Session of every connection, and stops without losing a message.

start   bind, or take the sockets handed over by systemd; from then on mail is accepted
stop    1. no new connections   2. who is between messages gets 421 4.3.2   3. messages in transit may end
        4. after the grace the rest gets 421 4.3.2, too, in the middle of its message: the client knows that it is to
           come again; what was past its final dot is still accepted, to its end, and answered first
        5. whoever is left then is cut off
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import structlog

from relay.accepting import Listen, Listener, serve
from relay.bodies import Bodies
from relay.core import reply
from relay.smtp_limits import Settings
from relay.smtp_service import Service, Tally
from relay.smtp_session import Session
from relay.smtp_stream import Over
from relay.smtp_transaction import Intake

log = structlog.get_logger()

#: Seconds that ``stop`` waits for acceptances under way after everything else has been sent away.
LAST_ACCEPTANCES = 10.0


class SmtpServer:
    """Serves ``intake`` on any number of addresses in the running event loop."""

    def __init__(self, intake: Intake, bodies: Bodies, settings: Settings) -> None:
        self._service = Service(intake, bodies, settings)
        self._listeners: list[Listener] = []

    async def start(self, listen: Sequence[Listen]) -> None:
        """Listen on (host, port) pairs, port 0 for any free one, and on bound sockets, which become ours.

        Raises OSError when one can't be had; then none is listened on.
        """
        self._listeners = await serve(self._session, listen)

    def configure(self, settings: Settings) -> None:
        """Sessions that begin from now on go by these settings."""
        self._service.configure(settings)

    async def stop(self, grace: float) -> None:
        """End every session; messages that are being received have ``grace`` seconds."""
        listeners = self._listeners.copy()
        self._close()
        for listener in listeners:
            await listener.handed_over()
        for session in list(self._service.sessions):
            session.stop()
        await self._wait(grace)
        for session in list(self._service.sessions):
            session.dismiss(Over("daemon stopping", reply.SHUTTING_DOWN))
        if await self._wait(LAST_ACCEPTANCES):
            log.error("SMTP sessions left behind at the stop", sessions=len(self._service.sessions))
            for session in list(self._service.sessions):
                session.abort()

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets, as long as the server listens."""
        return [listener.socket for listener in self._listeners]

    @property
    def ports(self) -> list[int]:
        return [sock.getsockname()[1] for sock in self.sockets]

    @property
    def connections(self) -> int:
        """Sessions that are open now, those being turned away included."""
        return len(self._service.sessions)

    @property
    def most_connections(self) -> int:
        """How many there may be by the limits as they are now."""
        return self._service.terms.settings.limits.connections

    @property
    def tally(self) -> Tally:
        return self._service.tally

    def _session(self) -> Session:
        return Session(self._service)

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def _wait(self, timeout: float) -> bool:
        """Whether sessions are left after ``timeout`` seconds."""
        tasks = {session.task for session in self._service.sessions}
        if not tasks:
            return False
        _, left = await asyncio.wait(tasks, timeout=timeout)
        return bool(left)
