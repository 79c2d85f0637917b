"""What every handler needs of the daemon, and the one place that decides who the client is."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import web
from aiohttp.abc import AbstractResolver

from relay.bodies import Bodies
from relay.config import Forward, Http, Limits, Retention
from relay.core.check import RunChecks, Tell
from relay.core.metrics import Family
from relay.core.model import IpDetail
from relay.geoip import GeoIp
from relay.secrets import Keys
from relay.store.messages import Evidence
from relay.store.store import Store
from webapi import hops
from webapi.advisor import Advisor
from webapi.breaker import Standing
from webapi.compose import Composer
from webapi.trial import Trials

Network = IPv4Network | IPv6Network

#: Seconds for the body of a request.
BODY_TIMEOUT = 30.0
#: Client addresses whose classification is kept.
KNOWN_CLIENTS = 16_384
#: Fields by which a proxy says that it is one.
PROXY_FIELDS = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")


def _nothing() -> None:
    pass


def _always() -> bool:
    return True


def _unknown(_: int) -> Standing:
    return Standing()


async def _no_checks(names: Collection[str], tell: Tell) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Context:
    """``public_url`` has no slash at its end; it is http.public_url, or what a demo on any free port came to.

    The wake-ups are hints: what they are about is in the store already. ``draining`` is true while the daemon stops.
    """

    store: Store
    bodies: Bodies
    keys: Keys
    http: Http
    limits: Limits
    forward: Forward
    public_url: str
    geoip: GeoIp
    composer: Composer
    evidence: Callable[[], Evidence]
    allow_private_addresses: bool = False
    resolver: AbstractResolver | None = None  # of webhooks' names; None: the system's
    visitor_ip: IpDetail = IpDetail.FULL
    retention: Retention = field(default_factory=Retention)
    advisor: Advisor = field(default_factory=Advisor)
    trials: Trials = field(default_factory=Trials)
    clock: Callable[[], float] = time.time
    on_posts_due: Callable[[], None] = _nothing
    on_deliveries_due: Callable[[], None] = _nothing
    draining: Callable[[], bool] = bool
    standing: Callable[[int], Standing] = _unknown  # of a webhook
    measures: Callable[[], list[Family]] = list  # what the rest of the daemon counts, for /metrics
    room: Callable[[], bool] = _always  # whether page views may be written
    run_checks: RunChecks = _no_checks

    async def remove_files(self, names: Sequence[str]) -> None:
        """Delete body files whose rows are gone. What a crash leaves behind, the sweep finds."""
        if names:
            await asyncio.to_thread(self.bodies.remove, names)


CONTEXT = web.AppKey("context", Context)


@dataclass(frozen=True, slots=True)
class Client:
    """``address`` as text without zone and IPv4 mapping; ``bucket`` is its /24 or /64, what the rates count by."""

    address: str
    bucket: str
    exempt: bool
    loopback: bool
    trusted: bool


@dataclass(slots=True)
class Clients:
    """Classifies client addresses once and remembers the latest."""

    trusted_proxies: tuple[Network, ...]
    exempt: tuple[Network, ...]
    _known: dict[str, Client] = field(default_factory=dict)

    def exempt_from_now_on(self, exempt: tuple[Network, ...]) -> None:
        """Another list of who is spared the rates."""
        self.exempt = exempt
        self._known.clear()

    def known(self, text: str) -> Client | None:
        """The client with this address; None when it is no address."""
        client = self._known.get(text)
        if client is None:
            address = _parse(text)
            if address is None:
                return None
            client = self._classify(address)
            if len(self._known) >= KNOWN_CLIENTS:
                self._known.clear()
            self._known[text] = client
        return client

    def _classify(self, address: IPv4Address | IPv6Address) -> Client:
        if isinstance(address, IPv4Address):
            first, second, third, _ = address.packed
            bucket = f"{first}.{second}.{third}.0/24"
        else:
            bucket = str(IPv6Network((int(address), 64), strict=False))
        return Client(
            address=str(address),
            bucket=bucket,
            exempt=any(address in exempt for exempt in self.exempt),
            loopback=address.is_loopback,
            trusted=any(address in proxy for proxy in self.trusted_proxies),
        )


CLIENTS = web.AppKey("clients", Clients)
#: A peer without an IP address: a Unix socket. It is nobody's in particular and trusted by nobody.
NOBODY = Client("", "", exempt=False, loopback=False, trusted=False)


def client_of(request: web.Request) -> Client:
    """Who sent the request: the peer, or the hop nearest to us that is no proxy of ours (http.proxy_header).

    Only what the configured proxies wrote is believed: the header is read from its end, and only as long as each
    hop is one of them. A hop that is no address ends the reading at the hop before. The other header is a client's
    own: our proxies do not write it, so they do not remove it either.
    """
    clients = request.app[CLIENTS]
    client = clients.known(request.remote or "") or NOBODY
    if not client.trusted:
        return client
    name = request.app[CONTEXT].http.proxy_header
    for hop in hops.read(name, request.headers.getall(name, ())):
        found = clients.known(_bare(hop))
        if found is None:
            return client
        client = found
        if not client.trusted:
            return client
    return client


def client_address(request: web.Request) -> str:
    """The client's IP address as text; empty for a peer without one."""
    return client_of(request).address


def is_local(request: web.Request) -> bool:
    """Whether a program on this machine asks directly: loopback, no proxy in between, and no page of another host.

    A page whose name was made to resolve to 127.0.0.1 (DNS rebinding) shows by its own name in Host.
    """
    peer = request.app[CLIENTS].known(request.remote or "")
    if peer is None or not peer.loopback or any(name in request.headers for name in PROXY_FIELDS):
        return False
    host = _bare(request.headers.get("Host", ""))
    address = _parse(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return IPv4Address(socket.inet_pton(socket.AF_INET, text))  # most are; the library's own way takes 5 us more
    except (OSError, ValueError):
        pass
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _bare(host: str) -> str:
    """An address without brackets and port, which some proxies write along."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


async def read_body(request: web.Request, limit: int) -> bytes:
    """The body of a request.

    Raises web.HTTPRequestEntityTooLarge beyond ``limit`` octets, web.HTTPUnsupportedMediaType for a packed one, and
    web.HTTPRequestTimeout for one that takes too long.
    """
    if "Content-Encoding" in request.headers:
        raise web.HTTPUnsupportedMediaType
    content = request.content
    if content.is_eof():  # it came with the header, as small ones do
        body: bytes = content.read_nowait(-1)
        size = len(body)
    else:
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                while size <= limit and (chunk := await content.readany()):
                    size += len(chunk)
                    chunks.append(chunk)
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        body = b"".join(chunks)
    if size > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=size)
    return body
