"""`relay check`: every finding, with real DNS, SMTP and HTTP servers on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from relay import check, check_dns, check_peers
from relay.check_findings import FAIL, OK, WARN, Finding, Subject, gather
from relay.cli.root import cli
from relay.config import Config, parse
from relay.store import migrate
from tests.certificates import Certificate
from tests.daemon import BASE, Daemon, example_site, merged, toml
from tests.dns_server import DnsServer, Fault, Table
from tests.smtp_sink import Close, SmtpSink
from tests.webhook_receiver import Receiver, redirect

SECRET = "whsec_c2NlbmFyaW9zIG5lZWQgYSBzZWNyZXQsIHRvbw=="
NAME = "mx.track.test"


def configured(directory: Path, settings: Mapping[str, Any] | None = None) -> Config:
    return parse(toml(merged(BASE, settings or {})), directory)


async def findings(
    what: Callable[[Subject], Awaitable[list[Finding]]], config: Config, now: float | None = None
) -> list[Finding]:
    subject, problems = await gather(config, time.time() if now is None else now)
    assert problems == []
    return await what(subject)


def only(found: list[Finding], what: str) -> Finding:
    """The one finding about ``what``, which says what to do unless it is good."""
    (finding,) = [finding for finding in found if finding.what == what]
    assert finding.level == OK or finding.hint
    return finding


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
    async def test_a_file_of_somebody_else_has_failed(self, tmp_path: Path, data: Path) -> None:
        os.chown(data / "relay.db", 4711, -1)
        finding = only(await findings(check.data_dir, configured(tmp_path)), "data_dir")
        assert finding.level == FAIL
        assert f"{data / 'relay.db'} belongs to user 4711" in finding.text

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

    async def test_a_clock_that_is_before_what_was_written_has_failed(self, tmp_path: Path, data: Path) -> None:
        assert only(await findings(check.clock_sanity, configured(tmp_path)), "clock").level == OK
        found = await findings(check.clock_sanity, configured(tmp_path), now=time.time() - 86_400)
        assert only(found, "clock").level == FAIL

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


class TestCertificates:
    def settings(self, tmp_path: Path, *names: str) -> dict[str, Any]:
        made = Certificate.make(tmp_path, *names)
        return {"smtp": {"tls_cert": str(made.cert), "tls_key": str(made.key)}}

    async def test_one_that_names_us_is_good_for_a_while(self, tmp_path: Path) -> None:
        config = configured(tmp_path, self.settings(tmp_path, NAME))
        soon = only(await findings(check_peers.certificates, config), "smtp.tls_cert")
        assert (soon.level, "expires on" in soon.text) == (WARN, True)  # they last for a day
        earlier = await findings(check_peers.certificates, config, now=time.time() - 30 * 86_400)
        assert only(earlier, "smtp.tls_cert").level == OK

    async def test_one_that_has_expired_has_failed(self, tmp_path: Path) -> None:
        config = configured(tmp_path, self.settings(tmp_path, NAME))
        found = await findings(check_peers.certificates, config, now=time.time() + 3 * 86_400)
        assert "expired on" in only(found, "smtp.tls_cert").text

    @pytest.mark.parametrize(("name", "level"), [("*.track.test", OK), ("track.test", WARN), ("*.test", WARN)])
    async def test_the_name_must_be_ours(self, tmp_path: Path, name: str, level: str) -> None:
        config = configured(tmp_path, self.settings(tmp_path, name))
        found = await findings(check_peers.certificates, config, now=time.time() - 30 * 86_400)
        assert only(found, "smtp.tls_cert").level == level

    async def test_one_without_names_names_nobody(self, tmp_path: Path) -> None:
        made = Certificate.make(tmp_path, NAME)
        settings = {"smtp": {"tls_cert": str(made.authority), "tls_key": str(made.key)}}
        found = await findings(check_peers.certificates, configured(tmp_path, settings))
        assert only(found, "smtp.tls_cert").level == FAIL  # not the key of this one

    async def test_files_that_are_none_have_failed(self, tmp_path: Path) -> None:
        settings = {"http": {"tls_cert": "no.pem", "tls_key": "no.key"}}
        found = await findings(check_peers.certificates, configured(tmp_path, settings))
        assert only(found, "http.tls_cert").level == FAIL

    async def test_a_server_that_all_the_world_reaches_should_have_one(self, tmp_path: Path) -> None:
        found = await findings(check_peers.certificates, configured(tmp_path, {"smtp": {"listen": ["0.0.0.0:2525"]}}))
        assert only(found, "smtp.tls_cert").level == WARN
        assert await findings(check_peers.certificates, configured(tmp_path)) == []


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
        assert "1 more domains" in [finding for finding in found if finding.what == "MX"][0].text


class TestNextHops:
    async def asked(self, tmp_path: Path, next_hop: str, **settings: Any) -> list[Finding]:
        wanted = merged({"forward": {"next_hop": next_hop}, "site": [example_site()]}, settings)
        return await findings(check_peers.next_hops, configured(tmp_path, wanted))

    async def test_it_is_asked_for_every_real_address_and_gets_no_mail(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink:
            found = await self.asked(tmp_path, f"smtp://{sink.address}")
            assert {finding.level for finding in found} == {OK}
            assert ["RCPT operator@example.test: 250", "RCPT sales@example.test: 250"] == [
                finding.text.partition(": ")[2].rpartition("250")[0] + "250" for finding in found
            ]
            assert "DATA" not in [command.upper() for command in sink.commands]
            assert sink.messages == []

    async def test_a_login_is_tried(self, tmp_path: Path) -> None:
        async with SmtpSink(logins={"relay": "right"}) as sink:
            port = sink.address.rpartition(":")[2]
            good = await self.asked(tmp_path, f"smtp://relay:right@127.0.0.1:{port}")
            bad = await self.asked(tmp_path, f"smtp://relay:wr0ngpass@127.0.0.1:{port}")
        assert {finding.level for finding in good} == {OK}
        assert [finding.level for finding in bad] == [FAIL]
        assert "AUTH" in bad[0].text
        assert "wr0ngpass" not in str(bad)

    @pytest.mark.parametrize(
        ("script", "level"),
        [
            ({"rcpt": "450 4.2.0 greylisted"}, WARN),
            ({"rcpt": "554 5.7.1 relay access denied"}, FAIL),
            ({"mail": "530 5.7.0 authentication required"}, FAIL),
            ({"rcpt": Close()}, FAIL),
            ({"connect": "554 go away"}, FAIL),
        ],
    )
    async def test_its_answer_is_shown(self, tmp_path: Path, script: dict[str, Any], level: str) -> None:
        async with SmtpSink(script=script) as sink:
            found = await self.asked(tmp_path, f"smtp://{sink.address}")
        assert {finding.level for finding in found} == {level}
        said = next(iter(script.values()))
        assert not isinstance(said, str) or all(said in finding.text for finding in found)

    async def test_one_that_does_not_answer_has_failed(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        (finding,) = await self.asked(tmp_path, f"smtp://127.0.0.1:{port}")
        assert (finding.level, "Connection refused" in finding.text) == (FAIL, True)

    async def test_a_certificate_is_verified_where_tls_is_required(self, tmp_path: Path) -> None:
        async with SmtpSink(tls=Certificate.make(tmp_path, "127.0.0.1")) as sink:
            (finding,) = await self.asked(tmp_path, f"smtp+starttls://{sink.address}")
        assert (finding.level, "certificate not trusted" in finding.text) == (FAIL, True)

    async def test_without_one_the_mx_of_every_address_is_asked(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink, DnsServer({("example.test", "MX"): ["10 localhost."]}) as dns:
            settings = {
                "dns": {"nameservers": [dns.address], "timeout": "1s"},
                "forward": {"mx_port": int(sink.address.rpartition(":")[2])},
            }
            found = await self.asked(tmp_path, "", **settings)
            assert {(finding.level, finding.what) for finding in found} == {(OK, "MX of example.test")}

    @pytest.mark.parametrize("table", [{}, {("example.test", "MX"): ["0 ."]}])
    async def test_a_domain_that_takes_no_mail_has_failed(self, tmp_path: Path, table: Table) -> None:
        async with DnsServer(table) as dns:
            found = await self.asked(tmp_path, "", dns={"nameservers": [dns.address], "timeout": "1s"})
        assert [finding.level for finding in found] == [FAIL]

    async def test_of_very_many_the_first_are_tried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(check_peers, "MOST_HOPS", 1)
        site = example_site()
        async with SmtpSink() as sink:
            site["target"][0]["next_hop"] = f"smtp://{sink.address}"
            found = await self.asked(tmp_path, f"smtp://localhost:{sink.address.rpartition(':')[2]}", site=[site])
        assert found[-1].text == "1 more next hops were not tried"


class TestWebhooks:
    async def asked(self, tmp_path: Path, url: str, *, private: bool = True, enabled: bool = True) -> Finding:
        site = example_site(webhook=[{"url": url, "secret": SECRET, "enabled": enabled}])
        settings = {"webhooks": {"allow_private_addresses": private}, "site": [site]}
        (finding,) = await findings(check_peers.webhooks, configured(tmp_path, settings))
        assert finding.level == OK or finding.hint
        return finding

    async def test_one_that_answers_is_good_and_gets_no_post(self, tmp_path: Path) -> None:
        async with Receiver() as crm:
            finding = await self.asked(tmp_path, crm.url)
            assert finding.level == OK
            assert crm.posts == []

    async def test_its_path_is_not_shown_for_it_may_be_a_secret(self, tmp_path: Path) -> None:
        async with Receiver() as crm:
            finding = await self.asked(tmp_path, crm.at("/hook/S3cret"))
        assert "S3cret" not in str(finding)

    async def test_a_private_address_is_refused_by_the_guard(self, tmp_path: Path) -> None:
        async with Receiver() as crm:
            finding = await self.asked(tmp_path, crm.url, private=False)
        assert (finding.level, "not a public one" in finding.text) == (FAIL, True)

    async def test_one_that_is_not_there_has_failed(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        assert (await self.asked(tmp_path, f"http://127.0.0.1:{port}/")).level == FAIL

    async def test_one_that_closes_or_is_silent_has_failed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check_peers, "WEBHOOK_TIMEOUT", 0.2)
        gone = asyncio.Event()

        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.readuntil(b"\r\n\r\n")
            if b"/silent" in request:
                await gone.wait()
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            for path, text in (("", "ServerDisconnectedError"), ("silent", "no answer in 0.2 s")):
                finding = await self.asked(tmp_path, f"http://127.0.0.1:{port}/{path}")
                assert (finding.level, text in finding.text) == (FAIL, True)
        finally:
            gone.set()
            server.close()
            await server.wait_closed()

    async def test_a_certificate_that_is_not_trusted_has_failed(self, tmp_path: Path) -> None:
        context = Certificate.make(tmp_path, "127.0.0.1").server_context()
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        try:
            finding = await self.asked(tmp_path, f"https://127.0.0.1:{port}/")
        finally:
            server.close()
            await server.wait_closed()
        assert (finding.level, "not trusted" in finding.text) == (FAIL, True)

    async def test_redirects_and_failures_are_warnings(self, tmp_path: Path) -> None:
        for answer in (redirect("http://127.0.0.1/elsewhere"), 503):
            async with Receiver(answer) as crm:
                assert (await self.asked(tmp_path, crm.url)).level in (OK, WARN)

    async def test_a_disabled_one_is_a_warning_and_left_alone(self, tmp_path: Path) -> None:
        finding = await self.asked(tmp_path, "http://127.0.0.1:9/", enabled=False)
        assert (finding.level, "disabled" in finding.text) == (WARN, True)


class TestCommand:
    def settings(self, sink: SmtpSink, dns: DnsServer) -> dict[str, Any]:
        return {
            "forward": {"next_hop": f"smtp://{sink.address}"},
            "dns": {"nameservers": [dns.address], "timeout": "1s"},
            "site": [example_site()],
        }

    async def test_beside_the_daemon_it_tests_the_sites_of_the_database_too(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink, DnsServer(GOOD) as dns, Daemon(tmp_path, self.settings(sink, dns)) as daemon:
            words = ("target", "add", "shop", "sales@shop.test", "--domain", "track.shop.test", "--next-hop")
            for arguments in (
                ("site", "add", "shop", "--origin", "https://www.shop.test"),
                (*words, f"smtp://{sink.address}"),
                ("webhook", "add", "shop", "http://127.0.0.1:9/"),
            ):
                done = await asyncio.to_thread(daemon.cli, *arguments)
                assert done.returncode == 0, done.stderr
            result = await asyncio.to_thread(daemon.cli, "check", "--json")
            found = {(finding["what"], finding["level"]) for finding in json.loads(result.stdout)}
            text = result.stdout
        assert result.returncode == 1
        assert {("daemon", OK), ("database", OK), (MX, OK), ("webhook of shop", FAIL)} <= found
        assert "sales@shop.test: 250" in text
        assert ("MX of track.shop.test", WARN) in found

    async def test_warnings_alone_are_no_failure_and_every_line_says_what_to_do(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink, DnsServer(without((NAME, "A"))) as dns:
            daemon = Daemon(tmp_path, self.settings(sink, dns))
            result = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(daemon.config)])
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

        monkeypatch.setattr(check, "PATIENCE", 0.05)
        monkeypatch.setattr(check_dns, "names", stuck)
        monkeypatch.setattr(check_peers, "next_hops", broken)
        found = await check.run(configured(tmp_path))
        assert only(found, "stuck").text == "took longer than 0.05 seconds"
        assert [finding.text for finding in found if finding.what == "broken"] == ["could not be checked: no network"]

    async def test_a_sealed_next_hop_without_its_key_has_failed(self, tmp_path: Path) -> None:
        daemon = Daemon(tmp_path)
        for arguments in (
            ("site", "add", "shop", "--origin", "https://www.shop.test"),
            ("target", "add", "shop", "a@shop.test", "--domain", "t.shop.test", "--next-hop", "smtp://127.0.0.1:9"),
        ):
            done = await asyncio.to_thread(daemon.cli, *arguments)
            assert done.returncode == 0, done.stderr
        (daemon.data_dir / "keys" / "seal.key").unlink()
        _, problems = await gather(configured(tmp_path), time.time())
        assert "seal.key is missing" in problems[0].text
        assert not (daemon.data_dir / "keys" / "seal.key").exists()
