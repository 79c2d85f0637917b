"""The pages as somebody sees them who wants more than is theirs. Every page of every module is tried.

Who may do what is the API's to say; here it is tried over the pages, with forms as a page of ours would send them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from relay.core.channel import SourceRule
from relay.secrets import token_hash
from relay.store import hook_edition, tokens, users
from relay.store.engine import Tx
from relay.store.site_definitions import edition, of_view
from tests.page_forms import forms_of
from tests.store_fixtures import TRACK
from tests.test_api_auth import Filled, dump, fill
from tests.test_ui_login import CHOSEN, PASSWORD, invitation, logged_in, nobody, with_password
from tests.ui_fixtures import HASHER, OWN_FORM, Answer, Pages, pages
from webapi import passwords
from webapi.auth import Role
from webapi.ui import render, session
from webapi.ui.login import ROUTES
from webapi.ui.page import Page
from webapi.ui.pages import PAGES
from webapi.ui.session import COOKIE

GETS = [page for page in PAGES if page.method == "GET"]
POSTS = [page for page in PAGES if page.method == "POST"]
#: Pages that are whole answers of another kind: an endless stream is not read to its end.
STREAMS = ("/events", "/stream", "/live")
#: What a form of any page may ask for, all at once: fields that a page does not know mean nothing to it.
FORM = {
    "site": "shop",
    "sites": "shop",
    "name": "bob",
    "role": "admin",
    "scope": "all",
    "sender": "ann@example.org",
    "sure": "yes",
    "confirm": "yes",
    "address": "sales@example.com",
    "addresses": f"info9@{TRACK}",
    "count": "1",
    "tracking": "off",
    "on": "off",
    "url": "https://crm.example/x",
    "deal": "D-1",
    "id": "D-1",
    "target": "sales@example.com",
    "confirmed": "yes",
}
#: What some of them need besides.
SPECIAL = {
    "/ui/sites/new": {"name": "third", "origins": "https://new.example"},
    "/ui/sites/{name}/origins": {"origin": "https://new.example"},
    "/ui/sites/{name}/statics": {"address": f"card9@{TRACK}", "label": "fair"},
    "/ui/sites/{name}/targets/new": {"address": "new@example.com", "method": "unique", "domain": TRACK},
    "/ui/sites/{name}/statics/{address}": {"label": "fair"},
    "/ui/webhooks/{id}/rotate": {"keep": "1d"},
    "/ui/webhooks/{id}/replay": {"what": "failed"},
    "/ui/messages/{id}/resend": {"attempts": "0"},
    "/ui/addresses/retire": {"address": f"info1@{TRACK}"},
    "/ui/settings/users": {"name": "carol"},
    "/ui/settings/tokens/revoke": {"name": "spare"},
    "/ui/settings/senders/unblock": {"sender": "@blocked.example"},
}
#: Forms with more fields than one wants to repeat: the page that has each, and the field that is changed of it.
OF_PAGES = {
    "/ui/sites/{name}/settings": ("/ui/sites/shop/settings", {"reserve": "20"}),
    "/ui/sites/{name}/sources": ("/ui/sites/shop/sources", {"referrer": "partner.example", "marker": "partner"}),
    "/ui/sites/{name}/sources/order": ("/ui/sites/shop/sources", {"action": "remove"}),
    "/ui/sites/{name}/targets/{address}": ("/ui/sites/shop/targets/sales@example.com", {"lease": "1h"}),
    "/ui/webhooks/new": ("/ui/webhooks/new?site=shop", {"url": "https://crm.example/x"}),
    "/ui/webhooks/{id}/edit": ("/ui/webhooks/{webhook}/edit", {"concurrency": "3"}),
    "/ui/settings/password": (
        "/ui/settings",
        {"current": PASSWORD, "password": f"{PASSWORD}!", "again": f"{PASSWORD}!"},
    ),
    "/ui/settings/sessions": ("/ui/settings", {}),
}
#: Forms that change nothing that lasts, whoever sends them.
PASSING = {
    "/ui/checks": "what the checks find is kept in memory",
    "/ui/webhooks/{id}/test": "the page alone tells what came of it; the log has real letters only",
}
#: The shop's source rules, so that one can be moved or taken out.
RULES = (SourceRule("first", referrer="first.example"), SourceRule("second", referrer="second.example"))
#: The caller's own things, for every role: nothing here is anybody else's.
OWN = ("/ui/logout", "/ui/settings/password", "/ui/settings/sessions")
#: A website that no form of ours leads to, in fields that name a place and in the header that a browser sends.
EVIL = {"next": "https://evil.example/", "back": "//evil.example", "done": "https://evil.example/"}
FROM_EVIL = {"Referer": "https://evil.example/"}


Form = dict[str, str | list[str]]


@dataclass
class Scene(Filled):
    """``forms`` are those of OF_PAGES, as the administrator's pages have them."""

    forms: Mapping[str, Form]


def name_of(page: Page) -> str:
    return f"{page.method} {page.path}"


def path_of(page: Page, filled: Filled) -> str:
    """The page's path with what the shop has for its parameters."""
    kind = page.path.split("/")[2]
    ids = {"messages": filled.message, "queue": filled.delivery, "webhooks": filled.webhook}
    known = {
        "id": str(ids.get(kind, 1)),
        "name": "bob" if "/users/" in page.path else "shop",
        "number": filled.visit,
        "post": str(filled.post),
        "delivery": str(filled.delivery),
        "address": "sales@example.com",
        "webhook": str(filled.webhook),
    }
    if "/statics/" in page.path:
        known["address"] = f"card@{TRACK}"
    if "/substitutes/" in page.path:
        known["address"] = f"info1@{TRACK}"
    return re.sub(r"\{(\w+)(?::[^{}]*)?\}", lambda found: known.get(found[1], "1"), page.path)


def form_of(page: Page, filled: Scene) -> Form:
    if page.path in filled.forms:
        return filled.forms[page.path]
    return {**FORM, "delivery": str(filled.delivery), **SPECIAL.get(page.path, {})}


#: The same in every test: none of them has a number or a name that differs.
_FORMS: dict[str, Form] = {}


async def page_forms(p: Pages, filled: Filled) -> Mapping[str, Form]:
    """The forms of OF_PAGES as their pages have them, the first where there are several."""
    for page in [page for page in POSTS if page.path in OF_PAGES and page.path not in _FORMS]:
        where, changes = OF_PAGES[page.path]
        answer = await p.get(where.replace("{webhook}", str(filled.webhook)))
        found = [form for form in forms_of(answer.text) if unquote(form.action) == path_of(page, filled)]
        assert found, f"no form of {where} leads to {page.path}"
        _FORMS[page.path] = found[0].sent(changes)
    return _FORMS


@contextlib.contextmanager
def on(page: Page) -> Iterator[None]:
    """What fails is said to have failed on this page."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"on {name_of(page)}")
        raise


async def asked(
    user: Pages, page: Page, filled: Scene, fields: Mapping[str, str] | None = None, **headers: str
) -> Answer:
    """The page, or what is answered to its form; that may have more ``fields``, and come with more ``headers``."""
    path = path_of(page, filled)
    if page.method == "GET":
        return await user.get(path)
    read = edition_of_webhook(user, filled) if path.endswith("/edit") else await edition_of_shop(user)
    return await user.post(path, {**form_of(page, filled), "edition": read, **(fields or {})}, **headers)


async def edition_of_shop(user: Pages) -> str:
    """What the shop's forms carry."""
    sites = user.world.store.sites
    shop = sites.by_name.get("shop")
    if shop is None:
        return ""
    return edition(of_view(shop, {target.id: await sites.substitutes(target.id) for target in shop.targets}))


def edition_of_webhook(user: Pages, filled: Scene) -> str:
    """What the form of the shop's webhook carries."""
    known = [hook for site in user.world.store.sites.by_id.values() for hook in site.webhooks]
    return next((hook_edition.edition(hook) for hook in known if hook.id == filled.webhook), "")


def said(answer: Answer) -> str:
    """The page without its examples of what to enter, and the other site's webhook, which ends as the shop's."""
    return re.sub(r'placeholder="[^"]*"|crm\.other\.example/hook', "", answer.text)


def endless(page: Page) -> bool:
    return page.path.endswith(STREAMS)


@contextlib.asynccontextmanager
async def filled_pages(directory: Path) -> AsyncIterator[tuple[Pages, Scene]]:
    """The shop is not declared in relay.toml here: then its definition could be changed by nobody."""
    async with pages(directory) as p:
        filled = await fill(p.api)
        rules = json.dumps([asdict(rule) for rule in RULES])

        def prepare(tx: Tx) -> int:
            for name in ("sites", "webhooks"):
                tx.sql(f"UPDATE {name} SET declared = 0")
            tx.sql("UPDATE sites SET settings = json_set(settings, '$.rules', json(?)) WHERE name = 'shop'", (rules,))
            tx.sql("UPDATE users SET password = ? WHERE name = ?", (HASHER.hash(PASSWORD), p.name))
            ((number,),) = tx.sql("SELECT id FROM users WHERE name = ?", (p.name,))
            return int(number)

        number = await p.world.store.redefine(prepare)
        await session.begin(p.api.context, number, "192.0.2.1", "another browser")
        yield p, Scene(**vars(filled), forms=await page_forms(p, filled))


class TestRoles:
    async def test_the_forms_that_are_tried_here_do_something_for_who_may_and_lead_to_no_other_website(
        self, tmp_path: Path
    ) -> None:
        """Else it would show nothing that they do nothing for others; and only what does something leads anywhere."""
        idle = set()
        for number, page in enumerate(POSTS):
            (directory := tmp_path / str(number)).mkdir()
            async with filled_pages(directory) as (p, filled):
                with on(page):
                    before = dump(directory)
                    answer = await asked(p, page, filled, EVIL, **FROM_EVIL)
                    if dump(directory) == before:
                        idle.add(page.path)
                    assert answer.status < 500, answer.text[-600:]
                    assert answer.location == "" or re.match(r"/(?![/\\])", answer.location)
                    assert "evil.example" not in answer.location.partition("?")[0]
        assert idle == set(PASSING)

    @pytest.mark.parametrize("role", [Role.VIEWER, Role.MANAGER])
    async def test_a_page_of_a_higher_role_is_refused(self, role: Role, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            user = await p.user(role.name.lower())
            before = dump(tmp_path)
            for page in (page for page in PAGES if page.role > role):
                with on(page):
                    assert (await asked(user, page, filled)).status == 403
                    assert dump(tmp_path) == before

    async def test_a_viewer_changes_nothing(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            user = await p.user("viewer")
            for page in [page for page in POSTS if page.path not in OWN]:
                with on(page):
                    before = dump(tmp_path)
                    answer = await asked(user, page, filled)
                    assert answer.status in (200, 400, 403, 404, 409)
                    assert dump(tmp_path) == before

    async def test_a_manager_does_nothing_of_an_administrators(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            user = await p.user("manager")
            for page in [
                page for page in POSTS if re.search(r"erase|drop|remove|delete|users|tokens|rotate", page.path)
            ]:
                with on(page):
                    before = dump(tmp_path)
                    answer = await asked(user, page, filled)
                    assert answer.status in (400, 403, 404), answer.text[-600:]
                    assert dump(tmp_path) == before


class TestSites:
    """An administrator of the other site: the shop, its mail and its names are not there."""

    async def test_no_page_shows_anything_of_a_foreign_site(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            user = await p.user("admin", "other")
            for page in [page for page in GETS if not endless(page)]:
                with on(page):
                    answer = await asked(user, page, filled)
                    assert answer.status < 500
                    if "{" in page.path:
                        assert answer.status in (303, 403, 404)
                    for secret in (
                        "shop.example",
                        "ann@example.org",
                        "info1@track",
                        "pk_shop",
                        "crm.example/hook",
                        "bob",
                    ):
                        assert secret not in said(answer), secret

    async def test_no_form_changes_anything_of_a_foreign_site(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            user = await p.user("admin", "other")
            for page in [page for page in POSTS if page.path not in OWN]:
                with on(page):
                    before = dump(tmp_path)
                    answer = await asked(user, page, filled)
                    assert answer.status < 500, answer.text[-600:]
                    assert dump(tmp_path) == before

    async def test_the_site_in_a_query_is_judged_too(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            user = await p.user("viewer", "other")
            for page in [page for page in GETS if not endless(page)]:
                with on(page):
                    answer = await user.get(f"{path_of(page, filled)}?site=shop")
                    assert answer.status < 500
                    assert "ann@example.org" not in said(answer)
                    assert "info1@track" not in answer.text

    async def test_who_lost_the_last_site_sees_none(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            user = await p.user("admin", "gone")
            for page in GETS:
                if not endless(page):
                    answer = await asked(user, page, filled)
                    assert answer.status < 500
                    assert "ann@example.org" not in said(answer), page.path


class TestForms:
    async def test_every_action_needs_the_sessions_own_token(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            other = await p.user("admin", "shop")
            before = dump(tmp_path)
            for page in POSTS:
                path, form = path_of(page, filled), form_of(page, filled)
                with on(page):
                    for csrf in ("", other.csrf, p.csrf[:-1]):
                        assert (await p.post(path, form, csrf=csrf)).status == 403
                    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
                        assert (await p.post(path, form, **headers)).status == 403
                    assert dump(tmp_path) == before

    async def test_no_action_is_a_link(self, tmp_path: Path) -> None:
        """Only POST does it: a picture of another website, a link in a mail cannot."""
        async with filled_pages(tmp_path) as (p, filled):
            for page in POSTS:
                with on(page):
                    before = dump(tmp_path)
                    answer = await p.get(path_of(page, filled))
                    assert answer.status in (200, 303, 404, 405)
                    assert dump(tmp_path) == before

    async def test_looking_changes_nothing(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            for page in [page for page in GETS if not endless(page)]:
                with on(page):
                    before = dump(tmp_path)
                    await asked(p, page, filled)
                    assert dump(tmp_path) == before

    async def test_every_form_that_is_posted_carries_the_token(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            for page in [page for page in GETS if not endless(page)]:
                with on(page):
                    text = (await asked(p, page, filled)).text
                    forms = re.findall(r"<form[^>]*method=\"post\"[^>]*>.*?</form>", text, re.DOTALL)
                    for form in forms:
                        assert f'name="csrf" value="{p.csrf}"' in form, form[:200]
                        assert "//" not in form.partition(">")[0], "a form of ours is sent to us"


class TestHeaders:
    async def test_no_page_can_be_framed_or_kept_or_run_anything_foreign(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            for page in [page for page in GETS if not endless(page)]:
                with on(page):
                    answer = await asked(p, page, filled)
                    assert_secure(answer)
                    if answer.headers.get("Content-Type", "").startswith("text/html") and "sandbox" not in policy_of(
                        answer
                    ):
                        assert policy_of(answer) == render.POLICY
                        assert answer.headers["X-Frame-Options"] == "DENY"
                        for inline in (
                            r"<script(?![^>]*\bsrc=)",
                            r"<style\b",
                            r"\sstyle=\"",
                            r"\son\w+=\"",
                            r"javascript:",
                        ):
                            assert not re.search(inline, answer.text), inline

    @pytest.mark.parametrize("path", ["/ui/login", "/ui/welcome/nothing", "/ui/nothing", "/ui/static/x/app.css"])
    async def test_nor_can_what_strangers_see(self, path: str, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            answer = await (await nobody(p)).get(path)
            assert_secure(answer)
            assert policy_of(answer) == render.POLICY
            assert answer.headers["X-Frame-Options"] == "DENY"

    async def test_the_policy_lets_nothing_foreign_in(self) -> None:
        rules = dict(rule.strip().split(" ", 1) for rule in render.POLICY.split(";"))
        assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
        assert rules["form-action"] == rules["script-src"] == rules["connect-src"] == "'self'"
        assert "unsafe" not in render.POLICY


def policy_of(answer: Answer) -> str:
    return answer.headers["Content-Security-Policy"]


def assert_secure(answer: Answer) -> None:
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in answer.headers["Cache-Control"] or answer.status == 304
    policy = policy_of(answer)
    assert "default-src 'none'" in policy
    assert "frame-ancestors" in policy
    assert "Access-Control-Allow-Origin" not in answer.headers


class TestCookies:
    @pytest.mark.parametrize("path", ["/", "/v1/sites", "/healthz", "/a/x/y", "/mailtrack.js?site=pk_shop"])
    async def test_a_session_opens_nothing_but_the_pages(self, path: str, tmp_path: Path) -> None:
        """Were the browser to send it there, it would be worth nothing: no page of a site can use the API by it."""
        async with pages(tmp_path) as p:
            with_it, without = await p.get(path), await (await nobody(p)).get(path)
            assert with_it.status == without.status

    async def test_a_token_of_the_api_opens_no_page(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            token = await p.api.token()
            stranger = await nobody(p)
            answer = await stranger.get("/ui/settings", Authorization=f"Bearer {token}", Cookie=f"{COOKIE}={token}")
            assert answer.status == 303

    @pytest.mark.parametrize("value", ["", "x", "a" * 5000, '"', "%00", "\u00e9", "' OR 1=1--"])
    async def test_no_other_cookie_is_a_session(self, value: str, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            answer = await Pages(p.api, "", value).get("/ui/settings")
            assert answer.location.startswith("/ui/login")

    async def test_what_the_store_keeps_of_a_session_opens_none(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            assert p.cookie not in "\n".join(dump(tmp_path))
            stolen = Pages(p.api, "", token_hash(p.cookie))
            assert (await stolen.get("/ui/settings")).status == 303

    async def test_no_cookie_can_be_planted_before_the_login(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await with_password(p)
            planted = Pages(p.api, "", "a-value-that-an-attacker-knows")
            answer = await logged_in(planted, user.name, PASSWORD)
            assert answer.status == 303
            assert (await planted.get("/ui/settings")).status == 303
            given = answer.headers["Set-Cookie"].partition("=")[2].partition(";")[0]
            again = await logged_in(Pages(p.api, "", given), user.name, PASSWORD)
            assert given not in again.headers["Set-Cookie"], "each login begins another session"

    async def test_an_invitation_ends_what_was_planted(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer")
            path = await invitation(p, user.name)
            answer = await user.send("POST", path, data=CHOSEN, headers=OWN_FORM)
            assert user.cookie not in answer.headers["Set-Cookie"]
            assert (await user.get("/ui/settings")).status == 303


class TestRedirects:
    @pytest.mark.parametrize(
        "target",
        ["//evil.example", "https://evil.example/ui/", "/\\evil.example", "/ui/../../evil", "/ui/..//evil.example"],
    )
    async def test_the_login_leads_nowhere_else(self, target: str, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await with_password(p)
            stranger = await nobody(p)
            form = {"name": user.name, "password": PASSWORD, "next": target}
            answer = await stranger.send("POST", "/ui/login", data=form, headers=OWN_FORM)
            assert answer.location.startswith("/ui/")
            assert "//" not in answer.location
            assert f'value="{target}"' not in (await stranger.send("GET", f"/ui/login?next={target}", headers={})).text

    async def test_a_notice_says_only_what_we_say(self, tmp_path: Path) -> None:
        async with filled_pages(tmp_path) as (p, filled):
            for page in [page for page in GETS if not endless(page)]:
                with on(page):
                    answer = await p.get(path_of(page, filled) + "?done=Your+session+has+ended:+call+555")
                    assert "call 555" not in re.sub(r'(href|value|action|src)="[^"]*"', "", answer.text)


class TestGuessing:
    async def test_an_unknown_name_costs_as_many_hashes_as_a_known_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Counted, not timed: whoever measures finds no name by it."""
        made: list[str] = []
        really = passwords._fits

        def counted(stored: str, password: str) -> bool:
            made.append(stored)
            return really(stored, password)

        monkeypatch.setattr(passwords, "_fits", counted)
        async with pages(tmp_path) as p:
            known, waiting = await with_password(p), await p.user("manager")
            counts = []
            for name in ("nobody", known.name, waiting.name, "", "x" * 500, "\0", "nobody"):
                made.clear()
                assert (await logged_in(await nobody(p), name, "wrong")).status == 403
                counts.append(len(made))
            assert set(counts) == {1}
            parameters = {stored.rpartition("$")[0].rpartition("$")[0] for stored in made}
            assert len(parameters) == 1, "as much work for nobody as for somebody"

    async def test_a_link_is_looked_up_by_its_hash(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("viewer")
            path = await invitation(p, user.name)
            link = path.rpartition("/")[2]
            assert link not in "\n".join(dump(tmp_path))
            for wrong in (link[:-1], link + "x", link.swapcase(), token_hash(link), "x" * 300, "%00"):
                assert (await p.get(f"/ui/welcome/{wrong}")).status == 404

    async def test_what_strangers_may_post_is_only_this(self) -> None:
        assert {(method, path) for method, path, _ in ROUTES if method == "POST"} == {
            ("POST", "/ui/login"),
            ("POST", "/ui/welcome/{link}"),
        }

    async def test_a_revoked_user_and_a_revoked_token_are_out_at_once(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as p:
            user = await p.user("manager")
            token = await p.api.token("viewer")
            await p.world.store.write(lambda tx: users.remove(tx, user.name))
            await p.world.store.write(lambda tx: tokens.revoke(tx, f"viewer-{token[-6:]}"))
            assert (await user.get("/ui/settings")).status == 303
            assert (await p.api.call("GET", "/v1/sites", token=token))[0] == 401
