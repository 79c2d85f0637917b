"""A sync that fails: the writer opens its write-ahead log anew before it believes another one.

And one that brings the log into the database ends the process where SQLite would believe another one.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from relay.store.checkpoint import EX_IOERR, PAGE, SHORT, Checkpoints
from relay.store.connection import connect
from relay.store.engine import CommitUnknown, Writer
from tests.faults.injection import LOG_CALLS, believes_a_failed_sync, injecting, require_strace, struck
from tests.store_fixtures import opened
from tests.test_store_engine import adding, names

pytestmark = pytest.mark.fault


async def believes(directory: Path) -> bool:
    """Whether the writer does, of which one commit's sync fails."""
    require_strace("a failed sync")
    output = directory / "calls.txt"
    async with opened(directory) as store:
        await store.write(adding("before"))
        writer = store.writer._thread.native_id
        assert writer is not None
        rule = "fdatasync:error=EIO:when=1"
        async with injecting(os.getpid(), rule, only=[writer], output=output, also=LOG_CALLS):
            with pytest.raises(CommitUnknown):
                await store.write(adding("lost"))
            await store.write(adding("after"))
        assert struck(output)
        assert await names(store) == ["before", "after"]
    return believes_a_failed_sync(output)


async def test_after_a_failed_sync_the_log_is_opened_anew(tmp_path: Path) -> None:
    assert not await believes(tmp_path)


async def test_a_writer_that_goes_on_with_the_same_log_would_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "_discard_connection", lambda writer: None)
    assert await believes(tmp_path)


class Ended(Exception):
    """The process, as far as this test goes."""


def without(pages: list[int], before: bytes, path: Path, copy: Path) -> None:
    """The database as the disk has it that dropped these pages, if nobody wrote them since, beside its log."""
    octets = bytearray(path.read_bytes())
    for number in pages:
        octets[number * PAGE : (number + 1) * PAGE] = page(before, number)
    copy.write_bytes(octets)
    copy.with_name(f"{copy.name}-wal").write_bytes(path.with_name(f"{path.name}-wal").read_bytes())


def page(octets: bytes, number: int) -> bytes:
    return octets[number * PAGE : (number + 1) * PAGE].ljust(PAGE, b"\0")


async def kept(directory: Path) -> list[str]:
    """What the next start reads of a row whose page a checkpoint had written that a reader cut short.

    No sync followed, the one of the next checkpoint fails, and the disk has dropped the page.
    """
    require_strace("a checkpoint's sync that fails")
    path, copy = directory / "relay.db", directory / "copy.db"
    checkpoints = Checkpoints(path.with_name("relay.db-wal"))

    def written(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO letters VALUES (?)", (bytes(SHORT * PAGE),))
        checkpoints.committed(SHORT)
        checkpoints.perhaps(connection, idle=True)

    with closing(connect(path, create=True)) as connection:
        connection.execute("CREATE TABLE early (name TEXT)")
        connection.execute("CREATE TABLE letters (body BLOB)")
        assert checkpoints.reset(connection, 0.0) is None
        before = path.read_bytes()
        connection.execute("INSERT INTO early VALUES ('kept')")
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT * FROM early").fetchall() == [("kept",)]
            written(connection)
        after = path.read_bytes()
        pages = [number for number in range(len(before) // PAGE) if page(after, number) != page(before, number)]
        assert pages
        me, output = threading.get_native_id(), directory / "calls.txt"
        async with injecting(os.getpid(), "fdatasync:error=EIO:when=1", only=[me], on=path, output=output):
            with suppress(Ended):
                for _ in range(3):  # the one that fails, the next one, and the first of a new log
                    written(connection)
        assert struck(output)
        without(pages, before, path, copy)
    with closing(connect(copy)) as connection:
        return [name for (name,) in connection.execute("SELECT * FROM early")]


async def test_a_checkpoint_whose_sync_fails_behind_one_cut_short_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(code: int) -> None:
        assert code == EX_IOERR
        raise Ended

    monkeypatch.setattr(os, "_exit", ended)
    assert await kept(tmp_path) == ["kept"]


async def test_a_process_that_goes_on_behind_it_would_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "_end_if_pages_may_be_lost", lambda checkpoints, error: None)
    assert await kept(tmp_path) == []
