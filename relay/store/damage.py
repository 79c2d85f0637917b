"""A damaged database: found out at the start as far as a second goes, and whenever SQLite meets it later.

Once it is known nothing is written any more, for what is written into a damaged file may be lost or damage more: mail
is put off (451) until somebody has restored a backup. A damaged or missing database is never replaced by an empty one.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from relay.store.errors import StoreUnavailable

log = structlog.get_logger()

#: Virtual-machine instructions between two looks at the clock, and seconds that the start may take to look for damage.
STEPS = 100_000
PATIENCE = 1.0
REMEDY = "stop the daemon, keep data_dir as it is, restore the last backup (docs/operations.md, Backup and restore)"
_CODES = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
#: What SQLite says of these codes (sqlite3_errstr), in whatever words around it.
_WORDS = ("disk image is malformed", "malformed database schema", "file is not a database")


class Damaged(Exception):
    """The database at ``path`` cannot be used any more; the message names the remedy."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the database {path} is damaged ({reason}): {REMEDY}")


@dataclass(slots=True)
class Damage:
    """What is known of the damage of an open database; ``reason`` None: nothing."""

    path: Path
    reason: str | None = None

    def refuse(self) -> None:
        """Raises StoreUnavailable once there is damage."""
        if self.reason is not None:
            raise StoreUnavailable(f"the database is damaged: {self.reason}")

    def note(self, error: StoreUnavailable) -> None:
        """Look whether an error tells of damage."""
        reason = str(error)
        if self.reason is None and any(word in reason for word in _WORDS):
            self.reason = reason
            log.error("database damaged", database=str(self.path), error=reason, hint=f"mail is put off: {REMEDY}")


def check(path: Path) -> None:
    """Look for damage before the database is used, PATIENCE seconds at most. Raises Damaged, other sqlite3.Errors.

    One that is missing or empty where messages have been kept is damaged, too: no other would ever be made of it.
    """
    if not path.exists() or not path.stat().st_size:
        if traces := _traces(path):
            raise Damaged(path, f"it is {'empty' if path.exists() else 'missing'}, but {traces} is there")
        return
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        try:
            found = _quick_check(connection)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _CODES:
                raise
            found = str(error)
    if found is not None:
        raise Damaged(path, found)


def _quick_check(connection: sqlite3.Connection) -> str | None:
    """What is wrong, as far as the time goes."""
    until = time.monotonic() + PATIENCE
    connection.set_progress_handler(lambda: time.monotonic() > until, STEPS)
    try:
        ((found,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_INTERRUPT:
            raise
        log.info("database too large to be looked through at the start", database_octets=_octets(connection))
        return None
    return None if found == "ok" else str(found).replace("\n", ": ")


def _octets(connection: sqlite3.Connection) -> int:
    pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return int(pages) * int(size)


def _traces(path: Path) -> Path | None:
    """What says that messages were kept here."""
    log_file, bodies = path.with_name(f"{path.name}-wal"), path.parent / "bodies"
    if log_file.exists() and log_file.stat().st_size:
        return log_file
    return next(bodies.iterdir(), None) if bodies.is_dir() else None
