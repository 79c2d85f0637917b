"""Messages per second through visit-relay and through Postfix, in turn, every message verified at the next hop."""

from __future__ import annotations

import os
import statistics
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks import binds
from benchmarks.postfix import REAL_DOMAIN, Postfix
from benchmarks.processes import Watch, cpu_seconds, machine_seconds, wait_until
from benchmarks.programs import Figures, run_client
from benchmarks.relay import FIRST_VISIT, Relay, Totals
from benchmarks.workplace import Workplace

#: Seconds for one run of the load client beyond what its pace asks for, and for its last message to arrive after that.
TIMEOUT = 120.0
ARRIVAL = 60.0
#: Seconds within which extraction, index and webhook are done after the last message, by the goal.
DRAINED = 10.0
#: Recipients that the messages go to in turn; on our side each is the plus address of a visit.
RECIPIENTS = 1000
WARM_UP = 200


@dataclass(frozen=True, slots=True)
class Workload:
    """``per_connection`` messages of ``size`` octets on each of ``connections``.

    The goals, against Postfix: ``ratio`` of the messages/s at least, and of the CPU time for each at most ``cpu``.
    """

    name: str
    size: int
    messages: int
    connections: int
    per_connection: int
    ratio: float
    cpu: float | None = None


WORKLOADS = (
    Workload("4 KiB, 1 a connection", 4096, 3000, 20, 1, 1.5, cpu=0.5),
    Workload("4 KiB, 50 a connection", 4096, 3000, 20, 50, 2.5, cpu=0.5),
    Workload("100 KiB", 102_400, 800, 20, 1, 1.3),
    Workload("10 MB", 10_000_000, 24, 4, 1, 1.0),
)


@dataclass(frozen=True, slots=True)
class Options:
    """``rate`` paces the client (messages/s, 0: not); ``plain`` sends large messages as text without attachment."""

    rounds: int = 3
    pipelining: bool = False
    plain: bool = False
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a workload against one server.

    Rates in messages/s: ``accepted`` at the 250, ``forwarded`` at the next hop. ``cpu``: the server's CPU seconds per
    1,000 messages, until it had nothing left to do. ``memory``: peak PSS in octets. ``latency``: milliseconds from
    the start of a transaction until the message was whole at the next hop. ``drained``: seconds after the last
    message until nothing was left to do, and ``finished`` messages/s until then; None for Postfix, which does nothing
    else. ``foreign``: CPU cores that were busy with something that is not part of the measurement. ``faults``: why
    the run does not count; empty when every message arrived once and unchanged and did all it has to.
    """

    accepted: float
    forwarded: float
    finished: float | None
    cpu: float
    memory: int
    latency: dict[str, float]
    drained: float | None
    foreign: float
    faults: tuple[str, ...]


def measure(place: Workplace, relay: Relay, postfix: Postfix | None, workload: Workload, options: Options) -> None:
    """Run one workload against both in turn and judge it."""
    report = place.report
    mode = [f"{options.rate:g}/s"] * bool(options.rate) + ["PIPELINING"] * options.pipelining
    mode += ["plain text"] * options.plain
    report.line()
    report.line(" · ".join([workload.name, f"{workload.messages} messages x {options.rounds}", *mode]))
    servers: list[Relay | Postfix] = [relay] if postfix is None else [postfix, relay]
    runs: dict[str, list[Run]] = {server.name: [] for server in servers}
    for server in servers:
        run(place, server, workload, options, min(WARM_UP, workload.messages))
    for _ in range(options.rounds):
        for server in servers:
            runs[server.name].append(run(place, server, workload, options, workload.messages))
    for name, found in runs.items():
        report.line(_summary(name, found))
    report.figures.setdefault("mail", {})[workload.name] = {
        name: [asdict(single) for single in found] for name, found in runs.items()
    }
    _judge(place, runs, workload, paced=options.rate > 0)


def _judge(place: Workplace, runs: dict[str, list[Run]], workload: Workload, *, paced: bool) -> None:
    """At a given pace it counts how late messages are; that says nothing about how many more would have passed."""
    report = place.report
    faults = [f"{name}: {fault}" for name, found in runs.items() for single in found for fault in single.faults]
    report.judge(f"{workload.name}: every message exactly once, unchanged", not faults, "; ".join(faults) or "verified")
    ours = runs[Relay.name]
    late = [single.drained for single in ours if single.drained is None or single.drained > DRAINED]
    slowest = max((single.drained or 0.0 for single in ours), default=0.0)
    drained = f"over {DRAINED:g} s" if None in late else f"{slowest:.1f} s"
    report.judge(f"{workload.name}: index, extraction and webhook done within {DRAINED:g} s", not late, drained)
    if Postfix.name not in runs:
        return
    theirs = runs[Postfix.name]
    if paced:
        p99 = [_median([single.latency["p99"] for single in found]) for found in (ours, theirs)]
        shown = f"{p99[0]:.1f} ms, Postfix {p99[1]:.1f}"
        report.judge(f"{workload.name}: p99 at the next hop no worse than Postfix's", p99[0] <= p99[1], shown)
        return
    ratio = _median([r.forwarded for r in ours]) / _median([r.forwarded for r in theirs])
    report.judge(f"{workload.name}: at least {workload.ratio:g} x Postfix", ratio >= workload.ratio, f"{ratio:.2f} x")
    if workload.cpu is not None:
        cpu = _median([r.cpu for r in ours]) / _median([r.cpu for r in theirs])
        report.judge(
            f"{workload.name}: at most {workload.cpu:g} x Postfix's CPU time", cpu <= workload.cpu, f"{cpu:.2f} x"
        )


def run(place: Workplace, server: Relay | Postfix, workload: Workload, options: Options, messages: int) -> Run:
    """One run, from a server with nothing to do to the same."""
    name = uuid.uuid4().hex[:8]
    relay = server if isinstance(server, Relay) else None
    place.next_hop.order(f"reset {name} {messages} {workload.size} {int(options.plain)} {REAL_DOMAIN}")
    place.webhook.order("reset")
    before = relay.totals() if relay else None
    ours = [os.getpid(), place.next_hop.pid, place.webhook.pid]
    machine, cpu, own = machine_seconds(), cpu_seconds(server.pid), sum(map(cpu_seconds, ours))
    began = time.monotonic()
    with Watch(server.pid) as watch:
        load = run_client(
            place.program("smtpload"),
            TIMEOUT + (messages / options.rate if options.rate else 0.0),
            port=server.port,
            run=name,
            messages=messages,
            size=workload.size,
            connections=workload.connections,
            per_connection=workload.per_connection,
            recipient=server.recipient,
            recipients=RECIPIENTS,
            first_recipient=server.first_recipient,
            pipelining=options.pipelining,
            plain=options.plain,
            rate=options.rate,
        )
        wait_until(lambda: int(place.next_hop.order("count")) >= load["sent"], ARRIVAL)
        drained_at = relay.drain(2 * DRAINED) if relay else None
    seconds, cpu = time.monotonic() - began, cpu_seconds(server.pid) - cpu
    machine, own = machine_seconds() - machine, sum(map(cpu_seconds, ours)) - own
    arrived = place.next_hop.figures()
    faults = _mail_faults(load, arrived, messages)
    if relay and before:
        faults += _work_faults(place, relay.totals().since(before), messages) + relay.complaints()
    passed = (arrived["last_ns"] - load["started_ns"]) / 1e9
    return Run(
        accepted=load["sent"] / load["seconds"] if load["seconds"] else 0.0,
        forwarded=arrived["unique"] / passed if passed > 0 else 0.0,
        finished=messages / (drained_at - load["started_ns"] / 1e9) if drained_at else None,
        cpu=cpu / messages * 1000,
        memory=watch.peak,
        latency=arrived["latency_ms"],
        drained=max(0.0, drained_at - arrived["last_ns"] / 1e9) if drained_at else None,
        foreign=max(0.0, machine - cpu - own) / seconds,
        faults=tuple(faults),
    )


def _mail_faults(load: Figures, arrived: Figures, messages: int) -> list[str]:
    faults = [f"{error!r} from the server" for error in load["errors"]]
    if arrived["unique"] != messages:
        faults.append(f"{arrived['unique']} of {messages} arrived")
    counts = {**load, **arrived}
    wrong = ("failed", "unfinished", "duplicate", "altered", "misdirected", "foreign")
    return faults + [f"{counts[what]} {what}" for what in wrong if counts[what]]


def _work_faults(place: Workplace, done: Totals, messages: int) -> list[str]:
    counts: dict[str, int] = {**asdict(done), **place.webhook.figures()}
    wanted = ("messages", "extracted", "indexed", "posted", "events", "posts")
    return [f"{counts[what]} of {messages} {what}" for what in wanted if counts[what] != messages]


def prepare(place: Workplace, relay: Relay, visits: int) -> None:
    """Bind the visits that the mail comes from, among many others."""
    binds.bind(place, relay, visits, first_visit=FIRST_VISIT)


def ceiling(place: Workplace, workload: Workload, options: Options) -> float:
    """Messages/s of the load client straight to the next hop."""
    name = uuid.uuid4().hex[:8]
    place.next_hop.order(f"reset {name} {workload.messages} {workload.size} {int(options.plain)} track.test")
    load = run_client(
        place.program("smtpload"),
        TIMEOUT,
        port=place.next_hop.port,
        run=name,
        messages=workload.messages,
        size=workload.size,
        connections=workload.connections,
        per_connection=workload.per_connection,
        pipelining=options.pipelining,
        plain=options.plain,
    )
    return float(load["sent"] / load["seconds"])


def _summary(name: str, runs: Sequence[Run]) -> str:
    rates = sorted(single.forwarded for single in runs)
    middle = sorted(runs, key=lambda single: single.forwarded)[len(runs) // 2]
    parts = [
        f"{name:12}{_median(rates):8.1f}/s ({rates[0]:.1f}-{rates[-1]:.1f})",
        f"accepted {_median([r.accepted for r in runs]):.1f}/s",
        f"CPU {_median([r.cpu for r in runs]):.2f} s/1000",
        f"p50/p99 {middle.latency['p50']:.1f}/{middle.latency['p99']:.1f} ms",
        f"PSS {max(r.memory for r in runs) / 1e6:.0f} MB",
        f"other work {_median([r.foreign for r in runs]):.2f} cores",
    ]
    drained, finished = [[v for r in runs if (v := getattr(r, name)) is not None] for name in ("drained", "finished")]
    if drained:
        parts.append(f"all done {max(drained):.1f} s later, {_median(finished):.1f}/s")
    return "  " + " | ".join(parts)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
