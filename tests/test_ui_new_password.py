"""A new password ends what was begun with the old one: logins and changes that were still under way, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from relay.store import users
from relay.store.schema import sessions
from tests.test_ui_login import PASSWORD, logged_in, nobody, with_password
from tests.test_ui_settings import ANOTHER, another_session, change_password
from tests.ui_fixtures import HASHER, Pages, pages
from webapi.passwords import Passwords

INTRUDERS = "what an intruder chose"


class Held:
    """The first password that is found right from here on says so only when it is let go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun, self._let_go, fits = asyncio.Event(), asyncio.Event(), Passwords.fits

        async def held(verifier: Passwords, stored: str | None, password: str) -> bool:
            right = await fits(verifier, stored, password)
            if right and not self.begun.is_set():
                self.begun.set()
                await self._let_go.wait()
            return right

        patch.setattr(Passwords, "fits", held)

    def let_go(self) -> None:
        self._let_go.set()


async def set_password(p: Pages, user: users.User) -> None:
    hashed = HASHER.hash(ANOTHER)
    await p.world.store.write(lambda tx: users.set_password(tx, user.id, hashed))


async def remove(p: Pages, user: users.User) -> None:
    await p.world.store.write(lambda tx: users.remove(tx, user.name))


async def sessions_of(p: Pages, user: users.User) -> int:
    return len(await p.world.rows(select(sessions.c.id).where(sessions.c.user_id == user.id)))


@pytest.mark.parametrize(("meanwhile", "opened"), [(set_password, 0), (remove, 0), (None, 2)])
async def test_a_login_that_is_under_way_opens_no_session(
    meanwhile: Callable[[Pages, users.User], Awaitable[None]] | None,
    opened: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pages(tmp_path) as p:
        name = (await with_password(p)).name
        user = await p.world.store.write(lambda tx: users.named(tx, name))
        assert user is not None
        held = Held(monkeypatch)
        login = asyncio.ensure_future(logged_in(await nobody(p), name, PASSWORD))
        await held.begun.wait()
        if meanwhile is not None:
            await meanwhile(p, user)
        held.let_go()
        answer = await login
        assert (answer.status, await sessions_of(p, user)) == (403 if meanwhile else 303, opened)
        assert ("Set-Cookie" in answer.headers) is (meanwhile is None)


async def test_of_two_changes_the_one_that_is_done_first_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pages(tmp_path) as p:
        user = await with_password(p)
        here, there = await another_session(p, user), await another_session(p, user)
        held = Held(monkeypatch)
        intruders = asyncio.ensure_future(change_password(there, password=INTRUDERS, again=INTRUDERS))
        await held.begun.wait()
        assert (await change_password(here)).status == 303
        held.let_go()
        answer = await intruders
        assert (answer.status, "Is wrong." in answer.text) == (403, True)
        assert (await logged_in(await nobody(p), user.name, INTRUDERS)).status == 403
        assert (await logged_in(await nobody(p), user.name, ANOTHER)).status == 303


async def test_who_is_removed_while_changing_the_password_is_told_as_for_a_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pages(tmp_path) as p:
        user = await another_session(p, await with_password(p))
        held = Held(monkeypatch)
        change = asyncio.ensure_future(change_password(user))
        await held.begun.wait()
        await p.world.store.write(lambda tx: users.remove(tx, user.name))
        held.let_go()
        assert (await change).status == 403
