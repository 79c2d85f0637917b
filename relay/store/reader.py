"""Query-only connections for everything that is read and not written."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiosqlite
from sqlalchemy import Executable
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.sql import ClauseElement

from relay.store.connection import BUSY_TIMEOUT
from relay.store.engine import Row, Statement
from relay.store.errors import StoreUnavailable, TooLong

#: Seconds after which a statement that nobody waits for is interrupted once more.
INTERRUPT = 0.05

_DIALECT = SQLiteDialect(paramstyle="named")


@dataclass(slots=True)
class Reader:
    """Query-only connections, each with its own thread (aiosqlite), handed out one reading at a time.

    ``patience``: seconds that a reading may take with its waiting for a connection; then it ends with TooLong.
    ``on_error`` is told what SQLite fails with.
    """

    path: Path
    size: int = 2
    patience: float | None = None
    on_error: Callable[[StoreUnavailable], None] = lambda error: None
    _free: asyncio.Queue[aiosqlite.Connection] = field(default_factory=asyncio.Queue)
    _all: list[aiosqlite.Connection] = field(default_factory=list)
    _breaking_off: set[asyncio.Future[None]] = field(default_factory=set)

    async def start(self) -> None:
        for _ in range(self.size):
            connection = await aiosqlite.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT
            )
            await connection.execute("PRAGMA query_only=ON")
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
        connection: aiosqlite.Connection | None = None
        done = False
        try:
            async with asyncio.timeout(self.patience):
                connection = await self._free.get()
                yield connection
            done = True
        except sqlite3.Error as error:
            done = True
            unavailable = StoreUnavailable(str(error))
            self.on_error(unavailable)
            raise unavailable from error
        except TimeoutError:
            raise TooLong(f"a reading took longer than {self.patience:g} s") from None
        finally:
            if connection is not None and (done or self.patience is None):
                self._free.put_nowait(connection)
            elif connection is not None:
                self._breaking_off.add(task := asyncio.ensure_future(self._break_off(connection)))
                task.add_done_callback(self._breaking_off.discard)

    async def _break_off(self, connection: aiosqlite.Connection) -> None:
        """End a statement that nobody waits for any more, and lend its connection again after that.

        Its thread may be about to begin it: SQLite interrupts only what has begun.
        """
        ended = asyncio.ensure_future(connection.execute_fetchall("SELECT 1"))  # comes after it
        while not ended.done():
            await connection.interrupt()
            await asyncio.wait({ended}, timeout=INTERRUPT)
        ended.exception()  # the last interruption may have met this one
        self._free.put_nowait(connection)

    async def close(self) -> None:
        await asyncio.gather(*self._breaking_off)
        for connection in self._all:
            await connection.close()
        self._all.clear()
