"""The company's mailbox: an SMTP server for example.com that shows what it gets.

It is the daemon's own SMTP server (relay/smtp_in.py) with another intake behind it, on a port of its own: the daemon
reaches it as it would reach any next hop.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from relay.bodies import Bodies
from relay.core.mimetext import header_text
from relay.core.model import Address
from relay.core.wire import unstuff
from relay.demo.board import Board
from relay.demo.settings import HOSTNAME, MAIL_DOMAIN
from relay.extract_worker import extract
from relay.smtp_transaction import Recipient, Transaction

#: Octets of a header block, and characters of a text, that the page is given.
HEADER_SHOWN = 32 * 1024
TEXT_SHOWN = 8 * 1024

_FIELD_END = re.compile(rb"\r\n(?![ \t])")


class Mailbox:
    """Takes every mail for example.com (relay/smtp_transaction.py, Intake) and puts it on the board."""

    def __init__(self, board: Board, bodies: Bodies) -> None:
        self._board = board
        self._bodies = bodies
        self._count = 0

    async def route(self, recipient: Recipient, mail_from: Address | None) -> object | None:
        """Its own address, if it is one here."""
        return recipient if recipient == "postmaster" or recipient.domain == MAIL_DOMAIN else None

    def room(self, size: int) -> bool:
        """There always is: nothing is kept but what the page shows."""
        return True

    async def accept(self, transaction: Transaction) -> str:
        """Read the message, show it and forget it."""
        arrived = time.time()
        body = transaction.body
        wire = body.data
        if wire is None:
            assert body.file is not None
            wire = await asyncio.to_thread(self._bodies.read, body.file)
            await asyncio.to_thread(self._bodies.remove, [body.file])
        content = await asyncio.to_thread(as_shown, unstuff(wire))
        self._count += 1
        self._board.put(
            "mail",
            str(self._count),
            content
            | {
                "at": arrived,
                "size": body.size,
                "return_path": str(transaction.mail_from or ""),
                "delivered_to": [str(address) for address, _ in transaction.recipients],
            },
        )
        return f"mail{self._count}"


def as_shown(message: bytes) -> dict[str, Any]:
    """What a mail program shows of a message, and its header fields as they are.

    ``message`` is the daemon's id of it, from the field that the daemon puts before it.
    """
    fields = header_fields(message)
    first: dict[str, str] = {}
    for name, value in fields:
        first.setdefault(name.lower(), value)
    found = extract(message)
    return {
        "message": first.get("x-visit-relay", "").partition(".")[0].strip() or None,
        "from": _decoded(first, "from"),
        "to": _decoded(first, "to"),
        "date": _decoded(first, "date"),
        "subject": found.subject,
        "text": (found.text or "")[:TEXT_SHOWN],
        "attachments": [{"name": part.name, "size": part.size, "type": part.type} for part in found.attachments],
        "fields": [{"name": name, "value": value, "ours": _ours(name, value)} for name, value in fields],
    }


def header_fields(message: bytes) -> list[tuple[str, str]]:
    """(name, value) of each field, the values with their folds."""
    end = message.find(b"\r\n\r\n", 0, HEADER_SHOWN)
    block = message[: end if end >= 0 else HEADER_SHOWN]
    fields = []
    for line in _FIELD_END.split(block):
        name, colon, value = line.partition(b":")
        if colon:
            fields.append((name.decode("utf-8", "replace").strip(), value.decode("utf-8", "replace").strip()))
    return fields


def _decoded(first: dict[str, str], name: str) -> str:
    return header_text(first.get(name, "").replace("\r\n", "").encode())


def _ours(name: str, value: str) -> bool:
    """Whether the daemon wrote this field: a sender's own X-Visit-* fields do not get through it."""
    name = name.lower()
    return name.startswith("x-visit-") or (name == "received" and f"by {HOSTNAME}" in value)
