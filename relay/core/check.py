"""What a check of the installation says, as plain data that the command line, the API and the pages share.

relay/check.py does the checks; who only shows them (webapi) knows no more than this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]
OK: Level = "ok"
WARN: Level = "warn"
FAIL: Level = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``what`` names the thing checked, ``text`` says how it is, ``hint`` what to do (empty when good)."""

    level: Level
    what: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One of the checks that can be run by itself. ``about`` says what it looks at."""

    name: str
    title: str
    about: str


#: Every check there is, in the order in which the command line shows them.
CHECKS = (
    Check("data_dir", "Data folder", "Whether the daemon can keep what it must keep, and keep it to itself."),
    Check("database", "Database", "Whether its schema is the one that this program works with."),
    Check("disk", "Disk", "How much room is left for mail."),
    Check("clock", "Clock", "Whether the time is believable, and something keeps it right."),
    Check("geoip", "City and country", "Whether visits get a place, and from how old a file."),
    Check("daemon", "Daemon", "Whether it runs, and where it listens."),
    Check("cookies", "Cookies", "Whether the visit that one site keeps in the browser is kept from every other site."),
    Check(
        "tls",
        "TLS certificates",
        "Whether they load, name this server, last and are trusted, or a proxy has one; and public_url.",
    ),
    Check(
        "dns",
        "DNS",
        "Our name (A, AAAA) and its reverse (PTR); MX of every domain of substitutes, SPF of those without mailboxes.",
    ),
    Check("next_hops", "Next hops", "A conversation with every server that mail goes to, up to RCPT; none is sent."),
    Check("webhooks", "Webhooks", "Whether every receiver is reached, by the same guard as posts; nothing is posted."),
)
NAMES = tuple(check.name for check in CHECKS)

#: Told the name of a check and what it found, as soon as it is through.
Tell = Callable[[str, Sequence[Finding]], None]
#: Runs the checks of these names; raises nothing that a check could meet.
RunChecks = Callable[[Collection[str], Tell], Awaitable[None]]
