"""`relay check`: every finding, with real DNS, SMTP and HTTP servers on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay import check, check_clock, check_dns, check_peers
from relay.check_findings import FAIL, OK, WARN, Finding, Subject, gather
from relay.cli.root import cli
from relay.core.check import NAMES
from relay.store import damage, migrate
from tests.check_helpers import NAME, configured, findings, only
from tests.daemon import ROOT, Daemon, example_site, merged
from tests.dns_server import DnsServer, Fault, Table
from tests.smtp_sink import SmtpSink
from tests.store_fixtures import pool_target, world
from tests.store_fixtures import site as store_site


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "relay.db"
    migrate.migrate(path)
    return path


@pytest.fixture
def data(tmp_path: Path, database: Path) -> Path:
    """A data_dir with an empty database."""
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    shutil.copy(database, path / "relay.db")
    return path


class TestDataDir:
    async def test_one_that_is_not_there_yet_is_good_where_it_can_be_made(self, tmp_path: Path) -> None:
        finding = only(await findings(check.data_dir, configured(tmp_path)), "data_dir")
        assert finding.level == OK
        assert not (tmp_path / "data").exists()

    async def test_one_that_is_the_owners_alone_is_good(self, tmp_path: Path, data: Path) -> None:
        assert only(await findings(check.data_dir, configured(tmp_path)), "data_dir").level == OK

    async def test_one_that_others_can_read_is_a_warning(self, tmp_path: Path, data: Path) -> None:
        data.chmod(0o755)
        finding = only(await findings(check.data_dir, configured(tmp_path)), "data_dir")
        assert (finding.level, finding.hint) == (WARN, f"chmod 700 {data}")

    async def test_a_key_that_others_can_read_has_failed(self, tmp_path: Path, data: Path) -> None:
        (data / "keys").mkdir()
        (data / "keys" / "seal.key").touch(0o640)
        finding = only(await findings(check.data_dir, configured(tmp_path)), "data_dir")
        assert (finding.level, finding.hint) == (FAIL, f"chmod 600 {data / 'keys' / 'seal.key'}")

    @pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: only root can give files away")
    @pytest.mark.parametrize("name", ["relay.db", "lock"])
    async def test_a_file_of_somebody_else_has_failed(self, tmp_path: Path, data: Path, name: str) -> None:
        (data / name).touch()
        os.chown(data / name, 4711, -1)
        finding = only(await findings(check.data_dir, configured(tmp_path)), "data_dir")
        assert finding.level == FAIL
        assert f"{data / name} belongs to user 4711" in finding.text

    async def test_a_file_in_its_place_has_failed(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        subject = Subject(configured(tmp_path, {"data_dir": "file"}), time.time())
        assert only(await check.data_dir(subject), "data_dir").level == FAIL

    async def test_one_that_cannot_be_written_to_has_failed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
        assert only(await findings(check.data_dir, configured(tmp_path)), "data_dir").level == FAIL
        (tmp_path / "data").mkdir()
        assert only(await findings(check.data_dir, configured(tmp_path)), "data_dir").level == FAIL


class TestThisMachine:
    async def test_a_database_of_this_program_is_good(self, tmp_path: Path, data: Path) -> None:
        assert only(await findings(check.database, configured(tmp_path)), "database").level == OK

    async def test_no_database_yet_is_good(self, tmp_path: Path) -> None:
        assert only(await findings(check.database, configured(tmp_path)), "database").level == OK

    async def test_one_that_got_lost_has_failed(self, tmp_path: Path, data: Path) -> None:
        damage.mark(data / "relay.db")
        (data / "relay.db").unlink()
        _, problems = await gather(configured(tmp_path), time.time())
        assert [(finding.level, finding.what) for finding in problems] == [(FAIL, "database")]
        assert "it is missing, but" in problems[0].text

    async def test_a_database_of_another_revision_has_failed(self, tmp_path: Path, data: Path) -> None:
        with closing(sqlite3.connect(data / "relay.db")) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
            connection.commit()
        assert only(await findings(check.database, configured(tmp_path)), "database").level == FAIL

    async def test_a_database_that_is_none_has_failed_and_the_rest_is_still_checked(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir(mode=0o700)
        (tmp_path / "data" / "relay.db").write_bytes(b"no database " * 500)
        subject, problems = await gather(configured(tmp_path), time.time())
        assert [(finding.level, finding.what) for finding in problems] == [(FAIL, "database")]
        assert subject.recipients

    async def test_a_disk_with_room_is_good_and_one_without_has_failed(self, tmp_path: Path) -> None:
        assert only(await findings(check.disk, configured(tmp_path)), "disk").level == OK
        config = configured(tmp_path, {"smtp": {"min_free": 1 << 50}})
        assert only(await findings(check.disk, config), "disk").level == FAIL

    async def test_a_disk_with_little_room_is_a_warning(self, tmp_path: Path) -> None:
        space = os.statvfs(tmp_path)
        config = configured(tmp_path, {"smtp": {"min_free": space.f_bavail * space.f_frsize // 2}})
        assert only(await findings(check.disk, config), "disk").level == WARN

    async def test_a_clock_that_is_before_what_was_written_has_failed(
        self, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check_clock, "synchronised", lambda: True)
        assert only(await findings(check_clock.clock, configured(tmp_path)), "clock").level == OK
        found = await findings(check_clock.clock, configured(tmp_path), now=time.time() - 86_400)
        assert only(found, "clock").level == FAIL

    @pytest.mark.parametrize(("kept", "level"), [(True, OK), (None, OK), (False, WARN)])
    async def test_a_clock_that_nothing_keeps_right_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool | None, level: str
    ) -> None:
        monkeypatch.setattr(check_clock, "synchronised", lambda: kept)
        assert only(await findings(check_clock.clock, configured(tmp_path)), "clock").level == level

    @pytest.mark.parametrize(("platform", "said"), [("linux", True), ("darwin", False)])
    async def test_where_the_daemon_may_not_ask_the_kernel_it_says_who_may(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, said: bool
    ) -> None:
        monkeypatch.setattr(check_clock, "synchronised", lambda: None)
        monkeypatch.setattr(sys, "platform", platform)
        finding = only(await findings(check_clock.clock, configured(tmp_path)), "clock")
        assert finding.level == OK
        assert ("run relay check as its user" in finding.text) == said

    def test_the_kernel_is_asked_whether_something_keeps_the_clock_right(self) -> None:
        assert check_clock.synchronised() in (True, False, None)

    async def test_ports_are_free_or_taken(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            config = configured(tmp_path, {"smtp": {"listen": [f"127.0.0.1:{port}"]}})
            found = await findings(check.daemon, config)
        assert only(found, "daemon").text == "not running"
        assert only(found, "listen").level == FAIL
        assert only(await findings(check.daemon, config), "listen").level == OK

    async def test_a_port_that_needs_a_privilege_has_failed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: socket.socket, address: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(socket.socket, "bind", refuse)  # the tests may run as root
        found = await findings(check.daemon, configured(tmp_path, {"smtp": {"listen": ["127.0.0.1:25"]}}))
        assert "systemd" in only(found, "listen").hint

    async def test_a_socket_where_no_daemon_of_ours_answers_has_failed(self, tmp_path: Path, data: Path) -> None:
        async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hello\r\n")
            writer.close()

        server = await asyncio.start_unix_server(nonsense, data / "control.sock")
        try:
            assert only(await findings(check.daemon, configured(tmp_path)), "daemon").level == FAIL
        finally:
            server.close()
            await server.wait_closed()


GOOD: Table = {
    (NAME, "A"): ["93.184.216.34"],
    ("34.216.184.93.in-addr.arpa", "PTR"): [f"{NAME}."],
    ("track.test", "MX"): [f"10 {NAME}."],
    ("track.test", "TXT"): ['"google-site-verification=x"', '"v=spf1 " "mx -all"'],
}


async def names(tmp_path: Path, table: Table, **settings: Any) -> list[Finding]:
    async with DnsServer(table) as dns:
        wanted = merged({"dns": {"nameservers": [dns.address], "timeout": "1s"}, "site": [example_site()]}, settings)
        return await findings(check_dns.names, configured(tmp_path, wanted))


def without(*keys: tuple[str, str], **changes: Any) -> Table:
    return {key: value for key, value in GOOD.items() if key not in keys}


OUTSIDE = {"smtp": {"listen": ["0.0.0.0:2525"]}}
MX, SPF, PTR, A = "MX of track.test", "SPF of track.test", "PTR of 93.184.216.34", f"name {NAME}"


class TestNames:
    async def test_where_everything_is_right_everything_is_good(self, tmp_path: Path) -> None:
        found = await names(tmp_path, GOOD, **OUTSIDE)
        assert {finding.what: finding.level for finding in found} == {A: OK, PTR: OK, MX: OK, SPF: OK}

    @pytest.mark.parametrize(
        ("table", "what", "level"),
        [
            (without((NAME, "A")), A, FAIL),
            (without((NAME, "A")) | {(NAME, "TXT"): ['"x"']}, A, FAIL),
            (GOOD | {(NAME, "A"): Fault.SERVFAIL, (NAME, "AAAA"): Fault.SERVFAIL}, A, FAIL),
            (without(("track.test", "MX"), ("track.test", "TXT")), MX, FAIL),
            (GOOD | {("track.test", "MX"): ["10 mail.other.test."]}, MX, FAIL),
            (GOOD | {("track.test", "MX"): ["0 ."]}, MX, FAIL),
            (GOOD | {("track.test", "MX"): Fault.SERVFAIL}, MX, FAIL),
            (GOOD | {("track.test", "MX"): [f"10 {NAME}.", "20 mail.other.test."]}, MX, WARN),
            (
                GOOD | {("track.test", "MX"): ["10 alias.track.test."], ("alias.track.test", "A"): ["93.184.216.34"]},
                MX,
                OK,
            ),
            (GOOD | {("34.216.184.93.in-addr.arpa", "PTR"): ["host.isp.test."]}, PTR, WARN),
            (without(("34.216.184.93.in-addr.arpa", "PTR")), PTR, WARN),
            (GOOD | {("34.216.184.93.in-addr.arpa", "PTR"): Fault.SERVFAIL}, PTR, WARN),
            (without(("track.test", "TXT")), SPF, WARN),
            (GOOD | {("track.test", "TXT"): ['"v=spf1 mx -all"', '"v=spf1 a -all"']}, SPF, WARN),
            (GOOD | {("track.test", "TXT"): ['"v=spf1 +all"']}, SPF, WARN),
            (GOOD | {("track.test", "TXT"): ['"v=spf1 -all"']}, SPF, WARN),
            (GOOD | {("track.test", "TXT"): Fault.SERVFAIL}, SPF, WARN),
            (GOOD | {("track.test", "TXT"): ['"v=spf1 ip4:93.184.216.34 -all"']}, SPF, OK),
            (GOOD | {("track.test", "TXT"): ['"v=spf1 include:_spf.example.test -all"']}, SPF, OK),
        ],
    )
    async def test_what_is_wrong_is_told_with_what_to_do(
        self, tmp_path: Path, table: Table, what: str, level: str
    ) -> None:
        assert only(await names(tmp_path, table, **OUTSIDE), what).level == level

    async def test_the_policy_that_is_suggested_is_the_one_of_the_documentation(self, tmp_path: Path) -> None:
        hint = only(await names(tmp_path, without(("track.test", "TXT")), **OUTSIDE), SPF).hint
        (policy,) = re.findall(r'"(v=spf1 [^"]+)"', hint)
        assert f"`{policy}`" in (ROOT / "docs" / "deliverability.md").read_text()

    @pytest.mark.parametrize(("mx", "level"), [(["10 mail.firm.test."], WARN), (["0 ."], FAIL)])
    async def test_nobody_is_told_to_move_the_mail_of_real_mailboxes(
        self, tmp_path: Path, mx: list[str], level: str
    ) -> None:
        site = example_site(target=[{"address": "sales@firm.test", "pool": ["info1@firm.test"]}])
        table: Table = GOOD | {("firm.test", "MX"): mx, ("firm.test", "TXT"): ['"v=spf1 ip6:2001:db8::1 ~all"']}
        found = await names(tmp_path, table, site=[site], forward={"next_hop": "smtp://mail.firm.test:25"}, **OUTSIDE)
        finding = only(found, "MX of firm.test")
        assert finding.level == level
        assert "recipient unchanged" in finding.hint
        advice = " ".join(f"{one.what}: {one.hint}" for one in found)
        assert not any(words in advice for words in ("MX 10", "-all", "SPF of firm.test"))

    async def test_nor_where_only_retired_substitutes_are_left_beside_them(self, tmp_path: Path, data: Path) -> None:
        async with world(data, store_site("shop", pool_target("sales@firm.test", "info1@firm.test"))) as w:
            await w.declare(store_site("shop", pool_target("sales@example.test", "info1@track.test")))
        found = await names(tmp_path, GOOD | {("firm.test", "MX"): ["10 mail.firm.test."]}, site=[], **OUTSIDE)
        finding = only(found, "MX of firm.test")
        assert finding.level == WARN
        assert "recipient unchanged" in finding.hint
        assert "SPF of firm.test" not in {one.what for one in found}

    async def test_a_server_on_loopback_is_only_warned_of_what_concerns_mail_from_outside(self, tmp_path: Path) -> None:
        found = await names(tmp_path, without((NAME, "A"), ("track.test", "MX"), ("track.test", "TXT")))
        assert only(found, A).level == WARN
        assert only(found, MX).level == WARN

    async def test_without_a_substitute_there_is_something_left_to_do(self, tmp_path: Path) -> None:
        assert only(await names(tmp_path, GOOD, site=[]), "MX").level == WARN

    async def test_of_very_many_domains_the_first_are_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check_dns, "MOST_DOMAINS", 1)
        more = {"address": "x@example.test", "method": "unique", "domain": "unique.test"}
        site = example_site()
        found = await names(tmp_path, GOOD, site=[site | {"target": [*site["target"], more]}])
        assert "1 more domains" in next(finding for finding in found if finding.what == "MX").text


async def invoked(daemon: Daemon, *arguments: str) -> Result:
    """`relay ARGUMENTS` in a thread of this process: a command has an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "--config", str(daemon.config)])


class TestCommand:
    def settings(self, sink: SmtpSink, dns: DnsServer) -> dict[str, Any]:
        return {
            "forward": {"next_hop": f"smtp://{sink.address}"},
            "dns": {"nameservers": [dns.address], "timeout": "1s"},
            "site": [example_site()],
        }

    async def test_beside_the_daemon_it_tests_the_sites_of_the_database_too(self, tmp_path: Path) -> None:
        outside: dict[str, Any] = {
            "http": {"public_url": "http://track.test"},
            "site": [example_site(origins=["http://www.example.test"])],
        }
        async with (
            SmtpSink() as sink,
            DnsServer(GOOD) as dns,
            Daemon(tmp_path, self.settings(sink, dns) | outside) as daemon,
        ):
            words = ("target", "add", "shop", "sales@shop.test", "--domain", "track.shop.test", "--next-hop")
            for arguments in (
                ("site", "add", "shop", "--origin", "https://www.shop.test"),
                (*words, f"smtp://{sink.address}"),
                ("webhook", "add", "shop", "http://127.0.0.1:9/"),
            ):
                done = await invoked(daemon, *arguments)
                assert done.exit_code == 0, done.output
            result = await invoked(daemon, "check", "--json")
            found = {(finding["what"], finding["level"]) for finding in json.loads(result.stdout)}
            text = result.stdout
        assert result.exit_code == 1
        assert {("daemon", OK), ("database", OK), (MX, OK), ("webhook of shop", FAIL)} <= found
        assert "sales@shop.test: 250" in text
        assert {("MX of track.shop.test", WARN), ("http.public_url", WARN)} <= found

    async def test_warnings_alone_are_no_failure_and_every_line_says_what_to_do(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink, DnsServer(without((NAME, "A"))) as dns:
            daemon = Daemon(tmp_path, self.settings(sink, dns))
            result = await invoked(daemon, "check")
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert {line.split()[0] for line in lines} == {"OK", "WARN"}
        assert all(" -> " in line for line in lines if line.startswith("WARN"))
        assert not daemon.data_dir.exists()

    async def test_a_check_that_takes_too_long_or_breaks_is_a_finding(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def stuck(subject: Subject) -> list[Finding]:
            await asyncio.Event().wait()
            return []

        async def broken(subject: Subject) -> list[Finding]:
            raise OSError("no network")

        async def wrong(subject: Subject) -> list[Finding]:
            raise LookupError("secret")

        monkeypatch.setattr(check_dns, "names", stuck)
        monkeypatch.setattr(check_peers, "next_hops", broken)
        monkeypatch.setattr(check_peers, "webhooks", wrong)
        found: dict[str, Sequence[Finding]] = {}
        await check.run_some(configured(tmp_path), NAMES, found.__setitem__, patience=0.05)
        assert list(found)[-1] == "dns"
        assert set(found) == set(NAMES)
        for name, what, text in (
            ("dns", "stuck", "took longer than 0.05 seconds"),
            ("next_hops", "broken", "could not be checked: no network"),
            ("webhooks", "wrong", "could not be checked: LookupError"),
        ):
            assert only(list(found[name]), what) == Finding(FAIL, what, text, found[name][0].hint)

    async def test_only_what_is_asked_for_is_checked_and_told_as_it_ends(self, tmp_path: Path, data: Path) -> None:
        told: list[str] = []
        await check.run_some(configured(tmp_path), ("tls", "disk"), lambda name, found: told.append(name))
        assert told == ["disk", "tls"]
        (data / "relay.db").write_bytes(b"no database " * 500)
        found: dict[str, Sequence[Finding]] = {}
        await check.run_some(configured(tmp_path), ("disk",), found.__setitem__)
        assert [finding.level for finding in found["database"]] == [FAIL]
        await check.run_some(configured(tmp_path), ("database",), found.__setitem__)
        assert {finding.level for finding in found["database"]} == {FAIL}

    def test_there_is_a_function_for_every_check(self) -> None:
        assert tuple(check._checks()) == NAMES
        assert set(NAMES) > check.REMOTE

    async def test_a_sealed_next_hop_without_its_key_has_failed(self, tmp_path: Path) -> None:
        daemon = Daemon(tmp_path)
        for arguments in (
            ("site", "add", "shop", "--origin", "https://www.shop.test"),
            ("target", "add", "shop", "a@shop.test", "--domain", "t.shop.test", "--next-hop", "smtp://127.0.0.1:9"),
        ):
            done = await invoked(daemon, *arguments)
            assert done.exit_code == 0, done.output
        (daemon.data_dir / "keys" / "seal.key").unlink()
        _, problems = await gather(configured(tmp_path), time.time())
        assert "seal.key is missing" in problems[0].text
        assert not (daemon.data_dir / "keys" / "seal.key").exists()
