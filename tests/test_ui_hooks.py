"""The pages of webhooks: how each does, log, test, replay, forms; who may; and that nothing becomes markup."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from relay.store.post_log import Outcome
from tests.hook_fixtures import CARD, OPTIONS, SECRET, SECRETS, SITE, access, added, drained, posted
from tests.markup import check, fillings, heaps, hostile, parts, said, values
from tests.ui_fixtures import OWN_FORM, Pages, pages
from tests.webapi_fixtures import of_all
from tests.webhook_receiver import Answer, Receiver, deal
from webapi.breaker import Standing
from webapi.trial import TRIALS
from webapi.ui import hook_forms
from webapi.ui.hook_health import HEIGHT, health

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)

#: What htmx asks with.
HTMX = {"HX-Request": "true"}


@pytest.fixture
async def crm() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@contextlib.asynccontextmanager
async def garden(directory: Path) -> AsyncIterator[Pages]:
    async with pages(directory) as found:
        status, answer = await found.api.call("POST", "/v1/sites", SITE, token=await found.api.token())
        assert status == 201, answer
        yield found


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Pages]:
    async with garden(tmp_path) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pages]:
    """For tests that leave them as they were."""
    async with garden(tmp_path_factory.mktemp("shared")) as found:
        yield found


async def hook(p: Pages, url: str = "https://crm.example/hook", **options: Any) -> str:
    """A webhook of the garden; the path of its page."""
    return f"/ui/webhooks/{(await added(p.api, await p.api.token(), url, **options))['id']}"


async def shown(p: Pages, own: str) -> Any:
    return await p.api.get(f"/v1/webhooks/{own.rpartition('/')[2]}")


POST = re.compile(r"(?:\?|&amp;)post=([0-9]+)")


def post_in(page: str) -> str:
    """The newest post that the log of a page links to."""
    found = POST.search(page)
    assert found is not None
    return found[1]


def sent(values: dict[str, Any]) -> dict[str, str | list[str]]:
    """What a browser sends of a form that shows these values."""
    return {
        name: "on" if value is True else value for name, value in values.items() if value is not False and value != []
    }


class TestHealth:
    def test_bars_are_the_posts_with_the_newest_at_the_right(self) -> None:
        found = health(
            [
                Outcome("waiting", 2, 5.0, 15.0),
                Outcome("failed", 10, 4.0, 99.0),
                Outcome("delivered", 3, 3.0, 0.3),
                Outcome("delivered", 1, 2.0, 0.001),
                Outcome("waiting", 0, 1.0, None),
            ]
        )
        assert [bar.kind for bar in found.bars] == ["waiting", "ok", "retried", "failed", "trying"]
        assert [bar.x for bar in found.bars] == sorted(bar.x for bar in found.bars)
        assert [bar.height for bar in found.bars][-2:] == [HEIGHT, HEIGHT]
        assert found.bars[1].height < found.bars[2].height < HEIGHT
        assert (found.success, found.median, found.slow, found.since) == (2 / 3, 15.0, 99.0, 1.0)
        assert found.in_words == (
            "the latest 5 posts: 1 delivered at once, 1 delivered after a failure, 1 failed, 1 to be tried again, "
            "1 waiting"
        )

    def test_without_posts_there_is_nothing_to_say(self) -> None:
        found = health([])
        assert (found.success, found.median, found.bars, found.in_words) == (None, None, (), "nothing was posted yet")


class TestList:
    async def test_all_sites_webhooks_with_their_success(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url, template="hubspot", bearer="token")
        await posted(p.api, crm, 1)
        answer = await p.get("/ui/webhooks")
        words = said(answer.text)
        for expected in ("https://crm.example/hook", "https://crm.other.example/hook", crm.url, "hubspot", "100 %"):
            assert expected in words
        assert answer.text.count("<svg") == 3
        viewer = await p.user("viewer", "garden")
        words = said((await viewer.get("/ui/webhooks")).text)
        assert crm.url in words
        assert "crm.other.example" not in words
        assert (await viewer.get(own)).status == 200

    async def test_without_any_it_says_what_one_is(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as empty:
            await empty.world.declare()
            answer = await empty.get("/ui/webhooks")
            assert "No webhook yet" in answer.text
            assert "First there must be a" in answer.text

    async def test_unknown_ones_are_not_there(self, p: Pages) -> None:
        viewer = await p.user("viewer", "garden")
        for path in ("999", "x", "0", "%00", "1", "2"):
            assert (await viewer.get(f"/ui/webhooks/{path}")).status == 404


class TestLog:
    async def test_each_post_with_answer_attempts_and_time(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        crm.script = lambda got: {"offer 1": Answer(422, b"no such stage")}.get(got.json["subject"], 200)
        await posted(p.api, crm, 3)
        answer = await p.get(own)
        words = said(answer.text)
        assert words.index("offer 2") < words.index("offer 1") < words.index("offer 0")
        assert "422" in words
        assert "ann@example.org" in words
        assert "Success of the latest 3 100 %" in words
        waiting = said((await p.get(f"{own}?state=waiting")).text)
        assert "offer 1" in waiting
        assert "offer 2" not in waiting
        assert "No post was given up" in (await p.get(f"{own}?state=failed")).text

    async def test_what_its_conditions_keep_back_says_why(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url, conditions={"subject": "^order"})
        await posted(p.api, crm, 1)
        words = said((await p.get(f"{own}?state=withheld")).text)
        assert "the subject does not match" in words
        assert "has a subject that matches ^order" in words

    async def test_one_post_has_its_request_and_every_attempt(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url, secret=SECRET, headers={"X-Api-Key": "headerS3cret"})
        crm.script = [Answer(500, b"not now"), Answer(200, b"thanks")]
        (message,) = await posted(p.api, crm)
        p.world.pass_time(10)
        await drained(p.api)
        page = (await p.get(own)).text
        link = post_in(page)
        answer = await p.get(f"{own}?post={link}")
        words = said(answer.text)
        assert words.index("thanks") < words.index("not now")
        for expected in (
            "X-Api-Key",
            "***",
            '"subject": "offer 0"',
            "webhook-signature",
            crm.posts[0].headers["webhook-id"],
        ):
            assert expected in words
        assert f"/ui/messages/{message}" in answer.text
        assert "S3cret" not in answer.text
        assert SECRET not in answer.text
        assert (await p.get(f"{own}?post=999")).status == 404
        assert (await p.get(f"{own}?post=x")).status == 404

    async def test_it_is_read_by_pages(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        await posted(p.api, crm, 51)
        first = await p.get(own)
        assert "offer 50" in first.text
        assert "offer 0" not in first.text.replace("offer 0\n", "")
        older = first.text.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0]
        second = await p.get(older.replace("&amp;", "&"))
        assert "offer 0" in second.text
        assert "Newest" in second.text
        for query in ("state=gone", "cursor=x"):
            assert (await p.get(f"{own}?{query}")).status == 400

    async def test_it_follows_by_itself(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        again = (await p.get(own)).text.partition(f'hx-get="{own}/log?')[2].partition('"')[0]
        assert (await p.get(f"{own}/log?{again}", **HTMX)).status == 204  # nothing new: what is read is left in peace
        await posted(p.api, crm, 1)
        part = await p.get(f"{own}/log?{again}", **HTMX)
        assert part.status == 200
        assert "offer 0" in part.text
        assert "<html" not in part.text
        assert 'class="badge' in part.text

    async def test_a_resting_one_says_until_when(self, tmp_path: Path) -> None:
        async with pages(tmp_path, standing=lambda _: Standing(12, 75.0)) as p:
            own = f"/ui/webhooks/{p.world.site('shop').webhooks[0].id}"
            words = said((await p.get(own)).text)
            assert "resting 12 failures in a row; tried again in 1 min" in words
            detail = await shown(p, own)
            assert (detail["failures"], detail["rests_for"]) == (12, 75.0)


class TestActions:
    async def test_a_test_shows_request_answer_and_deal(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        crm.script = [deal("D-17", "https://crm.example/deals/17"), 503]
        answer = await p.post(f"{own}/test")
        words = said(answer.text)
        assert answer.status == 200
        assert "Test: it was taken 200" in words
        assert "the deal is D-17" in words
        assert '"subject": "Test of the webhook"' in words
        assert "Test: it was not taken 503" in said((await p.post(f"{own}/test")).text)
        nowhere = await hook(p, "http://127.0.0.1:1/hook")
        assert "Connection refused" in said((await p.post(f"{nowhere}/test")).text)

    async def test_while_others_are_tested_the_page_says_so(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        p.api.context.trials.under_way = TRIALS
        alone = await p.post(f"{own}/test")
        part = await p.send("POST", f"{own}/test", data=[("csrf", p.csrf)], headers=OWN_FORM | HTMX)
        assert (alone.status, part.status) == (429, 200)
        for answer in (alone, part):
            assert "4 webhooks are being tested just now; try again in a moment." in said(answer.text)
        assert crm.posts == []

    async def test_it_is_disabled_and_enabled(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        assert (await p.post(f"{own}/switch", {"enabled": "off"})).status == 303
        words = said((await p.get(own)).text)
        assert "switched off" in words
        assert "enable it first" in words
        assert (await p.post(f"{own}/switch", {"enabled": "on"})).status == 303
        assert (await shown(p, own))["enabled"] is True

    async def test_one_all_that_failed_or_a_time_is_replayed(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        crm.script = lambda got: {"offer 1": 500}.get(got.json["subject"], 200)
        await posted(p.api, crm, 3)
        crm.script = 200
        page = (await p.get(f"{own}?state=delivered")).text
        post = post_in(page)
        one = await p.post(f"{own}/replay", {"what": "post", "post": post})
        assert one.location == f"{own}?replayed=1&post={post}"
        assert "One post is sent again" in (await p.get(one.location)).text
        failed = await p.post(f"{own}/replay", {"what": "failed"})
        assert failed.location == f"{own}?replayed=1"
        await drained(p.api)
        assert len(crm.posts) == 3 + 2
        day = datetime.fromtimestamp(p.world.now, UTC)
        begin, end = (day.replace(hour=hour).strftime("%Y-%m-%dT%H:%M") for hour in (0, 23))
        ranged = await p.post(f"{own}/replay", {"what": "range", "since": begin, "until": end})
        assert ranged.location == f"{own}?replayed=3"
        none = await p.post(f"{own}/replay", {"what": "range", "since": end, "until": ""})
        assert "Nothing was posted again" in (await p.get(none.location)).text

    @pytest.mark.parametrize(
        ("form", "words"),
        [
            ({"what": "range", "since": "", "until": ""}, "give a time"),
            ({"what": "range", "since": "tomorrow", "until": ""}, "must be a time such as"),
            ({"what": "post", "post": "999"}, "not all of them are posts of this webhook"),
            ({"what": "post", "post": "x"}, "String should match pattern"),
        ],
    )
    async def test_what_cannot_be_replayed_is_said(
        self, p: Pages, crm: Receiver, form: dict[str, str], words: str
    ) -> None:
        own = await hook(p, crm.url)
        answer = await p.post(f"{own}/replay", form)
        assert answer.status == 400
        assert words in said(answer.text)

    async def test_a_disabled_one_is_not_replayed(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        await p.post(f"{own}/switch", {"enabled": "off"})
        answer = await p.post(f"{own}/replay", {"what": "failed"})
        assert answer.status == 409
        assert "The webhook is disabled" in answer.text

    async def test_it_is_removed_after_it_was_asked(self, p: Pages) -> None:
        own = await hook(p)
        assert "stays in the History" in (await p.get(f"{own}/remove")).text
        assert (await p.post(f"{own}/remove")).location == "/ui/webhooks?done=hook_removed"
        assert (await p.get(own)).status == 404

    async def test_a_new_secret_is_shown_once(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url, secret=SECRET)
        assert "signs as well" in said((await p.get(f"{own}/rotate")).text)
        answer = await p.post(f"{own}/rotate", {"secret": "", "keep": "1h"})
        secret = "whsec_" + answer.text.partition("whsec_")[2].partition("<")[0]
        assert answer.headers["Cache-Control"] == "no-store"
        await p.post(f"{own}/test")
        crm.posts[-1].headers["webhook-timestamp"]
        assert secret not in (await p.get(own)).text
        wrong = await p.post(f"{own}/rotate", {"secret": "whsec_short", "keep": "1h"})
        assert wrong.status == 400
        assert 'id="wrong-secret"' in wrong.text


class TestForms:
    NEW: ClassVar[dict[str, Any]] = sent(hook_forms.filled(hook_forms.NEW_VALUES)) | {
        "site": "garden",
        "url": "https://crm.example/hook",
    }

    async def test_a_new_one_shows_its_secret_once(self, p: Pages) -> None:
        assert 'value="garden" selected' in (await p.get("/ui/webhooks/new?site=garden")).text
        answer = await p.post("/ui/webhooks/new", self.NEW)
        assert answer.status == 200
        assert "whsec_" in answer.text
        (made,) = (await p.api.get("/v1/sites/garden/webhooks"))["items"]
        assert made["url"] == "https://crm.example/hook"
        assert "whsec_" not in (await p.get(f"/ui/webhooks/{made['id']}")).text
        again = await p.post("/ui/webhooks/new", self.NEW)
        assert again.status == 409
        assert 'id="wrong-url"' in again.text

    async def test_declared_sites_have_theirs_in_the_file(self, p: Pages) -> None:
        page = (await p.get("/ui/webhooks/new")).text
        assert 'value="shop"' not in page
        assert (await p.post("/ui/webhooks/new", self.NEW | {"site": "shop"})).status == 409
        own = f"/ui/webhooks/{p.world.site('shop').webhooks[0].id}"
        assert "Defined in relay.toml" in said((await p.get(own)).text)
        for path in ("edit", "rotate", "remove"):
            assert (await p.get(f"{own}/{path}")).location == f"{own}?done=declared"
            assert (await p.post(f"{own}/{path}", self.NEW)).status == 409
        assert (await p.post(f"{own}/switch", {"enabled": "off"})).status == 303

    async def test_every_option_can_be_given(self, p: Pages) -> None:
        form = self.NEW | {
            "events": ["message.received", "message.failed", "attribution.changed"],
            "fill": "likely",
            "extras": "on",
            "headers": "X-Api-Key: headerS3cret\r\nX-Second: headerS3cret2",
            "login": "bearer",
            "bearer": "bearerS3cret",
            "concurrency": "3",
            "deal_id": "/lead/id",
            "deal_url": "/lead/a~1b~0c",
            "shape": "own",
            "template": OPTIONS["template"],
            "variables": "key = variableS3cret",
            "secret": SECRET,
            "conditions.require_visit": "yes",
            "conditions.skip_bounces": "no",
            "conditions.skip_blocked": "no",
            "conditions.attribution": "exact",
            "conditions.first_letter": "90m",
            "conditions.min_size": "10",
            "conditions.max_size": "1 kB",
            "conditions.max_recipients": "5",
            "conditions.recipients": "Sales@garden.example",
            "conditions.subject": "^offer",
        }
        answer = await p.post("/ui/webhooks/new", form)
        assert answer.status == 200, said(answer.text)
        (made,) = (await p.api.get("/v1/sites/garden/webhooks"))["items"]
        status, wanted = await p.api.call(
            "POST",
            "/v1/sites/garden/webhooks",
            OPTIONS | {"url": "https://crm.example/2", "secret": SECRET},
            token=await p.api.token(),
        )
        assert status == 201
        given, other = access(p.api, made), access(p.api, wanted)
        assert given == other
        assert (
            made == {**wanted, "id": made["id"], "url": made["url"]} | {} or made["conditions"] == wanted["conditions"]
        )
        assert {name: made[name] for name in made if name not in ("id", "url", "edition")} == {
            name: wanted[name] for name in made if name not in ("id", "url", "edition")
        }
        page = await p.get(f"/ui/webhooks/{made['id']}/edit")
        assert not any(secret in page.text for secret in SECRETS)
        assert "X-Api-Key, X-Second" in page.text

    async def test_what_is_sent_as_it_is_shown_changes_nothing(self, p: Pages) -> None:
        own = await hook(p, **OPTIONS)
        before, secrets = await shown(p, own), access(p.api, await shown(p, own))
        form = sent(hook_forms.filled(before))
        answer = await p.post(f"{own}/edit", form)
        assert (answer.status, answer.location) == (303, f"{own}?done=hook_changed")
        assert {**await shown(p, own), "edition": ""} == {**before, "edition": ""}
        assert access(p.api, before) == secrets
        form = sent(hook_forms.filled(await shown(p, own))) | {
            "login": "none",
            "headers": "X-New: 1",
            "concurrency": "1",
        }
        answer = await p.post(f"{own}/edit", form)
        assert answer.status == 303
        after = await shown(p, own)
        assert (after["login"], after["headers"], after["concurrency"]) == (None, ["X-New"], 1)

    async def test_one_that_is_late_changes_nothing_and_shows_what_there_is(self, p: Pages) -> None:
        own = await hook(p, **OPTIONS)
        form = sent(hook_forms.filled(await shown(p, own)))
        change, path = {"url": "https://crm.example/new"}, own.replace("/ui/", "/v1/")
        status, now = await p.api.call("PATCH", path, change, token=await p.api.token())
        assert status == 200
        # With an error it is late as well, and so it is when that is corrected.
        answer = await p.post(f"{own}/edit", form | {"concurrency": "101"})
        assert (answer.status, f'name="edition" value="{form["edition"]}"' in answer.text) == (400, True)
        for late in (form, {name: value for name, value in form.items() if name != "edition"}):
            answer = await p.post(f"{own}/edit", late)
            assert answer.status == 409
            assert "changed the webhook meanwhile: look again" in said(answer.text)
            assert values(answer.text)["url"] == now["url"]
            assert f'name="edition" value="{now["edition"]}"' in answer.text
        found = await shown(p, own)
        assert {name: found[name] for name in now} == now

    @of_all
    @pytest.mark.parametrize(
        ("changes", "field", "words"),
        [
            ({"url": "crm.example"}, "url", "must be a URL"),
            ({"url": "https://u:p@crm.example"}, "url", "must not contain a login"),
            ({"events": []}, "events", "must not be empty"),
            ({"concurrency": "101"}, "concurrency", "must be at most 100"),
            ({"headers": "Host: x"}, "headers", "is not the name of a header field that a webhook may set"),
            ({"headers": "X"}, "headers", "is not a line such as"),
            ({"login": "basic", "basic": "nobody"}, "basic", 'must be "user:password"'),
            ({"login": "bearer", "bearer": "a b"}, "bearer", "must be a token without spaces"),
            ({"deal_id": "id"}, "deal_id", ""),
            ({"shape": "own", "template": "body"}, "template", ""),
            ({"shape": "bitrix24"}, "variables", "code"),
            ({"variables": "a = 1"}, "variables", "there is no template"),
            ({"secret": "whsec_short"}, "secret", "24 to 64 octets"),
            ({"conditions.first_letter": "soon"}, "conditions.first_letter", "must be a duration"),
            (
                {"conditions.min_size": "2 kB", "conditions.max_size": "1 kB"},
                "conditions.max_size",
                "is below min_size",
            ),
            ({"conditions.recipients": "x"}, "conditions.recipients", "is not an address"),
            ({"conditions.subject": "("}, "conditions.subject", "is not a regular expression"),
        ],
    )
    async def test_errors_stand_beside_their_field_and_what_was_typed_stays(
        self, shared: Pages, changes: dict[str, Any], field: str, words: str
    ) -> None:
        form = self.NEW | changes
        answer = await shared.post("/ui/webhooks/new", form)
        assert answer.status == 400, said(answer.text)
        assert f'id="wrong-{field}"' in answer.text
        assert words in said(answer.text)
        kept = values(answer.text)
        for name, typed in form.items():
            if name in kept:
                assert kept[name].strip() == typed
        assert (await shared.api.get("/v1/sites/garden/webhooks"))["items"] == []


class TestRoles:
    async def test_who_may_not_gets_403_and_sees_no_button(self, p: Pages, crm: Receiver) -> None:
        own = await hook(p, crm.url)
        before = await shown(p, own)
        for_managers = ((f"{own}/test", {}), (f"{own}/replay", {"what": "failed"}))
        for_admins = (
            (f"{own}/switch", {"enabled": "off"}),
            (f"{own}/edit", sent(hook_forms.filled(before))),
            (f"{own}/rotate", {"keep": "1h"}),
            (f"{own}/remove", {}),
            ("/ui/webhooks/new", TestForms.NEW),
        )
        viewer, manager = await p.user("viewer", "garden"), await p.user("manager", "garden")
        other = await p.user("admin", "shop")
        for path, form in (*for_managers, *for_admins):
            assert (await viewer.post(path, form)).status == 403, path
            assert (await other.post(path, form)).status == 404, path
            assert (await p.post(path, form, csrf="")).status == 403, path
        for path, form in for_admins:
            assert (await manager.post(path, form)).status == 403, path
        for path in (f"{own}/edit", f"{own}/rotate", f"{own}/remove", "/ui/webhooks/new"):
            assert (await manager.get(path)).status == 403, path
        assert crm.posts == []
        assert await shown(p, own) == before
        assert (await viewer.get(own)).text.count("<form") == 1  # to log out
        assert (await manager.get(own)).text.count("<form") == 1 + 2
        for path, form in for_managers:
            assert (await manager.post(path, form)).status in (200, 303), path


class TestHostile:
    async def test_what_is_typed_is_shown_again_as_text(self, p: Pages) -> None:
        own = await hook(p, **OPTIONS)
        names = [*hook_forms.NAMES, "site", "headers_kept", "variables_kept", "edition"]
        fields = {
            "/ui/webhooks/new": names,
            f"{own}/edit": names,
            f"{own}/rotate": ["secret", "keep"],
            f"{own}/replay": ["since", "until", "what"],
        }
        for path, each in fields.items():
            base: dict[str, Any] = {"site": "garden"} if path.endswith("new") else {}
            known = parts((await p.get(path.removesuffix("/replay"))).text)
            for form in ({}, *({name: "!"} for name in each), dict.fromkeys(each, "!")):
                known |= parts((await p.post(path, form | base)).text)
            for filled in fillings(each, 1000):  # a form has an end
                answer = await p.post(path, filled | base)
                assert answer.status == 400, path
                check(answer.text, known)

    async def test_letters_and_answers_are_shown_as_text(self, p: Pages, crm: Receiver) -> None:
        """Subjects and senders are a stranger's, answers the receiver's."""
        own = await hook(p, crm.url)
        samples = [text for text in hostile() if text.isprintable() and len(text) < 500]
        heap = itertools.cycle(heaps(1500))
        crm.script = lambda _: Answer(200, json.dumps({"deal_id": next(heap)[:90], "x": next(heap)}).encode())
        for number, text in enumerate(samples[:15]):
            sender = f"{number}@example.org"
            accepted = await p.api.letter(CARD, number=number, subject=text, sender=sender)
            await p.api.w.extract(accepted.message_id, subject=" ".join(samples[number::15]))
        await drained(p.api)
        plain = await hook(p, f"{crm.url}/plain")
        crm.script = lambda _: deal("1", "https://crm.example/1")
        await posted(p.api, crm, 1, first=100)
        page = (await p.get(plain)).text
        known = parts(page)
        known |= parts((await p.get(f"{plain}?post={post_in(page)}")).text)
        known |= parts((await p.post(f"{plain}/test")).text)
        page = (await p.get(own)).text
        check(page, known)
        posts = set(POST.findall(page))
        assert len(posts) >= 15
        for post in posts:
            check((await p.get(f"{own}?post={post}")).text, known)
        crm.script = lambda _: Answer(500, " ".join(heaps()[3:5]).encode())
        check((await p.post(f"{own}/test")).text, known)

    async def test_what_is_stored_is_shown_as_text(self, p: Pages) -> None:
        text = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
        own = await hook(
            p,
            f"https://crm.example/?q={text.replace(' ', '+')}",
            conditions={"subject": text.replace("(", "\\(").replace(")", "\\)")},
            template=f"# {text}\nbody = '{{}}'\n",
        )
        plain = await hook(p, conditions={"subject": "x"}, template="body = '{}'")
        for path in ("", "/edit", "/rotate", "/remove"):
            check((await p.get(own + path)).text, parts((await p.get(plain + path)).text))
            assert "alert(1)" in said((await p.get(own + path)).text) or path == "/edit"
        check((await p.get("/ui/sites/garden")).text, parts((await p.get("/ui/sites/garden")).text))
