"""What DNS says of us: our own name and its reverse, and MX and SPF of every domain that has substitutes."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import dns.exception
import dns.resolver
import dns.reversename

from relay.check_findings import FAIL, OK, WARN, Finding, Subject
from relay.dns import DnsError, DomainNotFound, Resolver, configured

#: Domains that are looked at.
MOST_DOMAINS = 50

_LEAVE_MX = (
    "do not move its MX: give substitutes a subdomain of their own, or let its mail server pass their mail on to this "
    "one with the recipient unchanged (a redirect or alias is not enough)"
)


async def names(subject: Subject) -> list[Finding]:
    """The look-ups a sender's server makes of us, and a receiver's."""
    config = subject.config
    resolver = configured(config.dns)
    records = _Records(resolver)
    found, addresses = await _hostname(subject, resolver)
    domains = sorted(subject.domains)
    if not domains:
        found.append(
            Finding(WARN, "MX", "no site has a substitute yet", "add a site to relay.toml, or with relay site")
        )
    groups = await asyncio.gather(
        _reverse(subject, records, addresses),
        *(_mx(subject, resolver, domain, addresses) for domain in domains[:MOST_DOMAINS]),
        # Which servers send the mail of people is not for us to say.
        *(
            _spf(records, domain, addresses)
            for domain in domains[:MOST_DOMAINS]
            if domain not in subject.mailbox_domains
        ),
    )
    for group in groups:
        found += group
    if len(domains) > MOST_DOMAINS:
        text = f"{len(domains) - MOST_DOMAINS} more domains were not looked at"
        found.append(Finding(WARN, "MX", text, f"look at these by hand; only {MOST_DOMAINS} are looked at at once"))
    return found


async def _hostname(subject: Subject, resolver: Resolver) -> tuple[list[Finding], list[str]]:
    name = subject.config.hostname
    what = f"name {name}"
    try:
        addresses = await resolver.addresses(name)
    except DomainNotFound as error:
        return [_outside(subject, what, str(error), f"add an A record for {name}")], []
    except DnsError as error:
        return [Finding(FAIL, what, str(error), "see that the name servers of [dns], or the system's, answer")], []
    if not addresses:
        return [_outside(subject, what, "has no address", f"add an A record for {name}")], []
    return [Finding(OK, what, ", ".join(sorted(addresses)))], addresses


def _outside(subject: Subject, what: str, text: str, hint: str) -> Finding:
    """Wrong where mail from outside comes to us directly; behind another server, or in a trial, worth a word."""
    if subject.beyond_loopback:
        return Finding(FAIL, what, text, hint)
    return Finding(WARN, what, text, f"{hint} (smtp.listen is loopback only, so no mail comes directly)")


async def _mx(subject: Subject, resolver: Resolver, domain: str, ours: list[str]) -> list[Finding]:
    what, hostname = f"MX of {domain}", subject.config.hostname
    has_mailboxes = domain in subject.mailbox_domains
    hint = _LEAVE_MX if has_mailboxes else f"add: {domain}. MX 10 {hostname}."
    try:
        answer = await resolver.mx(domain)
    except DomainNotFound as error:
        return [_outside(subject, what, str(error), hint)]
    except DnsError as error:
        return [Finding(FAIL, what, str(error), "see that the name servers of [dns], or the system's, answer")]
    if answer.null:
        return [_outside(subject, what, "says that the domain takes no mail (null MX)", hint)]
    hosts = ", ".join(answer.hosts)
    if hostname in answer.hosts:
        level = OK if answer.hosts == (hostname,) else WARN
        return [Finding(level, what, hosts, "" if level is OK else "mail that goes to the others is not ours to see")]
    for host in answer.hosts:
        try:
            if set(await resolver.addresses(host)) & set(ours):
                return [Finding(OK, what, f"{hosts}, which is this server by its address")]
        except DnsError:
            continue  # some other host's trouble
    if has_mailboxes:  # whether its server passes mail on is not to be seen from here
        text = f"{hosts}, not {hostname}: real mailboxes are here, and mail for substitutes has to be passed on"
        return [Finding(WARN, what, text, hint)]
    return [_outside(subject, what, f"{hosts}, not {hostname}: mail for substitutes does not come here", hint)]


async def _reverse(subject: Subject, records: _Records, addresses: list[str]) -> list[Finding]:
    """PTR: receivers distrust senders whose address has no name, or another one than they say in EHLO."""
    name, found = subject.config.hostname, []
    for address in addresses:
        if not ip_address(address).is_global:
            continue
        what = f"PTR of {address}"
        try:
            names = await records.get(dns.reversename.from_address(address).to_text(), "PTR")
        except DnsError as error:
            found.append(Finding(WARN, what, str(error), "try again"))
            continue
        pointed = [text.removesuffix(".").lower() for text in names]
        if name in pointed:
            found.append(Finding(OK, what, name))
        else:
            text = f"{', '.join(pointed) or 'none'}, not {name}"
            found.append(Finding(WARN, what, text, f"ask who owns the address to let it point to {name}"))
    return found


async def _spf(records: _Records, domain: str, addresses: list[str]) -> list[Finding]:
    """SPF (RFC 7208 §4.5) of the domain in which the envelope senders of forwarded mail are (SRS).

    Mechanisms are only looked at, not followed: whether an include covers us is not found out.
    """
    what = f"SPF of {domain}"
    hint = f'add: {domain}. TXT "v=spf1 mx -all"'
    try:
        texts = await records.get(domain, "TXT")
    except DnsError as error:
        return [Finding(WARN, what, str(error), "try again")]
    policies = [text for text in texts if text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")]
    if not policies:
        return [Finding(WARN, what, "none: receivers may distrust what is forwarded", hint)]
    if len(policies) > 1:
        return [Finding(WARN, what, f"{len(policies)} records, and receivers then honour none", "leave one of them")]
    terms = policies[0].lower().split()[1:]
    if {"all", "+all"} & set(terms):
        return [Finding(WARN, what, f"{policies[0]}: allows everybody", hint)]
    named = {"mx", "+mx", "a", "+a"} | {f"{ip}:{address}" for address in addresses for ip in ("ip4", "ip6")}
    followed = [term for term in terms if term.startswith(("include:", "+include:", "redirect=", "ip4:", "ip6:", "a:"))]
    if named & set(terms) or followed:
        return [Finding(OK, what, policies[0])]
    return [Finding(WARN, what, f"{policies[0]}: does not name this server", hint)]


class _Records:
    """Look-ups of other types than forwarding needs (relay/dns.py)."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def get(self, name: str, rdtype: str) -> list[str]:
        """Every record as text, the strings of a TXT record joined (RFC 7208 §3.3); none for a name without any.

        Raises DnsError when there was no usable answer.
        """
        stub = self._resolver.stub()
        try:
            # Goes on when nobody waits any more, as in relay/dns.py.
            answer = await asyncio.shield(stub.resolve(name, rdtype, raise_on_no_answer=False))
        except dns.resolver.NXDOMAIN:
            return []
        except (dns.exception.DNSException, OSError) as error:
            raise DnsError(f"{rdtype} of {name}: {type(error).__name__}") from None
        if answer.rrset is None:
            return []
        if rdtype == "TXT":
            return [b"".join(record.strings).decode("utf-8", "replace") for record in answer.rrset]
        return [str(record) for record in answer.rrset]
