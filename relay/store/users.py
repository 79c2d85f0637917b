"""People who log in to the pages: users, their sessions, and the one-time links by which a password is chosen.

Of a session's token and of a link only the SHA-256 is stored; of a password what Argon2id made of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy import insert as insert_into

from relay.store.engine import Row, Statement, Tx
from relay.store.reader import Reader
from relay.store.schema import invitations, sessions, users

#: Seconds after which a session ends that nobody uses, and after which every session ends.
IDLE = 7 * 86_400.0
LIFETIME = 30 * 86_400.0
#: Seconds between two notes of when a session was last used.
NOTED_EVERY = 600.0
#: Seconds for which a one-time link can be used.
INVITED = 3 * 86_400.0
#: Sessions of one user; beyond that the ones unused for longest end.
SESSIONS = 50


@dataclass(frozen=True, slots=True)
class User:
    """``sites`` is None for all sites; ``waiting`` says that the password was not chosen yet."""

    id: int
    name: str
    role: str
    sites: tuple[str, ...] | None
    created_at: float
    seen_at: float | None
    waiting: bool


@dataclass(frozen=True, slots=True)
class Session:
    id: int
    user: User
    created_at: float
    seen_at: float


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Where somebody is logged in. ``seen_at`` is right to NOTED_EVERY."""

    id: int
    created_at: float
    seen_at: float
    ip: str
    user_agent: str


class UserNameTaken(Exception):
    """A user of this name exists."""


class PasswordChanged(Exception):
    """What was verified is the user's password no more, or the user is gone."""


class LastAdmin(Exception):
    """Without this user nobody could do everything any more."""


_USER = (
    users.c.id,
    users.c.name,
    users.c.role,
    users.c.sites,
    users.c.created_at,
    users.c.seen_at,
    users.c.password.is_(None),
)
_INSERT = Statement(insert_into(users), "name role sites created_at password")
_NAMED = Statement(select(*_USER).where(users.c.name == bindparam("name_")))
_ONE = Statement(select(*_USER).where(users.c.id == bindparam("user")))
_PASSWORD = Statement(select(*_USER, users.c.password).where(users.c.name == bindparam("name_")))
_HAS_PASSWORD = Statement(
    select(users.c.id).where(users.c.id == bindparam("user"), users.c.password == bindparam("hash_"))
)
_ANY = Statement(select(users.c.id).limit(1))
_SET_PASSWORD = Statement(update(users).where(users.c.id == bindparam("user")).values(password=bindparam("hash_")))
_SET_RIGHTS = Statement(
    update(users).where(users.c.id == bindparam("user")).values(role=bindparam("role_"), sites=bindparam("sites_"))
)
_SEEN = Statement(update(users).where(users.c.id == bindparam("user")).values(seen_at=bindparam("now")))
_DELETE = Statement(delete(users).where(users.c.id == bindparam("user")))
_ADMINS = Statement(
    select(func.count()).where(
        users.c.role == "admin", users.c.sites.is_(None), users.c.password.is_not(None), users.c.id != bindparam("user")
    )
)
_OPEN_SESSION = Statement(insert_into(sessions), "hash user_id created_at seen_at ip user_agent")
_SESSION = Statement(
    select(sessions.c.id, sessions.c.created_at, sessions.c.seen_at, *_USER)
    .join(users, users.c.id == sessions.c.user_id)
    .where(sessions.c.hash == bindparam("hash_"))
)
_TOUCH = Statement(update(sessions).where(sessions.c.id == bindparam("session")).values(seen_at=bindparam("now")))
_END = Statement(delete(sessions).where(sessions.c.hash == bindparam("hash_")))
_END_OTHERS = Statement(
    delete(sessions).where(sessions.c.user_id == bindparam("user"), sessions.c.hash != bindparam("kept"))
)
_END_OWN = Statement(
    delete(sessions).where(sessions.c.user_id == bindparam("user"), sessions.c.id == bindparam("session"))
)
_SESSIONS = Statement(
    select(sessions.c.id, sessions.c.created_at, sessions.c.seen_at, sessions.c.ip, sessions.c.user_agent)
    .where(
        sessions.c.user_id == bindparam("user"),
        sessions.c.seen_at >= bindparam("idle"),
        sessions.c.created_at >= bindparam("old"),
    )
    .order_by(sessions.c.seen_at.desc(), sessions.c.id.desc())
)
_OLDEST = Statement(
    select(sessions.c.id)
    .where(sessions.c.user_id == bindparam("user"))
    .order_by(sessions.c.seen_at.desc())
    .offset(SESSIONS - 1)
)
_END_ONE = Statement(delete(sessions).where(sessions.c.id == bindparam("session")))
_END_OLD = Statement(
    delete(sessions).where((sessions.c.seen_at < bindparam("idle")) | (sessions.c.created_at < bindparam("old")))
)
_INVITE = Statement(insert_into(invitations), "hash user_id expires_at")
_INVITED = Statement(
    select(invitations.c.user_id).where(
        invitations.c.hash == bindparam("hash_"), invitations.c.expires_at > bindparam("now")
    )
)
_UNINVITE = Statement(delete(invitations).where(invitations.c.user_id == bindparam("user")))
_UNINVITE_FIRST = Statement(delete(invitations).where(invitations.c.user_id.is_(None)))
_UNINVITE_OLD = Statement(delete(invitations).where(invitations.c.expires_at <= bindparam("now")))


def _user(row: Row) -> User:
    user_id, name, role, sites, created_at, seen_at, waiting = row
    return User(
        user_id, name, role, None if sites is None else tuple(json.loads(sites)), created_at, seen_at, bool(waiting)
    )


def _scope(sites: Sequence[str] | None) -> str | None:
    return None if sites is None else json.dumps(list(sites))


def create(tx: Tx, name: str, role: str, sites: Sequence[str] | None, now: float, password: str | None = None) -> User:
    """A new user, ``password`` hashed or None until an invitation is used; raises UserNameTaken."""
    if tx.one(_NAMED, name_=name) is not None:
        raise UserNameTaken(name)
    user_id = tx.insert(_INSERT, name=name, role=role, sites=_scope(sites), created_at=now, password=password)
    return User(user_id, name, role, None if sites is None else tuple(sites), now, None, password is None)


def create_invited(tx: Tx, name: str, role: str, sites: Sequence[str] | None, link_hash: str, now: float) -> User:
    """A new user and the one-time link to choose a password by; raises UserNameTaken."""
    user = create(tx, name, role, sites, now)
    invite(tx, name, link_hash, now)
    return user


def change(tx: Tx, name: str, role: str, sites: Sequence[str] | None) -> User | None:
    """Give a user other rights, from its next request on; None when there is none. Raises LastAdmin."""
    user = named(tx, name)
    if user is None:
        return None
    if role != "admin" or sites is not None:
        _keep_an_admin(tx, user)
    tx.run(_SET_RIGHTS, user=user.id, role_=role, sites_=_scope(sites))
    return named(tx, name)


def remove(tx: Tx, name: str) -> bool:
    """Delete a user with its sessions; False when there is none. Raises LastAdmin."""
    user = named(tx, name)
    if user is None:
        return False
    _keep_an_admin(tx, user)
    return tx.run(_DELETE, user=user.id) > 0


def _keep_an_admin(tx: Tx, user: User) -> None:
    if user.role != "admin" or user.sites is not None or user.waiting:
        return
    row = tx.one(_ADMINS, user=user.id)
    if row is None or not row[0]:
        raise LastAdmin(user.name)


def named(tx: Tx, name: str) -> User | None:
    row = tx.one(_NAMED, name_=name)
    return None if row is None else _user(row)


def invite(tx: Tx, name: str | None, link_hash: str, now: float) -> bool:
    """A one-time link by which the user chooses a password, the only one that holds from now on.

    Without ``name`` it makes the first administrator. False when there is no such user, or there are users already.
    """
    tx.run(_UNINVITE_OLD, now=now)
    if name is None:
        if tx.one(_ANY) is not None:
            return False
        tx.run(_UNINVITE_FIRST)
        tx.insert(_INVITE, hash=link_hash, user_id=None, expires_at=now + INVITED)
        return True
    user = named(tx, name)
    if user is None:
        return False
    tx.run(_UNINVITE, user=user.id)
    tx.insert(_INVITE, hash=link_hash, user_id=user.id, expires_at=now + INVITED)
    return True


def accept(tx: Tx, link_hash: str, first_name: str, password: str, now: float) -> User | None:
    """Use a one-time link: set the password, end the user's sessions. None when the link does not hold (any more).

    The first administrator is made here, named ``first_name``; a link for it ends as soon as there is any user.
    """
    found = tx.one(_INVITED, hash_=link_hash, now=now)
    if found is None:
        return None
    (user_id,) = found
    if user_id is None:
        tx.run(_UNINVITE_FIRST)
        return None if tx.one(_ANY) is not None else create(tx, first_name, "admin", None, now, password)
    tx.run(_UNINVITE, user=user_id)
    set_password(tx, user_id, password)
    row = tx.one(_ONE, user=user_id)
    return None if row is None else _user(row)


def still_has(tx: Tx, user_id: int, hashed: str) -> None:
    """Raises PasswordChanged unless the hash that was verified is the user's: a lot can happen while one is made."""
    if tx.one(_HAS_PASSWORD, user=user_id, hash_=hashed) is None:
        raise PasswordChanged


def set_password(tx: Tx, user_id: int, password: str, keep: str = "") -> None:
    """Another password, hashed. Every session of the user ends but the one with the hash ``keep``; links, too."""
    tx.run(_SET_PASSWORD, user=user_id, hash_=password)
    tx.run(_END_OTHERS, user=user_id, kept=keep)
    tx.run(_UNINVITE, user=user_id)


def open_session(tx: Tx, user_id: int, token_hash: str, ip: str, user_agent: str, now: float) -> None:
    """Begin a session. Those that have ended are cleared away with it."""
    tx.run(_END_OLD, idle=now - IDLE, old=now - LIFETIME)
    for (session,) in tx.all(_OLDEST, user=user_id):
        tx.run(_END_ONE, session=session)
    tx.run(_SEEN, user=user_id, now=now)
    tx.insert(
        _OPEN_SESSION, hash=token_hash, user_id=user_id, created_at=now, seen_at=now, ip=ip, user_agent=user_agent[:200]
    )


def note_use(tx: Tx, session_id: int, now: float) -> None:
    tx.run(_TOUCH, session=session_id, now=now)


def end_session(tx: Tx, token_hash: str) -> None:
    tx.run(_END, hash_=token_hash)


def end_others(tx: Tx, user_id: int, keep: str) -> None:
    """End every session of the user but the one with the hash ``keep``."""
    tx.run(_END_OTHERS, user=user_id, kept=keep)


def end_own(tx: Tx, user_id: int, session_id: int) -> bool:
    """End one session of the user; False when it has none of this id."""
    return tx.run(_END_OWN, user=user_id, session=session_id) > 0


async def sessions_of(reader: Reader, user_id: int, now: float) -> list[OpenSession]:
    """The user's sessions that last, the one used latest first."""
    return [OpenSession(*row) for row in await reader.run(_SESSIONS, user=user_id, idle=now - IDLE, old=now - LIFETIME)]


async def session(reader: Reader, token_hash: str, now: float) -> Session | None:
    """The session with this hash while it lasts; a clock that was set back ends none."""
    rows = await reader.run(_SESSION, hash_=token_hash)
    if not rows:
        return None
    session_id, created_at, seen_at, *user = rows[0]
    if now - seen_at > IDLE or now - created_at > LIFETIME:
        return None
    return Session(session_id, _user(tuple(user)), created_at, seen_at)


async def password(reader: Reader, name: str) -> tuple[User, str | None] | None:
    """A user and the hash of its password; None when there is none of this name."""
    rows = await reader.run(_PASSWORD, name_=name)
    return (_user(rows[0][:-1]), rows[0][-1]) if rows else None


async def invited(reader: Reader, link_hash: str, now: float) -> tuple[str | None] | None:
    """Whose password a one-time link sets: (None,) for the first administrator's. None when it does not hold."""
    rows = await reader.run(_INVITED, hash_=link_hash, now=now)
    if not rows:
        return None
    (user_id,) = rows[0]
    if user_id is None:
        return None if await any_user(reader) else (None,)
    found = await reader.run(_ONE, user=user_id)
    return (found[0][1],) if found else None


async def any_user(reader: Reader) -> bool:
    return bool(await reader.run(_ANY))


async def listing(reader: Reader) -> list[User]:
    """Everybody, by name; raises StoreUnavailable."""
    return [_user(row) for row in await reader.all(select(*_USER).order_by(users.c.name))]
