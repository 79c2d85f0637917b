"""Power cuts: the file system under the daemon stops without flushing, as when the plug is pulled.

The recipe: a loop-mounted ext4; SIGSTOP the daemon; FS_IOC_SHUTDOWN without a log flush, after which nothing that was
not synced exists any more; kill; unmount; mount, which replays the journal; start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ledger import SOAK, Ledger, mail, seeded, subject
from tests.scenarios.world import world

pytestmark = pytest.mark.fault

CUTS = 20 if SOAK else 3
#: linux/fs.h: shut the file system down; 2: without flushing its log.
FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSH = 2


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Disk:
    """An ext4 in a file, mounted at ``path``."""

    def __init__(self, directory: Path) -> None:
        self._image = directory / "disk.img"
        self.path = directory / "disk"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(256 * 1024 * 1024)
        run("mkfs.ext4", "-q", "-F", str(self._image))

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        run("umount", str(self.path))

    def cut(self) -> None:
        """From here on nothing reaches the disk, and what was not synced is gone."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(handle)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("POWER CUTS NOT TESTED: only root can mount a disk to cut off")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("POWER CUTS NOT TESTED: no mkfs.ext4 on this machine (apt install e2fsprogs)")
    made = Disk(tmp_path)
    try:
        made.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"POWER CUTS NOT TESTED: no loop mount here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.unmount()


async def test_a_power_cut_loses_nothing_that_was_answered_250(tmp_path: Path, disk: Disk) -> None:
    chance = seeded("power cuts")
    async with world(tmp_path, {"data_dir": str(disk.path / "data")}, start=False) as made:
        await asyncio.to_thread(made.daemon.start)
        ledger = Ledger(made)
        senders = [asyncio.create_task(ledger.keep_sending()) for _ in range(4)]
        for _ in range(CUTS):
            await ledger.more(chance.randrange(20, 60))
            await asyncio.sleep(chance.random() / 50)
            os.kill(made.daemon.pid, signal.SIGSTOP)
            promised = list(ledger.promised)
            disk.cut()
            await asyncio.to_thread(made.daemon.kill)
            await asyncio.to_thread(disk.unmount)
            await asyncio.to_thread(disk.mount)
            assert await made.rows("PRAGMA integrity_check") == [("ok",)]
            stored = {row[0] for row in await made.rows("SELECT subject FROM messages")}
            assert [number for number in promised if subject(number) not in stored] == []
            await asyncio.to_thread(made.daemon.start)
        ledger.end()
        await asyncio.gather(*senders)
        await ledger.settled()
        await check_bytes(ledger)
        counts = await ledger.balance()
        print(f"{CUTS} power cuts: {dict(counts)}")
        await asyncio.to_thread(made.daemon.kill)


async def check_bytes(ledger: Ledger) -> None:
    """The stored bytes of every promised mail are the bytes that were sent, in the database or in a file."""
    rows = await ledger.world.rows(
        "SELECT m.subject, m.body_file, b.data FROM messages m LEFT JOIN bodies b ON b.message_id = m.id"
    )
    bodies = ledger.world.daemon.data_dir / "bodies"
    stored = {row[0]: row[2] if row[1] is None else (bodies / row[1]).read_bytes() for row in rows}
    for number in ledger.promised:
        assert stored[subject(number)] == mail(number)
