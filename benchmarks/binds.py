"""Bindings per second: POST /v1/bind over 64 kept connections, each answer durable before it is sent."""

from __future__ import annotations

import statistics

from benchmarks.processes import cpu_seconds
from benchmarks.programs import Figures, LoadFailed, run_client
from benchmarks.relay import ADDRESS, ORIGIN, SITE_KEY, Relay
from benchmarks.workplace import Workplace

#: Binds a second, by the goal.
GOAL = 5000.0
CONNECTIONS = 64
TIMEOUT = 120.0


def bind(place: Workplace, relay: Relay, count: int, first_visit: int = 0) -> Figures:
    """The first page views of ``count`` visitors; raises LoadFailed unless every visit is in the store."""
    before = relay.totals()
    figures = run_client(
        place.program("bindload"),
        TIMEOUT,
        port=relay.http_port,
        site=SITE_KEY,
        origin=ORIGIN,
        address=ADDRESS,
        binds=count,
        connections=CONNECTIONS,
        first_visit=first_visit,
    )
    stored = relay.totals().since(before).visits
    if figures["bound"] != count or stored != count:
        raise LoadFailed(f"{figures['bound']} of {count} bound, {stored} in the store: {figures['errors']}")
    return figures


def measure(place: Workplace, relay: Relay, count: int, rounds: int) -> None:
    """New visits with numbers of ours, and judge the rate."""
    report = place.report
    report.line()
    report.line(f"binds · {count} x {rounds} over {CONNECTIONS} connections")
    bind(place, relay, min(count, 1000))
    runs = []
    for _ in range(rounds):
        cpu = cpu_seconds(relay.pid)
        figures = bind(place, relay, count)
        runs.append({**figures, "cpu": (cpu_seconds(relay.pid) - cpu) / count * 1000})
    rates = sorted(figures["bound"] / figures["seconds"] for figures in runs)
    rate = statistics.median(rates)
    middle = runs[len(runs) // 2]
    report.line(
        f"  {relay.name:12}{rate:8.1f}/s ({rates[0]:.1f}-{rates[-1]:.1f}) | CPU {middle['cpu']:.2f} s/1000"
        f" | p50/p99 {middle['latency_ms']['p50']:.1f}/{middle['latency_ms']['p99']:.1f} ms"
    )
    report.figures["binds"] = runs
    report.judge(f"binds: at least {GOAL:g}/s durable", rate >= GOAL, f"{rate:.0f}/s")
