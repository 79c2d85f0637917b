"""Hostile HTTP against the real daemon, octet by octet: nothing gets out, nothing fails, it serves on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.exposition import parse
from tests.ledger import SOAK
from tests.scenarios.world import DOMAIN, ORIGIN, World, unique_letter, world
from tests.streams import send

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

BASE = f"plus@{DOMAIN}"
#: Seconds for an answer. Reached only when a test fails.
PATIENCE = 20.0
MIB = 1 << 20
#: Page views of a flood, and how many of them are allowed.
FLOOD, ALLOWED = (5000, 100) if SOAK else (300, 20)
#: How often each header bomb comes, and how many harmless requests one may cost, all its octets read: some megabytes.
BOMBS, COST = 100 if SOAK else 6, 50
#: What a body must never have been read of.
SECRETS = (b"root:", b"[smtp]", b"SQLite format", b"Traceback", b"aiohttp", b"site-packages")
BIND = (
    '{"site":"pk_example","page":"https://www.example.test/","addresses":["sales@example.test"]}',
    {"Origin": ORIGIN, "Content-Type": "text/plain", "User-Agent": "Mozilla/5.0 Firefox/140.0"},
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("hostile-http")) as made:
        yield made
        assert made.daemon.errors == []


async def talk(relay: World, *pieces: bytes) -> bytes:
    """Send octets, and what comes back until the connection is closed by the other side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.daemon.http_port)
    answer = b""
    try:
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    await send(writer, piece)
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(65_536):
                    answer += chunk
    finally:
        writer.close()
    return answer


async def begun(relay: World, *pieces: bytes) -> bytes:
    """The head of the answer, which may come while the octets are still being sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.daemon.http_port)

    async def send_all() -> None:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                await send(writer, piece)

    sending = asyncio.ensure_future(send_all())
    try:
        async with asyncio.timeout(PATIENCE):
            return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.transport.abort()


def status(answer: bytes) -> int:
    """Of the first answer; 0 for none: the connection was closed."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


def asked(target: bytes, *fields: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    head = [method + b" " + target + b" HTTP/1.1", b"Host: relay.example.test", b"Connection: close", *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


# What is no HTTP


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        b"POST /v1/bind HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        b"POST /v1/bind HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n{}",
        b"POST /v1/bind HTTP/1.1\r\nHost: a\r\nContent-Length: -2\r\n\r\n{}",
        b"POST /v1/bind HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/bind HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /v1/bind HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"POST /v1/bind HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\x00: b\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nnonsense\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\r\n" * 5000 + b"\x00",
        b"EHLO client.test\r\n",
        b"\xff" * 100 + b" / HTTP/1.1\r\n\r\n",
        b"A" * 100_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a" * 100_000 + b": b\r\n\r\n",
    ],
    ids=lambda octets: octets[:60].decode("latin-1").encode("unicode_escape").decode(),
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(octets: bytes, relay: World) -> None:
    answer = await talk(relay, octets)
    assert status(answer) in (0, 400, 404, 405, 414, 431, 505), answer
    assert answer.count(b"HTTP/1.1 ") <= 1, answer
    assert not [secret for secret in SECRETS[3:] if secret in answer], answer
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"X-Content-Type-Options: nosniff" in head
        assert b"Server: visit-relay\r\n" in head + b"\r\n"
        assert json.loads(body)["detail"]
        assert octets[:40] not in body  # nothing is said back
        assert octets[-40:] not in body


async def test_what_comes_behind_a_body_of_unclear_length_is_no_request(relay: World) -> None:
    behind = asked(b"/healthz")
    for fields in (
        b"Content-Length: 0\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 0\r\nContent-Length: 5",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
    ):
        head = b"POST /v1/bind HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n"
        answer = await talk(relay, head + b"0\r\n\r\n" + behind)
        assert b'"ok"' not in answer, (fields, answer)


# Bombs


async def figure(relay: World, name: str) -> float:
    async with relay.http.get(f"{relay.daemon.url}/metrics") as response:
        return parse(await response.text())[name].value()


async def resident(relay: World) -> float:
    return await figure(relay, "process_resident_memory_bytes")


async def test_header_bombs_cost_no_memory_and_little_more_time_than_other_requests(relay: World) -> None:
    many = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 50) for number in range(20_000))
    cookies = b"Cookie: " + b"; ".join(b"a%d=b" % number for number in range(700)) + b"\r\n"
    bombs = (many, many.replace(b"X-", b"X"), cookies * 1000, b"X:\r\n" * 200_000)
    seconds = "process_cpu_seconds_total"  # the daemon's own, whoever else is on the machine
    began = await figure(relay, seconds)
    for number in range(BOMBS):
        if number == BOMBS // 2:
            before = await resident(relay)  # the first half makes warm what stays warm
        for fields in bombs:
            answer = await talk(relay, b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
            assert status(answer) in (0, 400, 431), answer
    bombed = await figure(relay, seconds)
    for _ in range(BOMBS * len(bombs)):
        assert status(await talk(relay, asked(b"/healthz"))) == 200
    harmless = await figure(relay, seconds) - bombed
    grown, cost = await resident(relay) - before, (bombed - began) / harmless
    print(f"\n{BOMBS * len(bombs)} header bombs: {grown / 1e6:+.1f} MB, {cost:.1f} times the CPU of harmless requests")
    assert grown < 30 * MIB
    assert cost < COST


@pytest.mark.parametrize("path", [b"/v1/bind", b"/v1/sites", b"/ui/login", b"/nowhere", b"/healthz", b"/a/x/y"])
async def test_a_huge_body_is_not_read(path: bytes, relay: World) -> None:
    before = await resident(relay)
    fields = (b"Content-Type: text/plain", b"Origin: https://www.example.test")
    announced = asked(path, *fields, b"Content-Length: 10000000000", method=b"POST")
    endless = asked(path, *fields, b"Transfer-Encoding: chunked", method=b"POST")
    for head, piece in ((announced, b"a" * MIB), (endless, b"100000\r\n" + b"a" * MIB + b"\r\n")):
        answer = await begun(relay, head, *([piece] * 64))
        assert status(answer) in (0, 401, 403, 404, 405, 413, 415), answer
    assert await resident(relay) - before < 30 * MIB


async def test_a_packed_body_is_not_unpacked(relay: World) -> None:
    fields = (b"Content-Type: text/plain", b"Origin: https://www.example.test", b"Content-Length: 4")
    for coding in (b"gzip", b"deflate", b"br", b"identity", b"gzip, gzip"):
        head = asked(b"/v1/bind", *fields, b"Content-Encoding: " + coding, method=b"POST", body=b"\x1f\x8b\x08\x00")
        assert status(await talk(relay, head)) == 415, coding


# Paths


@pytest.mark.parametrize(
    "target",
    [
        *(
            b"/../../etc/passwd",
            b"/ui/../../etc/passwd",
            b"/ui/static/../../../relay.toml",
            b"/static/../keys/seal.key",
        ),
        *(b"/ui/static/%2e%2e/%2e%2e/app.py", b"/ui/static/..%2f..%2fapp.py", b"/ui/static/..%5c..%5capp.py"),
        *(b"/ui/static/%252e%252e%252fapp.py", b"/ui/static/....//....//app.py", b"/ui/static//etc/passwd"),
        *(b"/ui/static/%00", b"/ui/static/app.css%00.js", b"/ui/static/%c0%ae%c0%ae/app.py", b"/ui/static/\xff\xfe"),
        *(b"/a/..%2f..%2fdata%2frelay.db/x", b"/a/%2e%2e/x", b"/a//x", b"/a/x/..%2f..", b"/a/" + b"A" * 60 + b"/x"),
        *(b"/v1/..%2fmetrics", b"/v1/%2e%2e/metrics", b"/v1//sites", b"/v1/sites%2f", b"/v1/sites/..", b"/V1/sites"),
        *(b"/ui/welcome/..", b"/ui/welcome/%00", b"/ui/welcome/" + b"a" * 5000, b"/ui/%2e%2e/metrics", b"/./metrics"),
        *(b"/metrics/", b"/metrics%20", b"/metrics%00", b"/metrics;x", b"/%6detrics", b"//metrics", b"/metrics%2f.."),
        *(b"//evil.example/ui", b"/\\evil.example", b"/%0d%0aSet-Cookie:%20a=b", b"/ui/login?next=//evil.example"),
        *(b"http://evil.example/metrics", b"http://127.0.0.1:1/healthz", b"*", b"evil.example:443"),
        *(b"/v1/sites/%F0%9F%92%A9", b"/v1/sites/%ff", b"/v1/messages/-1", b"/v1/messages/9" + b"9" * 400, b"/%"),
    ],
    ids=lambda target: target[:40].decode("latin-1"),
)
async def test_no_path_leads_out_of_what_is_served(target: bytes, relay: World) -> None:
    answer = await talk(relay, asked(target))
    assert status(answer) in (0, 301, 302, 303, 400, 401, 404, 405, 414) or target.startswith(
        (b"http://", b"/ui/login")
    ), answer
    assert not [secret for secret in SECRETS if secret in answer], answer
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie: a=b" not in head
    location = next((line[9:].strip() for line in head.split(b"\r\n") if line.startswith(b"location:")), b"/")
    assert location.startswith(b"/"), location
    assert not location.startswith((b"//", b"/\\")), location
    assert b"# TYPE" not in answer  # Host is not loopback's


async def test_every_method_on_every_kind_of_path_is_answered(relay: World) -> None:
    for method in (b"TRACE", b"CONNECT", b"PUT", b"DELETE", b"PATCH", b"PROPFIND", b"OPTIONS", b"M" * 5000):
        for target in (b"/", b"/v1/bind", b"/v1/sites", b"/ui/history", b"/a/x/y", b"/healthz", b"/mailtrack.js"):
            answer = await talk(relay, asked(target, method=method))
            assert status(answer) in (0, 303, 400, 401, 403, 404, 405), (method[:9], target, answer)
            assert b"Host: relay.example.test" not in answer  # TRACE would send the request back


# Who says who he is


async def test_nobody_is_believed(tmp_path: Path) -> None:
    limits = {"exempt": [], "binds_per_address_per_minute": 3, "api_failures_per_address_per_minute": 6}
    async with world(tmp_path, {"http": {"trusted_proxies": []}, "limits": limits}) as relay:
        await what_a_stranger_says_of_his_address_counts_for_nothing(relay)
        await unknown_revoked_and_malformed_tokens_are_answered_alike_and_counted_together(relay)


async def what_a_stranger_says_of_his_address_counts_for_nothing(relay: World) -> None:
    statuses: Counter[int] = Counter()
    for number in range(8):
        forged = {
            "X-Forwarded-For": f"198.51.100.{number}",
            "Forwarded": f"for=203.0.113.{number}",
            "X-Real-IP": f"192.0.2.{number}",
            "CF-Connecting-IP": f"192.0.2.{number}",
            "True-Client-IP": f"192.0.2.{number}",
        }
        body, headers = BIND
        async with relay.http.post(f"{relay.daemon.url}/v1/bind", data=body, headers=headers | forged) as response:
            statuses[response.status] += 1
    assert statuses == {200: 3, 429: 5}
    assert await relay.rows("SELECT DISTINCT ip FROM visits") == [("127.0.0.1",)]
    for name, value in (("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1"), ("X-Real-IP", "::1")):
        async with relay.http.get(f"{relay.daemon.url}/metrics", headers={name: value}) as response:
            assert response.status == 401


async def unknown_revoked_and_malformed_tokens_are_answered_alike_and_counted_together(relay: World) -> None:
    revoked, right = await relay.token("revoked"), await relay.token("right")
    await relay.command("token.revoke", name="revoked")

    async def answer(token: str) -> tuple[int, dict[str, str], bytes]:
        headers = {"Authorization": f"Bearer {token}"}
        async with relay.http.get(f"{relay.daemon.url}/v1/sites", headers=headers) as response:
            said = {name: value for name, value in response.headers.items() if name != "Date"}
            return response.status, said, await response.read()

    guesses = [revoked, f"{right[:-1]}!", "vr_" + "A" * 43, "x", right.lower(), "vr_"]
    answers = [await answer(token) for token in guesses]
    assert [one[0] for one in answers] == [401] * 6
    assert all(one == answers[0] for one in answers)
    assert (await answer(revoked))[0] == 429
    assert (await answer(right))[0] == 429  # whoever guesses right after so many is not told


# Floods


async def test_a_flood_of_page_views_gets_its_rate_and_neither_others_nor_mail_suffer(tmp_path: Path) -> None:
    settings = {
        "http": {"trusted_proxies": ["127.0.0.0/8"]},
        "limits": {"exempt": [], "binds_per_address_per_minute": ALLOWED},
    }
    async with world(tmp_path, settings) as relay:
        statuses: Counter[int] = Counter()
        body, headers = BIND

        async def flood(number: int) -> None:
            forwarded = {"X-Forwarded-For": f"203.0.113.9, 198.51.100.{number % 250}"}  # one network
            for _ in range(FLOOD // 20):
                async with relay.http.post(
                    f"{relay.daemon.url}/v1/bind", data=body, headers=headers | forwarded
                ) as response:
                    statuses[response.status] += 1

        async def others() -> None:
            for number in range(5):
                await relay.bind("sales@example.test", forwarded_for=f"192.0.2.{number}")
                content = unique_letter()
                await relay.mail(BASE, content)
                await relay.arrived(content)

        began = time.monotonic()
        await asyncio.gather(others(), *(flood(number) for number in range(20)))
        minutes = (time.monotonic() - began) / 60
        assert statuses[200] + statuses[429] == FLOOD // 20 * 20
        assert ALLOWED <= statuses[200] <= ALLOWED * (1 + minutes) + 1
        ((visits,),) = await relay.rows("SELECT count(*) FROM visits")
        assert visits == statuses[200] + 5


async def test_below_twice_the_floor_of_mail_page_views_are_not_written_and_pages_show_real_addresses(
    tmp_path: Path,
) -> None:
    space = os.statvfs(tmp_path)
    floor = space.f_bavail * space.f_frsize * 7 // 10
    async with world(tmp_path, {"smtp": {"min_free": floor}}) as relay:
        before = await relay.rows("SELECT count(*) FROM visits UNION ALL SELECT count(*) FROM bindings")
        bound = await relay.bind("sales@example.test", "pool@example.test")
        assert bound == {"visit": None, "first_visit": None, "lease": 900, "addresses": {}}
        assert (await relay.bind("sales@example.test", origin="https://elsewhere.test", expect=403))["status"] == 403
        assert await relay.rows("SELECT count(*) FROM visits UNION ALL SELECT count(*) FROM bindings") == before
        content = unique_letter()
        await relay.mail(BASE, content)
        await relay.arrived(content)
        async with relay.http.get(f"{relay.daemon.url}/metrics") as response:
            found = parse(await response.text())
        assert found["relay_binds_total"].value(site="example", outcome="no_room") == 1
