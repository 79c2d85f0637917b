"""Who was promised what, and what came of it: the account that must balance after any fault.

A sender keeps trying a mail with the same bytes until it reads 250. Then, whatever happened in between:

    next hop      at least one intact copy; more only where the delivery is flagged as possibly repeated, and never
                  more copies than attempts that the store counted before they were made
    history       exactly one message, however often it had to be sent
    CRM           at least one post of one event id
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field

from relay.core.wire import stuff
from tests.scenarios.world import PATIENCE, World, letter
from tests.smtp_client import SmtpClient

#: The full counts, for `make soak`.
SOAK = bool(os.environ.get("RELAY_SOAK"))
#: Octets of the text of every so-manyth mail: beyond 256 KiB a body has a file of its own.
LARGE = 300_000


def seeded(name: str) -> random.Random:
    """Chance that can be had again: the seed is printed, and RELAY_SEED sets it."""
    seed = int(os.environ.get("RELAY_SEED") or random.SystemRandom().randrange(10**6))
    print(f"\n{name}: RELAY_SEED={seed}")
    return random.Random(seed)


def subject(number: int) -> str:
    return f"mail {number} of the ledger"


def mail(number: int) -> bytes:
    text = f"text {number}\r\n" + ("x" * 70 + "\r\n") * (LARGE // 72 if number % 10 == 3 else 30)
    return letter(subject(number), text)


@dataclass
class Ledger:
    """``promised``: the numbers of the mails that were answered 250."""

    world: World
    recipient: str = "plus+1234@track.test"
    promised: list[int] = field(default_factory=list)
    _next: int = 0
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _ended: bool = False

    async def keep_sending(self) -> None:
        """Send one mail after the other until ``end``; each is tried until it is accepted."""
        while not self._ended:
            number = self._next
            self._next += 1
            await self.send(number)

    async def send(self, number: int) -> None:
        """Try until accepted, as any mail server would."""
        wire = stuff(mail(number)) + b".\r\n"
        async with asyncio.timeout(4 * PATIENCE):
            while not await self._try(wire):
                await asyncio.sleep(0.02)  # a mail server would wait minutes here
        async with self._news:
            self.promised.append(number)
            self._news.notify_all()

    async def _try(self, wire: bytes) -> bool:
        try:
            async with await SmtpClient.connect(self.world.daemon.smtp_port) as client:
                if (await client.answer()).code != 220 or (await client.command("EHLO client.test")).code != 250:
                    return False
                answer = await client.mail(wire, f"<{self.recipient}>", sender="<ann@customer.test>")
        except (OSError, EOFError, AssertionError):
            return False  # refused, cut off, or 4xx on the way
        return answer.code == 250

    async def more(self, count: int) -> None:
        """Until ``count`` more mails were promised."""
        goal = len(self.promised) + count
        async with asyncio.timeout(4 * PATIENCE), self._news:
            await self._news.wait_for(lambda: len(self.promised) >= goal)

    def end(self) -> None:
        self._ended = True

    async def settled(self) -> None:
        """Until nothing waits any more: every delivery forwarded, every event posted."""
        waiting = (
            "SELECT (SELECT count(*) FROM deliveries WHERE state <> 'forwarded'), "
            "(SELECT count(*) FROM messages WHERE extraction = 'waiting'), "
            "(SELECT count(*) FROM posts WHERE state <> 'delivered')"
        )
        await self.world.until(lambda: self.world.row(waiting), lambda counts: counts == (0, 0, 0))

    async def balance(self) -> Counter[str]:
        """Compare what was promised with what came of it. Counts of mails, copies too many, and posts too many."""
        rows = await self.world.rows(
            "SELECT m.subject, count(*), max(d.attempts), max(d.possibly_repeated), e.uid FROM messages m "
            "JOIN deliveries d ON d.message_id = m.id JOIN events e ON e.message_id = m.id GROUP BY m.subject, e.uid"
        )
        recorded = {row[0]: row[1:] for row in rows}
        contents = [received.content for received in self.world.sink.accepted]
        posts = Counter(post.headers["webhook-id"] for post in self.world.crm.posts)
        counts: Counter[str] = Counter(mails=len(self.promised))
        assert self.promised
        for number in self.promised:
            deliveries, attempts, flagged, uid = recorded[subject(number)]
            assert deliveries == 1, f"mail {number} was recorded {deliveries} times"
            copies = sum(content.endswith(mail(number)) for content in contents)
            assert copies >= 1, f"mail {number} was answered 250 and is lost"
            assert copies <= attempts, f"mail {number}: {copies} copies of {attempts} attempts"
            assert copies == 1 or flagged, f"mail {number} came {copies} times and is not flagged"
            assert posts[uid] >= 1, f"mail {number} was never posted"
            counts["repeated"] += copies - 1
            counts["posted again"] += posts[uid] - 1
        assert len(recorded) == len(self.promised) == len(posts)
        return counts
