"""Free space on the disk of data_dir, asked for by every message and every page view."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

#: Seconds for which it is taken as read.
AGE = 1.0


class Space:
    def __init__(self, data_dir: Path, clock: Callable[[], float]) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._free = 0
        self._read_at = float("-inf")

    def free(self) -> int:
        """Octets that may be written yet."""
        now = self._clock()
        if not 0 <= now - self._read_at < AGE:
            space = os.statvfs(self._data_dir)
            self._free = space.f_bavail * space.f_frsize
            self._read_at = now
        return self._free

    def size(self) -> int:
        """Octets of the file system."""
        space = os.statvfs(self._data_dir)
        return space.f_blocks * space.f_frsize
