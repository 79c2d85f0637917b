"""relay/store/damage.py while the database is open: what looks like damage is looked at before anybody believes it."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.store import damage
from relay.store.damage import Damage, Damaged
from relay.store.errors import StoreUnavailable
from relay.store.store import DATABASE, Store, prepare
from tests.store_fixtures import fresh_database, opened

MARKER = "database-was-made"
PATIENCE = 10.0
#: SQLite's words for damage, and for a page that could not be read once (EIO).
MALFORMED = StoreUnavailable("database disk image is malformed")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "relay.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)
        connection.commit()
    return path


class Held:
    """damage.check, held up until ``go``, after ``failures`` in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> None:
        self.go, self.failures, self.looks, self._check = threading.Event(), [*failures], 0, damage.check
        monkeypatch.setattr(damage, "check", self)

    def __call__(self, path: Path, patience: float | None) -> None:
        assert self.go.wait(PATIENCE)
        self.looks += 1
        if self.failures:
            raise self.failures.pop(0)
        self._check(path, patience)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_is_sound_is_written_to_again_after_a_look_through_it(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, found = Held(monkeypatch), Damage(database)
    with capture_logs() as entries:
        found.note(MALFORMED)
        found.note(MALFORMED)
        with pytest.raises(StoreUnavailable, match="is being looked through"):
            found.refuse()
        held.go.set()
        until(lambda: found.trouble is None)
    found.refuse()
    assert held.looks == 1
    assert [entry["event"] for entry in entries] == ["database looks damaged", "database looked through, it is sound"]


def test_it_is_not_looked_through_again_and_again(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, found = Held(monkeypatch), Damage(database)
    held.go.set()
    for _ in range(3):
        found.note(MALFORMED)
        until(lambda: found.trouble is None)
    assert held.looks == 1
    found._sound_until -= 2 * damage.SOUND
    found.note(MALFORMED)
    until(lambda: found.trouble is None)
    assert held.looks == 2


def test_what_is_damaged_is_written_to_no_more(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    found = Damage(database)
    with capture_logs() as entries:
        found.note(MALFORMED)
        until(lambda: found.reason is not None)
    with pytest.raises(StoreUnavailable, match="database is damaged: database disk image is malformed"):
        found.refuse()
    found.note(MALFORMED)
    assert [entry["event"] for entry in entries] == ["database looks damaged", "database damaged"]


@pytest.mark.parametrize("failure", [sqlite3.OperationalError("disk I/O error"), OSError(5, "Input/output error")])
def test_what_cannot_be_read_is_looked_through_until_it_can(
    failure: Exception, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "AGAIN", 0.01)
    held, found = Held(monkeypatch, failure, failure), Damage(database)
    with capture_logs() as entries:
        found.note(MALFORMED)
        held.go.set()
        until(lambda: found.trouble is None)
    assert held.looks == 3
    assert [entry["event"] for entry in entries].count("database can't be looked through, mail is put off") == 2


@pytest.mark.parametrize("said", ["disk I/O error", "database is locked", "database or disk is full"])
def test_other_errors_say_nothing_of_damage(said: str, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, found = Held(monkeypatch), Damage(database)
    found.note(StoreUnavailable(said))
    found.refuse()
    assert held.looks == 0


class TestMarker:
    """What tells that there was a database, when it is gone: database-was-made."""

    async def test_a_store_leaves_it_and_a_lost_or_emptied_database_is_not_made_anew(self, tmp_path: Path) -> None:
        path = tmp_path / DATABASE
        async with opened(tmp_path):
            pass
        assert stat.S_IMODE((tmp_path / MARKER).stat().st_mode) == 0o600
        path.unlink()
        with pytest.raises(Damaged, match=r"it is missing, but .*database-was-made is there"):
            await Store(path).open()
        assert not path.exists()
        path.touch()
        with pytest.raises(Damaged, match="it is empty, but"):
            await Store(path).open()
        assert not path.stat().st_size
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 1")  # a sound database without a table
        bare = path.read_bytes()
        with pytest.raises(Damaged, match="it is empty, but"):
            await Store(path).open()
        assert path.read_bytes() == bare

    async def test_what_a_crash_left_before_the_first_table_was_made_is_gone_on_with(self, tmp_path: Path) -> None:
        path = tmp_path / DATABASE
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE t (a)")
        connection.execute("COMMIT")
        connection.execute("DROP TABLE t")
        for file in (path, path.with_name(f"{DATABASE}-wal")):
            shutil.copy(file, tmp_path / f"crashed-{file.name}")
            assert file.stat().st_size
        connection.close()
        for file in tmp_path.glob("crashed-*"):
            file.rename(tmp_path / file.name.removeprefix("crashed-"))
        store = Store(path)
        await store.open()
        await store.close()

    async def test_a_database_of_before_there_was_a_marker_gets_one(self, tmp_path: Path) -> None:
        path = tmp_path / DATABASE
        async with opened(tmp_path):
            pass
        marker = tmp_path / MARKER
        marker.unlink()  # or the machine went down between the two
        store = Store(path)
        await store.open()
        await store.close()
        assert marker.exists()

    async def test_who_removes_it_too_begins_anew(self, tmp_path: Path) -> None:
        async with opened(tmp_path):
            pass
        for name in (DATABASE, MARKER):
            (tmp_path / name).unlink()
        store = Store(tmp_path / DATABASE)
        await store.open()
        await store.close()

    def test_where_it_cannot_be_written_the_log_says_so(self, database: Path) -> None:
        (database.parent / MARKER).symlink_to(database.parent / "nowhere" / "file")
        with capture_logs() as entries:
            damage.mark(database)
        (entry,) = entries
        assert entry["log_level"] == "warning"
        assert "No such file" in entry["error"]

    async def test_a_database_without_tables_is_none_where_bodies_lie_whatever_the_marker(self, tmp_path: Path) -> None:
        path = tmp_path / DATABASE
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 1")
        (tmp_path / "bodies").mkdir()
        body = tmp_path / "bodies" / "0123456789abcdef0123456789abcdef"
        body.touch()
        with pytest.raises(Damaged, match=f"bodies/{body.name} is there"):
            await Store(path).open()

    async def test_what_lies_beside_bodies_is_no_trace_of_a_database(self, tmp_path: Path) -> None:
        (tmp_path / "bodies" / "lost+found").mkdir(parents=True)
        (tmp_path / "bodies" / ".keep").touch()
        store = Store(tmp_path / DATABASE)
        await store.open()
        await store.close()

    async def test_who_removes_the_database_with_all_that_is_named_after_it_is_refused(self, tmp_path: Path) -> None:
        async with opened(tmp_path):
            pass
        for file in tmp_path.glob(f"{DATABASE}*"):
            file.unlink()
        with pytest.raises(Damaged, match="database-was-made is there"):
            await Store(tmp_path / DATABASE).open()


def test_a_log_that_is_missing_while_its_index_is_there_is_damage_with_a_remedy(tmp_path: Path, database: Path) -> None:
    log_file, index = (database.with_name(f"relay.db-{ending}") for ending in ("wal", "shm"))
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO t VALUES ('late')")
        connection.commit()
        for file in (database, log_file, index):
            shutil.copy(file, tmp_path / f"killed-{file.name}")
    for file in (database, log_file, index):
        (tmp_path / f"killed-{file.name}").rename(file)
    damage.check_log(database)
    log_file.rename(tmp_path / "away")
    with pytest.raises(
        Damaged, match=r"its log .*relay\.db-wal is missing.*put relay\.db-wal back, or, .*remove relay\.db-shm"
    ):
        damage.check_log(database)
    assert not log_file.exists()
    index.unlink()
    damage.check_log(database)


def test_an_index_that_was_not_removed_with_its_empty_log_is_none(tmp_path: Path, database: Path) -> None:
    index, kept = database.with_name("relay.db-shm"), tmp_path / "kept"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO t VALUES ('late')")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        shutil.copy(index, kept)
    shutil.copy(kept, index)
    damage.check_log(database)
    index.write_bytes(b"")
    damage.check_log(database)


def test_what_was_begun_before_there_was_a_log_is_undone_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    fresh_database(tmp_path)
    journal = path.with_name(f"{DATABASE}-journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # as relay backup leaves its copy
        connection.execute("PRAGMA cache_spill = 1")
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)
        for file in (path, journal):
            shutil.copy(file, tmp_path / f"killed-{file.name}")
    for file in (path, journal):
        (tmp_path / f"killed-{file.name}").rename(file)
    assert journal.stat().st_size
    prepare(path)
    assert not journal.exists()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 't'").fetchone() == (0,)
