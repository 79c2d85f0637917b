"""One writer thread with one connection commits in groups; readers (relay/store/reader.py) never block it.

A *verb* is a plain function over a :class:`Tx` that is a whole transaction in meaning. The writer takes every verb
that waits, runs them in one transaction, commits once and wakes the callers with one call into their event loop:

    verbs of a batch        all return          one raises                     the transaction or COMMIT dies
    what happens            COMMIT, answer all  ROLLBACK, run them again       all fail with StoreUnavailable, and
                                                each in a SAVEPOINT; only      the connection is reopened (after a
                                                the culprit fails              failed fsync nothing is trusted)

Before each batch it looks whether the database and its log are the files still that it has opened; else it begins none.
Between two it brings the log into the database (checkpoint.py).

So a verb may run twice and must have no effect outside its transaction. A verb that was handed over runs even when
its caller is cancelled meanwhile.

Who has an open connection waiting comes first: a few such verbs are a batch of their own (Turn.FIRST), for one with
all that waits is long.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import Executable
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler, SQLiteDialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import BindParameter

from relay.core.metrics import SECONDS, Histogram
from relay.store.checkpoint import Checkpoints
from relay.store.connection import connect, files
from relay.store.edition import Edition
from relay.store.errors import CommitUnknown as CommitUnknown
from relay.store.errors import Replaced
from relay.store.errors import StoreUnavailable as StoreUnavailable
from relay.store.errors import TooLong as TooLong

log = structlog.get_logger()
T = TypeVar("T")
Row = tuple[Any, ...]

#: Verbs taken into one transaction; bounds how long the first of them waits.
BATCH = 500
#: So many verbs at most whose turn is first are a batch of their own: more fill one, and take the others along.
FEW = 4
#: One batch in so many takes an idle verb along, however busy the writer is.
IDLE_TURN = 20
#: Seconds that the start waits for who reads the write-ahead log.
READERS_AT_START = 0.2

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


_CONSTANTS_DIALECT = SQLiteDialect(paramstyle="named")
_CONSTANTS_DIALECT.statement_compiler = _ConstantsInText


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


class Tx:
    """An open transaction: what a verb sees of the database."""

    __slots__ = ("_connection", "_edition")

    def __init__(self, connection: sqlite3.Connection, edition: Edition | None = None) -> None:
        self._connection = connection
        self._edition = edition or Edition.new()

    @property
    def edition(self) -> int:
        """What a copy of rows is marked with that outlives its transaction."""
        return self._edition.number

    def revise(self) -> None:
        """Every copy made until now may be wrong: its message was erased, its webhook switched off.

        It shows from here on, not only after COMMIT, and stays when this transaction fails: a copy that is taken for
        old is read again, which costs little.
        """
        self._edition.advance()

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


class Turn(Enum):
    """When a verb is run: before others, with them, or when nothing else waits."""

    FIRST = auto()
    NEXT = auto()
    IDLE = auto()


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


@dataclass(slots=True)
class WriterStats:
    """Figures for /metrics: what the writer did since start. ``checkpoints``: seconds of each."""

    checkpoints: Histogram
    batches: int = 0
    verbs: int = 0
    failures: int = 0
    sizes: Histogram = field(default_factory=lambda: Histogram((1, 2, 5, 10, 20, 50, 100, 200, 500)))  # verbs in one
    commits: Histogram = field(default_factory=lambda: Histogram((0.0005, 0.001, 0.0025, *SECONDS)))  # of COMMIT alone


class Writer:
    """The writer thread. :meth:`run` is its only door."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # SQLite makes the log beside what a link leads to
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True for each job, False when no more come
        self._jobs: dict[Turn, queue.SimpleQueue[_Job]] = {turn: queue.SimpleQueue() for turn in Turn}
        self._passed_over = False
        self._since_idle = 0  # batches
        self._connection: sqlite3.Connection | None = None
        self._files: tuple[tuple[int, int] | None, ...] = ()
        self._checkpoints = Checkpoints(self._path.with_name(f"{self._path.name}-wal"))
        self._log_is_old = False  # the write-ahead log is that of the process before, since somebody reads it
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self.stats = WriterStats(checkpoints=self._checkpoints.seconds)
        #: A copy of rows with another number (``Tx.edition``) is to be read again before it is acted upon.
        self.edition = Edition.new()
        self._stopping = False

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: without it nothing is ever written again."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Open the database and start the thread; raises sqlite3.Error or StoreUnavailable."""
        self._connection = connect(self._path)
        reason = self._checkpoints.reset(self._connection, READERS_AT_START)
        self._files = files(self._path)
        self._log_is_old = reason is not None
        if reason is not None:  # that, or a full disk, is no reason not to start
            log.warning("write-ahead log not brought into the database yet", reason=reason)
        self._thread.start()

    async def run(self, verb: Verb[T], *, turn: Turn = Turn.NEXT) -> T:
        """Run ``verb``; return when it is on disk. Raises what the verb raises, or StoreUnavailable."""
        loop = asyncio.get_running_loop()
        if self._stopping:
            raise StoreUnavailable("the store is closing")
        future: asyncio.Future[T] = loop.create_future()
        self._jobs[turn].put(_Job(verb, loop, future))
        self._wakes.put(True)
        return await future

    async def close(self) -> None:
        """Run what waits, checkpoint, close."""
        if not self._stopping and self._thread.is_alive():
            self._stopping = True
            self._wakes.put(False)
            await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while self._wakes.get():
            if batch := self._batch():
                self._transact(batch)
                self._wake(batch)
                if self._connection is not None:
                    self._checkpoints.perhaps(self._connection, idle=all(jobs.empty() for jobs in self._jobs.values()))
        while batch := [job for turn in Turn for job in self._taken(turn)]:
            self._transact(batch)
            self._wake(batch)
        if self._connection is not None:
            self._connection.close()

    def _batch(self) -> list[_Job]:
        """What is run in one transaction now. Nothing when an earlier batch took the job of which we were told.

        However many come first, what they pass over has the batch after theirs.
        """
        batch = self._taken(Turn.FIRST)
        self._since_idle += 1
        idle_waits = self._since_idle >= IDLE_TURN and not self._jobs[Turn.IDLE].empty()
        if batch and len(batch) <= FEW and not self._passed_over and not idle_waits:
            self._passed_over = not self._jobs[Turn.NEXT].empty()
            return batch
        self._passed_over = False
        batch += self._taken(Turn.NEXT, BATCH - len(batch))
        if not batch or idle_waits:
            batch += self._taken(Turn.IDLE, 1)
            self._since_idle = 0
        return batch

    def _taken(self, turn: Turn, most: int = BATCH) -> list[_Job]:
        jobs: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            while len(jobs) < most:
                jobs.append(self._jobs[turn].get_nowait())
        return jobs

    def _transact(self, batch: list[_Job]) -> None:
        self.stats.batches += 1
        self.stats.verbs += len(batch)
        self.stats.sizes.observe(len(batch))
        try:
            if files(self._path) != self._files:
                raise Replaced("it, or its write-ahead log, was removed or replaced while it was open")
            if self._connection is None:
                self._connection = connect(self._path)
                self._files = files(self._path)
            if self._log_is_old:
                self._log_is_old = self._checkpoints.reset(self._connection, 0.0) is not None
            if not self._attempt(batch):
                self._attempt_apart(batch)
        except (sqlite3.Error, StoreUnavailable) as error:
            self.stats.failures += 1
            log.error("store.transaction_failed", error=str(error), verbs=len(batch))
            self._discard_connection()
            kind, no_room = type(error) if isinstance(error, StoreUnavailable) else StoreUnavailable, is_full(error)
            for job in batch:
                job.error = kind(str(error), no_room=no_room)
            # Who came meanwhile has waited as long, and would wait for the same lock or disk once more.
            for job in (job for turn in (Turn.FIRST, Turn.NEXT) for job in self._taken(turn)):
                job.error = StoreUnavailable(str(error), no_room=no_room)
                batch.append(job)

    def _attempt(self, batch: list[_Job]) -> bool:
        """All verbs in one transaction. False when a verb raised: nothing has happened then."""
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        tx = Tx(connection, self.edition)
        for job in batch:
            try:
                job.result = job.verb(tx)
            except BaseException as error:
                if is_fatal(error):
                    raise
                connection.execute("ROLLBACK")
                job.error = error
                return len(batch) == 1
        self._commit(len(batch))
        return True

    def _attempt_apart(self, batch: list[_Job]) -> None:
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        tx = Tx(connection, self.edition)
        for job in batch:
            job.error = None
            connection.execute("SAVEPOINT verb")
            try:
                job.result = job.verb(tx)
            except BaseException as error:
                if is_fatal(error):
                    raise
                job.error = error
                connection.execute("ROLLBACK TO verb")
            connection.execute("RELEASE verb")
        self._commit(len(batch))

    def _commit(self, verbs: int) -> None:
        assert self._connection is not None
        began = time.perf_counter()
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise CommitUnknown(str(error)) from error
        self.stats.commits.observe(time.perf_counter() - began)
        self._checkpoints.committed(verbs)

    def _discard_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        known = None
        with contextlib.suppress(StoreUnavailable):
            known = files(self._path)
        with contextlib.suppress(sqlite3.Error):  # it is broken already; the next batch opens a new one
            connection.close()
        if known == self._files:  # the last connection of all removes the log
            with contextlib.suppress(StoreUnavailable):
                self._files = files(self._path)

    def _wake(self, batch: list[_Job]) -> None:
        loops = {job.loop for job in batch}
        for loop in loops:
            jobs = [job for job in batch if job.loop is loop]
            try:
                loop.call_soon_threadsafe(_settle, jobs)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more, the work is done all the same


def is_fatal(error: BaseException) -> bool:
    """Whether it ends the transaction: then it is no fault of the verb, and not for the verb to catch."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _FATAL


def is_full(error: BaseException) -> bool:
    """Whether it says that the disk is full; an error of ours goes by what it was raised from."""
    said = error if isinstance(error, sqlite3.Error) else error.__cause__
    return getattr(said, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _settle(jobs: list[_Job]) -> None:
    for job in jobs:
        job.settle()
