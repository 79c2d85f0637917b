"""One attempt to post an event: the request, the answer, why there was none, and what that makes of the post."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from sqlalchemy import select

from relay.core.backoff import WEBHOOK_DELAYS
from relay.core.hook import Access, HookSettings
from relay.core.mime import Part
from relay.core.model import Attribution, AttributionState
from relay.core.payload import KEYS, PayloadMessage
from relay.secrets import Keys
from relay.store import posts as post_verbs
from relay.store.post import Hook, PostJob
from relay.store.schema import events, post_attempts
from tests.certificates import Certificate
from tests.poster_fixtures import CARD, SECRET, jobs, posting, until_recorded
from tests.store_fixtures import DAY, SHOP, World, hook, part
from tests.webhook_receiver import (
    Abort,
    Answer,
    Endless,
    Hang,
    Receiver,
    Script,
    Stall,
    deal,
    redirect,
)
from webapi import direct, links
from webapi.deal import read_deal
from webapi.guard import guarded_connector
from webapi.post import UNREAD, Reply, settle
from webapi.redaction import REPEATED

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)

NOW = 1_800_000_000.0


async def attempted(w: World, keys: Keys, crm: Receiver, script: Script) -> tuple[Any, ...]:
    """(state, status, answer) of a post after one attempt that the receiver answers as ``script`` says."""
    crm.script = script
    async with posting(w, keys) as poster:
        poster.submit(await jobs(w, claim=poster.claim))
        (row,) = await until_recorded(w)
    return row


class TestRequest:
    async def test_the_event_arrives_signed_with_its_id(self, w: World, keys: Keys, crm: Receiver) -> None:
        async with posting(w, keys) as poster:
            (job,) = await jobs(w, claim=poster.claim)
            poster.submit([job])
            (got,) = await crm.wait_for(1)
            await until_recorded(w)
        got.verify(SECRET)
        assert (got.method, got.path) == ("POST", "/hook")
        assert tuple(got.json) == KEYS
        assert (got.json["text"], got.json["email_to"], got.json["marker"]) == ("0", CARD, "card")
        assert got.headers["content-type"] == "application/json"
        assert got.headers["user-agent"].startswith("visit-relay")
        assert got.headers["webhook-id"] == job.uid
        assert got.headers["webhook-timestamp"] == str(int(w.now))
        assert set(got.headers) == {
            "host",
            "content-type",
            "content-length",
            "user-agent",
            "webhook-id",
            "webhook-timestamp",
            "webhook-signature",
        }

    async def test_attachments_are_links_that_expire(self, w: World, keys: Keys, crm: Receiver) -> None:
        parts: list[Part] = [part(0), part(3, "счёт/№ 1?.pdf"), part(4, "")]
        async with posting(w, keys) as poster:
            (job,) = await jobs(w, claim=poster.claim, attachments=parts)
            poster.submit([job])
            (got,) = await crm.wait_for(1)
            await until_recorded(w)
        shown = got.json["attachments"]
        assert [found["name"] for found in shown] == ["offer.pdf", "счёт/№ 1?.pdf", None]
        for found, index in zip(shown, (0, 3, 4), strict=True):
            scheme, _, host, kind, token, name = found["url"].split("/")
            assert (scheme, host, kind) == ("https:", "relay.example", "a")
            assert name in ("offer.pdf", "%D1%81%D1%87%D1%91%D1%82%2F%E2%84%96%201%3F.pdf", "attachment")
            assert links.read(keys.all("links"), token, w.now) == (job.message_id, index, w.site().id)
            with pytest.raises(links.LinkExpired):
                links.read(keys.all("links"), token, w.now + DAY)

    async def test_connections_are_kept_and_cookies_are_not(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = Answer(200, b"", {"Set-Cookie": "tracked=1"})
        url = crm.url.replace("127.0.0.1", "localhost")  # no client keeps cookies of an address
        await w.declare(replace(SHOP, webhooks=(hook(url, secret=keys.seal(SECRET)),)))
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit(await jobs(w, 3, poster.claim))
            await until_recorded(w, 3)
        assert {found.connection for found in crm.posts} == {0}
        assert not [found for found in crm.posts if "cookie" in found.headers]

    async def test_no_proxy_is_taken_from_the_environment(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Receiver() as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            assert (await attempted(w, keys, crm, 200))[0] == "delivered"
            assert proxy.posts == []

    async def test_a_secret_that_was_changed_signs_from_then_on(self, w: World, keys: Keys, crm: Receiver) -> None:
        other = "whsec_" + "b3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb3RoZXI="
        async with posting(w, keys) as poster:
            for count, secret in enumerate((SECRET, other), 1):
                await w.declare(replace(SHOP, webhooks=(hook(crm.url, secret=keys.seal(secret)),)))
                w.pass_time(1)
                poster.submit(await jobs(w, claim=poster.claim))
                (await crm.wait_for(count))[-1].verify(secret)
            await until_recorded(w, 2)

    async def test_the_inside_is_not_reached(self, w: World, keys: Keys, crm: Receiver) -> None:
        async with posting(w, keys, allow_private_addresses=False) as poster:
            poster.submit(await jobs(w, claim=poster.claim))
            ((state, status, answer),) = await until_recorded(w)
        assert (state, status) == ("waiting", None)
        assert answer == "no connection: the host's address is not a public one (webhooks.allow_private_addresses)"
        assert crm.posts == []


class TestAnswer:
    @pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
    async def test_2xx_is_success(self, w: World, keys: Keys, crm: Receiver, status: int) -> None:
        assert await attempted(w, keys, crm, status) == ("delivered", status, "")

    @pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
    async def test_anything_else_is_tried_again(self, w: World, keys: Keys, crm: Receiver, status: int) -> None:
        assert await attempted(w, keys, crm, Answer(status, b"why")) == ("waiting", status, "why")

    async def test_a_redirect_is_not_followed(self, w: World, keys: Keys, crm: Receiver) -> None:
        assert await attempted(w, keys, crm, redirect(crm.at("/elsewhere"))) == ("waiting", 307, "")
        assert [found.path for found in crm.posts] == ["/hook"]

    async def test_a_deal_becomes_the_messages(self, w: World, keys: Keys, crm: Receiver) -> None:
        await attempted(w, keys, crm, deal(4711, "https://crm.example/deals/4711"))
        rows = await w.rows(select(events.c.deal_id, events.c.deal_url))
        assert rows == [("4711", "https://crm.example/deals/4711")]

    async def test_a_deal_in_a_refusal_does_not_count(self, w: World, keys: Keys, crm: Receiver) -> None:
        await attempted(w, keys, crm, Answer(500, b'{"deal_id": 1}'))
        assert await w.rows(select(events.c.deal_id)) == [(None,)]

    async def test_gone_disables_the_webhook_visibly(self, w: World, keys: Keys, crm: Receiver) -> None:
        assert (await attempted(w, keys, crm, 410))[:2] == ("failed", 410)
        assert (w.site().webhooks[0].enabled, w.site().webhooks[0].disabled_reason) == (
            False,
            "the receiver answered 410 Gone",
        )

    async def test_an_endless_answer_is_read_no_further_than_needed(self, w: World, keys: Keys, crm: Receiver) -> None:
        state, status, answer = await attempted(w, keys, crm, Endless(200))
        assert (state, status, answer) == ("delivered", 200, "x" * post_verbs.ANSWER_KEPT)

    async def test_2xx_counts_even_if_the_rest_never_comes(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(direct, "TIMEOUT", 1.0)
        assert await attempted(w, keys, crm, Stall(200, b"thank y")) == ("delivered", 200, "thank y")

    async def test_2xx_counts_where_there_is_no_telling_whether_a_secret_is_repeated(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        access = keys.seal(Access(variables={"code": "aB3+/x=Q"}).to_json())
        await w.declare(replace(SHOP, webhooks=(hook(crm.url, secret=keys.seal(SECRET), access=access),)))
        answer = Answer(200, b"&#" + b"1" * 5000)
        assert await attempted(w, keys, crm, answer) == ("delivered", 200, REPEATED.decode())

    @pytest.mark.parametrize(("broken", "kept"), [("Composer.kept", UNREAD), ("read_deal", "thanks")])
    async def test_2xx_counts_even_if_looking_at_the_answer_fails(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch, broken: str, kept: str
    ) -> None:
        def fail(*_: object) -> None:
            raise ValueError("nobody thought of this")

        monkeypatch.setattr(f"webapi.post.{broken}", fail)
        with structlog.testing.capture_logs() as logged:
            assert await attempted(w, keys, crm, Answer(200, b"thanks")) == ("delivered", 200, kept)
        assert [one["event"] for one in logged if one["log_level"] == "error"] == ["answer not read"]

    async def test_a_refusal_that_never_ends_is_no_answer(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(direct, "TIMEOUT", 0.2)
        assert await attempted(w, keys, crm, Stall(500)) == ("waiting", None, "no answer within 0 s")

    async def test_no_answer_ends_the_attempt(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(direct, "TIMEOUT", 0.2)
        assert await attempted(w, keys, crm, Hang()) == ("waiting", None, "no answer within 0 s")
        ((duration,),) = await w.rows(select(post_attempts.c.duration))
        assert 0.2 <= duration < 10

    async def test_a_closed_connection_is_tried_again(self, w: World, keys: Keys, crm: Receiver) -> None:
        row = await attempted(w, keys, crm, Abort())
        assert row[:2] == ("waiting", None)
        assert row[2] in ("the connection was closed without an answer", "the attempt failed: ClientOSError")

    async def test_an_answer_that_is_no_utf8_is_shown_as_far_as_it_is(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        assert await attempted(w, keys, crm, Answer(500, b"\xff\x00ok")) == ("waiting", 500, "\ufffd\x00ok")


class TestUnreachable:
    """Why, in words for History, without an address or the URL, which may hold a key."""

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("http://127.0.0.1:1/hook", "no connection: Connection refused"),
            ("ftp://127.0.0.1/hook", "the webhook's URL is not valid"),
            ("http://127.0.0.1:99999/hook", "the webhook's URL is not valid"),
            ("", "the webhook's URL is not valid"),
        ],
    )
    async def test_it_says_why(self, w: World, keys: Keys, url: str, reason: str) -> None:
        await w.declare(replace(SHOP, webhooks=(hook(url, secret=keys.seal(SECRET)),)))
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, claim=poster.claim))
            assert await until_recorded(w) == [("waiting", None, reason)]

    async def test_a_name_that_is_not_found_is_said_to_be(self, w: World, keys: Keys) -> None:
        class Nowhere(AbstractResolver):
            async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
                raise OSError(None, "no such name")

            async def close(self) -> None:
                pass

        await w.declare(replace(SHOP, webhooks=(hook("https://crm.invalid/hook", secret=keys.seal(SECRET)),)))
        async with posting(w, keys, resolver=Nowhere()) as poster:
            poster.submit(await jobs(w, claim=poster.claim))
            assert await until_recorded(w) == [("waiting", None, "no connection: the host's name was not found")]

    async def test_a_certificate_that_nobody_vouches_for_is_refused(self, w: World, keys: Keys, tmp_path: Path) -> None:
        certificate = Certificate.make(tmp_path, "127.0.0.1")
        async with Receiver(tls=certificate.server_context()) as crm:
            await w.declare(replace(SHOP, webhooks=(hook(crm.url, secret=keys.seal(SECRET)),)))
            async with posting(w, keys) as poster:
                poster.submit(await jobs(w, claim=poster.claim))
                ((state, status, reason),) = await until_recorded(w)
            assert (state, status) == ("waiting", None)
            assert reason.startswith("TLS: unable to get local issuer certificate")
            assert crm.posts == []

    @pytest.mark.parametrize(
        ("sealed", "reason"),
        [
            ("s1.AAAA", "the webhook's secret cannot be read: not a sealed value"),
            ("good", "the attempt failed here, the log says why"),
        ],
    )
    async def test_a_secret_that_cannot_be_read_is_no_reason_to_stop(
        self, w: World, keys: Keys, crm: Receiver, sealed: str, reason: str
    ) -> None:
        secret = keys.seal("not a webhook secret") if sealed == "good" else sealed
        await w.declare(replace(SHOP, webhooks=(hook(crm.url, secret=secret),)))
        with structlog.testing.capture_logs():
            async with posting(w, keys) as poster:
                poster.submit(await jobs(w, claim=poster.claim))
                assert await until_recorded(w) == [("waiting", None, reason)]
        assert crm.posts == []


HOOK = Hook(1, "http://x/", "s", HookSettings())


def job(attempts: int = 1) -> PostJob:
    message = PayloadMessage("1", "1", None, None, None, CARD)
    attribution = Attribution(AttributionState.NONE, "plus/1")
    return PostJob(1, "me", attempts, "evt_1", HOOK, 1, 1, NOW, message, (), None, attribution)


class TestSettle:
    def wait(self, attempts: int, reply: Reply, jitter: float = 0.0) -> float | None:
        result = settle(job(attempts), reply, NOW, 0.1, NOW + 1, jitter)
        assert result.state in ("waiting", "failed")
        return result.next_at - NOW - 1 if result.state == "waiting" else None

    def test_the_schedule_is_that_of_standard_webhooks(self) -> None:
        waits = [self.wait(attempts, Reply(500, "")) for attempts in range(1, 11)]
        assert waits == [*WEBHOOK_DELAYS[1:], None]

    def test_jitter_only_adds(self) -> None:
        assert self.wait(3, Reply(None, "")) == 1800
        assert 1800 < (self.wait(3, Reply(None, ""), 0.99) or 0) <= 1800 * 1.2

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_receiver_may_put_us_off(self, status: int) -> None:
        assert self.wait(1, Reply(status, "", "120")) == 120
        assert self.wait(1, Reply(status, "", "1")) == 5
        assert self.wait(1, Reply(status, "", "soon")) == 5
        assert self.wait(1, Reply(status, "", "999999999")) == DAY
        assert self.wait(10, Reply(status, "", "120")) is None

    def test_other_answers_put_nobody_off(self) -> None:
        assert self.wait(1, Reply(500, "", "120")) == 5

    @pytest.mark.parametrize(
        ("asked", "until"), [("60", NOW + 60), ("0", NOW), ("999999999", NOW + DAY), ("soon", None), (None, None)]
    )
    def test_until_when_it_puts_us_off_is_told_apart_from_our_own_schedule(
        self, asked: str | None, until: float | None
    ) -> None:
        result = settle(job(6), Reply(503, "", asked), NOW, 0.1, NOW, 0.0)
        assert (result.put_off, result.next_at) == (until, max(NOW + WEBHOOK_DELAYS[6], until or 0.0))

    def test_success_and_gone_end_it(self) -> None:
        assert settle(job(), Reply(204, ""), NOW, 0.1, NOW, 0.0).state == "delivered"
        gone = settle(job(), Reply(410, ""), NOW, 0.1, NOW, 0.0)
        assert (gone.state, gone.disable_webhook) == ("failed", "the receiver answered 410 Gone")
        assert settle(job(10), Reply(500, ""), NOW, 0.1, NOW, 0.0).disable_webhook is None


class TestDeal:
    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (b'{"deal_id": "17", "deal_url": "https://crm.example/17"}', ("17", "https://crm.example/17")),
            (b' {"deal_id": 17}', ("17", None)),
            (b'{"deal_id": 1.5}', ("1.5", None)),
            (b'{"deal_url": "http://crm.example/17?a=b#c"}', (None, "http://crm.example/17?a=b#c")),
            (b'{"deal_id": " 17 ", "deal_url": null}', ("17", None)),
            ('{"deal_id": "сделка-7"}'.encode(), ("сделка-7", None)),
            (b'{"deal_id": null, "deal_url": null}', None),
            (b'{"deal_id": ""}', None),
            (b'{"deal_id": true}', None),
            (b'{"deal_id": {"id": 17}}', None),
            (b'{"deal_id": [17]}', None),
            (b'{"deal_id": NaN}', None),
            (b'{"deal_id": 1e999}', None),
            (b'{"deal_id": "a\\nb"}', None),
            (b'{"deal_id": "\\ud800"}', None),
            (b'{"deal_id": "' + b"9" * 201 + b'"}', None),
            (b'{"deal_id": ' + b"9" * 5000 + b"}", None),
            (b'{"deal_url": "javascript:alert(1)"}', None),
            (b'{"deal_url": "https://"}', None),
            (b'{"deal_url": "https://[::1"}', None),
            (b'{"deal_url": "https://a b/"}', None),
            (b'{"deal_url": "https://crm.example/' + b"x" * 2000 + b'"}', None),
            (b'{"deal_id": "17", "deal_url": "//crm.example"}', ("17", None)),
            (b'["deal_id"]', None),
            (b'{"deal_id": "17"', None),
            (b'{"deal_id":' * 20_000, None),
            (b'\xff{"deal_id": 1}', None),
            (b"ok", None),
            (b"", None),
        ],
    )
    def test_only_a_plain_number_and_a_web_address_count(
        self, answer: bytes, expected: tuple[str | None, str | None] | None
    ) -> None:
        assert read_deal(answer, HOOK, Access()) == expected


class Flood:
    """A server that begins an answer and goes on with ``more`` until the client leaves; ``sent`` octets."""

    def __init__(self, begin: bytes, more: bytes) -> None:
        self.begin, self.more, self.sent = begin, more, 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            for octets in (self.begin, *[self.more] * 1000):
                writer.write(octets)
                await writer.drain()
                self.sent += len(octets)
        except ConnectionError:
            pass  # as it should
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Its host and port."""
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0, ssl=tls)
        async with server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n" * 1000
CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"
#: More than is taken from a socket, with the megabytes that lie in buffers between.
SOME = 10_000_000


@pytest.mark.parametrize(
    ("flood", "outcome"),
    [(Flood(CONTINUE, CONTINUE), ("waiting", None)), (Flood(CHUNK, b"x" * 30_000), ("delivered", 200))],
    ids=["1xx", "chunk extension"],
)
async def test_an_answer_that_never_comes_to_its_body_is_cut_off(
    w: World, keys: Keys, flood: Flood, outcome: tuple[str, int | None]
) -> None:
    async with flood.serving() as host:
        await w.declare(replace(SHOP, webhooks=(hook(f"http://{host}/", secret=keys.seal(SECRET)),)))
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, 1, poster.claim))
            ((*found, _),) = await until_recorded(w)
    assert tuple(found) == outcome
    assert flood.sent < SOME


async def test_behind_tls_as_well(tmp_path: Path) -> None:
    certificate, flood = Certificate.make(tmp_path, "127.0.0.1"), Flood(CONTINUE, CONTINUE)
    async with (
        flood.serving(certificate.server_context()) as host,
        aiohttp.ClientSession(connector=guarded_connector(True)) as session,
    ):
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"https://{host}/", ssl=certificate.client_context())
    assert flood.sent < SOME


async def test_what_a_kept_connection_took_before_does_not_count() -> None:
    async with (
        Receiver(Answer(200, b"x" * 60_000)) as crm,
        aiohttp.ClientSession(connector=guarded_connector(True)) as session,
    ):
        for _ in range(20):
            async with session.post(crm.url) as response:
                assert len(await response.read()) == 60_000
    assert len({post.connection for post in crm.posts}) == 1
