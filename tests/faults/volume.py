"""Disks that can be cut off or filled up: ext4 or XFS in a file, a tmpfs of some size. Skips loudly without root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest

from tests.missing import missing

#: linux/fs.h: shut the file system down; 2: without flushing its log.
_FS_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = 2
#: Seconds until the last process has let go of an unmounted disk.
PATIENCE = 10.0
LOOK = 0.02


#: Octets of a disk: XFS wants 300 MiB at least.
DISK = 320 << 20
#: File systems that can be cut off: how one is made in a file, and the Debian package that makes it.
KINDS = {
    "ext4": (("mkfs.ext4", "-q", "-F", "-m", "0"), "e2fsprogs"),
    "xfs": (("mkfs.xfs", "-q", "-f"), "xfsprogs"),
}


class Disk:
    """A file system of ``kind`` in a file of ``size`` octets, loop-mounted at ``path``."""

    def __init__(self, directory: Path, kind: str, size: int) -> None:
        self._kind = kind
        self._size = size
        self._image = directory / "disk.img"
        self.path = directory / "disk"

    def make(self) -> None:
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._size)
        command, _ = KINDS[self._kind]
        _run(*command, str(self._image))
        self.mount()

    def mount(self) -> None:
        """Mount, which replays the journal."""
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        _unmount(self.path)

    def cut(self) -> None:
        """As when the plug is pulled: nothing reaches the disk any more, and what was not synced is gone."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _FS_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(handle)


@contextlib.contextmanager
def disk_of(kind: str, directory: Path, what: str, size: int = DISK) -> Iterator[Disk]:
    """A mounted Disk; ``what`` is not tested where there can be none."""
    if os.geteuid() != 0:
        missing(f"NOT TESTED, {what}: only root can mount a disk")
    (program, *_), package = KINDS[kind]
    if shutil.which(program) is None:
        missing(f"NOT TESTED, {what}: no {program} (Debian: apt-get install {package})")
    disk = Disk(directory, kind, size)
    try:
        disk.make()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NOT TESTED, {what}: no loop mount here: {error.stderr.strip()}")
    try:
        yield disk
    finally:
        if os.path.ismount(disk.path):
            disk.unmount()


@contextlib.contextmanager
def tmpfs(path: Path, size: int, what: str) -> Iterator[Path]:
    """A mounted tmpfs of ``size`` octets; ``what`` is not tested where there can be none."""
    if os.geteuid() != 0:
        missing(f"NOT TESTED, {what}: only root can mount a disk")
    path.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NOT TESTED, {what}: no tmpfs can be mounted here: {error.stderr.strip()}")
    try:
        yield path
    finally:
        _unmount(path)


def fill(directory: Path, leave: int) -> Path:
    """Fill the disk up to ``leave`` octets; the file that does it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        while (free := _free(directory) - leave) > 0:
            try:
                file.write(b"\0" * min(free, 1 << 20))
            except OSError as error:
                if error.errno != ENOSPC:
                    raise
                break  # the daemon, which writes too, was faster
    return filler


def _free(directory: Path) -> int:
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


def _unmount(path: Path) -> None:
    """Unmount; the workers of a daemon that was killed need a moment to see it and to let go."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            _run("umount", str(path))
            return
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                _run("umount", "-l", str(path))
                raise
            time.sleep(LOOK)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
