"""What comes in: a message as it was received, and whom it is for."""

from __future__ import annotations

from dataclasses import dataclass

from relay.store.routes import Route


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it was received; header fields as core/message.py read them.

    ``identified``: a Date or a Message-ID tells it from the next one of the same words.
    """

    received_at: float
    written_at: float
    mail_from: str
    sender: str
    subject: str | None
    message_id: str | None
    in_reply_to: str | None
    references: tuple[str, ...]
    size: int
    stored_size: int
    data: bytes | None
    file: str | None
    cut: tuple[tuple[int, int], ...]
    digest: bytes
    ip: str
    helo: str
    tls: str | None
    esmtp: bool
    automatic: str | None
    bounce: bool
    bare_lf: int
    identified: bool = True


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT. ``next_hop`` is the target's own, sealed, or None for the configured one.

    ``route`` is None for mail to the operator (postmaster, abuse).

    ``forward_to`` is empty for a return path of ours: such mail is collected, it goes no further.
    """

    address: str
    route: Route | None
    tag: str | None
    forward_to: str
    next_hop: str | None
    destination: str
