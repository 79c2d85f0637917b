"""A damaged database: found out at the start as far as a second goes, and whenever SQLite meets it later.

Once it is known nothing is written any more, for what is written into a damaged file may be lost or damage more: mail
is put off (451) until somebody has restored a backup. A damaged or missing database is never replaced by an empty one.

SQLite says the same of a page that the disk did not give (EIO, once). So when it speaks of damage mail is put off until
the whole file has been looked through, and goes on when that found nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from relay.durable import sync_directory
from relay.store.errors import Replaced, StoreUnavailable

log = structlog.get_logger()

#: Virtual-machine instructions between two looks at the clock, and seconds that the start may take to look for damage.
STEPS = 100_000
PATIENCE = 1.0
#: Seconds until a file that could not be read is looked through again.
AGAIN = 1.0
#: Seconds for which what was looked through counts as sound, at least, and as a multiple of what that took: else one
#: index that is damaged where a look does not find it would keep the disk busy, and mail off, for good.
SOUND, SOUND_TIMES = 60.0, 20.0
REMEDY = "stop the daemon, keep data_dir as it is, restore the last backup (docs/operations.md, Backup and restore)"
#: For files that only the daemon has open: with its end they are gone.
REMOVED = "do NOT stop the daemon, only it still has the files (docs/operations.md, What to do when, was removed)"
ANEW = "to begin anew on purpose (mail to every address that was ever shown is refused then) move data_dir away"
#: The marker: what lies beside a database from its first day on, to miss it by.
_MARKER = f"""\
A database was made here. While it is missing or empty the daemon does not start.
Remedy: {REMEDY}; {ANEW}.
"""
#: A body's name (relay/bodies.py): lost+found and .keep are none.
_is_body = re.compile(r"[0-9a-f]{32}").fullmatch
#: Octets of a log's index up to the number of frames that are in the database (nBackfill).
_INDEX_HEAD = 100
_CODES = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
#: What SQLite says of these codes (sqlite3_errstr), in whatever words around it.
_WORDS = ("disk image is malformed", "malformed database schema", "file is not a database")


class Damaged(Exception):
    """The database at ``path`` cannot be used any more; the message names the remedy."""

    def __init__(self, path: Path, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(f"the database {path} is damaged ({reason}): {remedy}")


@dataclass(slots=True)
class Damage:
    """What is known of the damage of an open database; ``reason`` None: nothing."""

    path: Path
    reason: str | None = None
    looking: bool = False  # the file is being looked through
    _sound_until: float = -math.inf  # time.monotonic()

    @property
    def trouble(self) -> str | None:
        """Why nothing is written now; None: it is."""
        if self.reason is not None:
            return f"the database is damaged: {self.reason}"
        return "the database is being looked through for damage" if self.looking else None

    def refuse(self) -> None:
        """Raises StoreUnavailable while there is trouble."""
        if (trouble := self.trouble) is not None:
            raise StoreUnavailable(trouble)

    def note(self, error: StoreUnavailable) -> None:
        """Look whether an error tells of damage; if it seems so, begin to look through the file, in a thread."""
        said = str(error)
        if isinstance(error, Replaced) and self.reason is None:
            self._know(said, REMOVED)
            return
        if not any(word in said for word in _WORDS) or self.trouble is not None:
            return
        if time.monotonic() < self._sound_until:
            log.error("database looks damaged again, it was sound just now", error=said)
            return
        self.looking = True
        log.error(
            "database looks damaged", database=str(self.path), error=said, hint="mail is put off for a look through it"
        )
        threading.Thread(target=self._look, args=(said,), name="store-damage", daemon=True).start()

    def _look(self, said: str) -> None:
        began = time.monotonic()
        while True:
            try:
                check(self.path, patience=None)
            except Damaged:
                self._know(said)
            except (sqlite3.Error, OSError) as error:
                log.error("database can't be looked through, mail is put off", error=str(error), again_in=AGAIN)
                time.sleep(AGAIN)
                continue
            else:
                ended = time.monotonic()
                self._sound_until = ended + max(SOUND, SOUND_TIMES * (ended - began))
                log.warning("database looked through, it is sound", seconds=round(ended - began, 3))
            self.looking = False
            return

    def _know(self, reason: str, remedy: str = REMEDY) -> None:
        self.reason = reason
        log.error("database damaged", database=str(self.path), error=reason, hint=f"mail is put off: {remedy}")


def mark(path: Path) -> None:
    """Leave a marker beside the database that it was made: of one with small messages only, nothing else would tell.

    Where that cannot be written the log says so; a daemon that runs is worth more.
    """
    marker = _marker_of(path)
    if marker.exists():
        return
    try:
        with os.fdopen(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(_MARKER)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as error:
        log.warning("database not marked as made: a loss of it may pass unnoticed", file=str(marker), error=str(error))


def check(path: Path, patience: float | None = PATIENCE) -> None:
    """Look for damage, ``patience`` seconds at most (None: to the end). Raises Damaged, other sqlite3.Errors.

    One that is missing or empty where there was one is damaged, too (:func:`refuse_anew`).
    """
    if not _octets_of(path):
        refuse_anew(path)
        return
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        try:
            found = _quick_check(connection, patience)
            bare = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _CODES:
                raise
            found, bare = str(error), False
    if found is not None:
        raise Damaged(path, found)
    if bare:
        refuse_anew(path)


def check_log(path: Path) -> None:
    """Before the database is opened, by who has the lock on data_dir: raises Damaged where its last commits are gone.

    Never beside an open connection of this process: its locks on the index end when anybody here closes that file
    (fcntl(2)).
    """
    file = path.resolve()  # SQLite makes the others beside what a link leads to
    log_file, index = (file.with_name(f"{file.name}-{ending}") for ending in ("wal", "shm"))
    if _names_commits(index) and not log_file.exists():  # SQLite makes the log before its index, and removes it last
        remedy = f"put {log_file.name} back, or, without the last commits, which were in it, remove {index.name}"
        raise Damaged(path, f"its log {log_file} is missing", remedy)


def _names_commits(index: Path) -> bool:
    """Whether a log's index (sqlite.org/walformat.html) says that there is more in the log than in the database."""
    try:
        with index.open("rb") as file:
            head = file.read(_INDEX_HEAD)
    except FileNotFoundError:
        return False
    if len(head) < _INDEX_HEAD or not head[12]:  # made, and never written to
        return False
    frames, brought_in = (int.from_bytes(head[at : at + 4], sys.byteorder) for at in (16, 96))
    return frames > brought_in


def refuse_anew(path: Path) -> None:
    """Raises Damaged if there was a database at ``path`` where there is none now, or one without tables.

    No other is ever made in its place. A start that was cut short before the first table left no marker (:func:`mark`).
    """
    if (trace := _trace(path)) is not None:
        state = "empty" if path.exists() else "missing"
        raise Damaged(path, f"it is {state}, but {trace} is there", f"{REMEDY}; {ANEW}")


def _quick_check(connection: sqlite3.Connection, patience: float | None) -> str | None:
    """What is wrong, as far as the time goes."""
    until = math.inf if patience is None else time.monotonic() + patience
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


def _octets_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _trace(path: Path) -> Path | None:
    """What says that there was a database here, other than is here now."""
    marker, log_file, bodies = _marker_of(path), path.with_name(f"{path.name}-wal"), path.parent / "bodies"
    if marker.exists():
        return marker
    if bodies.is_dir() and (body := next(filter(lambda file: _is_body(file.name), bodies.iterdir()), None)):
        return body
    # One that is just being made has a log, too.
    return log_file if _octets_of(log_file) and not _octets_of(path) else None


def _marker_of(path: Path) -> Path:
    return path.with_name("database-was-made")  # no "rm relay.db*" takes it along
