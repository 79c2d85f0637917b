"""The composition root: builds every part of the daemon, starts them from the store upwards, stops them in reverse.

lock ▸ keys ▸ store ▸ extraction, forwarding, posting, sweep ▸ HTTP ▸ control socket ▸ SMTP ▸ READY=1
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web

from relay import accepting, agents, background, check, commands, notify, sources
from relay.bodies import Bodies
from relay.clockwatch import ClockWatch
from relay.config.fields import Endpoint
from relay.config.models import Config
from relay.control import DirectoryLock, serve
from relay.declare import log_removed, open_store
from relay.dns import configured
from relay.extract import Extractor
from relay.extraction import Extraction
from relay.forward import Forwarder
from relay.geoip import GeoIp
from relay.intake import Intake
from relay.learning import Learning
from relay.loopwatch import LoopWatch
from relay.measures import Measures
from relay.pace import Pace
from relay.reload import Reloader, certificate, policy, smtp_settings
from relay.secrets import Keys, new_link, token_hash
from relay.smtp_in import SmtpServer
from relay.smtp_out import Sender
from relay.store import users
from relay.store.store import Store
from relay.sweep import Ages, Sweeper
from relay.tls import TlsFiles
from webapi import app as web_app
from webapi.checks import EACH
from webapi.compose import Composer
from webapi.context import Context
from webapi.poster_frames import Settings as PosterSettings
from webapi.poster_process import PosterProcess, Posting

log = structlog.get_logger()

#: Seconds that mail being received, forwarded and posted has to come to its end when the daemon stops.
GRACE = 20.0
#: Open files that the process asks to be allowed.
FILES = 65_536
#: Seconds until the event loop gives way to the writer's thread, which waits for its turn after every statement:
#: Python's 5 ms are longer than a commit takes.
SWITCH = 0.0005
#: The descriptor of standard output.
STDOUT = 1
Clock = Callable[[], float]
MakePoster = Callable[[Store, PosterSettings, Clock, Pace], Posting]


@dataclass(slots=True)
class Daemon:
    """A running daemon: where it listens, what its parts are, and the configuration that is in use."""

    config: Config
    store: Store
    bodies: Bodies
    keys: Keys
    forwarder: Forwarder
    poster: Posting
    intake: Intake
    smtp: SmtpServer
    web: web.Application
    https: TlsFiles | None
    http_ports: list[int]


@contextlib.asynccontextmanager
async def running(
    config: Config, clock: Clock = time.time, make_poster: MakePoster = PosterProcess
) -> AsyncIterator[Daemon]:
    """Start the daemon; leaving the context stops it, losing nothing.

    With a ``clock`` of its own it needs a poster that goes by it, too.

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
        store, left = await open_store(
            stack, config, keys, clock(), lambda line: log.info("migration", step=line), log_removed
        )
        if left:
            log.warning("deliveries were under way when the daemon stopped", count=left)
        composer = Composer(keys, config.http.public_url, config.retention.raw)
        pace = Pace()
        poster = make_poster(store, _poster_settings(config, keys), clock, pace)
        watch = ClockWatch(store, clock, lambda by: forwarder.clock_set_back(by))
        await watch.begin()
        forwarder = await _start_forwarding(stack, config, store, bodies, keys, poster, clock, watch.is_doubtful)
        _background(stack, background.begin("clock", watch.run))
        extraction = await _start_posting(stack, config, store, bodies, poster, clock, pace)
        sweeper = Sweeper(store, bodies, _ages(config), clock)
        _background(stack, background.begin("sweep", sweeper.run))
        stopping = asyncio.Event()
        agents.load()  # what the first page view would else wait for
        sources.referrers()
        loop_watch = LoopWatch()
        _background(stack, background.begin("loop", loop_watch.run))
        intake = Intake(store, keys, policy(config), forwarder, extraction, bodies, data_dir, clock, pace)
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
            standing=poster.standing,
            measures=lambda: Measures(
                intake, smtp, forwarder, poster, loop_watch, daemon.config.smtp.min_free
            ).families(),
            room=intake.room_for_views,
            run_checks=lambda names, tell: check.run_some(daemon.config, names, tell, clock, EACH),
        )
        runner = web_app.runner(context)
        https = certificate(config.http)
        smtp = SmtpServer(intake, bodies, smtp_settings(config))
        http_ports = await _start_http(stack, config, runner, https, handed.get("http", []))
        _background(stack, background.begin("learning", Learning(store.reports, intake.learn).run))
        daemon = Daemon(config, store, bodies, keys, forwarder, poster, intake, smtp, runner.app, https, http_ports)
        control = await serve(data_dir / "control.sock", commands.handlers(daemon, clock))
        stack.push_async_callback(control.close)
        await smtp.start(_listen(config.smtp.listen, handed.get("smtp", []), "smtp"))
        stack.push_async_callback(smtp.stop, GRACE)
        stack.callback(stopping.set)  # the first to run: while SMTP ends HTTP is still served, and says that we stop
        await _first_admin(store, config.http.public_url, clock())
        log.info("ready", smtp=smtp.ports, http=http_ports, sites=len(store.sites.by_id), data_dir=str(data_dir))
        yield daemon


async def serve_forever(config: Config, path: Path) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP has the configuration's file ``path`` read again (relay/reload.py)."""
    _raise_file_limit()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    reload = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(running(config))
        reloader = Reloader(path, daemon, time.time)
        _background(stack, background.begin("reloading", lambda: reloader.run(reload, notify.reloading, notify.ready)))
        gc.collect()
        gc.freeze()  # what was imported stays for good, so no collection has to walk over it
        sys.setswitchinterval(SWITCH)
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


async def _start_forwarding(
    stack: AsyncExitStack,
    config: Config,
    store: Store,
    bodies: Bodies,
    keys: Keys,
    poster: Posting,
    clock: Clock,
    clock_is_doubtful: Callable[[], bool],
) -> Forwarder:
    sender = Sender(
        config.hostname,
        configured(config.dns),
        mx_port=config.forward.mx_port,
        per_destination=config.forward.per_destination,
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
        clock_is_doubtful=clock_is_doubtful,
        on_held=poster.wake,
    )
    await forwarder.start()
    stack.push_async_callback(forwarder.close, GRACE)
    return forwarder


async def _start_posting(
    stack: AsyncExitStack,
    config: Config,
    store: Store,
    bodies: Bodies,
    poster: Posting,
    clock: Clock,
    pace: Pace,
) -> Extraction:
    """Extraction and the poster: what is read is posted."""
    await poster.start()
    stack.push_async_callback(poster.close, GRACE)
    extraction = Extraction(
        store,
        bodies,
        Extractor(workers=config.extract.workers),
        claim=lambda: poster.claim,
        on_posts=poster.submit,
        passes_over=poster.backed_up,
        clock=clock,
        pace=pace,
    )
    await extraction.start()
    stack.push_async_callback(extraction.close, GRACE)
    return extraction


def _poster_settings(config: Config, keys: Keys) -> PosterSettings:
    return PosterSettings(
        keys=keys,
        public_url=config.http.public_url,
        links_live_for=config.retention.raw,
        allow_private_addresses=config.webhooks.allow_private_addresses,
        log=(config.log.level, config.log.format),
    )


async def _first_admin(store: Store, public_url: str, now: float) -> None:
    """While nobody can log in to the pages, every start prints a one-time link for the first administrator.

    On standard output and not in the log, which is collected and kept by others. So is the journal: there it says how
    to get one.
    """
    link = new_link()
    if notify.is_journal(STDOUT):
        if not await users.any_user(store.reader):
            _tell("Nobody can log in yet. `relay user create NAME --role admin` prints the first administrator's link.")
    elif await store.write(lambda tx: users.invite(tx, None, token_hash(link), now)):
        _tell(f"Nobody can log in yet. The first administrator, within three days: {public_url}/ui/welcome/{link}")


def _tell(line: str) -> None:
    """On standard output, which may be closed, a file on a full disk or a pipe that nobody reads: mail comes first."""
    try:
        print(line, flush=True)
    except OSError:
        # What could not be written is tried once more at the end, which would be exit code 120.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, STDOUT)
        os.close(nowhere)


def _background(stack: AsyncExitStack, task: asyncio.Task[None]) -> None:
    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


async def _start_http(
    stack: AsyncExitStack,
    config: Config,
    runner: web.AppRunner,
    https: TlsFiles | None,
    handed: Sequence[socket.socket],
) -> list[int]:
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    tls = https.lasting() if https else None
    door = web_app.door(runner)
    listeners = await accepting.serve(door, _listen(config.http.listen, handed, "http"), tls)
    for listener in listeners:
        stack.callback(listener.close)
    return [listener.socket.getsockname()[1] for listener in listeners]


def _listen(wanted: Sequence[Endpoint | str], handed: Sequence[socket.socket], name: str) -> list[accepting.Listen]:
    found: list[accepting.Listen] = []
    for endpoint in wanted:
        if isinstance(endpoint, Endpoint):
            found.append((endpoint.host, endpoint.port or 0))
        elif handed:
            found.extend(handed)
        else:
            raise OSError(f"{name}.listen says systemd, but systemd handed over no socket named {name!r}")
    return found


def _ages(config: Config) -> Ages:
    kept = config.retention
    return Ages(
        raw=kept.raw,
        messages=kept.messages,
        visits=kept.visits,
        routes=kept.routes,
        visitor_ip=kept.visitor_ip,
        changes=kept.changes,
    )
