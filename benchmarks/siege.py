"""Acceptance of mail while others attack: 50 letters a second, in turn without and with each attack.

One daemon with its defaults, but that nobody is exempt from the limits: on loopback everybody would be. The attackers
(benchmarks/attackers.py) are a process of their own, and so is none of the time that is measured theirs. The letters
come from other addresses, each in a session of its own, and are timed from before the connection to the 250 behind the
dot: an attack may as well keep a sender waiting for the greeting.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.attackers import VIEW_NETWORKS
from benchmarks.processes import cpu_seconds, turned_away, wait_until
from benchmarks.programs import LoadFailed, Peer
from benchmarks.relay import ROOT, Relay
from benchmarks.report import Report
from benchmarks.webhooks import PACE, Load, Sent, percentile, ratio, reply, say, send_letter
from benchmarks.workplace import Workplace
from relay.config import Limits

#: Rounds by name, and which attacks each of them is.
ATTACKS: dict[str, tuple[str, ...]] = {
    "quiet": (),
    "slow connections": ("slow",),
    "guesses": ("guesses",),
    "page views": ("views",),
    "bodies": ("bodies",),
    "all at once": ("slow", "guesses", "views", "bodies"),
}
#: What comes by HTTP alone: mail has nothing to do with it.
HTTP = ("page views", "bodies")
#: Seconds of a round; addresses that letters come from.
ROUND, SENDERS = 4.0, 50
#: Letters before the first round.
WARM_UP = 200
#: Seconds within which 99 of 100 letters are accepted, by the goal. And under an attack by HTTP: so many times what it
#: is without, or seconds that nobody notices beside what a line over the internet takes.
GOAL, GOAL_RATIO, GOAL_UNNOTICED = 2.0, 1.10, 0.05
#: Connections that an attack must hold before a round begins: nearly as many as there may be.
HELD = 900
#: Attacks of which so many attempts must be answered a second, or it was no flood.
FLOODS, FLOOD = frozenset(("guesses", "views")), 20.0
#: Seconds after which a letter counts as refused; and for an attack to stand, and for what it leaves behind.
LATE, PATIENCE = 30.0, 60.0
Counts = dict[str, dict[str, int]]


def measure(place: Workplace, rounds: int, attack: str | None = None) -> None:
    """``attack``: the only one besides the quiet rounds."""
    report = place.report
    chosen = {name: attacks for name, attacks in ATTACKS.items() if attack in (None, name) or not attacks}
    report.line()
    report.line(f"siege · {PACE:g} messages/s from {SENDERS} addresses, {rounds} rounds of each attack in turn")
    began = time.monotonic()
    with (
        Relay(place.directory / "siege", place.next_hop.port, place.webhook.port, limits="exempt = []") as relay,
        Attackers(relay) as attackers,
    ):
        senders = Senders()
        asyncio.run(senders.paced(relay, WARM_UP))
        senders.refused.clear()
        turns = [
            {name: _round(relay, attackers, senders, attacks) for name, attacks in chosen.items()}
            for _ in range(rounds)
        ]
        seconds = time.monotonic() - began
        complaints = relay.complaints()
    for name in chosen:
        _judge(report, name, turns)
    if "page views" in chosen:
        _judge_views(report, turns, seconds)
    for complaint in complaints:
        report.line(f"  {complaint}")


class Senders(Load):
    """``refused``: why letters were not accepted, or not in time, since it was cleared last."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = Counter[str]()

    async def _session(self, relay: Relay, sent: Sent, messages: int, recipient: str = Relay.recipient) -> None:
        self._number += 1
        number, began = self._number, time.monotonic()
        writer = None
        try:
            async with asyncio.timeout(LATE):
                source = f"127.0.0.{1 + number % SENDERS}"
                reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, local_addr=(source, 0))
                await reply(reader)
                await say(reader, writer, b"EHLO client.test")
                await send_letter(reader, writer, number, recipient)
                sent.took.append(time.monotonic() - began)
                await say(reader, writer, b"QUIT")
        except (LoadFailed, OSError) as error:
            self.refused[str(error) or type(error).__name__] += 1
        finally:
            if writer is not None:
                writer.close()


class Attackers(Peer):
    """The process of benchmarks/attackers.py, against ``relay``."""

    def __init__(self, relay: Relay) -> None:
        command = [sys.executable, "-m", "benchmarks.attackers", str(relay.port), str(relay.http_port)]
        super().__init__(command, ROOT)

    def begin(self, attacks: Sequence[str]) -> None:
        """Returns when they hold as many connections as they can, and are answered. Raises LoadFailed."""
        self.order(f"begin {' '.join(attacks)}")
        if not wait_until(self._stands, PATIENCE):
            raise LoadFailed(f"the attack did not come about: {self.counts()}")

    def counts(self) -> Counts:
        found: Counts = json.loads(self.order("stat"))
        return found

    def _stands(self) -> bool:
        counts = self.counts()
        mail = sum(counts.get(name, {}).get("held", 0) for name in ("slow", "guesses"))
        bodies = counts.get("bodies", {}).get("held", 0)
        held = ("slow" not in counts or mail >= HELD) and ("bodies" not in counts or bodies >= HELD)
        return held and all(_answered(counts[name]) >= FLOOD for name in FLOODS & counts.keys())


@dataclass(frozen=True, slots=True)
class Round:
    """``refused``: letters by why they were. ``counts``: of the attackers, when the last letter had been sent.

    ``turned_away``: connections of anybody that the kernel dropped meanwhile, to be tried again after seconds.
    ``cores``: that the daemon kept busy.
    """

    sent: Sent
    refused: Counter[str]
    counts: Counts
    turned_away: int
    cores: float


def _round(relay: Relay, attackers: Attackers, senders: Senders, attacks: Sequence[str]) -> Round:
    """Raises LoadFailed where the attacks were none."""
    attackers.begin(attacks)
    before, dropped, cpu, began = attackers.counts(), turned_away(), cpu_seconds(relay.pid), time.monotonic()
    sent = asyncio.run(senders.paced(relay, int(PACE * ROUND)))
    cores = (cpu_seconds(relay.pid) - cpu) / (time.monotonic() - began)
    counts, dropped = attackers.counts(), turned_away() - dropped
    attackers.order("end")
    refused = senders.refused.copy()
    senders.refused.clear()
    for name in FLOODS & counts.keys():
        rate = (_answered(counts[name]) - _answered(before[name])) / ROUND
        if rate < FLOOD:
            raise LoadFailed(f"{name}: {rate:.0f}/s were answered, which is no flood")
    if relay.drain(PATIENCE) is None:
        raise LoadFailed(f"{relay.backlog()} is left after {attacks}")
    return Round(sent, refused, counts, dropped, cores)


def _answered(counts: dict[str, int]) -> int:
    return sum(count for what, count in counts.items() if what.startswith("answered "))


def _judge(report: Report, name: str, turns: Sequence[dict[str, Round]]) -> None:
    rounds = [turn[name] for turn in turns]
    took = [value for one in rounds for value in one.sent.took]
    refused = sum((one.refused for one in rounds), Counter[str]())
    cores = statistics.fmean(one.cores for one in rounds)
    p50, p99 = statistics.median(took), percentile(took, 0.99)
    low, found, high = ratio([(turn["quiet"].sent, turn[name].sent) for turn in turns])
    counts = {attack: dict(sum((Counter(one.counts[attack]) for one in rounds), Counter())) for attack in ATTACKS[name]}
    report.line(
        f"  {name:17} accepted p50/p99/max {p50 * 1000:.1f}/{p99 * 1000:.1f}/{max(took) * 1000:.1f} ms, "
        f"{len(took)} messages, {refused.total()} refused; "
        f"p99 {found:.2f} x quiet ({low:.2f}-{high:.2f}); the daemon used {cores:.2f} cores"
    )
    for attack, what in counts.items():
        report.line(f"    {attack}: {', '.join(f'{count} {label}' for label, count in sorted(what.items()))}")
    if dropped := sum(one.turned_away for one in rounds):
        report.line(f"    the kernel dropped {dropped} connections of anybody, too many waited to be accepted")
    for why, count in refused.most_common(5):
        report.line(f"    refused {count} times: {why}")
    report.figures.setdefault("siege", {})[name] = {
        "p50": p50,
        "p99": p99,
        "ratio": [low, found, high],
        "accepted": len(took),
        "refused": refused,
        "dropped": dropped,
        "cores": cores,
        "attackers": counts,
    }
    if name in HTTP:
        kept = found <= GOAL_RATIO or p99 <= GOAL_UNNOTICED
        goal = f"p99 at most {GOAL_RATIO:g} x quiet, or {GOAL_UNNOTICED * 1000:g} ms"
    else:
        kept, goal = p99 <= GOAL, f"p99 at most {GOAL:g} s"
    shown = f"{p99 * 1000:.1f} ms, {found:.2f} x, {refused.total()} refused"
    report.judge(f"siege: {name}: {goal}, none refused", kept and not refused, shown)


def _judge_views(report: Report, turns: Sequence[dict[str, Round]], seconds: float) -> None:
    """Each network's page views against its rate, which goes on from round to round."""
    bound = sum(one.counts.get("views", {}).get("answered 200", 0) for turn in turns for one in turn.values())
    rate = Limits().binds_per_address_per_minute
    most = VIEW_NETWORKS * (rate * (1 + seconds / 60) + 1)
    goal = f"siege: of {VIEW_NETWORKS} networks no more page views than {rate} and as many a minute"
    report.judge(goal, bound <= most, f"{bound} of {most:.0f}")
