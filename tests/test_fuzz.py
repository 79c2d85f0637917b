"""A million inputs that strangers may send, of which some two thousand in every run: nothing raises, nothing hangs.

Nor does one hold the event loop up for half a second. `make soak` runs all of them and allows 100 ms without a pause
and 50 MB of growth. RELAY_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from relay.bodies import Bodies
from relay.core import substitute
from relay.core.address import MAX_SENDER, AddressError, lookup_keys, parse, parse_mail, parse_rcpt
from relay.core.message import scan, without
from relay.core.mime import bodies, walk
from relay.core.model import Address, Method
from relay.core.wire import stuff, unstuff
from relay.extract_frames import as_json, from_json
from relay.extract_worker import extract
from relay.smtp_envelope import mail, rcpt
from relay.smtp_limits import Limits, Settings
from relay.smtp_service import Service
from relay.smtp_transaction import Recipient, Transaction
from relay.store import history
from relay.store.schema import bodies as stored_bodies
from relay.store.schema import messages
from relay.store.sites import StaticDefinition, TargetDefinition
from tests import fuzzing
from tests.corpora import as_sent, mail_files
from tests.costs import Costs, each, watched
from tests.fuzzing import CANARY
from tests.ledger import SOAK, seeded
from tests.parts import PATIENCE, SITE, Parts, running_parts
from tests.scenarios.test_text import LETTERS
from tests.test_extraction import reading

#: Cases of each kind: a million together.
SESSIONS, HEADERS, TREES, ADDRESSES = (150_000, 300_000, 150_000, 400_000) if SOAK else (400, 500, 200, 1_000)
#: Sessions with the real intake and the real store behind them: each message costs a sync.
STORED = 10_000 if SOAK else 80
#: Seconds for which the event loop may be held up by its own doing; in the suite by its machine standing still, too.
STALL = 0.1 if SOAK else 1.0
#: Octets up to which a real message is spoiled.
REAL = 64 * 1024
#: Octets that a message may have here.
LARGEST = 5_000
#: The site whose addresses the grammars know.
U1 = replace(
    SITE,
    targets=(TargetDefinition(Address("sales", "example.com"), Method.PLUS, "track.test", (), 900.0),),
    statics=(StaticDefinition(Address("u1", "track.test"), "sales@example.com", "u1"),),
)
_REPLIES = re.compile(rb"(?:[245]\d\d[ -][ -~]*\r\n|354 [ -~]*\r\n)+").fullmatch


def judged(costs: Costs) -> None:
    print(f"\n{costs}")
    assert costs.own < STALL
    assert costs.growth < 50e6 or not SOAK


def letters() -> list[bytes]:
    """Real ones: those that the suite keeps, in the soak the corpora's too, where there are any."""
    found = [letter.content for letter in LETTERS.values()]
    if SOAK:
        try:
            found += [as_sent(path.read_bytes()) for path in mail_files() if path.stat().st_size <= REAL]
        except pytest.skip.Exception as missing:
            print(f"\n{missing}")
    print(f"real letters: {len(found)}")
    return found


class Taker:
    """An intake that takes what it can, and looks at it as the real one does."""

    def __init__(self) -> None:
        self.sound = False
        self.taken = 0

    async def route(self, recipient: Recipient, mail_from: Address | None) -> object | None:
        if isinstance(recipient, Address):
            assert len(lookup_keys(recipient)) < 12
            substitute.normalise(recipient.local)
        return None if str(recipient).startswith("unknown") else "route"

    def room(self, size: int) -> bool:
        return True

    async def accept(self, transaction: Transaction) -> str:
        wire = transaction.body.data
        assert wire is not None
        assert len(wire) <= LARGEST
        assert b"\0" not in wire
        assert wire.count(b"\r") == wire.count(b"\n") == wire.count(b"\r\n")
        assert wire == b"" or wire.endswith(b"\r\n")
        assert b"\r\n.\r\n" not in b"\r\n" + wire
        assert stuff(unstuff(wire)) == wire
        assert not self.sound or str(transaction.mail_from) != CANARY.decode()
        scan(transaction.head, "mx.test")
        self.taken += 1
        return str(self.taken)


async def test_any_octets_of_a_client_are_answered_or_end_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.smtp_limits.UNKNOWN_TIME", 0.0)
    monkeypatch.setattr("relay.smtp_session.SPREAD", 0.0)
    rng, intake, codes = seeded("fuzzed sessions"), Taker(), Counter[str]()
    limits = Limits(exempt=(), tarpit=0.0, errors=8, commands=60, idle_commands=8)
    service = Service(intake, Bodies(tmp_path), Settings("mx.test", LARGEST, limits=limits))
    async with watched("sessions", SESSIONS) as costs:
        for number in range(SESSIONS):
            case = fuzzing.session(rng)
            intake.sound = case.sound
            with capture_logs() as entries:
                replies = await fuzzing.play(service, case, rng)
            ended = [entry["event"] for entry in entries if entry["event"] != "message refused"]
            assert ended == ["SMTP session"], (entries, case)
            assert _REPLIES(replies), (case, replies)
            codes.update(re.findall(r"^\d\d\d", replies.decode("ascii"), re.MULTILINE))
            costs.count(number)
    judged(costs)
    print(f"{intake.taken:,} messages taken; replies: {dict(sorted(codes.items()))}")
    assert intake.taken > SESSIONS // 2
    assert {"220", "221", "250", "354", "421", "500", "501", "503", "550", "552", "554"} <= codes.keys()
    assert service.sessions == set()
    assert list(tmp_path.iterdir()) == []


def digest(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()


class Witness:
    """The real intake, and what it took: each wire form's digest by the message's id, and the latest ones whole."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.taken: dict[str, bytes] = {}
        self.latest: list[tuple[str, bytes]] = []  # in the order of the answers; what was there already comes again

    def room(self, size: int) -> bool:
        return self._parts.intake.room(size)

    async def route(self, recipient: Recipient, mail_from: Address | None) -> object | None:
        return await self._parts.intake.route(recipient, mail_from)

    async def accept(self, transaction: Transaction) -> str:
        body = transaction.body
        wire = body.data if body.data is not None else self._parts.bodies.read(body.file or "")
        message_id = await self._parts.intake.accept(transaction)
        assert self.taken.setdefault(message_id, digest(wire)) == digest(wire)
        self.latest.append((message_id, wire))
        return message_id


async def test_what_is_answered_250_is_stored_and_read_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sessions, a large letter now and then, down to the database, the files and the search index."""
    monkeypatch.setattr("relay.smtp_limits.UNKNOWN_TIME", 0.0)
    monkeypatch.setattr("relay.smtp_session.SPREAD", 0.0)
    rng, codes, large, kept = seeded("fuzzed sessions, stored"), Counter[str](), 0, letters()
    limits = Limits(exempt=(), tarpit=0.0, errors=8, commands=60, idle_commands=8)
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", sites=(U1,), start_forwarding=False) as parts:
        parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        intake = Witness(parts)
        service = Service(intake, parts.bodies, Settings("mx.test", limits=limits))
        async with watched("sessions, stored", STORED) as costs:
            for number in range(STORED):
                case = fuzzing.session(rng, number % 10 == 9, kept)
                intake.latest.clear()
                with capture_logs() as entries:
                    replies = await fuzzing.play(service, case, rng)
                told = [entry["event"] for entry in entries if entry["event"] not in ("message", "message refused")]
                assert told == ["SMTP session"], (entries, case)
                assert _REPLIES(replies), (case, replies)
                queued = re.findall(r"^250 2\.0\.0 Queued as (\d+)\r$", replies.decode("ascii"), re.MULTILINE)
                assert queued == [message_id for message_id, _ in intake.latest], case
                if case.sound:  # its messages and nothing else, in their order
                    left = iter(case.messages)
                    assert all(unstuff(wire) in left for _, wire in intake.latest), case
                codes.update(re.findall(r"^\d\d\d", replies.decode("ascii"), re.MULTILINE))
                costs.count(number)
        with capture_logs() as entries:
            async with reading(parts):
                async with asyncio.timeout(PATIENCE + STORED / 10):
                    while await parts.store.reader.all(select(messages.c.id).where(messages.c.extraction == "waiting")):
                        await asyncio.sleep(0.05)
        assert [entry for entry in entries if entry["log_level"] in ("warning", "error")] == []
        stored = {}
        for message_id, data, file, extraction in await parts.store.reader.all(
            select(messages.c.id, stored_bodies.c.data, messages.c.body_file, messages.c.extraction).select_from(
                messages.outerjoin(stored_bodies, stored_bodies.c.message_id == messages.c.id)
            )
        ):
            stored[str(message_id)] = digest(data if data is not None else parts.bodies.read(file))
            large += file is not None
            assert extraction in ("done", "partial"), message_id
        shown = await history.page(parts.store.reader, history.Filter(), 5)
    await asyncio.get_running_loop().shutdown_default_executor()  # it removes the files of what was refused
    judged(costs)
    print(f"{len(stored):,} messages stored, {large} in files; replies: {dict(sorted(codes.items()))}")
    assert stored == intake.taken
    assert len(stored) > STORED // 2
    assert len(list((tmp_path / "bodies").iterdir())) == large > 0
    assert len(shown) == 5
    assert service.sessions == set()


async def test_any_header_is_scanned_within_its_bounds() -> None:
    rng = seeded("fuzzed headers")
    heads = [letter[: letter.find(b"\r\n\r\n") + 4] for letter in letters()]

    def case(number: int) -> None:
        block = fuzzing.real(rng, heads, fuzzing.header(rng)) + rng.choice((b"", b"body\r\n", b"X-Visit-Id: 1\r\n"))
        if rng.randrange(4):
            block = fuzzing.spoil(rng, block, fuzzing.HEADER_PIECES)
        limit = rng.choice((len(block) // 2 + 1, 256 * 1024))
        found = scan(block, "mx.test", limit)
        assert 0 <= found.mbox_line <= found.end <= min(len(block), limit), block
        edges = [edge for span in found.cut for edge in span]
        assert edges == sorted(edges), block
        assert all(edge <= found.end for edge in edges), block
        for text in (
            found.from_,
            found.message_id or "",
            found.in_reply_to or "",
            *found.references,
            *found.loop_tokens,
        ):
            assert len(text.encode()) <= 8192, block
        if found.complete:
            assert scan(without(block[: found.end], found.cut), "mx.test").cut == (), block

    async with watched("headers", HEADERS) as costs:
        await each(costs, case)
    judged(costs)


async def test_any_tree_is_read_to_an_answer_and_its_parts_lie_inside_it() -> None:
    """In this process, where the daemon has others for it."""
    rng = seeded("fuzzed trees")
    costs, attachments, partial, kept = Costs("trees", TREES), 0, 0, letters()
    for number in range(TREES):
        message = fuzzing.real(rng, kept, fuzzing.entity(rng))
        if rng.randrange(4):
            message = fuzzing.spoil(rng, message, fuzzing.MIME_PIECES)
        found = extract(message, careful=not rng.randrange(8), with_html=not rng.randrange(4))
        assert from_json(as_json(found)) == found, message
        assert len(found.attachments) == len(bodies(walk(message).root).attachments), message
        for part in found.attachments:
            assert 0 <= part.start <= part.start + part.length <= len(message), message
            assert part.name, message
        attachments += len(found.attachments)
        partial += found.partial
        costs.count(number)
    print(f"\n{costs}; {attachments:,} attachments, {partial:,} partial")
    assert costs.growth < 50e6 or not SOAK
    assert attachments > TREES // 2


async def test_any_address_is_taken_whole_or_refused_as_an_address_error() -> None:
    rng, outcomes = seeded("fuzzed addresses"), Counter[str]()

    def outcome(read: Callable[[str], Any], text: str) -> Any:
        try:
            return read(text)
        except AddressError as error:
            return error

    def case(number: int) -> None:
        text = fuzzing.argument(rng)
        for read in (parse, parse_mail, parse_rcpt):
            found = outcome(read, text if read is not parse else text.partition("<")[2].partition(">")[0])
            if isinstance(found, AddressError):
                assert str(found).isprintable(), text
                continue
            outcomes[read.__name__] += 1
            address = found if isinstance(found, Address) else found[0]
            if isinstance(address, Address):
                assert len(str(address)) <= MAX_SENDER + 2, text  # it may be given quotes
                assert not re.search("[\0-\x1f\x7f-\x9f]", str(address)), text
                assert address.domain.isascii(), text
                assert lookup_keys(address), text
        mail(f"FROM:{text}")
        rcpt(f"TO:{text}", bool(number % 2))

    async with watched("addresses", ADDRESSES) as costs:
        await each(costs, case)
    judged(costs)
    print(f"taken: {dict(outcomes)}")
    assert min(outcomes.values()) > ADDRESSES // 100
