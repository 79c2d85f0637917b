"""Users, sessions and one-time links as the store keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.store import users
from relay.store.users import LastAdmin, UserNameTaken
from tests.store_fixtures import NOW, World, world


async def made(w: World, name: str, role: str = "viewer", *sites: str, password: str | None = "hash") -> users.User:
    return await w.store.write(lambda tx: users.create(tx, name, role, list(sites) or None, w.now, password))


async def begin(w: World, user: users.User, hashed: str, at: float | None = None) -> None:
    now = w.now if at is None else at
    await w.store.write(lambda tx: users.open_session(tx, user.id, hashed, "192.0.2.1", "Firefox", now))


async def open_ones(w: World, user: users.User) -> list[float]:
    return [one.created_at for one in await users.sessions_of(w.store.reader, user.id, w.now)]


class TestUsers:
    async def test_a_name_is_given_once(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            await made(w, "ann")
            with pytest.raises(UserNameTaken):
                await made(w, "ann", "admin")
            assert [user.role for user in await users.listing(w.store.reader)] == ["viewer"]

    async def test_they_are_listed_by_name(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            for name in ("zoe", "ann", "bob"):
                await made(w, name, "manager", "shop")
            assert [user.name for user in await users.listing(w.store.reader)] == ["ann", "bob", "zoe"]
            assert {user.sites for user in await users.listing(w.store.reader)} == {("shop",)}

    async def test_all_sites_and_no_site_are_two_things(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            await made(w, "ann")
            changed = await w.store.write(lambda tx: users.change(tx, "ann", "viewer", []))
            assert changed is not None
            assert changed.sites == ()
            changed = await w.store.write(lambda tx: users.change(tx, "ann", "viewer", None))
            assert changed is not None
            assert changed.sites is None

    async def test_who_does_not_exist_is_neither_changed_nor_removed(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            assert await w.store.write(lambda tx: users.change(tx, "ann", "admin", None)) is None
            assert await w.store.write(lambda tx: users.remove(tx, "ann")) is False
            assert await w.store.write(lambda tx: users.invite(tx, "ann", "hash", NOW)) is False
            assert await users.password(w.store.reader, "ann") is None

    @pytest.mark.parametrize(
        ("role", "sites", "password"), [("admin", ["shop"], "hash"), ("manager", [], "hash"), ("admin", [], None)]
    )
    async def test_only_who_can_log_in_and_do_everything_counts_as_another_administrator(
        self, role: str, sites: list[str], password: str | None, tmp_path: Path
    ) -> None:
        async with world(tmp_path) as w:
            await made(w, "boss", "admin")
            await made(w, "second", role, *sites, password=password)
            for attempt in (
                lambda tx: users.remove(tx, "boss"),
                lambda tx: users.change(tx, "boss", "viewer", None),
                lambda tx: users.change(tx, "boss", "admin", ["shop"]),
            ):
                with pytest.raises(LastAdmin):
                    await w.store.write(attempt)
            assert await w.store.write(lambda tx: users.change(tx, "boss", "admin", None)) is not None
            await made(w, "third", "admin")
            assert await w.store.write(lambda tx: users.remove(tx, "boss"))

    async def test_who_never_chose_a_password_can_go_whoever_is_left(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            await made(w, "invited", "admin", password=None)
            assert await w.store.write(lambda tx: users.remove(tx, "invited"))

    async def test_with_a_user_go_its_sessions_and_links(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            ann = await made(w, "ann")
            await begin(w, ann, "s1")
            await w.store.write(lambda tx: users.invite(tx, "ann", "link", w.now))
            await w.store.write(lambda tx: users.remove(tx, "ann"))
            for table in ("sessions", "invitations"):
                assert await w.store.write(lambda tx, t=table: tx.sql(f"SELECT * FROM {t}")) == []


class TestPassword:
    async def test_another_ends_all_sessions_but_the_one_to_keep_and_every_link(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            ann, bob = await made(w, "ann"), await made(w, "bob")
            for hashed in ("s1", "s2"):
                await begin(w, ann, hashed)
            await begin(w, bob, "s3")
            await w.store.write(lambda tx: users.invite(tx, "ann", "link", w.now))
            await w.store.write(lambda tx: users.set_password(tx, ann.id, "new", keep="s2"))
            left = [await users.session(w.store.reader, hashed, w.now) is not None for hashed in ("s1", "s2", "s3")]
            assert left == [False, True, True]
            assert await users.invited(w.store.reader, "link", w.now) is None
            found = await users.password(w.store.reader, "ann")
            assert found is not None
            assert found[1] == "new"


class TestLinks:
    async def test_one_is_used_once(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            await made(w, "ann", password=None)
            await w.store.write(lambda tx: users.invite(tx, "ann", "link", w.now))
            assert await users.invited(w.store.reader, "link", w.now) == ("ann",)
            user = await w.store.write(lambda tx: users.accept(tx, "link", "eve", "hash", w.now))
            assert user is not None
            assert (user.name, user.waiting) == ("ann", False)
            assert await w.store.write(lambda tx: users.accept(tx, "link", "eve", "evil", w.now)) is None

    async def test_the_first_administrators_is_good_for_nobody_once_there_is_one(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            assert await w.store.write(lambda tx: users.invite(tx, None, "link", w.now))
            assert await users.invited(w.store.reader, "link", w.now) == (None,)
            await made(w, "ann")
            assert await users.invited(w.store.reader, "link", w.now) is None
            assert await w.store.write(lambda tx: users.accept(tx, "link", "eve", "hash", w.now)) is None
            assert [user.name for user in await users.listing(w.store.reader)] == ["ann"]

    async def test_one_that_is_over_is_not_accepted(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            await made(w, "ann", password=None)
            await w.store.write(lambda tx: users.invite(tx, "ann", "link", w.now))
            late = w.now + users.INVITED
            assert await users.invited(w.store.reader, "link", late - 1) == ("ann",)
            assert await users.invited(w.store.reader, "link", late) is None
            assert await w.store.write(lambda tx: users.accept(tx, "link", "x", "hash", late)) is None


class TestSessions:
    async def test_the_one_used_latest_comes_first(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            ann = await made(w, "ann")
            for number in range(3):
                await begin(w, ann, f"s{number}", w.now + number)
            (first, *_) = await users.sessions_of(w.store.reader, ann.id, w.now + 3)
            assert (first.created_at, first.ip, first.user_agent) == (w.now + 2, "192.0.2.1", "Firefox")
            await w.store.write(lambda tx: users.note_use(tx, first.id - 2, w.now + 10))
            (used, *_) = await users.sessions_of(w.store.reader, ann.id, w.now + 10)
            assert used.id == first.id - 2

    async def test_what_has_ended_is_not_shown_and_goes_with_the_next_login(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            ann = await made(w, "ann")
            await begin(w, ann, "old")
            w.pass_time(users.IDLE + 1)
            assert await open_ones(w, ann) == []
            await begin(w, ann, "new")
            assert await w.store.write(lambda tx: tx.sql("SELECT hash FROM sessions")) == [("new",)]

    async def test_ending_others_spares_the_one_and_everybody_else(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            ann, bob = await made(w, "ann"), await made(w, "bob")
            for user, hashed in ((ann, "a1"), (ann, "a2"), (bob, "b1")):
                await begin(w, user, hashed)
            await w.store.write(lambda tx: users.end_others(tx, ann.id, "a2"))
            rows = await w.store.write(lambda tx: tx.sql("SELECT hash FROM sessions ORDER BY hash"))
            assert rows == [("a2",), ("b1",)]

    async def test_one_can_end_ones_own_only(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            ann, bob = await made(w, "ann"), await made(w, "bob")
            await begin(w, bob, "b1")
            (session,) = await users.sessions_of(w.store.reader, bob.id, w.now)
            assert not await w.store.write(lambda tx: users.end_own(tx, ann.id, session.id))
            assert await w.store.write(lambda tx: users.end_own(tx, bob.id, session.id))
            assert await open_ones(w, bob) == []

    async def test_a_long_user_agent_is_cut(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            ann = await made(w, "ann")
            await w.store.write(lambda tx: users.open_session(tx, ann.id, "s", "", "x" * 10_000, w.now))
            (session,) = await users.sessions_of(w.store.reader, ann.id, w.now)
            assert len(session.user_agent) == 200

    async def test_a_clock_that_was_set_back_ends_none(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            ann = await made(w, "ann")
            await begin(w, ann, "s")
            assert await users.session(w.store.reader, "s", w.now - 400 * 86_400) is not None
