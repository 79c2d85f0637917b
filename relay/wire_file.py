"""A stored body as core/mime.py reads it: un-stuffed, and not in memory as a whole.

A window of it is held, which serves most of what the walker asks. Where a line begins with a dot the file has one more
(core/wire.py); where those lie is found in one pass, and offsets are told past them.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right

#: Octets held.
WINDOW = 256 * 1024
#: Dots whose places are kept, 8 octets each: who begins more lines with a dot is read as a whole.
MOST_DOTS = 100_000
_STUFFED = b"\r\n."


class TooManyDots(Exception):
    """More lines begin with a dot than places are kept."""


class WireFile:
    """The octets of an open file in wire form, un-stuffed (relay.core.mime.Octets).

    The descriptor stays the caller's; the file must not change. Raises TooManyDots, and OSError where it can't be read.
    """

    def __init__(self, descriptor: int, window: int = WINDOW) -> None:
        self._descriptor = descriptor
        self._window = window
        stored = os.fstat(descriptor).st_size
        self._dots = self._spare(stored)
        self._size = stored - len(self._dots)
        self._at = 0
        self._held = b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> bytes:
        start, stop, _ = key.indices(self._size)
        if stop - start > self._window:
            return self._read(start, stop)
        if start >= stop:
            return b""
        self._hold(start, stop - start)
        return self._held[start - self._at : stop - self._at]

    def find(self, sub: bytes, start: int, end: int) -> int:
        """As that of bytes, for offsets that are not negative."""
        end = min(end, self._size)
        while start + len(sub) <= end:
            self._hold(start, len(sub))
            found = self._held.find(sub, start - self._at, end - self._at)
            if found >= 0:
                return self._at + found
            start = self._at + len(self._held) - len(sub) + 1
        return -1

    def _hold(self, start: int, length: int) -> None:
        """Have the window reach from ``start`` over ``length`` octets at least, which are there."""
        if start < self._at or start + length > self._at + len(self._held):
            self._held = self._read(start, min(start + max(self._window, length), self._size))
            self._at = start

    def _read(self, start: int, stop: int) -> bytes:
        """The octets from ``start`` up to ``stop``, which lies behind it."""
        first, last = bisect_right(self._dots, start), bisect_right(self._dots, stop - 1)
        octets = self._stored(start + first, stop + last)
        if first == last:
            return octets
        if self._dots[first] == start + 1:  # the CR before it is before what was read
            octets = octets[:1] + octets[2:]
        return octets.replace(_STUFFED, b"\r\n")

    def _stored(self, start: int, stop: int) -> bytes:
        pieces: list[bytes] = []
        while start < stop:
            octets = os.pread(self._descriptor, stop - start, start)
            if not octets:
                raise OSError("the file is shorter than it was")
            pieces.append(octets)
            start += len(octets)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _spare(self, stored: int) -> array[int]:
        """Behind how many octets of the message each spare dot stands, in order."""
        dots = array("q")
        before = b"\r\n"  # the first line is a line like any other
        for at in range(0, stored, self._window):
            block = before + self._stored(at, min(at + self._window, stored))
            place = block.find(_STUFFED)
            while place >= 0:
                dots.append(at + place - len(dots))  # what is before the block is as long as what is before the dot
                if len(dots) > MOST_DOTS:
                    raise TooManyDots
                place = block.find(_STUFFED, place + len(_STUFFED))
            before = block[-2:]
        return dots
