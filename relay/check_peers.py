"""What we see of others: next hops as far as RCPT, webhooks as far as HEAD."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import ip_address
from urllib.parse import urlsplit

import aiohttp

from relay import eventloop
from relay.check_findings import FAIL, OK, WARN, Finding, Subject
from relay.core.model import Address
from relay.core.nexthop import NextHop
from relay.dns import DnsError, Resolver, configured
from relay.smtp_out.connection import QUIT_TIME, NoReply
from relay.smtp_out.handshake import Handshake, NoSession, Target, unverified
from relay.smtp_out.sender import mx_hosts
from relay.smtp_out.session import NO_SMTPUTF8, Session, Timeouts
from webapi.guard import ForbiddenAddress, guarded_connector

#: Next hops or domains, recipients at each, and webhooks that are tried.
MOST_HOPS = 20
MOST_RECIPIENTS = 20
MOST_WEBHOOKS = 50
#: Seconds to wait for an operator who is looking on; the daemon itself is more patient.
TIMEOUTS = Timeouts(connect=10, greeting=20, ehlo=20, tls=20, auth=20, mail=20, rcpt=30, reset=5)
WEBHOOK_TIMEOUT = 15.0
#: Of a check's time, what one of its next hops may take.
SHARE = 0.8


async def next_hops(subject: Subject) -> list[Finding]:
    """A real conversation with everyone that mail is forwarded to, which ends before DATA."""
    config = subject.config
    resolver = configured(config.dns)
    verified = await asyncio.to_thread(ssl.create_default_context)  # reads every authority of the system
    handshake = Handshake(config.hostname, TIMEOUTS, verified, unverified())
    talks = []
    for hop, recipients in subject.recipients.items():
        for domain in sorted({address.domain for address in recipients}) if hop is None else [""]:
            chosen = [address for address in recipients if hop is not None or address.domain == domain]
            where = hop or _mx_of(domain, config.forward.mx_port)
            ask = partial(_talk, handshake, resolver, config.hostname, where, hop is None, chosen)
            talks.append(_in_time(subject, _named(where, hop is None), ask))
    left = talks[MOST_HOPS:]
    for talk in left:
        talk.close()
    found = [finding for findings in await asyncio.gather(*talks[:MOST_HOPS]) for finding in findings]
    if left:
        text = f"{len(left)} more next hops were not tried"
        found.append(
            Finding(WARN, "next hop", text, f"look at the queue for these; only {MOST_HOPS} are tried at once")
        )
    if handshake.connections:
        await asyncio.wait({connection.closed for connection in handshake.connections}, timeout=2 * QUIT_TIME)
    return found


async def _in_time(subject: Subject, what: str, talk: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    """A server that says nothing must not hide what the others have said."""
    seconds = subject.patience * SHARE
    try:
        async with asyncio.timeout(seconds):
            return await talk()
    except TimeoutError:
        hint = "see that host and port are right, and that no firewall swallows the connection"
        return [Finding(FAIL, what, f"did not come as far as RCPT in {seconds:g} s", hint)]


def _named(hop: NextHop, by_mx: bool) -> str:
    return f"MX of {hop.host}" if by_mx else f"next hop {hop.host}:{hop.port}"


def _mx_of(domain: str, port: int) -> NextHop:
    """Whoever takes mail for ``domain``; its MX is looked up when it is tried."""
    return NextHop(domain, port, "opportunistic")


async def _talk(
    handshake: Handshake,
    resolver: Resolver,
    hostname: str,
    hop: NextHop,
    by_mx: bool,
    recipients: Sequence[Address],
) -> list[Finding]:
    what = _named(hop, by_mx)
    try:
        hosts = await mx_hosts(resolver, hop.host, hostname) if by_mx else [hop.host]
        targets = await _targets(resolver, hop, hosts)
    except DnsError as error:
        return [Finding(FAIL, what, str(error), "see that the name is right and DNS answers")]
    if not targets:
        return [Finding(FAIL, what, "has no address", "see that the name is right")]
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
            return [*await _ask(session, what, recipients), *in_clear(what, target, session.connection.encryption)]
        except NoReply as error:
            problem = Finding(FAIL, what, f"{target.label}: {error}", "look at its log")
        finally:
            session.connection.quit()
    return [problem]


def in_clear(what: str, target: Target, encryption: str | None) -> list[Finding]:
    """A warning where mail would cross the internet for everybody to read."""
    if encryption is not None or not ip_address(target.address).is_global:
        return []
    text = f"{target.label}: mail goes there in clear, for it offers no STARTTLS"
    return [Finding(WARN, what, text, "let it offer STARTTLS; smtp+starttls:// then insists on it")]


async def _targets(resolver: Resolver, hop: NextHop, hosts: Sequence[str]) -> list[Target]:
    return [
        Target(host, address, hop.port, hop.tls, hop.user, hop.password)
        for host in hosts[:3]
        for address in await resolver.addresses(host)
    ]


async def _ask(session: Session, what: str, recipients: Sequence[Address]) -> list[Finding]:
    """MAIL and RCPT for each, then RSET. Raises NoReply."""
    connection, found = session.connection, []
    spoken = connection.encryption or "in clear"
    chosen = sorted(recipients, key=str)[:MOST_RECIPIENTS]
    is_international = any(not str(recipient).isascii() and session.takes(str(recipient)) for recipient in chosen)
    connection.write(b"MAIL FROM:<> SMTPUTF8\r\n" if is_international else b"MAIL FROM:<>\r\n")
    reply = await connection.reply(TIMEOUTS.mail)
    if reply.code // 100 != 2:
        hint = "it must take mail from this host, returns (the null sender) too"
        return [Finding(FAIL, what, f"{session.host}: MAIL: {reply.code} {reply.text}", hint)]
    for recipient in chosen:
        if not session.takes(str(recipient)):
            text = f"{session.host}: {recipient}: {NO_SMTPUTF8}"
            found.append(Finding(FAIL, what, text, "switch it on there, or forward to an address in ASCII"))
            continue
        connection.write(f"RCPT TO:<{recipient}>\r\n".encode())
        reply = await connection.reply(TIMEOUTS.rcpt)
        text = f"{session.host}: RCPT {recipient}: {reply.code} {reply.text}"
        if reply.code // 100 == 2:
            found.append(Finding(OK, what, f"{text} ({spoken})"))
        elif reply.code // 100 == 4:
            found.append(Finding(WARN, what, text, "greylisting passes by itself; otherwise look at its log"))
        else:
            found.append(Finding(FAIL, what, text, "it must take mail for this address from this host"))
    connection.write(b"RSET\r\n")
    await connection.reply(TIMEOUTS.reset)
    return found


async def webhooks(subject: Subject) -> list[Finding]:
    """Whether each receiver is reached, by the same guard as posts; HEAD, so that nothing happens there."""
    return await eventloop.apart(lambda: _webhooks(subject))


async def _webhooks(subject: Subject) -> list[Finding]:
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
        text = f"{len(wanted) - MOST_WEBHOOKS} more webhooks were not tried"
        found.append(Finding(WARN, "webhook", text, f"test these by hand; only {MOST_WEBHOOKS} are tried at once"))
    return found


async def _webhook(client: aiohttp.ClientSession, site: str, url: str, disabled: str | None) -> Finding:
    what = f"webhook of {site}"
    host = urlsplit(url).netloc  # not the whole URL: its path may be a secret
    if disabled is not None:
        return Finding(
            WARN,
            what,
            f"{host} is disabled: {disabled}",
            "enable it when its receiver is well: page Webhooks, or relay webhook enable ID",
        )
    try:
        async with client.head(url, allow_redirects=False) as response:
            status = response.status
    except aiohttp.ClientConnectorCertificateError:
        return Finding(FAIL, what, f"{host}: its certificate is not trusted", "let its operator mend the certificate")
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, ForbiddenAddress):
            return Finding(FAIL, what, f"{host}: {error.os_error.strerror}", "see docs/configuration.md, [webhooks]")
        return Finding(
            FAIL, what, f"{host}: {_reason(error.os_error)}", "see that the URL is right and its server runs"
        )
    except TimeoutError:
        return Finding(FAIL, what, f"{host}: no answer in {WEBHOOK_TIMEOUT:g} s", "see that its server runs")
    except (aiohttp.ClientError, ValueError) as error:
        return Finding(FAIL, what, f"{host}: {type(error).__name__}", "see that the URL is right")
    if 300 <= status < 400:
        return Finding(WARN, what, f"{host}: redirects ({status}), which posts do not follow", "give the final URL")
    if status >= 500:
        return Finding(WARN, what, f"{host}: {status} to HEAD", "look at its log")
    return Finding(OK, what, f"{host}: reached ({status} to HEAD)")


def _reason(error: OSError) -> str:
    """ "Connection refused" rather than the call that asyncio made; for a name, what the resolver says."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
