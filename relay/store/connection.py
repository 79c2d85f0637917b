"""The writing connection to the database, and which files it has opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from relay.store.errors import StoreUnavailable

#: Seconds to wait for a lock that a foreign process holds on the database.
BUSY_TIMEOUT = 5.0


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """The writing connection: WAL and ``synchronous=FULL``, asserted, since durability before 250 rests on them.

    What is erased is written over, which not every build of SQLite does by itself. No file is made but with ``create``.
    """
    name = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    connection = sqlite3.connect(name, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone does not reach the disk
        connection.execute("PRAGMA checkpoint_fullfsync=ON")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA cache_size=-16000")
        connection.execute("PRAGMA wal_autocheckpoint=0")  # in a COMMIT, which keeps its failure to itself
        connection.execute("PRAGMA journal_size_limit=67108864")
        for pragma, expected in (
            ("journal_mode", "wal"),
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("secure_delete", 1),
        ):
            (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
            if value != expected:
                raise StoreUnavailable(f"{path}: PRAGMA {pragma} is {value}, not {expected}")
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreUnavailable(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed")
    except BaseException:
        connection.close()
        raise
    return connection


def files(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """Which files go by the names of the database, no link, and its log now (None: none). Raises StoreUnavailable.

    SQLite does not look: into what has been removed or replaced it writes on, and all of that would be lost.
    """
    found: list[tuple[int, int] | None] = []
    for name in (path, path.with_name(f"{path.name}-wal")):
        try:
            state = name.stat()
        except FileNotFoundError:
            found.append(None)
        except OSError as error:
            raise StoreUnavailable(str(error)) from error
        else:
            found.append((state.st_dev, state.st_ino))
    return tuple(found)
