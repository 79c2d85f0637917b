"""Disks that can be cut off or filled up: an ext4 in a file, a tmpfs of some size. Needs root, else skips loudly."""

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

#: linux/fs.h: shut the file system down; 2: without flushing its log.
_FS_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = 2
#: Seconds until the last process has let go of an unmounted disk.
PATIENCE = 10.0
LOOK = 0.02


class Ext4:
    """An ext4 of 256 MiB in a file, loop-mounted at ``path``."""

    def __init__(self, directory: Path) -> None:
        self._image = directory / "disk.img"
        self.path = directory / "disk"

    def make(self) -> None:
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(256 * 1024 * 1024)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
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
def ext4(directory: Path, what: str) -> Iterator[Ext4]:
    """A mounted Ext4; ``what`` is not tested where there can be none."""
    if os.geteuid() != 0:
        pytest.skip(f"NOT TESTED, {what}: only root can mount a disk")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip(f"NOT TESTED, {what}: no mkfs.ext4 (Debian: apt-get install e2fsprogs)")
    disk = Ext4(directory)
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
        pytest.skip(f"NOT TESTED, {what}: only root can mount a disk")
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
