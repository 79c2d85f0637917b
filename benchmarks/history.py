"""The history at ten million letters: every list, filter and search, through the store and through the daemon.

Each case is asked many times, each time for something else; what is judged is the 95th of a hundred. The file system
has had the time to cache what it likes, as on a server that runs for a while.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import archive
from benchmarks import history_http as pages
from benchmarks.archive import COMMON, DAY, EVERYWHERE, PERIOD, RARE, RARE_SOURCE, SITES, Archive
from benchmarks.processes import Watch, pss
from benchmarks.relay import Relay
from benchmarks.report import Report
from relay.store import history
from relay.store.history_filter import Filter
from relay.store.reader import Reader

ROWS = 10_000_000
#: Milliseconds within which 95 of 100 are answered, by the goal.
GOAL = 150.0
#: Octets by which memory may grow over all of it, by the goal.
GROWTH = 30 << 20
ROUNDS = 40
PAGE = 50

#: Sites of somebody who sees these alone.
THREE = (2, 9, SITES)

Path_ = Callable[[dict[str, Any]], str]
Ask = Callable[[random.Random, Archive], dict[str, Any]]


def _since(days: float) -> Ask:
    return lambda _, place: {"since": place.end - days * DAY}


def _week(chance: random.Random, place: Archive) -> dict[str, Any]:
    begin = place.end - PERIOD + chance.random() * (PERIOD - 7 * DAY)
    return {"since": begin, "until": begin + 7 * DAY}


def _sender(chance: random.Random, place: Archive) -> str:
    return archive.sender_of(int(place.rows / 5 * chance.random()))


def _visit(chance: random.Random, place: Archive) -> str:
    return archive.visit_number(3 * chance.randrange(1, place.rows // 6) + 2)


def _sites(*numbers: int) -> dict[str, Any]:
    return {"sites": frozenset(numbers)}


def _fixed(**wanted: Any) -> Ask:
    return lambda *_: wanted


#: What is asked for, by what it is called. Every filter, alone and where it is worst; ``cursor`` a random place.
CASES: dict[str, Ask] = {
    "first page": _fixed(),
    "oldest first": _fixed(oldest=True),
    "deep page": lambda chance, place: {"cursor": chance.randrange(1000, place.rows)},
    "the largest site": _fixed(**_sites(1)),
    "the smallest site": _fixed(**_sites(SITES)),
    "three sites, deep page": lambda chance, place: {
        **_sites(*THREE),
        "cursor": chance.randrange(1000, place.rows),
    },
    "period: the last 24 hours": _since(1),
    "period: 30 days": _since(30),
    "period: a week, long ago, at a small site": lambda chance, place: {**_week(chance, place), **_sites(SITES)},
    "period: a week, long ago, oldest first": lambda chance, place: {**_week(chance, place), "oldest": True},
    "sender": lambda chance, place: {"sender": _sender(chance, place)},
    "sender of thousands": lambda chance, _: {"sender": archive.sender_of(chance.randrange(5))},
    "sender, at a small site": lambda chance, _: {"sender": archive.sender_of(chance.randrange(5)), **_sites(SITES)},
    "sender of none": _fixed(sender="nobody@nowhere.test"),
    "visit": lambda chance, place: {"visit": _visit(chance, place)},
    "visit of none": _fixed(visit="17"),
    "state: forwarded": _fixed(state="forwarded"),
    "state: failed": _fixed(state="failed"),
    "state: failed, of three sites": _fixed(state="failed", **_sites(*THREE)),
    "state: looped": _fixed(state="looped"),
    "state: queued (none is)": _fixed(state="queued"),
    "deal: yes": _fixed(deal=True),
    "deal: yes, at a small site": _fixed(deal=True, **_sites(SITES)),
    "deal: no": _fixed(deal=False),
    "source: common": _fixed(source="google"),
    "source: one of many": lambda chance, _: {"source": f"mail_{chance.randrange(20)}"},
    "source: 20 letters": _fixed(source=RARE_SOURCE),
    "source: none has it": _fixed(source="nowhere"),
    "source, a week long ago": lambda chance, place: {**_week(chance, place), "source": "mail_19"},
    "search: a rare word": _fixed(query=RARE),
    "search: a number in one letter": lambda chance, place: {"query": f"n{chance.randrange(1, place.rows):x}"},
    "search: a word of a tenth": lambda chance, _: {"query": chance.choice(COMMON)},
    "search: a word of all": _fixed(query=EVERYWHERE),
    "search: three characters": lambda chance, _: {"query": chance.choice(("har", "lan", "zir", "reg", "n12"))},
    "search: one character": lambda chance, _: {"query": chance.choice("abn1")},
    "search: two common words": _fixed(query=f"{COMMON[2]} {EVERYWHERE}"),
    "search: two that never meet": _fixed(query=f"{COMMON[0]} {COMMON[1]}"),
    "search: two that never meet, deep": lambda chance, place: {
        "query": f"{COMMON[0]} {COMMON[1]}",
        "cursor": chance.randrange(1000, place.rows),
    },
    "search: a word of none": _fixed(query="xyzzyq"),
    "search: an address": lambda chance, place: {"query": _sender(chance, place)},
    "search: a common word, deep page": lambda chance, place: {
        "query": COMMON[2],
        "cursor": chance.randrange(1000, place.rows),
    },
    "search: a common word, at a small site": _fixed(query=COMMON[2], **_sites(SITES)),
    "search: a common word, of a sender": lambda chance, place: {"query": COMMON[2], "sender": _sender(chance, place)},
    "search: a common word, from a source": _fixed(query=COMMON[2], source="mail_19"),
    "search: a common word, a week": lambda chance, place: {**_week(chance, place), "query": COMMON[2]},
}

#: What is asked for each time after a letter has come in: the page's figures of today are then counted anew.
ARRIVING: dict[str, Ask] = {
    "first page": _fixed(),
    "first page, three sites": _fixed(**_sites(*THREE)),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds; ``cpu`` is what this process worked for one, on average.

    ``rows`` is the most that one page had, ``early`` how many ended early.
    """

    cpu: float
    p50: float
    p95: float
    most: float
    rows: int
    early: int


Once = Callable[[dict[str, Any]], Awaitable[tuple[int, bool]]]


async def timed(once: Once, asks: list[dict[str, Any]], before: Callable[[], None] | None = None) -> Timing:
    """``once`` answers the rows of a page, and whether it ended early; what is done ``before`` it is not timed."""
    taken, rows, early, worked = [], 0, 0, time.process_time()
    for wanted in asks:
        if before is not None:
            before()
        begin = time.perf_counter()
        found, ended = await once(wanted)
        taken.append((time.perf_counter() - begin) * 1000)
        rows, early = max(rows, found), early + ended
    taken.sort()
    at = [taken[min(len(taken) - 1, int(len(taken) * share))] for share in (0.5, 0.95)]
    cpu = (time.process_time() - worked) * 1000 / len(asks)
    return Timing(cpu, at[0], at[1], taken[-1], rows, early)


def measure(report: Report, rows: int, directory: Path, rounds: int = ROUNDS, seed: int = 1) -> None:
    """Make the archive in ``directory``, or use the one of as many letters that is there; measure, judge."""
    place = _archive(report, rows, directory)
    report.line(f"  {rows} letters, {place.path.stat().st_size / 1e9:.1f} GB; the store's own functions, ms")
    asyncio.run(_store(report, place, rounds, seed))
    asyncio.run(_daemon(report, place, rounds, seed))


def _archive(report: Report, rows: int, directory: Path) -> Archive:
    path = directory / f"history-{rows}" / "data" / "relay.db"
    finished = path.with_suffix(".made")
    if not finished.exists():
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        begin, end = time.monotonic(), time.time()
        archive.make(path, rows, end, progress=lambda text: report.line(f"  {text}"))
        finished.write_text(str(end))
        report.line(f"  made in {time.monotonic() - begin:.0f} s")
    return Archive(path, rows, float(finished.read_text()))


async def _store(report: Report, place: Archive, rounds: int, seed: int) -> None:
    reader = Reader(place.path)
    await reader.start()
    try:

        async def once(wanted: dict[str, Any]) -> tuple[int, bool]:
            page = await history.browse(reader, Filter(**wanted), PAGE)
            return len(page.rows), page.next is not None and len(page.rows) < PAGE

        await once({})
        before = pss(os.getpid())
        with Watch(os.getpid()) as watch:
            timings = await _cases(report, place, rounds, seed, once)
        grown = watch.peak - before
    finally:
        await reader.close()
    report.figures.setdefault("history", {})["store"] = timings
    kept = grown <= GROWTH
    found = f"{before / 1e6:.0f} MB before, {grown / 1e6:+.1f} MB at the peak"
    report.judge("history: memory stays as it is", kept, found)


async def _cases(
    report: Report,
    place: Archive,
    rounds: int,
    seed: int,
    once: Once,
    where: str = "",
    cases: Mapping[str, Ask] = CASES,
    before: Callable[[], None] | None = None,
) -> dict[str, dict[str, float]]:
    chance = random.Random(seed)
    worst: tuple[float, str] = (0.0, "")
    found = {}
    report.line(f"  {'':44}{'CPU':>8}{'p50':>8}{'p95':>8}{'max':>8}{'rows':>6}  ended early")
    for name, ask in cases.items():
        timing = await timed(once, [ask(chance, place) for _ in range(rounds)], before)
        early = f"{timing.early} of {rounds}" if timing.early else ""
        report.line(
            f"  {name:44}{timing.cpu:8.1f}{timing.p50:8.1f}{timing.p95:8.1f}{timing.most:8.1f}{timing.rows:6}  {early}"
        )
        found[name] = {"cpu": timing.cpu, "p50": timing.p50, "p95": timing.p95, "max": timing.most, "rows": timing.rows}
        worst = max(worst, (timing.p95, name))
    goal = f"history: 95 of 100 of each list within {GOAL:.0f} ms{where}"
    report.judge(goal, worst[0] <= GOAL, f"the slowest: {worst[0]:.1f} ms ({worst[1]})")
    return found


async def _daemon(report: Report, place: Archive, rounds: int, seed: int) -> None:
    """The same over HTTP: the API, then the page."""
    keys = pages.admit(place, None, frozenset(THREE))
    with Relay(place.path.parent.parent, 9, ()) as relay:
        asker = pages.Asker(relay.http_port, keys)
        await _over_http(report, place, relay, asker, rounds, seed)
        pages.export(report, place, relay, asker)
        await asyncio.to_thread(pages.first_paint, report, asker)


async def _over_http(report: Report, place: Archive, relay: Relay, asker: pages.Asker, rounds: int, seed: int) -> None:
    with closing(asker.connection()) as connection:

        def once(path_of: Path_) -> Once:
            async def ask(wanted: dict[str, Any]) -> tuple[int, bool]:
                path = path_of(wanted)
                body = asker.get(connection, path, pages.scope_of(wanted))
                if path.startswith("/v1/"):
                    answer = json.loads(body)
                    return len(answer["items"]), answer["next"] is not None and len(answer["items"]) < PAGE
                return body.count(b'<tr id="letter-'), b"Search further" in body

            return ask

        for _ in range(5):  # what the first answers load is not theirs
            asker.get(connection, "/v1/messages")
            asker.get(connection, "/ui/history")
        before = pss(relay.pid)
        with Watch(relay.pid) as watch:
            for name, path_of in (("api", pages.api_path), ("page", pages.page_path)):
                report.line(f"  over HTTP, the {name}, ms")
                found = await _cases(report, place, rounds, seed, once(path_of), f" ({name})")
                report.figures["history"][name] = found
            report.line("  over HTTP, the page, each time after a letter has come in, ms")
            with pages.Arrivals(place, THREE[0]) as arrivals:
                report.figures["history"]["arriving"] = await _cases(
                    report, place, rounds, seed, once(pages.page_path), " (with new mail)", ARRIVING, arrivals.arrive
                )
    grown = watch.peak - before
    kept = grown <= GROWTH
    peak = f"{before / 1e6:.0f} MB before, {grown / 1e6:+.1f} MB at the peak"
    report.judge("history: the daemon's memory stays", kept, peak)
