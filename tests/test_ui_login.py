"""Who gets in: one-time links, passwords, sessions, and everything that somebody else's page could try."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from relay.config import Http, Limits
from relay.secrets import new_link, token_hash
from relay.store import users
from relay.store.engine import StoreUnavailable, Writer
from relay.store.schema import sessions
from tests.store_fixtures import NOW
from tests.ui_fixtures import HASHER, OWN_FORM, Answer, Pages, pages
from webapi.app import build
from webapi.passwords import Passwords, weakness
from webapi.ui.pages import PAGES
from webapi.ui.session import COOKIE, safe_next

PASSWORD = "correct horse battery"
CHOSEN = {"password": PASSWORD, "again": PASSWORD}


async def invitation(p: Pages, name: str | None) -> str:
    link, now = new_link(), p.world.now
    assert await p.world.store.write(lambda tx: users.invite(tx, name, token_hash(link), now))
    return f"/ui/welcome/{link}"


async def nobody(p: Pages) -> Pages:
    return Pages(p.api, "", "")


async def logged_in(p: Pages, name: str, password: str, **headers: str) -> Answer:
    form = {"name": name, "password": password, "next": "/ui/queue"}
    return await p.send("POST", "/ui/login", data=form, headers=OWN_FORM | headers)


async def with_password(p: Pages, role: str = "viewer", *sites: str) -> Pages:
    """A user who has chosen PASSWORD."""
    made = await p.user(role, *sites)
    answer = await made.send("POST", await invitation(p, made.name), data=CHOSEN, headers=OWN_FORM)
    assert answer.status == 303
    return made


def cookie(answer: Answer) -> str:
    return answer.headers["Set-Cookie"]


class TestStrangers:
    async def test_every_page_asks_to_log_in(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            stranger = await nobody(p)
            for page in PAGES:
                path = page.path.replace("{", "").replace("}", "")
                answer = await stranger.send(page.method, path, headers=OWN_FORM)
                assert answer.status == 303, page
                assert answer.location.startswith("/ui/login"), page

    async def test_nothing_but_what_is_meant_for_them_answers(self, tmp_path: Path) -> None:
        """Every route of the application: who is nobody gets 401 or the login, but for these."""
        open_to_all = {
            "/v1/bind",
            "/mailtrack.js",
            "/a/{token}/{name}",
            "/healthz",
            "/readyz",
            "/v1/schemas/{name}",
            "/ui/login",
            "/ui/welcome/{link}",
            "/ui/static/{digest}/{name}",
            "/metrics",  # for programs of this machine, as the next
            "/openapi.json",
        }
        async with pages(tmp_path) as p:
            stranger, asked = await nobody(p), 0
            for route in build(p.api.context).router.routes():
                assert route.resource is not None
                path = route.resource.canonical
                if path in open_to_all:
                    continue
                asked += 1
                answer = await stranger.send(route.method, path.replace("{", "").replace("}", ""), headers=OWN_FORM)
                to_login = answer.status == 303 and answer.location.startswith("/ui/")
                assert answer.status == 401 or to_login, (route.method, path, answer.status)
            assert asked > 40

    async def test_they_come_back_to_the_page_they_wanted(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await with_password(p)
            answer = await (await nobody(p)).get("/ui/history?state=failed")
            assert answer.location == "/ui/login?next=%2Fui%2Fhistory%3Fstate%3Dfailed"
            assert (await logged_in(await nobody(p), user.name, PASSWORD)).location == "/ui/queue"

    async def test_an_htmx_request_sends_the_whole_page_to_the_login(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            answer = await (await nobody(p)).get("/ui/history", **{"HX-Request": "true"})
            assert (answer.status, answer.headers["HX-Redirect"]) == (401, "/ui/login")


class TestFirst:
    async def test_the_link_makes_an_administrator_once(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            await p.world.store.write(lambda tx: tx.sql("DELETE FROM users"))
            path = await invitation(p, None)
            stranger = await nobody(p)
            assert "choose a name and a password" in (await stranger.get(path)).text
            answer = await stranger.send("POST", path, data={"name": "Ann", **CHOSEN}, headers=OWN_FORM)
            assert (answer.status, answer.location) == (303, "/ui/history")
            (user,) = await users.listing(p.world.store.reader)
            assert (user.name, user.role, user.sites) == ("ann", "admin", None)
            assert (await stranger.get(path)).status == 404
            again = await stranger.send("POST", path, data={"name": "Eve", **CHOSEN}, headers=OWN_FORM)
            assert again.status == 404
            assert len(await users.listing(p.world.store.reader)) == 1

    async def test_there_is_none_while_anybody_is_there(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            now = p.world.now
            assert not await p.world.store.write(lambda tx: users.invite(tx, None, "x", now))

    async def test_an_older_one_ends_with_the_next_start(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            await p.world.store.write(lambda tx: tx.sql("DELETE FROM users"))
            first, second = await invitation(p, None), await invitation(p, None)
            assert [(await p.get(path)).status for path in (first, second)] == [404, 200]


class TestInvitation:
    async def test_it_sets_the_password_and_ends_what_was_open(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer")
            path = await invitation(p, user.name)
            assert (await user.get(path)).status == 200  # looking uses nothing up
            answer = await user.send("POST", path, data=CHOSEN, headers=OWN_FORM)
            assert answer.status == 303
            assert (await user.get("/ui/logout")).status in (303, 405)
            assert await users.session(p.world.store.reader, token_hash(user.cookie), p.world.now) is None
            assert (await user.get(path)).status == 404

    async def test_it_ends_after_three_days(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer")
            path = await invitation(p, user.name)
            p.world.pass_time(users.INVITED + 1)
            assert (await user.get(path)).status == 404
            assert (await user.send("POST", path, data=CHOSEN, headers=OWN_FORM)).status == 404

    @pytest.mark.parametrize(
        ("form", "words"),
        [
            ({"password": "short", "again": "short"}, "at least 12 characters"),
            ({"password": "x" * 257, "again": "x" * 257}, "at most 256"),
            ({"password": "a" * 20, "again": "a" * 20}, "too easy"),
            ({"password": PASSWORD, "again": PASSWORD + "x"}, "not the same"),
            ({}, "at least 12 characters"),
        ],
    )
    async def test_what_is_wrong_stands_beside_the_field_and_changes_nothing(
        self, form: dict[str, str], words: str, tmp_path: Path
    ) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer")
            path = await invitation(p, user.name)
            answer = await user.send("POST", path, data=form, headers=OWN_FORM)
            assert answer.status == 400
            assert words in answer.text
            assert (await user.get(path)).status == 200

    async def test_a_first_name_must_be_one(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            await p.world.store.write(lambda tx: tx.sql("DELETE FROM users"))
            path = await invitation(p, None)
            answer = await p.send("POST", path, data={"name": "<b>x", **CHOSEN}, headers=OWN_FORM)
            assert answer.status == 400
            assert "&lt;b&gt;x" in answer.text


class TestLogin:
    async def test_the_cookie_is_for_the_pages_alone(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await with_password(p)
            set_cookie = cookie(await logged_in(await nobody(p), user.name.upper(), PASSWORD))
            assert set_cookie.startswith(f"{COOKIE}=")
            for attribute in ("HttpOnly", "Path=/ui", "SameSite=Lax"):
                assert attribute in set_cookie
            assert "Secure" not in set_cookie

    async def test_over_https_it_goes_over_nothing_else(self, tmp_path: Path) -> None:
        async with pages(tmp_path, public_url="https://relay.example") as p:
            made = await p.user("viewer")
            set_cookie = cookie(await made.send("POST", await invitation(p, made.name), data=CHOSEN, headers=OWN_FORM))
            assert set_cookie.startswith(f"__Secure-{COOKIE}=")
            assert "Secure" in set_cookie.partition(";")[2]

    async def test_whoever_logs_in_again_has_one_session(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await with_password(p)
            first = Pages(
                p.api,
                "",
                cookie(await logged_in(await nobody(p), user.name, PASSWORD)).partition("=")[2].partition(";")[0],
            )
            assert (await first.get("/ui/settings")).status == 200
            assert (await logged_in(first, user.name, PASSWORD)).status == 303
            assert (await first.get("/ui/settings")).status == 303

    @pytest.mark.parametrize("name", ["viewer-all", "nobody"])
    async def test_wrong_names_and_wrong_passwords_are_told_alike(self, name: str, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            await with_password(p)
            answer = await logged_in(await nobody(p), name, "wrong")
            assert answer.status == 403
            assert "Wrong name or password." in answer.text
            assert "Set-Cookie" not in answer.headers

    @pytest.mark.parametrize("name", ["viewer-all", "manager-all", "nobody", "", "x" * 5000])
    async def test_every_wrong_login_does_the_same_work(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One hash of the same cost, whether there is such a user, he has no password yet, or the name is nonsense."""
        async with pages(tmp_path) as p:
            await with_password(p)
            await p.user("manager")  # who has chosen no password
            await logged_in(await nobody(p), "warm", "the hash that nobody has is made at the first login")
            judged: list[str] = []

            def judge(stored: str, password: str) -> bool:
                judged.append(stored.rpartition("$")[0].rpartition("$")[0])
                return False

            monkeypatch.setattr("webapi.passwords._fits", judge)
            assert (await logged_in(await nobody(p), name, "wrong")).status == 403
            assert judged == ["$argon2id$v=19$m=64,t=1,p=1"]

    async def test_who_has_not_chosen_a_password_has_none(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            made = await p.user("viewer")
            for password in ("", "nobody has this one"):
                assert (await logged_in(await nobody(p), made.name, password)).status == 403

    async def test_each_login_is_a_session_of_its_own(self, tmp_path: Path) -> None:
        """A cookie that somebody had planted beforehand is worth nothing afterwards."""
        async with pages(tmp_path) as p:
            user = await with_password(p)
            planted = Pages(p.api, "", "planted")
            answer = await logged_in(planted, user.name, PASSWORD)
            assert "planted" not in cookie(answer)
            assert (await planted.get("/ui/logout")).status in (303, 405)

    async def test_guessing_from_one_address_is_slow(self, tmp_path: Path) -> None:
        limits = Limits(exempt=(), login_failures_per_address_per_minute=3)
        async with pages(tmp_path, limits=limits) as p:
            await with_password(p)
            stranger = await nobody(p)
            statuses = [(await logged_in(stranger, f"n{number}", "wrong")).status for number in range(4)]
            assert statuses == [403, 403, 403, 429]
            p.world.pass_time(21)
            assert (await logged_in(stranger, "viewer-all", PASSWORD)).status == 303

    async def test_guessing_one_users_password_is_slow_from_everywhere(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            await with_password(p)
            stranger = await nobody(p)
            statuses = {(await logged_in(stranger, "viewer-all", "wrong")).status for _ in range(20)}
            assert statuses == {403}
            assert (await logged_in(stranger, "viewer-all", PASSWORD)).status == 429
            assert (await logged_in(stranger, "admin-all", "x")).status == 403

    async def test_guessers_elsewhere_do_not_keep_the_user_out(self, tmp_path: Path) -> None:
        """Where the user has logged in from, only wrong passwords from there count."""
        http, limits = Http(trusted_proxies=("127.0.0.1",)), Limits(exempt=())
        async with pages(tmp_path, http=http, limits=limits) as p:
            user = await with_password(p)
            stranger = await nobody(p)
            home = {"X-Forwarded-For": "192.0.2.7"}
            assert (await logged_in(stranger, user.name, PASSWORD, **home)).status == 303
            for number in range(20):
                elsewhere = {"X-Forwarded-For": f"198.51.{number}.1"}
                assert (await logged_in(stranger, user.name, "wrong", **elsewhere)).status == 403
            elsewhere = {"X-Forwarded-For": "198.51.100.1"}
            assert (await logged_in(stranger, user.name, PASSWORD, **elsewhere)).status == 429
            assert (await logged_in(stranger, user.name, PASSWORD, **home)).status == 303

    async def test_right_passwords_use_nothing_up(self, tmp_path: Path) -> None:
        limits = Limits(exempt=(), login_failures_per_address_per_minute=1)
        async with pages(tmp_path, limits=limits) as p:
            user = await with_password(p)
            assert {(await logged_in(await nobody(p), user.name, PASSWORD)).status for _ in range(3)} == {303}

    @pytest.mark.parametrize(
        "target",
        [
            "https://evil.example/",
            "//evil.example/ui/",
            "/ui//evil.example",
            "\\\\evil.example",
            "/ui/\\evil.example",
            "javascript:alert(1)",
            "/v1/bind",
            "/uix",
            "/ui/\r\nSet-Cookie: a=b",
            "ui/history",
            "//[",
            "http://[x",
            "",
            "/ui/\u2028x",
            "/ui/../v1/sites",
            "/ui/%2E%2e/a/x",
            "/ui/./..",
        ],
    )
    def test_it_leads_nowhere_else(self, target: str) -> None:
        assert safe_next(target) == "/ui/history"

    def test_it_leads_back(self) -> None:
        assert safe_next("/ui/messages/7?done=saved") == "/ui/messages/7?done=saved"


class TestForms:
    async def test_without_the_sessions_token_nothing_happens(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            other = await p.user("viewer")
            for csrf in ("", "x", other.csrf):
                assert (await p.post("/ui/logout", csrf=csrf)).status == 403
            assert (await p.post("/ui/logout")).status == 303

    @pytest.mark.parametrize(
        "headers",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "none"},
            {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
        ],
    )
    async def test_another_websites_form_is_refused(self, headers: dict[str, str], tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            assert (await p.post("/ui/logout", **headers)).status == 403
            assert (await logged_in(await nobody(p), "x", "y", **headers)).status == 403

    async def test_an_old_browser_shows_its_origin(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            data = {"csrf": p.csrf}
            for origin in ("http://evil.example", "null", "http://[", "http://[::1"):
                answer = await p.send("POST", "/ui/logout", data=data, headers={"Origin": origin})
                assert answer.status == 403
            answer = await p.send("POST", "/ui/logout", data=data, headers={"Origin": p.api.url})
            assert answer.status == 303

    async def test_a_form_is_a_form_and_of_a_size(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            headers = OWN_FORM | {"Content-Type": "application/json"}
            assert (await p.send("POST", "/ui/logout", data=b"{}", headers=headers)).status == 415
            assert (await p.post("/ui/logout", {"x": "y" * 300_000})).status == 413
            assert (await p.post("/ui/logout", {f"x{number}": "" for number in range(2001)})).status == 400
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            assert (await p.send("POST", "/ui/logout", data=b"csrf=%ff", headers=headers)).status == 400


class TestSession:
    async def test_logging_out_ends_it_wherever_the_cookie_is(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            answer = await p.post("/ui/logout")
            assert "Max-Age=0" in cookie(answer)
            assert (await p.post("/ui/logout")).location.startswith("/ui/login")

    @pytest.mark.parametrize("seconds", [users.IDLE + 1, users.LIFETIME + 1])
    async def test_it_ends_by_itself(self, seconds: float, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            p.world.pass_time(seconds)
            assert (await p.post("/ui/logout")).location == "/ui/login"

    async def test_use_keeps_it_until_its_lifetime_ends(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            for _ in range(4):
                p.world.pass_time(users.IDLE - 60)
                assert (await p.get("/ui/login")).status == 303  # logged in already
            p.world.pass_time(users.IDLE - 60)
            assert (await p.get("/ui/login")).status == 200

    async def test_a_full_disk_does_not_close_the_pages(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with pages(tmp_path) as p:

            async def full(*_: object, **__: object) -> None:
                raise StoreUnavailable("disk full")

            p.world.pass_time(users.NOTED_EVERY + 1)
            monkeypatch.setattr(Writer, "run", full)
            assert (await p.get("/ui/queue")).status == 200
            assert (await p.get("/ui/history")).status == 200

    async def test_a_user_has_a_bounded_number(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            first = await p.user("viewer")
            (user,) = [one for one in await users.listing(p.world.store.reader) if one.name == first.name]
            for number in range(users.SESSIONS):
                at = p.world.now + number + 1
                await p.world.store.write(lambda tx, at=at: users.open_session(tx, user.id, f"h{at}", "", "", at))
            assert await users.session(p.world.store.reader, token_hash(first.cookie), p.world.now) is None
            assert len(await p.world.rows(select(sessions.c.id))) == users.SESSIONS + 1  # and the administrator's

    async def test_who_is_removed_is_out(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("manager")
            await p.world.store.write(lambda tx: users.remove(tx, user.name))
            assert (await user.post("/ui/logout")).location == "/ui/login"

    async def test_its_use_is_noted_now_and_then(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            for passed, noted in ((users.NOTED_EVERY - 1, 0.0), (2.0, users.NOTED_EVERY + 1)):
                p.world.pass_time(passed)
                await p.get("/ui/login")
                ((seen_at,),) = await p.world.rows(select(sessions.c.seen_at))
                assert seen_at == NOW + noted


class TestPasswords:
    async def test_a_hash_is_argon2id(self) -> None:
        assert (await Passwords().hash(PASSWORD)).startswith("$argon2id$v=19$m=65536,t=3,p=4$")

    async def test_it_is_salted_and_fits_its_password_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("webapi.passwords._HASHER", HASHER)
        passwords = Passwords()
        one, other = await passwords.hash(PASSWORD), await passwords.hash(PASSWORD)
        assert one != other
        assert await passwords.fits(one, PASSWORD)
        assert not await passwords.fits(one, PASSWORD + "x")
        assert not await passwords.fits("broken", PASSWORD)
        assert not await passwords.fits(None, "nobody has this one")

    def test_length_is_what_counts(self) -> None:
        assert weakness("twelve chars", "ann") is None
        assert weakness("ann@shop.example", "ann@shop.example") is not None
