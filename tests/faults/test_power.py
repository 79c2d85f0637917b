"""Power cuts: the file system under the daemon stops without flushing, as when the plug is pulled.

While it serves, and while it starts.

The recipe: a loop-mounted ext4 or XFS; SIGSTOP the daemon; FS_IOC_SHUTDOWN without a log flush, after which nothing
that was not synced exists any more; kill; unmount; mount, which replays the journal; start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.test_kill import settled
from tests.faults.volume import KINDS, Disk, disk_of
from tests.ledger import SOAK, Account, Ledger, Visitors, numbers_under_way, seeded
from tests.scenarios.world import World, world

pytestmark = pytest.mark.fault

CUTS = 20 if SOAK else 2
#: Starts after each of these cuts that are cut off themselves, before one goes through.
STARTS = (3,) * CUTS if SOAK else (0, 1)


async def cut(relay: World, disk: Disk, ledger: Ledger) -> list[int]:
    """Cut the power and bring it back: all that was acknowledged is there. The letters that were under way."""
    os.kill(relay.daemon.pid, signal.SIGSTOP)  # without it one write may still pass the cut
    disk.cut()
    await asyncio.to_thread(relay.daemon.kill)
    await asyncio.to_thread(disk.unmount)
    await asyncio.to_thread(disk.mount)
    assert await relay.row("PRAGMA integrity_check") == ("ok",)
    account = await asyncio.to_thread(Account.of, relay.daemon, [], [])
    account.must_keep(ledger)
    return await asyncio.to_thread(numbers_under_way, relay.daemon)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_power_cut_loses_nothing_that_was_answered_250(kind: str, tmp_path: Path) -> None:
    with disk_of(kind, tmp_path, f"power cuts on {kind}") as disk:
        chance = seeded(f"power cuts, {kind}")
        # Every fifth letter is large: files and their directory entries have to survive, too.
        ledger, under_way = Ledger(chance.randrange(10**6), lambda number: number % 5 == 4), Counter[int]()
        async with world(tmp_path, {"data_dir": str(disk.path / "data")}, start=False) as relay:
            began = time.monotonic()
            await asyncio.to_thread(relay.daemon.start)
            a_start = time.monotonic() - began
            # Made and synced by the daemon itself: the cuts are to try that, too.
            assert "migration" in [entry.get("event") for entry in relay.daemon.log]
            visitors = Visitors(relay)
            async with asyncio.TaskGroup() as group:
                group.create_task(ledger.send(lambda: relay.daemon.smtp_port))
                views = group.create_task(visitors.come(ledger))
                for starts in STARTS:
                    await ledger.wait_for(chance.randrange(20, 80))
                    await asyncio.sleep(chance.random() / 50)  # to strike between two answers, too
                    under_way.update(await cut(relay, disk, ledger))
                    for _ in range(starts):
                        relay.daemon.spawn()
                        await asyncio.sleep((1 + chance.random()) * a_start / 2)  # until then Python reads modules
                        under_way.update(await cut(relay, disk, ledger))
                    await asyncio.to_thread(relay.daemon.start)
                    await visitors.must_be_known()
                ledger.stop()
                views.cancel()
            print(
                f"{CUTS} power cuts on {kind}, and {sum(STARTS)} at starts: {await settled(relay, ledger, under_way)}"
            )
            assert visitors.shown
            large = sum(file is not None for (file,) in await relay.rows("SELECT body_file FROM messages"))
            assert large > 0
            await asyncio.to_thread(relay.daemon.kill)
