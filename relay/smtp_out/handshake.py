"""From an address to a Session: connect, greeting, EHLO, STARTTLS (RFC 3207), AUTH (RFC 4954)."""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from base64 import b64encode
from dataclasses import dataclass, field, replace

from relay.core.nexthop import Tls
from relay.core.outcome import Stage
from relay.smtp_out.connection import Connection, NoReply, TlsError, reason
from relay.smtp_out.replies import Reply
from relay.smtp_out.session import Extensions, Session, Timeouts

#: Exim leaves what comes after the tenth message of a connection to its next queue run, in half an hour, unless it is
#: told otherwise (smtp_accept_queue_per_connection).
EXIM, EXIM_MESSAGES = re.compile(r"\bESMTP Exim\b"), 10
_SIZE = re.compile(r"[0-9]{1,20}")  # RFC 1870 §4


class NoSession(Exception):
    """No session came about. ``code`` is None when the next hop gave no reply."""

    def __init__(self, stage: Stage, code: int | None, text: str) -> None:
        super().__init__(text)
        self.stage, self.code, self.text = stage, code, text


@dataclass(frozen=True, slots=True)
class Target:
    """One address of one host, and what a session there needs. ``host`` is the name that a certificate must have."""

    host: str
    address: str
    port: int
    tls: Tls
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """`mail.example.com[192.0.2.1]:25`, or `[192.0.2.1]:25` where no name is known."""
        return f"{'' if self.host == self.address else self.host}[{self.address}]:{self.port}"


class Handshake:
    """How this host opens sessions.

    ``hostname`` goes into EHLO. ``verified`` is the TLS context that checks certificates, ``opportunistic`` the one
    that takes any. ``connections`` holds every connection that is open.
    """

    def __init__(
        self, hostname: str, timeouts: Timeouts, verified: ssl.SSLContext, opportunistic: ssl.SSLContext
    ) -> None:
        self.connections: set[Connection] = set()
        self._hello = f"{hostname}\r\n".encode("ascii")
        self._timeouts = timeouts
        self._verified = verified
        self._opportunistic = opportunistic

    async def open(self, target: Target) -> Session:
        """A session that is ready for MAIL.

        Opportunistic TLS that fails is followed by one connection without: mail that went in clear has arrived.

        :raises NoSession: with the stage at which it ended.
        """
        try:
            return await self._open(target)
        except NoSession as error:
            if target.tls != "opportunistic" or error.stage is not Stage.TLS:
                raise
            return await self._open(replace(target, tls="none"))

    async def _open(self, target: Target) -> Session:
        connection = await self._connect(target)
        try:
            if target.tls == "implicit":
                await self._start_tls(connection, target)
            greeting = await _ask(connection, Stage.GREETING, b"", self._timeouts.greeting)
            _require(greeting.code // 100 == 2, Stage.GREETING, greeting)
            extensions = await self._say_hello(connection)
            if target.tls == "starttls" and not extensions.starttls:
                raise NoSession(Stage.TLS, None, "the next hop does not offer STARTTLS")
            if target.tls in ("starttls", "opportunistic") and extensions.starttls:
                reply = await _ask(connection, Stage.TLS, b"STARTTLS\r\n", self._timeouts.ehlo)
                _require(reply.code == 220, Stage.TLS, reply)
                await self._start_tls(connection, target)
                extensions = await self._say_hello(connection)  # RFC 3207 §4.2: what was said before is void
            if target.user is not None and target.password is not None:
                await self._log_in(connection, extensions, target.user, target.password)
        except NoSession:
            connection.quit()  # cuts it at once where nobody listens any more
            raise
        except BaseException:
            connection.abort()
            raise
        left = EXIM_MESSAGES if EXIM.search(greeting.text) else math.inf
        return Session(connection, target.label, extensions, self._timeouts, left)

    async def _connect(self, target: Target) -> Connection:
        connection, connected = Connection(self.connections), False
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await asyncio.get_running_loop().create_connection(lambda: connection, target.address, target.port)
                connected = True
        except TimeoutError:
            raise NoSession(Stage.CONNECT, None, f"no answer in {self._timeouts.connect:g} s") from None
        except OSError as error:
            raise NoSession(Stage.CONNECT, None, reason(error)) from None
        finally:
            if not connected:
                connection.disown()
        return connection

    async def _start_tls(self, connection: Connection, target: Target) -> None:
        context = self._opportunistic if target.tls == "opportunistic" else self._verified
        try:
            await connection.start_tls(context, target.host, self._timeouts.tls)
        except TlsError as error:
            raise NoSession(Stage.TLS, None, str(error)) from None

    async def _say_hello(self, connection: Connection) -> Extensions:
        """EHLO, or HELO where EHLO is not known (RFC 5321 §3.2)."""
        reply = await _ask(connection, Stage.EHLO, b"EHLO " + self._hello, self._timeouts.ehlo)
        if reply.code in (500, 502):
            reply = await _ask(connection, Stage.EHLO, b"HELO " + self._hello, self._timeouts.ehlo)
            _require(reply.code // 100 == 2, Stage.EHLO, reply)
            return Extensions()
        _require(reply.code // 100 == 2, Stage.EHLO, reply)
        return _extensions(reply)

    async def _log_in(self, connection: Connection, extensions: Extensions, user: str, password: str) -> None:
        plain = b64encode(f"\0{user}\0{password}".encode())
        secret = b64encode(password.encode())
        if "PLAIN" in extensions.auth:
            steps = [b"AUTH PLAIN " + plain]
        elif "LOGIN" in extensions.auth:
            steps = [b"AUTH LOGIN", b64encode(user.encode()), secret]
        else:
            offers = ", ".join(sorted(extensions.auth)) or "nothing"
            raise NoSession(Stage.AUTH, None, f"the next hop offers {offers}, and we know PLAIN and LOGIN")
        for step in steps:
            reply = await _ask(connection, Stage.AUTH, step + b"\r\n", self._timeouts.auth)
            expected = 235 if step is steps[-1] else 334
            if reply.code != expected:
                # Some servers quote the command they refuse.
                text = reply.summary(plain.decode(), secret.decode(), password)
                raise NoSession(Stage.AUTH, reply.code, text)


def unverified() -> ssl.SSLContext:
    """For opportunistic TLS (RFC 7435): any certificate is better than no encryption."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _ask(connection: Connection, stage: Stage, command: bytes, timeout: float) -> Reply:
    if command:
        connection.write(command)
    try:
        return await connection.reply(timeout)
    except NoReply as error:
        raise NoSession(stage, None, str(error)) from None


def _require(accepted: bool, stage: Stage, reply: Reply) -> None:
    if not accepted:
        raise NoSession(stage, reply.code, reply.text)


def _extensions(reply: Reply) -> Extensions:
    keywords: set[str] = set()
    auth: frozenset[str] = frozenset()
    size: int | None = None
    for line in reply.lines[1:]:
        words = line.decode("ascii", "replace").upper().replace("AUTH=", "AUTH ", 1).split()  # AUTH=: old Exchange
        if words:
            keywords.add(words[0])
            if words[0] == "AUTH":
                auth |= frozenset(words[1:])
            if words[0] == "SIZE":
                named = words[1] if len(words) > 1 else ""
                size = int(named) if _SIZE.fullmatch(named) else 0
    return Extensions(
        "PIPELINING" in keywords,
        size,
        "8BITMIME" in keywords,
        "STARTTLS" in keywords,
        "SMTPUTF8" in keywords,
        auth,
    )
