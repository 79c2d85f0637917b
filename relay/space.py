"""Free space on the disk of data_dir, asked for by every message and every page view."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

#: Seconds for which it is taken as read.
AGE = 1.0


class Space:
    """Where data_dir cannot be asked, say because it was moved under the daemon, what was read last counts.

    So what is to be written meets the store, which finds out what the matter is, and says so; "no room" would not.
    """

    def __init__(self, data_dir: Path, clock: Callable[[], float]) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._free = self._size = 0
        self._read_at = float("-inf")

    def free(self) -> int:
        """Octets that may be written yet."""
        self._read()
        return self._free

    def size(self) -> int:
        """Octets of the file system."""
        self._read()
        return self._size

    def _read(self) -> None:
        now = self._clock()
        if 0 <= now - self._read_at < AGE:
            return
        self._read_at = now
        with contextlib.suppress(OSError):
            space = os.statvfs(self._data_dir)
            self._free, self._size = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
