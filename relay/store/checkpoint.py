"""When the writer brings its write-ahead log into the database.

SQLite does it within the COMMIT that makes the log too long: thousands of pages and two syncs, as long as dozens of
commits, and who has just sent a final dot waits for that one. Here it is done between two batches: rather often, so
that it is short, while nobody waits for the writer, and at last when the log has become long all the same.

Only the writer's connection ever does it. Two that do may lose commits: SQLite 3.7.0 to 3.51.2 has a race between a
checkpoint and the beginning of a new log (sqlite.org/wal.html, "The WAL-Reset Bug"), and Debian's is of these.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

import structlog

from relay.core.metrics import SECONDS, Histogram
from relay.store.connection import BUSY_TIMEOUT

log = structlog.get_logger()

PAGE = 4096
#: Pages of the log from which on it is brought in when nobody waits, and when somebody does.
SHORT, LONG = 500, 4000
#: Pages that a verb writes until it is known, and at least, later.
FIRST, LEAST = 40.0, 1.0
#: Where relay.db-shm has how far the log was brought in, and its octets (sqlite.org/walformat.html, nBackfill).
BROUGHT, OCTETS = 96, 4


class Checkpoints:
    """The writer's thread counts its verbs here, and asks between two batches. ``path``: the log's.

    How many pages are in the log SQLite tells at a checkpoint only. Until the next one that is guessed by the verbs;
    but the file grows whenever the log is longer than ever, which bounds what a wrong guess may cost.

    A failure is logged, and the log grows until the next one. But what somebody reads cuts one short, and SQLite syncs
    only what reaches the end of the log. When the sync of the next one fails, the system may have dropped pages of the
    one before, too, and does not tell again (fsync(2)); SQLite would not write them again, and begin a new log. All of
    them are still in this one: the process ends at once, as if killed, and the next one brings in the whole log.
    """

    def __init__(self, path: Path) -> None:
        self.seconds = Histogram((0.001, 0.0025, *SECONDS))
        self._path = path
        self._verbs = 0  # since the last one
        self._pages = FIRST  # of a verb, by the last one
        self._log = 0, b""  # at the last one: pages in the log, and which log it was
        self._octets = 0  # of its file, at the last one
        self._is_partial = False  # pages may have been written to the database and not synced

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
            _, pages, brought = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            self._end_if_pages_may_be_lost(error)
            log.warning("write-ahead log not brought into the database yet", reason=str(error))
            return
        self._is_partial = brought < pages
        self.seconds.observe(time.perf_counter() - began)
        known, before = self._log
        self._log = pages, (sequence := self._sequence())
        self._pages = max(LEAST, (pages - known if sequence == before else pages) / verbs)

    def reset(self, connection: sqlite3.Connection, patience: float) -> str | None:
        """Bring what a killed process left in the log into the database, and begin the log anew; or why not.

        A sync that failed before the kill may have left frames in the log that the system has in memory and the disk
        does not: commits chained behind them would be lost with the power. ``patience``: seconds for who reads it now.
        """
        try:
            connection.execute(f"PRAGMA busy_timeout={patience * 1000:.0f}")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            self._end_if_pages_may_be_lost(error)
            return str(error)
        finally:
            connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT * 1000:.0f}")
        self._is_partial = bool(busy)
        return "somebody reads the database" if busy else None

    def _end_if_pages_may_be_lost(self, error: sqlite3.Error) -> None:
        if self._is_partial and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC:
            log.critical("pages of the database may be lost, ending: the next start has them", reason=str(error))
            self._forget()
            os._exit(os.EX_IOERR)

    def _forget(self) -> None:
        """Have nothing count as brought in: who just reads, as a backup does, keeps for the next process what does."""
        with suppress(OSError):
            index = os.open(
                self._path.with_name(self._path.name.removesuffix("wal") + "shm"), os.O_WRONLY | os.O_CLOEXEC
            )
            os.pwrite(index, bytes(OCTETS), BROUGHT)

    def _sequence(self) -> bytes:
        """Its number and salts (sqlite.org/fileformat.html, The WAL file format), which each log has of its own.

        SQLite has no lock on this file that our closing it would end; on the other two it has.
        """
        try:
            with self._path.open("rb") as file:
                return file.read(24)[12:]
        except OSError:
            return b""
