"""What all SMTP sessions share, and what each goes by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay.bodies import Bodies
from relay.core import reply
from relay.core.metrics import Histogram
from relay.core.reply import Reply
from relay.smtp_limits import Settings, Turnstile
from relay.smtp_transaction import Intake

if TYPE_CHECKING:
    from relay.smtp_session import Session


@dataclass(slots=True)
class Tally:
    """What sessions came to since the start.

    ``ends``: sessions by how they ended. ``messages``: by the first digit of the reply to their final dot.
    ``refusals``: 4xx and 5xx by command and code; what is no command is "other", and between commands it is "idle", or
    "connect" before the first. ``accepting``: seconds from a final dot to its reply.
    """

    ends: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    accepting: Histogram = field(default_factory=Histogram)

    def refused(self, command: str, answer: Reply) -> None:
        self.refusals[command, str(answer.code)] += 1


class Terms:
    """What a session goes by from its greeting to its end, reloads or not: the settings, and what announces them.

    Both are in one object, so that nobody is told in EHLO what is not done afterwards, or the reverse.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.greeting = reply.greeting(settings.hostname).wire
        self.helo = reply.helo(settings.hostname)
        size = f"SIZE {settings.max_message_size}"
        words = ["PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING"]
        self.ehlo = reply.ehlo(settings.hostname, words)
        self.ehlo_starttls = reply.ehlo(settings.hostname, [*words, "STARTTLS"]) if settings.tls else self.ehlo


class Service:
    """What all sessions share."""

    def __init__(self, intake: Intake, bodies: Bodies, settings: Settings) -> None:
        self.intake = intake
        self.bodies = bodies
        self.sessions: set[Session] = set()
        self.tally = Tally()
        self.turnstile = Turnstile(settings.limits)
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """What sessions that begin from now on go by; who is in goes on as before."""
        self.terms = Terms(settings)
        self.turnstile.configure(settings.limits)
