"""Attackers in a process of their own, of the lowest priority: they hold connections, guess, flood and send bodies.

    python -m benchmarks.attackers SMTP_PORT HTTP_PORT

It prints "ready" and takes orders on standard input, each answered by one line; the end of the input is its end:

    begin NAME …    start these attacks          ok
    stat            {NAME: {what: count}}        JSON; "held": connections that are open now, else since the start
    end             stop, cut every connection   ok

Each attack is so many connections from addresses within 127.0.0.0/8 that nobody else uses. One that was closed comes
again RETRY to 2 * RETRY seconds after it came, and after LIFE seconds not any more.

    slow      SMTP, kept open by an octet now and then: at the greeting, in a command, in a message (DATA and BDAT)
    guesses   unknown recipients; three of four clients leave before they are made to wait and come again
    views     POST /v1/bind, over and over
    bodies    of requests: most of them slow, some without an end as fast as they are taken
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

from benchmarks.processes import give_way
from benchmarks.relay import ADDRESS, ORIGIN, SITE_KEY
from relay import eventloop

#: Seconds between two connections of one attacker at least, and of an attack in all.
RETRY, LIFE = 1.0, 120.0
#: Seconds between two octets of a slow connection, and for any answer.
DRIP, PATIENCE = 5.0, 60.0
#: Slow SMTP connections, as many from each address as it may have.
SLOW, PER_ADDRESS = 2000, 50
#: Clients that guess, and from how many addresses; guesses that are answered at once as it seems, and of a session.
GUESSERS, GUESSING_ADDRESSES, QUICK, GUESSES = 400, 10, 5, 20
#: Seconds from which an answer to a guess is one of the tarpit.
TARPIT = 0.9
#: Connections that send page views, networks that they come from, and seconds from one to the next of a connection.
VIEWERS, VIEW_NETWORKS, VIEW_GAP = 20, 4, 0.02
#: Slow bodies, networks that they come from, and the octets they are to have; bodies without an end, and when even
#: those have one.
BODIES, BODY_NETWORKS, BODY = 1000, 20, 4000
HUGE, HUGE_OCTETS = 2, 1 << 30
CHUNK = b"a" * 65_536

_OPENINGS = (
    b"",
    b"EHLO loris.test\r\nMAIL FR",
    b"EHLO loris.test\r\nMAIL FROM:<a@loris.test>\r\nRCPT TO:<sales+1@track.test>\r\nBDAT 1000\r\nx",
    b"EHLO loris.test\r\nMAIL FROM:<a@loris.test>\r\nRCPT TO:<sales+1@track.test>\r\nDATA\r\n",
)
_VIEW = json.dumps({"site": SITE_KEY, "page": f"{ORIGIN}/", "referrer": None, "addresses": [ADDRESS]}).encode()
_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0"


def _post(length: str) -> bytes:
    """The head of a request to bind whose body has the length that the field says."""
    fields = ("Host: track.test", f"Origin: {ORIGIN}", f"User-Agent: {_AGENT}", "Content-Type: text/plain", length)
    return "\r\n".join(("POST /v1/bind HTTP/1.1", *fields, "", "")).encode()


class Connection:
    """From ``source`` to a port of the daemon. ``held`` is one more in the counts until it is cut."""

    def __init__(self, source: str, port: int, counts: Counter[str]) -> None:
        self._source = source
        self._port = port
        self._counts = counts

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._source, 0))
        self._counts["held"] += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._counts["held"] -= 1
        self.writer.transport.abort()

    async def send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def smtp(self, line: bytes = b"") -> int:
        """The code of the reply to a line, or to having come; 0 when there is none."""
        if line:
            await self.send(line + b"\r\n")
        async with asyncio.timeout(PATIENCE):
            while (reply := await self.reader.readline())[3:4] == b"-":
                pass
        return int(reply[:3] or b"0")

    async def http(self, request: bytes) -> int:
        """The status of the answer to a request, which is read to its end."""
        await self.send(request)
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            await self.reader.readexactly(int(length or b"0"))
        return int(head.split(b" ", 2)[1])

    async def drip(self) -> None:
        """An octet now and then, until the other side has enough."""
        while True:
            try:
                async with asyncio.timeout(DRIP):
                    if not await self.reader.read(4096):
                        return
            except TimeoutError:
                await self.send(b"x")


class Attacks:
    """What is under way, and what came of it: the number-th attempt of each attack is a method of its name."""

    def __init__(self, smtp_port: int, http_port: int) -> None:
        self._smtp_port = smtp_port
        self._http_port = http_port
        self._tasks: list[asyncio.Task[None]] = []
        self._chance = random.Random(1)
        self.counts: dict[str, Counter[str]] = {}

    def begin(self, name: str) -> None:
        attempt, clients = {
            "slow": (self._slow, SLOW),
            "guesses": (self._guesses, GUESSERS),
            "views": (self._views, VIEWERS),
            "bodies": (self._bodies, BODIES + HUGE),
        }[name]
        counts = self.counts[name] = Counter[str]()
        self._tasks += [asyncio.create_task(self._again(attempt, counts, number)) for number in range(clients)]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.counts.clear()

    async def _again(
        self, attempt: Callable[[Counter[str], int], Awaitable[None]], counts: Counter[str], number: int
    ) -> None:
        loop = asyncio.get_running_loop()
        over = loop.time() + LIFE
        await asyncio.sleep(RETRY * self._chance.random())
        while (began := loop.time()) < over:
            try:
                await attempt(counts, number)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                counts["cut"] += 1
            # In step they would be a burst a second, and what the kernel tries again, whole seconds later, meet each.
            await asyncio.sleep(max(0.0, began + RETRY * (1 + self._chance.random()) - loop.time()))

    async def _slow(self, counts: Counter[str], number: int) -> None:
        async with Connection(f"127.2.0.{1 + number // PER_ADDRESS}", self._smtp_port, counts) as client:
            if await client.smtp() != 220:
                counts["refused"] += 1
                return
            await client.send(_OPENINGS[number % len(_OPENINGS)])
            await client.drip()
            counts["sent away"] += 1

    async def _guesses(self, counts: Counter[str], number: int) -> None:
        async with Connection(f"127.3.0.{1 + number % GUESSING_ADDRESSES}", self._smtp_port, counts) as client:
            for line in (b"", b"EHLO harvest.test", b"MAIL FROM:<>"):
                if await client.smtp(line) not in (220, 250):
                    counts["refused"] += 1
                    return
            loop = asyncio.get_running_loop()
            for _ in range(QUICK if number % 4 else GUESSES):
                began = loop.time()
                code = await client.smtp(b"RCPT TO:<%012x@track.test>" % self._chance.getrandbits(48))
                counts[f"answered {code}"] += 1
                counts["in the tarpit"] += loop.time() - began >= TARPIT
                if code != 550:
                    return

    async def _views(self, counts: Counter[str], number: int) -> None:
        async with Connection(f"127.4.{number % VIEW_NETWORKS}.1", self._http_port, counts) as client:
            loop = asyncio.get_running_loop()
            due, over = loop.time(), loop.time() + LIFE
            while due < over:
                counts[f"answered {await client.http(_post(f'Content-Length: {len(_VIEW)}') + _VIEW)}"] += 1
                due = max(due + VIEW_GAP, loop.time())
                await asyncio.sleep(due - loop.time())

    async def _bodies(self, counts: Counter[str], number: int) -> None:
        if number >= BODIES:
            return await self._huge(counts, number - BODIES)
        network, host = number % BODY_NETWORKS, 1 + number // BODY_NETWORKS
        async with Connection(f"127.5.{network}.{host}", self._http_port, counts) as client:
            await client.send(_post(f"Content-Length: {BODY}") + b"x")
            await client.drip()
            counts["sent away"] += 1

    async def _huge(self, counts: Counter[str], number: int) -> None:
        """One that says how long it will be, and one in chunks, of which nobody knows."""
        length, piece = (
            (f"Content-Length: {HUGE_OCTETS}", CHUNK)
            if number % 2
            else ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
        )
        async with Connection(f"127.6.{number}.1", self._http_port, counts) as client:
            await client.send(_post(length))
            for _ in range(HUGE_OCTETS // len(CHUNK)):
                await client.send(piece)
                counts["huge octets"] += len(CHUNK)
                await asyncio.sleep(0)  # a buffer that takes everything is no reason to leave out the others


async def obey(attacks: Attacks, order: str) -> str:
    """Carry out one order; the line that answers it."""
    command, *names = order.split()
    if command == "begin":
        for name in names:
            attacks.begin(name)
    elif command == "end":
        await attacks.end()
    elif command == "stat":
        return json.dumps(attacks.counts)
    else:
        return f"no such order: {order}"
    return "ok"


async def _serve(smtp_port: int, http_port: int) -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    attacks = Attacks(smtp_port, http_port)
    print("ready", flush=True)
    while order := await orders.readline():
        print(await obey(attacks, order.decode()), flush=True)
    await attacks.end()


if __name__ == "__main__":
    give_way()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    eventloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
