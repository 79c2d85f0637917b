"""When the writer brings its write-ahead log into the database (relay/store/checkpoint.py)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.store.checkpoint import LONG, PAGE, SHORT, Checkpoints
from relay.store.connection import connect
from relay.store.engine import Tx, Writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "relay.db"
    with closing(connect(path, create=True)) as connection:
        connection.execute("CREATE TABLE letters (body BLOB)")
    return path


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(connect(path)) as connection:
        yield connection


def log_pages(path: Path) -> int:
    """The longest that the log has been."""
    return path.with_name("relay.db-wal").stat().st_size // PAGE


def commit(connection: sqlite3.Connection, checkpoints: Checkpoints, pages: int) -> None:
    connection.execute("INSERT INTO letters VALUES (zeroblob(?))", (pages * PAGE,))
    checkpoints.committed(1)


def done(checkpoints: Checkpoints) -> int:
    return sum(checkpoints.seconds.counts)


def reopened(path: Path) -> int:
    """What is in the database without its log: the rows that a copy of the file alone has."""
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())
    with closing(sqlite3.connect(copy)) as connection:
        ((rows,),) = connection.execute("SELECT count(*) FROM letters").fetchall()
        return int(rows)


async def test_the_log_of_a_writer_that_has_pauses_stays_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, paused, perhaps = asyncio.get_running_loop(), asyncio.Event(), Checkpoints.perhaps

    def told(checkpoints: Checkpoints, connection: sqlite3.Connection, idle: bool) -> None:
        perhaps(checkpoints, connection, idle)
        loop.call_soon_threadsafe(paused.set)

    def letter(tx: Tx) -> None:
        tx.sql("INSERT INTO letters VALUES (zeroblob(?))", (20 * PAGE,))

    monkeypatch.setattr(Checkpoints, "perhaps", told)
    writer = Writer(path)
    writer.start()
    for _ in range(200):
        paused.clear()
        await writer.run(letter)
        await paused.wait()
    assert log_pages(path) < LONG / 2
    await writer.close()
    assert sum(writer.stats.checkpoints.counts) >= 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM letters").fetchall() == [(200,)]


def test_it_is_brought_in_when_nobody_waits_and_begun_anew(path: Path, connection: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(path.with_name("relay.db-wal"))
    for number in range(1, 101):
        commit(connection, checkpoints, 20)
        checkpoints.perhaps(connection, idle=True)
        assert not done(checkpoints) or log_pages(path) <= 2 * SHORT, number
    assert done(checkpoints) >= 3
    assert reopened(path) > 60


def test_while_somebody_waits_it_grows_up_to_a_bound(path: Path, connection: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(path.with_name("relay.db-wal"))
    commits = 0
    while not done(checkpoints):
        commit(connection, checkpoints, 100)
        commits += 1
        checkpoints.perhaps(connection, idle=False)
        assert commits <= LONG
    assert log_pages(path) > SHORT
    for _ in range(1000):  # what a verb writes in quiet times says nothing of a burst
        commit(connection, checkpoints, 1)
        checkpoints.perhaps(connection, idle=True)
    before = done(checkpoints)
    for _ in range(200):
        commit(connection, checkpoints, 100)
        checkpoints.perhaps(connection, idle=False)
        assert log_pages(path) < 2 * LONG
    assert done(checkpoints) > before + 2


def test_readers_that_leave_no_gap_cause_no_more_of_them(path: Path, connection: sqlite3.Connection) -> None:
    """The log is never begun anew then, and a checkpoint tells how long all of it is."""
    checkpoints = Checkpoints(path.with_name("relay.db-wal"))
    commit(connection, checkpoints, 1)
    readers = [sqlite3.connect(path, isolation_level=None) for _ in range(2)]
    for number in range(200):
        readers[number % 2].execute("BEGIN")
        readers[number % 2].execute("SELECT count(*) FROM letters").fetchall()
        if readers[1 - number % 2].in_transaction:
            readers[1 - number % 2].execute("COMMIT")
        commit(connection, checkpoints, 20)
        checkpoints.perhaps(connection, idle=True)
    for reader in readers:
        reader.close()
    assert 1 <= done(checkpoints) <= 2 * 200 * 20 / SHORT


def test_few_commits_are_left_where_they_are(path: Path, connection: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(path.with_name("relay.db-wal"))
    commit(connection, checkpoints, 1)
    checkpoints.perhaps(connection, idle=True)
    assert done(checkpoints) == 0
    assert reopened(path) == 0


def test_who_reads_keeps_the_log_and_is_not_waited_for(path: Path, connection: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(path.with_name("relay.db-wal"))
    commit(connection, checkpoints, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM letters").fetchall() == [(1,)]
        for _ in range(50):
            commit(connection, checkpoints, 20)
            checkpoints.perhaps(connection, idle=True)
        assert reader.execute("SELECT count(*) FROM letters").fetchall() == [(1,)]
    assert 1 <= done(checkpoints) <= 2 * 50 * 20 / SHORT  # as often as without a reader
    for _ in range(50):
        commit(connection, checkpoints, 20)
        checkpoints.perhaps(connection, idle=True)
    assert reopened(path) > 51


def test_a_log_that_is_not_there_is_left_alone(tmp_path: Path, connection: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(tmp_path / "away")
    checkpoints.committed(LONG)
    checkpoints.perhaps(connection, idle=True)
    assert done(checkpoints) == 0


def test_one_that_fails_is_logged_and_tried_again_later(path: Path) -> None:
    checkpoints = Checkpoints(path.with_name("relay.db-wal"))
    with closing(connect(path)) as connection:
        for _ in range(SHORT):
            commit(connection, checkpoints, 1)
        broken = sqlite3.connect(path)
        broken.close()
        with capture_logs() as entries:
            checkpoints.perhaps(broken, idle=True)
        (entry,) = entries
        assert (entry["log_level"], entry["event"]) == ("warning", "write-ahead log not brought into the database yet")
        assert "closed database" in entry["reason"]
        checkpoints.perhaps(connection, idle=True)
        assert done(checkpoints) == 0  # at once it would fail again
        for _ in range(SHORT):
            commit(connection, checkpoints, 1)
        checkpoints.perhaps(connection, idle=True)
        assert done(checkpoints) == 1
        assert reopened(path) == 2 * SHORT
