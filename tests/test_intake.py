"""What RCPT and the final dot are answered, what that says of an address, and what is kept of a message."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from sqlalchemy import select

from relay.core import reply, substitute
from relay.core.message import loop_token
from relay.core.model import Method
from relay.envelope import return_path
from relay.smtp_limits import Limits, Settings
from relay.store import history
from relay.store.engine import CommitUnknown, StoreUnavailable
from relay.store.routes import Route, RouteCache
from relay.store.schema import events, messages, paths
from tests.ledger import SOAK, seeded
from tests.parts import Parts, running_parts
from tests.smtp_client import SmtpClient
from tests.store_fixtures import LEASE, OTHER, TRACK, World, pool_target, site, target_of

MAIL = "Subject: hi\r\n\r\nhello\r\n.\r\n"


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    """Nothing is forwarded: the claims of this run go nowhere."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # for ``files``
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as found:
        found.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        yield found


async def files(directory: Path) -> int:
    """How many bodies have a file, once the one thread has removed what it was to remove."""
    await asyncio.to_thread(int)
    return len(list((directory / "bodies").iterdir()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Parts]:
    """For tests that send nothing."""
    async with running_parts(tmp_path_factory.mktemp("asked"), "smtp://127.0.0.1:9", start_forwarding=False) as found:
        yield found


async def rcpt(parts: Parts, recipient: str) -> int:
    async with await SmtpClient.hello(parts.port) as client:
        await client.command("MAIL FROM:<>")
        return (await client.command(f"RCPT TO:{recipient}")).code


async def mail(parts: Parts, text: str, *recipients: str, sender: str = "<alice@example.org>") -> str:
    async with await SmtpClient.hello(parts.port) as client:
        await client.start(*recipients, sender=sender)
        await client.send(text.encode())
        return (await client.answer()).short


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        ("<sales@track.example.com>", 250),
        ("<SALES@Track.Example.COM>", 250),
        ("<sales+123456@track.example.com>", 250),
        ("<sales+anything+else@track.example.com>", 250),
        ("<p1@track.example.com>", 250),
        ("<p1+tag@track.example.com>", 250),
        ("<card@track.example.com>", 250),
        ("<help@track.example.com>", 250),
        ("<postmaster>", 250),
        ("<postmaster@track.example.com>", 250),
        ("<Abuse@track.example.com>", 250),
        ("<postmaster@mx.track.example.com>", 250),
        ("<nobody@track.example.com>", 550),
        ("<p3@track.example.com>", 550),
        ("<sales@example.com>", 550),
        ("<postmaster@example.org>", 550),
        ("<alice@example.org>", 550),
        ("<SRS0=aaaa=bb=example.org=alice@track.example.com>", 550),
    ],
)
async def test_a_recipient_is_taken_when_its_domain_is_ours_and_a_route_exists(
    asked: Parts, recipient: str, code: int
) -> None:
    assert await rcpt(asked, recipient) == code


async def test_a_return_to_our_return_path_is_collected_from_the_null_sender(parts: Parts) -> None:
    path = return_path("alice@example.org", 1, "track.example.com", parts.keys.current("srs"), parts.clock())
    assert await mail(parts, MAIL, f"<{path}>", sender="<>") == "250 2.0.0"
    rows = await parts.store.reader.all(select(messages.c.state, paths.c.kind).join(paths))
    assert rows == [("collected", "collected")]
    (shown,) = await history.page(parts.store.reader, history.Filter(), 10)
    assert shown.deliveries == ()


async def test_a_return_path_among_the_recipients_is_refused_alone_at_its_rcpt(parts: Parts) -> None:
    returns = [
        return_path(sender, 1, "track.example.com", parts.keys.current("srs"), parts.clock())
        for sender in ("alice@example.org", f"{'x' * 64}@example.org")
    ]
    assert [path[:4].lower() for path in returns] == ["srs0", "vr0="]
    async with await SmtpClient.hello(parts.port) as client:
        await client.envelope("<card@track.example.com>", sender="<bob@example.org>")
        for path in returns:
            assert (await client.command(f"RCPT TO:<{path}>")).short == "550 5.1.1"
        await client.command("DATA")
        await client.send(MAIL.encode())
        assert (await client.answer()).short == "250 2.0.0"
    assert [row["recipient"] for row in await parts.delivery_rows()] == ["card@track.example.com"]


async def test_our_own_copy_coming_back_is_kept_as_looped_and_goes_nowhere(parts: Parts) -> None:
    token = loop_token("1", parts.keys.current("loop"))
    assert await mail(parts, f"X-Visit-Relay: {token}\r\n{MAIL}", "<sales@track.example.com>") == "250 2.0.0"
    (row,) = await parts.delivery_rows()
    assert (row["state"], row["claim"], row["attempts"]) == ("looped", None, 0)
    assert await parts.store.reader.all(select(events.c.state, events.c.reason)) == [("withheld", "loop")]


async def test_a_loop_token_that_is_not_ours_changes_nothing(parts: Parts) -> None:
    await mail(parts, f"X-Visit-Relay: {loop_token('1', b'x' * 32)}\r\n{MAIL}", "<sales@track.example.com>")
    (row,) = await parts.delivery_rows()
    assert row["state"] == "queued"


async def test_more_than_fifty_received_fields_are_a_loop(parts: Parts) -> None:
    trace = "Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    assert await mail(parts, trace * 51 + MAIL, "<sales@track.example.com>") == "554 5.4.6"
    assert await mail(parts, trace * 50 + MAIL, "<sales@track.example.com>") == "250 2.0.0"


async def test_a_header_block_over_the_limit_is_refused_and_nothing_is_kept(parts: Parts, tmp_path: Path) -> None:
    assert await mail(parts, "X: " + "y" * 300_000 + "\r\n" + MAIL, "<sales@track.example.com>") == "552 5.3.4"
    assert await mail(parts, "X: y\r\n" * 1001 + MAIL, "<sales@track.example.com>") == "552 5.3.4"
    assert await parts.delivery_rows() == []
    assert await files(tmp_path) == 0


@pytest.mark.parametrize("size", [10, 400_000])
async def test_a_mail_resent_after_a_lost_answer_is_recorded_and_not_sent_again(
    parts: Parts, tmp_path: Path, size: int
) -> None:
    text = "Subject: hi\r\n\r\n" + "x" * size + "\r\n.\r\n"
    for _ in range(2):
        assert await mail(parts, text, "<sales@track.example.com>") == "250 2.0.0"
    assert len(await parts.delivery_rows()) == 1
    assert [row[0] for row in await parts.store.reader.all(select(paths.c.kind))] == ["first", "repeat"]
    assert parts.read.given == [1]
    assert await files(tmp_path) == (1 if size > 300_000 else 0)


async def test_the_file_of_a_mail_resent_is_removed_off_the_event_loop(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is busy may take long for it."""
    threads = list[int]()
    monkeypatch.setattr(parts.bodies, "remove", lambda names: threads.append(threading.get_ident()))
    for _ in range(2):
        text = "Subject: hi\r\n\r\n" + "x" * 400_000 + "\r\n.\r\n"
        assert await mail(parts, text, "<sales@track.example.com>") == "250 2.0.0"
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


@pytest.mark.parametrize(
    ("field", "kinds"),
    [
        ("", ["first", "first"]),
        ("Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n", ["first", "repeat"]),
        ("Message-ID: <1@example.org>\r\n", ["first", "repeat"]),
    ],
    ids=["neither", "date", "message-id"],
)
async def test_equal_letters_with_neither_date_nor_message_id_are_two_after_some_minutes(
    parts: Parts, field: str, kinds: list[str]
) -> None:
    for _ in range(2):
        assert await mail(parts, field + MAIL, "<sales@track.example.com>") == "250 2.0.0"
        parts.clock.ahead += 601
    assert [row[0] for row in await parts.store.reader.all(select(paths.c.kind))] == kinds


async def test_mail_is_answered_452_while_the_disk_is_nearly_full(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_bavail=1, f_blocks=2, f_frsize=4096))
    async with await SmtpClient.hello(parts.port) as client:
        assert (await client.command("MAIL FROM:<a@example.org>")).short == "452 4.3.1"
        monkeypatch.setattr(
            "os.statvfs", lambda path: SimpleNamespace(f_bavail=1 << 30, f_blocks=1 << 30, f_frsize=4096)
        )
        parts.clock.ahead += 2
        assert (await client.command("MAIL FROM:<a@example.org>")).short == "250 2.1.0"
        assert (await client.command("RSET")).code == 250
        assert (await client.command("MAIL FROM:<a@example.org> SIZE=99999999")).short == "552 5.3.4"


async def test_data_dir_that_is_gone_is_no_full_disk_but_damage(parts: Parts) -> None:
    assert await mail(parts, MAIL, "<card@track.example.com>") == "250 2.0.0"
    size, path = parts.intake.space.size(), parts.store.damage.path.parent
    path.rename(path.with_name("moved"))
    parts.clock.ahead += 2
    assert (parts.intake.space.free() > 0, parts.intake.space.size()) == (True, size)
    assert await mail(parts, "X-Again: 1\r\n" + MAIL, "<card@track.example.com>") == "451 4.3.2"
    assert parts.store.damage.reason is not None


async def test_a_store_that_fails_is_451_and_the_session_goes_on(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(parts.store, "write", fail)
        assert await mail(parts, MAIL, "<sales@track.example.com>") == "451 4.3.2"
        patch.setattr(parts.store.routes, "find", fail)
        assert await rcpt(parts, "<p2@track.example.com>") == 451
    assert await mail(parts, MAIL, "<sales@track.example.com>") == "250 2.0.0"


async def test_a_store_that_finds_no_room_on_the_disk_is_452_and_the_next_try_is_taken(parts: Parts) -> None:
    text = "Subject: hi\r\n\r\n" + "x" * 100_000 + "\r\n.\r\n"
    await parts.store.write(lambda tx: tx.sql("PRAGMA max_page_count=1"))  # may not grow, until it is opened anew
    assert await mail(parts, text, "<sales@track.example.com>") == "452 4.3.1"
    assert await mail(parts, text, "<sales@track.example.com>") == "250 2.0.0"


@pytest.mark.parametrize("known", [{"reason": "malformed"}, {"looking": True}], ids=["damaged", "looked through"])
async def test_a_database_that_may_be_damaged_knows_of_nobody_that_he_is_not_there(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, known: dict[str, object]
) -> None:
    assert await rcpt(parts, "<nobody@track.example.com>") == 550
    with monkeypatch.context() as patch:
        for name, value in known.items():
            patch.setattr(parts.store.damage, name, value)
        assert await rcpt(parts, "<nobody@track.example.com>") == 451
        assert await rcpt(parts, "<nobody@elsewhere.example>") == 451
    assert await rcpt(parts, "<nobody@track.example.com>") == 550


@pytest.mark.parametrize(("error", "left"), [(StoreUnavailable, 0), (CommitUnknown, 1)])
async def test_a_large_body_outlives_a_commit_that_may_have_happened(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[StoreUnavailable], left: int
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error("disk I/O error")

    text = "Subject: hi\r\n\r\n" + "x" * 400_000 + "\r\n.\r\n"
    with monkeypatch.context() as patch:
        patch.setattr(parts.store, "write", fail)
        assert await mail(parts, text, "<sales@track.example.com>") == "451 4.3.2"
    assert await files(tmp_path) == left


async def test_the_sender_is_taken_from_from_else_from_the_envelope(parts: Parts) -> None:
    await mail(parts, "From: Bob <BOB@Example.ORG>\r\n" + MAIL, "<sales@track.example.com>")
    await mail(parts, MAIL, "<sales@track.example.com>")
    rows = await parts.store.reader.all(select(messages.c.sender).order_by(messages.c.id))
    assert [row[0] for row in rows] == ["bob@example.org", "alice@example.org"]


async def test_without_an_operator_nobody_takes_postmasters_mail(tmp_path: Path) -> None:
    async with running_parts(
        tmp_path / "other", "smtp://127.0.0.1:9", policy={"operator": None}, start_forwarding=False
    ) as alone:
        assert await rcpt(alone, "<postmaster>") == 550
        assert await rcpt(alone, "<postmaster@track.example.com>") == 550


# What the answer to RCPT and its time say to who harvests addresses

#: Asked of each kind, and how far from 0.5 an AUC may be. Of n and n times that nothing tells apart it has a standard
#: deviation of 1/√(6n): 0.0041 of 10,000, 0.029 of 200. The bounds are five of these: chance takes one of the 55 pairs
#: there in one of 19,000 runs.
SAMPLES, BOUND = (10_000, 0.02) if SOAK else (200, 0.15)
#: Seconds that each look-up of a route takes where the time of the answer must not depend on their number.
LOOK_UP = 0.02


def auc(one: Sequence[float], other: Sequence[float]) -> float:
    """How likely a time of ``one`` is longer than one of ``other`` (Mann and Whitney): 0.5 when they say nothing."""
    ordered = sorted([(time, True) for time in one] + [(time, False) for time in other])
    ranks = sum(rank for rank, (_, mine) in enumerate(ordered, 1) if mine)
    return (ranks - len(one) * (len(one) + 1) / 2) / (len(one) * len(other))


@dataclass
class Harvest:
    """What RCPT was answered, and after how many seconds, by kind of address."""

    answers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def ask(self, port: int, asked: Iterator[tuple[str, str]]) -> None:
        """Ask for what is left, one by one, each in a transaction of its own."""
        async with await SmtpClient.hello(port) as client:
            for kind, address in asked:
                await client.command("RSET")
                await client.command("MAIL FROM:<>")
                began = time.perf_counter()
                answer = await client.command(f"RCPT TO:<{address}>")
                self.times[kind].append(time.perf_counter() - began)
                self.answers[kind].add(f"{answer.code} {answer.text}")

    def distinguished(self) -> dict[tuple[str, str], float]:
        """The AUC of each two kinds."""
        pairs = itertools.combinations(self.times, 2)
        return {(one, other): round(auc(self.times[one], self.times[other]), 3) for one, other in pairs}


async def harvest(parts: Parts, addresses: dict[str, list[str]], clients: int) -> Harvest:
    """All asked in no order, by so many strangers at once, who are spared nothing but the counts."""
    limits = Limits(exempt=(), **dict.fromkeys(("commands", "errors", "idle_commands", "unknown_recipients"), 10**9))
    parts.smtp.configure(Settings("mx.track.example.com", limits=limits))
    asked = [(kind, address) for kind, listed in addresses.items() for address in listed]
    seeded("harvesting").shuffle(asked)
    found, left = Harvest(), iter(asked)
    await asyncio.gather(*(found.ask(parts.port, left) for _ in range(clients)))
    assert all(len(found.times[kind]) == SAMPLES for kind in addresses)
    areas = found.distinguished()
    worst = max(areas, key=lambda pair: abs(areas[pair] - 0.5))
    print(f"\n{len(areas)} AUCs of {SAMPLES:,} and {SAMPLES:,}: {areas[worst]} is farthest from 0.5, of {worst}")
    return found


def minted() -> str:
    return substitute.mint(os.urandom(substitute.RANDOM_OCTETS))


async def uniques(w: World) -> list[str]:
    """Unique addresses, each shown to a visit of its own."""
    return [(await w.shown("jobs@example.com"))[1] for _ in range(SAMPLES)]


async def forget(w: World, what: str) -> None:
    """Have the retention of visits, or of routes, come to all that there are."""
    w.pass_time(1)
    while (await w.sweep(**{what: w.now})).more:
        pass
    w.store.routes.forget_all()


def swapped(local: str) -> str:
    """A unique local part with its last two symbols swapped, or the last one another where they are the same."""
    *rest, one, other = local
    return "".join((*rest, other, one if one != other else "0" if one != "0" else "1"))


async def test_the_answer_for_an_unknown_recipient_and_its_time_do_not_say_why_it_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = RouteCache._load

    async def slow(cache: RouteCache, domain: str, local: str) -> Route | None:
        await asyncio.sleep(LOOK_UP)  # more than the noise of a busy machine: what leaks is then seen
        return await load(cache, domain, local)

    shop = site("shop", target_of(Method.UNIQUE, "jobs@example.com"), pool_target())
    async with running_parts(tmp_path, None, sites=(shop, OTHER), start_forwarding=False) as parts:
        w = World(parts.store, time.time())
        forgotten = await uniques(w)
        await forget(w, "visits")
        await forget(w, "routes")
        live = [address.partition("@")[0] for address in await uniques(w)]
        monkeypatch.setattr(RouteCache, "_load", slow)
        found = await harvest(
            parts,
            {
                "asked again and again": [f"nobody@{TRACK}"] * SAMPLES,
                "never issued, with tags": [f"{minted()}+a+b@{TRACK}" for _ in range(SAMPLES)],
                "never issued": [f"{minted()}@{TRACK}" for _ in range(SAMPLES)],
                "forgotten": forgotten,
                "misread": [f"{swapped(local)}@{TRACK}" for local in live],
                "live at another domain of ours": [f"{local}@track.other.example" for local in live],
                "a number": [f"{number}@{TRACK}" for number in range(10**11, 10**11 + SAMPLES)],
                "behind the pool": [f"info{number}@{TRACK}" for number in range(3, SAMPLES + 3)],
                "forged return path": [f"SRS0=aaaa=bb=example.org=a{n}@{TRACK}" for n in range(SAMPLES)],
                "no domain of ours": [f"{minted()}@example.org" for _ in range(SAMPLES)],
            },
            clients=25,  # with more a slow machine takes longer to answer than an unknown recipient waits
        )
    assert set().union(*found.answers.values()) == {reply.NO_SUCH_USER.line}
    assert {pair: area for pair, area in found.distinguished().items() if abs(area - 0.5) > BOUND} == {}


async def test_the_answer_for_a_substitute_and_its_time_do_not_say_whether_somebody_holds_it(tmp_path: Path) -> None:
    names = [f"pool{number}@{TRACK}" for number in range(2 * SAMPLES)]
    shop = site("shop", pool_target("sales@example.com", *names), target_of(Method.UNIQUE, "jobs@example.com"))
    async with running_parts(tmp_path, None, sites=(shop,), start_forwarding=False) as parts:
        w = World(parts.store, time.time())
        retired = await uniques(w)
        await forget(w, "visits")
        expired = await uniques(w)
        w.pass_time(2 * LEASE)
        held = [(await w.shown())[1] for _ in range(SAMPLES)]
        found = await harvest(
            parts,
            {
                "held": held,
                "free": sorted(set(names) - set(held)),
                "live": await uniques(w),
                "expired": expired,
                "retired": retired,
            },
            clients=1,
        )
    assert set().union(*found.answers.values()) == {reply.RECIPIENT_OK.line}
    assert {pair: area for pair, area in found.distinguished().items() if abs(area - 0.5) > BOUND} == {}


def test_a_difference_of_twice_the_bound_in_the_spread_of_times_comes_to_light() -> None:
    times = [number / SAMPLES for number in range(SAMPLES)]
    assert auc(times, times[::-1]) == pytest.approx(0.5, abs=0.01)
    assert auc([time + 2 * BOUND for time in times], times) > 0.5 + BOUND
    assert auc(times, [time + 1 for time in times]) == 0
