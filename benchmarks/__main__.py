"""python -m benchmarks [mail | binds | webhooks | dead | siege | memory | start | hours | day | history] …

It prints PASS or FAIL for each goal; exit code 1 after a FAIL.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks import binds, day, dead, history, hours, mail, memory, siege, start, webhooks
from benchmarks.postfix import Postfix, PostfixFailed
from benchmarks.processes import file_system
from benchmarks.programs import LoadFailed
from benchmarks.relay import Relay, RelayFailed
from benchmarks.report import Report
from benchmarks.workplace import Workplace, workplace


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parts = ("all", "mail", "binds", "webhooks", "dead", "siege", "memory", "start", "hours", "day", "history")
    parser.add_argument("part", nargs="?", choices=parts, default="all")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each server in turn")
    parser.add_argument("--size", type=int, help="mail: only the workloads with this size in octets")
    parser.add_argument("--kept", action="store_true", help="mail: only the workloads with many messages a connection")
    parser.add_argument("--messages", type=int, help="mail: messages of a run, instead of the workload's number")
    parser.add_argument("--pipelining", action="store_true", help="mail: send the envelope in one piece")
    parser.add_argument("--plain", action="store_true", help="mail: large messages are all text, no attachment")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="mail, hours: pace the client at so many messages a second"
    )
    parser.add_argument("--hours", type=float, default=hours.HOURS, help="hours: how many")
    parser.add_argument(
        "--visits", type=int, default=100_000, help="mail: visits bound beforehand (at least 1000); day: of a day"
    )
    parser.add_argument("--binds", type=int, default=20_000, help="binds: requests of a run")
    parser.add_argument("--backlog", type=int, default=dead.BACKLOG, help="dead: letters that wait")
    parser.add_argument("--attack", choices=list(siege.ATTACKS), help="siege: only this one, and without any")
    parser.add_argument("--pools", type=_sizes, default=day.POOLS, help="day: pool sizes, with commas between them")
    parser.add_argument("--writers", type=float, default=day.WRITERS, help="day: share of the visits that write")
    parser.add_argument("--seed", type=int, default=day.SEED, help="day, history: what chance is drawn from")
    parser.add_argument("--queued", type=int, default=start.QUEUED, help="start: letters that wait")
    parser.add_argument("--rows", type=int, default=history.ROWS, help="history: letters in the database")
    parser.add_argument(
        "--database",
        type=Path,
        help="history: directory to keep the database in, or to find it in; ten million take 25 GB",
    )
    parser.add_argument("--without-postfix", action="store_true", help="mail: measure visit-relay alone")
    parser.add_argument("--directory", type=Path, help="where the run's temporary directory goes")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args()


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


def workloads(wanted: argparse.Namespace) -> list[mail.Workload]:
    found = [
        workload if wanted.messages is None else replace(workload, messages=wanted.messages)
        for workload in mail.WORKLOADS
        if wanted.size in (None, workload.size) and (not wanted.kept or workload.per_connection > 1)
    ]
    if not found:
        raise SystemExit("no workload is like that")
    return found


def header(place: Workplace) -> None:
    system = file_system(place.directory)
    cores = os.cpu_count()
    place.report.line(f"{platform.machine()}, {cores} cores, {platform.system()} {platform.release()}, {system}")
    place.report.line(f"Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f}")
    place.report.figures["machine"] = {"cores": cores, "file_system": system, "python": platform.python_version()}
    if system == "tmpfs":
        place.report.line("NOT DURABLE: this is memory. Give a --directory on a disk; figures are worth nothing here.")


def measure_mail(place: Workplace, wanted: argparse.Namespace) -> None:
    options = mail.Options(wanted.rounds, wanted.pipelining, wanted.plain, wanted.rate)
    chosen = workloads(wanted)
    with ExitStack() as stack:
        postfix = None
        if not wanted.without_postfix:
            postfix = stack.enter_context(Postfix(place.directory / "postfix", place.next_hop.port))
        relay = stack.enter_context(Relay(place.directory / "relay", place.next_hop.port, place.webhook.port))
        mail.prepare(place, relay, max(wanted.visits, mail.RECIPIENTS))
        for workload in chosen:
            mail.measure(place, relay, postfix, workload, options)
            straight = mail.ceiling(place, workload, options)
            place.report.line(f"  the load client straight to the next hop: {straight:.0f}/s")


def main() -> int:
    wanted = arguments()
    report = Report()
    if wanted.part == "day":  # a simulation: it needs no programs, and says nothing of this machine
        directory = wanted.directory or Path(tempfile.gettempdir())
        day.measure(report, wanted.visits, wanted.pools, wanted.writers, wanted.seed, directory, os.cpu_count() or 1)
        return report.finish(wanted.json)
    if wanted.part == "history":
        with ExitStack() as stack:
            directory = wanted.database or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-", dir=wanted.directory))
            )
            history.measure(report, wanted.rows, directory, history.ROUNDS, wanted.seed)
        return report.finish(wanted.json)
    try:
        with workplace(report, wanted.directory) as place:
            header(place)
            if wanted.part in ("all", "mail"):
                measure_mail(place, wanted)
            if wanted.part in ("all", "binds"):
                with Relay(place.directory / "binds", place.next_hop.port, place.webhook.port) as relay:
                    binds.measure(place, relay, wanted.binds, wanted.rounds)
            if wanted.part in ("all", "webhooks"):
                webhooks.measure(place, wanted.rounds)
            if wanted.part in ("all", "dead"):
                dead.measure(place, wanted.backlog, wanted.rounds)
            if wanted.part in ("all", "siege"):
                siege.measure(place, wanted.rounds, wanted.attack)
            if wanted.part in ("all", "memory"):
                with Relay(place.directory / "memory", place.next_hop.port, place.webhook.port) as relay:
                    mail.prepare(place, relay, mail.RECIPIENTS)
                    memory.measure(place, relay)
            if wanted.part in ("all", "start"):
                start.measure(report, place.directory, wanted.queued)
            if wanted.part == "hours":
                with Relay(place.directory / "hours", place.next_hop.port, place.webhook.port) as relay:
                    mail.prepare(place, relay, mail.RECIPIENTS)
                    hours.measure(place, relay, wanted.hours, wanted.rate or hours.RATE)
    except (LoadFailed, PostfixFailed, RelayFailed) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    return report.finish(wanted.json)


if __name__ == "__main__":
    sys.exit(main())
