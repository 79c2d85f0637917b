"""The store as the rest of the daemon sees it: verbs go to the writer, questions to the readers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

from relay.store import migrate
from relay.store.directory import Directory
from relay.store.engine import Reader, Tx, Verb, Writer
from relay.store.routes import RouteCache

T = TypeVar("T")

#: Name of the database in data_dir.
DATABASE = "relay.db"


class Store:
    """One open database. Only the process that holds data_dir's lock may open one (relay/control.py)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = Writer(path)
        self.reader = Reader(path)
        self.routes = RouteCache(self.reader)
        self.sites = Directory(self.reader)

    async def open(self, progress: migrate.Progress = lambda line: None) -> None:
        """Migrate (blocks while it does), start the writer, load the sites.

        Raises WrongRevision, sqlite3.Error, OSError: a broken database is never replaced by an empty one.
        """
        migrate.migrate(self.path, progress)
        try:
            self.writer.start()
            await self.reader.start()
            await self.sites.load()
        except BaseException:
            await self.close()
            raise

    async def write(self, verb: Verb[T], *, idle: bool = False) -> T:
        """Run a verb durably; raises what it raises, or StoreUnavailable."""
        return await self.writer.run(verb, idle=idle)

    async def redefine(self, verb: Verb[T]) -> T:
        """Run a verb that changes sites, targets, webhooks or routes, then refresh what memory keeps of them.

        Who is cancelled meanwhile doesn't wait any more, but the verb is run, and so is the refreshing: memory that is
        behind the database would stay so until the next change.
        """
        return await asyncio.shield(self._redefine(verb))

    async def _redefine(self, verb: Verb[T]) -> T:
        try:
            return await self.writer.run(lambda tx: _revising(tx, verb))
        finally:
            self.routes.forget_all()
            await self.sites.load()

    async def close(self) -> None:
        """Finish what was handed over, then close the database."""
        await self.reader.close()
        await self.writer.close()


def _revising(tx: Tx, verb: Verb[T]) -> T:
    tx.revise()
    return verb(tx)
