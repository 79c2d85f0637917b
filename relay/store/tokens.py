"""API tokens: a name, a role, the sites it may see. Only the hash is stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, bindparam, delete, select
from sqlalchemy import insert as insert_into

from relay.store.engine import Statement, Tx
from relay.store.reader import Reader
from relay.store.schema import tokens

ROLES = ("admin", "manager", "viewer")


@dataclass(frozen=True, slots=True)
class Token:
    """``sites`` is None for all sites."""

    name: str
    role: str
    sites: frozenset[str] | None


class TokenNameTaken(Exception):
    """A token of this name exists."""


_INSERT = Statement(insert_into(tokens), "name hash role sites created_at")
_FIND = Statement(select(tokens.c.name, tokens.c.role, tokens.c.sites).where(tokens.c.hash == bindparam("hash_")))
_NAMED = Statement(select(tokens.c.id).where(tokens.c.name == bindparam("name_")))
_DELETE = Statement(delete(tokens).where(tokens.c.name == bindparam("name_")))


def create(tx: Tx, name: str, token_hash: str, role: str, sites: Sequence[str] | None, now: float) -> None:
    """Store a token; raises TokenNameTaken."""
    if tx.one(_NAMED, name_=name) is not None:
        raise TokenNameTaken(name)
    scope = None if sites is None else json.dumps(list(sites))
    tx.insert(_INSERT, name=name, hash=token_hash, role=role, sites=scope, created_at=now)


def revoke(tx: Tx, name: str) -> bool:
    """Delete a token; False when there is none of this name."""
    return tx.run(_DELETE, name_=name) > 0


async def find(reader: Reader, token_hash: str) -> Token | None:
    """The token with this hash."""
    rows = await reader.run(_FIND, hash_=token_hash)
    if not rows:
        return None
    name, role, sites = rows[0]
    return Token(name, role, None if sites is None else frozenset(json.loads(sites)))


def listing() -> Select[tuple[str, str, str | None, float]]:
    """name, role, sites (JSON or NULL), created_at."""
    return select(tokens.c.name, tokens.c.role, tokens.c.sites, tokens.c.created_at).order_by(tokens.c.name)
