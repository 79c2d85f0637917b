"""Schema revisions: what a new database looks like, how an old one is brought up to date, backup and restore."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import shutil
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select
from sqlalchemy.exc import OperationalError

from relay.core.address import sender_key
from relay.core.site import SiteSettings
from relay.store import damage, history, migrate
from relay.store.engine import Tx
from relay.store.migrate import HEAD, WrongRevision, backup, revision
from relay.store.schema import SEARCH_DDL, events, metadata, tokens, visits
from relay.store.store import DATABASE, Store
from tests.store_fixtures import TRACK, World, opened, template, world

UPGRADE = Path(__file__).parent / "upgrade"
OLD = sorted(UPGRADE.glob("*.db.gz"))
Rows = dict[str, list[dict[str, Any]]]
CREATED = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return sorted(name for (name,) in rows)


def contents(path: Path) -> Rows:
    """Every row of every table that is not the search index's own."""
    with database(path) as connection:
        return {
            table: [dict(row) for row in connection.execute(f"SELECT rowid AS _rowid, * FROM {table}")]
            for table in tables(connection)
            if not table.startswith("message_search_")
        }


def repeated(rows: Rows) -> Rows:
    """What a copy says of what waited."""
    waited = ("queued", "deferred")
    found = [row | {"possibly_repeated": 1} if row["state"] in waited else row for row in rows["deliveries"]]
    assert found != rows["deliveries"]
    return rows | {"deliveries": found}


def unpacked(old: Path, directory: Path) -> Path:
    path = directory / DATABASE
    path.write_bytes(gzip.decompress(old.read_bytes()))
    return path


def is_sound(path: Path) -> None:
    with database(path) as connection:
        assert [tuple(row) for row in connection.execute("PRAGMA integrity_check")] == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


class TestSchema:
    def test_a_migrated_database_is_what_the_tables_say(self) -> None:
        engine = create_engine(f"sqlite:///{template()}")
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "compare_type": True,
                    "compare_server_default": True,
                    "include_name": lambda name, kind, _: kind != "table" or not str(name).startswith("message_search"),
                },
            )
            differences = compare_metadata(context, metadata)
        engine.dispose()
        assert differences == []

    def test_indexes_and_constraints_are_the_same_to_the_letter(self) -> None:
        """What alembic does not compare: the conditions of partial indexes, foreign keys' actions, autoincrement."""
        engine = create_engine("sqlite://")
        metadata.create_all(engine)
        with engine.connect() as connection:
            connection.exec_driver_sql(SEARCH_DDL)
            expected = {name: _parts(sql) for name, sql in connection.exec_driver_sql(CREATED)}
        engine.dispose()
        with database(template()) as connection:
            found = {name: _parts(sql) for name, sql in connection.execute(CREATED)}
        del found["alembic_version"]
        assert found == expected

    def test_the_program_works_with_the_newest_revision(self) -> None:
        assert migrate._revisions()[0] == HEAD
        assert revision(template()) == HEAD

    def test_only_the_owner_may_read_it(self, tmp_path: Path) -> None:
        migrate.migrate(tmp_path / DATABASE)
        assert stat.S_IMODE((tmp_path / DATABASE).stat().st_mode) == 0o600

    def test_a_database_that_is_up_to_date_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / DATABASE
        lines: list[str] = []
        assert migrate.migrate(path, lines.append) is True
        assert lines == [f"applied revision {found}" for found in reversed(migrate._revisions())]
        assert migrate.migrate(path, lines.append) is False
        assert [file.name for file in tmp_path.glob("*.db")] == [DATABASE]

    def test_an_empty_file_is_a_new_database(self, tmp_path: Path) -> None:
        (tmp_path / DATABASE).touch()
        assert revision(tmp_path / DATABASE) is None
        assert migrate.migrate(tmp_path / DATABASE) is True


def _parts(sql: str) -> list[str]:
    """The clauses of a CREATE statement in an order of their own: the two are written in different orders."""
    head, _, body = " ".join(sql.split()).partition("(")
    return [head, *sorted(part.strip() for part in re.split(r",(?![^()]*\))", body.removesuffix(")")))]


@pytest.mark.parametrize("old", OLD, ids=lambda old: old.name.partition(".")[0])
class TestUpgrade:
    def test_it_has_rows_in_every_table(self, old: Path, tmp_path: Path) -> None:
        assert [table for table, rows in contents(unpacked(old, tmp_path)).items() if not rows] == []

    def test_it_comes_up_to_date_with_its_rows_intact(self, old: Path, tmp_path: Path) -> None:
        path = unpacked(old, tmp_path)
        before = contents(path)
        migrate.migrate(path)
        assert revision(path) == HEAD
        after = contents(path)
        for table, rows in before.items():
            if table in after and table != "alembic_version":
                kept = rows[0].keys() & after[table][0].keys()
                assert [{name: row[name] for name in kept} for row in after[table]] == [
                    {name: row[name] for name in kept} for row in rows
                ], table
        is_sound(path)

    def test_it_then_has_the_schema_of_a_new_one(self, old: Path, tmp_path: Path) -> None:
        """Where this fails for the current revision: python -m tests.upgrade.make --again"""
        path = unpacked(old, tmp_path)
        migrate.migrate(path)
        with database(path) as upgraded, database(template()) as new:
            found = {name: _parts(sql) for name, sql in upgraded.execute(CREATED)}
            assert found == {name: _parts(sql) for name, sql in new.execute(CREATED)}

    async def test_the_store_works_with_it(self, old: Path, tmp_path: Path) -> None:
        unpacked(old, tmp_path)
        async with opened(tmp_path) as store:
            assert set(store.sites.by_name) == {"shop", "other"}
            (found,) = await history.page(store.reader, history.Filter(query="hello", state="forwarded"), 10)
            # Those of before 0003 do not say whose CRM gave the number, and the letter is for two.
            known = old.name >= "0003"
            assert found.deal_at(None) == (("17", "https://crm.example/17") if known else (None, None))
            assert found.sender == "ann@example.org"
            assert await store.routes.find([(TRACK, "card", None)]) is not None


class TestVisitsOf0001:
    """What revision 0002 makes of visits whose source only their landing page's address could say."""

    @pytest.mark.parametrize(
        ("marker", "referrer", "mark", "channel"),
        [
            ("ads_1", None, "ads_1", "campaign"),
            ("ads_1", "news.example/", "ads_1", "campaign"),
            (None, None, None, "direct"),
            (None, "news.example/", None, None),  # which kind of site that is, it does not know
        ],
    )
    def test_mark_and_channel_follow_from_marker_and_referrer(
        self, tmp_path: Path, marker: str | None, referrer: str | None, mark: str | None, channel: str | None
    ) -> None:
        path = unpacked(UPGRADE / "0001.db.gz", tmp_path)
        with database(path) as connection:
            connection.execute("UPDATE visits SET marker = ?, referrer = ?", (marker, referrer))
        migrate.migrate(path)
        found = contents(path)["visits"]
        assert {(row["marker"], row["mark"], row["channel"]) for row in found} == {(marker, mark, channel)}
        later = ("ym_uid", "device", "browser", "os", "first_id", "touch_id", "erased_at")
        assert {row[name] for row in found for name in later} == {None}

    async def test_a_visit_from_before_goes_on_and_is_the_browsers_first(self, tmp_path: Path) -> None:
        unpacked(UPGRADE / "0001.db.gz", tmp_path)
        async with opened(tmp_path) as store:
            (old,) = [row for row in await store.reader.all(select(visits.c.number, visits.c.marker)) if row[1]]
            w = World(store)
            mark = f"https://www.shop.example/?roistat={old[1]}"
            assert (await w.bind(number=old[0], page=mark)).visit == old[0]
            again = await w.bind(number=old[0], page="https://www.shop.example/?rs=new")
            assert again.visit != old[0]
            (shown,) = await history.visit(store.reader, again.visit, None)
            assert (shown["first_touch"], shown["first_visit"]) == (old[1], old[0])

    async def test_a_site_from_before_has_the_defaults(self, tmp_path: Path) -> None:
        unpacked(UPGRADE / "0001.db.gz", tmp_path)
        async with opened(tmp_path) as store:
            assert {site.settings for site in store.sites.by_name.values()} == {SiteSettings()}
            assert not any(target.additional for site in store.sites.by_name.values() for target in site.targets)


class TestDealsOf0002:
    """What revision 0003 makes of messages' deals: the site whose CRM gave one has it, and no other."""

    OF_SEVERAL = "deal numbers dropped: 1, of letters to several sites: whose CRM gave them is not known"
    OF_NONE = "deal numbers dropped: 1, of letters that are for no site's CRM"
    GIVEN = ("17", "https://crm.example/17")

    def deals(self, tmp_path: Path, *changes: str) -> tuple[dict[tuple[int, int], tuple[Any, Any]], list[str]]:
        """The deals of the upgraded database by (message, site), and what the upgrade said of them.

        Message 1 has the deal 17, is for the sites 1 and 2, and was posted to both (post 1 and 2).
        """
        path = unpacked(UPGRADE / "0002.db.gz", tmp_path)
        with database(path) as connection:
            connection.execute("PRAGMA foreign_keys=ON")
            for change in changes:
                connection.execute(change)
        lines: list[str] = []
        migrate.migrate(path, lines.append)
        after = contents(path)
        assert not {"deal_id", "deal_url"} & after["messages"][0].keys()
        found = {(row["message_id"], row["site_id"]): (row["deal_id"], row["deal_url"]) for row in after["events"]}
        return {place: deal for place, deal in found.items() if deal != (None, None)}, [
            line for line in lines if line.startswith("deal")
        ]

    def test_it_goes_to_the_only_site_of_the_message(self, tmp_path: Path) -> None:
        move = "UPDATE messages SET (deal_id, deal_url) = ('18', 'https://crm.example/18') WHERE id = 2"
        alone = "DELETE FROM deliveries WHERE message_id = 1 AND site_id = 2"
        of_it = "DELETE FROM events WHERE message_id = 1 AND site_id = 2"
        given = {(1, 1): self.GIVEN, (2, 1): ("18", "https://crm.example/18")}
        assert self.deals(tmp_path, move, of_it, alone) == (given, [])

    @pytest.mark.parametrize(("unposted", "site"), [(2, 1), (1, 2)])
    @pytest.mark.parametrize("how", ["UPDATE posts SET state = 'failed' WHERE id =", "DELETE FROM posts WHERE id ="])
    def test_of_several_sites_the_only_one_that_took_it_has_it(
        self, tmp_path: Path, unposted: int, site: int, how: str
    ) -> None:
        assert self.deals(tmp_path, f"{how} {unposted}") == ({(1, site): self.GIVEN}, [])

    @pytest.mark.parametrize("change", ["SELECT 1", "UPDATE posts SET state = 'failed'"])
    def test_where_several_or_none_took_it_nobody_has_it(self, tmp_path: Path, change: str) -> None:
        assert self.deals(tmp_path, change) == ({}, [self.OF_SEVERAL])

    def test_a_site_without_a_receipt_is_a_site_all_the_same(self, tmp_path: Path) -> None:
        changes = ("DELETE FROM events WHERE message_id = 1 AND site_id = 2", "UPDATE posts SET state = 'failed'")
        assert self.deals(tmp_path, *changes) == ({}, [self.OF_SEVERAL])

    @pytest.mark.parametrize("also", ["SELECT 1", "DELETE FROM deliveries WHERE message_id = 2"])
    def test_without_a_receipt_nobody_has_it(self, tmp_path: Path, also: str) -> None:
        moved = (
            "UPDATE messages SET deal_id = NULL, deal_url = NULL",
            "UPDATE messages SET deal_id = '18' WHERE id = 2",
            "DELETE FROM events WHERE message_id = 2",
        )
        assert self.deals(tmp_path, *moved, also) == ({}, [self.OF_NONE])

    def test_an_address_without_a_number_is_kept(self, tmp_path: Path) -> None:
        changes = ("UPDATE messages SET deal_id = NULL", "DELETE FROM posts WHERE id = 2")
        assert self.deals(tmp_path, *changes) == ({(1, 1): (None, "https://crm.example/17")}, [])

    def test_nothing_else_is_said_of_what_was_there(self, tmp_path: Path) -> None:
        path = unpacked(UPGRADE / "0002.db.gz", tmp_path)
        migrate.migrate(path)
        after = contents(path)
        assert {row["settings"] for row in after["webhooks"]} == {"{}"}
        new = {
            "messages": ("thread_id",),
            "events": ("data",),
            "webhooks": ("access", "previous_secret", "previous_until"),
            "post_attempts": ("digest", "size"),
            "texts": ("html",),
        }
        assert {row[name] for table, names in new.items() for row in after[table] for name in names} == {None}
        assert after["blocked_senders"] == []

    async def test_a_letter_that_answers_one_from_before_carries_its_deal(self, tmp_path: Path) -> None:
        with database(unpacked(UPGRADE / "0002.db.gz", tmp_path)) as connection:
            connection.execute("UPDATE posts SET state = 'failed' WHERE id = 2")
        async with opened(tmp_path) as store:
            w = World(store)
            later = await w.accept(f"card@{TRACK}", body=b"later", message_id="l@x", in_reply_to="1@example.org")
            await w.extract(later.message_id)
            query = select(events.c.deal_id, events.c.deal_url).where(events.c.message_id == later.message_id)
            assert await w.rows(query) == [("17", "https://crm.example/17")]


class TestLettersOf0004:
    """What revision 0005 makes of letters; those to static addresses keep the label that is the address's then."""

    @pytest.mark.parametrize(
        ("change", "label"),
        [
            ("SELECT 1", "card"),
            ("UPDATE routes SET label = 'fair' WHERE kind = 'static'", "fair"),
            ("UPDATE routes SET retired_at = 1.0 WHERE kind = 'static'", "card"),
            ("DELETE FROM routes WHERE kind = 'static'", None),
            ("UPDATE routes SET kind = 'static', label = 'fair' WHERE kind <> 'static'", "card"),
        ],
    )
    def test_a_letter_has_the_label_of_its_address_if_it_was_attributed_by_it(
        self, tmp_path: Path, change: str, label: str | None
    ) -> None:
        path = unpacked(UPGRADE / "0004.db.gz", tmp_path)
        with database(path) as connection:
            connection.execute(change)
        migrate.migrate(path)
        found = {(row["attribution_method"] == "static/1", row["label"]) for row in contents(path)["deliveries"]}
        assert found == {(True, label), (False, None)}

    def test_senders_that_are_blocked_stay_so_under_the_form_that_they_are_looked_up_by(self, tmp_path: Path) -> None:
        path = unpacked(UPGRADE / "0004.db.gz", tmp_path)
        odd = ['"a..b"@x.test', '"a b"@x.test', "c@x.test"]
        with database(path) as connection:
            connection.execute("DELETE FROM blocked_senders")
            block = "INSERT INTO blocked_senders SELECT id, ?, 1.0 FROM sites"
            connection.executemany(block, [(sender,) for sender in odd])
        migrate.migrate(path)
        found = {row["address"] for row in contents(path)["blocked_senders"]}
        assert found == {"a..b@x.test", '"a b"@x.test', "c@x.test"} == {sender_key(sender) for sender in odd}

    def test_their_sessions_go_on_being_called_esmtp(self, tmp_path: Path) -> None:
        path = unpacked(UPGRADE / "0004.db.gz", tmp_path)
        migrate.migrate(path)
        assert {row["esmtp"] for row in contents(path)["messages"]} == {1}


def test_the_newest_database_has_something_in_every_column_of_the_visits(tmp_path: Path) -> None:
    """Else the next revision is not tried on it: python -m tests.upgrade.make --again"""
    found = contents(unpacked(OLD[-1], tmp_path))["visits"]
    assert [name for name in found[0] if all(row[name] is None for row in found)] == []


def test_there_is_a_database_of_every_revision() -> None:
    assert {old.name.partition(".")[0] for old in OLD} == set(migrate._revisions())


class TestRefused:
    def test_a_newer_revision_is_refused_and_kept(self, tmp_path: Path) -> None:
        path = Path(shutil.copy(template(), tmp_path / DATABASE))
        with database(path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        before = contents(path)
        with pytest.raises(WrongRevision, match=f"revision 9999, newer than this program's {HEAD}"):
            migrate.migrate(path)
        assert contents(path) == before
        assert [file.name for file in tmp_path.glob("*.db")] == [DATABASE]

    async def test_the_store_does_not_open_it_either(self, tmp_path: Path) -> None:
        path = Path(shutil.copy(template(), tmp_path / DATABASE))
        with database(path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(WrongRevision):
            await Store(path).open()

    def test_another_programs_database_is_refused_and_kept(self, tmp_path: Path) -> None:
        path = tmp_path / DATABASE
        with database(path) as connection:
            connection.execute("CREATE TABLE recipes (name TEXT)")
            connection.execute("INSERT INTO recipes VALUES ('bread')")
        before = path.read_bytes()
        with pytest.raises(WrongRevision, match="not a database of visit-relay"):
            migrate.migrate(path)
        assert path.read_bytes() == before


class Scripts:
    """Revisions of the tests' own behind the real ones."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = Path(shutil.copytree(migrate._script_directory(), directory / "migrations"))
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(migrate, "_script_directory", lambda: str(self.directory))

    def add(self, name: str, after: str, body: str) -> None:
        (self.directory / "versions" / f"{name}_test.py").write_text(
            f'from alembic import op\n\nrevision = "{name}"\ndown_revision = "{after}"\n\n\n'
            f"def upgrade():\n" + "".join(f"    {line}\n" for line in body.splitlines())
        )
        self._monkeypatch.setattr(migrate, "HEAD", name)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    return Scripts(tmp_path, monkeypatch)


class TestInterrupted:
    WORKS = 'op.execute("CREATE TABLE extra (id INTEGER)")\nop.execute("UPDATE tokens SET name = name || \'!\'")'

    @pytest.mark.parametrize(
        ("how", "kind"),
        [
            ("1 / 0", ZeroDivisionError),
            ("raise KeyboardInterrupt", KeyboardInterrupt),
            ('op.execute("SELECT nonsense")', OperationalError),
        ],
    )
    def test_it_leaves_the_last_finished_revision_and_goes_on_from_there(
        self, tmp_path: Path, scripts: Scripts, how: str, kind: type[BaseException]
    ) -> None:
        path = unpacked(OLD[-1], tmp_path)
        scripts.add("8001", HEAD, self.WORKS)
        half = 'op.execute("CREATE TABLE half (id INTEGER)")\nop.execute("DELETE FROM tokens")\n'
        scripts.add("8002", "8001", half + how)
        lines: list[str] = []
        with pytest.raises(kind):
            migrate.migrate(path, lines.append)
        assert revision(path) == "8001"
        assert lines[-1] == "applied revision 8001"
        rows = contents(path)
        assert "extra" in rows
        assert "half" not in rows
        assert [row["name"] for row in rows["tokens"]] == ["ci!"]
        scripts.add("8002", "8001", half)
        assert migrate.migrate(path) is True
        assert revision(path) == "8002"
        assert contents(path)["tokens"] == []
        is_sound(path)

    def test_before_anything_is_changed_there_is_a_backup(self, tmp_path: Path, scripts: Scripts) -> None:
        path = unpacked(OLD[-1], tmp_path)
        before = contents(path)
        scripts.add("8001", HEAD, self.WORKS)
        lines: list[str] = []
        migrate.migrate(path, lines.append)
        (copy,) = tmp_path.glob("relay-before-8001-*.db")
        assert lines[0] == f"backing up to {copy.name}"
        assert contents(copy) == repeated(before)
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600

    def test_what_a_killed_one_left_of_its_copy_is_removed(self, tmp_path: Path, scripts: Scripts) -> None:
        path = unpacked(OLD[-1], tmp_path)
        scripts.add("8001", HEAD, self.WORKS)
        for ending in ("", "-journal"):
            (tmp_path / f"relay-before-8001-1.db.partial{ending}").write_bytes(b"half")
        migrate.migrate(path)
        assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []

    def test_without_a_backup_nothing_is_changed(
        self, tmp_path: Path, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        path = unpacked(OLD[-1], tmp_path)
        scripts.add("8001", HEAD, self.WORKS)
        monkeypatch.setattr(migrate, "backup", full)
        with pytest.raises(OSError, match="No space left"):
            migrate.migrate(path)
        assert revision(path) == HEAD


class TestRollback:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        data = tmp_path / "data"
        for name in ("keys", "bodies"):
            (data / name).mkdir(parents=True)
        return data

    async def test_the_copy_of_before_the_upgrade_put_in_place_is_what_the_old_version_had(
        self, data: Path, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, old = unpacked(OLD[-1], data), HEAD
        before = contents(path)
        newer = []
        for date in ("2026-11-23-1200", "2026-11-24-1200"):  # what was left by an earlier one is no hindrance
            (data / "bodies" / date).write_bytes(b"accepted since")
            copy = self.upgraded(path, scripts)
            (scripts.directory / "versions" / "8001_test.py").unlink()  # the old version again
            monkeypatch.setattr(migrate, "HEAD", old)
            with pytest.raises(WrongRevision):
                migrate.migrate(path)
            damage.mark(path)
            self.put_in_place(copy, date)
            newer.append(data.with_name(f"visit-relay.newer-{date}"))
            (data / "bodies" / date).unlink()  # as the old version's daemon does with what it does not know
            assert (newer[-1] / "bodies" / date).read_bytes() == b"accepted since"
        assert [contents(kept / DATABASE)["tokens"][0]["name"] for kept in newer] == ["ci!"] * 2
        assert contents(path) == repeated(before)
        store = Store(path)
        await store.open()
        await store.close()
        assert contents(path)["messages"] == before["messages"]

    def test_nothing_is_moved_where_the_newer_database_has_no_place(self, data: Path, scripts: Scripts) -> None:
        copy = self.upgraded(unpacked(OLD[-1], data), scripts)
        newer = data.with_name("visit-relay.newer-2026-11-23-1200")
        newer.mkdir()
        before = sorted(data.iterdir())
        with pytest.raises(subprocess.CalledProcessError):
            self.put_in_place(copy, "2026-11-23-1200")
        assert (sorted(data.iterdir()), list(newer.iterdir())) == (before, [])

    def test_without_the_copy_nothing_is_moved_either(self, data: Path, scripts: Scripts) -> None:
        copy = self.upgraded(unpacked(OLD[-1], data), scripts)
        copy.unlink()
        before = sorted(data.iterdir())
        with pytest.raises(subprocess.CalledProcessError):
            self.put_in_place(copy, "2026-11-23-1200")
        assert sorted(data.iterdir()) == before

    def upgraded(self, path: Path, scripts: Scripts) -> Path:
        """The copy that an upgrade has made."""
        scripts.add("8001", HEAD, TestInterrupted.WORKS)
        migrate.migrate(path)
        (copy,) = path.parent.glob("relay-before-8001-*.db")
        return copy

    def put_in_place(self, copy: Path, date: str) -> None:
        """As docs/operations.md says, "Back to the old version", into a shell that reads line after line."""
        chapter = (
            (UPGRADE.parent.parent / "docs" / "operations.md").read_text().partition("**Back to the old version**")[2]
        )
        (lines,) = re.findall(r"^(\(set -e\n.*?^\)\n)", chapter, re.DOTALL | re.MULTILINE)
        said = lines
        for there, here in (
            ("/var/lib/visit-relay", str(copy.parent)),
            (f"{copy.parent}.newer", str(copy.parent.with_name("visit-relay.newer"))),
            ("$(date +%F-%H%M)", date),
            ("relay-before-REVISION-TIME.db", copy.name),
        ):
            assert there in said
            said = said.replace(there, here)
        subprocess.run(["bash"], input=said, text=True, check=True)


class TestBackup:
    async def test_it_is_consistent_while_mail_flows_and_can_be_restored(self, tmp_path: Path) -> None:
        """What is written when half of it is copied is not in it at all."""
        async with world(tmp_path) as w:
            copy = tmp_path / "copy.db"
            halfway, written, turn = asyncio.Event(), threading.Event(), 0
            loop = asyncio.get_running_loop()

            def pair(tx: Tx) -> None:
                for half in "ab":
                    tx.sql(f"INSERT INTO tokens VALUES (NULL, '{turn}{half}', '{turn}{half}', 'x', NULL, {w.now})")

            def progress(line: str) -> None:
                if not line.startswith("100"):
                    loop.call_soon_threadsafe(halfway.set)
                    written.wait(30)

            for turn in range(200):  # noqa: B007 (the verb reads it)
                await w.store.write(pair)
            making = asyncio.create_task(asyncio.to_thread(backup, w.store.path, copy, progress, 1))
            await halfway.wait()
            for turn in range(200, 210):  # noqa: B007
                await w.store.write(pair)
            written.set()
            await making
        is_sound(copy)
        names = [row["name"] for row in contents(copy)["tokens"]]
        assert names == [f"{number}{half}" for number in range(200) for half in "ab"]
        restored = tmp_path / "restored"
        restored.mkdir()
        shutil.copy(copy, restored / DATABASE)
        async with opened(restored) as store:
            assert [name for (name,) in await store.reader.all(select(tokens.c.name).order_by(tokens.c.id))] == names
            assert list(store.sites.by_name) == ["shop"]
            await store.write(lambda tx: tx.sql("DELETE FROM tokens"))

    def test_it_reports_its_progress_and_is_readable_by_its_owner_alone(self, tmp_path: Path) -> None:
        lines: list[str] = []
        backup(template(), tmp_path / "copy.db", lines.append, pages=1)
        percents = [int(line.partition(" ")[0]) for line in lines]
        assert percents == sorted(percents)
        assert percents[-1] == 100
        assert len(percents) <= 11
        assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600

    def test_it_never_overwrites(self, tmp_path: Path) -> None:
        (tmp_path / "copy.db").write_text("precious")
        with pytest.raises(FileExistsError, match=r"copy\.db"):
            backup(template(), tmp_path / "copy.db")
        assert (tmp_path / "copy.db").read_text() == "precious"

    def test_an_interrupted_one_leaves_nothing(self, tmp_path: Path) -> None:
        def interrupt(line: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backup(template(), tmp_path / "copy.db", interrupt, pages=1)
        assert list(tmp_path.iterdir()) == []
        backup(template(), tmp_path / "copy.db")
        assert revision(tmp_path / "copy.db") == HEAD

    def test_what_a_killed_one_left_is_no_hindrance(self, tmp_path: Path) -> None:
        (tmp_path / "copy.db.partial").write_bytes(b"half")
        backup(template(), tmp_path / "copy.db")
        assert [file.name for file in tmp_path.iterdir()] == ["copy.db"]

    def test_there_must_be_something_to_back_up(self, tmp_path: Path) -> None:
        with pytest.raises(sqlite3.OperationalError):
            backup(tmp_path / "nothing.db", tmp_path / "copy.db")
        assert list(tmp_path.iterdir()) == []
