"""The composition root: builds every part of the daemon, starts them from the store upwards, stops them in reverse.

lock ▸ keys ▸ store ▸ extraction, forwarding, posting, sweep ▸ HTTP ▸ control socket ▸ SMTP ▸ READY=1
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from relay import agents, background, commands, notify, sources
from relay.bodies import Bodies
from relay.clockwatch import ClockWatch
from relay.config.fields import Endpoint
from relay.config.models import Config
from relay.control import DirectoryLock, serve
from relay.declare import definitions
from relay.dns import Resolver
from relay.extract import Extractor
from relay.extraction import Extraction
from relay.forward import Forwarder
from relay.geoip import GeoIp
from relay.intake import Intake, Policy
from relay.learning import Learning
from relay.pace import Pace
from relay.secrets import Keys
from relay.smtp_in import Listen, SmtpServer
from relay.smtp_limits import Limits, Settings
from relay.smtp_out import Sender
from relay.store import posts
from relay.store.messages import Evidence
from relay.store.sites import declare_all
from relay.store.store import DATABASE, Store
from relay.sweep import Ages, Sweeper
from relay.tls import TlsFiles
from webapi import app as web_app
from webapi.compose import Composer
from webapi.context import Context
from webapi.webhooks import Poster

log = structlog.get_logger()

#: Seconds that mail being received, forwarded and posted has to come to its end when the daemon stops.
GRACE = 20.0
#: Open files that the process asks to be allowed.
FILES = 65_536
Clock = Callable[[], float]


@dataclass(slots=True)
class Daemon:
    """A running daemon: where it listens, and what its parts are."""

    config: Config
    store: Store
    bodies: Bodies
    keys: Keys
    forwarder: Forwarder
    poster: Poster
    intake: Intake
    smtp: SmtpServer
    http_ports: list[int]


@contextlib.asynccontextmanager
async def running(config: Config, clock: Clock = time.time) -> AsyncIterator[Daemon]:
    """Start the daemon; leaving the context stops it, losing nothing.

    Raises AlreadyRunning, KeysError, WrongRevision, OSError and what the declared sites may be refused for.
    """
    async with AsyncExitStack() as stack:
        data_dir = config.data_dir
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(DirectoryLock(data_dir))
        handed = notify.take_sockets()
        keys = Keys.load(data_dir / "keys")
        bodies = Bodies(data_dir / "bodies")
        bodies.prepare()
        store = await _open_store(stack, config, keys, clock)
        composer = Composer(keys, config.http.public_url, config.retention.raw)
        pace = Pace()
        forwarder, poster = await _start_workers(stack, config, store, bodies, keys, composer, clock, pace)
        extraction = Extraction(
            store,
            bodies,
            Extractor(workers=config.extract.workers),
            claim=poster.claim,
            on_posts=poster.submit,
            clock=clock,
            pace=pace,
        )
        await extraction.start()
        stack.push_async_callback(extraction.close, GRACE)
        sweeper = Sweeper(store, bodies, _ages(config), clock)
        _background(stack, background.begin("sweep", sweeper.run))
        _background(stack, background.begin("clock", ClockWatch(store, clock, forwarder.clock_set_back).run))
        stopping = asyncio.Event()
        stack.callback(stopping.set)
        agents.load()  # what the first page view would else wait for
        sources.referrers()
        intake = Intake(store, keys, _policy(config), forwarder, extraction, bodies, data_dir, clock)
        context = Context(
            store=store,
            bodies=bodies,
            keys=keys,
            http=config.http,
            limits=config.limits,
            forward=config.forward,
            public_url=config.http.public_url,
            composer=composer,
            evidence=lambda: intake.evidence,
            allow_private_addresses=config.webhooks.allow_private_addresses,
            geoip=GeoIp(config.geoip.files, data_dir / "geoip"),
            visitor_ip=config.privacy.visitor_ip,
            retention=config.retention,
            clock=clock,
            on_posts_due=poster.wake,
            on_deliveries_due=forwarder.retry_now,
            draining=stopping.is_set,
        )
        http_ports = await _start_http(stack, config, context, handed.get("http", []))
        _background(stack, background.begin("learning", Learning(store.reader, intake.learn).run))
        smtp = SmtpServer(intake, bodies, _smtp_settings(config))
        daemon = Daemon(config, store, bodies, keys, forwarder, poster, intake, smtp, http_ports)
        control = await serve(data_dir / "control.sock", commands.handlers(daemon, clock))
        stack.push_async_callback(control.close)
        await smtp.start(_listen(config.smtp.listen, handed.get("smtp", []), "smtp"))
        stack.push_async_callback(smtp.stop, GRACE)
        log.info("ready", smtp=smtp.ports, http=http_ports, sites=len(store.sites.by_id), data_dir=str(data_dir))
        yield daemon


async def serve_forever(config: Config) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP is answered at once, for certificates reload by themselves."""
    _raise_file_limit()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(running(config))
        loop.add_signal_handler(signal.SIGHUP, _reloaded)
        gc.collect()
        gc.freeze()  # what was imported stays for good, so no collection has to walk over it
        notify.ready(f"SMTP {daemon.smtp.ports}, HTTP {daemon.http_ports}")
        # A stuck event loop sends nothing; a stop is watched, too.
        watchdog = asyncio.create_task(notify.watchdog(lambda: stopping.is_set() or daemon.store.writer.is_alive))
        await stopping.wait()
        notify.stopping("finishing what is under way")
        log.info("stopping")
    watchdog.cancel()


def _raise_file_limit() -> None:
    """A connection is a file, and shells give a process 1024: as many as the administrator allows it, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a second limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _reloaded() -> None:
    notify.reloading()
    notify.ready("certificates are read anew whenever their files change")


async def _open_store(stack: AsyncExitStack, config: Config, keys: Keys, clock: Clock) -> Store:
    store = Store(config.data_dir / DATABASE)
    await store.open(lambda line: log.info("migration", step=line))
    stack.push_async_callback(store.close)
    declared = definitions(config, keys.seal)
    now = clock()
    await store.redefine(lambda tx: declare_all(tx, declared, now))
    await store.write(lambda tx: posts.void_post_claims(tx, now))
    return store


async def _start_workers(
    stack: AsyncExitStack,
    config: Config,
    store: Store,
    bodies: Bodies,
    keys: Keys,
    composer: Composer,
    clock: Clock,
    pace: Pace,
) -> tuple[Forwarder, Poster]:
    nameservers = [str(server) for server in config.dns.nameservers]
    resolver = Resolver(nameservers, lifetime=config.dns.timeout)
    sender = Sender(
        config.hostname,
        resolver,
        mx_port=config.forward.mx_port,
        per_destination=config.forward.per_destination,
    )
    poster = Poster(
        store,
        composer,
        allow_private_addresses=config.webhooks.allow_private_addresses,
        clock=clock,
        pace=pace,
    )
    forwarder = Forwarder(
        store,
        bodies,
        sender,
        keys,
        hostname=config.hostname,
        next_hop=config.forward.next_hop,
        per_destination=config.forward.per_destination,
        clock=clock,
        on_held=poster.wake,
    )
    await forwarder.start()
    stack.push_async_callback(forwarder.close, GRACE)
    await poster.start()
    stack.push_async_callback(poster.close, GRACE)
    return forwarder, poster


def _background(stack: AsyncExitStack, task: asyncio.Task[None]) -> None:
    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


async def _start_http(
    stack: AsyncExitStack, config: Config, context: Context, handed: Sequence[socket.socket]
) -> list[int]:
    runner = web_app.runner(context)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    http = config.http
    tls = TlsFiles(http.tls_cert, http.tls_key).lasting() if http.tls_cert and http.tls_key else None
    loop, door = asyncio.get_running_loop(), web_app.door(runner)
    ports = []
    for where in _listen(http.listen, handed, "http"):
        if isinstance(where, socket.socket):
            server = await loop.create_server(door, sock=where, ssl=tls)
        else:
            server = await loop.create_server(door, *where, ssl=tls)
        stack.callback(server.close)
        ports += [sock.getsockname()[1] for sock in server.sockets]
    return ports


def _listen(wanted: Sequence[Endpoint | str], handed: Sequence[socket.socket], name: str) -> list[Listen]:
    found: list[Listen] = []
    for endpoint in wanted:
        if isinstance(endpoint, Endpoint):
            found.append((endpoint.host, endpoint.port or 0))
        elif handed:
            found.extend(handed)
        else:
            raise OSError(f"{name}.listen says systemd, but systemd handed over no socket named {name!r}")
    return found


def _policy(config: Config) -> Policy:
    return Policy(
        hostname=config.hostname,
        operator=config.operator,
        next_hop=config.forward.next_hop,
        retry_for=config.forward.retry_for,
        evidence=Evidence(config.attribution.window, config.attribution.known_sender),
        min_free=config.smtp.min_free,
        received_limit=config.limits.received_fields,
        header_size=config.limits.header_size,
        header_fields=config.limits.header_fields,
    )


def _smtp_settings(config: Config) -> Settings:
    limits, smtp = config.limits, config.smtp
    return Settings(
        hostname=config.hostname,
        max_message_size=smtp.max_message_size,
        bare_lf=smtp.bare_lf,
        tls=TlsFiles(smtp.tls_cert, smtp.tls_key) if smtp.tls_cert and smtp.tls_key else None,
        limits=Limits(
            recipients=limits.recipients,
            connections=limits.connections,
            connections_per_address=limits.connections_per_address,
            commands=limits.commands,
            errors=limits.errors,
            idle_commands=limits.idle_commands,
            command_timeout=limits.command_timeout,
            data_timeout=limits.data_timeout,
            data_grace=limits.data_grace,
            data_rate=limits.data_rate,
            exempt=tuple(limits.exempt),
        ),
    )


def _ages(config: Config) -> Ages:
    kept = config.retention
    return Ages(
        raw=kept.raw, messages=kept.messages, visits=kept.visits, routes=kept.routes, visitor_ip=kept.visitor_ip
    )
