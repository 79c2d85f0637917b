"""A sync that fails: the writer opens its write-ahead log anew before it believes another one.

And one that brings the log into the database ends the process where SQLite would believe another one.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import pytest

from relay.store.checkpoint import PAGE, SHORT, Checkpoints
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


def page(octets: bytes, number: int) -> bytes:
    return octets[number * PAGE : (number + 1) * PAGE].ljust(PAGE, b"\0")


async def kept(directory: Path, beside: bool) -> list[str]:
    """What is read behind the next start of a row whose page a checkpoint had written that a reader cut short.

    No sync followed, the one of the next checkpoint fails, and the disk has dropped the page. ``beside``: somebody has
    the database open all the while.
    """
    require_strace("a checkpoint's sync that fails")
    path = directory / "relay.db"
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
        names = ("relay.db", "relay.db-wal")
        octets = {name: bytearray((directory / name).read_bytes()) for name in names}
        for number in pages:
            octets["relay.db"][number * PAGE : (number + 1) * PAGE] = page(before, number)
        with closing(sqlite3.connect(path)) if beside else nullcontext() as other:
            if other is not None:
                other.execute("SELECT * FROM early").fetchall()
            connection.close()  # which the last of all does not: it would bring the log in, or begin it anew
            for name, content in octets.items():
                with (directory / name).open("r+b" if beside else "wb") as file:
                    file.write(content)
            with closing(connect(path)) as after_start:
                assert Checkpoints(path.with_name("relay.db-wal")).reset(after_start, 0.0) is None
                return [name for (name,) in after_start.execute("SELECT * FROM early")]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a reader"])
async def test_a_checkpoint_whose_sync_fails_behind_one_cut_short_ends_the_process(
    beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(code: int) -> None:
        assert code == os.EX_IOERR
        raise Ended

    monkeypatch.setattr(os, "_exit", ended)
    assert await kept(tmp_path, beside) == ["kept"]


async def test_a_process_that_goes_on_behind_it_would_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "_end_if_pages_may_be_lost", lambda checkpoints, error: None)
    assert await kept(tmp_path, beside=False) == []


async def test_one_that_leaves_beside_a_reader_what_counts_as_brought_in_would_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(code: int) -> None:
        raise Ended

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(Checkpoints, "_forget", lambda checkpoints: None)
    assert await kept(tmp_path, beside=True) == []
