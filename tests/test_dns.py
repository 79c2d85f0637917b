"""The resolver against a real DNS server on loopback."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dns.nameserver import Do53Nameserver

from relay.config.models import Dns
from relay.dns import DnsTemporary, DomainNotFound, MxAnswer, Resolver, configured, parse_nameserver
from tests.dns_server import DnsServer, Fault
from tests.smtp_client import PATIENCE


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
def resolver(dns: DnsServer, tmp_path: Path) -> Resolver:
    hosts = tmp_path / "hosts"
    hosts.write_text("# local\n192.0.2.7 Backend backend.lan # ours\n2001:db8::7 backend\nnonsense x\n\n")
    return Resolver([dns.address], rng=random.Random(1), hosts_file=hosts)


async def test_mx_hosts_come_in_order_of_preference(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["example.com", "MX"] = ["20 Backup.example.com.", "5 first.example.com.", "10 second.example.com."]
    answer = await resolver.mx("example.com")
    assert answer.records == ((5, "first.example.com"), (10, "second.example.com"), (20, "backup.example.com"))
    assert answer.hosts == ("first.example.com", "second.example.com", "backup.example.com")
    assert not answer.null


async def test_hosts_of_equal_preference_are_shuffled_also_from_the_cache(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["example.com", "MX"] = [f"10 mx{n}.example.com." for n in range(4)] + ["1 primary.example.com."]
    orders = {(await resolver.mx("example.com")).hosts for _ in range(50)}
    assert {order[0] for order in orders} == {"primary.example.com"}
    assert len(orders) > 5
    assert len(dns.queries) == 1


async def test_a_domain_without_mx_is_its_own_mail_host(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["example.com", "A"] = ["192.0.2.1"]
    assert await resolver.mx("example.com") == MxAnswer(((0, "example.com"),))


async def test_null_mx_is_told_apart(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["example.com", "MX"] = ["0 ."]
    assert await resolver.mx("example.com") == MxAnswer((), null=True)


async def test_a_root_host_beside_real_ones_is_ignored(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["example.com", "MX"] = ["0 .", "10 mx.example.com."]
    assert (await resolver.mx("example.com")).hosts == ("mx.example.com",)


async def test_mx_of_a_cname_is_that_of_its_target(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["www.example.com", "CNAME"] = ["example.com."]
    dns.table["example.com", "MX"] = ["10 mx.example.com."]
    assert (await resolver.mx("www.example.com")).hosts == ("mx.example.com",)


@pytest.mark.parametrize("literal", ["[192.0.2.1]", "[IPv6:2001:db8::1]"])
async def test_an_address_literal_needs_no_mx(dns: DnsServer, resolver: Resolver, literal: str) -> None:
    assert (await resolver.mx(literal)).hosts == (literal,)
    assert await resolver.addresses(literal) == [literal.strip("[]").removeprefix("IPv6:")]
    assert dns.queries == []


async def test_a_name_that_does_not_exist_says_so(resolver: Resolver) -> None:
    with pytest.raises(DomainNotFound, match=r"nowhere\.test does not exist \(NXDOMAIN\)"):
        await resolver.mx("nowhere.test")
    with pytest.raises(DomainNotFound, match="NXDOMAIN"):
        await resolver.addresses("nowhere.test")


@pytest.mark.parametrize("name", ["a..b", "a" * 64 + ".example", "x." * 200])
async def test_what_is_no_domain_name_is_not_asked_for(dns: DnsServer, resolver: Resolver, name: str) -> None:
    with pytest.raises(DomainNotFound, match="no domain name"):
        await resolver.mx(name)
    assert dns.queries == []


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault.SERVFAIL, "SERVFAIL"),
        (Fault.REFUSED, "REFUSED"),
        (Fault.YXDOMAIN, "YXDOMAIN"),
        (Fault.SILENT, "no answer in time"),
        (Fault.GARBAGE, ""),
        (Fault.FOREIGN, ""),
        (Fault.LAME, "refers to others"),
    ],
)
async def test_a_failing_server_is_temporary_and_not_cached(dns: DnsServer, fault: Fault, text: str) -> None:
    dns.table["example.com", "MX"] = fault
    patience = 0.1 if fault in (Fault.SILENT, Fault.GARBAGE, Fault.FOREIGN) else 5.0
    impatient = Resolver([dns.address], timeout=patience, lifetime=patience)
    asked = 0
    for _ in range(2):
        with pytest.raises(DnsTemporary, match=f"MX of example.com: .*{text}"):
            await impatient.mx("example.com")
        assert len(dns.queries) > asked
        asked = len(dns.queries)


async def test_an_unreachable_server_is_temporary() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))  # nobody reads it
        resolver = Resolver([f"127.0.0.1:{taken.getsockname()[1]}"], timeout=0.02, lifetime=0.05)
        with pytest.raises(DnsTemporary):
            await resolver.mx("example.com")


async def test_a_server_that_cannot_be_asked_says_why(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "as an event loop words it")

    monkeypatch.setattr("dns._asyncio_backend.Backend.make_socket", fail)
    with pytest.raises(DnsTemporary, match=r"^MX of example\.com: Too many open files$"):
        await resolver.mx("example.com")


async def test_the_next_server_is_asked_when_one_fails(dns: DnsServer, tmp_path: Path) -> None:
    dns.table["example.com", "MX"] = ["10 mx.example.com."]
    async with DnsServer({("example.com", "MX"): Fault.SERVFAIL}) as broken:
        resolver = Resolver([broken.address, dns.address], timeout=0.5, lifetime=2)
        assert (await resolver.mx("example.com")).hosts == ("mx.example.com",)
    assert len(broken.queries) == 1


async def test_a_silent_server_leaves_the_next_one_time_however_short_it_is(dns: DnsServer) -> None:
    dns.table["example.com", "MX"] = ["10 mx.example.com."]
    async with DnsServer({("example.com", "MX"): Fault.SILENT}) as silent:
        resolver = Resolver([silent.address, dns.address], lifetime=1.5)
        assert (await resolver.mx("example.com")).hosts == ("mx.example.com",)
    assert len(silent.queries) == 1


@pytest.mark.parametrize(("lifetime", "per_try"), [(10.0, 3.0), (60.0, 3.0), (3.0, 1.0)])
def test_the_configured_time_is_for_the_whole_look_up(lifetime: float, per_try: float) -> None:
    settings = Dns.model_validate({"nameservers": ["127.0.0.1:5353"], "timeout": f"{lifetime:g}s"})
    stub = configured(settings).stub()
    assert (stub.lifetime, stub.timeout) == (lifetime, per_try)
    assert [str(server) for server in stub.nameservers] == ["Do53:127.0.0.1@5353"]


async def test_a_truncated_answer_is_asked_for_again_over_tcp(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["example.com", "MX"] = Fault.TRUNCATED
    dns.table["example.com", "MX/tcp"] = [f"{n} mx{n}.example.com." for n in range(60)]
    assert len((await resolver.mx("example.com")).hosts) == 60
    assert [over for _, _, over in dns.queries] == ["udp", "tcp"]


async def test_an_answer_that_is_truncated_and_never_comes_over_tcp_is_temporary(dns: DnsServer) -> None:
    dns.table["example.com", "MX"] = Fault.TRUNCATED
    dns.table["example.com", "MX/tcp"] = Fault.SILENT
    with pytest.raises(DnsTemporary):
        await Resolver([dns.address], timeout=0.1, lifetime=0.2).mx("example.com")


async def test_a_slow_answer_is_waited_for(dns: DnsServer) -> None:
    dns.table["example.com", "MX"] = ["10 mx.example.com."]
    dns.slowness = 0.05
    assert (await Resolver([dns.address], timeout=5.0).mx("example.com")).hosts == ("mx.example.com",)


async def test_aliases_are_followed_from_one_to_the_next(dns: DnsServer, resolver: Resolver) -> None:
    for number in range(5):
        dns.table[f"mx{number}.test", "CNAME"] = [f"mx{number + 1}.test."]
    dns.table["mx5.test", "A"] = ["192.0.2.5"]
    assert await resolver.addresses("mx0.test") == ["192.0.2.5"]


@pytest.mark.parametrize("length", [1, 2])
async def test_aliases_that_go_in_a_circle_are_temporary(dns: DnsServer, resolver: Resolver, length: int) -> None:
    for number in range(length):
        dns.table[f"mx{number}.test", "CNAME"] = [f"mx{(number + 1) % length}.test."]
    with pytest.raises(DnsTemporary):
        await resolver.addresses("mx0.test")


async def test_addresses_of_both_families_are_looked_up_ipv4_first(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["mx.example.com", "A"] = ["192.0.2.1", "192.0.2.2"]
    dns.table["mx.example.com", "AAAA"] = ["2001:db8::1"]
    addresses = await resolver.addresses("mx.example.com")
    assert sorted(addresses[:2]) == ["192.0.2.1", "192.0.2.2"]
    assert addresses[2:] == ["2001:db8::1"]


async def test_one_family_suffices_when_the_other_fails(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["mx.example.com", "A"] = ["192.0.2.1"]
    dns.table["mx.example.com", "AAAA"] = Fault.SERVFAIL
    assert await resolver.addresses("mx.example.com") == ["192.0.2.1"]


async def test_ipv6_that_has_no_answer_holds_up_ipv4_for_a_moment_only(
    dns: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.dns._LATE", 0.05)
    dns.table |= {("mx.example.com", "A"): ["192.0.2.1"], ("mx.example.com", "AAAA"): Fault.SILENT}
    async with asyncio.timeout(PATIENCE):
        assert await Resolver([dns.address], lifetime=10 * PATIENCE).addresses("mx.example.com") == ["192.0.2.1"]


async def test_ipv4_whose_answer_is_lost_once_is_asked_for_again_and_comes_first(
    dns: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.dns._LATE", 0.0)
    dns.table |= {("mx.example.com", "A"): Fault.SILENT, ("mx.example.com", "AAAA"): ["2001:db8::1"]}
    resolver = Resolver([dns.address], timeout=0.2, lifetime=PATIENCE)
    looking = asyncio.create_task(resolver.addresses("mx.example.com"))
    while len(dns.queries) < 2:
        await asyncio.sleep(0)
    dns.table["mx.example.com", "A"] = ["192.0.2.1"]
    assert await looking == ["192.0.2.1", "2001:db8::1"]


async def test_a_family_that_comes_too_late_is_there_for_the_next_one(
    dns: DnsServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    dns.table["mx.example.com", "A"] = ["192.0.2.1"]
    await resolver.addresses("mx.example.com")  # that of A stays in the cache
    dns.table["mx.example.com", "AAAA"] = ["2001:db8::1"]
    resolver._cache.pop(("mx.example.com", "AAAA"))
    monkeypatch.setattr("relay.dns._LATE", 0.0)
    dns.slowness = 0.05
    assert await resolver.addresses("mx.example.com") == ["192.0.2.1"]
    await asyncio.wait(resolver._looks)
    assert await resolver.addresses("mx.example.com") == ["192.0.2.1", "2001:db8::1"]


async def test_one_failing_family_without_any_address_is_temporary(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["mx.example.com", "A"] = Fault.SERVFAIL
    with pytest.raises(DnsTemporary):
        await resolver.addresses("mx.example.com")


async def test_a_host_without_addresses_has_an_empty_list(dns: DnsServer, resolver: Resolver) -> None:
    dns.table["mx.example.com", "TXT"] = ['"here"']
    assert await resolver.addresses("mx.example.com") == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]"])
async def test_an_ip_address_is_its_own_answer(dns: DnsServer, resolver: Resolver, host: str) -> None:
    assert await resolver.addresses(host) == [host.strip("[]")]
    assert dns.queries == []


async def test_localhost_and_the_hosts_file_come_before_dns(dns: DnsServer, resolver: Resolver) -> None:
    assert await resolver.addresses("LocalHost.") == ["127.0.0.1", "::1"]
    assert await resolver.addresses("backend") == ["192.0.2.7", "2001:db8::7"]
    assert await resolver.addresses("backend.LAN") == ["192.0.2.7"]
    assert dns.queries == []


async def test_a_missing_hosts_file_is_no_error(dns: DnsServer, tmp_path: Path) -> None:
    dns.table["backend", "A"] = ["192.0.2.9"]
    assert await Resolver([dns.address], hosts_file=tmp_path / "none").addresses("backend") == ["192.0.2.9"]


async def test_answers_are_kept_for_their_ttl_and_an_hour_at_most(dns: DnsServer) -> None:
    dns.table["example.com", "MX"] = ["10 mx.example.com."]
    for ttl, kept in ((60, 60), (90_000, 3600)):
        dns.ttl, clock = ttl, Clock()
        dns.queries.clear()
        resolver = Resolver([dns.address], clock=clock)
        await resolver.mx("example.com")
        clock.now += kept - 1
        await resolver.mx("EXAMPLE.com")
        assert len(dns.queries) == 1
        clock.now += 1
        await resolver.mx("example.com")
        assert len(dns.queries) == 2


async def test_negative_answers_are_kept_for_a_minute_at_most(dns: DnsServer) -> None:
    clock = Clock()
    resolver = Resolver([dns.address], clock=clock)
    for _ in range(2):
        with pytest.raises(DomainNotFound):
            await resolver.mx("nowhere.test")
    assert len(dns.queries) == 1
    dns.table["nowhere.test", "MX"] = ["10 mx.nowhere.test."]
    clock.now += 60
    assert (await resolver.mx("nowhere.test")).hosts == ("mx.nowhere.test",)


async def test_the_cache_is_bounded(dns: DnsServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.dns._CACHE_ENTRIES", 2)
    for name in ("a.test", "b.test", "c.test"):
        dns.table[name, "MX"] = ["10 mx.test."]
        await resolver.mx(name)
    dns.queries.clear()
    await resolver.mx("c.test")
    assert dns.queries == []
    await resolver.mx("a.test")
    assert dns.queries == [("a.test", "MX", "udp")]


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 53),
        ("192.0.2.1:5353", "192.0.2.1", 5353),
        ("2001:db8::1", "2001:db8::1", 53),
        ("[2001:db8::1]", "2001:db8::1", 53),
        ("[2001:db8::1]:5353", "2001:db8::1", 5353),
    ],
)
def test_a_name_server_is_read_as_written(text: str, address: str, port: int) -> None:
    server = parse_nameserver(text)
    assert (server.answer_nameserver(), server.answer_port()) == (address, port)


@pytest.mark.parametrize(
    "text", ["", "ns.example.com", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:x", "[::1]x", "300.1.1.1"]
)
def test_a_wrong_name_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="name server"):
        parse_nameserver(text)


def answer_for(monkeypatch: pytest.MonkeyPatch, servers: dict[str, DnsServer]) -> None:
    """Have these servers answer for the addresses, to which resolv.conf can give no port."""

    def elsewhere(address: str, port: int) -> Do53Nameserver:
        host, _, real = servers[address].address.partition(":")
        return Do53Nameserver(host, int(real))

    monkeypatch.setattr("dns.nameserver.Do53Nameserver", elsewhere)


def put(file: Path, text: str) -> None:
    """As a DHCP client does: a new file in the place of the old one."""
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


async def test_without_name_servers_those_are_asked_that_the_system_names_now(
    dns: DnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "resolv.conf"
    dns.table["a.test", "MX"] = ["10 mx.a.test."]
    async with DnsServer({("b.test", "MX"): ["10 mx.b.test."]}) as other:
        answer_for(monkeypatch, {"192.0.2.1": dns, "192.0.2.2": other})
        resolver = Resolver(resolv_conf=file)
        with pytest.raises(DnsTemporary, match="the system names no name server"):
            await resolver.mx("a.test")
        put(file, "nameserver 192.0.2.1\n")
        assert (await resolver.mx("a.test")).hosts == ("mx.a.test",)
        put(file, "nameserver 192.0.2.2\n")
        assert (await resolver.mx("b.test")).hosts == ("mx.b.test",)
        file.unlink()
        with pytest.raises(DnsTemporary, match="the system names no name server"):
            await resolver.mx("c.test")


@pytest.mark.parametrize("text", ["", "search example.com\n", "nameserver ns.example.com\n", "search a..b\n"])
async def test_a_system_that_names_no_name_server_is_temporary(tmp_path: Path, text: str) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    with pytest.raises(DnsTemporary, match="the system names no name server"):
        await Resolver(resolv_conf=file).addresses("mx.example.com")


async def test_how_long_the_systems_name_servers_are_waited_for_is_not_for_its_file_to_say(
    dns: DnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("options timeout:30\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n")
    dns.table["example.com", "MX"] = ["10 mx.example.com."]
    async with DnsServer({("example.com", "MX"): Fault.SILENT}) as silent:
        answer_for(monkeypatch, {"192.0.2.1": silent, "192.0.2.2": dns})
        answer = await Resolver(timeout=0.1, lifetime=5.0, resolv_conf=file).mx("example.com")
        assert answer.hosts == ("mx.example.com",)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/fd")
async def test_a_look_up_that_nobody_waits_for_any_more_leaves_no_socket(dns: DnsServer, resolver: Resolver) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    dns.table["example.com", "A"] = ["192.0.2.1"]
    before = open_files()
    for turns in range(8):
        looking = asyncio.create_task(resolver.mx(f"{turns}.example.com"))
        for _ in range(turns):
            await asyncio.sleep(0)
        looking.cancel()
        with pytest.raises((asyncio.CancelledError, DomainNotFound)):
            await looking
    async with asyncio.timeout(10):
        while open_files() > before:
            await asyncio.sleep(0)
