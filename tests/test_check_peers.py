"""`relay check` and others: certificates, next hops and webhooks, with real SMTP and HTTP servers on loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from relay import check_peers, check_tls
from relay.check_findings import FAIL, OK, WARN, Finding, gather
from relay.smtp_out.handshake import Target
from tests.certificates import Certificate
from tests.check_helpers import NAME, configured, findings, only
from tests.daemon import example_site, merged
from tests.dead_ends import SECRET
from tests.dns_server import DnsServer, Table
from tests.smtp_sink import Close, Hang, SmtpSink
from tests.webhook_receiver import Receiver, redirect


class TestCertificates:
    def settings(self, tmp_path: Path, *names: str) -> dict[str, Any]:
        made = Certificate.make(tmp_path, *names)
        return {"smtp": {"tls_cert": str(made.cert), "tls_key": str(made.key)}}

    async def test_one_that_names_us_is_good_for_a_while(self, tmp_path: Path) -> None:
        config = configured(tmp_path, self.settings(tmp_path, NAME))
        soon = only(await findings(check_tls.certificates, config), "smtp.tls_cert")
        assert (soon.level, "expires on" in soon.text) == (WARN, True)  # they last for a day
        earlier = await findings(check_tls.certificates, config, now=time.time() - 30 * 86_400)
        assert only(earlier, "smtp.tls_cert").level == OK

    async def test_one_that_has_expired_has_failed(self, tmp_path: Path) -> None:
        config = configured(tmp_path, self.settings(tmp_path, NAME))
        found = await findings(check_tls.certificates, config, now=time.time() + 3 * 86_400)
        assert "expired on" in only(found, "smtp.tls_cert").text

    @pytest.mark.parametrize(("name", "level"), [("*.track.test", OK), ("track.test", WARN), ("*.test", WARN)])
    async def test_the_name_must_be_ours(self, tmp_path: Path, name: str, level: str) -> None:
        config = configured(tmp_path, self.settings(tmp_path, name))
        found = await findings(check_tls.certificates, config, now=time.time() - 30 * 86_400)
        assert only(found, "smtp.tls_cert").level == level

    async def test_one_without_names_names_nobody(self, tmp_path: Path) -> None:
        made = Certificate.make(tmp_path, NAME)
        settings = {"smtp": {"tls_cert": str(made.authority), "tls_key": str(made.key)}}
        found = await findings(check_tls.certificates, configured(tmp_path, settings))
        assert only(found, "smtp.tls_cert").level == FAIL  # not the key of this one

    @pytest.mark.parametrize(("name", "doubt"), [(NAME, None), ("other.test", "other.test")])
    def test_a_client_that_verifies_takes_a_chain_of_an_authority_that_it_knows(
        self, tmp_path: Path, name: str, doubt: str | None
    ) -> None:
        made = Certificate.make(tmp_path, NAME)
        found = check_tls.distrust(made.cert, made.key, name, made.client_context())
        assert found == doubt or (doubt is not None and found is not None and doubt in found)
        assert "issuer" in str(check_tls.distrust(made.cert, made.key, NAME))

    async def test_browsers_must_trust_the_one_for_http_and_senders_of_mail_may_not_care(self, tmp_path: Path) -> None:
        files = self.settings(tmp_path, NAME)["smtp"]
        config = configured(tmp_path, {"smtp": files, "http": files | {"public_url": f"https://{NAME}"}})
        found = await findings(check_tls.certificates, config, now=time.time() - 30 * 86_400)
        assert [(finding.what, finding.level) for finding in found] == [("smtp.tls_cert", OK), ("http.tls_cert", WARN)]
        assert all("issuer" in finding.text for finding in found)

    async def test_files_that_are_none_have_failed(self, tmp_path: Path) -> None:
        settings = {"http": {"tls_cert": "no.pem", "tls_key": "no.key"}}
        found = await findings(check_tls.certificates, configured(tmp_path, settings))
        assert only(found, "http.tls_cert").level == FAIL

    async def test_a_server_that_all_the_world_reaches_should_have_one(self, tmp_path: Path) -> None:
        found = await findings(check_tls.certificates, configured(tmp_path, {"smtp": {"listen": ["0.0.0.0:2525"]}}))
        assert only(found, "smtp.tls_cert").level == WARN
        assert await findings(check_tls.certificates, configured(tmp_path)) == []

    @pytest.mark.parametrize(
        ("http", "expected"),
        [
            ({"public_url": f"https://{NAME}"}, [("http.trusted_proxies", WARN)]),
            ({"public_url": f"https://{NAME}", "trusted_proxies": ["127.0.0.1/32"]}, []),
            ({"public_url": f"http://{NAME}"}, []),
        ],
    )
    async def test_who_speaks_https_in_front_of_us_must_be_named(
        self, tmp_path: Path, http: dict[str, Any], expected: list[tuple[str, str]]
    ) -> None:
        found = await findings(check_tls.certificates, configured(tmp_path, {"http": http}))
        assert [(finding.what, finding.level) for finding in found] == expected

    @pytest.mark.parametrize(
        ("settings", "levels"),
        [
            ({"smtp": {"listen": ["0.0.0.0:2525"]}}, [FAIL]),
            ({"smtp": {"listen": ["0.0.0.0:2525"]}, "http": {"public_url": "http://localhost/mail"}}, [FAIL]),
            ({"smtp": {"listen": ["0.0.0.0:2525"]}, "http": {"public_url": f"https://{NAME}"}}, []),
            ({"site": [example_site()]}, []),
            ({"site": [example_site()], "http": {"public_url": f"http://{NAME}"}}, [WARN]),
            ({"site": [example_site()], "http": {"public_url": f"https://{NAME}"}}, []),
            (
                {
                    "site": [example_site(origins=["http://www.example.test"])],
                    "http": {"public_url": f"http://{NAME}"},
                },
                [],
            ),
        ],
    )
    async def test_the_public_address_must_be_one_that_browsers_use(
        self, tmp_path: Path, settings: dict[str, Any], levels: list[str]
    ) -> None:
        found = await findings(check_tls.certificates, configured(tmp_path, settings))
        about = [finding for finding in found if finding.what == "http.public_url"]
        assert [finding.level for finding in about] == levels
        assert all(finding.hint for finding in about)


class TestNextHops:
    async def asked(self, tmp_path: Path, next_hop: str, **settings: Any) -> list[Finding]:
        wanted = merged({"forward": {"next_hop": next_hop}, "site": [example_site()]}, settings)
        return await findings(check_peers.next_hops, configured(tmp_path, wanted))

    async def test_it_is_asked_for_every_real_address_and_gets_no_mail(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink:
            found = await self.asked(tmp_path, f"smtp://{sink.address}")
            assert {finding.level for finding in found} == {OK}
            assert all("250" in finding.text for finding in found)
            assert [finding.text.split()[2] for finding in found] == ["operator@example.test:", "sales@example.test:"]
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

    @pytest.mark.parametrize("level", [OK, FAIL])
    async def test_an_address_beyond_ascii_needs_smtputf8(self, tmp_path: Path, level: str) -> None:
        site = example_site()
        site["target"][0]["forward_to"] = "büro@example.test"
        async with SmtpSink(extensions=["SMTPUTF8"] if level == OK else []) as sink:
            found = await self.asked(tmp_path, f"smtp://{sink.address}", site=[site])
        (finding,) = [finding for finding in found if "büro" in finding.text]
        assert (finding.level, "SMTPUTF8" in finding.text) == (level, level == FAIL)
        assert {finding.level for finding in found if "büro" not in finding.text} == {OK}

    async def test_one_that_does_not_answer_has_failed(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        (finding,) = await self.asked(tmp_path, f"smtp://127.0.0.1:{port}")
        assert (finding.level, "Connection refused" in finding.text) == (FAIL, True)

    async def test_it_is_said_whether_mail_would_be_encrypted(self, tmp_path: Path) -> None:
        domain = {("example.test", "MX"): ["10 localhost."]}
        for tls, words in ((Certificate.make(tmp_path, "localhost"), "(TLSv1.3)"), (None, "(in clear)")):
            async with SmtpSink(tls=tls) as sink, DnsServer(domain) as dns:
                port = int(sink.address.rpartition(":")[2])
                settings = {"dns": {"nameservers": [dns.address]}, "forward": {"mx_port": port}}
                found = await self.asked(tmp_path, "", **settings)
            assert {(finding.level, finding.text.endswith(words)) for finding in found} == {(OK, True)}

    @pytest.mark.parametrize(
        ("address", "encryption", "warned"),
        [("93.184.216.34", None, True), ("93.184.216.34", "TLSv1.3", False), ("10.0.0.1", None, False)],
    )
    def test_mail_in_clear_over_the_internet_is_warned_of(
        self, address: str, encryption: str | None, warned: bool
    ) -> None:
        found = check_peers.in_clear("next hop", Target("mail.test", address, 25, "opportunistic"), encryption)
        assert [finding.level for finding in found] == [WARN] * warned

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

    async def test_a_domain_whose_mx_is_this_host_itself_has_failed(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink, DnsServer({("example.test", "MX"): [f"10 {NAME}.", "20 localhost."]}) as dns:
            settings = {
                "dns": {"nameservers": [dns.address], "timeout": "1s"},
                "forward": {"mx_port": int(sink.address.rpartition(":")[2])},
            }
            (finding,) = await self.asked(tmp_path, "", **settings)
        assert (finding.level, "this host itself" in finding.text) == (FAIL, True)
        assert sink.sessions == 0  # forwarding does not try those behind it either

    async def test_one_that_says_nothing_hides_nothing_of_the_others(self, tmp_path: Path) -> None:
        async with SmtpSink() as sink, SmtpSink(script={"connect": Hang()}) as silent:
            site = example_site()
            site["target"][0]["next_hop"] = f"smtp://{silent.address}"
            settings = {"forward": {"next_hop": f"smtp://{sink.address}"}, "site": [site]}
            subject, _ = await gather(configured(tmp_path, settings), time.time(), patience=1.5)
            found = await check_peers.next_hops(subject)
        assert only(found, f"next hop {silent.address}").text == "did not come as far as RCPT in 1.2 s"
        assert only(found, f"next hop {sink.address}").level == OK

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

    async def test_one_that_answers_is_good_and_is_only_asked_with_head(self, tmp_path: Path) -> None:
        async with Receiver() as crm:
            finding = await self.asked(tmp_path, crm.url)
            assert finding.level == OK
            assert [post.method for post in crm.posts] == ["HEAD"]

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
        finding = await self.asked(tmp_path, f"http://127.0.0.1:{port}/")
        assert (finding.level, finding.text) == (FAIL, f"127.0.0.1:{port}: Connection refused")

    async def test_one_that_closes_or_is_silent_has_failed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check_peers, "WEBHOOK_TIMEOUT", 0.8)
        gone = asyncio.Event()

        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.readuntil(b"\r\n\r\n")
            if b"/silent" in request:
                await gone.wait()
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            for path, text in (("", "ServerDisconnectedError"), ("silent", "no answer in 0.8 s")):
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
                assert (await self.asked(tmp_path, crm.url)).level == WARN

    async def test_a_disabled_one_is_a_warning_and_left_alone(self, tmp_path: Path) -> None:
        finding = await self.asked(tmp_path, "http://127.0.0.1:9/", enabled=False)
        assert (finding.level, "disabled" in finding.text) == (WARN, True)
