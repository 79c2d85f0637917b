"""Install, upgrade and restore as docs/operations.md says, block for block, with mail that waits meanwhile."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest

from relay.store.copied import LEAP
from relay.store.migrate import HEAD
from tests.daemon import ROOT, toml
from tests.ledger import SOAK
from tests.missing import missing
from tests.runbook import Host, block, chapter, installed, replaced, repositorys
from tests.scenarios.world import DOMAIN, SECRET, World, unique_letter
from tests.store_fixtures import fresh_keys
from tests.test_migrations import OLD, database, tables, unpacked
from tests.webhook_receiver import Post, Receiver, Step, retry_after

pytestmark = pytest.mark.scenario

#: Of a visit that another counter numbered, so that its letters are posted.
TO = f"plus+17@{DOMAIN}"
#: Too large for a row: it has a file of its own.
LARGE = "A line of text that is not so very long.\r\n" * 10_000
NEXT = "8001"


def posted(crm: Receiver) -> Counter[str]:
    """How often each event came; `relay check` asks without one."""
    return Counter(post.headers["webhook-id"] for post in crm.posts if post.method == "POST")


class TestRestore:
    """From a nightly backup, made while a letter waits for its next hop and its event is being posted."""

    async def test_what_waited_comes_again_flagged_and_what_came_later_is_nowhere(self, tmp_path: Path) -> None:
        done = asyncio.Event()

        async def crm(post: Post) -> int:
            if post.method == "POST" and post.json["email_from"] == "bob@customer.test":
                await done.wait()
            return 200

        async with installed(tmp_path, crm=crm) as relay:
            host = Host(tmp_path, relay.daemon)
            host.place_of_program()
            first, waits = unique_letter(text=LARGE), unique_letter(sender="bob@customer.test")
            forwarded = await relay.mail(TO, first)
            await relay.forwarded(forwarded)
            await relay.posted(forwarded)
            relay.sink.script["rcpt"] = "450 4.2.1 not now"
            waiting = await relay.mail(TO, waits, sender="bob@customer.test")
            await relay.forwarded(waiting, "deferred")
            await relay.crm.wait_for(2)
            night = await asyncio.to_thread(self.night, host)

            done.set()
            lost = await self.going_on(relay, waiting)
            since = len(relay.daemon.log)
            said = await asyncio.to_thread(host.follow, block("**Restore:**"), ("2026-11-23", night))

            assert [row for row in said.splitlines() if "bob@customer.test" in row and "deferred" in row], said
            assert (tmp_path / "var/lib/visit-relay.damaged/relay.db").exists()
            await relay.retry_all()
            await relay.forwarded(waiting, since=since)
            uid = await relay.event(waiting)
            await relay.daemon.logged("post", uid=uid, state="delivered", since=since)
            known = (await relay.call("GET", "/v1/messages"))["items"]
            assert [int(item["id"]) for item in known] == [waiting, forwarded]
            assert await relay.octets("GET", f"/v1/messages/{forwarded}/raw") == first
            flags = "SELECT possibly_repeated FROM deliveries ORDER BY id"
            assert await relay.rows(flags) == [(0,), (1,)]
            assert len(await relay.arrived(first)) == 1
            assert len(await relay.arrived(waits)) == 2
            assert posted(relay.crm)[uid] == 2
            assert await relay.mail(TO, unique_letter()) > lost + LEAP
            assert relay.daemon.errors == []

    async def going_on(self, relay: World, waiting: int) -> int:
        """What the original does after the backup: it is done with the letter, and takes another, whose id it is."""
        relay.sink.script.clear()
        await relay.retry_all()
        await relay.forwarded(waiting)
        await relay.posted(waiting)
        lost = await relay.mail(TO, unique_letter())
        await relay.forwarded(lost)
        return lost

    def night(self, host: Host) -> str:
        """The name of what the unit of the nightly backup has made."""
        text = chapter("## Backup and restore")
        (once,) = re.findall(r"^install -d .*  # once$", text, re.MULTILINE)
        (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
        host.follow(once)
        host.follow(command.replace("%%", "%").replace("$$", "$"))  # as systemd reads it
        (made,) = (host.root / "var/backups/visit-relay").iterdir()
        return made.name


class TestUpgrade:
    """Of an installation made as the document says, with mail that waits in the running daemon.

    In the soak to a version that has one revision more, by venv and pip; else the program is the repository's before
    and after, for to build it twice takes longer than all the rest.
    """

    async def test_what_waits_in_the_running_old_version_goes_out_once_from_the_new_one(self, tmp_path: Path) -> None:
        if shutil.which("git") is None:
            missing("NOT TESTED, how it is installed and upgraded: git is not installed")
        well = asyncio.Event()

        def crm(post: Post) -> Step:
            return 200 if well.is_set() else retry_after(503, "3600")

        async with installed(tmp_path, crm=crm, start=False) as relay:
            host = Host(tmp_path, relay.daemon, {"python3": INSTALLED if SOAK else NOT_INSTALLED})
            upstream = repository(tmp_path / "upstream")
            await asyncio.to_thread(self.install, host, relay, upstream)
            relay.sink.script["rcpt"] = "450 4.2.1 not now"
            contents = [unique_letter(), unique_letter(text=LARGE)]
            messages = [await relay.mail(TO, content) for content in contents]
            for message in messages:
                await relay.forwarded(message, "deferred")
                await relay.daemon.logged("post", message=message, state="waiting", attempt=1)
            events = {await relay.event(message) for message in messages}

            with_a_revision_more(upstream)
            since = len(relay.daemon.log)
            await asyncio.to_thread(host.follow, block("## Upgrade"))
            await relay.daemon.logged("ready", since=since)

            data_dir, backups = relay.daemon.data_dir, tmp_path / "var/backups/visit-relay"
            assert await relay.row("SELECT version_num FROM alembic_version") == (NEXT if SOAK else HEAD,)
            assert len(list(data_dir.glob(f"relay-before-{NEXT}-*.db"))) == SOAK
            assert [made.name[:15] for made in backups.iterdir()] == ["before-upgrade-"]
            assert f'HEAD = "{NEXT}"' in (tmp_path / "usr/src/visit-relay/relay/store/migrate.py").read_text()
            relay.sink.script.clear()
            well.set()
            await relay.retry_all()
            for message, content in zip(messages, contents, strict=True):
                await relay.forwarded(message, since=since)
                await relay.call("POST", f"/v1/messages/{message}/replay", expect=202)  # else in an hour
                await relay.daemon.logged("post", message=message, state="delivered", since=since)
                assert len(await relay.arrived(content)) == 1
            assert len(relay.sink.accepted) == len(messages)
            assert posted(relay.crm) == dict.fromkeys(events, 2)
            assert relay.daemon.errors == []

    def install(self, host: Host, relay: World, upstream: Path) -> None:
        asked = toml({name: relay.settings[name] for name in ("forward", "webhooks", "dns", "log", "site")})
        relay.daemon.config.unlink()
        answers = "mx.track.test\noperator@example.test\n"
        host.follow(block("## Install as a service"), ("…", str(upstream)), stdin=answers)
        written = replaced(
            relay.daemon.config.read_text(),
            ('data_dir = "var"', f'data_dir = "{relay.daemon.data_dir}"'),
            ('listen = ["127.0.0.1:2525"]', 'listen = "systemd"'),
            ('listen = ["127.0.0.1:8080"]', 'listen = ["127.0.0.1:0"]'),
            ('[forward]\nnext_hop = ""', ""),
        )
        relay.daemon.config.write_text(written + asked)
        unit = (host.root / "etc/systemd/system/relay.service").read_text()
        (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        host.started_by = (sys.executable, "-c", ACTIVATES, *shlex.split(host.here(command)))
        host.follow(block("site. Then:"))
        assert "/ui/welcome/" in host.follow(block("An alias helps:"))


#: Makes and fills the environment without the network: the packages are those that the tests have, pip looks whether
#: they are of the versions that are asked for. It is the tests' own, since to put one there takes seconds.
INSTALLED = f"""
[ "$1 $2" = "-m venv" ] && {sys.executable} -m venv --without-pip "$3" || exit 1
packages=$("$3/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo {sysconfig.get_path("purelib")} > "$packages/tested.pth"
cat > "$3/bin/pip" <<'END'
#!/bin/bash
[ "$1" = install ] && shift || exit 1
exec {sys.executable} -m pip --python "$(dirname "$0")/python" install -q --disable-pip-version-check --no-index \\
    --no-build-isolation "$@"
END
chmod +x "$3/bin/pip"
"""
#: The repository's program where the installed one would be; pip looks whether what it is to install is there.
NOT_INSTALLED = f"""
[ "$1 $2" = "-m venv" ] && mkdir -p "$3/bin" && cd "$3/bin" || exit 1
cat > relay <<'END'
#!/bin/bash
{repositorys("-m relay")}
END
cat > python <<'END'
#!/bin/bash
[ "$1" = -I ] && shift && {repositorys("")}
END
cat > pip <<'END'
#!/bin/bash
case "$*" in
    "install --require-hashes -r "*) [ -s "$4" ] ;;
    "install --no-deps .") [ -s pyproject.toml ] && [ -s relay/__main__.py ] ;;
    *) exit 1 ;;
esac
END
chmod +x relay python pip
"""
#: Does what systemd does for relay.socket, and becomes the command that is given to it.
ACTIVATES = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", 0))
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="smtp")
for name in ("PYTHONPATH", "PYTHONPYCACHEPREFIX"):  # the installed one is to run, not the repository's
    os.environ.pop(name, None)
command = sys.argv[1 : sys.argv.index("-m") - 1]
os.execv(command[0], command)
"""


def git(repository: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.test", "-c", "core.hooksPath=/dev/null")
    subprocess.run(["git", "-C", str(repository), *who, *words], check=True, capture_output=True)


def repository(directory: Path) -> Path:
    """A repository of what an installation needs of this one."""
    directory.mkdir()
    kept_out = shutil.ignore_patterns("node_modules", "__pycache__", "src", "test")
    for name in ("relay", "webapi", "systemd", "requirements"):
        shutil.copytree(ROOT / name, directory / name, ignore=kept_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    git(directory, "init", "-q")
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", "the old version")
    return directory


def with_a_revision_more(directory: Path) -> None:
    store = directory / "relay/store"
    (store / f"migrations/versions/{NEXT}_next.py").write_text(
        f'from alembic import op\n\nrevision = "{NEXT}"\ndown_revision = "{HEAD}"\n\n\n'
        'def upgrade():\n    op.execute("CREATE TABLE more (id INTEGER)")\n'
    )
    code = store / "migrate.py"
    code.write_text(replaced(code.read_text(), (f'HEAD = "{HEAD}"', f'HEAD = "{NEXT}"')))
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", "the new version")


#: What waits to be forwarded; and to be posted, of letters with a visit, which is what the sites ask for.
LETTERS = "SELECT data FROM bodies WHERE message_id IN (SELECT message_id FROM deliveries WHERE finished_at IS NULL)"
EVENTS = """
SELECT uid FROM events WHERE id IN (SELECT event_id FROM posts WHERE state = 'waiting')
OR state = 'waiting' AND message_id IN (SELECT message_id FROM deliveries WHERE attribution <> 'none')
"""


@pytest.mark.parametrize("old", OLD if SOAK else OLD[:1], ids=lambda old: old.name.partition(".")[0])
async def test_what_waited_in_an_older_versions_database_goes_out_once_after_the_upgrade(
    tmp_path: Path, old: Path
) -> None:
    async with installed(tmp_path, start=False) as relay:
        relay.daemon.data_dir.mkdir(mode=0o700, parents=True)
        secret = fresh_keys(relay.daemon.data_dir / "keys").seal(SECRET)
        path = unpacked(old, relay.daemon.data_dir)
        bring_up_to_now(path)
        with database(path) as connection:
            connection.execute("UPDATE webhooks SET url = ?, secret = ?", (relay.crm.url, secret))
            letters = [content + b"\r\n" for (content,) in connection.execute(LETTERS)]  # these have no last line end
            events = {uid for (uid,) in connection.execute(EVENTS)}
        assert letters
        assert events
        await asyncio.to_thread(relay.daemon.start)
        for content in letters:
            await relay.arrived(content)
        for uid in events:
            await relay.daemon.logged("post", uid=uid, state="delivered")
        await relay.until(
            lambda: relay.rows("SELECT 1 FROM deliveries WHERE finished_at IS NULL"), lambda rows: not rows
        )
        assert len(relay.sink.accepted) == len(letters)
        assert posted(relay.crm) == dict.fromkeys(events, 1)
        assert await relay.row("SELECT version_num FROM alembic_version") == (HEAD,)
        assert bool(list(path.parent.glob("relay-before-*.db"))) == (old != OLD[-1])
        assert relay.daemon.errors == []


def bring_up_to_now(path: Path) -> None:
    """Move the database's times so that its last letter came a minute ago. No site is relay.toml's, and no webhook has
    wishes of its own."""
    with database(path) as connection:
        ((last,),) = connection.execute("SELECT max(received_at) FROM messages")
        by = time.time() - 60 - last
        for table in tables(connection):
            for name, kind in connection.execute("SELECT name, type FROM pragma_table_info(?)", (table,)).fetchall():
                if kind == "FLOAT":
                    connection.execute(
                        f"UPDATE {table} SET {name} = {name} + ? WHERE {name} BETWEEN 1e9 AND 1e10", (by,)
                    )
                if name in ("declared", "access", "previous_secret"):
                    connection.execute(f"UPDATE {table} SET {name} = ?", (0 if name == "declared" else None,))
                if (table, name) == ("webhooks", "settings"):
                    connection.execute("UPDATE webhooks SET settings = '{}'")
        due = "UPDATE deliveries SET next_at = 0, expires_at = ? WHERE finished_at IS NULL"
        connection.execute(due, (time.time() + 86_400,))
