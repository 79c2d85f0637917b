"""The writer thread and the readers over a real SQLite file: group commit, isolation of failures, a failing disk."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import pkgutil
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, func, select, update
from sqlalchemy import insert as insert_into
from structlog.testing import capture_logs

import relay.store
from relay.store import connection, engine
from relay.store.connection import connect
from relay.store.damage import Damaged
from relay.store.engine import BATCH, FEW, CommitUnknown, Statement, StoreUnavailable, Turn, Tx, Verb
from relay.store.schema import deliveries, tokens
from relay.store.sites import switch
from relay.store.store import DATABASE, Store
from tests.store_fixtures import fresh_database, opened, template, world

INSERT = Statement(insert_into(tokens), "name hash role sites created_at")
NAMES = select(tokens.c.name).order_by(tokens.c.id)


def add(tx: Tx, name: str) -> int:
    return tx.insert(INSERT, name=name, hash=name, role="viewer", sites=None, created_at=0.0)


def adding(name: str) -> engine.Verb[int]:
    return lambda tx: add(tx, name)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as found:
        yield found


async def names(store: Store) -> list[str]:
    return [name for (name,) in await store.reader.all(NAMES)]


@contextlib.asynccontextmanager
async def gate(store: Store) -> AsyncIterator[None]:
    """The writer is held up inside; what is handed over meanwhile makes one batch afterwards."""
    entered, release = threading.Event(), threading.Event()

    def hold(tx: Tx) -> None:
        entered.set()
        release.wait(30)

    held = asyncio.create_task(store.write(hold))
    await asyncio.to_thread(entered.wait, 30)
    try:
        yield
    finally:
        release.set()
        await held


async def together(store: Store, *verbs: engine.Verb[int]) -> list[int | BaseException]:
    """Run verbs in one batch; what each came to."""
    async with gate(store):
        tasks = [asyncio.create_task(store.write(verb)) for verb in verbs]
        await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


def interrupted(tx: Tx) -> int:
    tx._connection.set_progress_handler(lambda: 1, 1)  # SQLITE_INTERRUPT
    try:
        return add(tx, "two")
    finally:
        tx._connection.set_progress_handler(None, 1)


def fail(tx: Tx) -> int:
    add(tx, "half")
    raise LookupError("this verb fails")


class TestVerbs:
    async def test_a_verb_returns_when_its_result_is_to_be_read(self, store: Store) -> None:
        for i in range(20):
            assert await store.write(adding(str(i))) == i + 1
            assert (await names(store))[-1] == str(i)

    async def test_they_run_in_the_order_in_which_they_were_handed_over(self, store: Store) -> None:
        await together(store, *(adding(str(i)) for i in range(50)))
        assert await names(store) == [str(i) for i in range(50)]

    async def test_waiting_verbs_share_a_commit(self, store: Store) -> None:
        await asyncio.gather(*(store.write(adding(str(i))) for i in range(1000)))
        assert store.writer.stats.verbs == 1000
        assert store.writer.stats.batches <= 100

    async def test_a_batch_is_bounded(self, store: Store) -> None:
        await together(store, *(adding(str(i)) for i in range(2 * BATCH)))
        assert store.writer.stats.batches == 3

    async def test_a_failing_verb_fails_alone(self, store: Store) -> None:
        one, error, two = await together(store, adding("one"), fail, adding("two"))
        assert (one, two) == (1, 2)
        assert isinstance(error, LookupError)
        assert await names(store) == ["one", "two"]

    async def test_a_verb_that_fails_by_itself_changes_nothing(self, store: Store) -> None:
        with pytest.raises(LookupError):
            await store.write(fail)
        assert await names(store) == []

    @pytest.mark.parametrize(
        ("sql", "error"),
        [
            ("INSERT INTO tokens VALUES (1, 'one', 'x', 'x', NULL, 0)", sqlite3.IntegrityError),
            ("INSERT INTO nowhere VALUES (1)", sqlite3.OperationalError),
            ("SELECT json('{')", sqlite3.OperationalError),
        ],
    )
    async def test_a_statement_that_sqlite_refuses_is_its_verbs_failure_alone(
        self, store: Store, sql: str, error: type[Exception]
    ) -> None:
        _, failed, two = await together(store, adding("one"), lambda tx: len(tx.sql(sql)), adding("two"))
        assert isinstance(failed, error)
        assert two == 2
        assert await names(store) == ["one", "two"]
        assert store.writer.stats.failures == 0

    async def test_what_sqlite_cannot_store_is_its_verbs_failure_alone(self, store: Store) -> None:
        surrogate, fine = await together(store, adding("\ud800"), adding("fine"))
        assert isinstance(surrogate, UnicodeEncodeError)
        assert fine == 1

    async def test_a_cancelled_caller_does_not_undo_its_verb(self, store: Store) -> None:
        async with gate(store):
            caller = asyncio.create_task(store.write(adding("late")))
            await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
        await store.write(lambda tx: None)
        assert await names(store) == ["late"]

    async def test_the_connection_is_as_durable_and_forgetful_as_promised(self, store: Store) -> None:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        found = await store.write(lambda tx: [tx.sql(f"PRAGMA {name}")[0][0] for name in pragmas])
        assert found == ["wal", 2, 1, 1]

    def test_a_database_that_cannot_keep_the_promise_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def in_memory(name: str, **options: Any) -> sqlite3.Connection:
            return open_database(name.replace("mode=rwc", "mode=memory"), **options)

        open_database = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", in_memory)
        with pytest.raises(StoreUnavailable, match="journal_mode is memory, not wal"):
            connect(tmp_path / DATABASE, create=True)


class TestIdle:
    async def test_idle_work_waits_until_nothing_else_does(self, store: Store) -> None:
        async with gate(store):
            idle = asyncio.create_task(store.write(adding("idle"), turn=Turn.IDLE))
            await asyncio.sleep(0)
            busy = [asyncio.create_task(store.write(adding(str(i)))) for i in range(3)]
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.gather(idle, *busy)
        assert await names(store) == ["0", "1", "2", "idle"]

    async def test_all_of_it_is_done_without_anything_else_to_wake_the_writer(self, store: Store) -> None:
        async with gate(store):
            tasks = [asyncio.create_task(store.write(adding(str(i)), turn=Turn.IDLE)) for i in range(5)]
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert await names(store) == ["0", "1", "2", "3", "4"]

    async def test_a_busy_writer_comes_to_it_all_the_same(self, store: Store) -> None:
        done = asyncio.Event()

        async def busy(name: str) -> None:
            turn = 0
            while not done.is_set():
                await store.write(adding(f"{name}{turn}"))
                turn += 1

        others = [asyncio.create_task(busy(name)) for name in "abcd"]
        async with asyncio.timeout(30):
            await store.write(lambda tx: None, turn=Turn.IDLE)
        done.set()
        await asyncio.gather(*others)


class TestTurns:
    async def test_who_comes_first_has_a_batch_of_its_own_and_what_it_passed_over_the_next(self, store: Store) -> None:
        ran: list[list[str]] = []

        def noted(name: str) -> Verb[None]:
            def verb(tx: Tx) -> None:
                batch = store.writer.stats.batches
                if not ran or ran[-1][0] != str(batch):
                    ran.append([str(batch)])
                ran[-1].append(name)

            return verb

        async with gate(store):
            turns = {"next": Turn.NEXT, "first": Turn.FIRST, "idle": Turn.IDLE, "other": Turn.FIRST}
            tasks = [asyncio.create_task(store.write(noted(name), turn=turn)) for name, turn in turns.items()]
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert [names for _, *names in ran] == [["first", "other"], ["next"], ["idle"]]

    async def test_many_that_come_first_take_the_others_along(self, store: Store) -> None:
        async with gate(store):
            tasks = [asyncio.create_task(store.write(adding(str(i)), turn=Turn.FIRST)) for i in range(FEW + 1)]
            tasks.append(asyncio.create_task(store.write(adding("next"))))
            await asyncio.sleep(0)
            before = store.writer.stats.batches
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert store.writer.stats.batches == before + 1

    @pytest.mark.parametrize("others", [(Turn.FIRST,), (Turn.FIRST, Turn.NEXT)])
    async def test_idle_work_comes_to_its_turn_among_those_that_come_first(
        self, store: Store, others: tuple[Turn, ...]
    ) -> None:
        done = asyncio.Event()

        async def busy(turn: Turn, name: str) -> None:
            number = 0
            while not done.is_set():
                await store.write(adding(f"{name}{number}"), turn=turn)
                number += 1

        tasks = [asyncio.create_task(busy(turn, f"{turn.name}{i}")) for turn in others for i in range(2)]
        async with asyncio.timeout(30):
            await store.write(lambda tx: None, turn=Turn.IDLE)
        done.set()
        await asyncio.gather(*tasks)


class TestClosing:
    async def test_what_waits_is_written_first_idle_work_included(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as store:
            async with gate(store):
                tasks = [
                    asyncio.create_task(store.write(adding(str(i)), turn=Turn.IDLE if i > 2 else Turn.NEXT))
                    for i in range(6)
                ]
                await asyncio.sleep(0)
                closing = asyncio.create_task(store.close())
                await asyncio.sleep(0)
            await closing
            async with asyncio.timeout(10):
                assert await asyncio.gather(*tasks) == [1, 2, 3, 4, 5, 6]
        async with opened(tmp_path) as store:
            assert len(await names(store)) == 6

    async def test_a_closed_store_takes_nothing_and_may_be_closed_again(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as store:
            await store.close()
            with pytest.raises(StoreUnavailable, match="closing"):
                await store.write(lambda tx: None)
            await store.close()

    async def test_the_log_is_folded_into_the_database(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as store:
            await store.write(adding("one"))
            assert (tmp_path / f"{DATABASE}-wal").stat().st_size > 0
        assert not (tmp_path / f"{DATABASE}-wal").exists()

    async def test_what_a_killed_process_left_in_it_is_in_the_database_before_anything_is_chained_behind(
        self, tmp_path: Path
    ) -> None:
        lived, killed = tmp_path / "lived", tmp_path / "killed"
        for directory in (lived, killed):
            directory.mkdir()
        async with opened(lived) as store:
            await store.write(adding("a"))
            for name in (DATABASE, f"{DATABASE}-wal"):
                shutil.copy(lived / name, killed / name)
        assert (killed / f"{DATABASE}-wal").stat().st_size > 0
        async with opened(killed) as store:
            assert not (killed / f"{DATABASE}-wal").stat().st_size
            assert await names(store) == ["a"]

    async def test_a_log_that_somebody_reads_at_the_start_is_begun_anew_as_soon_as_nobody_does(
        self, tmp_path: Path
    ) -> None:
        path = fresh_database(tmp_path)
        with (
            contextlib.closing(connect(path)) as reader,
            contextlib.closing(connect(path)) as killed,
            capture_logs() as entries,
        ):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM tokens").fetchone()
            killed.execute("UPDATE alembic_version SET version_num = version_num")
            async with opened(tmp_path) as store:
                await store.write(adding("a"))
                assert [entry["reason"] for entry in entries] == ["somebody reads the database"]
                log = tmp_path / f"{DATABASE}-wal"
                before = log.read_bytes()[:32]  # its header has another salt after each beginning
                reader.execute("COMMIT")
                await store.write(adding("b"))
                assert log.read_bytes()[:32] != before
                assert await names(store) == ["a", "b"]

    async def test_what_could_not_be_opened_is_closed_again(self, tmp_path: Path) -> None:
        fresh_database(tmp_path)
        broken = sqlite3.connect(tmp_path / DATABASE)
        broken.execute("ALTER TABLE sites RENAME COLUMN origins TO gone")
        broken.close()
        store = Store(tmp_path / DATABASE)
        with pytest.raises(StoreUnavailable, match="origins"):
            await store.open()
        with pytest.raises(StoreUnavailable, match="closing"):
            await store.write(lambda tx: None)


class TestTrouble:
    async def test_a_lock_held_by_a_foreign_process_is_waited_for_and_then_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "BUSY_TIMEOUT", 0.05)
        async with opened(tmp_path) as store:
            foreign = sqlite3.connect(store.path, isolation_level=None)
            foreign.execute("BEGIN IMMEDIATE")
            writes = (store.write(adding(name)) for name in ("one", "two"))
            results = await asyncio.gather(*writes, return_exceptions=True)
            assert [type(error) for error in results] == [StoreUnavailable] * 2
            assert {str(error) for error in results} == {"database is locked"}
            assert store.writer.stats.failures >= 1
            foreign.execute("ROLLBACK")
            foreign.close()
            assert await store.write(adding("three")) == 1
            assert await names(store) == ["three"]

    @pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
    @pytest.mark.parametrize("ending", ["", "-wal"])
    async def test_a_file_that_is_removed_or_replaced_is_written_to_no_more_and_none_is_made_in_its_place(
        self, tmp_path: Path, ending: str, replaced: bool
    ) -> None:
        async with opened(tmp_path) as store:
            assert await store.write(adding("one")) == 1
            file = tmp_path / f"{DATABASE}{ending}"
            file.rename(tmp_path / "away")
            if replaced:
                shutil.copy(tmp_path / "away", file)
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match=r"was removed or replaced while it was open|is damaged"):
                    await store.write(adding("lost"))
            assert store.damage.reason is not None
            assert file.exists() == replaced
            assert await names(store) == ["one"]

    async def test_a_log_that_the_last_connection_has_removed_is_not_missed(self, tmp_path: Path) -> None:
        path = fresh_database(tmp_path)
        writer = engine.Writer(path)
        writer.start()
        assert await writer.run(adding("one")) == 1
        for number in (2, 3):
            with pytest.raises(StoreUnavailable):
                await writer.run(interrupted)
            assert not (tmp_path / f"{DATABASE}-wal").exists()  # as at the end, when the readers are closed already
            for word in ("first", "second"):
                assert await writer.run(adding(f"{word} {number}")) > 1
        await writer.close()

    def test_files_that_cannot_be_looked_at_are_no_reason_to_go_on(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreUnavailable, match="Not a directory"):
            connection.files(tmp_path / "file" / DATABASE)

    async def test_a_link_to_a_database_is_followed_to_its_log(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / DATABASE).symlink_to(fresh_database(tmp_path / "disk"))
        async with opened(tmp_path) as store:
            assert await store.write(adding("one")) == 1
            (tmp_path / "disk" / f"{DATABASE}-wal").rename(tmp_path / "away")
            with pytest.raises(StoreUnavailable, match="was removed or replaced"):
                await store.write(adding("lost"))

    async def test_a_connection_is_opened_again_only_to_the_file_that_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / DATABASE
        with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
            connect(path)
        assert not path.exists()

    async def test_a_fatal_error_in_one_verb_fails_the_batch_and_a_new_connection_goes_on(self, store: Store) -> None:
        await store.write(lambda tx: tx.sql("PRAGMA cache_size=-1"))
        results = await together(store, adding("one"), interrupted, adding("three"))
        assert [type(error) for error in results] == [StoreUnavailable] * 3
        assert await store.write(adding("four")) == 1
        assert await names(store) == ["four"]
        assert await store.write(lambda tx: tx.sql("PRAGMA cache_size")) == [(-16000,)]

    async def test_a_commit_that_fails_is_told_apart_from_a_verb_that_does(self, store: Store) -> None:
        def orphan(tx: Tx) -> int:
            tx.sql("PRAGMA defer_foreign_keys=ON")  # the violation comes to light at COMMIT
            tx.sql("INSERT INTO counters (site_id, day, name, count) VALUES (99, 'd', 'n', 1)")
            return 0

        with pytest.raises(CommitUnknown):
            await store.write(orphan)
        results = await together(store, adding("one"), orphan, fail)
        assert [type(error) for error in results] == [CommitUnknown] * 3
        assert await store.write(adding("two")) == 1

    async def test_who_changes_sites_and_goes_away_leaves_no_memory_that_is_behind(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            async with gate(w.store):
                change = asyncio.create_task(w.store.redefine(lambda tx: switch(tx, 1, False, False)))
                await asyncio.sleep(0)
                change.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await change
                (going_on,) = [task for task in asyncio.all_tasks() if "_redefine" in repr(task)]
            await going_on
            assert not w.store.sites.by_id[1].tracking

    async def test_the_writer_is_alive_until_it_is_closed(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as store:
            assert store.writer.is_alive
        assert not store.writer.is_alive

    def test_a_full_disk_loses_nothing_and_is_survived(self, tmp_path: Path) -> None:
        """In a process of its own, whose files may not grow beyond a limit for a while."""
        fresh_database(tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", _FULL_DISK, str(tmp_path / DATABASE)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(relay.store.__file__).parents[2])},
        )
        assert (done.returncode, done.stdout) == (0, "written\nrefused\nrefused\nwritten again\n"), done.stderr
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
            assert database.execute("SELECT name FROM tokens ORDER BY id").fetchall() == [("before",), ("after",)]
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    async def test_a_database_that_is_none_is_refused_and_kept(self, tmp_path: Path) -> None:
        path = tmp_path / DATABASE
        path.write_bytes(b"this is not a database" * 1000)
        with pytest.raises(Damaged, match="file is not a database"):
            await Store(path).open()
        assert path.read_bytes() == b"this is not a database" * 1000

    async def test_a_damaged_database_fails_and_is_never_replaced(self, tmp_path: Path) -> None:
        path = fresh_database(tmp_path)
        with contextlib.closing(sqlite3.connect(path)) as database:
            ((page,),) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tokens'")
            ((size,),) = database.execute("PRAGMA page_size")
        with path.open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)
        before = path.read_bytes()
        with pytest.raises(Damaged, match="restore the last backup"):
            await Store(path).open()
        assert path.read_bytes() == before


_FULL_DISK = """
import asyncio, resource, signal, sys
from pathlib import Path
from sqlalchemy import insert
from relay import logs
from relay.store.engine import Statement, StoreUnavailable
from relay.store.schema import tokens
from relay.store.store import Store

logs.setup("error", "json")
INSERT = Statement(insert(tokens), "name hash role sites created_at")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails with EFBIG instead

def limit(octets):
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))

def add(name, sites=None):
    return lambda tx: tx.insert(INSERT, name=name, hash=name, role="viewer", sites=sites, created_at=0.0)

async def main():
    store = Store(Path(sys.argv[1]))
    await store.open()
    await store.write(add("before"))
    print("written")
    limit(64 * 1024)
    for attempt in range(2):
        try:
            await store.write(add(f"big {attempt}", "x" * 1024 * 1024))
        except StoreUnavailable:
            print("refused")
    limit(resource.RLIM_INFINITY)
    await store.write(add("after"))
    print("written again")
    await store.close()

asyncio.run(main())
"""


class TestReader:
    async def test_it_cannot_write(self, store: Store) -> None:
        with pytest.raises(StoreUnavailable, match="readonly"):
            await store.reader.run(INSERT, name="x", hash="x", role="viewer", sites=None, created_at=0.0)

    async def test_an_error_leaves_the_connection_usable(self, store: Store) -> None:
        for _ in range(store.reader.size + 1):
            with pytest.raises(StoreUnavailable):
                await store.reader.all(select(func.json("{")))
        assert await names(store) == []

    async def test_it_waits_for_no_writer(self, store: Store) -> None:
        await store.write(adding("one"))
        async with gate(store):
            waiting = asyncio.create_task(store.write(adding("two")))
            await asyncio.sleep(0)
            assert await names(store) == ["one"]
        await waiting

    async def test_more_readings_than_connections_take_turns(self, store: Store) -> None:
        await store.write(adding("one"))
        assert await asyncio.gather(*(names(store) for _ in range(50))) == [["one"]] * 50

    async def test_lists_and_values_of_a_query_are_parameters(self, store: Store) -> None:
        for name in ("it's", "1", "2"):
            await store.write(adding(name))
        assert await store.reader.all(NAMES.where(tokens.c.name.in_(["it's", "2"]))) == [("it's",), ("2",)]
        assert await store.reader.all(NAMES.where(tokens.c.name.in_([]))) == []
        query = select(tokens.c.name).where(tokens.c.name == bindparam("wanted")).limit(1)
        assert await store.reader.all(query, {"wanted": "1"}) == [("1",)]


class TestStatement:
    def test_constants_are_text_and_parameters_have_names(self) -> None:
        statement = Statement(
            update(deliveries)
            .where(deliveries.c.state.in_(["queued", "it's"]), deliveries.c.id == bindparam("delivery"))
            .values(claim=None, attempts=0, answer=bindparam("reply"))
        )
        assert " ".join(statement.sql.split()) == (
            "UPDATE deliveries SET attempts=0, claim=NULL, answer=:reply "
            "WHERE deliveries.state IN ('queued', 'it''s') AND deliveries.id = :delivery"
        )

    def test_columns_are_parameters_of_their_name(self) -> None:
        assert INSERT.sql.endswith("VALUES (:name, :hash, :role, :sites, :created_at)")


def _statements() -> list[tuple[str, Statement]]:
    found = []
    for module in pkgutil.iter_modules(relay.store.__path__):
        names_in = vars(importlib.import_module(f"relay.store.{module.name}"))
        found += [(f"{module.name}.{name}", value) for name, value in names_in.items() if isinstance(value, Statement)]
    return found


#: What may be read as a whole: small tables, and the partial indexes of what still waits or is for lease.
SMALL = ("sites", "webhooks", "users", "sessions", "invitations")
WAITING = (
    *("ix_posts_waiting", "ix_deliveries_open", "ix_deliveries_held", "ix_messages_unextracted", "ix_texts_unindexed"),
    "ix_routes_leasable",
)
#: Done once after a change of the sites, by `relay check`, when a site or target is removed, when the clock was set,
#: over the pools at the start, of a restored copy, too; hourly, over the two thousand latest exact deliveries.
SELDOM = (
    *(
        "directory._TARGETS",
        "routes.DOMAINS",
        "routes.REAL",
        "routes.RETIRE_TARGET",
        "clock._LEASES",
        "clock._FIND_HOLDINGS",
        "clock._HOLDINGS",
    ),
    *("clock._HOLDINGS_BACK", "copied._POOL", "figures._DELAYS", "scopes._OF_USERS", "scopes._OF_TOKENS"),
)
#: No tables: the rows of a recursion, which counts its steps or goes from key to key, and the one it begins with.
RECURSION = ("SCAN walk", "SCAN destination", "SCAN CONSTANT ROW")


def test_no_statement_reads_a_whole_table_without_need() -> None:
    with contextlib.closing(sqlite3.connect(f"{template().as_uri()}?mode=ro", uri=True)) as database:
        for name, statement in _statements():
            params = dict.fromkeys(re.findall(r":(\w+)", statement.sql), 1)
            for *_, step in database.execute(f"EXPLAIN QUERY PLAN {statement.sql}", params):
                if step.startswith("SCAN anon_"):
                    continue  # what a subquery found, whose own steps are judged like all others
                if step.startswith("SCAN") and step not in RECURSION and name not in SELDOM:
                    table, index = step.split()[1], step.split()[-1]
                    assert table in SMALL or index in WAITING, (name, step)
