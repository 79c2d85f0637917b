"""Memory of the daemon's whole process tree: what an idle connection costs, and many large messages at once."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from benchmarks.mail import Options, Workload, run
from benchmarks.processes import Watch, pss
from benchmarks.relay import Relay
from benchmarks.workplace import Workplace

#: Octets an idle plain-text SMTP connection may cost, by the goal; and how many are opened.
IDLE_GOAL = 40 * 1024
IDLE = 1000
#: Octets (PSS) that 50 messages of 25 MB at once may cost in all, by the goal.
LARGE_GOAL = 300_000_000
LARGE = Workload("50 concurrent messages of 25 MB", 25_000_000, 50, 50, 1, 0.0)


def measure(place: Workplace, relay: Relay) -> None:
    """Both, and judge them; the daemon should be fresh, since what it has grown to it reuses."""
    _idle(place, relay)
    _large(place, relay)


def _idle(place: Workplace, relay: Relay) -> None:
    place.report.line()
    place.report.line(f"memory · {IDLE} idle plain-text SMTP connections")
    with ExitStack() as stack:
        _connect(stack, relay.port, 10)  # what the first connections load is not theirs
        before = pss(relay.pid)
        _connect(stack, relay.port, IDLE)
        each = (pss(relay.pid) - before) / IDLE
    place.report.figures["idle_connection_octets"] = each
    kept = each <= IDLE_GOAL
    place.report.judge(f"an idle connection: at most {IDLE_GOAL // 1024} KiB", kept, f"{each / 1024:.1f} KiB")


def _connect(stack: ExitStack, port: int, count: int) -> None:
    """Open sessions up to the reply to EHLO, and leave them at that."""
    opened = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10.0))
        client.sendall(b"EHLO idle.bench.test\r\n")
        opened.append(client)
    for client in opened:
        answer = b""
        while b"\r\n250 " not in answer:
            if not (some := client.recv(4096)):
                raise ConnectionError(f"turned away: {answer!r}")
            answer += some


def _large(place: Workplace, relay: Relay) -> None:
    place.report.line()
    place.report.line(f"memory · {LARGE.name}")
    before = pss(relay.pid)
    with Watch(relay.pid, step=0.1) as watch:
        result = run(place, relay, LARGE, Options(), LARGE.messages)
    place.report.figures["large_messages"] = {"before": before, "peak": watch.peak, "faults": result.faults}
    place.report.line(
        f"  {result.forwarded:.1f}/s, {before / 1e6:.0f} MB before, {watch.peak / 1e6:.0f} MB at the peak"
    )
    verified = f"{LARGE.name}: every message exactly once, unchanged"
    place.report.judge(verified, not result.faults, "; ".join(result.faults) or "verified")
    goal = f"{LARGE.name}: under {LARGE_GOAL / 1e6:.0f} MB in all"
    place.report.judge(goal, watch.peak < LARGE_GOAL, f"{watch.peak / 1e6:.0f} MB")
