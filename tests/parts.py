"""The daemon's mail parts in one process, over a real store and real sockets, without HTTP: for unit tests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from relay.bodies import Bodies
from relay.core.model import Address, Method
from relay.dns import Resolver
from relay.forward import Forwarder
from relay.intake import Intake, Policy
from relay.secrets import Keys
from relay.smtp_in import SmtpServer
from relay.smtp_limits import Settings
from relay.smtp_out import Sender, Timeouts
from relay.store import queue
from relay.store.messages import Evidence
from relay.store.schema import deliveries
from relay.store.sites import SiteDefinition, StaticDefinition, TargetDefinition, declare_all
from relay.store.store import DATABASE, Store
from tests.smtp_client import SmtpClient
from tests.store_fixtures import fresh_database, fresh_keys

DOMAIN = "track.example.com"
MAIL = b"From: Alice <alice@example.org>\r\nSubject: hi\r\n\r\nhello\r\n..dot\r\n"
#: Seconds for anything that should happen soon. Reached only when a test fails.
PATIENCE = 30.0
SITE = SiteDefinition(
    name="example",
    key="pk_example",
    origins=("https://www.example.com",),
    tracking=True,
    send_to_crm=True,
    bots="none",
    visit_timeout=14 * 86400.0,
    targets=(
        TargetDefinition(Address("sales", "example.com"), Method.PLUS, DOMAIN, (), 900.0),
        TargetDefinition(
            Address("info", "example.com"), Method.POOL, None, (Address("p1", DOMAIN), Address("p2", DOMAIN)), 900.0
        ),
        TargetDefinition(Address("help", "example.com"), Method.UNIQUE, DOMAIN, (), 900.0),
    ),
    statics=(StaticDefinition(Address("card", DOMAIN), "sales@example.com", "business card"),),
)


@dataclass
class Clock:
    """Real time, moved by ``ahead`` seconds."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Read:
    """Stands where the extraction is: notes what it was given."""

    given: list[int] = field(default_factory=list)

    def submit(self, message_id: int, body: Any) -> None:
        self.given.append(message_id)


@dataclass
class Parts:
    store: Store
    bodies: Bodies
    keys: Keys
    forwarder: Forwarder
    intake: Intake
    smtp: SmtpServer
    clock: Clock
    read: Read
    sender: Sender
    held: asyncio.Event  # set when a delivery has failed for good

    @property
    def port(self) -> int:
        return self.smtp.ports[0]

    async def send(self, *recipients: str, mail: bytes = MAIL, sender: str = "alice@example.org") -> str:
        """One transaction, for the plus target unless it is said otherwise; the reply to the final dot."""
        async with await SmtpClient.hello(self.port) as client:
            paths = (f"<{address}>" for address in recipients or (f"sales@{DOMAIN}",))
            answer = await client.mail(mail + b".\r\n", *paths, sender=f"<{sender}>")
            return f"{answer.code} {answer.text}"

    async def delivery_rows(self) -> list[dict[str, Any]]:
        columns = list(deliveries.c)
        rows = await self.store.reader.all(select(*columns).order_by(deliveries.c.id))
        return [dict(zip((column.name for column in columns), row, strict=True)) for row in rows]

    async def until(self, condition: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The delivery rows once they meet the condition, which no event announces."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition(rows := await self.delivery_rows()):
                    await asyncio.sleep(0.005)
                return rows
        except TimeoutError:
            raise AssertionError(f"not reached: {await self.delivery_rows()}") from None


@contextlib.asynccontextmanager
async def running_parts(
    directory: Path,
    next_hop: str | None,
    *,
    sites: tuple[SiteDefinition, ...] = (SITE,),
    nameservers: tuple[str, ...] = (),
    mx_port: int = 25,
    policy: dict[str, Any] | None = None,
    timeouts: Timeouts | None = None,
    dns_lifetime: float = 10.0,
    per_destination: int = 20,
    grace: float = 5.0,
    start_forwarding: bool = True,
) -> AsyncIterator[Parts]:
    clock, read, held = Clock(), Read(), asyncio.Event()
    keys = Keys.load(directory / "keys") if (directory / "keys").exists() else fresh_keys(directory / "keys")
    bodies = Bodies(directory / "bodies")
    bodies.prepare()
    if not (directory / DATABASE).exists():
        fresh_database(directory)
    store = Store(directory / DATABASE)
    await store.open()
    await store.redefine(lambda tx: declare_all(tx, list(sites), clock()))
    await store.write(queue.void_claims)
    sender = Sender(
        "mx.track.example.com",
        Resolver(list(nameservers), lifetime=dns_lifetime),
        mx_port=mx_port,
        per_destination=per_destination,
        timeouts=timeouts,
    )
    forwarder = Forwarder(
        store,
        bodies,
        sender,
        keys,
        hostname="mx.track.example.com",
        next_hop=next_hop,
        per_destination=per_destination,
        clock=clock,
        on_held=held.set,
    )
    settings = replace(
        Policy("mx.track.example.com", Address("ops", "example.com"), next_hop, 432000.0, Evidence(86400.0), 1 << 20),
        **(policy or {}),
    )
    intake = Intake(store, keys, settings, forwarder, read, bodies, directory, clock)
    smtp = SmtpServer(intake, bodies, Settings("mx.track.example.com"))
    if start_forwarding:
        await forwarder.start()
    await smtp.start([("127.0.0.1", 0)])
    try:
        yield Parts(store, bodies, keys, forwarder, intake, smtp, clock, read, sender, held)
    finally:
        await smtp.stop(5)
        await forwarder.close(grace)
        await store.close()
