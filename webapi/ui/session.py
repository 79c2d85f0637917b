"""Who looks at the pages: the cookie and its session, and what a browser must show before it may change anything.

The cookie carries 256 random bits; the store has their SHA-256. The CSRF token is a MAC of the same bits, so it holds
as long as the session and for it alone. A session is made anew at each login, so none can be fixed beforehand.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from relay.secrets import new_link, token_hash
from relay.store import users
from relay.store.engine import StoreUnavailable, Tx
from relay.store.users import Session
from webapi.auth import Caller, Role, site_ids
from webapi.context import CONTEXT, Context, client_address

#: Where the pages are: the cookie goes nowhere else.
ROOT = "/ui"
COOKIE = "relay_session"
#: Characters of a cookie that are looked at.
LONGEST = 100


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody logged in: the session, what it may do, and the CSRF token of its forms."""

    session: Session
    caller: Caller
    csrf: str
    token_hash: str


def cookie_name(context: Context) -> str:
    """With https the browser is told to take it over nothing else (RFC 6265bis §4.1.3.1)."""
    return f"__Secure-{COOKIE}" if _is_https(context) else COOKIE


async def visitor(request: web.Request) -> Visitor | None:
    """Who is logged in with this request; None for nobody."""
    context = request.app[CONTEXT]
    token = request.cookies.get(cookie_name(context), "")
    if not token or len(token) > LONGEST:
        return None
    hashed, now = token_hash(token), context.clock()
    session = await users.session(context.store.reader, hashed, now)
    if session is None:
        return None
    if abs(now - session.seen_at) > users.NOTED_EVERY:
        try:
            await context.store.write(lambda tx: users.note_use(tx, session.id, now))
        except StoreUnavailable:
            pass  # a full disk must not close the pages that say so; the store has logged it
    user = session.user
    caller = Caller(user.name, Role[user.role.upper()], site_ids(context.store, user.sites), kind="user")
    return Visitor(session, caller, csrf_token(token), hashed)


async def log_in(request: web.Request, response: web.StreamResponse, user_id: int, verified: str) -> None:
    """Begin a session and give its cookie to the browser; raises PasswordChanged."""
    context = request.app[CONTEXT]
    before = token_hash(request.cookies.get(cookie_name(context), "")[:LONGEST])
    agent = request.headers.get("User-Agent", "")
    token = await begin(context, user_id, client_address(request), agent, before, verified)
    response.set_cookie(
        cookie_name(context),
        token,
        path=ROOT,
        httponly=True,
        samesite="Lax",  # Strict would show the login to everybody who follows a link out of a mail
        secure=_is_https(context),
        max_age=int(users.LIFETIME),
    )


async def begin(
    context: Context, user_id: int, ip: str, user_agent: str, before: str = "", verified: str | None = None
) -> str:
    """A new session; the text of its cookie. The one with the hash ``before``, of the same browser, ends with it.

    Raises PasswordChanged where ``verified``, the hash of the password that was right, is not the user's any more.
    """
    token, now = new_link(), context.clock()
    hashed, agent = token_hash(token), user_agent.encode(errors="replace").decode()

    def instead(tx: Tx) -> None:
        if verified is not None:
            users.still_has(tx, user_id, verified)
        users.end_session(tx, before)
        users.open_session(tx, user_id, hashed, ip, agent, now)

    await context.store.write(instead)
    return token


async def log_out(request: web.Request, response: web.StreamResponse, hashed: str) -> None:
    """End the session, wherever its cookie is."""
    context = request.app[CONTEXT]
    await context.store.write(lambda tx: users.end_session(tx, hashed))
    response.del_cookie(cookie_name(context), path=ROOT, secure=_is_https(context), httponly=True, samesite="Lax")


def csrf_token(token: str) -> str:
    mac = hmac.digest(token.encode(errors="replace"), b"csrf", hashlib.sha256)
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def is_own_form(request: web.Request) -> bool:
    """Whether a form was sent by a page of ours, as far as the browser says (Fetch Metadata, else Origin).

    A program that says neither is no browser that somebody else's page could use.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    own = {request.host.lower(), _host_of(request.app[CONTEXT].public_url)}
    return _host_of(origin) in own


def _host_of(url: str) -> str | None:
    """Host and port of a URL; None for what is none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return None


def safe_next(text: str) -> str:
    """Where to go after the login: a path of the pages, else their beginning."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return f"{ROOT}/history"
    plain = text.isascii() and text.isprintable() and "\\" not in text and not parts.scheme and not parts.netloc
    segments = parts.path.lower().replace("%2e", ".").split("/")[1:]  # a browser goes up by either, and by "." nowhere
    inside = text.startswith(f"{ROOT}/") and "//" not in parts.path and not {".", ".."} & set(segments)
    return text if plain and inside else f"{ROOT}/history"


def _is_https(context: Context) -> bool:
    return context.public_url.startswith("https:")
