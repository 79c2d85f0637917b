"""The command line: what can be said wrongly, what is printed, and the daemon's start and end as a process."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner, Result

from relay.cli import backup as backup_command
from relay.cli import migrate as migrate_command
from relay.cli.history import STATES
from relay.cli.root import cli
from relay.store import damage, migrate
from tests.daemon import BASE, ROOT, Daemon, entry_of, environment, example_site, merged, refused_start, relay, toml
from tests.store_fixtures import fresh_database, fresh_keys
from webapi.messages import State

Run = Callable[..., Result]


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


LEAVES = dict(commands())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "relay.toml"
    file.write_text(toml(merged(BASE, {"site": [example_site()]})))
    return file


@pytest.fixture
def run(config: Path) -> Run:
    """A subcommand in this process, with its --config."""

    def invoke(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(cli, [*arguments, "--config", str(config)], input=stdin)

    return invoke


@pytest.fixture
def serve(config: Path) -> Callable[[], Result]:
    return lambda: refused_start(config)


class TestHelp:
    @pytest.mark.parametrize("words", LEAVES, ids=" ".join)
    def test_every_command_has_help_and_takes_a_configuration(self, words: tuple[str, ...]) -> None:
        result = CliRunner().invoke(cli, [*words, "--help"])
        assert result.exit_code == 0
        assert words == ("demo",) or "--config FILE" in result.output
        assert len(LEAVES[words].help or "") > 10

    @pytest.mark.parametrize("words", LEAVES, ids=" ".join)
    def test_every_command_is_in_the_documentation(self, words: tuple[str, ...]) -> None:
        documents = [ROOT / "docs" / "operations.md", ROOT / "README.md"]
        text = "".join(document.read_text() for document in documents if document.exists())
        assert f"relay {' '.join(words)}" in text

    def test_help_imports_nothing_that_takes_long(self) -> None:
        code = "import sys, relay.cli.root; print(*sys.modules)"
        loaded = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
        ).stdout.split()
        heavy = {"pydantic", "sqlalchemy", "aiohttp", "rich.table", "alembic", "dns", "cryptography"}
        assert not heavy & set(loaded)

    def test_the_module_runs_as_the_console_script_does(self) -> None:
        assert relay("--help").stdout.startswith("Usage: relay ")

    def test_the_version_is_told(self) -> None:
        assert CliRunner().invoke(cli, ["--version"]).output.startswith("visit-relay")

    def test_the_history_has_the_states_of_the_api(self) -> None:
        assert get_args(State) == STATES


class TestWrongUse:
    @pytest.mark.parametrize(
        "words",
        [
            ["nonsense"],
            ["site"],
            ["token", "create"],
            ["token", "create", "n", "--role", "king"],
            ["site", "add", "a b", "--origin", "https://x.example"],
            ["site", "add", "shop"],
            ["site", "add", "shop", "--origin", "x"],
            ["site", "tracking", "shop", "maybe"],
            ["target", "add", "shop", "not an address"],
            ["target", "add", "shop", "a@b.example", "--lease", "soon"],
            ["target", "add", "shop", "a@b.example", "--next-hop", "http://x"],
            ["target", "pool", "grow", "shop", "a@b.example", "0"],
            ["webhook", "add", "shop", "ftp://x"],
            ["webhook", "enable", "x"],
            ["queue", "retry"],
            ["queue", "retry", "1", "--all"],
            ["queue", "drop"],
            ["message", "show", "0"],
            ["visit"],
            ["visit", "show", "shop"],
            ["visit", "show", "shop", "12a"],
            ["visit", "show", "shop", "-1"],
            ["visit", "erase", "shop", "1" * 21],
            ["visit", "erase", "a b", "1"],
            ["visit", "erase", "shop", "1", "--all"],
            ["user", "create"],
            ["user", "create", "ann", "--role", "king"],
            ["user", "create", "ann", "--site", "a b"],
            ["user", "change", "ann"],
            ["history", "--since", "yesterday"],
            ["history", "--state", "held"],
            ["history", "--visit", "abc"],
            ["history", "--json", "--csv"],
        ],
        ids=" ".join,
    )
    def test_what_cannot_be_understood_ends_with_2_and_changes_nothing(self, run: Run, words: list[str]) -> None:
        result = run(*words)
        assert result.exit_code == 2
        assert "Error: " in result.output or "Usage: " in result.output

    @pytest.mark.parametrize("words", [words for words in LEAVES if words not in {("demo",), ("init",)}], ids=" ".join)
    def test_every_command_names_all_errors_of_a_configuration(self, words: tuple[str, ...], tmp_path: Path) -> None:
        bad = tmp_path / "bad.toml"
        bad.write_text('hostname = "mx.track.test"\nnonsense = 1\n[smtp]\nlisten = 25\n')
        given = {
            "site_name": "shop",
            "address": "a@b.example",
            "url": "https://x.example",
            "on": "on",
            "number": "1",
        }
        arguments = [
            _any_value(parameter, given) for parameter in LEAVES[words].params if isinstance(parameter, click.Argument)
        ]
        if words == ("queue", "retry"):
            arguments = ["1"]
        if words == ("site", "add"):
            arguments += ["--origin", "https://x.example"]
        if words == ("user", "change"):
            arguments += ["--role", "viewer"]
        result = CliRunner().invoke(cli, [*words, *arguments, "--config", str(bad)])
        assert result.exit_code == 2, result.output
        assert result.stderr.splitlines() == [
            "smtp.listen: must be a list ([…]), not a whole number",
            "nonsense: unknown key",
        ]

    def test_a_configuration_that_is_not_there_is_wrong_use(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(cli, ["history", "--config", str(tmp_path / "none.toml")])
        assert result.exit_code == 2
        assert result.stderr == f"{tmp_path / 'none.toml'}: No such file or directory\n"

    def test_a_bug_keeps_its_traceback(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(migrate, "revision", lambda path: 1 / 0)
        assert isinstance(run("history").exception, ZeroDivisionError)


def _any_value(parameter: click.Argument, given: dict[str, str]) -> str:
    """Something that the argument's type takes."""
    candidates = [*given.values(), "name"]
    for candidate in candidates:
        try:
            parameter.type.convert(candidate, parameter, None)
        except click.BadParameter:
            continue
        return candidate
    raise AssertionError(parameter.name)


class TestInit:
    def test_a_file_is_written_that_serve_takes(self, tmp_path: Path) -> None:
        file = tmp_path / "relay.toml"
        result = CliRunner().invoke(
            cli, ["init", "--config", str(file), "--hostname", "mx.track.example", "--operator", "ops@example.com"]
        )
        assert result.exit_code == 0
        from relay.config import load

        assert str(load(file).operator) == "ops@example.com"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_what_is_not_given_is_asked_for(self, tmp_path: Path) -> None:
        file = tmp_path / "relay.toml"
        result = CliRunner().invoke(cli, ["init", "--config", str(file)], input="mx.track.example\n\n")
        assert result.exit_code == 0
        assert '"mx.track.example"' in file.read_text()

    def test_a_file_that_exists_is_never_overwritten(self, config: Path) -> None:
        before = config.read_text()
        result = CliRunner().invoke(
            cli, ["init", "--config", str(config), "--hostname", "mx.x.example", "--operator", ""]
        )
        assert result.exit_code == 1
        assert "exists already" in result.stderr
        assert config.read_text() == before

    def test_values_that_are_no_good_are_named_and_nothing_is_written(self, tmp_path: Path) -> None:
        file = tmp_path / "relay.toml"
        result = CliRunner().invoke(cli, ["init", "--config", str(file), "--hostname", "1.2.3.4", "--operator", "x"])
        assert result.exit_code == 2
        assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["hostname", "operator"]
        assert not file.exists()

    def test_a_folder_that_is_not_there_is_a_plain_error(self, tmp_path: Path) -> None:
        arguments = [
            "init",
            "--config",
            str(tmp_path / "no" / "r.toml"),
            "--hostname",
            "mx.x.example",
            "--operator",
            "",
        ]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 1
        assert result.stderr == f"Error: {tmp_path / 'no' / 'r.toml'}: No such file or directory\n"


@pytest.mark.parametrize(
    "words",
    [
        ["history"],
        ["message", "show", "1"],
        ["queue", "list"],
        ["site", "list"],
        ["token", "list"],
        ["user", "list"],
        ["webhook", "list"],
    ],
    ids=" ".join,
)
class TestReadingWithoutADatabase:
    def test_that_there_is_none_is_said(self, run: Run, words: list[str], tmp_path: Path) -> None:
        result = run(*words)
        assert result.exit_code == 1
        assert f"there is no database at {tmp_path / 'data' / 'relay.db'} yet" in result.stderr
        assert not (tmp_path / "data").exists()

    @pytest.mark.parametrize("left", [None, b""], ids=["missing", "empty"])
    def test_one_that_got_lost_is_missed(self, run: Run, words: list[str], tmp_path: Path, left: bytes | None) -> None:
        database = tmp_path / "data" / "relay.db"
        database.parent.mkdir()
        damage.mark(database)
        if left is not None:
            database.write_bytes(left)
        result = run(*words)
        assert result.exit_code == 1
        assert "restore the last backup" in result.stderr

    def test_one_of_another_revision_is_refused(self, run: Run, words: list[str], tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        with closing(sqlite3.connect(tmp_path / "data" / "relay.db")) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num)")
            connection.execute("INSERT INTO alembic_version VALUES ('9999')")
            connection.commit()
        result = run(*words)
        assert result.exit_code == 1
        assert "has schema revision 9999 and this program works with" in result.stderr

    def test_one_that_is_none_is_a_plain_error(self, run: Run, words: list[str], tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "relay.db").write_bytes(b"no database at all" * 100)
        result = run(*words)
        assert result.exit_code == 1
        assert result.stderr == "Error: the database: file is not a database\n"


@pytest.mark.parametrize(
    "words", [["history"], ["site", "show", "shop", "--json"], ["webhook", "list", "--json"]], ids=" ".join
)
def test_reading_makes_no_key_anew_and_says_which_is_missing(run: Run, words: list[str], tmp_path: Path) -> None:
    for made in (
        run("site", "add", "shop", "--origin", "https://www.shop.test"),
        run("webhook", "add", "shop", "https://crm.shop.test/"),
    ):
        assert made.exit_code == 0, made.output
    key = tmp_path / "data" / "keys" / "seal.key"
    key.unlink()
    result = run(*words)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {key} is missing: restore it; where there never was one, relay serve makes it\n"
    assert not key.exists()


class TestMigrate:
    def test_a_new_database_is_made_and_then_there_is_nothing_to_do(self, run: Run, tmp_path: Path) -> None:
        first, second = run("migrate"), run("migrate")
        assert (first.exit_code, second.exit_code) == (0, 0)
        assert "applied revision 0001" in first.stderr
        assert f"has schema revision {migrate.HEAD} already" in second.stdout
        assert migrate.revision(tmp_path / "data" / "relay.db") == migrate.HEAD

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_can_be_interrupted_and_taken_up_again(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(migrate_command, "say", lambda line: signal.raise_signal(number))
            result = run("migrate")
        assert result.exit_code == 1
        assert result.stderr == "Error: interrupted: what was applied stays; the next start goes on from there\n"
        assert run("migrate").exit_code == 0

    def test_one_that_got_lost_is_not_made_anew(self, run: Run, tmp_path: Path) -> None:
        run("migrate")
        (tmp_path / "data" / "relay.db").unlink()
        result = run("migrate")
        assert result.exit_code == 1
        assert "it is missing, but" in result.stderr
        assert not (tmp_path / "data" / "relay.db").exists()

    def test_a_database_of_a_newer_program_is_left_alone(self, run: Run, tmp_path: Path) -> None:
        run("migrate")
        with closing(sqlite3.connect(tmp_path / "data" / "relay.db")) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
            connection.commit()
        result = run("migrate")
        assert result.exit_code == 1
        assert "has schema revision 9999, newer than this program's" in result.stderr


class TestBackup:
    def test_without_a_database_there_is_nothing_to_copy(self, run: Run, tmp_path: Path) -> None:
        result = run("backup", str(tmp_path / "copy"))
        assert result.exit_code == 1
        assert result.stderr == f"Error: {tmp_path / 'data' / 'relay.db'}: there is no database yet\n"

    def test_of_a_database_that_got_lost_there_is_none(self, run: Run, tmp_path: Path) -> None:
        run("migrate")
        (tmp_path / "data" / "relay.db").unlink()
        result = run("backup", str(tmp_path / "copy"))
        assert result.exit_code == 1
        assert "restore the last backup" in result.stderr

    def test_a_directory_that_exists_is_never_touched(self, run: Run, tmp_path: Path) -> None:
        run("migrate")
        (tmp_path / "copy").mkdir()
        result = run("backup", str(tmp_path / "copy"))
        assert result.exit_code == 1
        assert result.stderr == f"Error: {tmp_path / 'copy'}: exists already\n"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interruption_leaves_nothing(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
    ) -> None:
        run("migrate")
        monkeypatch.setattr(backup_command, "say", lambda line: signal.raise_signal(number))
        result = run("backup", str(tmp_path / "copy"))
        assert result.exit_code == 1
        assert result.stderr == f"Error: interrupted: nothing is left at {tmp_path / 'copy'}\n"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "relay.toml"]

    def test_the_remains_of_a_killed_backup_are_pointed_at(self, run: Run, tmp_path: Path) -> None:
        run("migrate")
        (tmp_path / "copy.partial").mkdir()
        result = run("backup", str(tmp_path / "copy"))
        assert result.exit_code == 1
        assert "another backup is at work there, or was killed" in result.stderr


#: Starts a daemon whose standard output takes nothing: the link of the first administrator is lost.
NO_ROOM = ("sh", "-c", 'exec "$@" >/dev/full', "sh") if Path("/dev/full").exists() else ()


class TestServe:
    def test_its_first_start_makes_all_and_beside_it_nothing_else_begins_until_a_kill_or_sigterm(
        self, tmp_path: Path, run: Run, serve: Callable[[], Result]
    ) -> None:
        with Daemon(tmp_path, {"site": [example_site()]}, makes_database=True) as daemon:
            made = [daemon.data_dir, *daemon.data_dir.rglob("*")]
            assert {"relay.db", "seal.key", "bodies", "control.sock"} <= {path.name for path in made}
            assert not [path for path in made if path.stat().st_mode & 0o077]
            for port, greeting in ((daemon.smtp_port, b"220 mx.track.test"), (daemon.http_port, b"HTTP/1.")):
                with socket.create_connection(("127.0.0.1", port), 10) as sock:
                    if port == daemon.http_port:
                        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert sock.recv(4096).startswith(greeting)
            in_use = f"Error: {daemon.data_dir} is in use by another relay (process {daemon.pid})\n"
            second = serve()
            assert (second.exit_code, second.stderr) == (1, in_use)
            _say_revision(daemon.data_dir, "0000")
            migration = run("migrate")
            assert (migration.exit_code, migration.stderr) == (1, in_use)
            with socket.create_connection(("127.0.0.1", daemon.smtp_port), 10) as sock:
                assert sock.recv(4096).startswith(b"220 ")  # the first goes on
            _say_revision(daemon.data_dir, migrate.HEAD)
            daemon.kill()
            assert (daemon.data_dir / "control.sock").exists()
            daemon.config.write_text(toml(BASE))
            entry = daemon.start(NO_ROOM).wait_for("site removed")
            assert (entry["site"], entry["level"]) == ("example", "warning")
            assert run("token", "list").exit_code == 0
            assert daemon.stop() == 0
            assert daemon.errors == []
        assert not (daemon.data_dir / "control.sock").exists()

    def test_a_port_that_is_taken_is_named(self, config: Path, serve: Callable[[], Result]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            config.write_text(toml(merged(BASE, {"smtp": {"listen": [f"127.0.0.1:{port}"]}})))
            result = serve()
        assert result.exit_code == 1
        last = result.stderr.splitlines()[-1]
        assert last.startswith("Error: ")
        assert str(port) in last
        assert "Traceback" not in result.stderr

    def test_a_key_that_others_can_read_is_refused(self, tmp_path: Path, serve: Callable[[], Result]) -> None:
        (tmp_path / "data").mkdir(mode=0o700)
        fresh_keys(tmp_path / "data" / "keys")
        (tmp_path / "data" / "keys" / "seal.key").chmod(0o644)
        result = serve()
        assert result.exit_code == 1
        assert "chmod 600" in result.stderr.splitlines()[-1]

    def test_a_database_of_a_newer_program_is_refused(self, tmp_path: Path, serve: Callable[[], Result]) -> None:
        (tmp_path / "data").mkdir(mode=0o700)
        fresh_database(tmp_path / "data")
        _say_revision(tmp_path / "data", "9999")
        result = serve()
        assert result.exit_code == 1
        assert "newer than this program's" in result.stderr.splitlines()[-1]

    def test_a_declared_key_that_another_site_has_is_refused(
        self, config: Path, run: Run, serve: Callable[[], Result]
    ) -> None:
        config.write_text(toml(BASE))
        made = run("site", "add", "shop", "--origin", "https://shop.test", "--key", "pk_example")
        assert made.exit_code == 0, made.output
        config.write_text(toml(merged(BASE, {"site": [example_site()]})))
        result = serve()
        assert result.exit_code == 1
        assert "'pk_example'" in result.stderr.splitlines()[-1]

    def test_a_refused_configuration_ends_it_with_2(self, config: Path, serve: Callable[[], Result]) -> None:
        config.write_text(toml(merged(BASE, {"smtp": {"bare_lf": "keep"}})))
        result = serve()
        assert result.exit_code == 2
        assert result.stderr.splitlines() == ['smtp.bare_lf: must be "normalise" or "refuse", not "keep"']

    def test_a_command_that_removes_such_a_site_names_it_beside_its_result(self, config: Path, run: Run) -> None:
        assert run("token", "create", "x").exit_code == 0
        config.write_text(toml(BASE))
        result = run("token", "create", "ci")
        assert result.stderr == "site example is removed: relay.toml declares it no more\n"
        assert result.stdout.startswith("token ci (")


def _say_revision(data_dir: Path, revision: str) -> None:
    """Have the database say that it has this schema revision."""
    with closing(sqlite3.connect(data_dir / "relay.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()


def test_the_daemons_log_is_read_line_by_line() -> None:
    assert entry_of(json.dumps({"event": "ready"})) == {"event": "ready"}
    assert entry_of("Traceback\n")["event"] == "Traceback"
