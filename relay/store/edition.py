"""Whether a copy of rows in memory is still as they are: a number that every change of such rows makes another."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile

_SIZE = 8


class Edition:
    """Counts the times that rows changed of which somebody may keep a copy in memory (``Tx.revise``).

    Processes that are given its ``descriptor`` see the number as soon as it changes; one process counts.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._cell = memoryview(self._memory).cast("Q")

    @classmethod
    def new(cls) -> Edition:
        descriptor = _memory()
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    @property
    def number(self) -> int:
        return self._cell[0]

    def advance(self) -> None:
        self._cell[0] += 1

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


def _memory() -> int:
    """An empty file without a name, in memory where there is such a thing."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("visit-relay edition", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
