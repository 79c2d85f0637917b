"""One writer thread with one connection commits in groups; readers never block it.

A *verb* is a plain function over a :class:`Tx` that is a whole transaction in meaning. The writer takes every verb
that waits, runs them in one transaction, commits once and wakes the callers with one call into their event loop:

    verbs of a batch        all return          one raises                     the transaction or COMMIT dies
    what happens            COMMIT, answer all  ROLLBACK, run them again       all fail with StoreUnavailable, and
                                                each in a SAVEPOINT; only      the connection is reopened (after a
                                                the culprit fails              failed fsync nothing is trusted)

So a verb may run twice and must have no effect outside its transaction. A verb that was handed over runs even when
its caller is cancelled meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import structlog
from sqlalchemy import Executable
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler, SQLiteDialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import BindParameter

log = structlog.get_logger()
T = TypeVar("T")
Row = tuple[Any, ...]

#: Verbs taken into one transaction; bounds how long the first of them waits.
BATCH = 500
#: One batch in so many takes an idle verb along, however busy the writer is.
IDLE_TURN = 20
#: Seconds to wait for a lock that a foreign process holds on the database.
BUSY_TIMEOUT = 5.0
#: Pages in the write-ahead log before a commit copies them back (4 KiB each).
WAL_PAGES = 4000

#: SQLite's result codes after which neither the transaction nor the connection is trusted. Any other error is the
#: fault of the verb that ran into it.
_FATAL = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    )
)


class _ConstantsInText(SQLiteCompiler):
    """Writes a statement's constants into its text: a partial index serves only what the text proves to be in it."""

    def visit_bindparam(self, bindparam: BindParameter[Any], *args: Any, **kw: Any) -> str:
        if not bindparam.required:
            kw["literal_binds"] = True
        text: str = super().visit_bindparam(bindparam, *args, **kw)  # type: ignore[no-untyped-call]
        return text


_DIALECT = SQLiteDialect(paramstyle="named")
_CONSTANTS_DIALECT = SQLiteDialect(paramstyle="named")
_CONSTANTS_DIALECT.statement_compiler = _ConstantsInText


class StoreUnavailable(Exception):
    """The transaction died: disk full, I/O error, lock. Nothing was changed; try again later (SMTP 451)."""


class CommitUnknown(StoreUnavailable):
    """The COMMIT itself failed: after a restart SQLite may find in its log what it could not sync. Undo nothing."""


class Statement:
    """A Core statement compiled once, when first run. Its constants are text, its parameters have names.

    ``columns`` names what an INSERT or UPDATE sets, separated by spaces.
    """

    def __init__(self, statement: Executable, columns: str | None = None) -> None:
        self._statement = statement
        self._keys = None if columns is None else columns.split()

    @cached_property
    def sql(self) -> str:
        assert isinstance(self._statement, ClauseElement)
        return str(self._statement.compile(dialect=_CONSTANTS_DIALECT, column_keys=self._keys))


@dataclass(slots=True)
class Edition:
    """Counts the times that rows changed of which somebody may keep a copy in memory (:meth:`Tx.revise`)."""

    number: int = 0


class Tx:
    """An open transaction: what a verb sees of the database."""

    __slots__ = ("_connection", "_edition")

    def __init__(self, connection: sqlite3.Connection, edition: Edition | None = None) -> None:
        self._connection = connection
        self._edition = edition or Edition()

    @property
    def edition(self) -> int:
        """What a copy of rows is marked with that outlives its transaction."""
        return self._edition.number

    def revise(self) -> None:
        """Every copy made until now may be wrong: its message was erased, its webhook switched off.

        It shows from here on, not only after COMMIT, and stays when this transaction fails: a copy that is taken for
        old is read again, which costs little.
        """
        self._edition.number += 1

    def run(self, statement: Statement, **params: Any) -> int:
        """Execute; the number of rows changed."""
        return self._connection.execute(statement.sql, params).rowcount

    def run_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]]) -> None:
        self._connection.executemany(statement.sql, rows)

    def insert(self, statement: Statement, **params: Any) -> int:
        """Execute an INSERT; the id of the new row."""
        row_id = self._connection.execute(statement.sql, params).lastrowid
        assert row_id is not None
        return row_id

    def one(self, statement: Statement, **params: Any) -> Row | None:
        row: Row | None = self._connection.execute(statement.sql, params).fetchone()
        return row

    def all(self, statement: Statement, **params: Any) -> list[Row]:
        return self._connection.execute(statement.sql, params).fetchall()

    def sql(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run text that Core cannot say (FTS5)."""
        return self._connection.execute(sql, params).fetchall()


Verb = Callable[[Tx], T]


@dataclass(slots=True)
class _Job:
    verb: Verb[Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():
            return  # the caller was cancelled; the verb has run all the same
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def connect(path: Path) -> sqlite3.Connection:
    """The writing connection: WAL and ``synchronous=FULL``, asserted, since durability before 250 rests on them."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone does not reach the disk
        connection.execute("PRAGMA checkpoint_fullfsync=ON")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA cache_size=-16000")
        connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
        connection.execute("PRAGMA journal_size_limit=67108864")
        for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
            if value != expected:
                raise StoreUnavailable(f"{path}: PRAGMA {pragma} is {value}, not {expected}")
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreUnavailable(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed")
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass(slots=True)
class WriterStats:
    """Figures for /metrics: what the writer did since start."""

    batches: int = 0
    verbs: int = 0
    failures: int = 0


class Writer:
    """The writer thread. :meth:`run` is its only door; ``idle=True`` lets work wait until nothing else does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle_jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self.stats = WriterStats()
        self._edition = Edition()
        self._stopping = False

    @property
    def edition(self) -> int:
        """A copy of rows with another number (``Tx.edition``) is to be read again before it is acted upon."""
        return self._edition.number

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: without it nothing is ever written again."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Open the database and start the thread; raises sqlite3.Error or StoreUnavailable."""
        self._connection = connect(self._path)
        self._thread.start()

    async def run(self, verb: Verb[T], *, idle: bool = False) -> T:
        """Run ``verb``; return when it is on disk. Raises what the verb raises, or StoreUnavailable."""
        loop = asyncio.get_running_loop()
        if self._stopping:
            raise StoreUnavailable("the store is closing")
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(verb, loop, future)
        if idle:
            self._idle_jobs.put(job)
            self._jobs.put(_WAKE)
        else:
            self._jobs.put(job)
        return await future

    async def close(self) -> None:
        """Run what waits, checkpoint, close."""
        if not self._stopping and self._thread.is_alive():
            self._stopping = True
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        running = True
        while running:
            batch: list[_Job] = []
            job = self._jobs.get()
            while True:
                if job is None:
                    running = False
                elif job is not _WAKE:
                    batch.append(job)
                if len(batch) >= BATCH:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if not running:
                while not self._idle_jobs.empty():
                    batch.append(self._idle_jobs.get_nowait())
            elif not batch or self.stats.batches % IDLE_TURN == 0:
                with contextlib.suppress(queue.Empty):
                    batch.append(self._idle_jobs.get_nowait())
            if running and not self._idle_jobs.empty():
                self._jobs.put(_WAKE)  # come back to it when this batch is through
            if batch:
                self._transact(batch)
                self._wake(batch)
        if self._connection is not None:
            self._connection.close()

    def _transact(self, batch: list[_Job]) -> None:
        self.stats.batches += 1
        self.stats.verbs += len(batch)
        try:
            if self._connection is None:
                self._connection = connect(self._path)
            if not self._attempt(batch):
                self._attempt_apart(batch)
        except (sqlite3.Error, StoreUnavailable) as error:
            self.stats.failures += 1
            log.error("store.transaction_failed", error=str(error), verbs=len(batch))
            self._discard_connection()
            kind = CommitUnknown if isinstance(error, CommitUnknown) else StoreUnavailable
            for job in batch:
                job.error = kind(str(error))
            # Who came meanwhile has waited as long, and would wait for the same lock or disk once more.
            for job in self._come_meanwhile():
                job.error = StoreUnavailable(str(error))
                batch.append(job)

    def _come_meanwhile(self) -> list[_Job]:
        found: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            for _ in range(self._jobs.qsize()):
                job = self._jobs.get_nowait()
                if job is None or job is _WAKE:
                    self._jobs.put(job)
                else:
                    found.append(job)
        return found

    def _attempt(self, batch: list[_Job]) -> bool:
        """All verbs in one transaction. False when a verb raised: nothing has happened then."""
        assert self._connection is not None
        self._connection.execute("BEGIN IMMEDIATE")
        tx = Tx(self._connection, self._edition)
        for job in batch:
            try:
                job.result = job.verb(tx)
            except BaseException as error:
                if _is_fatal(error):
                    raise
                self._connection.execute("ROLLBACK")
                job.error = error
                return len(batch) == 1
        self._commit()
        return True

    def _attempt_apart(self, batch: list[_Job]) -> None:
        assert self._connection is not None
        self._connection.execute("BEGIN IMMEDIATE")
        tx = Tx(self._connection, self._edition)
        for job in batch:
            job.error = None
            self._connection.execute("SAVEPOINT verb")
            try:
                job.result = job.verb(tx)
            except BaseException as error:
                if _is_fatal(error):
                    raise
                job.error = error
                self._connection.execute("ROLLBACK TO verb")
            self._connection.execute("RELEASE verb")
        self._commit()

    def _commit(self) -> None:
        assert self._connection is not None
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise CommitUnknown(str(error)) from error

    def _discard_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                pass  # it is broken already; the next batch opens a new one

    def _wake(self, batch: list[_Job]) -> None:
        loops = {job.loop for job in batch}
        for loop in loops:
            jobs = [job for job in batch if job.loop is loop]
            try:
                loop.call_soon_threadsafe(_settle, jobs)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more, the work is done all the same


def _is_fatal(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _FATAL


def _settle(jobs: list[_Job]) -> None:
    for job in jobs:
        job.settle()


_WAKE: Any = object()


@dataclass(slots=True)
class Reader:
    """Query-only connections, each with its own thread (aiosqlite), handed out one reading at a time."""

    path: Path
    size: int = 2
    _free: asyncio.Queue[aiosqlite.Connection] = field(default_factory=asyncio.Queue)
    _all: list[aiosqlite.Connection] = field(default_factory=list)

    async def start(self) -> None:
        for _ in range(self.size):
            connection = await aiosqlite.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
            )
            await connection.execute("PRAGMA query_only=ON")
            await connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT * 1000)}")
            self._all.append(connection)
            self._free.put_nowait(connection)

    async def all(self, statement: Executable, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Every row of a SELECT; raises StoreUnavailable."""
        assert isinstance(statement, ClauseElement)
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        values = {**compiled.params, **(params or {})}
        async with self._lent() as connection:
            return [tuple(row) for row in await connection.execute_fetchall(str(compiled), values)]

    async def run(self, statement: Statement, **params: Any) -> list[Row]:
        """Every row of a statement that is compiled already; raises StoreUnavailable."""
        async with self._lent() as connection:
            return [tuple(row) for row in await connection.execute_fetchall(statement.sql, params)]

    @contextlib.asynccontextmanager
    async def _lent(self) -> AsyncIterator[aiosqlite.Connection]:
        connection = await self._free.get()
        try:
            yield connection
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from error
        finally:
            self._free.put_nowait(connection)

    async def close(self) -> None:
        for connection in self._all:
            await connection.close()
        self._all.clear()
