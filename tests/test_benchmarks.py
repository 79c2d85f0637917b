"""The instruments of benchmarks/: they compile, they count right, and they notice what a server did wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import shutil
import socket
import sqlite3
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import archive, attackers, binds, day, history, history_http, hours, mail, processes, siege
from benchmarks.programs import Figures, LoadFailed, Sink, run_client
from benchmarks.relay import Relay
from benchmarks.report import Report
from benchmarks.visitors import AGAIN, BEGIN, DAY, LEASE, Plan, plan
from benchmarks.webhooks import Sent
from benchmarks.workplace import Workplace, workplace
from relay.core.attribution import Delays
from relay.core.model import Candidate
from tests.smtp_sink import SmtpSink

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="SKIPPED LOUDLY: gcc is not installed"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SKIPPED LOUDLY: the benchmarks need Linux"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    with workplace(Report(), tmp_path_factory.mktemp("place")) as found:
        yield found


@pytest.fixture(scope="module")
def programs(place: Workplace) -> Path:
    """Where every program is, compiled with all warnings as errors."""
    return place.directory


@pytest.fixture
def sink(programs: Path) -> Iterator[Sink]:
    with Sink(programs / "smtpsink") as found:
        yield found


def load(programs: Path, port: int, **options: str | int | float | bool) -> Figures:
    return run_client(programs / "smtpload", 20, **{"port": port, "run": "r", "messages": 50, **options})


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (4096, {}),
        (4096, {"per_connection": 7}),
        (4096, {"per_connection": 0, "pipelining": True}),
        (4096, {"rate": 500.0}),
        (100, {}),
        (102_400, {"pipelining": True}),
        (102_400, {"plain": True}),
        (3_000_000, {"messages": 5}),
    ],
)
def test_every_message_arrives_once_and_unchanged(
    programs: Path, sink: Sink, size: int, options: dict[str, float]
) -> None:
    count = int(options.get("messages", 50))
    sink.order(f"reset r {count} {size} {int(options.get('plain', 0))} track.test")
    sent = load(programs, sink.port, size=size, **options)
    assert (sent["sent"], sent["failed"], sent["unfinished"], sent["errors"]) == (count, 0, 0, [])
    found = sink.figures()
    assert found["unique"] == count
    assert {found[what] for what in ("duplicate", "altered", "misdirected", "foreign")} == {0}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]


async def one_message(programs: Path) -> bytes:
    """What the load client sends as message 0 of run "r", in wire form without the final dot."""
    async with SmtpSink() as server:
        await asyncio.to_thread(load, programs, server.port, messages=1)
        return server.messages[0].wire


def deliver(port: int, wire: bytes, recipient: str = "real0@crm.test") -> None:
    dialogue = [b"EHLO x\r\n", b"MAIL FROM:<a@b.test>\r\n", f"RCPT TO:<{recipient}>\r\n".encode(), b"DATA\r\n"]
    with socket.create_connection(("127.0.0.1", port), 10) as client, client.makefile("rb") as replies:
        assert replies.readline().startswith(b"220 ")
        for step in [*dialogue, wire + b".\r\n"]:
            client.sendall(step)
            while replies.readline()[3:4] == b"-":
                pass


async def test_header_fields_before_the_message_are_no_change(programs: Path, sink: Sink) -> None:
    wire = await one_message(programs)
    sink.order("reset r 1 4096 0 crm.test")
    deliver(sink.port, b"Received: from x\r\n\tby y\r\nX-Visit-Id: 1\r\n" + wire)
    assert (sink.figures()["unique"], sink.figures()["altered"]) == (1, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Subject: Enquiry", b"Subject: enquiry"),
        (b"Message-ID:", b"Message-Id:"),
        (b"MIME-Version: 1.0\r\n", b""),
        (b"\r\n..", b"\r\n."),
        (b" of r\r\n", b" of r \r\n"),
        (b"The end", b"The\r\nend"),
    ],
)
async def test_every_change_to_a_message_is_noticed(programs: Path, sink: Sink, before: bytes, after: bytes) -> None:
    wire = await one_message(programs)
    assert before in wire
    sink.order("reset r 1 4096 0 crm.test")
    deliver(sink.port, wire.replace(before, after, 1))
    assert (sink.figures()["unique"], sink.figures()["altered"]) == (1, 1)


async def test_copies_strangers_and_wrong_recipients_are_counted(programs: Path, sink: Sink) -> None:
    wire = await one_message(programs)
    sink.order("reset r 1 4096 0 crm.test")
    deliver(sink.port, wire, "u0@track.test")
    deliver(sink.port, wire)
    deliver(sink.port, b"Subject: spam\r\n\r\nhello\r\n")
    found = sink.figures()
    assert (found["unique"], found["misdirected"], found["duplicate"], found["foreign"]) == (1, 1, 1, 1)


async def test_the_load_client_says_what_a_server_refused(programs: Path) -> None:
    async with SmtpSink(script={"rcpt": ["450 4.2.1 later", None]}) as server:
        sent = await asyncio.to_thread(load, programs, server.port, messages=3, connections=1)
    assert (sent["sent"], sent["failed"], sent["errors"]) == (2, 1, ["RCPT: 450 4.2.1 later "])


def test_a_client_that_cannot_do_its_work_says_so(programs: Path) -> None:
    with pytest.raises(LoadFailed, match="--run is missing"):
        run_client(programs / "smtpload", 5, port=1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = run_client(programs / "smtpload", 1, port=silent.getsockname()[1], run="r", messages=2)
    assert (found["sent"], found["unfinished"]) == (0, 2)


def test_the_webhook_receiver_counts_posts_and_events(programs: Path) -> None:
    with Sink(programs / "hooksink") as sink:
        for event in ("evt_1", "evt_2", "evt_1"):
            request = urllib.request.Request(f"http://127.0.0.1:{sink.port}/", b"{}" * 100_000)
            request.add_header("webhook-id", event)
            with urllib.request.urlopen(request, timeout=10) as response:
                assert response.status == 200
        assert sink.figures() == {"posts": 3, "events": 2, "octets": 600_000}
        assert sink.order("reset") == "ok"
        assert sink.figures() == {"posts": 0, "events": 0, "octets": 0}


@pytest.fixture(scope="module")
def measured(place: Workplace) -> Iterator[Relay]:
    with Relay(place.directory / "relay", place.next_hop.port, place.webhook.port) as relay:
        mail.prepare(place, relay, mail.RECIPIENTS)
        yield relay


def test_the_relay_is_measured_and_verified(place: Workplace, measured: Relay) -> None:
    few = mail.Workload("a few", 4096, 50, 5, 10, 0.0)
    run = mail.run(place, measured, few, mail.Options(), few.messages)
    assert run.faults == ()
    assert min(run.forwarded, run.accepted, run.finished or 0.0, run.cpu) > 0
    assert run.memory > 10_000_000
    assert run.drained is not None


def test_hours_are_verified_and_their_memory_is_judged(
    place: Workplace, measured: Relay, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts: list[str] = []
    for verb in ("stop", "start"):  # which have a test of their own wherever a daemon is measured
        monkeypatch.setattr(measured, verb, functools.partial(restarts.append, verb))
    hours.measure(place, measured, 4 / 3600, 20.0, stretch=2.0, burst=20)
    assert restarts == ["stop", "start"]
    assert place.report.figures["hours"]["letters"] >= 120
    printed = capsys.readouterr().out
    assert "PASS  hours: every message exactly once, unchanged, indexed, posted: verified" in printed
    assert "hours: as many descriptors are open as before" in printed
    assert min(place.report.figures["hours"]["descriptors"]) > 10


def test_the_slope_leaves_out_the_first_quarter() -> None:
    samples = [(at * 3600.0, 0 if at < 1 else 100_000_000 + 2_000_000 * at) for at in range(1 + 4)]
    assert hours.slope(samples) == pytest.approx(2_000_000)


def test_descriptors_are_compared_by_quarters_without_the_first() -> None:
    samples = [(float(at), {0: 90, 1: 20, 2: 50, 3: 25}[at // 10]) for at in range(40)]
    assert hours.grown(samples) == 5


def test_binds_are_paced_timed_and_each_an_address_of_its_own(place: Workplace, measured: Relay) -> None:
    paced = binds.bind(place, measured, 100, address=binds.UNIQUE_ADDRESS, rate=400.0)
    assert measured.complaints() == []
    assert (paced["bound"], paced["failed"]) == (100, 0)
    assert paced["seconds"] >= 99 / 400
    assert 0 < paced["latency_ms"]["p50"] <= paced["latency_ms"]["p99"]


def test_attackers_come_and_go_and_say_what_they_were_answered(measured: Relay) -> None:
    with siege.Attackers(measured) as found:
        found.begin(["guesses", "views"])
        answers = ("guesses", "answered 550"), ("views", "answered 200")
        assert processes.wait_until(lambda: all(found.counts()[name].get(what, 0) > 20 for name, what in answers), 20)
        assert 0 < found.counts()["guesses"]["held"] <= attackers.GUESSERS
        found.order("end")
        assert found.counts() == {}


def test_a_letter_that_is_refused_in_a_siege_is_counted(measured: Relay) -> None:
    senders = siege.Senders()
    assert len(asyncio.run(senders.paced(measured, 5)).took) == 5
    assert senders.refused.total() == 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        nobody = SimpleNamespace(port=closed.getsockname()[1])
        assert asyncio.run(senders.paced(nobody, 5)).took == []  # type: ignore[arg-type]
    assert senders.refused.total() == 5


@pytest.mark.parametrize(
    ("name", "took", "refused", "kept"),
    [
        ("slow connections", 1.9, 0, True),
        ("slow connections", 2.1, 0, False),
        ("guesses", 0.01, 1, False),
        ("page views", 0.045, 0, True),
        ("page views", 0.06, 0, False),
        ("bodies", 0.02, 1, False),
    ],
)
def test_a_siege_is_lost_by_a_late_letter_or_one_that_was_refused(
    name: str, took: float, refused: int, kept: bool
) -> None:
    def one(took: float, refused: int = 0) -> siege.Round:
        counts = {attack: {"held": 1} for attack in siege.ATTACKS[name]}
        return siege.Round(Sent([took] * 100), Counter({"421": refused}), counts, 0, 0.5)

    report = Report()
    siege._judge(report, name, [{"quiet": one(0.02), name: one(took, refused)}])
    assert (report.judged, not report.failed) == (1, kept)


#: Of a small site where one in eight writes.
VISITS = 250


@pytest.fixture(scope="module")
def visitors() -> Plan:
    return plan(VISITS, 0.12, seed=4)


@pytest.fixture(scope="module")
def tallies(visitors: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[day.Setup, day.Tally]:
    """Too few addresses, enough for half an hour, a little more than for a day, and more than for all that come."""
    wanted = [day.Setup(0), day.Setup(5), *(day.Setup(size, domain=False) for size in (5, 50, 288, 1750))]
    return day.run(wanted, visitors, 4, tmp_path_factory.mktemp("day"), workers=1)


@pytest.mark.parametrize(("visits", "days"), [(2000, 6), (20_001, 2)])
def test_a_day_has_the_visits_and_mails_that_were_asked_for(visits: int, days: int) -> None:
    found = plan(visits, 0.05, seed=4)
    begins = [visit.binds[0] for visit in found.visits]
    assert sum(BEGIN <= begin < BEGIN + DAY for begin in begins) == visits
    assert len(begins) == days * visits
    assert len(found.attendance) == 3 * visits
    assert 0.8 < found.letters / (visits * 0.05 * (1 + AGAIN)) < 1.2
    letters = [letter for visit in found.visits for letter in visit.letters]
    assert all(BEGIN <= letter.received < BEGIN + DAY and letter.written < letter.received for letter in letters)


def test_a_visible_page_keeps_its_lease(visitors: Plan) -> None:
    gaps = [b - a for visit in visitors.visits for a, b in zip(visit.binds, visit.binds[1:], strict=False)]
    assert min(gaps) > 0
    assert sum(gap > LEASE / 2 + 1 for gap in gaps) < len(gaps) / 5  # the others were hidden for a while


def test_every_mail_of_a_day_has_one_outcome(visitors: Plan, tallies: dict[day.Setup, day.Tally]) -> None:
    for setup, tally in tallies.items():
        assert tally.mails.total() == visitors.letters, setup
        assert sum(tally.share(outcome) for outcome in day.OUTCOMES) == pytest.approx(1.0)
        assert tally.pooled + tally.without == VISITS
        assert len(tally.likely) == sum(tally.mails[f"likely, {place}"] for place in ("first", "listed", "missing"))


def test_unique_addresses_attribute_every_mail_exactly_and_right(tallies: dict[day.Setup, day.Tally]) -> None:
    assert tallies[day.Setup(0)].share("exact") == 1.0
    # Nothing is learned from a Date that lies before the visit.
    assert 0.9 * tallies[day.Setup(0)].mails.total() < tallies[day.Setup(0)].learned


def test_more_addresses_leave_fewer_without_and_no_fewer_exact(tallies: dict[day.Setup, day.Tally]) -> None:
    growing = [tallies[day.Setup(size, domain=False)] for size in (5, 50, 288, 1750)]
    without, exact = [tally.without for tally in growing], [tally.share("exact") for tally in growing]
    assert without == sorted(without, reverse=True)
    assert without[0] > 0 == without[2]
    assert exact == sorted(exact)
    assert exact[0] == 0 < 0.9 < exact[3]
    assert growing[0].mails["real address"] > 0 == growing[2].mails["real address"]


def test_an_exhausted_pool_falls_back_on_what_is_exact(tallies: dict[day.Setup, day.Tally]) -> None:
    with_domain = tallies[day.Setup(5)]
    assert with_domain.mails["exact"] > 0 == with_domain.mails["real address"]
    assert with_domain.without > 0


@pytest.mark.parametrize(
    ("stated", "outcome"),
    [
        (("exact", 7, None), "exact"),
        (("exact", 8, None), "exact, WRONG"),
        (("inferred", 8, None), "inferred, WRONG"),
        (("likely", None, "[[7, 0.6], [8, 0.4]]"), "likely, first"),
        (("likely", None, "[[8, 0.6], [7, 0.4]]"), "likely, listed"),
        (("likely", None, "[[8, 0.6], [9, 0.4]]"), "likely, missing"),
        (("none", None, None), "none"),
    ],
)
def test_what_is_stated_is_judged_by_whose_mail_it_was(stated: tuple[Any, ...], outcome: str) -> None:
    assert day.outcome_of(stated, 7) == outcome


def test_late_mail_is_rarely_stated_as_somebody_elses(tallies: dict[day.Setup, day.Tally]) -> None:
    """Every address is held about once a day, so what is written days later is written to its last holder's, too."""
    assert tallies[day.Setup(288, domain=False)].share("exact, WRONG") < 0.02


def test_a_day_is_the_same_for_the_same_seed(
    visitors: Plan, tallies: dict[day.Setup, day.Tally], tmp_path: Path
) -> None:
    again = plan(VISITS, 0.12, seed=4)
    assert again == visitors != plan(VISITS, 0.12, seed=5)
    played = day.simulate(day.Setup(5), again, 4, tmp_path)
    assert (played.mails, played.likely) == (tallies[day.Setup(5)].mails, tallies[day.Setup(5)].likely)


def test_calibration_counts_by_what_was_stated() -> None:
    found = day.Calibration()
    rng = random.Random(1)
    for _ in range(100):
        stated = rng.choice([0.25, 0.75])
        found.add([Candidate(1, stated), Candidate(2, 1 - stated)], truth=1)
    assert [count for count, _, _ in found.bins if count] == [found.bins[2][0], found.bins[5][0]]
    assert (found.total[0], found.total[2]) == (100, 100)
    assert found.total[1] == pytest.approx(0.25 * found.bins[2][0] + 0.75 * found.bins[5][0])


def test_likely_mails_are_weighed_by_other_delays(tallies: dict[day.Setup, day.Tally]) -> None:
    cases = tallies[day.Setup(50, domain=False)].likely
    prompt = Delays.of([-600.0] * 1000)  # everybody writes while the address is held
    assert day.weighed(cases, prompt).bins[-1][0] > day.weighed(cases).bins[-1][0]
    assert day.weighed(cases, learned=True).total[0] == 0


def test_the_report_of_a_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    day.measure(report, 200, (5,), 0.05, 1, tmp_path, workers=1)
    printed = capsys.readouterr().out
    assert "seed 1" in printed
    assert "(recommended)" in printed
    assert "PASS  day: unique is exact and right: 100.00%" in printed
    assert {setup["name"] for setup in report.figures["day"]["setups"]} >= {"unique", "pool 5"}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def few_letters(tmp_path_factory: pytest.TempPathFactory) -> archive.Archive:
    path = tmp_path_factory.mktemp("archive") / "data" / "relay.db"
    path.parent.mkdir()
    return archive.make(path, 3000, time.time(), progress=lambda _: None)


def test_an_archive_has_what_is_asked_for(few_letters: archive.Archive) -> None:
    counts = {
        "SELECT count(*) FROM messages": (3000,),
        "SELECT count(*), count(DISTINCT message_id) FROM deliveries": (3000, 3000),
        "SELECT count(*) FROM texts WHERE indexed = 1": (3000,),
        "SELECT count(*) FROM deliveries AS d JOIN visits AS v ON v.id = d.visit_id WHERE v.site_id <> d.site_id": (0,),
        f"SELECT count(*) FROM message_search WHERE message_search MATCH '{archive.RARE}'": (5,),
        f"SELECT count(*) FROM message_search WHERE message_search MATCH '{archive.EVERYWHERE}'": (3000,),
        f"SELECT count(*) FROM message_search WHERE message_search MATCH '{' '.join(archive.COMMON[:2])}'": (0,),
        "SELECT count(*) FROM deliveries AS d JOIN visits AS v ON v.id = d.visit_id "
        f"WHERE v.marker = '{archive.RARE_SOURCE}'": (20,),
    }
    with contextlib.closing(sqlite3.connect(few_letters.path)) as database:
        for query, expected in counts.items():
            assert database.execute(query).fetchone() == expected, query
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        (first, last) = database.execute("SELECT min(received_at), max(received_at) FROM messages").fetchone()
        indexes = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert 0.99 * archive.PERIOD < last - first < archive.PERIOD
    assert {"ix_messages_sender", "ix_events_dealt", "ix_deliveries_site_id_message_id"} <= indexes


def test_every_list_of_the_history_is_asked_for_and_judged(
    few_letters: archive.Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report()
    asyncio.run(history._store(report, few_letters, 1, 1))
    printed = capsys.readouterr().out
    assert set(report.figures["history"]["store"]) == set(history.CASES)
    assert report.judged == 2
    for name in ("state: failed", "search: a rare word", "source: 20 letters", "visit"):
        assert f"  {name} " in printed


def test_a_filter_is_the_same_to_the_api_and_to_the_page() -> None:
    wanted = {"sites": frozenset({3}), "since": 0.0, "deal": True, "oldest": True, "query": "a b"}
    assert history_http.api_path(wanted) == (
        "/v1/messages?site=site3&sort=oldest&q=a+b&deal=true&since=1970-01-01T00%3A00%3A00.000Z"
    )
    assert history_http.page_path(wanted) == (
        "/ui/history?site=site3&sort=oldest&q=a+b&deal=yes&period=custom&since=1970-01-01"
    )
    several = {"sites": frozenset({1, 2}), "oldest": True}  # asked for by who sees no other
    assert history_http.scope_of(several) == frozenset({1, 2})
    assert history_http.scope_of(wanted) is None
    assert history_http.page_path(several) == "/ui/history?sort=oldest"


def test_the_history_of_a_daemon_is_asked_and_exported(few_letters: archive.Archive) -> None:
    report = Report({"history": {}})
    keys = history_http.admit(few_letters, None, frozenset(history.THREE))
    with Relay(few_letters.path.parent.parent, 9, ()) as relay:
        asker = history_http.Asker(relay.http_port, keys)
        with contextlib.closing(asker.connection()) as connection:
            assert asker.get(connection, "/v1/messages?site=site1&limit=1").startswith(b'{"items":[{"id":"')
            assert asker.get(connection, "/ui/history").count(b'<tr id="letter-') == 50
        history_http.export(report, few_letters, relay, asker)
        assert report.failed == []
        asyncio.run(history._over_http(report, few_letters, relay, asker, 1, 1))
        assert relay.complaints() == []
    figures = report.figures["history"]
    assert figures["export"]["lines"] > 50
    for where in ("api", "page"):
        assert set(figures[where]) == set(history.CASES)
        assert all(figures[where][name]["rows"] for name in history.CASES if "three sites" in name), "it was asked"
    assert [figures["arriving"][name]["rows"] for name in history.ARRIVING] == [50, 50]


def test_letters_that_arrive_are_seen_and_go_again(few_letters: archive.Archive) -> None:
    def seen() -> tuple[int, int, float]:
        with contextlib.closing(sqlite3.connect(few_letters.path)) as database:
            query = "SELECT count(*), max(id), max(received_at) FROM messages"
            found: tuple[int, int, float] = database.execute(query).fetchone()
            return found

    count, last, latest = seen()
    with pytest.raises(KeyError), history_http.Arrivals(few_letters, 2, first=3) as arrivals:  # noqa: PT012
        assert seen()[:2] == (count + 3, 3003)
        arrivals.arrive()
        assert seen()[:2] == (count + 4, 3004)
        assert seen()[2] > latest
        raise KeyError
    assert seen() == (count, last, latest)


def test_a_broken_promise_is_a_fail_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report({"mail": {"rate": 1}})
    report.judge("fast", True, "2 x")
    assert report.finish(None) == 0
    report.judge("small", False, "400 MB")
    assert report.finish(tmp_path / "figures.json") == 1
    assert "  FAIL  small: 400 MB\n" in capsys.readouterr().out
    assert '"failed": [\n      "small"\n    ]' in (tmp_path / "figures.json").read_text()


def test_cpu_and_memory_of_this_process_are_read() -> None:
    before, until = processes.cpu_seconds(os.getpid()), time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert processes.cpu_seconds(os.getpid()) - before >= 0.03
    assert processes.pss(os.getpid()) > processes.pss_anonymous(os.getpid()) > 5_000_000
    assert os.getpid() in processes.tree(os.getppid())
