"""Where mail is handed on to: the MX of the real address, or the next hop of its target, with TLS and login."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.certificates import Certificate
from tests.dns_server import DnsServer, Fault, Table
from tests.scenarios.world import DOMAIN, World, site, target, unique_letter, world
from tests.smtp_sink import Received, SmtpSink

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Net:
    """``first`` and ``second`` listen on one port of different addresses, as the hosts of one domain do.

    ``login`` and ``implicit`` have a certificate for localhost that the daemon trusts, ``stranger`` one it does not.
    """

    relay: World
    dns: DnsServer
    first: SmtpSink
    second: SmtpSink
    login: SmtpSink
    implicit: SmtpSink
    stranger: SmtpSink

    async def send(self, local: str) -> tuple[int, bytes]:
        content = unique_letter()
        return await self.relay.mail(f"{local}@{DOMAIN}", content), content

    async def reaches(self, local: str, sink: SmtpSink) -> Received:
        _, content = await self.send(local)
        (received,) = await self.relay.arrived(content, at=sink)
        return received

    async def is_deferred(self, local: str, *reasons: str) -> None:
        message, _ = await self.send(local)
        entry = await self.relay.forwarded(message, "deferred")
        assert all(reason in entry["answer"] for reason in reasons), entry


def table(first: str, second: str) -> Table:
    return {
        ("pref.test", "MX"): ["20 second.mx.test.", "10 first.mx.test."],
        ("fall.test", "MX"): ["10 dead.mx.test.", "20 nowhere.mx.test.", "30 second.mx.test."],
        ("aonly.test", "A"): [second],
        ("null.test", "MX"): ["0 ."],
        ("broken.test", "MX"): Fault.SERVFAIL,
        ("broken.test", "A"): [first],
        ("self.test", "MX"): ["10 mx.track.test.", "20 second.mx.test."],
        ("first.mx.test", "A"): [first],
        ("second.mx.test", "A"): [second],
        ("dead.mx.test", "A"): ["127.0.1.9"],
    }


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Net]:
    directory = tmp_path_factory.mktemp("hops")
    trusted = Certificate.make(directory, "localhost")
    unknown = Certificate.make(tmp_path_factory.mktemp("stranger"), "localhost")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(SmtpSink(host="127.0.1.1"))
        second = await stack.enter_async_context(SmtpSink(host="127.0.1.2", port=first.port))
        login = await stack.enter_async_context(SmtpSink(tls=trusted, logins={"relay": "p@ss word"}))
        implicit = await stack.enter_async_context(SmtpSink(tls=trusted, implicit=True))
        stranger = await stack.enter_async_context(SmtpSink(tls=unknown))
        dns = await stack.enter_async_context(DnsServer(table(first.host, second.host)))
        hops = {
            "own": f"smtp://{second.address}",
            "login": f"smtp+starttls://relay:p%40ss%20word@localhost:{login.port}",
            "wrong": f"smtp+starttls://relay:opensesame@localhost:{login.port}",
            "implicit": f"smtps://localhost:{implicit.port}",
            "stranger": f"smtp+starttls://localhost:{stranger.port}",
            "misnamed": f"smtp+starttls://127.0.0.1:{login.port}",
            "careless": f"smtp://{stranger.address}",
            "plain": f"smtp+starttls://{first.address}",
        }
        by_mx = ("pref", "fall", "aonly", "null", "broken", "missing", "self")
        targets = [target(f"{name}@{name}.test", "plus") for name in by_mx]
        targets += [target(f"{name}@hop.test", "plus", next_hop=url) for name, url in hops.items()]
        settings = {
            "forward": {"next_hop": "", "mx_port": first.port},
            "dns": {"nameservers": [dns.address], "timeout": "5s"},
        }
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SSL_CERT_FILE", str(trusted.authority))  # the only authority that the daemon knows
        relay = await stack.enter_async_context(world(directory, settings, sites=[site(*targets)]))
        yield Net(relay, dns, first, second, login, implicit, stranger)


async def test_the_preferred_mx_gets_the_mail(net: Net) -> None:
    received = await net.reaches("pref", net.first)
    assert received.recipients == ["pref@pref.test"]


async def test_the_next_mx_gets_the_mail_when_the_preferred_ones_are_dead_or_unknown(net: Net) -> None:
    await net.reaches("fall", net.second)


async def test_a_domain_without_mx_gets_its_mail_at_its_address(net: Net) -> None:
    await net.reaches("aonly", net.second)


async def test_a_domain_that_takes_no_mail_defers_with_the_reason(net: Net) -> None:
    await net.is_deferred("null", "DNS", "null MX")


async def test_a_name_server_that_fails_defers_and_no_address_is_tried_instead(net: Net) -> None:
    sessions = net.first.sessions
    await net.is_deferred("broken", "DNS", "SERVFAIL")
    assert net.first.sessions == sessions


async def test_a_domain_that_does_not_exist_defers_with_the_reason(net: Net) -> None:
    await net.is_deferred("missing", "DNS", "does not exist")


async def test_a_domain_whose_best_mx_we_are_defers_instead_of_mailing_itself(net: Net) -> None:
    await net.is_deferred("self", "this host itself")


async def test_a_target_with_a_next_hop_of_its_own_uses_that(net: Net) -> None:
    before = len(net.dns.queries)
    await net.reaches("own", net.second)
    assert net.dns.queries[before:] == []


async def test_a_login_is_made_over_verified_tls_only(net: Net) -> None:
    received = await net.reaches("login", net.login)
    assert (received.tls, received.user) == (True, "relay")


async def test_a_wrong_password_defers_and_stands_in_no_log_and_no_file(net: Net) -> None:
    await net.is_deferred("wrong", "AUTH", "535")
    assert "opensesame" not in str(net.relay.daemon.log)
    stored = [path.read_bytes() for path in net.relay.daemon.data_dir.rglob("*") if path.is_file()]
    assert not any(b"opensesame" in octets for octets in stored)


async def test_tls_from_the_start_is_verified_and_used(net: Net) -> None:
    assert (await net.reaches("implicit", net.implicit)).tls


async def test_a_certificate_of_an_unknown_authority_defers_with_the_reason(net: Net) -> None:
    await net.is_deferred("stranger", "TLS", "certificate")
    assert net.stranger.messages == []


async def test_a_certificate_for_another_name_defers_with_the_reason(net: Net) -> None:
    await net.is_deferred("misnamed", "TLS", "certificate")


async def test_required_tls_that_is_not_offered_defers_instead_of_sending_in_plain_text(net: Net) -> None:
    await net.is_deferred("plain", "STARTTLS")


async def test_where_tls_is_not_required_any_certificate_is_better_than_none(net: Net) -> None:
    assert (await net.reaches("careless", net.stranger)).tls


async def test_one_recipient_that_is_refused_is_held_and_the_others_get_the_mail(net: Net) -> None:
    net.first.script["rcpt"] = ["550 5.1.1 no such mailbox"]
    content = unique_letter()
    message = await net.relay.mail(f"pref@{DOMAIN}", content, f"aonly@{DOMAIN}")
    entry = await net.relay.forwarded(message, "failed")
    assert entry["answer"] == "RCPT: 550 5.1.1 no such mailbox"
    await net.relay.arrived(content, at=net.second)
    await net.relay.forwarded(message)
    assert (await net.relay.call("GET", f"/v1/messages/{message}"))["state"] == "failed"
