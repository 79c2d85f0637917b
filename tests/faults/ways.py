"""The ways that a letter can go to its next hop, each with a daemon that is to be started.

The next hop ends each connection after a letter, and no answer of DNS may be kept: every letter asks and connects anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Certificate
from tests.dns_server import DnsServer, Fault, Table
from tests.ledger import SOAK
from tests.scenarios.world import World, world
from tests.smtp_sink import Close, SmtpSink

#: The domain's MX is longer than an answer over UDP may be, so it is asked for over TCP, too.
_TABLE: Table = {
    ("example.test", "MX"): Fault.TRUNCATED,
    ("example.test", "MX/tcp"): ["10 mx.example.test."],
    ("mx.example.test", "A"): ["127.0.0.1"],
}


@dataclass(frozen=True)
class Way:
    """``parts``: of the soak's run, each with a data_dir of its own. ``only_sockets``: the others are struck on another
    way. ``sizes``: of letters, whether they are large. ``tls`` and ``user``: of a session.
    """

    parts: int
    only_sockets: bool = True
    sizes: tuple[bool, ...] = (False, True)
    tls: bool = True
    user: str | None = None


WAYS = {
    "next hop": Way(parts=40, only_sockets=False, tls=False),
    "MX": Way(parts=16, only_sockets=SOAK),  # the suite goes this way alone, for it has all calls of the first
    "login": Way(parts=5, sizes=(False,), user="relay"),
}
#: By name, with the part of the soak's run.
PARTS = [(name, part) for name, way in WAYS.items() for part in range(way.parts)] if SOAK else [("MX", 0)]


@contextlib.asynccontextmanager
async def world_by(name: str, folder: Path) -> AsyncIterator[World]:
    """What a letter meets on one of WAYS."""
    way = WAYS[name]
    trusted = Certificate.make(folder, "localhost")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(trusted.authority))
        async with (
            SmtpSink(
                script={"dot": lambda session, line: Close("250 2.0.0 taken")},
                tls=trusted if way.tls else None,
                logins={way.user: "secret"} if way.user else None,
            ) as sink,
            DnsServer(_TABLE, ttl=0) as dns,
            world(folder, _settings(name, sink, dns), start=False) as relay,
        ):
            relay.sink = sink
            yield relay
            assert {over for *_, over in dns.queries} == ({"udp", "tcp"} if name == "MX" else set())


def _settings(name: str, sink: SmtpSink, dns: DnsServer) -> dict[str, Any]:
    if name == "MX":
        return {"forward": {"next_hop": "", "mx_port": sink.port}, "dns": {"nameservers": [dns.address]}}
    login, host = ("smtp+starttls://relay:secret@", "localhost") if name == "login" else ("smtp://", sink.host)
    return {"forward": {"next_hop": f"{login}{host}:{sink.port}"}}
