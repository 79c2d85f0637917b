"""Passwords: Argon2id (RFC 9106), off the event loop, two at once at most, for each takes 64 MiB for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from webapi.problems import too_many

T = TypeVar("T")

#: Characters of a password (NIST SP 800-63B §5.1.1.2: length is what counts; long ones cost nothing more).
SHORTEST = 12
LONGEST = 256
#: Hashes computed at once, and who may wait for a turn.
AT_ONCE = 2
QUEUED = 20

_HASHER = PasswordHasher()  # the library's defaults: RFC 9106 §4, the second recommended choice


def weakness(password: str, name: str) -> str | None:
    """What is wrong with a password that somebody chooses; None when nothing is."""
    if len(password) < SHORTEST:
        return f"must have at least {SHORTEST} characters"
    if len(password) > LONGEST:
        return f"must have at most {LONGEST} characters"
    if password.casefold() == name.casefold() or len(set(password)) < 4:
        return "is too easy to guess"
    return None


@dataclass(slots=True)
class Passwords:
    """Makes and checks hashes. Raises Problem 429 when too many wait for a turn."""

    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    _waiting: int = 0
    _nobodys: str | None = None

    async def hash(self, password: str) -> str:
        return await self._in_turn(_HASHER.hash, password)

    async def fits(self, stored: str | None, password: str) -> bool:
        """Whether the password is right. It takes as long for a user who does not exist or has chosen none yet."""
        if self._nobodys is None:
            self._nobodys = await self._in_turn(_HASHER.hash, "nobody has this one")
        fits = await self._in_turn(_fits, stored or self._nobodys, password[: LONGEST + 1])
        return fits and stored is not None

    async def _in_turn(self, function: Callable[..., T], *given: str) -> T:
        if self._waiting >= QUEUED:
            raise too_many(5, "people logging in at once")
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(function, *given)
        finally:
            self._waiting -= 1


def _fits(stored: str, password: str) -> bool:
    try:
        return _HASHER.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False
