"""A damaged database: mail is put off, somebody is told, nothing is replaced, and a backup brings all of it back."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from relay.store import damage
from tests.daemon import ROOT, DaemonFailed, environment
from tests.exposition import parse, rules, selected
from tests.missing import missing
from tests.runbook import Host, blocks, installed
from tests.scenarios.world import DOMAIN, World, letter, unique_letter, world
from tests.smtp_client import SmtpClient

pytestmark = pytest.mark.fault

BASE = f"plus@{DOMAIN}"
LARGE = letter("large", "A line of text that is not so very long.\r\n" * 10_000)
#: Octets of a page of the database.
PAGE = 4096
REMEDY = r"restore the last backup \(docs/operations\.md"


def database(relay: World) -> Path:
    return relay.daemon.data_dir / "relay.db"


def page_of(path: Path, table: str) -> int:
    """The number of a table's first page."""
    with closing(sqlite3.connect(path)) as connection:
        found: tuple[int] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    return found[0]


def overwrite(path: Path, page: int) -> None:
    """Nonsense over one page, in place."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"nonsense" * (PAGE // 8))


def head(path: Path) -> None:
    overwrite(path, 1)


def inner(path: Path) -> None:
    overwrite(path, page_of(path, "messages"))


def cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // PAGE // 2 * PAGE)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def bare(path: Path) -> None:
    """Sound and without a table, as a recovery leaves it that found nothing."""
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")


def lost(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("content", [letter("small"), LARGE], ids=["small letters", "a large one"])
async def test_a_database_that_is_damaged_before_the_start_is_refused_with_the_remedy_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    async with world(tmp_path) as relay:
        await relay.mail(BASE, content)
        assert await asyncio.to_thread(relay.daemon.stop) == 0
        whole = database(relay).read_bytes()
        harms: list[Callable[[Path], None]] = [head, cut_off, emptied, zeroed, bare, lost, inner]
        for harm in harms:
            database(relay).write_bytes(whole)
            harm(database(relay))
            with pytest.raises(damage.Damaged, match=REMEDY):
                damage.check(database(relay))
        harmed = database(relay).read_bytes()
        with pytest.raises(DaemonFailed, match=REMEDY):
            await asyncio.to_thread(relay.daemon.start)
        assert database(relay).read_bytes() == harmed
        lost(database(relay))
        left = sorted(relay.daemon.data_dir.rglob("*"))
        with pytest.raises(DaemonFailed, match=f"{REMEDY}.*to begin anew on purpose .* move data_dir away"):
            await asyncio.to_thread(relay.daemon.start)
        assert sorted(relay.daemon.data_dir.rglob("*")) == left
        database(relay).write_bytes(whole)
        await asyncio.to_thread(relay.daemon.start)


async def test_who_moves_data_dir_away_begins_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        await relay.mail(BASE, unique_letter())
        assert await asyncio.to_thread(relay.daemon.stop) == 0
        relay.daemon.data_dir.rename(tmp_path / "away")
        await asyncio.to_thread(relay.daemon.start)
        new = unique_letter()
        assert await relay.mail(BASE, new) == 1
        await relay.arrived(new)


async def test_damage_under_the_running_daemon_puts_mail_off_and_shows_and_a_backup_brings_all_of_it_back(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as relay:
        contents = [unique_letter(), LARGE]
        messages = [await relay.mail(BASE, content) for content in contents]
        for message in messages:
            await relay.forwarded(message)
        await relay.cli("backup", str(tmp_path / "copy"))
        with closing(sqlite3.connect(database(relay))) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what is only in the log would be read from there
        for page in range(2, database(relay).stat().st_size // PAGE + 1):
            overwrite(database(relay), page)

        async def put_off() -> bool:
            return (await relay.answer(unique_letter(), BASE)).code == 451

        # What the daemon holds in memory of the database is sound still: it may take a letter or two.
        await relay.until(put_off, bool)
        entry = await relay.daemon.logged("database damaged")
        assert entry["level"] == "error"
        assert "restore the last backup" in entry["hint"]
        async with relay.http.get(relay.daemon.url + "/readyz") as response:
            assert response.status == 503
            assert "damaged" in await response.text()
        async with relay.http.get(relay.daemon.url + "/healthz") as response:
            assert response.status == 200
        assert await put_off()
        async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
            await client.command("MAIL FROM:<ann@customer.test>")
            assert (await client.command(f"RCPT TO:<not.in.memory@{DOMAIN}>")).code == 451
        async with relay.http.get(relay.daemon.url + "/metrics") as response:
            assert response.status == 200
            found = parse(await response.text())
        assert found["relay_database_trouble"].value(kind="damaged") == 1
        refused = found["relay_smtp_refusals_total"]
        at_data, at_recipient = (refused.value(command=command, code="451") for command in ("DATA", "RCPT"))
        assert (at_data >= 2, at_recipient) == (True, 1)
        (rule,) = (rule for rule in rules() if rule["alert"] == "VisitRelayMailPutOff")
        assert selected(rule["expr"], found) == at_data + at_recipient

        relay.daemon.kill()
        relay.daemon.data_dir.rename(tmp_path / "damaged")
        (tmp_path / "copy").rename(relay.daemon.data_dir)
        await asyncio.to_thread(relay.daemon.start)
        for message, content in zip(messages, contents, strict=True):
            assert await relay.octets("GET", f"/v1/messages/{message}/raw") == content
        assert await relay.row("PRAGMA integrity_check") == ("ok",)
        new = unique_letter()
        await relay.mail(BASE, new)
        await relay.arrived(new)


async def test_what_is_left_of_a_damaged_database_is_got_at_as_the_documentation_says(tmp_path: Path) -> None:
    if shutil.which("sqlite3") is None:
        missing("NOT TESTED: what is left of a damaged database: no sqlite3 (apt-get install sqlite3)")
    text = (ROOT / "docs" / "operations.md").read_text()
    (line,) = re.findall(r"^sqlite3 relay\.db \.dump.*$", text, re.M)
    rest = tmp_path / "rest"
    rest.mkdir()
    async with world(tmp_path) as relay:
        contents = [unique_letter(), LARGE]
        messages = [await relay.mail(BASE, content) for content in contents]
        for message in messages:
            await relay.forwarded(message)
        assert await asyncio.to_thread(relay.daemon.stop) == 0
        overwrite(database(relay), page_of(database(relay), "visits"))
        for name in ("keys", "bodies"):
            shutil.copytree(relay.daemon.data_dir / name, rest / name)
        done = await asyncio.create_subprocess_shell(line.replace("/tmp/rest", str(rest)), cwd=relay.daemon.data_dir)
        assert await done.wait() == 0
        config = rest / "relay.toml"
        config.write_text(re.sub(r"(?m)^data_dir.*", f'data_dir = "{rest}"', relay.daemon.config.read_text()))
        for message, content in zip(messages, contents, strict=True):
            # a process of its own: its output is octets
            reading = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "relay", "message", "raw", str(message), "--config", str(config)),
                stdout=asyncio.subprocess.PIPE,
                env=environment(),
            )
            assert await reading.communicate() == (content, None)


@pytest.mark.parametrize("whole", [False, True], ids=["database", "data_dir"])
async def test_what_was_removed_under_the_running_daemon_is_brought_back_from_its_open_files(
    tmp_path: Path, whole: bool
) -> None:
    async with installed(tmp_path) as relay:
        contents = [unique_letter(), unique_letter()]
        messages = [await relay.mail(BASE, content) for content in contents]
        for message in messages:
            await relay.forwarded(message)
        shutil.copytree(relay.daemon.data_dir / "keys", tmp_path / "keys")
        if whole:
            shutil.rmtree(relay.daemon.data_dir)
        else:
            for file in relay.daemon.data_dir.glob("relay.db*"):
                file.unlink()
        assert (await relay.answer(unique_letter(), BASE)).code == 451
        entry = await relay.daemon.logged("database damaged")
        assert "was removed or replaced" in entry["error"]
        assert "do NOT stop the daemon" in entry["hint"]
        async with relay.http.get(relay.daemon.url + "/readyz") as response:
            assert response.status == 503
        async with relay.http.get(relay.daemon.url + "/metrics") as response:
            assert response.status == 200
            assert parse(await response.text())["relay_database_trouble"].value(kind="damaged") == 1
        assert list(relay.daemon.data_dir.glob("relay.db*")) == []

        # The files have no names, and are there as long as the daemon has them open.
        shows = f'[ "$*" = "show -p MainPID --value relay" ] && echo {relay.daemon.pid}'
        host = Host(tmp_path, relay.daemon, {"systemctl": shows})
        host.place_of_program()
        take_out, put_in_place, start = blocks("### A database that was removed under the daemon")[:3]
        await asyncio.to_thread(host.follow, take_out)
        if not whole:
            relay.daemon.kill()
            with pytest.raises(DaemonFailed, match=r"it is missing, but .*database-was-made is there"):
                await asyncio.to_thread(relay.daemon.start)
        await asyncio.to_thread(host.follow, put_in_place)
        if whole:
            (tmp_path / "keys").rename(relay.daemon.data_dir / "keys")
        await asyncio.to_thread(host.follow, start)
        for message, content in zip(messages, contents, strict=True):
            assert await relay.octets("GET", f"/v1/messages/{message}/raw") == content
