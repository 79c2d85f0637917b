"""Bindings per second: POST /v1/bind over 64 kept connections, each answer durable before it is sent."""

from __future__ import annotations

import statistics

from benchmarks.processes import Foreign, cpu_seconds
from benchmarks.programs import Figures, LoadFailed, run_client
from benchmarks.relay import ADDRESS, GEOIP, ORIGIN, SITE_KEY, UNIQUE_ADDRESS, Relay
from benchmarks.workplace import Workplace

#: Binds a second, by the goal: of requests with nothing but the header fields that are needed. What a browser and a
#: proxy add costs the server a quarter more, and is what the other figures are of.
GOAL = 5000.0
#: Milliseconds within which 99 of 100 are answered, by the goal: with all connections always asking, and at PACE.
GOAL_P99 = 50.0
#: Binds a second, far more than one site has: 100,000 visits a day are 2 a second in the busiest hour, some 6 binds.
PACE = 500.0
CONNECTIONS = 64
TIMEOUT = 120.0


def bind(
    place: Workplace,
    relay: Relay,
    count: int,
    first_visit: int = 0,
    address: str = ADDRESS,
    rate: float = 0.0,
    *,
    bare: bool = False,
) -> Figures:
    """The first page views of ``count`` visitors; raises LoadFailed unless every visit is in the store."""
    before = relay.totals()
    figures = run_client(
        place.program("bindload"),
        TIMEOUT,
        port=relay.http_port,
        site=SITE_KEY,
        origin=ORIGIN,
        address=address,
        binds=count,
        connections=CONNECTIONS,
        first_visit=first_visit,
        rate=rate,
        bare=int(bare),
    )
    stored = relay.totals().since(before).visits
    if figures["bound"] != count or stored != count:
        raise LoadFailed(f"{figures['bound']} of {count} bound, {stored} in the store: {figures['errors']}")
    return figures


def measure(place: Workplace, relay: Relay, count: int, rounds: int) -> None:
    """New visits with numbers of ours, and judge rate and p99; then paced, and with an address of its own for each."""
    report = place.report
    places = f"with {len(GEOIP)} GeoIP files" if GEOIP else "without GeoIP file"
    report.line()
    report.line(f"binds · {count} x {rounds} over {CONNECTIONS} connections, {places}")
    bind(place, relay, min(count, 1000))
    rate = _rate(_runs(place, relay, "bare", count, rounds, bare=True))
    report.judge(f"binds: at least {GOAL:g}/s durable", rate >= GOAL, f"{rate:.0f}/s")
    p99 = _median(_runs(place, relay, "plus", count, rounds), "p99")
    report.judge(f"binds: p99 at most {GOAL_P99:g} ms, {CONNECTIONS} at once", p99 <= GOAL_P99, f"{p99:.1f} ms")
    _runs(place, relay, "unique", count, rounds, address=UNIQUE_ADDRESS)
    paced = _runs(place, relay, f"{PACE:g}/s", min(count, int(10 * PACE)), rounds, rate=PACE)
    p99 = _median(paced, "p99")
    report.judge(f"binds: p99 at most {GOAL_P99:g} ms at {PACE:g}/s", p99 <= GOAL_P99, f"{p99:.1f} ms")


def _runs(
    place: Workplace,
    relay: Relay,
    name: str,
    count: int,
    rounds: int,
    address: str = ADDRESS,
    rate: float = 0.0,
    *,
    bare: bool = False,
) -> list[Figures]:
    runs = []
    for _ in range(rounds):
        cpu = cpu_seconds(relay.pid)
        with Foreign(relay.pid) as foreign:
            figures = bind(place, relay, count, address=address, rate=rate, bare=bare)
        cpu = (cpu_seconds(relay.pid) - cpu) / count * 1000
        runs.append(
            {**figures, "cpu": cpu, "foreign": max(0.0, foreign.cores - figures["cpu_seconds"] / figures["seconds"])}
        )
    place.report.line(_summary(name, runs))
    place.report.figures.setdefault("binds", {})[name] = runs
    return runs


def _rate(runs: list[Figures]) -> float:
    return statistics.median(float(figures["bound"] / figures["seconds"]) for figures in runs)


def _median(runs: list[Figures], percentile: str) -> float:
    return statistics.median(float(figures["latency_ms"][percentile]) for figures in runs)


def _summary(name: str, runs: list[Figures]) -> str:
    rates = [figures["bound"] / figures["seconds"] for figures in runs]
    cpu = statistics.median(figures["cpu"] for figures in runs)
    foreign = max(figures["foreign"] for figures in runs)
    return (
        f"  {name:12}{_rate(runs):8.1f}/s ({min(rates):.1f}-{max(rates):.1f}) | CPU {cpu:.2f} s/1000"
        f" | p50/p99 {_median(runs, 'p50'):.1f}/{_median(runs, 'p99'):.1f} ms | foreign {foreign:.2f} cores"
    )
