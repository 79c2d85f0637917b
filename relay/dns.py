"""DNS look-ups for mail: MX (RFC 5321 §5.1, RFC 7505) and addresses, through dnspython, with a small cache.

A name that does not exist and a server that does not answer are different exceptions, because an operator does
different things about them; the mail is retried in both cases.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
from dns.rdtypes.ANY.MX import MX

if TYPE_CHECKING:
    from relay.config.models import Dns

#: Seconds. A longer TTL is cut: a next hop that moved must be found without a restart.
_MAX_TTL = 3600.0
_MAX_NEGATIVE_TTL = 60.0
_CACHE_ENTRIES = 4096
#: Seconds for which addresses of IPv6 are waited for when there are some of IPv4.
_LATE = 1.0


class DnsError(Exception):
    """A look-up that gave nothing to work with. ``str()`` is one line for an operator."""


class DomainNotFound(DnsError):
    """NXDOMAIN, or no possible domain name."""


class DnsTemporary(DnsError):
    """SERVFAIL, a refusal, no answer in time, or an unreachable name server."""


@dataclass(frozen=True, slots=True)
class MxAnswer:
    """Who takes mail for a domain.

    ``records``: (preference, host) in the order to be tried; the domain itself with preference 0 when it has no MX.
    ``null``: the domain says that it takes no mail (RFC 7505); then ``records`` is empty.
    """

    records: tuple[tuple[int, str], ...]
    null: bool = False

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(host for _, host in self.records)


class _Entry(NamedTuple):
    expires: float
    records: tuple[tuple[int, str], ...] | None  # None: the name does not exist


_Look = asyncio.Task[tuple[tuple[int, str], ...]]


class Resolver:
    """A caching stub resolver.

    ``nameservers``: "ip", "ip:port" or "[ip]:port", asked in turn; none: those of /etc/resolv.conf.
    ``lifetime``: seconds for one look-up in all, ``timeout``: those that one server gets for one try, a third of it at
    most, so that a server that is silent leaves the others time.
    ``rng`` orders hosts of equal preference and addresses; ``clock`` counts seconds for the cache.
    ``hosts_file`` is read once and comes before DNS: an operator may name the next hop there. ``resolv_conf``: where
    the system names its name servers.

    :raises ValueError: a name server that is no IP address.
    """

    def __init__(
        self,
        nameservers: Sequence[str] = (),
        *,
        timeout: float = 3.0,
        lifetime: float = 10.0,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        hosts_file: Path = Path("/etc/hosts"),
        resolv_conf: Path = Path("/etc/resolv.conf"),
    ) -> None:
        self._timeout, self._lifetime = timeout, lifetime
        self._stub = self._limited(dns.asyncresolver.Resolver(configure=False))
        self._stub.nameservers = [parse_nameserver(text) for text in nameservers]
        self._resolv_conf = None if nameservers else resolv_conf
        self._read: tuple[int, int, int] | None = None  # by what one sees that the file is the one that was read
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._clock = clock
        self._hosts = _read_hosts(hosts_file)
        self._cache: dict[tuple[str, str], _Entry] = {}
        self._looks: set[_Look] = set()

    async def mx(self, domain: str) -> MxAnswer:
        """The hosts that take mail for ``domain`` (A-labels, or an address literal).

        :raises DomainNotFound: NXDOMAIN.
        :raises DnsTemporary: no usable answer.
        """
        if domain.startswith("["):
            return MxAnswer(((0, domain),))
        records = list(await self._lookup(domain, "MX"))
        if not records:
            return MxAnswer(((0, domain),))  # RFC 5321 §5.1: the implicit MX
        hosts = [record for record in records if record[1]]
        if not hosts:
            return MxAnswer((), null=True)
        self._rng.shuffle(hosts)
        hosts.sort(key=_preference)  # stable: what is equal stays shuffled
        return MxAnswer(tuple(hosts))

    async def addresses(self, host: str) -> list[str]:
        """IP addresses of ``host`` (a name, an address or an address literal), IPv4 first; empty: it has none.

        IPv4 comes first because many receivers refuse IPv6 senders whose reverse DNS is not perfect. IPv6 that has no
        answer a second after IPv4 gave some is left out.

        :raises DomainNotFound: NXDOMAIN.
        :raises DnsTemporary: no usable answer for either family and no address.
        """
        literal = _literal(host)
        if literal is not None:
            return [literal]
        name = host.removesuffix(".").lower()
        if name == "localhost" or name.endswith(".localhost"):
            return ["127.0.0.1", "::1"]  # RFC 6761 §6.3
        if name in self._hosts:
            return list(self._hosts[name])
        ipv4, ipv6 = looks = [self._begin(name, "A"), self._begin(name, "AAAA")]
        await asyncio.wait([ipv4])
        has_some = ipv4.exception() is None and ipv4.result()
        await asyncio.wait([ipv6], timeout=_LATE if has_some else None)
        found: list[str] = []
        problem: BaseException | None = None
        for look in looks:
            if not look.done():
                continue
            if (error := look.exception()) is not None:
                # Trying again may help when one family has no answer and the other does not exist.
                problem = problem if isinstance(problem, DnsTemporary) else error
                continue
            family = [address for _, address in look.result()]
            self._rng.shuffle(family)
            found += family
        if not found and problem is not None:
            raise problem
        return found

    def stub(self) -> dns.asyncresolver.Resolver:
        """dnspython's resolver, with the name servers as they are now.

        DHCP, a VPN or a container's start may write the system's file at any time. The event loop waits while it is
        read, which is only when it has changed, and some lines.

        :raises DnsTemporary: the system names no name server.
        """
        if self._resolv_conf is None:
            return self._stub
        try:
            status = self._resolv_conf.stat()
            found = status.st_mtime_ns, status.st_ino, status.st_size
            if found != self._read:
                # A new one: of what the file said before, options too, nothing must stay.
                self._stub = self._limited(dns.asyncresolver.Resolver(self._resolv_conf))
                self._read = found
        except (dns.exception.DNSException, OSError, ValueError):
            self._read = None  # it may be written just now
            raise DnsTemporary(f"the system names no name server ({self._resolv_conf})") from None
        return self._stub

    def _limited(self, stub: dns.asyncresolver.Resolver) -> dns.asyncresolver.Resolver:
        stub.timeout, stub.lifetime = min(self._timeout, self._lifetime / 3), self._lifetime
        return stub

    def _begin(self, name: str, rdtype: str) -> _Look:
        """A look-up that goes on when nobody waits for it any more: the next one finds its answer."""
        look = asyncio.create_task(self._lookup(name, rdtype))
        self._looks.add(look)  # the loop alone would not keep it
        look.add_done_callback(self._end)
        return look

    def _end(self, look: _Look) -> None:
        self._looks.discard(look)
        if not look.cancelled():
            look.exception()  # looked at, though it may be nobody's

    async def _lookup(self, name: str, rdtype: str) -> tuple[tuple[int, str], ...]:
        """(preference, value) of every record; the preference is 0 where the type has none; empty is NODATA."""
        key = (name.lower(), rdtype)
        entry = self._cache.get(key)
        if entry is None or entry.expires <= self._clock():
            entry = await self._ask(name, rdtype)
            self._cache.pop(key, None)
            if len(self._cache) >= _CACHE_ENTRIES:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = entry
        if entry.records is None:
            raise DomainNotFound(f"{name} does not exist (NXDOMAIN)")
        return entry.records

    async def _ask(self, name: str, rdtype: str) -> _Entry:
        try:
            qname = dns.name.from_text(name)
        except (dns.exception.DNSException, UnicodeError):
            raise DomainNotFound(f"{name[:255]!r} is no domain name") from None
        stub = self.stub()
        try:
            # Who is cancelled while uvloop makes a socket for datagrams leaves it open for good: the look-up goes on.
            answer = await asyncio.shield(stub.resolve(qname, rdtype, raise_on_no_answer=False))
        except dns.resolver.NXDOMAIN as error:
            return _Entry(self._clock() + min(_negative_ttl(error), _MAX_NEGATIVE_TTL), None)
        except dns.exception.Timeout:
            raise DnsTemporary(f"{rdtype} of {name}: no answer in time") from None
        except dns.resolver.NoNameservers as error:
            raise DnsTemporary(f"{rdtype} of {name}: {_reason(error)}") from None
        except (dns.exception.DNSException, OSError) as error:
            raise DnsTemporary(f"{rdtype} of {name}: {_why(error)}") from None
        ttl = answer.chaining_result.minimum_ttl
        if answer.rrset is None and _is_referral(answer.response):
            # Taken for "no MX" it would send the mail to the domain's web server.
            raise DnsTemporary(f"{rdtype} of {name}: the name server knows nothing and refers to others")
        if answer.rrset is None:
            return _Entry(self._clock() + min(ttl, _MAX_NEGATIVE_TTL), ())
        return _Entry(self._clock() + min(ttl, _MAX_TTL), tuple(_record(rdata) for rdata in answer.rrset))


def configured(settings: Dns) -> Resolver:
    """A resolver as [dns] of relay.toml has it."""
    return Resolver([str(server) for server in settings.nameservers], lifetime=settings.timeout)


def parse_nameserver(text: str) -> dns.nameserver.Nameserver:
    """ "192.0.2.1", "192.0.2.1:5353", "::1" or "[::1]:5353". :raises ValueError: anything else."""
    address, port = text, "53"
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":") or "53"
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        address = str(ip_address(address))
    except ValueError:
        raise ValueError(f"{text!r} is not the IP address of a name server") from None
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"the port of the name server {text!r} must be a number from 1 to 65535")
    return dns.nameserver.Do53Nameserver(address, int(port))


def _preference(record: tuple[int, str]) -> int:
    return record[0]


def _record(rdata: object) -> tuple[int, str]:
    if isinstance(rdata, MX):
        return rdata.preference, rdata.exchange.to_text(omit_final_dot=True).removesuffix(".").lower()
    return 0, str(rdata)


def _negative_ttl(error: dns.resolver.NXDOMAIN) -> float:
    """Seconds that the answer may be kept (RFC 2308 §5)."""
    responses = error.kwargs["responses"].values()
    return min(float(response.resolve_chaining().minimum_ttl) for response in responses)


def _is_referral(response: dns.message.Message) -> bool:
    """A lame server's way to say nothing: an empty answer with NS and without SOA (RFC 2308 §2.2)."""
    kinds = {rrset.rdtype for rrset in response.authority}
    return dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds


def _reason(error: dns.resolver.NoNameservers) -> str:
    """What the last server said: "SERVFAIL", or why it could not be asked."""
    errors = error.kwargs.get("errors") or []
    last = errors[-1][3] if errors else "no name server"
    return last if isinstance(last, str) else _why(last)


def _why(error: Exception) -> str:
    """ "Network is unreachable" where the system said so, else the kind of exception."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return type(error).__name__


def _literal(host: str) -> str | None:
    """The address in "192.0.2.1", "::1", "[192.0.2.1]" or "[IPv6:::1]" (RFC 5321 §4.1.3)."""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if host[:5].lower() == "ipv6:":
            host = host[5:]
    try:
        return str(ip_address(host))
    except ValueError:
        return None


def _read_hosts(path: Path) -> dict[str, tuple[str, ...]]:
    """name → addresses of a hosts(5) file; none when there is no such file."""
    hosts: dict[str, tuple[str, ...]] = {}
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return hosts
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if _literal(address) is None:
            continue
        for name in names:
            key = name.lower()
            hosts[key] = (*hosts.get(key, ()), address)
    return hosts
