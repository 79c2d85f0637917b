"""TLS in its four kinds, and login, against a real server with a real certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from relay.core.model import Outcome, OutcomeKind
from relay.core.nexthop import NextHop, Tls
from relay.dns import Resolver
from relay.smtp_out import Content, Sender, Timeouts
from relay.smtp_out.handshake import Target
from tests.certificates import Certificate
from tests.dns_server import DnsServer
from tests.sending import BODY, sending
from tests.smtp_sink import Close, Hang, Script, SinkSession, SmtpSink, Step

BIG = b"From: a@ext.test\r\n\r\n" + b"big\r\n" * 400_000
HOST = "mail.example.com"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("tls"), HOST, "127.0.0.1")


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer({(HOST, "A"): ["127.0.0.1"], ("other.example.com", "A"): ["127.0.0.1"]}) as server:
        yield server


@pytest.fixture
async def sender(certificate: Certificate, dns: DnsServer) -> AsyncIterator[Sender]:
    async with sending(dns, verified=certificate.client_context()) as sender:
        yield sender


async def send(
    sender: Sender, sink: SmtpSink, tls: Tls, host: str = HOST, login: tuple[str, str] | None = None, body: bytes = BODY
) -> Outcome:
    user, password = login or (None, None)
    next_hop = NextHop(host, sink.port, tls, user, password)
    return await sender.send(next_hop, "example.com", "a@track.test", "b@example.com", Content(b"", len(body), body))


@pytest.mark.parametrize("host", [HOST, "127.0.0.1"])
@pytest.mark.parametrize("tls", ["opportunistic", "starttls", "implicit"])
async def test_mail_goes_encrypted_and_the_session_is_kept(
    certificate: Certificate, sender: Sender, tls: Tls, host: str
) -> None:
    async with SmtpSink(tls=certificate, implicit=tls == "implicit") as sink:
        for _ in range(2):
            outcome = await send(sender, sink, tls, host)
            assert outcome.kind is OutcomeKind.DELIVERED
        assert outcome.host == (f"{HOST}[127.0.0.1]:{sink.port}" if host == HOST else f"[127.0.0.1]:{sink.port}")
        assert [message.tls for message in sink.accepted] == [True, True]
        assert sink.sessions == 1
        assert sink.commands.count("EHLO mx.track.test") == (1 if tls == "implicit" else 2)


async def test_tls_none_ignores_starttls(certificate: Certificate, sender: Sender) -> None:
    async with SmtpSink(tls=certificate) as sink:
        assert (await send(sender, sink, "none")).kind is OutcomeKind.DELIVERED
        assert not sink.accepted[0].tls


async def test_large_mail_passes_through_tls(certificate: Certificate, sender: Sender) -> None:
    async with SmtpSink(tls=certificate) as sink:
        assert (await send(sender, sink, "starttls", body=BIG)).kind is OutcomeKind.DELIVERED
        assert sink.accepted[0].wire == BIG


async def test_opportunistic_tls_takes_any_certificate(certificate: Certificate, sender: Sender) -> None:
    async with SmtpSink(tls=certificate) as sink:
        assert (await send(sender, sink, "opportunistic", "other.example.com")).kind is OutcomeKind.DELIVERED
        assert sink.accepted[0].tls


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_certificate_for_another_name_is_refused(certificate: Certificate, sender: Sender, tls: Tls) -> None:
    async with SmtpSink(tls=certificate, implicit=tls == "implicit") as sink:
        outcome = await send(sender, sink, tls, "other.example.com")
        assert outcome.kind is OutcomeKind.TEMPORARY
        assert outcome.text.startswith("TLS: handshake: certificate not trusted: Hostname mismatch")
        assert sink.messages == []


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_certificate_of_an_unknown_authority_is_refused(tmp_path: Path, sender: Sender, tls: Tls) -> None:
    async with SmtpSink(tls=Certificate.make(tmp_path, HOST), implicit=tls == "implicit") as sink:
        outcome = await send(sender, sink, tls)
        assert (outcome.kind, outcome.code) == (OutcomeKind.TEMPORARY, None)
        assert "certificate not trusted" in outcome.text
        assert sink.messages == []


STARTTLS_FAILURES: Mapping[str, Step] = {
    "refused": "454 4.7.0 TLS not available",
    "refused for good": "554 5.7.3 no",
    "closed": Close(),
    "closed in the handshake": Close("220 go ahead"),
    "silent": Hang(),
    "not TLS": b"220 go ahead\r\n",
    "injected": b"220 go ahead\r\n250 2.0.0 injected\r\n",
    "injected in part": b"220 go ahead\r\n250",
}


@pytest.mark.parametrize("failure", STARTTLS_FAILURES)
async def test_required_starttls_that_fails_sends_nothing(
    certificate: Certificate, dns: DnsServer, failure: str
) -> None:
    script: dict[str, Script] = {"starttls": STARTTLS_FAILURES[failure]}
    timeouts = Timeouts(ehlo=0.1) if failure == "silent" else Timeouts(tls=0.1)
    async with (
        SmtpSink(tls=certificate, script=script) as sink,
        sending(dns, verified=certificate.client_context(), timeouts=timeouts) as sender,
    ):
        outcome = await send(sender, sink, "starttls")
        assert outcome.kind is OutcomeKind.TEMPORARY
        assert outcome.text.startswith("TLS: ")
        assert not any(command.startswith("MAIL") for command in sink.commands)
        if "injected" in failure:
            assert outcome.text == "TLS: the next hop sent data in clear before the TLS handshake"
        await sink.wait(lambda sink: sink.live == 0)
    assert sender.stats() == {"open": 0, "idle": 0}


@pytest.mark.parametrize("failure", [failure for failure in STARTTLS_FAILURES if failure != "silent"])
async def test_opportunistic_starttls_that_fails_is_followed_by_a_plain_connection(
    certificate: Certificate, dns: DnsServer, failure: str
) -> None:
    script: dict[str, Script] = {"starttls": STARTTLS_FAILURES[failure]}
    async with (
        SmtpSink(tls=certificate, script=script) as sink,
        sending(dns, verified=certificate.client_context(), timeouts=Timeouts(tls=0.1)) as sender,
    ):
        assert (await send(sender, sink, "opportunistic")).kind is OutcomeKind.DELIVERED
        assert not sink.accepted[0].tls
        assert sink.sessions == 2


def begin_and_hang(session: SinkSession, _: str) -> Step:
    session.say("220 go ahead")
    return Hang()


async def test_a_handshake_is_cut_when_the_sender_is_closed(
    monkeypatch: pytest.MonkeyPatch, certificate: Certificate, sender: Sender
) -> None:
    monkeypatch.setattr("relay.smtp_out.sender.QUIT_TIME", 0.05)

    async with SmtpSink(tls=certificate, script={"starttls": begin_and_hang}) as sink:
        running = asyncio.create_task(send(sender, sink, "starttls"))
        await sink.wait(lambda sink: "STARTTLS" in sink.commands)
        await sender.close()
        outcome = await running
        assert (outcome.kind, outcome.text) == (OutcomeKind.TEMPORARY, "TLS: the connection was cut")
        assert sender.stats() == {"open": 0, "idle": 0}


async def test_a_cancelled_handshake_leaves_nothing_behind(certificate: Certificate, sender: Sender) -> None:
    async with SmtpSink(tls=certificate, script={"starttls": begin_and_hang}) as sink:
        running = asyncio.create_task(send(sender, sink, "starttls"))
        await sink.wait(lambda sink: "STARTTLS" in sink.commands)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await sink.wait(lambda sink: sink.live == 0)
        assert sender.stats() == {"open": 0, "idle": 0}


async def test_required_starttls_that_is_not_offered_sends_nothing(sender: Sender) -> None:
    async with SmtpSink() as sink:
        outcome = await send(sender, sink, "starttls")
        assert (outcome.kind, outcome.text) == (
            OutcomeKind.TEMPORARY,
            "TLS: the next hop does not offer STARTTLS",
        )


async def test_a_plain_server_behind_implicit_tls_sends_nothing(certificate: Certificate, sender: Sender) -> None:
    async with SmtpSink() as sink:
        outcome = await send(sender, sink, "implicit")
        assert outcome.kind is OutcomeKind.TEMPORARY
        assert outcome.text.startswith("TLS: ")
        assert sink.messages == []


async def test_a_connection_lost_after_the_dot_is_ambiguous_in_tls_too(
    certificate: Certificate, sender: Sender
) -> None:
    async with SmtpSink(tls=certificate, script={"dot": Close()}) as sink:
        assert (await send(sender, sink, "starttls")).kind is OutcomeKind.AMBIGUOUS


@pytest.mark.parametrize("mechanisms", [["PLAIN", "LOGIN"], ["LOGIN"], ["CRAM-MD5", "plain"]])
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_login_is_done_inside_tls_once_a_session(
    certificate: Certificate, sender: Sender, tls: Tls, mechanisms: list[str]
) -> None:
    async with SmtpSink(
        tls=certificate, implicit=tls == "implicit", logins={"üser": "pässword"}, mechanisms=mechanisms
    ) as sink:
        for _ in range(2):
            assert (await send(sender, sink, tls, login=("üser", "pässword"))).kind is OutcomeKind.DELIVERED
        assert [(message.user, message.tls) for message in sink.accepted] == [("üser", True)] * 2
        assert sum(command.startswith("AUTH") for command in sink.commands) == 1


async def test_a_kept_session_is_for_its_own_login_only(certificate: Certificate, sender: Sender) -> None:
    logins = {"one": "first", "two": "second"}
    async with SmtpSink(tls=certificate, implicit=True, logins=logins) as sink:
        for login in [*logins.items()] * 2:
            assert (await send(sender, sink, "implicit", login=login)).kind is OutcomeKind.DELIVERED
        assert (await send(sender, sink, "implicit", login=("one", "wrong"))).text == "AUTH: 535 5.7.8 bad login"
        assert [message.user for message in sink.accepted] == ["one", "two"] * 2
        assert sink.sessions == 3


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
async def test_a_refused_login_is_temporary(certificate: Certificate, sender: Sender, mechanism: str) -> None:
    async with SmtpSink(tls=certificate, implicit=True, logins={"user": "right"}, mechanisms=[mechanism]) as sink:
        outcome = await send(sender, sink, "implicit", login=("user", "wrong"))
        assert (outcome.kind, outcome.text) == (OutcomeKind.TEMPORARY, "AUTH: 535 5.7.8 bad login")
        assert not any(command.startswith("MAIL") for command in sink.commands)


async def test_a_login_that_nobody_offers_is_temporary(certificate: Certificate, sender: Sender) -> None:
    async with SmtpSink(tls=certificate, implicit=True) as sink:
        outcome = await send(sender, sink, "implicit", login=("user", "pw"))
        assert outcome.text == "AUTH: the next hop offers nothing, and we know PLAIN and LOGIN"
    async with SmtpSink(tls=certificate, implicit=True, logins={"u": "p"}, mechanisms=["XOAUTH2", "NTLM"]) as sink:
        outcome = await send(sender, sink, "implicit", login=("user", "pw"))
        assert outcome.text == "AUTH: the next hop offers NTLM, XOAUTH2, and we know PLAIN and LOGIN"


async def test_the_old_spelling_of_auth_is_understood(certificate: Certificate, sender: Sender) -> None:
    ehlo = "250-sink.test\r\n250-\r\n250 AUTH=PLAIN"
    async with SmtpSink(tls=certificate, implicit=True, logins={"u": "p"}, script={"ehlo": ehlo}) as sink:
        assert (await send(sender, sink, "implicit", login=("u", "p"))).kind is OutcomeKind.DELIVERED


@pytest.mark.parametrize(
    "answer", ["421 bye", "454 4.7.0 later", "535 no", "334 more", Close(), Hang(), b"nonsense\r\n"]
)
async def test_any_trouble_with_a_login_is_temporary(certificate: Certificate, dns: DnsServer, answer: Step) -> None:
    async with (
        SmtpSink(tls=certificate, implicit=True, logins={"u": "p"}, script={"auth": answer}) as sink,
        sending(dns, verified=certificate.client_context(), timeouts=Timeouts(auth=0.1)) as sender,
    ):
        outcome = await send(sender, sink, "implicit", login=("u", "p"))
        assert outcome.kind is OutcomeKind.TEMPORARY
        assert outcome.text.startswith("AUTH: ")


async def test_a_password_that_the_server_quotes_never_reaches_the_outcome(
    certificate: Certificate, sender: Sender
) -> None:
    async with SmtpSink(
        tls=certificate,
        implicit=True,
        logins={"u": "p"},
        script={"auth": lambda _, line: f"501 5.5.4 cannot read {line!r} with sesame"},
    ) as sink:
        outcome = await send(sender, sink, "implicit", login=("user", "sesame"))
    assert outcome.text == "AUTH: 501 5.5.4 cannot read 'AUTH PLAIN ***' with ***"


def test_a_target_does_not_show_its_password() -> None:
    assert "sesame" not in repr(Target(HOST, "127.0.0.1", 465, "implicit", "user", "sesame"))


async def test_what_was_announced_before_tls_is_forgotten(certificate: Certificate, sender: Sender) -> None:
    before = "250-sink.test\r\n250-PIPELINING\r\n250-AUTH PLAIN\r\n250 STARTTLS"
    async with SmtpSink(tls=certificate, script={"ehlo": [before, "250 sink.test"]}) as sink:
        outcome = await send(sender, sink, "starttls", login=("u", "p"))
        assert outcome.text == "AUTH: the next hop offers nothing, and we know PLAIN and LOGIN"


def test_by_default_the_certificate_is_verified_and_opportunistic_tls_is_not() -> None:
    sender = Sender("mx.track.test", Resolver(["127.0.0.1:9"]))
    handshake = sender._handshake
    assert handshake._verified.verify_mode is ssl.CERT_REQUIRED
    assert handshake._verified.check_hostname
    assert handshake._opportunistic.verify_mode is ssl.CERT_NONE
