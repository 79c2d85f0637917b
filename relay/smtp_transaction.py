"""What an SMTP session hands to the rest of the daemon, and what it asks of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from relay.bodies import Body
from relay.core.model import Address
from relay.core.reply import Reply

Recipient = Address | Literal["postmaster"]


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end. ``helo``: the name it gave, safe to print in a header field or a log ("?" for the rest).

    ``tls``: version and cipher ("TLSv1.3 TLS_AES_256_GCM_SHA384") or None. ``esmtp``: it greeted with EHLO, not HELO.
    ``session``: its name in the log.
    """

    ip: str
    helo: str
    tls: str | None
    esmtp: bool
    session: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Transaction:
    """A whole message with its envelope. ``mail_from`` is None for the null sender ``<>``.

    ``recipients``: each once, in the order given, with what ``Intake.route`` answered. ``head``: the first octets of
    the body in wire form, the header block in them. ``bare_lf``: bare LFs that were made CR LF.
    """

    client: Client
    mail_from: Address | None
    recipients: list[tuple[Recipient, object]]
    body: Body
    head: bytes
    bare_lf: int


class Refused(Exception):
    """What ``Intake`` raises to answer with a reply of its own.

    ``body_stays``: a body in a file is left where it is, for its row may have been committed all the same.
    """

    def __init__(self, reply: Reply, *, body_stays: bool = False) -> None:
        super().__init__(reply.line)
        self.reply = reply
        self.body_stays = body_stays


class Intake(Protocol):
    """What the rest of the daemon does for a session. An unexpected exception is answered with 451."""

    async def route(self, recipient: Recipient, mail_from: Address | None) -> object | None:
        """Where mail from ``mail_from`` (None: ``<>``) for ``recipient`` goes; None when nobody is there for it (550).

        Raises Refused.
        """

    def room(self, size: int) -> bool:
        """Whether the disk has room for a message of ``size`` octets (0: not said), asked at MAIL; False is 452."""

    async def accept(self, transaction: Transaction) -> str:
        """Take the message, durably, and return our id of it. Raises Refused: then nothing of it was kept.

        Never cancelled because the client went away. After any other exception, and after Refused with
        ``body_stays``, a body in a file stays where it is, for nobody knows whether its row was committed; the sweep
        for orphans decides.
        """
