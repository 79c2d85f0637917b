"""One daemon with everything it meets: a page that binds, a sender, a next hop, a CRM, and somebody with a token.

async with world(tmp_path) as relay:
    address = await relay.shown("sales@example.test")
    message = await relay.mail(address, letter("an enquiry"))
    await relay.forwarded(message)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from relay import control
from relay.core.wire import stuff
from tests.daemon import BASE, PATIENCE, Daemon, Entry, merged
from tests.smtp_client import Answer, SmtpClient
from tests.smtp_sink import Received, SmtpSink
from tests.webhook_receiver import Post, Receiver, Script

ORIGIN = "https://www.example.test"
PUBLIC_URL = "https://relay.example.test"
SECRET = "whsec_c2NlbmFyaW9zIG5lZWQgYSBzZWNyZXQsIHRvbw=="
DOMAIN = "track.test"
#: Seconds between two looks at what announces nothing.
LOOK = 0.02
T = TypeVar("T")
_numbers = itertools.count(1)


def letter(subject: str, text: str = "Hello,\r\nis it still to be had?\r\n", *fields: str, sender: str = "") -> bytes:
    """A message as its author sends it: CR LF lines, nothing stuffed."""
    head = [f"From: Ann <{sender or 'ann@customer.test'}>", f"Subject: {subject}", *fields]
    return ("\r\n".join(head) + "\r\n\r\n" + text).encode()


def unique_letter(*fields: str, text: str = "Hello\r\n", sender: str = "") -> bytes:
    """A letter that no other is equal to: the same bytes again would count as resent."""
    return letter(f"letter {next(_numbers)}", text, *fields, sender=sender)


def target(address: str, method: str, **settings: Any) -> dict[str, Any]:
    return {"address": address, "method": method, **({} if "pool" in settings else {"domain": DOMAIN}), **settings}


def site(*targets: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """A site named "example", unless it is said otherwise."""
    return {"name": "example", "key": "pk_example", "origins": [ORIGIN], "target": list(targets), **settings}


SITE = site(
    target("sales@example.test", "unique"),
    target("plus@example.test", "plus"),
    target("pool@example.test", "pool", pool=[f"pool{number}@{DOMAIN}" for number in (1, 2)]),
    static=[{"address": f"card@{DOMAIN}", "target": "sales@example.test", "label": "business card"}],
)


@dataclass
class World:
    daemon: Daemon
    sink: SmtpSink
    crm: Receiver
    http: aiohttp.ClientSession
    settings: dict[str, Any]
    others: dict[str, Receiver] = field(default_factory=dict)  # further CRMs, by a name that the test gives them
    _token: str = field(default="", repr=False)

    # the page

    async def bind(
        self, *addresses: str, expect: int = 200, origin: str = ORIGIN, forwarded_for: str = "", **fields: Any
    ) -> dict[str, Any]:
        """POST /v1/bind as the script of a page does it; ``forwarded_for`` is what a proxy says of the visitor."""
        body = {"site": "pk_example", "page": f"{ORIGIN}/", "referrer": None, "addresses": addresses, **fields}
        headers = {"Origin": origin, "Content-Type": "text/plain", "User-Agent": "Mozilla/5.0 Firefox/140.0"}
        if forwarded_for:
            headers["X-Forwarded-For"] = forwarded_for
        async with self.http.post(f"{self.daemon.url}/v1/bind", json=body, headers=headers) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            assert response.status == expect, answer
            if response.ok:
                assert response.headers["Access-Control-Allow-Origin"] == origin
            return answer

    async def shown(self, address: str = "sales@example.test", **fields: Any) -> str:
        """The substitute that a new visit is shown instead of ``address``."""
        addresses: dict[str, str] = (await self.bind(address, **fields))["addresses"]
        return addresses[address]

    # the sender

    async def answer(self, content: bytes, *recipients: str, sender: str = "ann@customer.test") -> Answer:
        """What the daemon answers to the final dot of ``content`` for ``recipients``, all of which it accepts."""
        async with await SmtpClient.hello(self.daemon.smtp_port) as client:
            wire = stuff(content) + b".\r\n"
            answer = await client.mail(wire, *(f"<{address}>" for address in recipients), sender=f"<{sender}>")
            assert (await client.command("QUIT")).code == 221
            return answer

    async def mail(self, to: str, content: bytes, *others: str, sender: str = "ann@customer.test") -> int:
        """Send a message, accepted at once; our id of it."""
        answer = await self.answer(content, to, *others, sender=sender)
        assert answer.short == "250 2.0.0", answer
        return int(answer.text.rpartition(" ")[2])

    # what comes of it

    async def forwarded(self, message: int, state: str = "forwarded", since: int = 0) -> Entry:
        """The log's entry of a delivery of ``message`` that came to ``state``."""
        return await self.daemon.logged("delivery", message=message, state=state, since=since)

    async def arrived(self, content: bytes, count: int = 1, at: SmtpSink | None = None) -> list[Received]:
        """What the next hop accepted with ``content`` at its end, as soon as there are ``count`` of them."""
        sink = at or self.sink

        def found() -> list[Received]:
            return [one for one in sink.accepted if one.content.endswith(content)]

        try:
            await sink.wait(lambda _: len(found()) >= count, PATIENCE)
        except TimeoutError:
            raise AssertionError(f"{len(found())} of {count} came; {self.daemon.log[-20:]}") from None
        return found()

    async def row(self, sql: str, *parameters: Any) -> tuple[Any, ...]:
        """The first row of a query."""
        return (await asyncio.to_thread(self.daemon.query, sql, *parameters))[0]

    async def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(self.daemon.query, sql, *parameters)

    async def until(self, read: Callable[[], Awaitable[T]], condition: Callable[[T], bool]) -> T:
        """What ``read`` reads, as soon as it meets the condition: for rows and answers that no log entry announces."""
        deadline = time.monotonic() + PATIENCE
        while not condition(found := await read()):
            assert time.monotonic() < deadline, f"still {found!r:.500}; {self.daemon.log[-20:]}"
            await asyncio.sleep(LOOK)
        return found

    async def event(self, message: int) -> str:
        """The webhook-id of the message's event."""
        uid: str = (await self.row("SELECT uid FROM events WHERE message_id = ?", message))[0]
        return uid

    async def posted(self, message: int) -> Post:
        """What the CRM got of a message, as soon as that is recorded."""
        uid = await self.event(message)
        await self.daemon.logged("post", uid=uid, state="delivered")
        return next(post for post in self.crm.posts if post.headers["webhook-id"] == uid)

    async def cli(self, *arguments: str) -> str:
        """`relay ARGUMENTS` beside the daemon: what it printed. Fails unless it succeeded."""
        done = await asyncio.to_thread(self.daemon.cli, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def command(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The same over the control socket, without a process for it: where the command is not what is tested."""
        return await asyncio.to_thread(control.call, self.daemon.data_dir / "control.sock", command, arguments)

    async def retry_all(self) -> None:
        """Try everything that is deferred or held now."""
        await self.command("queue.retry", all=True)

    # the management API

    async def call(self, method: str, path: str, expect: int = 200, body: Any = None, **query: Any) -> Any:
        """A request with an admin's token: the JSON of the answer, None of an empty one."""
        octets = await self.octets(method, path, expect, body, **query)
        return json.loads(octets) if octets else None

    async def token(self, name: str, **rights: Any) -> str:
        """A new token, an admin's unless its ``rights`` say otherwise."""
        token: str = (await self.command("token.create", name=name, **rights))["token"]
        return token

    async def octets(self, method: str, path: str, expect: int = 200, body: Any = None, **query: Any) -> bytes:
        if not self._token:
            self._token = await self.token("scenario")
        headers = {"Authorization": f"Bearer {self._token}"}
        url = self.daemon.url + path
        async with self.http.request(method, url, params=query, json=body, headers=headers) as response:
            octets = await response.read()
            assert response.status == expect, (response.status, octets)
            return octets

    async def download(self, link: str, expect: int = 200) -> bytes:
        """What is behind a public link of the daemon, as a CRM without a login fetches it."""
        assert link.startswith(f"{PUBLIC_URL}/a/")
        async with self.http.get(self.daemon.url + link.removeprefix(PUBLIC_URL)) as response:
            assert response.status == expect
            return await response.read()


@contextlib.asynccontextmanager
async def world(
    directory: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    sites: Sequence[Mapping[str, Any]] = (SITE,),
    sink: SmtpSink | None = None,
    crm: Script = 200,
    hook: Callable[[Receiver], list[dict[str, Any]]] | None = None,
    start: bool = True,
) -> AsyncIterator[World]:
    """Everything running. ``settings`` go over tests/daemon.py's; the first site gets the CRM as its webhook.

    ``hook`` makes other webhooks for it. With ``start`` False the daemon is left to the test to start, and to
    make its own database: the copy that it finds otherwise is not synced, so a power cut would take it away.
    """
    async with sink or SmtpSink() as next_hop, Receiver(crm) as receiver, aiohttp.ClientSession() as http:
        hooks = hook(receiver) if hook else [{"url": receiver.url, "secret": SECRET}]
        first, *others = sites
        usual = {
            "forward": {"next_hop": f"smtp://{next_hop.address}"},
            "webhooks": {"allow_private_addresses": True},
            "http": {"public_url": PUBLIC_URL},
            "site": [{"webhook": hooks, **first}, *others],
        }
        chosen = merged(usual, settings or {})
        daemon = Daemon(directory, chosen, makes_database=not start)
        made = World(daemon, next_hop, receiver, http, merged(BASE, chosen))
        if start:
            async with daemon:
                yield made
            return
        try:
            yield made
        finally:
            daemon.kill()
