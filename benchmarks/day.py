"""A day of a site, simulated: whose visit a mail came from, by what attribution says and by what is known to be true.

Visitors and mail come from benchmarks/visitors.py, which states every assumption. They are played through the verbs of
the real store, bindings.bind and messages.accept, with the time as an argument; what differs from a daemon is that
nothing goes over a network and that the scratch database is not synced (``synchronous=OFF``): rates are not measured
here. Every pool size has a database of its own, once with a substitute domain (who finds the pool exhausted gets a
unique address) and once without (who finds it exhausted sees the real address, whose mail never comes by us).

The same mails are judged twice where they are only likely: with the half-life (pool/2), and with the delays that this
database had learned by then from its own exact mail (pool/3; relay/learning.py looks once an hour).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, select

from benchmarks.report import Report
from benchmarks.visitors import BEGIN, DAY, HOUR, LEASE, Letter, Plan, plan
from relay.core.address import lookup_keys, parse
from relay.core.attribution import ENOUGH_DELAYS, LATE_WINDOW, POOL_METHOD, Delays, attribute_pool, written_at
from relay.core.channel import Channel, Source
from relay.core.model import Address, Candidate, Holding, Method
from relay.core.sizing import Recommendation, recommend
from relay.core.source import PageMarks
from relay.store import attribution, bindings, figures, messages
from relay.store.attribution import Evidence
from relay.store.bindings import Asked, BindRequest
from relay.store.connection import connect
from relay.store.directory import Directory, SiteView
from relay.store.engine import Statement, Tx
from relay.store.messages import Incoming, Recipient
from relay.store.migrate import migrate
from relay.store.reader import Reader
from relay.store.routes import RouteCache
from relay.store.schema import deliveries
from relay.store.sites import SiteDefinition, TargetDefinition, declare_all

POOLS = (50, 100, 200, 400, 800, 1600)
WRITERS = 0.01
SEED = 20
TRACK = "track.test"
REAL = Address("sales", "crm.test")
SITE = "day"
#: Binds in one transaction: how often is nothing that attribution depends on.
BATCH = 2000
#: The default of the daemon's configuration: seconds without another holder for an exact match.
WINDOW = DAY
#: Upper ends of the bins of a first candidate's stated probability.
BINS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)

#: What became of a mail, best first.
OUTCOMES = ("exact", "exact, WRONG", "inferred", "inferred, WRONG", "likely, first", "likely, listed",
            "likely, missing", "none", "real address")  # fmt: skip

_STATED = Statement(
    select(
        deliveries.c.attribution_method, deliveries.c.attribution, deliveries.c.visit_id, deliveries.c.candidates
    ).where(deliveries.c.message_id == bindparam("message"))
)


@dataclass(frozen=True, slots=True)
class Setup:
    """How the target shows itself: from a pool of ``size`` with or without a domain to fall back on; 0: unique."""

    size: int
    domain: bool = True

    @property
    def name(self) -> str:
        return f"pool {self.size}" if self.size else "unique"

    def target(self) -> TargetDefinition:
        pool = tuple(Address(f"p{number}", TRACK) for number in range(self.size))
        method = Method.POOL if self.size else Method.UNIQUE
        return TargetDefinition(REAL, method, TRACK if self.domain else None, pool, LEASE)


@dataclass(frozen=True, slots=True)
class Likely:
    """A mail that was only likely: what is known of its address, whose it truly was, and the delays learned by then."""

    holdings: tuple[Holding, ...]
    written: float
    received: float
    truth: int
    learned: Delays

    def candidates(self, delays: Delays) -> tuple[Candidate, ...]:
        return attribute_pool(self.holdings, self.written, self.received, WINDOW, delays).candidates


@dataclass(slots=True)
class Tally:
    """What the day came to. ``pooled``: its visits that got an address of the pool; ``without``: the others."""

    pooled: int = 0
    without: int = 0
    mails: Counter[str] = field(default_factory=Counter)
    likely: list[Likely] = field(default_factory=list)
    learned: int = 0  # exact mails that delays were learned from, in the end
    seconds: float = 0.0

    def share(self, *outcomes: str) -> float:
        """Share of all mails of the day, 0 to 1."""
        return sum(self.mails[outcome] for outcome in outcomes) / max(1, self.mails.total())


class Player:
    """One database through all days."""

    def __init__(self, tx: Tx, reader: Reader, site: SiteView, visitors: Plan, seed: int) -> None:
        self._tx, self._reader, self._routes = tx, reader, RouteCache(reader)
        self._site, self._target = site, site.targets[0]
        self._visitors = visitors
        self._random = random.Random(seed).randbytes
        self._numbers: list[str | None] = [None] * len(visitors.visits)
        self._shown: dict[int, list[tuple[float, str | None]]] = {}  # of visits that write
        self._learned, self._looked_at = Delays(), 0.0
        self.tally = Tally()

    async def play(self) -> Tally:
        """All of it in the order of time."""
        letters = (
            (letter.received, index, letter)
            for index, visit in enumerate(self._visitors.visits)
            for letter in visit.letters
        )
        happenings: list[tuple[float, int, Letter | None]] = [*letters]
        happenings += ((at, index, None) for at, index in self._visitors.binds())
        happenings.sort(key=lambda happening: happening[:2])
        self._tx.sql("BEGIN IMMEDIATE")
        for count, (now, index, letter) in enumerate(happenings):
            if letter is None:
                self._bind(index, now)
                if count % BATCH == 0:
                    self._commit()
            else:
                await self._mail(index, letter)
        self._tx.sql("COMMIT")
        self.tally.learned = len(await figures.delays(self._reader))
        return self.tally

    def _commit(self) -> None:
        self._tx.sql("COMMIT")
        self._tx.sql("BEGIN IMMEDIATE")

    def _bind(self, index: int, now: float) -> None:
        request, visit = self._request(index), self._visitors.visits[index]
        bound = bindings.bind(self._tx, request, now, self._random)
        self._numbers[index] = bound.visit
        shown = bound.substitutes.get(self._target.id)
        if bound.fresh and now >= BEGIN:
            pooled = shown is not None and (bound.created == () or self._target.method is Method.UNIQUE)
            self.tally.pooled += pooled
            self.tally.without += not pooled
        if visit.letters:
            self._shown.setdefault(index, []).append((now, shown))

    def _request(self, index: int) -> BindRequest:
        """The first page view comes from a campaign, so that it begins a visit; the others are inner pages."""
        number, before = self._numbers[index], self._visitors.visits[index].before
        first = number is None
        earlier = self._numbers[before] if first and before is not None else None
        marks = PageMarks("www.crm.test", "www.crm.test/", utm_source="ads", marker=f"ads_{index}") if first else INNER
        return BindRequest(
            site_id=self._site.id,
            visit_timeout=self._site.visit_timeout,
            own_hosts=self._site.own_hosts,
            number=number or earlier,
            first_visit=number or earlier,
            marks=marks,
            source=Source(marks.marker, Channel.ADS),
            referrer=None,
            params={},
            google_client_id=None,
            tracking=True,
            asked=(Asked(self._target.id, self._target.method, REAL.local, self._target.domain, LEASE),),
            interacted=True,
        )

    async def _mail(self, index: int, letter: Letter) -> None:
        """Deliver it to what its writer saw last, and judge what is said of it."""
        address = [shown for at, shown in self._shown[index] if at <= letter.written][-1]
        if address is None:
            self.tally.mails["real address"] += 1
            return
        self._commit()
        await self._learn(letter.received)
        found = await self._routes.find(lookup_keys(parse(address)))
        assert found is not None
        route, tag = found
        message = _incoming(index, letter)
        recipient = Recipient(address, route, tag, route.real_address, None, REAL.domain)
        evidence = Evidence(WINDOW)
        accepted = messages.accept(
            self._tx, message, [recipient], claim=None, expires_at=letter.received + 5 * DAY, evidence=evidence
        )
        row = self._tx.one(attribution.FIND_NUMBER, site=self._site.id, number=self._numbers[index])
        stated = self._tx.one(_STATED, message=accepted.message_id)
        assert row is not None
        assert stated is not None
        method, *said = stated
        outcome = outcome_of(said, row[0])
        self.tally.mails[outcome] += 1
        if outcome.startswith("likely") and method == POOL_METHOD:  # not by what its writer wrote before
            held = attribution.holdings(self._tx, route.id, message.written_at - LATE_WINDOW, letter.received)
            case = Likely(tuple(held), message.written_at, letter.received, row[0], self._learned)
            self.tally.likely.append(case)

    async def _learn(self, now: float) -> None:
        if now >= self._looked_at + HOUR:
            self._learned, self._looked_at = Delays.of(await figures.delays(self._reader)), now


INNER = PageMarks("www.crm.test", "www.crm.test/contact")


def _incoming(index: int, letter: Letter) -> Incoming:
    body = f"{index} {letter.received}".encode()
    sender = f"visitor{index}@mail.test"
    return Incoming(
        received_at=letter.received,
        written_at=written_at(letter.date, letter.received),
        mail_from=sender,
        sender=sender,
        subject="Enquiry",
        message_id=None,
        in_reply_to=None,
        references=(),
        size=len(body),
        stored_size=len(body),
        data=body,
        file=None,
        cut=(),
        digest=hashlib.sha256(body).digest(),
        ip="192.0.2.9",
        helo="mail.test",
        tls=None,
        esmtp=True,
        automatic=None,
        bounce=False,
        bare_lf=0,
    )


def outcome_of(stated: Sequence[Any], truth: int) -> str:
    """One of OUTCOMES; ``stated`` as in _STATED, without the method."""
    state, visit, candidates = stated
    if state == "likely":
        listed = [candidate for candidate, _ in json.loads(candidates)]
        return "likely, first" if listed[0] == truth else "likely, listed" if truth in listed else "likely, missing"
    if state in ("exact", "inferred"):
        return state if visit == truth else f"{state}, WRONG"
    return "none"


def simulate(setup: Setup, visitors: Plan, seed: int, directory: Path) -> Tally:
    """Play all days with this target; the scratch database in ``directory`` is gone afterwards."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="day-", dir=directory) as name:
        tally = asyncio.run(_simulate(setup, visitors, seed, Path(name) / "relay.db"))
    tally.seconds = time.monotonic() - began
    return tally


async def _simulate(setup: Setup, visitors: Plan, seed: int, path: Path) -> Tally:
    migrate(path)
    site = SiteDefinition(
        name=SITE,
        key="pk_day",
        origins=("https://www.crm.test",),
        tracking=True,
        send_to_crm=True,
        bots="none",
        visit_timeout=14 * DAY,
        targets=(setup.target(),),
    )
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA wal_autocheckpoint=1000")  # nobody else brings the log in here
        tx = Tx(connection)
        connection.execute("BEGIN IMMEDIATE")
        declare_all(tx, [site], BEGIN - 10 * DAY)
        connection.execute("COMMIT")
        reader = Reader(path, 1)
        await reader.start()
        try:
            directory = Directory(reader)
            await directory.load()
            return await Player(tx, reader, directory.by_name[SITE], visitors, seed).play()
        finally:
            await reader.close()


def held(visitors: Plan) -> list[tuple[float, float]]:
    """From when to when each visit needs an address, renewals included, in the order in which they begin."""
    return sorted((visit.binds[0], visit.binds[-1] + LEASE) for visit in visitors.visits)


def run(wanted: Sequence[Setup], visitors: Plan, seed: int, directory: Path, workers: int) -> dict[Setup, Tally]:
    """Every setup in a process of its own, so many at a time; all in this one for a single worker."""
    if workers == 1:
        return {setup: simulate(setup, visitors, seed, directory) for setup in wanted}
    # Started anew and not forked: a copy of a process with threads (aiosqlite's) may find its locks taken for ever.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {setup: pool.submit(simulate, setup, visitors, seed, directory) for setup in wanted}
        return {setup: job.result() for setup, job in jobs.items()}


@dataclass(slots=True)
class Calibration:
    """First candidates by their stated probability: [how many, the sum of what was stated, how many were right]."""

    bins: list[list[float]] = field(default_factory=lambda: [[0, 0.0, 0] for _ in BINS])

    def add(self, candidates: Sequence[Candidate], truth: int) -> None:
        first = candidates[0]
        found = next(bin_ for end, bin_ in zip(BINS, self.bins, strict=True) if first.probability <= end + 1e-9)
        found[0] += 1
        found[1] += first.probability
        found[2] += first.visit == truth

    @property
    def total(self) -> list[float]:
        return [sum(column) for column in zip(*self.bins, strict=True)]


def weighed(cases: Iterable[Likely], delays: Delays | None = None, *, learned: bool = False) -> Calibration:
    """With these delays (none: the half-life); ``learned``: with what was known by then, where that was enough."""
    found = Calibration()
    for case in cases:
        if learned and not case.learned.learned:
            continue
        found.add(case.candidates(case.learned if learned else delays or Delays()), case.truth)
    return found


def measure(
    report: Report,
    count: int,
    pools: Sequence[int],
    writers: float,
    seed: int,
    directory: Path,
    workers: int,
) -> None:
    """Simulate the day with every pool size, with what is recommended, and with unique addresses; print and judge."""
    began = time.monotonic()
    visitors = plan(count, writers, seed)
    advice = recommend(visitors.attendance, LEASE)
    sizes = sorted({*pools, advice.size})
    wanted = [Setup(0), *(Setup(size, domain) for size in reversed(sizes) for domain in (True, False))]
    found = run(wanted, visitors, seed, directory, workers)
    report.line(f"day · {count} visits, {visitors.letters} mails, seed {seed} · lease {LEASE:g} s, window {WINDOW:g} s")
    report.line(f"  recommended: {_advice(advice)}")
    spans = held(visitors)
    mean = sum(end - start for start, end in spans) / len(spans)
    report.line(f"  a visit holds its address for {mean / 60:.1f} min")
    for domain in (True, False):
        report.line()
        report.line(f"  {'with' if domain else 'without'} a domain for unique addresses; in % of the day's mails")
        report.line(_HEADER)
        for setup in [*(Setup(size, domain) for size in sizes), *([Setup(0)] if domain else [])]:
            report.line(_row(setup, found[setup], setup.size == advice.size))
    _weighings(report, found, sizes)
    unique, pooled = found[Setup(0)], [tally for setup, tally in found.items() if setup.size]
    report.line()
    report.judge("day: unique is exact and right", unique.share("exact") == 1, f"{unique.share('exact'):.2%}")
    wrong = max(tally.share("exact, WRONG") for tally in pooled)
    report.judge("day: at most 0.1 % of the mails exact and wrong with any pool", wrong <= 0.001, f"{wrong:.2%}")
    report.line(f"  {time.monotonic() - began:.0f} s")
    report.figures["day"] = {
        "visits": count,
        "seed": seed,
        "recommended": advice.size,
        "setups": [
            {"name": setup.name, "domain": setup.domain, "pooled": tally.pooled, "without": tally.without,
             "mails": {outcome: tally.mails[outcome] for outcome in OUTCOMES}, "seconds": tally.seconds}
            for setup, tally in found.items()
        ],
    }  # fmt: skip


_HEADER = (
    f"  {'':11}{'visits without':>15}{'exact':>8}{'exact,':>8}{'likely:':>9}{'in the':>9}{'not in':>9}"
    f"{'inferred':>10}{'none':>7}{'real':>9}\n"
    f"  {'':11}{'a pool address':>15}{'right':>8}{'WRONG':>8}{'first':>9}{'list':>9}{'it':>9}"
    f"{'':>10}{'':>7}{'address':>9}"
)


def _advice(advice: Recommendation) -> str:
    return f"{advice.size} ({advice.method}, peak {advice.peak_per_hour}/h, {advice.shared:.2%} without, it says)"


def _row(setup: Setup, tally: Tally, recommended: bool) -> str:
    without = tally.without / max(1, tally.without + tally.pooled)
    cells = [tally.share(outcome) for outcome in ("exact", "exact, WRONG")]
    cells += [tally.share(f"likely, {place}") for place in ("first", "listed", "missing")]
    cells += [tally.share("inferred", "inferred, WRONG"), tally.share("none"), tally.share("real address")]
    widths = (8, 8, 9, 9, 9, 10, 7, 9)
    row = "".join(f"{cell * 100:{width}.1f}" for cell, width in zip(cells, widths, strict=True))
    return f"  {setup.name:11}{without * 100:15.1f}{row}{'  (recommended)' if recommended else ''}"


def _weighings(report: Report, found: dict[Setup, Tally], sizes: Sequence[int]) -> None:
    """How good and how honest the first candidate is, by each weighting; by pool size, then by what was stated."""
    report.line()
    report.line(
        f"  likely mails: first candidate right / stated, in %; delays count from {ENOUGH_DELAYS} exact mails on"
    )
    report.line(f"  {'':11}{'half-life, all':>24}{'half-life, after':>24}{'learned delays, after':>24}")
    half, learned = Calibration(), Calibration()
    for size in sizes:
        cases = found[Setup(size)].likely
        after = [case for case in cases if case.learned.learned]
        cells = (weighed(cases), weighed(after), weighed(cases, learned=True))
        report.line(f"  {f'pool {size}':11}" + "".join(f"{_first(cell):>24}" for cell in cells))
        _merge(half, cells[0])
        _merge(learned, cells[2])
    for name, calibration in (("half-life (pool/2)", half), ("learned delays (pool/3)", learned)):
        report.line()
        report.line(f"  calibration, {name}, all pools: stated, right in %, mails")
        for end, (count, stated, right) in zip(BINS, calibration.bins, strict=True):
            if count:
                report.line(f"    to {end:.1f}: {stated / count * 100:6.1f}{right / count * 100:8.1f}{count:8.0f}")


def _merge(into: Calibration, other: Calibration) -> None:
    for mine, theirs in zip(into.bins, other.bins, strict=True):
        mine[:] = [a + b for a, b in zip(mine, theirs, strict=True)]


def _first(calibration: Calibration) -> str:
    count, stated, right = calibration.total
    return f"{right / count * 100:.1f} / {stated / count * 100:.1f} of {count:.0f}" if count else "-"
