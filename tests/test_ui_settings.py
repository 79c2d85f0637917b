"""Settings: what each role finds there, what its forms do, and that nothing secret or foreign is shown."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from relay.commands import COMMANDS as OF_COMMANDS
from relay.secrets import Keys, token_hash
from relay.store import blocked, changes, tokens, users
from relay.store.changes import Change
from tests.hostile_world import vectors
from tests.store_fixtures import fresh_keys
from tests.test_ui_login import CHOSEN, PASSWORD, logged_in, nobody, with_password
from tests.ui_fixtures import Answer, Pages, pages
from webapi.app import OPERATIONS
from webapi.people import ChangeShown
from webapi.ui.login import FAILURES_PER_USER
from webapi.ui.session import COOKIE
from webapi.ui.settings_log import COMMANDS, line, value, words

TABS = ("users", "tokens", "senders", "retention", "keys", "changes")
ANOTHER = "an entirely different one"


async def noted(p: Pages) -> list[changes.ChangeRow]:
    return await changes.page(p.world.store.reader, None, None, 100)


async def change_password(user: Pages, **fields: str) -> Answer:
    form = {"current": PASSWORD, "password": ANOTHER, "again": ANOTHER} | fields
    return await user.post("/ui/settings/password", form)


async def another_session(p: Pages, user: Pages) -> Pages:
    answer = await logged_in(await nobody(p), user.name, PASSWORD)
    return Pages(p.api, user.name, cookie_of(answer))


def cookie_of(answer: Answer) -> str:
    return answer.headers["Set-Cookie"].partition(f"{COOKIE}=")[2].partition(";")[0]


OURS = "main nav ul li a h1 h2 p table thead tbody tr th td span time strong form input label button small section div"


def foreign_elements(text: str) -> list[str]:
    """Elements of the page's content that its template has not."""
    found = re.findall(r"<[^/\s>]+", text.partition("<main")[2])
    return [one for one in found if one[1:] not in OURS.split()]


class TestPages:
    @pytest.mark.parametrize("name", ["", *(f"/{tab}" for tab in TABS)])
    async def test_an_administrator_opens_every_page(self, name: str, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            answer = await p.get(f"/ui/settings{name}")
            assert answer.status == 200, answer.text
            assert answer.text.count('aria-current="page"') == 2  # of the menu, and of the page's own

    @pytest.mark.parametrize(
        ("role", "sites", "found"),
        [
            ("viewer", (), ()),
            ("manager", ("shop",), ()),
            ("admin", ("shop",), ("senders", "retention", "changes")),
            ("admin", (), TABS),
        ],
    )
    async def test_the_menu_has_what_opens_and_nothing_else(
        self, role: str, sites: tuple[str, ...], found: tuple[str, ...], tmp_path: Path
    ) -> None:
        async with pages(tmp_path) as p:
            user = p if (role, sites) == ("admin", ()) else await p.user(role, *sites)
            text = (await user.get("/ui/settings")).text
            for tab in TABS:
                assert (f'href="/ui/settings/{tab}"' in text) == (tab in found)
                assert (await user.get(f"/ui/settings/{tab}")).status == (200 if tab in found else 403)


class TestPassword:
    async def test_it_needs_the_current_one_and_ends_every_other_session(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await with_password(p)
            here, there = await another_session(p, user), await another_session(p, user)
            answer = await change_password(here)
            assert (answer.status, answer.location) == (303, "/ui/settings?done=password")
            for old in (here, there):  # whoever has copied the cookie has nothing
                assert (await old.get("/ui/settings")).status == 303
            assert (await Pages(p.api, user.name, cookie_of(answer)).get("/ui/settings")).status == 200
            assert (await logged_in(await nobody(p), user.name, PASSWORD)).status == 403
            assert (await logged_in(await nobody(p), user.name, ANOTHER)).status == 303
            (latest, *_) = await noted(p)
            assert (latest.change.name, latest.change.action) == (user.name, "POST /ui/settings/password")
            assert not latest.change.details

    @pytest.mark.parametrize(
        ("fields", "status", "words"),
        [
            ({"current": "wrong"}, 403, "Is wrong."),
            ({"password": "short", "again": "short"}, 400, "Must have at least 12 characters."),
            ({"password": ANOTHER, "again": "viewer"}, 400, "Is not the same."),
            ({"password": "a" * 12, "again": "a" * 12}, 400, "Is too easy to guess."),
        ],
    )
    async def test_what_is_wrong_stands_beside_the_field_and_changes_nothing(
        self, fields: dict[str, str], status: int, words: str, tmp_path: Path
    ) -> None:
        async with pages(tmp_path) as p:
            user = await another_session(p, await with_password(p))
            answer = await change_password(user, **fields)
            assert answer.status == status
            assert words in answer.text
            for typed in (PASSWORD, ANOTHER, *fields.values()):
                assert f'value="{typed}"' not in answer.text
            assert (await user.get("/ui/settings")).status == 200
            assert (await logged_in(await nobody(p), user.name, PASSWORD)).status == 303

    async def test_guessing_at_an_open_browser_is_as_slow_as_at_the_login(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await another_session(p, await with_password(p))
            statuses = [(await change_password(user, current="x")).status for _ in range(FAILURES_PER_USER)]
            assert set(statuses) == {403}
            assert (await change_password(user)).status == 429
            assert (await logged_in(await nobody(p), user.name, PASSWORD)).status == 429

    async def test_who_was_invited_only_cannot_choose_one_here(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer")  # has a session, but no password
            for current in ("", "nobody has this one"):
                assert (await change_password(user, current=current)).status == 403


class TestSessions:
    async def test_all_others_end_and_this_one_stays(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await with_password(p)
            here, there = await another_session(p, user), await another_session(p, user)
            assert (await here.post("/ui/settings/sessions")).location == "/ui/settings?done=sessions"
            assert (await here.get("/ui/settings")).status == 200
            assert (await there.get("/ui/settings")).status == 303
            assert (await p.get("/ui/settings")).status == 200  # somebody else's

    async def test_one_ends_and_only_ones_own(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await with_password(p)
            here, there = await another_session(p, user), await another_session(p, user)
            mine = re.findall(r'name="session" value="(\d+)"', (await here.get("/ui/settings")).text)
            foreign = await users.session(p.world.store.reader, token_hash(p.cookie), p.world.now)
            assert foreign is not None
            assert str(foreign.id) not in mine
            for number in (str(foreign.id), "0", "x", "99999"):
                assert (await here.post("/ui/settings/sessions", {"session": number})).status == 404
            for number in mine:
                assert (await here.post("/ui/settings/sessions", {"session": number})).status == 303
            statuses = [(await one.get("/ui/settings")).status for one in (p, here, there)]
            assert statuses == [200, 200, 303]

    async def test_what_a_browser_says_of_itself_is_text(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            (user,) = await users.listing(p.world.store.reader)
            marked = [text for text in vectors() if "<" in text][: users.SESSIONS - 1]
            for number, text in enumerate(marked):
                agent, at = text.encode(errors="replace").decode(), p.world.now
                await p.world.store.write(
                    lambda tx, n=number, agent=agent, at=at: users.open_session(tx, user.id, f"h{n}", agent, agent, at)
                )
            text = (await p.get("/ui/settings")).text
            assert text.count('data-label="Browser"') == users.SESSIONS
            assert foreign_elements(text) == []


INVITED = {"name": "Vera@Shop.test", "role": "viewer", "scope": "some", "site": ["shop"]}


class TestUsers:
    async def test_the_link_is_shown_once_and_works(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            answer = await p.post("/ui/settings/users", INVITED)
            assert answer.status == 200
            (link,) = re.findall(r"http://[^<]+(/ui/welcome/[\w-]{43})<", answer.text)
            assert link not in (await p.get("/ui/settings/users")).text
            stranger = await nobody(p)
            assert (await stranger.send("POST", link, data=CHOSEN, headers={})).status == 303
            vera = await another_session(p, Pages(p.api, "vera@shop.test", ""))
            assert "viewer of shop" in (await vera.get("/ui/settings")).text

    @pytest.mark.parametrize(
        ("form", "status", "words"),
        [
            ({"name": "a b"}, 400, "must be letters, digits"),
            ({"name": ""}, 400, "must be letters, digits"),
            ({"name": "admin-all"}, 409, "there is a user of this name"),
            ({"role": "king"}, 400, "role"),
            ({"site": []}, 400, "choose all sites, or at least one"),
            ({"scope": ""}, 400, "choose all sites, or at least one"),
            ({"site": ["nowhere"]}, 404, "no such site"),
        ],
    )
    async def test_what_is_wrong_is_said_and_nobody_is_invited(
        self, form: dict[str, Any], status: int, words: str, tmp_path: Path
    ) -> None:
        async with pages(tmp_path) as p:
            answer = await p.post("/ui/settings/users", INVITED | form)
            assert answer.status == status
            assert words in answer.text
            assert [user.name for user in await users.listing(p.world.store.reader)] == ["admin-all"]

    async def test_a_name_that_is_no_name_comes_back_as_text(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            for text in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{77777*7}}"):
                for path in ("users", "tokens"):
                    answer = await p.post(f"/ui/settings/{path}", INVITED | {"name": text, "role": text})
                    assert answer.status == 400
                    assert text not in answer.text or text == "{{77777*7}}"
                    assert "544439" not in answer.text.partition("<main")[2]

    async def test_rights_change_from_the_next_click_on(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("admin", "shop")
            path = f"/ui/settings/users/{user.name}"
            assert 'value="shop" checked' in (await p.get(path)).text
            assert (await user.get("/ui/settings/changes")).status == 200
            answer = await p.post(path, {"role": "viewer", "scope": "some", "site": ["other"]})
            assert answer.location == "/ui/settings/users?done=saved"
            assert (await user.get("/ui/settings/changes")).status == 403
            assert "viewer of other" in (await user.get("/ui/settings")).text
            (latest, *_) = await noted(p)
            assert latest.change.details == {"role": "viewer", "sites": ["other"]}

    async def test_who_chooses_no_scope_gives_no_rights(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer", "shop")
            answer = await p.post(f"/ui/settings/users/{user.name}", {"role": "admin"})
            assert answer.status == 400
            (found,) = [one for one in await users.listing(p.world.store.reader) if one.name == user.name]
            assert (found.role, found.sites) == ("viewer", ("shop",))

    async def test_the_last_administrator_of_all_stays_one(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            boss = await another_session(p, await with_password(p, "admin", "shop"))
            await p.world.store.write(lambda tx: users.change(tx, boss.name, "admin", None))
            for path, form in (("", {"role": "viewer", "scope": "all"}), ("/remove", {})):
                answer = await boss.post(f"/ui/settings/users/{boss.name}{path}", form)
                assert answer.status == 409
                assert "nobody else is an administrator of all sites" in answer.text

    async def test_a_site_that_is_gone_is_said_so(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            made = await p.world.store.write(lambda tx: users.create(tx, "old", "viewer", ["gone"], p.world.now))
            assert "No longer there: gone" in (await p.get(f"/ui/settings/users/{made.name}")).text

    async def test_a_new_link_replaces_the_one_before(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer")
            links = []
            for _ in range(2):
                text = (await p.post(f"/ui/settings/users/{user.name}/invitation")).text
                links += re.findall(r"(/ui/welcome/[\w-]{43})<", text)
            assert [(await p.get(link)).status for link in links] == [404, 200]

    async def test_who_is_removed_is_out(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer")
            answer = await p.post(f"/ui/settings/users/{user.name}/remove")
            assert answer.location == "/ui/settings/users?done=user_removed"
            assert (await user.get("/ui/settings")).status == 303

    @pytest.mark.parametrize("path", ["", "/invitation", "/remove"])
    async def test_nobody_of_this_name_is_a_404(self, path: str, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            form = {"role": "viewer", "scope": "all"}
            assert (await p.post(f"/ui/settings/users/nobody{path}", form)).status == 404


class TestTokens:
    async def test_it_is_shown_once_works_and_ends(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            form = {"name": "<b>reports", "role": "viewer", "scope": "all"}
            answer = await p.post("/ui/settings/tokens", form)
            (token,) = re.findall(r">(vr_[\w-]{43})<", answer.text)
            listed = (await p.get("/ui/settings/tokens")).text
            assert token not in listed
            assert "&lt;b&gt;reports" in listed
            assert (await p.api.call("GET", "/v1/sites", token=token))[0] == 200
            p.world.pass_time(6)
            answer = await p.post("/ui/settings/tokens/revoke", {"name": "<b>reports"})
            assert answer.location == "/ui/settings/tokens?done=token_revoked"
            assert (await p.api.call("GET", "/v1/sites", token=token))[0] == 401
            assert (await p.post("/ui/settings/tokens/revoke", {"name": "<b>reports"})).status == 404

    async def test_a_name_is_given_once(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            await p.world.store.write(lambda tx: tokens.create(tx, "crm", "hash", "viewer", None, p.world.now))
            answer = await p.post("/ui/settings/tokens", {"name": "crm", "role": "viewer", "scope": "all"})
            assert answer.status == 409
            assert 'aria-describedby="wrong-name"' in answer.text


class TestSenders:
    async def test_blocking_and_unblocking(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            form = {"site": "other", "sender": " Ann@Example.org "}
            answer = await p.post("/ui/settings/senders/block", form)
            assert answer.location == "/ui/settings/senders?done=blocked&site=other"
            assert "Ann@Example.org".lower() in (await p.get("/ui/settings/senders?site=other")).text
            assert "None at this site" in (await p.get("/ui/settings/senders?site=shop")).text
            assert "None that contains" in (await p.get("/ui/settings/senders?site=other&q=bob")).text
            answer = await p.post("/ui/settings/senders/unblock", {"site": "other", "sender": "ann@example.org"})
            assert answer.status == 303
            assert await blocked.listing(p.world.store.reader, p.world.site("other").id) == []
            assert "ann@" not in str([row.change for row in await noted(p)]).lower()

    async def test_what_cannot_be_blocked_is_said(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            answer = await p.post("/ui/settings/senders/block", {"site": "shop", "sender": "<i>ann"})
            assert answer.status == 400
            assert "&lt;i&gt;ann" in answer.text

    async def test_the_longest_sender_is_blocked_by_its_whole_address(self, tmp_path: Path) -> None:
        longest = "a" * 505 + "@x.test"
        async with pages(tmp_path) as p:
            assert 'maxlength="514"' in (await p.get("/ui/settings/senders?site=shop")).text
            answer = await p.post("/ui/settings/senders/block", {"site": "shop", "sender": longest})
            assert answer.location == "/ui/settings/senders?done=blocked&site=shop"
            assert await blocked.listing(p.world.store.reader, p.world.site().id) == [longest]
            wrong = await p.post("/ui/settings/senders/block", {"site": "shop", "sender": "a" + longest})
            assert wrong.status == 400
            assert 'aria-describedby="wrong-sender"' in wrong.text
            assert f'value="a{longest}"' in wrong.text

    async def test_the_longest_sender_is_erased(self, tmp_path: Path) -> None:
        longest = "a" * 505 + "@x.test"
        async with pages(tmp_path) as p:
            assert (await p.get("/ui/settings/senders")).text.count('maxlength="514"') == 3
            _, substitute = await p.world.shown()
            await p.world.accept(substitute, claim=None, sender=longest)
            await p.world.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
            done = await p.post("/ui/settings/senders/erase", {"sender": longest, "sure": "yes"})
            assert done.location == "/ui/settings/senders?done=sender_erased"
            assert await p.world.store.write(lambda tx: tx.sql("SELECT count(*) FROM messages")) == [(0,)]

    async def test_more_than_a_page_shows_are_found_by_searching(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            shop = p.world.site().id
            for number in range(203):
                sender = f"@s{number:03}.example"
                await p.world.store.write(lambda tx, s=sender: blocked.block(tx, shop, s, 0.0))
            text = (await p.get("/ui/settings/senders?site=shop")).text
            assert "… and 3 more" in text
            assert "@s202.example" not in text
            assert "@s202.example" in (await p.get("/ui/settings/senders?site=shop&q=S202")).text

    async def test_everything_of_a_sender_is_erased_once_one_is_sure(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            _, substitute = await p.world.shown()
            accepted = await p.world.accept(substitute, claim=None)
            await p.world.extract(accepted.message_id)
            await p.world.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
            asked = await p.post("/ui/settings/senders/erase", {"sender": "ANN@example.org"})
            assert asked.status == 200
            assert "<strong>1 message</strong>" in asked.text
            count = "SELECT count(*) FROM messages"
            assert await p.world.store.write(lambda tx: tx.sql(count)) == [(1,)]
            done = await p.post("/ui/settings/senders/erase", {"sender": "ann@example.org", "sure": "yes"})
            assert done.location == "/ui/settings/senders?done=sender_erased"
            assert await p.world.store.write(lambda tx: tx.sql(count)) == [(0,)]
            again = await p.post("/ui/settings/senders/erase", {"sender": "ann@example.org", "sure": "yes"})
            assert again.location == "/ui/settings/senders?done=sender_nothing"
            shop, now = p.world.site().id, p.world.now
            await p.world.store.write(lambda tx: blocked.block(tx, shop, "ann@example.org", now))
            again = await p.post("/ui/settings/senders/erase", {"sender": "ann@example.org", "sure": "yes"})
            assert again.location == "/ui/settings/senders?done=sender_unblocked"
            (latest, *_) = await noted(p)
            assert (latest.change.action, latest.change.subject) == ("DELETE /v1/senders/{address}", None)

    async def test_what_is_still_being_forwarded_is_told(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            _, substitute = await p.world.shown()
            await p.world.accept(substitute, claim=None)
            done = await p.post("/ui/settings/senders/erase", {"sender": "ann@example.org", "sure": "yes"})
            assert done.location == "/ui/settings/senders?done=erased_in_part"

    @pytest.mark.parametrize("sender", ["", "ann", "\0@x", "x" * 513 + "@y"])
    async def test_what_is_no_address_erases_nothing(self, sender: str, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            answer = await p.post("/ui/settings/senders/erase", {"sender": sender, "sure": "yes"})
            assert answer.status == 400


class TestData:
    async def test_what_is_kept_how_long_stands_there_in_words(self, tmp_path: Path) -> None:
        from relay.config.models import Retention

        async with pages(tmp_path, retention=Retention.model_validate({"raw": "36h"})) as p:
            text = (await p.get("/ui/settings/retention")).text
            for key in Retention.model_fields:
                assert f"retention.{key}</code>" in text
            assert "36 hours" in text
            assert "730 days" in text

    async def test_keys_are_counted_and_never_shown(self, tmp_path: Path) -> None:
        fresh_keys(tmp_path / "renewed")
        srs = tmp_path / "renewed" / "srs.key"
        srs.write_text(f"{'ab' * 32}\n{srs.read_text()}")
        async with pages(tmp_path, keys=Keys.load(srs.parent)) as p:
            text = (await p.get("/ui/settings/keys")).text
            assert [int(count) for count in re.findall(r'"Generations">(\d+)<', text)] == [1, 2, 1, 1]
            for file in p.api.context.keys.files():
                for generation in file.path.read_text().split():
                    assert generation not in text

    async def test_the_steps_to_a_new_generation_are_right(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            steps = re.findall(r"<pre><code>(.*?)</code>", (await p.get("/ui/settings/keys")).text, re.DOTALL)
            lines = [step for step in html.unescape(steps[0]).splitlines() if not step.startswith("systemctl")]
            keys = p.api.context.keys
            subprocess.run(["/bin/sh", "-ec", "\n".join(lines)], check=True, timeout=30)
            read = Keys.load(keys.files()[0].path.parent)  # as the next start does
            assert read.current("links") != keys.current("links")
            assert read.all("links")[1:] == keys.all("links")


def shown(action: str, **fields: Any) -> ChangeShown:
    given = {"at": "2027-01-15T08:00:00.000Z", "kind": "user", "name": "ann", "site": None, "subject": None}
    return ChangeShown.model_validate({"details": {}, "action": action} | given | fields)


class TestLog:
    def test_every_action_has_words(self) -> None:
        audited = {op.action for op in OPERATIONS if op.role and op.method != "GET" and op.audited is not False}
        assert audited <= set(words())
        assert {name for name, command in OF_COMMANDS.items() if command.audited} == set(COMMANDS)

    def test_a_line_says_each_thing_once(self) -> None:
        change = shown(
            "POST /v1/sites/{name}/targets/{address}/pool",
            site="shop",
            subject="shop, sales@example.com",
            details={"addresses": ["a@t.example", "b@t.example"], "count": None, "site": "shop"},
        )
        found = line(change)
        assert (found.what, found.subject, found.site) == ("Added addresses to a pool", "sales@example.com", "shop")
        assert found.details == [("addresses", "a@t.example, b@t.example"), ("count", "–")]

    def test_rights_for_everything_are_not_left_out(self) -> None:
        found = line(shown("POST /v1/tokens", subject="crm", details={"name": "crm", "role": "admin", "sites": None}))
        assert found.details == [("role", "admin"), ("sites", "all")]

    @pytest.mark.parametrize("action", ["POST /v1/nothing", "<script>", ""])
    def test_an_action_of_another_version_is_shown_as_it_is(self, action: str) -> None:
        assert line(shown(action)).what == action

    def test_what_became_another_is_said_with_what_it_was(self) -> None:
        details = {
            "sales@example.com.forward_to": {"before": "old@example.com", "after": "new@example.com"},
            "sales@example.com.next_hop": "changed",
            "statics": {"added": ["card@t.example", "fair@t.example"], "removed": ["shop@t.example"]},
            "tracking": {"before": True, "after": False},
            "sources": "another order",
        }
        found = line(shown("PUT /v1/sites/{name}", site="shop", subject="shop", details=details))
        assert found.details == [
            ("sales@example.com: forward to", "old@example.com → new@example.com"),
            ("sales@example.com: next hop", "changed"),
            ("statics", "card@t.example, fair@t.example added; shop@t.example removed"),
            ("tracking", "yes → no"),
            ("sources", "another order"),
        ]

    def test_values_of_any_kind_are_text(self) -> None:
        assert value({"a": 1}) == "{'a': 1}"

    async def test_older_ones_are_a_page_further(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            for number in range(60):
                change = Change(p.world.now, "token", f"t{number}", "PATCH /v1/sites/{name}", None, "shop")
                await p.world.store.write(lambda tx, c=change: changes.note(tx, c))
            first = (await p.get("/ui/settings/changes")).text
            (older,) = re.findall(r'href="(/ui/settings/changes\?cursor=[^"]+)"', first)
            assert len(re.findall(r">t\d+ ", first)) == 50
            assert re.findall(r">(t\d+) ", (await p.get(older)).text) == [f"t{number}" for number in range(9, -1, -1)]
            for wrong in ("x", "AAAAAAAAAAA", "%00", "-1"):
                assert (await p.get(f"/ui/settings/changes?cursor={wrong}")).status == 400

    async def test_an_administrator_of_some_sites_sees_what_was_done_there(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("admin", "shop")
            for name, site in (("mine", "shop"), ("theirs", "other"), ("all", None)):
                site_id = None if site is None else p.world.site(site).id
                change = Change(p.world.now, "user", name, "PATCH /v1/sites/{name}", site_id)
                await p.world.store.write(lambda tx, c=change: changes.note(tx, c))
            names = re.findall(r'data-label="Who">(\w+)', (await user.get("/ui/settings/changes")).text)
            assert names == ["mine"]

    async def test_whatever_was_noted_is_text(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            for text in vectors()[:45]:
                change = Change(p.world.now, text, text, text, None, text, {text: text, "list": [text]})
                await p.world.store.write(lambda tx, c=change: changes.note(tx, c))
            text = (await p.get("/ui/settings/changes")).text
            assert text.count("<tr>") == 46
            assert foreign_elements(text) == []
