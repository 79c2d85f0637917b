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

import structlog

from relay.core.metrics import SECONDS, Histogram

log = structlog.get_logger()

#: Pages (4 KiB each) of the log from which on it is brought in when nobody waits, and when somebody does.
SHORT, LONG = 500, 4000
#: Pages that a commit writes until it is known; and at least, later.
FIRST, LEAST = 40.0, 4.0


class Checkpoints:
    """The writer's thread counts its commits here, and asks between two batches. A failure is logged and costs nothing:

    the log grows until the next one, and at connection.MOST_PAGES SQLite does it within a COMMIT after all.
    """

    def __init__(self) -> None:
        self.seconds = Histogram((0.001, 0.0025, *SECONDS))
        self._commits = 0  # since the last one
        self._pages = FIRST  # of a commit, by the last one

    def committed(self) -> None:
        """Count a commit."""
        self._commits += 1

    def perhaps(self, connection: sqlite3.Connection, idle: bool) -> None:
        """Bring the log in if it is time; ``idle``: nobody waits for the writer."""
        if self._commits * self._pages < (SHORT if idle else LONG):
            return
        commits, self._commits = self._commits, 0
        began = time.perf_counter()
        try:
            # Waits for nobody: what somebody reads just now stays in the log.
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            log.warning("write-ahead log not brought into the database yet", reason=str(error))
            return
        self.seconds.observe(time.perf_counter() - began)
        self._pages = max(LEAST, pages / commits)
