"""Links to attachments that are over: 410 with a reason, for whoever once had a link that was good."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from relay.config import Http
from relay.core.wire import stuff
from relay.store import retention
from relay.sweep import Ages
from tests.file_fixtures import CARD, attachments, fetch, of_one_file, raw, stored
from tests.store_fixtures import DAY, NOW
from tests.webapi_fixtures import Api, serving
from webapi import links


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def link(api: Api, **changes: Any) -> tuple[int, str]:
    message, part = of_one_file(b"abc")
    message_id = await stored(api, message, attachments=[part], **changes)
    (shown,) = await attachments(api, message_id)
    return message_id, shown["url"]


def posted_link(api: Api, message_id: int, site: str | None = "shop") -> str:
    """The link as this site's webhook gets it (webapi/compose.py); None: as it got it before links were a site's."""
    expires, of = int(api.w.now + api.context.retention.raw), site and api.w.site(site).id
    return f"{api.url}/a/{links.make(api.context.keys.current('links'), message_id, 0, expires, of or None)}/offer.pdf"


async def reason(api: Api, url: str) -> str:
    response, octets = await fetch(api, url)
    assert response.status == 410
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Content-Security-Policy"].startswith("sandbox;")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    detail: str = json.loads(octets)["detail"]
    return detail


async def test_a_link_of_the_api_says_when_it_expired_and_where_a_new_one_is(api: Api) -> None:
    message_id, url = await link(api)
    api.w.pass_time(DAY - 1)
    assert (await fetch(api, url))[0].status == 200
    api.w.pass_time(1)
    assert await reason(api, url) == (
        f"this link expired at 2027-01-16T08:00:00.000Z; the file is still kept, "
        f"and GET /v1/messages/{message_id} makes a new link"
    )
    (shown,) = await attachments(api, message_id)
    assert (await fetch(api, shown["url"]))[0].status == 200


async def test_how_long_it_lives_is_a_setting(tmp_path: Path) -> None:
    async with serving(tmp_path, http=Http(links_live_for="90s")) as api:
        _, url = await link(api)
        api.w.pass_time(89)
        assert (await fetch(api, url))[0].status == 200
        api.w.pass_time(1)
        assert "expired" in await reason(api, url)


@pytest.mark.parametrize("lives", ["59s", "401d", 60, ""])
def test_the_setting_is_from_a_minute_to_400_days(lives: Any) -> None:
    with pytest.raises(ValidationError, match="links_live_for"):
        Http(links_live_for=lives)


async def test_a_posted_link_works_while_retention_lasts_and_then_says_how_long_that_was(api: Api) -> None:
    message_id, _ = await link(api)
    url = posted_link(api, message_id)
    api.w.pass_time(180 * DAY - 1)
    assert (await fetch(api, url))[0].status == 200
    api.w.pass_time(1)
    assert await reason(api, url) == (  # before the sweep has come
        "this link expired at 2027-07-14T08:00:00.000Z: files are kept for 180 days after their message came in, "
        "and no longer (retention.raw)"
    )


async def test_once_the_sweep_has_come_every_link_says_how_long_the_bytes_were_kept(api: Api) -> None:
    message_id, of_api = await link(api)
    await api.w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
    posted = posted_link(api, message_id)
    api.w.pass_time(30 * DAY + 1800)
    now = api.w.now
    await api.w.store.write(lambda tx: retention.sweep(tx, Ages(30 * DAY, *[999 * DAY] * 5).cut(now), now))
    kept = "the message's bytes were kept for 30 days after it came in, and no longer (retention.raw)"
    assert await reason(api, of_api) == await reason(api, posted) == kept
    response, octets = await raw(api, message_id)
    assert (response.status, json.loads(octets)["detail"]) == (410, kept)
    (shown,) = await attachments(api, message_id)
    assert shown["url"] is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(3600, "60 minutes"), (7300, "2 hours"), (86_400, "24 hours"), (3 * DAY, "3 days")]
)
async def test_a_short_retention_is_told_in_its_own_unit(api: Api, seconds: float, words: str) -> None:
    _, url = await link(api)
    removed_at = api.w.now + seconds
    await api.w.store.write(lambda tx: tx.sql(f"UPDATE messages SET raw_removed_at = {removed_at}"))
    assert f"kept for {words} after" in await reason(api, url)


@pytest.mark.parametrize("later", [0, 2 * DAY])
async def test_an_erased_message_says_so_even_when_the_link_has_expired(api: Api, later: float) -> None:
    message_id, url = await link(api)
    await api.w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
    assert (await api.call("DELETE", f"/v1/messages/{message_id}", token=await api.token()))[0] == 204
    api.w.pass_time(later)
    assert "the message was erased with its files" in await reason(api, url)


class TestShared:
    """A letter of two sites, one of which has erased its share: it has no more right to the files than to the text."""

    @pytest.fixture
    async def message_id(self, api: Api) -> int:
        message, part = of_one_file(b"abc")
        _, theirs = await api.w.shown(name="other")
        accepted = await api.w.accept(CARD, theirs, body=stuff(message), size=len(message), claim=None)
        await api.w.extract(accepted.message_id, attachments=[part])
        await api.w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
        return accepted.message_id

    async def shown(self, api: Api, message_id: int, *sites: str) -> str:
        answer = await api.get(f"/v1/messages/{message_id}", *sites)
        url: str = answer["attachments"][0]["url"]
        return url

    async def erase(self, api: Api, message_id: int, site: str) -> None:
        assert (await api.call("DELETE", f"/v1/messages/{message_id}", token=await api.token("admin", site)))[0] == 204

    @pytest.mark.parametrize(("erased", "left"), [("shop", "other"), ("other", "shop")])
    async def test_links_of_the_site_that_erased_it_are_over_and_the_others_are_not(
        self, api: Api, message_id: int, erased: str, left: str
    ) -> None:
        over = [posted_link(api, message_id, erased), await self.shown(api, message_id, erased)]
        good = [posted_link(api, message_id, left), await self.shown(api, message_id, left)]
        good.append(await self.shown(api, message_id))  # of who sees all sites
        for url in over + good:
            assert (await fetch(api, url))[1] == b"abc"
        await self.erase(api, message_id, erased)
        for url in over:
            assert "the message was erased with its files" in await reason(api, url)
        for url in good:
            assert (await fetch(api, url))[1] == b"abc"
        api.w.pass_time(2 * DAY)
        assert "the message was erased with its files" in await reason(api, over[1])
        assert "this link expired" in await reason(api, good[1])

    async def test_who_sees_both_sites_gets_a_new_link_after_that(self, api: Api, message_id: int) -> None:
        first = await self.shown(api, message_id, "shop", "other")
        await self.erase(api, message_id, "shop")
        assert "erased" in await reason(api, first)
        assert (await fetch(api, await self.shown(api, message_id, "shop", "other")))[1] == b"abc"

    async def test_a_link_from_before_links_were_a_sites_is_good_while_anybody_has_the_letter(
        self, api: Api, message_id: int
    ) -> None:
        old = posted_link(api, message_id, None)
        await self.erase(api, message_id, "shop")
        assert (await fetch(api, old))[1] == b"abc"
        await self.erase(api, message_id, "other")
        assert "the message was erased with its files" in await reason(api, old)

    async def test_a_link_of_a_site_that_never_had_it_is_over(self, api: Api) -> None:
        message_id, _ = await link(api)
        assert "erased" in await reason(api, posted_link(api, message_id, "other"))


@pytest.mark.parametrize("in_file", [False, True])
async def test_bytes_that_are_missing_are_gone_and_no_crash(api: Api, in_file: bool) -> None:
    _, url = await link(api, in_file=in_file)
    await api.w.store.write(lambda tx: tx.sql("DELETE FROM bodies"))
    for path in api.context.bodies.path(".").iterdir():
        path.unlink()
    assert await reason(api, url) == "the message's bytes are no longer here"


async def test_a_forged_link_learns_nothing_of_a_message_that_was(api: Api) -> None:
    message_id, _ = await link(api)
    answers = []
    for expires in (1, int(NOW) + 1000):
        for number in (message_id, message_id + 1):
            response, octets = await fetch(api, f"{api.url}/a/{links.make(b'x' * 32, number, 0, expires, 1)}/a")
            answers.append((response.status, octets))
    assert set(answers) == {(404, answers[0][1])}
