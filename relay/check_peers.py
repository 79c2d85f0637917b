"""What others will see of us and we of them: certificates, next hops as far as RCPT, webhooks as far as HEAD."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from relay.check_findings import FAIL, OK, WARN, Finding, Subject
from relay.core.model import Address
from relay.core.nexthop import NextHop
from relay.dns import DnsError, Resolver
from relay.smtp_out.connection import QUIT_TIME, NoReply
from relay.smtp_out.handshake import Handshake, NoSession, Target
from relay.smtp_out.session import Session, Timeouts
from relay.tls import TlsFiles
from webapi.guard import ForbiddenAddress, guarded_connector

#: Days before its end from which a certificate should have been renewed.
RENEW_BEFORE = 14
#: Next hops or domains, recipients at each, and webhooks that are tried.
MOST_HOPS = 20
MOST_RECIPIENTS = 20
MOST_WEBHOOKS = 50
#: Seconds to wait for an operator who is looking on; the daemon itself is more patient.
TIMEOUTS = Timeouts(connect=10, greeting=20, ehlo=20, tls=20, auth=20, mail=20, rcpt=30, reset=5)
WEBHOOK_TIMEOUT = 15.0


async def certificates(subject: Subject) -> list[Finding]:
    """Whether the certificates load, name this server, and are good for a while."""
    config, found = subject.config, []
    for section, files, name in (
        ("smtp", (config.smtp.tls_cert, config.smtp.tls_key), config.hostname),
        ("http", (config.http.tls_cert, config.http.tls_key), urlsplit(config.http.public_url).hostname or ""),
    ):
        cert, key = files
        if cert and key:
            found.append(await asyncio.to_thread(_certificate, subject, f"{section}.tls_cert", cert, key, name))
        elif section == "smtp" and subject.beyond_loopback:
            found.append(Finding(WARN, "smtp.tls_cert", "none: mail comes in clear", "set smtp.tls_cert and tls_key"))
    return found


def _certificate(subject: Subject, what: str, cert: Path, key: Path, name: str) -> Finding:
    try:
        TlsFiles(cert, key)
        certificate = x509.load_pem_x509_certificates(cert.read_bytes())[0]
    except ssl.SSLError as error:
        reason = error.reason or "not usable"
        return Finding(
            FAIL, what, f"{cert} with {key}: {reason}", "give the chain in PEM and the key that belongs to it"
        )
    except (OSError, ValueError) as error:
        return Finding(FAIL, what, f"{cert} with {key}: {error}", "make both readable for the daemon's user")
    ends = certificate.not_valid_after_utc
    left = (ends - datetime.fromtimestamp(subject.now, UTC)).days
    if left < 0:
        return Finding(FAIL, what, f"{cert} expired on {ends:%Y-%m-%d}", "renew it")
    if left < RENEW_BEFORE:
        return Finding(WARN, what, f"{cert} expires on {ends:%Y-%m-%d}", "see why it was not renewed")
    if not _names(certificate, name):
        return Finding(WARN, what, f"{cert} does not name {name}", f"get one for {name}")
    return Finding(OK, what, f"{cert}, good until {ends:%Y-%m-%d}")


def _names(certificate: x509.Certificate, name: str) -> bool:
    """Whether a client that looks for ``name`` would be content (RFC 9525 §6.3)."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return False
    assert isinstance(extension, x509.SubjectAlternativeName)
    named = {text.lower() for text in extension.get_values_for_type(x509.DNSName)}
    named |= {str(address) for address in extension.get_values_for_type(x509.IPAddress)}
    return name in named or f"*.{name.partition('.')[2]}" in named


async def next_hops(subject: Subject) -> list[Finding]:
    """A real conversation with everyone that mail is forwarded to, which ends before DATA."""
    config = subject.config
    resolver = Resolver([str(server) for server in config.dns.nameservers], timeout=config.dns.timeout)
    opportunistic = ssl.create_default_context()
    opportunistic.check_hostname = False
    opportunistic.verify_mode = ssl.CERT_NONE
    handshake = Handshake(config.hostname, TIMEOUTS, ssl.create_default_context(), opportunistic)
    talks = []
    for hop, recipients in subject.recipients.items():
        for domain in sorted({address.domain for address in recipients}) if hop is None else [""]:
            chosen = [address for address in recipients if hop is not None or address.domain == domain]
            talks.append(_talk(handshake, resolver, hop or _mx_of(domain, config.forward.mx_port), hop is None, chosen))
    left = talks[MOST_HOPS:]
    for talk in left:
        talk.close()
    found = [finding for findings in await asyncio.gather(*talks[:MOST_HOPS]) for finding in findings]
    if left:
        found.append(Finding(WARN, "next hop", f"{len(left)} more next hops were not tried"))
    if handshake.connections:
        await asyncio.wait({connection.closed for connection in handshake.connections}, timeout=2 * QUIT_TIME)
    return found


def _mx_of(domain: str, port: int) -> NextHop:
    """Whoever takes mail for ``domain``; its MX is looked up when it is tried."""
    return NextHop(domain, port, "opportunistic")


async def _talk(
    handshake: Handshake, resolver: Resolver, hop: NextHop, by_mx: bool, recipients: Sequence[Address]
) -> list[Finding]:
    what = f"MX of {hop.host}" if by_mx else f"next hop {hop.host}:{hop.port}"
    try:
        targets = await _targets(resolver, hop, by_mx)
    except DnsError as error:
        return [Finding(FAIL, what, str(error), "see that the name is right and DNS answers")]
    if not targets:
        return [Finding(FAIL, what, "has no address, or takes no mail", "see that the name is right")]
    problem = Finding(FAIL, what, "was not reached")
    for target in targets[:3]:
        try:
            session = await handshake.open(target)
        except NoSession as error:
            code = f"{error.code} " if error.code else ""
            text = f"{target.label}: {error.stage.value}: {code}{error.text}"
            problem = Finding(FAIL, what, text, "see that it runs, lets this host in, and that the login is right")
            continue
        try:
            return await _ask(session, what, recipients)
        except NoReply as error:
            problem = Finding(FAIL, what, f"{target.label}: {error}", "look at its log")
        finally:
            session.connection.quit()
    return [problem]


async def _targets(resolver: Resolver, hop: NextHop, by_mx: bool) -> list[Target]:
    hosts = (await resolver.mx(hop.host)).hosts if by_mx else (hop.host,)
    return [
        Target(host, address, hop.port, hop.tls, hop.user, hop.password)
        for host in hosts[:3]
        for address in await resolver.addresses(host)
    ]


async def _ask(session: Session, what: str, recipients: Sequence[Address]) -> list[Finding]:
    """MAIL and RCPT for each, then RSET. Raises NoReply."""
    connection, found = session.connection, []
    connection.write(b"MAIL FROM:<>\r\n")
    reply = await connection.reply(TIMEOUTS.mail)
    if reply.code // 100 != 2:
        hint = "it must take mail from this host, returns (the null sender) too"
        return [Finding(FAIL, what, f"{session.host}: MAIL: {reply.code} {reply.text}", hint)]
    for recipient in sorted(recipients, key=str)[:MOST_RECIPIENTS]:
        connection.write(f"RCPT TO:<{recipient}>\r\n".encode())
        reply = await connection.reply(TIMEOUTS.rcpt)
        text = f"{session.host}: RCPT {recipient}: {reply.code} {reply.text}"
        if reply.code // 100 == 2:
            found.append(Finding(OK, what, text))
        elif reply.code // 100 == 4:
            found.append(Finding(WARN, what, text, "greylisting passes by itself; otherwise look at its log"))
        else:
            found.append(Finding(FAIL, what, text, "it must take mail for this address from this host"))
    connection.write(b"RSET\r\n")
    await connection.reply(TIMEOUTS.reset)
    return found


async def webhooks(subject: Subject) -> list[Finding]:
    """Whether each receiver is reached, by the same guard as posts; HEAD, so that nothing happens there."""
    wanted = sorted(subject.webhooks.items())
    timeout = aiohttp.ClientTimeout(total=WEBHOOK_TIMEOUT)
    connector = guarded_connector(subject.config.webhooks.allow_private_addresses)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    ) as client:
        found = list(
            await asyncio.gather(*(_webhook(client, site, url, why) for (site, url), why in wanted[:MOST_WEBHOOKS]))
        )
    if len(wanted) > MOST_WEBHOOKS:
        found.append(Finding(WARN, "webhook", f"{len(wanted) - MOST_WEBHOOKS} more webhooks were not tried"))
    return found


async def _webhook(client: aiohttp.ClientSession, site: str, url: str, disabled: str | None) -> Finding:
    what = f"webhook of {site}"
    host = urlsplit(url).netloc  # not the whole URL: its path may be a secret
    if disabled is not None:
        return Finding(WARN, what, f"{host} is disabled: {disabled}", "relay webhook list, relay webhook enable ID")
    try:
        async with client.head(url, allow_redirects=False) as response:
            status = response.status
    except aiohttp.ClientConnectorCertificateError:
        return Finding(FAIL, what, f"{host}: its certificate is not trusted", "let its operator mend the certificate")
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, ForbiddenAddress):
            return Finding(FAIL, what, f"{host}: {error.os_error.strerror}", "see docs/configuration.md, [webhooks]")
        return Finding(FAIL, what, f"{host}: {error.os_error}", "see that the URL is right and its server runs")
    except TimeoutError:
        return Finding(FAIL, what, f"{host}: no answer in {WEBHOOK_TIMEOUT:g} s", "see that its server runs")
    except (aiohttp.ClientError, ValueError) as error:
        return Finding(FAIL, what, f"{host}: {type(error).__name__}", "see that the URL is right")
    if 300 <= status < 400:
        return Finding(WARN, what, f"{host}: redirects ({status}), which posts do not follow", "give the final URL")
    if status >= 500:
        return Finding(WARN, what, f"{host}: {status} to HEAD", "look at its log")
    return Finding(OK, what, f"{host}: reached ({status} to HEAD)")
