"""Who was promised what: a sender that notes every 250, and the account that is drawn up when all is over.

The sender goes on while the daemon is killed under it. What got no answer it sends again, the same octets, as MTAs do.
The account then says of every letter whether it was acknowledged, how often it came to the next hop, under which ids it
was posted, and what the daemon keeps of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import aiohttp

from relay.core.wire import stuff, unstuff
from tests.daemon import Daemon
from tests.scenarios.world import World
from tests.smtp_client import Answer, SmtpClient
from tests.smtp_sink import Received
from tests.webhook_receiver import Post

#: The full counts, for `make soak`.
SOAK = bool(os.environ.get("RELAY_SOAK"))
#: Octets of a large letter: more than is kept in memory, so that it goes to a file of its own.
LARGE = 300_000
#: Seconds between two tries of a sender that was turned away.
AGAIN = 0.02
#: Seconds until the next letter is acknowledged, a start between them included. Reached only when a test fails.
A_START = 300.0
#: Recipients of one transaction; 100 are taken.
RECIPIENTS = 50
_NUMBER = re.compile(rb"\r\nSubject: letter (\d+)\r\n")


def seeded(what: str) -> random.Random:
    """Chance that can be had again: the seed is printed, and RELAY_SEED sets it."""
    seed = int(os.environ.get("RELAY_SEED") or random.SystemRandom().randrange(10**6))
    print(f"\n{what}: RELAY_SEED={seed}")
    return random.Random(seed)


class Ledger:
    """The letters of one run, made from ``seed``, and what the daemon answered. ``large``: whether a number is, which
    then has ``octets``. ``fields`` are more of their header, each with its CR LF, and may go on with parts of the body.
    """

    def __init__(
        self,
        seed: int,
        large: Callable[[int], bool] = lambda number: number % 12 == 11,
        octets: int = LARGE,
        fields: bytes = b"",
    ) -> None:
        self.seed = seed
        self.acknowledged: dict[int, int] = {}  # number → our id
        self.heard: dict[int, float] = {}  # number → when its 250 was read
        self.put_off: Counter[str] = Counter()  # 4xx answers
        self.tries: Counter[int] = Counter()
        self.begun = 0  # numbers given out, from 0 on
        self._large = large
        self._octets = octets
        self._fields = fields
        self._again: deque[int] = deque()
        self._last: float = 0
        self._news = asyncio.Condition()

    def letter(self, number: int) -> bytes:
        """Letter ``number``: always the same octets."""
        chosen = random.Random(self.seed * 1_000_003 + number)
        size = self._octets if self._large(number) else chosen.randrange(200, 8000)
        line = b"%016x a line of letter %d\r\n.dotted\r\n" % (chosen.getrandbits(64), number)
        head = b"From: ann@customer.test\r\nSubject: letter %d\r\nMessage-ID: <%d.%d@customer.test>\r\n%b\r\n"
        return head % (number, self.seed, number, self._fields) + line * (size // len(line) + 1)

    def recipient(self, number: int) -> str:
        """A plus address with the letter's number as visit: nobody issued it, so it is claimed, and posted."""
        return f"plus+{number}@track.test"

    async def send(self, port: Callable[[], int], sessions: int = 4, most: float = math.inf) -> None:
        """Send ``most`` more letters, or until ``stop``, and go on until each that was begun has its 250.

        A 5xx is an AssertionError: none of these letters may be refused for good.
        """
        self._last = self.begun + most
        async with asyncio.TaskGroup() as group:
            for _ in range(sessions):
                group.create_task(self._keep_sending(port))

    def stop(self) -> None:
        """Begin no more letters."""
        self._last = 0

    @property
    def resent(self) -> int:
        """Transactions that had to be begun again."""
        return self.tries.total() - len(self.acknowledged)

    async def wait_for(self, more: int, timeout: float = 60.0) -> None:
        """Until ``more`` letters than now have their 250."""
        wanted = len(self.acknowledged) + more
        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(lambda: len(self.acknowledged) >= wanted)

    async def _keep_sending(self, port: Callable[[], int]) -> None:
        number = self._next()
        while number is not None:
            try:
                async with await SmtpClient.connect(port()) as client:
                    _expect(await client.answer(), 220)
                    _expect(await client.command("EHLO customer.test"), 250)
                    while number is not None:
                        if await self._deliver(client, number):
                            number = self._next()
                        else:
                            await asyncio.sleep(AGAIN)
            except (OSError, asyncio.IncompleteReadError, _PutOff):  # killed under us, or not up yet
                assert number is not None
                self._again.append(number)
                await asyncio.sleep(AGAIN)
                number = self._next()

    def _next(self) -> int | None:
        if self._again:
            return self._again.popleft()
        if self.begun >= self._last:
            return None
        self.begun += 1
        return self.begun - 1

    async def _deliver(self, client: SmtpClient, number: int) -> bool:
        """One transaction; False when it was put off."""
        wire = stuff(self.letter(number)) + b".\r\n"
        self.tries[number] += 1
        commands = ("MAIL FROM:<ann@customer.test>", f"RCPT TO:<{self.recipient(number)}>", "DATA")
        for command in commands:
            answer = await client.command(command)
            if answer.code // 100 == 4:
                self.put_off[answer.short] += 1
                _expect(await client.command("RSET"), 250)
                return False
            _expect(answer, 354 if command == "DATA" else 250)
        await client.send(wire)
        answer = await client.answer()
        if answer.code // 100 == 4:
            self.put_off[answer.short] += 1
            return False
        _expect(answer, 250)
        self.heard[number] = time.time()
        self.acknowledged[number] = int(answer.text.rpartition(" ")[2])
        async with self._news:
            self._news.notify_all()
        return True


class _PutOff(Exception):
    """421: the session is over."""


def _expect(answer: Answer, code: int) -> None:
    if answer.code == 421:
        raise _PutOff
    assert answer.code == code, answer


class Visitors:
    """Page views between the letters, and what each was shown: an answer 200 is a promise, too."""

    def __init__(self, relay: World) -> None:
        self.shown: dict[str, str] = {}  # substitute → number of the visit
        self._relay = relay
        self._known = 0  # of them, at the last look

    async def come(self, ledger: Ledger) -> None:
        """One at a time, when another letter has its 250, until cancelled."""
        while True:
            await ledger.wait_for(1, A_START)
            with contextlib.suppress(OSError, aiohttp.ClientError):  # killed under us, or not up yet
                bound = await self._relay.bind("sales@example.test")
                self.shown[bound["addresses"]["sales@example.test"]] = bound["visit"]

    async def must_be_known(self) -> None:
        """What was shown is the visit's, and mail is accepted to what was not there at the last look."""
        shown = dict(self.shown)
        held = await self._relay.rows(
            "SELECT routes.local || '@' || routes.domain, visits.number FROM bindings "
            "JOIN routes ON routes.id = bindings.route_id JOIN visits ON visits.id = bindings.visit_id"
        )
        lost = shown.items() - set(held)
        assert not lost, f"{len(lost)} of {len(shown)} were shown and are lost: {sorted(lost)[:5]}"
        new = [f"<{address}>" for address in shown][self._known :]
        async with await SmtpClient.hello(self._relay.daemon.smtp_port) as client:
            for start in range(0, len(new), RECIPIENTS):
                await client.envelope(*new[start : start + RECIPIENTS])
                assert (await client.command("RSET")).code == 250
        self._known = len(shown)


def numbers_under_way(daemon: Daemon) -> list[int]:
    """Letters whose delivery was claimed when the daemon ended: each may have reached the next hop unrecorded."""
    rows = daemon.query(
        "SELECT messages.subject FROM deliveries JOIN messages ON messages.id = deliveries.message_id "
        "WHERE deliveries.claim IS NOT NULL AND deliveries.state IN ('queued', 'deferred')"
    )
    return [int(subject.removeprefix("letter ")) for (subject,) in rows]


def is_drained(daemon: Daemon) -> bool:
    """Nothing waits to be forwarded, read or posted."""
    ((waiting,),) = daemon.query(
        "SELECT (SELECT count(*) FROM deliveries WHERE state IN ('queued', 'deferred'))"
        " + (SELECT count(*) FROM messages WHERE extraction = 'waiting')"
        " + (SELECT count(*) FROM posts WHERE state = 'waiting')"
    )
    return bool(waiting == 0)


@dataclass
class Account:
    """By letter: ids and octets kept, copies at the next hop, webhook-ids of its posts, whether it is flagged."""

    kept: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    arrived: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    posted: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    flagged: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, daemon: Daemon, received: Iterable[Received], posts: Iterable[Post]) -> Account:
        account = cls()
        rows = daemon.query(
            "SELECT messages.subject, bodies.data, messages.body_file, max(deliveries.possibly_repeated) FROM messages "
            "LEFT JOIN bodies ON bodies.message_id = messages.id "
            "JOIN deliveries ON deliveries.message_id = messages.id GROUP BY messages.id"
        )
        for subject, data, file, flagged in rows:
            number = int(subject.removeprefix("letter "))
            wire = data if data is not None else (daemon.data_dir / "bodies" / file).read_bytes()
            account.kept[number].append(unstuff(wire))
            if flagged:
                account.flagged.add(number)
        for message in received:
            match = _NUMBER.search(message.wire[:4096])
            assert match is not None
            account.arrived[int(match[1])].append(message.content)
        for post in posts:
            account.posted[int(post.json["subject"].removeprefix("letter "))].append(post.headers["webhook-id"])
        return account

    def must_keep(self, ledger: Ledger) -> None:
        """Every letter that was acknowledged is there, once and whole."""
        for number in ledger.acknowledged:
            assert self.kept.get(number), f"letter {number} was acknowledged and is lost"
            assert self.kept[number] == [ledger.letter(number)], f"letter {number} is kept twice, or otherwise"

    def must_balance(self, ledger: Ledger, under_way: Counter[int]) -> None:
        """After the drain: all arrived whole, repeats only of what was ``under_way`` at a kill, all of them flagged."""
        assert sorted(ledger.acknowledged) == list(range(ledger.begun)), "the sender was to go on until all are taken"
        self.must_keep(ledger)
        assert self.kept.keys() == ledger.acknowledged.keys()
        for number in ledger.acknowledged:
            copies = self.arrived.get(number, [])
            assert copies, f"letter {number} never came to the next hop"
            assert all(copy.endswith(ledger.letter(number)) for copy in copies), f"letter {number} was changed"
            assert len(copies) <= 1 + under_way[number], f"letter {number} came {len(copies)} times"
            assert len(copies) == 1 or number in self.flagged, f"letter {number} came twice and is not flagged"
            ids = set(self.posted.get(number, []))
            assert len(ids) == 1, f"letter {number} was posted under {ids or 'no id'}"

    @property
    def repeats(self) -> int:
        return sum(len(copies) - 1 for copies in self.arrived.values())

    @property
    def reposts(self) -> int:
        return sum(len(ids) - 1 for ids in self.posted.values())
