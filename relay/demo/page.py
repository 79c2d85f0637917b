"""The demo's one page, and what it talks to: /send, /events, /crm.

The demo is for the person at this machine: it listens on loopback, answers only to its own name (so no other website
can read it through a DNS name that leads here), and takes letters only from its own page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web
from jinja2 import Environment, FileSystemLoader, select_autoescape

from relay.demo.board import Board, Entry
from relay.demo.crm import Crm
from relay.demo.letter import Attachment, Letter, LetterError, Refused, send
from relay.demo.settings import CARD, SITE, SITE_KEY, Ports
from webapi.ui.session import COOKIE, ROOT

HERE = Path(__file__).parent
#: Octets of a request: a letter with its attachment, an event with its text.
MAX_REQUEST = 32 * 1024 * 1024
#: Seconds between two signs of life to a page on which nothing happens.
HEARTBEAT = 15.0
#: Seconds between two looks at the History while somebody watches.
HISTORY_EVERY = 0.2
HISTORY_SHOWN = 20

#: The cookie by which a browser that has seen another demo is known. Cookies are shared by all ports of a host.
INSTANCE = "relay_demo"
#: What mailtrack.js remembers.
VISIT_COOKIES = ("mailtrack_visit", "mailtrack_first")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Campaign:
    """A way to arrive: ``query`` is what the link behind it carries."""

    name: str
    query: str


CAMPAIGNS = (
    Campaign("Google Ads", "?utm_source=google&utm_medium=cpc&utm_campaign=sash_windows"),
    Campaign("Facebook post", "?rs=fb_new"),
    Campaign("Newsletter", "?utm_source=newsletter&utm_medium=email&utm_campaign=spring"),
    Campaign("Price comparison", "?utm_source=glazing_compare&utm_medium=referral&roistat_param_1=offer_17"),
)


class Page:
    """``token`` opens the management API; ``config`` is the relay.toml to show, without its secret.

    ``log_in`` begins a session of the pages and answers its cookie.
    """

    def __init__(
        self, board: Board, crm: Crm, ports: Ports, token: str, config: str, log_in: Callable[[], Awaitable[str]]
    ) -> None:
        self._board = board
        self._crm = crm
        self._ports = ports
        self._token = token
        self._log_in = log_in
        self._instance = secrets.token_hex(8)
        environment = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=select_autoescape(), trim_blocks=True
        )
        self._html = environment.get_template("page.html").render(
            campaigns=CAMPAIGNS,
            card=CARD,
            config=config,
            instance=self._instance,
            ports=ports,
            site_key=SITE_KEY,
        )

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_REQUEST, middlewares=[self._guard])
        app.router.add_get("/", self._show)
        app.router.add_get("/new", self._as_new_visitor)
        app.router.add_get("/pages", self._pages)
        app.router.add_post("/send", self._send)
        app.router.add_get("/events", self._events)
        app.router.add_post("/crm", self._crm.receive)
        app.router.add_static("/static", HERE / "static")
        app.cleanup_ctx.append(self._watching)
        app.on_shutdown.append(self._end)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.host != f"127.0.0.1:{self._ports.page}":
            if request.method == "GET":
                raise web.HTTPFound(self._ports.page_url + request.path_qs)
            raise web.HTTPMisdirectedRequest
        response = await handler(request)
        if not response.prepared:
            response.headers.update(self._headers())
        return response

    def _headers(self) -> dict[str, str]:
        daemon = self._ports.http_url
        policy = (
            f"default-src 'none'; script-src 'self' {daemon}; style-src 'self'; img-src 'self'; "
            f"connect-src 'self' {daemon}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        return {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }

    async def _show(self, request: web.Request) -> web.Response:
        response = web.Response(text=self._html, content_type="text/html")
        if request.cookies.get(INSTANCE) != self._instance:
            # A visit of another demo's database: here it would pass for one of another counter, and never end.
            _forget_visit(response)
            response.set_cookie(INSTANCE, self._instance, httponly=True, samesite="Lax")
        return response

    async def _as_new_visitor(self, request: web.Request) -> web.Response:
        response = web.HTTPFound("/")
        _forget_visit(response)
        raise response

    async def _pages(self, request: web.Request) -> web.Response:
        """The daemon's own pages, logged in already: cookies are shared by all ports of a host."""
        response = web.HTTPFound(f"{self._ports.http_url}{ROOT}/history")
        response.set_cookie(COOKIE, await self._log_in(), path=ROOT, httponly=True, samesite="Lax")
        raise response

    async def _send(self, request: web.Request) -> web.Response:
        """A letter as form data: from, to, subject, text and optionally a file."""
        if request.headers.get("Origin", self._ports.page_url) != self._ports.page_url:
            raise web.HTTPForbidden
        try:
            letter = await _letter(request)
            sent = await asyncio.to_thread(send, letter, self._ports.smtp)
        except LetterError as error:
            return web.json_response({"field": error.field, "error": str(error)}, status=400)
        except Refused as error:
            return web.json_response({"field": "to", "error": f"the mail server answered {error}"}, status=502)
        content = {
            "message": sent.message,
            "started_at": sent.started_at,
            "accepted_at": sent.accepted_at,
            "to": letter.to,
            "reply": sent.reply,
        }
        self._board.put("letter", sent.message, content)
        return web.json_response(content)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events (WHATWG HTML §9.2): "hello" with the instance, then every entry of the board."""
        headers = {"Content-Type": "text/event-stream", **self._headers()}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        async with contextlib.aclosing(self._board.follow(HEARTBEAT)) as entries:
            try:
                await response.write(_event("hello", {"instance": self._instance}))
                async for entry in entries:
                    await response.write(b":\n\n" if entry is None else _event(entry.kind, _shown(entry)))
            except ConnectionResetError:
                pass  # the page was closed
        return response

    async def _watching(self, app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {self._token}"}) as session:
            task = asyncio.create_task(self._watch_history(session))
            yield
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch_history(self, session: aiohttp.ClientSession) -> None:
        """Ask the management API, as any program would, while a page is open."""
        query = {"site": SITE, "limit": str(HISTORY_SHOWN)}
        while True:
            if self._board.followers:
                try:
                    async with session.get(f"{self._ports.http_url}/v1/messages", params=query) as response:
                        response.raise_for_status()
                        items = (await response.json())["items"]
                except aiohttp.ClientError:
                    items = []  # the daemon is stopping
                for item in reversed(items):
                    del item["attachments"]  # their links are signed anew for each answer
                    self._board.put("history", item["id"], item)
            await asyncio.sleep(HISTORY_EVERY)

    async def _end(self, app: web.Application) -> None:
        self._board.close()


def _forget_visit(response: web.Response) -> None:
    for name in VISIT_COOKIES:
        response.del_cookie(name)


def _event(kind: str, data: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def _shown(entry: Entry) -> dict[str, object]:
    return {"id": entry.id, **entry.content}


async def _letter(request: web.Request) -> Letter:
    """The posted form; raises LetterError."""
    if request.content_type not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise LetterError("text", "send it as form data")
    try:
        form = await request.post()
    except web.HTTPRequestEntityTooLarge as error:
        raise LetterError("file", f"at most {MAX_REQUEST >> 20} MB") from error
    texts = {name: form.get(name, "") for name in ("from", "to", "subject", "text")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise LetterError(name, "must be text")
    file = form.get("file")
    attachment = None
    if isinstance(file, web.FileField) and file.filename:
        attachment = Attachment(file.filename, file.content_type, await asyncio.to_thread(file.file.read))
    return Letter(
        sender=str(texts["from"]),
        to=str(texts["to"]),
        subject=str(texts["subject"]),
        text=str(texts["text"]),
        attachment=attachment,
    )
