"""Ten webhooks, five of them sick, and kills: every event reaches every sound one under one id, and mail goes on.

The suite posts 200 events to each of the ten with 3 kills between, the soak 20,000 with 50. ``flaky`` answers 500 to
the first attempt of every second event and counts as sound: the retry after 5 s has to reach it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.receivers import Receivers
from tests.ledger import SOAK, Ledger, seeded
from tests.scenarios.world import SECRET, World, world

pytestmark = pytest.mark.fault

SOUND = 5
EVENTS, KILLS = (20_000, 50) if SOAK else (200, 3)
#: The first of these come without a kill: none of them is excused from the order.
ORDERED = EVENTS // 5
#: Seconds until all is posted. Reached only when a test fails.
PATIENCE = 1800.0 if SOAK else 60.0
#: Seconds over which a kill's moment is spread.
SPREAD = 2.0 if SOAK else 0.02
#: Seconds between two looks at what announces nothing.
LOOK = 0.2


class Hooks:
    """What the store holds of the posts to the sound webhooks, and what was claimed when the daemon was killed."""

    def __init__(self, relay: World, receivers: Receivers) -> None:
        self._relay = relay
        sound = [url for name, url in receivers.urls.items() if name.startswith("sound") or name == "flaky"]
        self._sound = ", ".join(f"'{url}'" for url in sound)
        self.names = {url: name for name, url in receivers.urls.items()}
        self.claimed: Counter[tuple[str, str]] = Counter()  # (webhook-id, name)

    async def kill(self) -> None:
        """Kill the daemon, note which posts it had claimed, and start it again."""
        await asyncio.to_thread(self._relay.daemon.kill)
        rows = await self._relay.rows(
            "SELECT events.uid, webhooks.url FROM posts JOIN events ON events.id = posts.event_id "
            "JOIN webhooks ON webhooks.id = posts.webhook_id WHERE posts.state = 'waiting' AND posts.claim IS NOT NULL"
        )
        self.claimed.update((uid, self.names[url]) for uid, url in rows)
        await asyncio.to_thread(self._relay.daemon.start)

    async def done(self) -> None:
        """Until all mail is forwarded, read, and delivered to every sound webhook."""
        deadline = time.monotonic() + PATIENCE
        while await self._left():
            assert time.monotonic() < deadline, self._relay.daemon.log[-20:]
            await asyncio.sleep(LOOK)
        states = await self._relay.rows(
            "SELECT DISTINCT posts.state FROM posts JOIN webhooks ON webhooks.id = posts.webhook_id "
            f"WHERE webhooks.url IN ({self._sound})"
        )
        assert states == [("delivered",)]

    async def _left(self) -> int:
        ((mail, posts),) = await self._relay.rows(
            "SELECT (SELECT count(*) FROM deliveries WHERE state IN ('queued', 'deferred'))"
            " + (SELECT count(*) FROM messages WHERE extraction = 'waiting'),"
            " (SELECT count(*) FROM posts JOIN webhooks ON webhooks.id = posts.webhook_id"
            f" WHERE posts.state = 'waiting' AND webhooks.url IN ({self._sound}))"
        )
        return int(mail + posts)

    async def first_attempts_in_order(self) -> int:
        """Every webhook's first attempts were begun in the order of the events; how many these were.

        Those of posts that were claimed at a kill are left out: the first that is recorded may be the second.
        """
        rows = await self._relay.rows(
            "SELECT events.uid, webhooks.url, min(post_attempts.started_at) FROM posts "
            "JOIN post_attempts ON post_attempts.post_id = posts.id JOIN events ON events.id = posts.event_id "
            "JOIN webhooks ON webhooks.id = posts.webhook_id GROUP BY posts.id ORDER BY posts.id"
        )
        last: dict[str, float] = {}
        known = [row for row in rows if (row[0], self.names[row[1]]) not in self.claimed]
        for _, url, started_at in known:
            assert started_at >= last.get(url, 0.0), f"{self.names[url]}: an event was overtaken"
            last[url] = started_at
        return len(known)


async def test_every_event_reaches_every_sound_webhook_under_one_id_whatever_the_others_do_and_kills(
    tmp_path: Path,
) -> None:
    chance = seeded("webhooks and kills")
    ledger = Ledger(chance.randrange(10**6), lambda number: False)
    with Receivers(SOUND, SECRET) as receivers:
        webhooks = [{"url": url, "secret": SECRET} for url in receivers.urls.values()]
        async with world(tmp_path, hook=lambda canary: webhooks, start=False) as relay:
            canary = relay.crm
            receivers.order(f"redirect {canary.url}")
            hooks = Hooks(relay, receivers)
            await asyncio.to_thread(relay.daemon.start)
            began = time.monotonic()
            await ledger.send(lambda: relay.daemon.smtp_port, most=ORDERED)
            await hooks.done()
            async with asyncio.TaskGroup() as group:
                group.create_task(ledger.send(lambda: relay.daemon.smtp_port))
                for _ in range(KILLS):
                    await ledger.wait_for((EVENTS - ORDERED) // (KILLS + 1))
                    # To strike between two answers, and while it catches up: mail goes first, posting waits for it.
                    await asyncio.sleep(chance.random() * SPREAD)
                    await hooks.kill()
                await ledger.wait_for(max(0, EVENTS - len(ledger.acknowledged)))
                ledger.stop()
            await hooks.done()
            seconds = time.monotonic() - began
            figures = receivers.figures()
            in_order = await hooks.first_attempts_in_order()
            assert in_order > ORDERED * len(webhooks), "none after a kill"
            account = settled(ledger, hooks, receivers.dump(tmp_path / "received"))
            print(
                f"{len(ledger.acknowledged)} events to {len(webhooks)} webhooks, {KILLS} kills, {seconds:.0f} s: "
                f"{account}; "
                f"{in_order} first attempts of what was not, all in order"
            )
            for name, found in figures.items():
                print(f"  {name:9} " + ", ".join(f"{count} {what}" for what, count in found.items()))
            assert all(found["unverified"] == 0 and found["requests"] > 0 for found in figures.values())
            assert canary.posts == []
            assert relay.daemon.errors == []


def settled(ledger: Ledger, hooks: Hooks, received: dict[str, dict[str, list[Any]]]) -> str:
    """Draw up the account of the sound webhooks; what it came to in one line."""
    assert sorted(ledger.acknowledged) == list(range(len(ledger.acknowledged)))
    assert len(ledger.acknowledged) >= EVENTS
    ids: dict[int, str] = {}
    repeats: Counter[str] = Counter()
    for name in [f"sound{number}" for number in range(SOUND)] + ["flaky"]:
        for uid, (letter, requests, accepted, _) in received[name].items():
            assert ids.setdefault(letter, uid) == uid, f"letter {letter} was posted under {uid} and {ids[letter]}"
            assert accepted > 0, f"letter {letter} never got its 200 of {name}"
            allowed = hooks.claimed[uid, name]
            assert accepted - 1 <= allowed, f"letter {letter} came {accepted} times to {name}, {allowed} were under way"
            assert name == "flaky" or accepted == requests
            repeats[name] += accepted - 1
        missing = ledger.acknowledged.keys() - {letter for letter, *_ in received[name].values()}
        assert not missing, f"{len(missing)} letters never came to {name}: {sorted(missing)[:10]}"
        assert len(received[name]) == len(ledger.acknowledged)
    assert sum(hooks.claimed.values()) > 0, "no kill struck anything"
    claimed = sum(count for (_, name), count in hooks.claimed.items() if name in repeats)
    return (
        f"{len(ledger.acknowledged)} letters acknowledged, {ledger.resent} sent again by their sender, none lost; "
        f"came twice to a sound webhook: {repeats.total()}, of {claimed} claimed at a kill"
    )
