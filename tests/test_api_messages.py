"""The history over HTTP: lists and their filters, one message, replay, deal, erasure; visits, the queue, the report."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import func, select

from relay.core.model import OutcomeKind
from relay.store import blocked, changes, history_pages, retention, search
from relay.store import posts as post_verbs
from relay.store.messages import Accepted
from relay.store.schema import messages
from tests.store_fixtures import NOW, OTHER, SHOP, TRACK, part
from tests.webapi_fixtures import Api, fields, of_all, serving
from webapi.values import cursor_of


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


class TestItem:
    async def test_has_the_fields_of_the_contract(self, api: Api) -> None:
        visit, substitute = await api.w.shown()
        accepted = await api.letter(substitute)
        await api.w.extract(accepted.message_id, subject="Offer", attachments=[part(name="Angebot & Preis.pdf")])
        answer = await api.get("/v1/messages")
        (item,) = answer["items"]
        url = item["attachments"][0].pop("url")
        assert item == {
            "id": str(accepted.message_id),
            "received_at": "2027-01-15T08:00:00.000Z",
            "site": "shop",
            "sender": "ann@example.org",
            "receivers": [substitute],
            "subject": "Offer",
            "visit": visit,
            "attribution": {"state": "exact", "method": "pool/2", "candidates": []},
            "deal": {"id": None, "url": None},
            "posting": [{"site": "shop", "state": "posted", "reason": None}],
            "state": "queued",
            "size": 28,
            "attachments": [{"name": "Angebot & Preis.pdf", "size": 3, "type": "application/pdf", "inline": False}],
            "auth": {"spf": None, "dkim": None, "dmarc": None},
        }
        assert url.startswith(f"{api.url}/a/")
        assert url.endswith("/Angebot%20%26%20Preis.pdf")
        assert answer["next"] is None

    async def test_a_shared_address_names_candidates_and_states_no_visit(self, api: Api) -> None:
        first, substitute = await api.w.shown(page="https://www.shop.example/?utm_source=a")
        await api.w.shown(page="https://www.shop.example/?utm_source=b")
        api.w.pass_time(1000)
        third, again = await api.w.shown(page="https://www.shop.example/?utm_source=c")
        assert again == substitute
        await api.letter(substitute)
        (item,) = (await api.get("/v1/messages"))["items"]
        assert item["visit"] is None
        assert item["attribution"]["state"] == "likely"
        assert [candidate["visit"] for candidate in item["attribution"]["candidates"]] == [third, first]
        assert sum(candidate["probability"] for candidate in item["attribution"]["candidates"]) == pytest.approx(1)

    async def test_a_claimed_number_is_the_visit(self, api: Api) -> None:
        await api.letter(f"help+4711@{TRACK}")
        (item,) = (await api.get("/v1/messages"))["items"]
        assert (item["visit"], item["attribution"]["state"]) == ("4711", "claimed")

    async def test_mail_to_the_operator_is_seen_by_tokens_for_all_sites_only(self, api: Api) -> None:
        await api.letter("postmaster@mx.example")
        (item,) = (await api.get("/v1/messages"))["items"]
        assert (item["site"], item["attribution"]["state"]) == (None, "none")
        assert (await api.get("/v1/messages", "shop", "other"))["items"] == []

    async def test_the_best_attributed_delivery_speaks_for_the_message(self, api: Api) -> None:
        visit, substitute = await api.w.shown()
        await api.letter(f"help@{TRACK}", substitute)
        (item,) = (await api.get("/v1/messages"))["items"]
        assert (item["visit"], item["attribution"]["state"]) == (visit, "exact")
        assert item["receivers"] == [f"help@{TRACK}", substitute]

    async def test_links_end_with_the_bytes(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}")
        await api.w.extract(accepted.message_id, attachments=[part()])
        await api.w.store.write(lambda tx: tx.sql("UPDATE messages SET raw_removed_at = 1"))
        (item,) = (await api.get("/v1/messages"))["items"]
        assert item["attachments"][0]["url"] is None


class TestPaging:
    async def test_pages_are_newest_first_and_complete(self, api: Api) -> None:
        ids = [str((await api.letter(f"card@{TRACK}", number=n)).message_id) for n in range(7)]
        seen, cursor = [], ""
        for _ in range(4):
            answer = await api.get(f"/v1/messages?limit=2{cursor}")
            seen += [item["id"] for item in answer["items"]]
            cursor = f"&cursor={answer['next']}"
        assert seen == ids[::-1]
        assert answer["next"] is None

    async def test_what_arrives_meanwhile_does_not_shift_the_pages(self, api: Api) -> None:
        ids = [str((await api.letter(f"card@{TRACK}", number=n)).message_id) for n in range(3)]
        first = await api.get("/v1/messages?limit=2")
        await api.letter(f"card@{TRACK}", number=9)
        second = await api.get(f"/v1/messages?limit=2&cursor={first['next']}")
        assert [item["id"] for item in second["items"]] == ids[:1]

    async def test_fifty_items_unless_told_otherwise(self, api: Api) -> None:
        for n in range(52):
            await api.letter(f"card@{TRACK}", number=n)
        answer = await api.get("/v1/messages")
        assert len(answer["items"]) == 50
        assert len((await api.get("/v1/messages?limit=200"))["items"]) == 52

    @of_all
    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("limit=0", "limit"),
            ("limit=201", "limit"),
            ("limit=-1", "limit"),
            ("limit=ten", "limit"),
            ("limit=", "limit"),
            ("limit=1e99", "limit"),
            ("cursor=", "cursor"),
            ("cursor=abc", "cursor"),
            ("cursor=AAAAAAAAAAA", "cursor"),
            ("cursor=AAAAAAAAAAF", "cursor"),  # not as we write it
            ("cursor=%FF%00", "cursor"),
            (f"cursor={base64.urlsafe_b64encode(b'xxxxxxxxx').decode()}", "cursor"),
            ("since=yesterday", "since"),
            ("until=2026-13-01", "until"),
            ("since=0001-01-01T00:00:00%2B23:59", "since"),
            ("state=lost", "state"),
            ("visit=12a", "visit"),
            ("visit=" + "1" * 21, "visit"),
            ("sender=" + "a" * 515, "sender"),
            ("sender=a%00b", "sender"),
            ("q=" + "a" * 501, "q"),
            ("sort=best", "sort"),
            ("deal=perhaps", "deal"),
            ("source=a%00b", "source"),
            ("offset=10", "offset"),
        ],
    )
    async def test_nonsense_is_named(self, shared: Api, query: str, field: str) -> None:
        status, problem = await shared.call("GET", f"/v1/messages?{query}", token=await shared.token())
        if query.startswith("since=0001"):
            assert status in (200, 400)
        else:
            assert (status, fields(problem)) == (400, [field])

    async def test_an_unknown_site_is_named(self, api: Api) -> None:
        status, problem = await api.call("GET", "/v1/messages?site=nowhere", token=await api.token())
        assert (status, fields(problem)) == (404, ["site"])


class TestFilters:
    async def ids(self, api: Api, query: str, *sites: str) -> list[int]:
        return [int(item["id"]) for item in (await api.get(f"/v1/messages?{query}", *sites))["items"]]

    async def test_by_site_visit_and_sender(self, api: Api) -> None:
        visit, substitute = await api.w.shown()
        of_visit = (await api.letter(substitute, sender="bob@example.org")).message_id
        claimed = (await api.letter(f"help+4711@{TRACK}", number=2)).message_id
        _, elsewhere = await api.w.shown("sales@example.com", "other")
        foreign = (await api.letter(elsewhere, number=3)).message_id
        assert await self.ids(api, "site=shop") == [claimed, of_visit]
        assert await self.ids(api, "site=other") == [foreign]
        assert await self.ids(api, f"visit={visit}") == [of_visit]
        assert await self.ids(api, f"visit={visit}", "shop") == [of_visit]
        assert await self.ids(api, f"visit={visit}", "other") == []
        assert await self.ids(api, "visit=4711") == [claimed]
        assert await self.ids(api, "sender=BOB@Example.org") == [of_visit]
        longest = "a" * 505 + "@x.test"
        of_longest = (await api.letter(substitute, number=4, sender=longest)).message_id
        assert await self.ids(api, f"sender={longest}") == [of_longest]
        assert await self.ids(api, "sender=nobody") == []

    async def test_by_time(self, api: Api) -> None:
        first = (await api.letter(f"card@{TRACK}")).message_id
        api.w.pass_time(86_400)
        second = (await api.letter(f"card@{TRACK}", number=2)).message_id
        assert await self.ids(api, "since=2027-01-16") == [second]
        assert await self.ids(api, "until=2027-01-16T00:00:00Z") == [first]
        assert await self.ids(api, "since=2027-01-15T10:00:00%2B02:00") == [second, first]
        assert await self.ids(api, "since=2027-01-15T08:00:00Z&until=2027-01-16T08:00:00Z") == [first]

    async def test_by_source_by_deal_and_oldest_first(self, api: Api) -> None:
        _, substitute = await api.w.shown(page="https://www.shop.example/?utm_source=google&utm_medium=cpc")
        first = (await api.letter(substitute)).message_id
        second = (await api.letter(f"card@{TRACK}", number=2)).message_id
        assert await self.ids(api, "sort=oldest") == [first, second]
        assert await self.ids(api, "sort=newest") == await self.ids(api, "deal=false") == [second, first]
        for source, expected in (("google", [first]), ("google_cpc", [first]), ("card", [second]), ("cpc", [])):
            assert await self.ids(api, f"source={source}") == expected
            assert await self.ids(api, f"source={source}", "shop") == expected
        await api.w.store.write(lambda tx: tx.sql("UPDATE routes SET label = 'fair' WHERE kind = 'static'"))
        assert (await self.ids(api, "source=card"), await self.ids(api, "source=fair")) == ([second], [])
        token = await api.token("manager")
        assert (await api.call("PUT", f"/v1/messages/{first}/deal", {"id": "D-1"}, token=token))[0] == 204
        assert await self.ids(api, "deal=true") == [first]
        assert await self.ids(api, "deal=false") == [second]

    async def test_a_page_may_end_early_and_be_gone_on_from(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_pages, "MOST", 2)
        monkeypatch.setattr(history_pages, "STEP", 2)
        _, substitute = await api.w.shown(page="https://www.shop.example/?utm_source=google")
        first = (await api.letter(substitute)).message_id
        for number in range(1, 6):
            await api.letter(f"card@{TRACK}", number=number)
        answer = await api.get("/v1/messages?source=google&limit=1")
        assert answer["items"] == []
        found = []
        while answer["next"]:
            answer = await api.get(f"/v1/messages?source=google&limit=1&cursor={answer['next']}")
            found += [item["id"] for item in answer["items"]]
        assert found == [str(first)]

    async def test_by_words(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}")
        await api.w.extract(accepted.message_id, text="Bitte ein Angebot über Zäune", subject="Anfrage")
        await api.w.store.write(search.index)
        for words in ("angebot", "zaun", "Zäu", "anfrage card", "ann@example.org", "Za\u0308une", "über-zau"):
            assert await self.ids(api, f"q={quote(words)}") == [accepted.message_id]
        for words in ("nothing", "", '"', "*", "_", "AND", "NEAR(", "-", "a:b", "\x00", "%", "(((("):
            assert await self.ids(api, f"q={quote(words)}") == []

    async def test_what_is_typed_without_a_space_stands_so(self, api: Api) -> None:
        writer = await api.letter(f"card@{TRACK}", sender="ivan@mail.ru")
        other = await api.letter(f"card@{TRACK}", number=2, sender="ivan@example.org")
        await api.w.extract(writer.message_id)
        await api.w.extract(other.message_id, text="no mail from ru")
        await api.w.store.write(search.index)
        assert await self.ids(api, "q=ivan+mail+ru") == [other.message_id, writer.message_id]
        assert await self.ids(api, "q=ivan%40mail.ru") == [writer.message_id]
        assert await self.ids(api, "q=ivan%40exam") == [other.message_id]
        assert await self.ids(api, "q=mail.ivan") == []

    async def test_letters_and_their_marks_are_one_however_they_were_sent(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}", sender="зои\u0306@example.org")
        await api.w.extract(accepted.message_id, subject="Чаи\u0306", text="и\u0306од, за\u0301мок")
        await api.w.store.write(search.index)
        for words in ("чай", "чаи\u0306", "йод", "и\u0306од", "зой", "замок", "за\u0301мок", "за\u0301м"):
            assert await self.ids(api, f"q={quote(words)}") == [accepted.message_id]

    async def test_by_words_but_not_by_another_sites_recipient(self, api: Api) -> None:
        theirs = "other1@track.other.example"
        both = (await api.letter(f"help+4711@{TRACK}", theirs)).message_id
        alone = (await api.letter(theirs, number=2)).message_id
        for message_id in (both, alone):
            await api.w.extract(message_id, text="for everybody")
        await api.w.store.write(search.index)
        assert await self.ids(api, "q=other1", "shop") == []
        assert await self.ids(api, "q=everybody", "shop") == [both]
        assert await self.ids(api, "q=other1+everybody", "other") == [alone]
        assert await self.ids(api, "q=other1") == [alone, both]

    async def test_by_state_as_far_as_one_sees_it(self, api: Api) -> None:
        _, to_shop = await api.w.shown()
        _, to_other = await api.w.shown("help@example.com", "shop")
        held = await api.letter(to_shop, claim="forwarder")
        await api.w.finish(held.jobs[0], OutcomeKind.PERMANENT)
        waiting = await api.letter(to_other, number=2)
        assert await self.ids(api, "state=failed") == [held.message_id]
        assert await self.ids(api, "state=failed", "shop") == [held.message_id]
        assert await self.ids(api, "state=queued", "shop") == [waiting.message_id]
        assert await self.ids(api, "state=failed", "other") == []
        assert await self.ids(api, "state=collected") == []

    async def test_another_sites_failure_is_not_ones_own(self, tmp_path: Path) -> None:
        async with serving(tmp_path, SHOP, OTHER) as api:
            _, to_shop = await api.w.shown("help@example.com")
            _, to_other = await api.w.shown("sales@example.com", "other")
            accepted = await api.letter(to_shop, to_other, claim="forwarder")
            kinds = {"help@example.com": OutcomeKind.DELIVERED, "sales@example.com": OutcomeKind.PERMANENT}
            for job in accepted.jobs:
                await api.w.finish(job, kinds[job.forward_to])
            assert await self.ids(api, "state=forwarded", "shop") == [accepted.message_id]
            assert await self.ids(api, "state=failed", "shop") == []
            assert await self.ids(api, "state=failed", "other") == [accepted.message_id]
            (item,) = (await api.get("/v1/messages", "shop"))["items"]
            assert item["state"] == "forwarded"


class TestOneMessage:
    async def test_shows_its_life(self, api: Api) -> None:
        visit, substitute = await api.w.shown()
        accepted = await api.letter(substitute, claim="forwarder")
        await api.w.finish(accepted.jobs[0], OutcomeKind.TEMPORARY)
        (job,) = await api.w.extract(accepted.message_id, claim="poster", text="Hello " * 3000)
        result = post_verbs.PostResult(job, "waiting", NOW + 5, 500, "oops", NOW, 0.25)
        await api.w.store.write(lambda tx: post_verbs.finish_post(tx, result, NOW))
        seen = await api.get(f"/v1/messages/{accepted.message_id}")
        assert (seen["id"], seen["visit"], seen["state"]) == (str(accepted.message_id), visit, "deferred")
        assert seen["text"] == "Hello " * 3000
        (delivery,) = seen["deliveries"]
        assert (delivery["forward_to"], delivery["code"], delivery["attempts"]) == ("sales@example.com", 450, 1)
        assert delivery["next_at"] == "2027-01-15T08:01:00.000Z"
        (attempt,) = seen["attempts"]
        assert (attempt["delivery"], attempt["outcome"]) == (delivery["id"], "temporary")
        assert [path["kind"] for path in seen["paths"]] == ["first"]
        (event,) = seen["events"]
        (post,) = seen["posts"]
        assert (event["state"], post["event"]) == ("posted", event["id"])
        assert (post["url"], post["status"], post["seconds"]) == ("https://crm.example/hook", 500, 0.25)

    async def test_a_message_whose_text_is_not_read_yet_is_shown(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}")
        seen = await api.get(f"/v1/messages/{accepted.message_id}")
        assert (seen["text"], seen["extraction"], seen["subject"]) == (None, "waiting", "Hi")

    @of_all
    @pytest.mark.parametrize("name", ["0", "-1", "abc", "1.0", "9" * 19, "9" * 40, "%00", "%F0%9F%92%A9", "٣", "1%2F2"])
    async def test_what_is_no_message_is_not_there(self, shared: Api, name: str) -> None:
        for method, path in (
            ("GET", f"/v1/messages/{name}"),
            ("GET", f"/v1/messages/{name}/raw"),
            ("POST", f"/v1/messages/{name}/replay"),
            ("DELETE", f"/v1/messages/{name}"),
        ):
            assert (await shared.call(method, path, token=await shared.token()))[0] == 404


class TestReplay:
    async def test_posts_again_under_the_same_id_and_wakes_the_poster(self, api: Api) -> None:
        _, substitute = await api.w.shown()
        accepted = await api.letter(substitute)
        (job,) = await api.w.extract(accepted.message_id, claim="poster")
        result = post_verbs.PostResult(job, "delivered", NOW, 200, "ok", NOW, 0.1)
        await api.w.store.write(lambda tx: post_verbs.finish_post(tx, result, NOW))
        token = await api.token("manager", "shop")
        path = f"/v1/messages/{accepted.message_id}/replay"
        assert await api.call("POST", path, token=token) == (202, {"posts": 1, "reattributed": 0})
        assert api.woken == ["posts"]
        webhook = api.w.site().webhooks[0].id
        (again,) = await api.w.store.write(lambda tx: post_verbs.claim_posts(tx, {webhook: 10}, "poster", NOW))
        assert again.uid == job.uid

    async def test_before_extraction_there_is_nothing_to_post(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}")
        status, _ = await api.call("POST", f"/v1/messages/{accepted.message_id}/replay", token=await api.token())
        assert (status, api.woken) == (409, [])


class TestDeal:
    async def test_is_kept_and_shown(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}")
        path, token = f"/v1/messages/{accepted.message_id}", await api.token("manager")
        deal = {"id": "D-17", "url": "https://crm.example/deals/17"}
        assert await api.call("PUT", f"{path}/deal", deal, token=token) == (204, None)
        assert (await api.get(path))["deal"] == deal
        await api.call("PUT", f"{path}/deal", {"id": "D-18"}, token=token)
        assert (await api.get(path))["deal"] == {"id": "D-18", "url": None}
        await api.call("PUT", f"{path}/deal", {"id": "D-18", "url": "https://crm.example/deals/18"}, token=token)
        await api.call("PUT", f"{path}/deal", {"id": "D-18"}, token=token)
        assert (await api.get(path))["deal"] == {"id": "D-18", "url": "https://crm.example/deals/18"}

    async def test_of_several_sites_it_is_the_named_ones(self, api: Api) -> None:
        _, to_shop = await api.w.shown("help@example.com")
        _, to_other = await api.w.shown("sales@example.com", "other")
        accepted = await api.letter(to_shop, to_other)
        path, token = f"/v1/messages/{accepted.message_id}", await api.token("admin")
        for site, number in (("shop", "1"), ("other", "2")):
            assert await api.call("PUT", f"{path}/deal", {"id": number, "site": site}, token=token) == (204, None)
        status, problem = await api.call("PUT", f"{path}/deal", {"id": "3"}, token=token)
        assert (status, fields(problem)) == (409, ["site"])
        status, _ = await api.call("PUT", f"{path}/deal", {"id": "4", "site": "nowhere"}, token=token)
        assert status == 409
        seen = [(await api.get(path, name))["deal"]["id"] for name in ("shop", "other")]
        assert seen == ["1", "2"]
        assert await api.call("PUT", f"{path}/deal", {"id": "5", "site": "other"}, token=token) == (204, None)
        seen = [(await api.get(path, name))["deal"]["id"] for name in ("shop", "other")]
        assert seen == ["1", "5"]

    async def test_one_sites_number_is_not_the_others_that_has_none(self, api: Api) -> None:
        _, to_shop = await api.w.shown("help@example.com")
        _, to_other = await api.w.shown("sales@example.com", "other")
        accepted = await api.letter(to_shop, to_other)
        path, token = f"/v1/messages/{accepted.message_id}", await api.token("admin")
        assert (await api.call("PUT", f"{path}/deal", {"id": "7", "site": "shop"}, token=token))[0] == 204
        status, problem = await api.call("PUT", f"{path}/deal", {"id": "8"}, token=token)
        assert (status, fields(problem)) == (409, ["site"])
        seen = [(await api.get(path, name))["deal"]["id"] for name in ("shop", "other")]
        assert seen == ["7", None]

    async def test_another_sites_is_not_to_be_set(self, api: Api) -> None:
        _, to_shop = await api.w.shown("help@example.com")
        _, to_other = await api.w.shown("sales@example.com", "other")
        accepted = await api.letter(to_shop, to_other)
        path, token = f"/v1/messages/{accepted.message_id}", await api.token("manager", "shop")
        status, _ = await api.call("PUT", f"{path}/deal", {"id": "1", "site": "other"}, token=token)
        assert status == 409
        assert (await api.get(path, "other"))["deal"]["id"] is None

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "id"),
            ({"id": 17}, "id"),
            ({"id": ""}, "id"),
            ({"id": "x" * 256}, "id"),
            ({"id": "a\0b"}, "id"),
            ({"id": "1", "url": "javascript:alert(1)"}, "url"),
            ({"id": "1", "url": "https://crm.example/ x"}, "url"),
            ({"id": "1", "URL": ""}, "URL"),
            ({"id": "1", "site": 7}, "site"),
        ],
    )
    async def test_nonsense_is_named_and_changes_nothing(self, api: Api, body: Any, field: str) -> None:
        accepted = await api.letter(f"card@{TRACK}")
        path = f"/v1/messages/{accepted.message_id}"
        status, problem = await api.call("PUT", f"{path}/deal", body, token=await api.token())
        assert (status, fields(problem)) == (400, [field])
        assert (await api.get(path))["deal"] == {"id": None, "url": None}


class TestErasure:
    async def left(self, api: Api) -> int:
        ((count,),) = await api.w.rows(select(func.count()).select_from(messages))
        return int(count)

    async def finished(self, api: Api, *addresses: str, **changes: Any) -> Accepted:
        accepted = await api.letter(*addresses, claim="forwarder", **changes)
        for job in accepted.jobs:
            await api.w.finish(job)
        return accepted

    async def test_a_message_is_erased_with_its_bytes(self, api: Api, tmp_path: Path) -> None:
        (tmp_path / "bodies" / "large").write_bytes(b"Subject: x\r\n\r\n")
        accepted = await self.finished(api, f"card@{TRACK}", data=None, file="large")
        path, token = f"/v1/messages/{accepted.message_id}", await api.token()
        assert await api.call("DELETE", path, token=token) == (204, None)
        assert (await api.call("GET", path, token=token))[0] == 404
        assert not (tmp_path / "bodies" / "large").exists()

    async def test_what_is_still_forwarded_is_not_erased(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}")
        status, problem = await api.call("DELETE", f"/v1/messages/{accepted.message_id}", token=await api.token())
        assert (status, await self.left(api)) == (409, 1)
        assert "forwarded" in problem["detail"]

    async def test_who_sees_one_site_erases_its_share_only(self, api: Api) -> None:
        _, to_shop = await api.w.shown("help@example.com")
        _, to_other = await api.w.shown("sales@example.com", "other")
        accepted = await self.finished(api, to_shop, to_other)
        path = f"/v1/messages/{accepted.message_id}"
        shop, other = await api.token("admin", "shop"), await api.token("admin", "other")
        assert (await api.call("DELETE", path, token=shop))[0] == 204
        assert (await api.call("GET", path, token=shop))[0] == 404
        status, seen = await api.call("GET", path, token=other)
        assert (status, seen["receivers"]) == (200, [to_other])
        assert (await api.call("DELETE", path, token=other))[0] == 204
        assert await self.left(api) == 0

    async def test_ones_own_share_waits_for_its_own_forwarding_only(self, api: Api) -> None:
        _, to_shop = await api.w.shown("help@example.com")
        _, to_other = await api.w.shown("sales@example.com", "other")
        accepted = await api.letter(to_shop, to_other, claim="forwarder")
        await api.w.finish(next(job for job in accepted.jobs if job.forward_to == "help@example.com"))
        path = f"/v1/messages/{accepted.message_id}"
        assert (await api.call("DELETE", path, token=await api.token("admin", "other")))[0] == 409
        assert (await api.call("DELETE", path, token=await api.token("admin")))[0] == 409
        assert (await api.call("DELETE", path, token=await api.token("admin", "shop")))[0] == 204

    async def test_a_sender_is_erased_in_bites(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(5):
            await self.finished(api, f"card@{TRACK}", number=number)
        await api.letter(f"card@{TRACK}", number=8)
        await self.finished(api, f"card@{TRACK}", number=9, sender="bob@example.org")
        path = f"/v1/senders/{quote('ANN@Example.org')}"
        bites = []
        erase = retention.erase_sender

        def noted(*args: Any) -> retention.ErasedSender:
            bites.append(erase(*args))
            return bites[-1]

        monkeypatch.setattr(retention, "erase_sender", noted)
        assert await api.call("DELETE", path, token=await api.token()) == (
            200,
            {"erased": 5, "left": 1, "unblocked": False},
        )
        assert [bite.deleted for bite in bites] == [5, 0]  # until a bite finds nothing
        assert await self.left(api) == 2

    async def test_a_senders_mail_to_another_site_stays(self, api: Api) -> None:
        _, to_shop = await api.w.shown("help@example.com")
        _, to_other = await api.w.shown("sales@example.com", "other")
        await self.finished(api, to_shop, to_other, number=1)
        await self.finished(api, to_shop, number=2)
        await self.finished(api, to_other, number=3)
        await api.letter(to_shop, number=4)
        token = await api.token("admin", "shop")
        answer = await api.call("DELETE", "/v1/senders/ann@example.org", token=token)
        assert answer == (200, {"erased": 2, "left": 1, "unblocked": False})
        assert await self.left(api) == 3
        assert len((await api.get("/v1/messages", "other"))["items"]) == 2

    async def test_nobody_has_sent_anything(self, api: Api) -> None:
        for address in ("nobody@example.org", "no-address", "%00", "%FF@x"):
            status, answer = await api.call("DELETE", f"/v1/senders/{address}", token=await api.token())
            assert (status, answer) == (200, {"erased": 0, "left": 0, "unblocked": False})

    async def test_who_sent_nothing_and_was_blocked_is_so_no_more_and_that_is_noted(self, api: Api) -> None:
        token, shop, now = await api.token(), api.w.site().id, api.w.now
        await api.w.store.write(lambda tx: blocked.block(tx, shop, "ann@example.org", now))
        answers = [await api.call("DELETE", "/v1/senders/ann@example.org", token=token) for _ in range(2)]
        assert [answer["unblocked"] for _, answer in answers] == [True, False]
        noted = await changes.page(api.w.store.reader, None, None, 10)
        assert [row.change.action for row in noted] == ["DELETE /v1/senders/{address}"]


def test_a_cursor_says_nothing_but_where_to_go_on() -> None:
    assert cursor_of(1) == "AAAAAAAAAAE"
