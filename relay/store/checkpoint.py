"""When the writer brings its write-ahead log into the database.

SQLite does it within the COMMIT that makes the log too long: thousands of pages and two syncs, as long as dozens of
commits, and who has just sent a final dot waits for that one. Here it is done between two batches: rather often, so
that it is short, while nobody waits for the writer, and at last when the log has become long all the same.

Only the writer's connection ever does it. Two that do may lose commits: SQLite 3.7.0 to 3.51.2 has a race between a
checkpoint and the beginning of a new log (sqlite.org/wal.html, "The WAL-Reset Bug"), and Debian's is of these.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import structlog

from relay.core.metrics import SECONDS, Histogram

log = structlog.get_logger()

PAGE = 4096
#: Pages of the log from which on it is brought in when nobody waits, and when somebody does.
SHORT, LONG = 500, 4000
#: Pages that a verb writes until it is known, and at least, later.
FIRST, LEAST = 40.0, 1.0


class Checkpoints:
    """The writer's thread counts its verbs here, and asks between two batches. ``path``: the log's.

    How many pages are in the log SQLite tells at a checkpoint only. Until the next one that is guessed by the verbs;
    but the file grows whenever the log is longer than ever, which bounds what a wrong guess may cost.

    A failure is logged, and the log grows until the next one; at connection.MOST_PAGES SQLite does it within a COMMIT.
    """

    def __init__(self, path: Path) -> None:
        self.seconds = Histogram((0.001, 0.0025, *SECONDS))
        self._path = path
        self._verbs = 0  # since the last one
        self._pages = FIRST  # of a verb, by the last one
        self._log = 0, b""  # at the last one: pages in the log, and which log it was
        self._octets = 0  # of its file, at the last one

    def committed(self, verbs: int) -> None:
        """Count the verbs of a batch."""
        self._verbs += verbs

    def perhaps(self, connection: sqlite3.Connection, idle: bool) -> None:
        """Bring the log in if it is time; ``idle``: nobody waits for the writer."""
        try:
            octets = self._path.stat().st_size
        except OSError:
            return
        is_longer_than_ever = octets >= LONG * PAGE and octets - self._octets >= SHORT * PAGE
        if not is_longer_than_ever and self._verbs * self._pages < (SHORT if idle else LONG):
            return
        verbs, self._verbs, self._octets = max(1, self._verbs), 0, octets
        began = time.perf_counter()
        try:
            # Waits for nobody: what somebody reads just now stays in the log, which goes on growing then.
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            log.warning("write-ahead log not brought into the database yet", reason=str(error))
            return
        self.seconds.observe(time.perf_counter() - began)
        known, before = self._log
        self._log = pages, (sequence := self._sequence())
        self._pages = max(LEAST, (pages - known if sequence == before else pages) / verbs)

    def _sequence(self) -> bytes:
        """Its number and salts (sqlite.org/fileformat.html, The WAL file format), which each log has of its own.

        SQLite has no lock on this file that our closing it would end; on the other two it has.
        """
        try:
            with self._path.open("rb") as file:
                return file.read(24)[12:]
        except OSError:
            return b""
