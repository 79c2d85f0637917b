"""The store as the rest of the daemon sees it: verbs go to the writer, questions to the readers."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path
from typing import TypeVar

from relay.store import copied, damage, migrate
from relay.store.damage import Damage
from relay.store.directory import Directory
from relay.store.engine import StoreUnavailable, Turn, Tx, Verb, Writer
from relay.store.reader import Reader
from relay.store.routes import RouteCache

T = TypeVar("T")

#: Name of the database in data_dir.
DATABASE = "relay.db"
#: Seconds that a report may take.
PATIENCE = 60.0


def prepare(path: Path, progress: migrate.Progress = lambda line: None) -> None:
    """Make the database at ``path``, or bring it up to date; one that got lost is never made anew. Blocks.

    Raises Damaged, WrongRevision, sqlite3.Error, OSError.
    """
    if path.with_name(f"{path.name}-journal").exists():
        _roll_back(path)
    damage.check_log(path)
    damage.check(path)
    migrate.migrate(path, progress)
    damage.mark(path)


def _roll_back(path: Path) -> None:
    """Undo what a process that was killed had begun on a database that was not in WAL mode yet: a restored backup.

    Connections that may only read are refused while there is such a journal.
    """
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=5)) as connection:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()


def revision(path: Path) -> str | None:
    """The schema revision of the database at ``path``; None when there never was one.

    Raises Damaged where one got lost, WrongRevision, sqlite3.Error.
    """
    found = migrate.revision(path)
    if found is None:
        damage.refuse_anew(path)
    return found


class Store:
    """One open database. Only the process that holds data_dir's lock may open one (relay/control.py)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = Writer(path)
        self.damage = Damage(path)
        self.reader = Reader(path, on_error=self.damage.note)
        #: For readings of very many rows: one at a time, so that neither mail nor pages ever wait for a report.
        self.reports = Reader(path, size=1, patience=PATIENCE, on_error=self.damage.note)
        #: For tables that somebody loads, a page at a time and one after another: mail and pages do not wait for them.
        self.exports = Reader(path, size=1, on_error=self.damage.note)
        self.routes = RouteCache(self.reader)
        self.sites = Directory(self.reader)
        self._loading = asyncio.Lock()  # one after the other: what was read later must not be replaced by older
        self._behind = False  # sites could not be read after they were changed

    async def open(self, progress: migrate.Progress = lambda line: None, now: float | None = None) -> None:
        """Migrate (blocks while it does), start the writer, load the sites. ``now``: None for the system's clock.

        Raises Damaged, WrongRevision, sqlite3.Error, OSError: a broken database is never replaced by an empty one.
        """
        prepare(self.path, progress)
        try:
            self.writer.start()
            await self.reader.start()
            if await copied.is_copy(self.reader):
                began = time.time() if now is None else now
                await self.writer.run(lambda tx: copied.take_place(tx, began))
            await self.reports.start()
            await self.exports.start()
            await self.sites.load()
        except BaseException:
            await self.close()
            raise

    async def write(self, verb: Verb[T], *, turn: Turn = Turn.NEXT) -> T:
        """Run a verb durably; raises what it raises, or StoreUnavailable."""
        self.damage.refuse()
        if self._behind and not self._loading.locked():
            with contextlib.suppress(Exception):  # told of once, by what changed them: this write is another matter
                await self._load()
        try:
            return await self.writer.run(verb, turn=turn)
        except StoreUnavailable as error:
            self.damage.note(error)
            raise

    async def redefine(self, verb: Verb[T]) -> T:
        """Run a verb that changes sites, targets, webhooks or routes, then refresh what memory keeps of them.

        Who is cancelled meanwhile doesn't wait any more, but the verb is run, and so is the refreshing: memory that is
        behind the database would stay so until the next change. Where reading fails (StoreUnavailable), the next write
        reads again.
        """
        return await asyncio.shield(self._redefine(verb))

    async def _redefine(self, verb: Verb[T]) -> T:
        try:
            return await self.write(lambda tx: _revising(tx, verb))
        finally:
            self.routes.forget_all()
            await self._load()

    async def _load(self) -> None:
        async with self._loading:
            self._behind = True
            await self.sites.load()
            self._behind = False

    async def close(self) -> None:
        """Finish what was handed over, then close the database."""
        await self.exports.close()
        await self.reports.close()
        await self.reader.close()
        await self.writer.close()  # last: readers cannot bring the log into the database


def _revising(tx: Tx, verb: Verb[T]) -> T:
    tx.revise()
    return verb(tx)
