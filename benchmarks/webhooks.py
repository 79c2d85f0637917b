"""Ten webhooks, five of them sick: what they cost the acceptance of mail, and how soon a sound one has a letter.

Two daemons run side by side, one without webhooks, one with all ten of benchmarks/receivers.py. They take turns, many
short rounds each, so that whatever else the machine does falls on both; all letters of one daemon make its p99. How far
chance may have moved the ratio of the two is found by drawing rounds again (bootstrap).
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.programs import LoadFailed
from benchmarks.receivers import Receivers
from benchmarks.relay import SECRET, Relay
from benchmarks.workplace import Workplace

SOUND = 5
#: Messages a second that are offered, and seconds of a round at that pace; connections of the saturating load, and its
#: messages.
PACE = 50.0
ROUND = 5.0
CONNECTIONS, MESSAGES = 20, 1000
#: Rounds at that pace, and saturating ones, of each daemon at least; ratios that are drawn.
ROUNDS = 48
SATURATING = 4
DRAWS = 1000
#: Seconds between two bursts.
QUIET = 20.0
SEED = 1
#: The p99 of acceptance with webhooks may be so many times that without; seconds until a sound webhook has a letter.
GOAL_RATIO = 1.10
GOAL_LATENCY = 1.0
#: Seconds that the posts of a round have to arrive at the sound webhooks.
ARRIVAL = 30.0


@dataclass(slots=True)
class Sent:
    """One round. ``took``: seconds from MAIL to the 250 behind the dot; ``accepted``: when that came, by letter."""

    took: list[float] = field(default_factory=list)
    accepted: dict[int, float] = field(default_factory=dict)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(len(ordered) * share * 1000) // 1000) - 1)]


def measure(place: Workplace, rounds: int) -> None:
    report, rounds = place.report, max(8 * rounds, ROUNDS)
    report.line()
    report.line(f"webhooks · 10, 5 of them sick, against none · {rounds} rounds of each in turn")
    port = place.next_hop.port
    with (
        Receivers(SOUND, SECRET) as receivers,
        Relay(place.directory / "silent", port, ()) as silent,
        Relay(place.directory / "ten", port, list(receivers.urls.values())) as ten,
    ):
        receivers.order(f"redirect {receivers.urls['sound0']}-never")
        load = Load()
        for relay in (silent, ten):  # what is done once falls on no round
            asyncio.run(load.saturating(relay, 200))
        saturated = [_burst(load, silent, ten) for _ in range(SATURATING)]
        _judge(place, f"saturating load, {CONNECTIONS} connections", saturated, judged=False)
        if ten.drain(ARRIVAL * 4) is None:
            report.line("  (the sick webhooks still have posts that wait)")
        paced = [_turn(load.paced, silent, ten, int(PACE * ROUND)) for _ in range(rounds)]
        _judge(place, f"{PACE:g} messages/s", paced, judged=True)
        _latency(place, receivers, [pair[1] for pair in paced])


def _turn(load: object, silent: Relay, ten: Relay, messages: int) -> tuple[Sent, Sent]:
    assert callable(load)
    return asyncio.run(load(silent, messages)), asyncio.run(load(ten, messages))


def _burst(load: Load, silent: Relay, ten: Relay) -> tuple[Sent, Sent]:
    """As fast as it can be taken, after a time in which the posts of the burst before have come through."""
    time.sleep(QUIET)
    return _turn(load.saturating, silent, ten, MESSAGES)


def _judge(place: Workplace, name: str, rounds: Sequence[tuple[Sent, Sent]], *, judged: bool) -> None:
    report = place.report
    for which, label in enumerate(("no webhook", "ten webhooks")):
        took = [value * 1000 for pair in rounds for value in pair[which].took]
        p99s = [percentile(pair[which].took, 0.99) * 1000 for pair in rounds]
        report.line(
            f"  {label:13} {name}: accepted p50/p99 {statistics.median(took):.1f}/{percentile(took, 0.99):.1f} ms "
            f"(p99 by round {min(p99s):.1f}-{max(p99s):.1f}), {len(took)} messages"
        )
        report.figures.setdefault("webhooks", {}).setdefault(name, {})[label] = p99s
    low, found, high = ratio(rounds)
    shown = f"{found:.2f} (95 % of the draws {low:.2f}-{high:.2f})"
    report.figures["webhooks"][name]["ratio"] = [low, found, high]
    if judged:
        kept = found <= GOAL_RATIO
        report.judge(f"webhooks: p99 of acceptance at most {GOAL_RATIO:g} x that without, {name}", kept, shown)
    else:
        report.line(f"  p99 with webhooks to without, {name}: {shown}")


def ratio(rounds: Sequence[tuple[Sent, Sent]]) -> tuple[float, float, float]:
    """The p99 with webhooks to that without, and between what it lies in 95 % of the draws: (low, found, high)."""

    def of(drawn: Sequence[tuple[Sent, Sent]]) -> float:
        silent, ten = ([value for pair in drawn for value in pair[which].took] for which in (0, 1))
        return percentile(ten, 0.99) / percentile(silent, 0.99)

    chance = random.Random(SEED)
    ratios = sorted(of(chance.choices(rounds, k=len(rounds))) for _ in range(DRAWS))
    return ratios[DRAWS // 40], of(rounds), ratios[-DRAWS // 40]


def _latency(place: Workplace, receivers: Receivers, rounds: Sequence[Sent]) -> None:
    accepted = {letter: at for sent in rounds for letter, at in sent.accepted.items()}
    deadline = time.monotonic() + ARRIVAL
    while True:
        came = receivers.dump(place.directory / "received")["sound0"]
        arrived = {letter: at for letter, _, _, at in came.values()}
        if accepted.keys() <= arrived.keys():
            break
        if time.monotonic() > deadline:
            raise LoadFailed(f"{len(accepted.keys() - arrived.keys())} of {len(accepted)} letters never came")
        time.sleep(0.2)
    waits = [max(0.0, arrived[letter] - at) for letter, at in accepted.items()]
    shares = ", ".join(f"p{share * 100:g} {percentile(waits, share) * 1000:.0f} ms" for share in (0.5, 0.95, 0.99))
    p99 = percentile(waits, 0.99)
    place.report.figures["webhooks"]["latency"] = {"p99": p99, "max": max(waits)}
    found = f"{shares}, max {max(waits) * 1000:.0f} ms, {len(waits)} letters"
    place.report.judge(
        f"webhooks: a sound one has the letter within {GOAL_LATENCY:g} s of the 250 at p99, {PACE:g} messages/s",
        p99 <= GOAL_LATENCY,
        found,
    )


class Load:
    """Sends letters that are numbered through, each in a session of its own when paced."""

    def __init__(self) -> None:
        self._number = 0
        self._chance = random.Random(SEED)

    async def paced(self, relay: Relay, messages: int) -> Sent:
        """Open loop: a letter is sent when its time has come, whatever became of those before.

        Chance spreads them as people do: at equal distances everything that takes a fixed time would either always
        meet the next letter or never.
        """
        sent = Sent()
        at = time.monotonic() + 0.1
        async with asyncio.TaskGroup() as group:
            for _ in range(messages):
                at += self._chance.expovariate(PACE)
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                group.create_task(self._session(relay, sent, 1))
        return sent

    async def saturating(self, relay: Relay, messages: int, recipient: str = Relay.recipient) -> Sent:
        sent = Sent()
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._session(relay, sent, messages // CONNECTIONS, recipient))
        return sent

    async def _session(self, relay: Relay, sent: Sent, messages: int, recipient: str = Relay.recipient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        await reply(reader)
        await say(reader, writer, b"EHLO client.test")
        for _ in range(messages):
            self._number += 1
            await self._letter(reader, writer, sent, self._number, recipient)
        await say(reader, writer, b"QUIT")
        writer.close()
        await writer.wait_closed()

    async def _letter(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: Sent, number: int, recipient: str
    ) -> None:
        began = time.monotonic()
        await send_letter(reader, writer, number, recipient)
        now = time.monotonic()
        sent.took.append(now - began)
        sent.accepted[number] = now


async def send_letter(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, recipient: str = Relay.recipient
) -> None:
    """From MAIL to the 250 behind the dot. Raises LoadFailed for a refusal."""
    text = b"Is it still to be had? " * 2 + b"\r\n"
    head = b"From: Ann <ann@ext.test>\r\nSubject: letter %d\r\nMessage-ID: <%d@ext.test>\r\n\r\n" % (number, number)
    await say(reader, writer, b"MAIL FROM:<ann@ext.test>")
    await say(reader, writer, b"RCPT TO:<%s%d@track.test>" % (recipient.encode(), 1_000_000 + number))
    await say(reader, writer, b"DATA")
    await say(reader, writer, head + text * 80 + b".")


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
    """Send a command and read its reply. Raises LoadFailed for a refusal."""
    writer.write(line + b"\r\n")
    await reply(reader)


async def reply(reader: asyncio.StreamReader) -> None:
    """Read one reply; raises LoadFailed for a refusal."""
    while (line := await reader.readline())[3:4] == b"-":
        pass
    if not line.startswith((b"2", b"3")):
        raise LoadFailed(f"the server said {line!r}")
