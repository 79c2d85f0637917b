"""Backup beside a running daemon and without one, and the restore."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay import backup as copies
from relay.cli.root import cli
from relay.store.copied import LEAP
from tests.daemon import PATIENCE, Daemon, environment, refused_start
from tests.dead_ends import CARD, SETTINGS, declared, letter, mail
from tests.smtp_sink import SmtpSink

#: Large enough for a file of its own.
LARGE = letter(1) + (b"y" * 70 + b"\r\n") * 6000


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a daemon that has accepted LARGE, could not forward it, and was stopped."""
    directory = tmp_path_factory.mktemp("template")
    with Daemon(directory, SETTINGS) as daemon:
        daemon.send("ann@customer.test", [CARD], LARGE)
        daemon.wait_for("delivery", state="deferred")
        daemon.wait_for("post", attempt=1)
    return directory


@pytest.fixture
def stopped(template: Path, tmp_path: Path) -> Daemon:
    """A copy of it."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return Daemon(tmp_path, SETTINGS)


def whole(directory: Path) -> int:
    """The number of messages of a copied data_dir, in which nothing is missing or broken."""
    with closing(sqlite3.connect(directory / "relay.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = connection.execute("SELECT body_file, stored_size FROM messages").fetchall()
    large = [(directory / "bodies" / file, size) for file, size in rows if file is not None]
    assert {path.stat().st_size == size for path, size in large} == {True}
    return len(rows)


class TestBackup:
    async def test_a_copy_made_while_mail_flows_serves_mail_when_it_is_put_in_place(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink:
            settings = {"forward": {"next_hop": f"smtp://{sink.address}"}, "site": [declared()]}
            async with Daemon(tmp_path, settings) as daemon:
                for content in (LARGE, letter(2)):
                    await mail(daemon, content)
                await daemon.logged("delivery", state="forwarded")
                said: list[str] = []

                def progress(line: str) -> None:
                    """A letter comes while the pages are copied, and after whatever else is said."""
                    said.append(line)
                    sending = mail(daemon, LARGE + b"%d\r\n" % len(said))
                    asyncio.run_coroutine_threadsafe(sending, loop).result(PATIENCE)

                loop = asyncio.get_running_loop()
                done = await asyncio.to_thread(copies.backup, daemon.data_dir, tmp_path / "copy", progress)
                assert "% of" in said[0]
                await sink.wait_for_messages(2 + len(said))
            copied = whole(tmp_path / "copy")
            assert copied == done.messages == 2
            (tmp_path / "copy").rename(tmp_path / "restored")
            restored = Daemon(tmp_path, {**settings, "data_dir": "restored"})
            async with restored:
                for number, content in (("1", LARGE), ("2", letter(2))):
                    words = ["message", "raw", number, "--config", str(restored.config)]
                    raw = await asyncio.to_thread(CliRunner().invoke, cli, words)
                    assert raw.stdout_bytes == content
                await mail(restored, letter(3))
                ((newest,),) = restored.query("SELECT max(id) FROM messages")
                assert newest > copied + LEAP
                await restored.logged("delivery", message=newest, state="forwarded")
                assert restored.errors == []

    def test_it_works_without_a_daemon_and_its_files_are_the_owners_alone(
        self, stopped: Daemon, tmp_path: Path
    ) -> None:
        done = copies.backup(stopped.data_dir, tmp_path / "copy", lambda line: None)
        assert (done.messages, done.bodies, done.lost) == (1, 1, ())
        assert done.octets > len(LARGE)
        made = sorted((tmp_path / "copy").rglob("*"))
        assert not [path for path in made if path.stat().st_mode & 0o077]
        assert [path.name for path in made if path.suffix == ".key"] == ["links.key", "loop.key", "seal.key", "srs.key"]
        for path in (stopped.data_dir / "keys").iterdir():
            assert (tmp_path / "copy" / "keys" / path.name).read_bytes() == path.read_bytes()

    def test_a_copy_that_came_without_its_database_is_not_served(self, stopped: Daemon, tmp_path: Path) -> None:
        copies.backup(stopped.data_dir, tmp_path / "copy", lambda line: None)
        shutil.rmtree(tmp_path / "copy" / "bodies")  # where all letters are small there is nothing in it
        (tmp_path / "copy" / "relay.db").unlink()
        stopped.data_dir.rename(tmp_path / "away")
        (tmp_path / "copy").rename(stopped.data_dir)
        result = refused_start(stopped.config)
        assert result.exit_code == 1
        assert "it is missing, but" in result.stderr.splitlines()[-1]

    def test_what_waited_is_flagged_for_the_original_has_forwarded_it_since(
        self, stopped: Daemon, tmp_path: Path
    ) -> None:
        copies.backup(stopped.data_dir, tmp_path / "copy", lambda line: None)
        with closing(sqlite3.connect(tmp_path / "copy" / "relay.db")) as connection:
            assert connection.execute("SELECT state, possibly_repeated FROM deliveries").fetchall() == [("deferred", 1)]
        assert stopped.query("SELECT possibly_repeated FROM deliveries") == [(0,)]

    def test_a_body_that_retention_removed_meanwhile_is_removed_in_the_copy_too(
        self, stopped: Daemon, tmp_path: Path
    ) -> None:

        def erase(line: str) -> None:
            with closing(sqlite3.connect(stopped.data_dir / "relay.db")) as connection:
                connection.execute("UPDATE messages SET body_file = NULL, raw_removed_at = 1")
                connection.commit()
            for path in (stopped.data_dir / "bodies").iterdir():
                path.unlink()

        done = copies.backup(stopped.data_dir, tmp_path / "copy", erase)
        assert (done.bodies, done.lost) == (0, ())
        with closing(sqlite3.connect(tmp_path / "copy" / "relay.db")) as connection:
            ((file, removed_at),) = connection.execute("SELECT body_file, raw_removed_at FROM messages").fetchall()
        assert file is None
        assert removed_at > 0

    def test_a_body_that_the_original_has_lost_is_reported(self, stopped: Daemon, tmp_path: Path) -> None:
        for path in (stopped.data_dir / "bodies").iterdir():
            path.unlink()
        result = CliRunner().invoke(cli, ["backup", str(tmp_path / "copy"), "--config", str(stopped.config)])
        assert result.exit_code == 0
        assert "Warning: the body of message 1 is missing" in result.stderr

    def test_where_no_link_can_be_made_bodies_are_copied(
        self, stopped: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (original,) = (stopped.data_dir / "bodies").iterdir()

        def refuse(source: Path, target: Path) -> None:
            raise OSError(18, os.strerror(18))  # EXDEV: another file system

        monkeypatch.setattr(os, "link", refuse)
        copies.backup(stopped.data_dir, tmp_path / "copy", lambda line: None)
        (copy,) = (tmp_path / "copy" / "bodies").iterdir()
        assert copy.read_bytes() == original.read_bytes()
        assert copy.stat().st_ino != original.stat().st_ino

    def test_a_disk_error_leaves_nothing_and_is_a_plain_error(
        self, stopped: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:

        def fail(source: Path, target: Path) -> None:
            raise OSError(28, os.strerror(28), str(source), None, str(target))  # ENOSPC

        monkeypatch.setattr(os, "link", fail)
        result = CliRunner().invoke(cli, ["backup", str(tmp_path / "copy"), "--config", str(stopped.config)])
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].endswith("No space left on device")
        assert not list(tmp_path.glob("copy*"))


def test_a_reader_that_has_enough_ends_a_long_listing_quietly(stopped: Daemon) -> None:
    with closing(sqlite3.connect(stopped.data_dir / "relay.db")) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(messages)") if row[1] != "id"]
        names = ", ".join(f'"{name}"' for name in columns)
        connection.executemany(f"INSERT INTO messages ({names}) SELECT {names} FROM messages LIMIT 1", [()] * 1500)
        connection.commit()
    with subprocess.Popen(
        [sys.executable, "-m", "relay", "history", "--csv", "--limit", "100000", "--config", str(stopped.config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (1, -signal.SIGPIPE)
