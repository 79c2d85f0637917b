"""``relay demo``: the real daemon with a website, a mailbox and a CRM round it, all on loopback.

website ─ /v1/bind ─▶ daemon ◀─ SMTP ─ visitor's letter
                        ├─ SMTP ─▶ mailbox ─┐
                        ├─ POST ─▶ CRM ─────┼─▶ board ─▶ the page
                        └─ /v1/messages ────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import tempfile
import time
import webbrowser
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import web

from relay import app, eventloop, logs
from relay.bodies import Bodies
from relay.config import parse
from relay.declare import fresh_secret
from relay.demo.board import Board
from relay.demo.crm import Crm
from relay.demo.mailbox import Mailbox
from relay.demo.page import Page
from relay.demo.settings import CARD, HOSTNAME, PAGE_PORT, SITE, SMTP_PORT, Ports, free_port, listening, toml
from relay.secrets import new_link, new_token, token_hash
from relay.smtp_in import SmtpServer
from relay.smtp_limits import Settings
from relay.store import tokens, users
from relay.store.engine import Tx

#: How often a start is tried when another program takes a port between our look and our use.
TRIES = 5
USER_NAME = "demo"
TOKEN_NAME = "relay demo"  # noqa: S105 - the name of a token, not a token


@dataclass(frozen=True, slots=True)
class Demo:
    """A running demo."""

    ports: Ports
    data_dir: Path
    board: Board
    daemon: app.Daemon

    @property
    def url(self) -> str:
        return f"{self.ports.page_url}/"


def run_demo(data_dir: Path | None = None, open_browser: bool = False) -> None:
    """Run the demo until SIGINT, SIGTERM or SIGHUP.

    Without ``data_dir`` its data go to a temporary folder and away with it.

    Raises what relay.app.running does.
    """
    logs.setup("warning", "auto")
    eventloop.run(_run(data_dir, open_browser))


async def _run(data_dir: Path | None, open_browser: bool) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    ending = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        ending.append(signal.SIGHUP)  # the terminal is closed
    for number in ending:
        loop.add_signal_handler(number, stopping.set)
    async with demo_running(data_dir) as demo:
        print(_introduction(demo), flush=True)
        if open_browser:
            await asyncio.to_thread(webbrowser.open, demo.url)
        await stopping.wait()
    print("The demo has ended." if data_dir else "The demo has ended, its data folder is removed.", flush=True)


def _introduction(demo: Demo) -> str:
    ports = demo.ports
    return f"""\
visit-relay demo, loopback only; Ctrl-C ends it

  open   {demo.url}
  pages  {demo.url}pages
  SMTP   127.0.0.1:{ports.smtp}
  API    {ports.http_url}
  data   {demo.data_dir}

  or send a mail from a terminal:
  swaks --server 127.0.0.1:{ports.smtp} --from ann@visitor.example --to {CARD}
"""


@contextlib.asynccontextmanager
async def demo_running(
    data_dir: Path | None = None, page_port: int = PAGE_PORT, smtp_port: int = SMTP_PORT
) -> AsyncIterator[Demo]:
    """Start everything; leaving the context stops it. ``page_port`` and ``smtp_port``: where ports are looked for."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_folder(data_dir))
        secret = fresh_secret()
        board = Board()
        page_socket = stack.enter_context(listening(page_port))
        mailbox_socket = stack.enter_context(listening(smtp_port + 1))
        await _start_mailbox(stack, board, folder, mailbox_socket)
        for left in reversed(range(TRIES)):
            taken = {_port(page_socket), _port(mailbox_socket)}
            http = free_port(page_port + 1, taken)
            ports = Ports(_port(page_socket), http, free_port(smtp_port, {*taken, http}), _port(mailbox_socket))
            try:
                daemon = await stack.enter_async_context(app.running(parse(toml(ports, secret), folder)))
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not left:
                    raise
        token = await _token(daemon)
        crm = Crm(board, secret, ports.page_url)
        page = Page(board, crm, ports, token, toml(ports, "whsec_…"), partial(_log_in, daemon))
        runner = web.AppRunner(page.app(), access_log=None, handle_signals=False, shutdown_timeout=2.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, page_socket).start()
        yield Demo(ports, folder, board, daemon)


@contextlib.contextmanager
def _folder(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is not None:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield data_dir.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as name:
        yield Path(name)


async def _start_mailbox(stack: AsyncExitStack, board: Board, folder: Path, sock: socket.socket) -> None:
    bodies = Bodies(folder / "mailbox")
    bodies.prepare()
    server = SmtpServer(Mailbox(board, bodies), bodies, Settings(f"mail.{HOSTNAME.partition('.')[2]}"))
    await server.start([sock])
    stack.push_async_callback(server.stop, 1.0)


async def _token(daemon: app.Daemon) -> str:
    """A token for the History, made as ``relay token create`` makes one; a former start's is revoked."""
    token = new_token()

    def create(tx: Tx) -> None:
        tokens.revoke(tx, TOKEN_NAME)
        tokens.create(tx, TOKEN_NAME, token_hash(token), "viewer", [SITE], time.time())

    await daemon.store.write(create)
    return token


async def _log_in(daemon: app.Daemon) -> str:
    """A session of the demo's own user, who has no password: nobody else becomes it."""
    cookie, now = new_link(), time.time()

    def begin(tx: Tx) -> None:
        user = users.named(tx, USER_NAME) or users.create(tx, USER_NAME, "admin", None, now)
        users.open_session(tx, user.id, token_hash(cookie), "127.0.0.1", "demo", now)

    await daemon.store.write(begin)
    return cookie


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port
