"""A dead destination with 10,000 letters that wait: what it costs the acceptance of mail, and mail to a sound one.

Two daemons take turns as in benchmarks/webhooks.py. Both have as many letters in their history; of one they wait for a
next hop that refuses connections, or for one that takes them and never says a word, of the other they were delivered.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
from collections.abc import Sequence

from benchmarks.processes import pss, wait_until
from benchmarks.programs import LoadFailed
from benchmarks.relay import DEAD_RECIPIENT, Relay, dead_target
from benchmarks.webhooks import CONNECTIONS, PACE, ROUND, Load, Sent, percentile, ratio
from benchmarks.workplace import Workplace

BACKLOG = 10_000
#: Rounds of each daemon for each that is asked for.
ROUNDS = 16
#: The p99 of acceptance, and of the time until the next hop has the letter, may be so many times that without.
GOAL_RATIO = 1.10
#: Seconds until the letters of the beginning are read and found by search, and those of a round are delivered.
PATIENCE = 300.0


def measure(place: Workplace, backlog: int, rounds: int) -> None:
    for way in ("refuses", "silent"):
        _measure(place, way, backlog - backlog % CONNECTIONS, ROUNDS * rounds)


def _measure(place: Workplace, way: str, backlog: int, rounds: int) -> None:
    report = place.report
    report.line()
    report.line(f"dead, {way} · {backlog} letters wait for it, against none · {rounds} rounds of each in turn")
    port = place.next_hop.port
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        if way == "silent":
            closed.listen(0)  # nobody accepts: the first wait for a greeting, and the others for the connection itself
        target = dead_target(closed.getsockname()[1])
        with (
            Relay(place.directory / f"sound {way}", port, (), target) as sound,
            Relay(place.directory / f"dead {way}", port, (), target) as dead,
        ):
            load = Load()
            asyncio.run(load.saturating(sound, backlog))
            asyncio.run(load.saturating(dead, backlog, DEAD_RECIPIENT))
            for relay, waits in ((sound, 0), (dead, backlog)):
                _settle(relay, waits)
            before = [relay.last_message() for relay in (sound, dead)]
            paced = [
                (
                    asyncio.run(load.paced(sound, int(PACE * ROUND))),
                    asyncio.run(load.paced(dead, int(PACE * ROUND))),
                )
                for _ in range(rounds)
            ]
            for relay, waits in ((sound, 0), (dead, backlog)):
                _settle(relay, waits)
            delays = [relay.delays(since) for relay, since in zip((sound, dead), before, strict=True)]
            memory = [pss(relay.pid) / 1e6 for relay in (sound, dead)]
    _judge(place, way, paced, delays)
    report.line(f"  memory (PSS): {memory[0]:.0f} MB without, {memory[1]:.0f} MB with {backlog} that wait")
    report.figures["dead"][way]["memory"] = memory


def _settle(relay: Relay, waits: int) -> None:
    """Wait until nothing is left to do but what waits for the dead one."""

    def is_settled() -> bool:
        left = relay.backlog()
        return left.deliveries == waits and not left.extraction and not left.index

    if not wait_until(is_settled, PATIENCE, step=0.2):
        raise LoadFailed(f"{relay.backlog()} is left, {waits} deliveries were to wait")


def _judge(place: Workplace, way: str, rounds: Sequence[tuple[Sent, Sent]], delays: Sequence[Sequence[float]]) -> None:
    report = place.report
    figures = report.figures.setdefault("dead", {}).setdefault(way, {})
    for which, label in enumerate(("none dead", "one dead")):
        took = [value * 1000 for pair in rounds for value in pair[which].took]
        arrived = [value * 1000 for value in delays[which]]
        if len(arrived) != len(took):
            raise LoadFailed(f"{label}: {len(took)} letters were accepted, {len(arrived)} delivered")
        report.line(
            f"  {label:9} {PACE:g} messages/s: accepted p50/p99 {statistics.median(took):.1f}/"
            f"{percentile(took, 0.99):.1f} ms, delivered {statistics.median(arrived):.1f}/"
            f"{percentile(arrived, 0.99):.1f} ms after receipt, {len(took)} messages"
        )
        figures[label] = {"accepted": percentile(took, 0.99), "delivered": percentile(arrived, 0.99)}
    low, found, high = ratio(rounds)
    figures["ratio"] = [low, found, high]
    shown = f"{found:.2f} (95 % of the draws {low:.2f}-{high:.2f})"
    report.judge(f"dead, {way}: p99 of acceptance at most {GOAL_RATIO:g} x that without", found <= GOAL_RATIO, shown)
    slower = percentile(delays[1], 0.99) / percentile(delays[0], 0.99)
    report.judge(
        f"dead, {way}: p99 of delivery at most {GOAL_RATIO:g} x that without", slower <= GOAL_RATIO, f"{slower:.2f}"
    )
