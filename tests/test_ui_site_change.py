"""Two at once: what one changes of a site is never undone by a form of another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.store import changes, sites
from tests.markup import said, values
from tests.test_ui_sites import GARDEN, OWN, SALES, current, definition, hidden, settings
from tests.ui_fixtures import Pages, pages
from webapi import sites as sites_api

CARD = f"{OWN}/statics/card%40t.garden.example"


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Pages]:
    async with pages(tmp_path) as found:
        status, answer = await found.api.call("POST", "/v1/sites", GARDEN, token=await found.api.token())
        assert status == 201, answer
        yield found


class TestAdditions:
    async def test_all_origins_are_kept_that_come_at_once(self, p: Pages) -> None:
        wanted = [f"https://{name}.garden.example" for name in "abcdef"]
        answers = await asyncio.gather(*(p.post(f"{OWN}/origins", {"origin": one}) for one in wanted))
        assert [answer.status for answer in answers] == [303] * len(wanted)
        assert sorted((await definition(p))["origins"]) == sorted([*GARDEN["origins"], *wanted])

    async def test_all_static_addresses_too(self, p: Pages) -> None:
        forms = [
            {"address": f"fair{number}@t.garden.example", "label": "fair", "target": "help@garden.example"}
            for number in range(6)
        ]
        answers = await asyncio.gather(*(p.post(f"{OWN}/statics", form) for form in forms))
        assert [answer.status for answer in answers] == [303] * len(forms)
        kept = {static["address"] for static in (await definition(p))["statics"]}
        assert kept == {"card@t.garden.example", *(form["address"] for form in forms)}
        for form in forms:
            assert (await p.world.recipient(form["address"])).route.attributed  # type: ignore[union-attr]

    async def test_and_targets(self, p: Pages) -> None:
        forms = [
            {"address": f"jobs{number}@garden.example", "method": "unique", "domain": "t.garden.example"}
            for number in range(6)
        ]
        answers = await asyncio.gather(*(p.post(f"{OWN}/targets/new", form) for form in forms))
        assert [answer.status for answer in answers] == [303] * len(forms)
        assert len((await definition(p))["targets"]) == 2 + len(forms)

    async def test_the_same_origin_twice_is_one(self, p: Pages) -> None:
        form = {"origin": "https://a.garden.example"}
        for answer in await asyncio.gather(*(p.post(f"{OWN}/origins", form) for _ in range(2))):
            assert answer.status == 303
        assert (await definition(p))["origins"].count(form["origin"]) == 1


class TestForms:
    """What was opened before somebody else changed the site changes nothing, and shows what there is now."""

    @pytest.mark.parametrize(
        ("path", "fields"),
        [
            (CARD, {"label": "mine"}),
            (SALES, {"method": "pool", "lease": "2h"}),
            (f"{SALES}/remove", {}),
            (f"{OWN}/sources", {"marker": "x", "page": "/x", "rule": ""}),
            (f"{OWN}/sources", {"marker": "x", "page": "/x", "rule": "0"}),
            (f"{OWN}/sources/order", {"rule": "1", "action": "up"}),
        ],
    )
    async def test_one_that_is_late(self, p: Pages, path: str, fields: dict[str, str]) -> None:
        form = await current(p, **fields)
        assert (await p.post(f"{OWN}/origins", {"origin": "https://a.garden.example"})).status == 303
        before = await definition(p)
        for late in (form, fields):  # without an edition nothing is known of what it was made of
            answer = await p.post(path, late)
            assert answer.status == 409
            assert "changed the site meanwhile: look again" in said(answer.text)
        assert await definition(p) == before
        assert (await p.post(path, await current(p, **fields))).status == 303

    async def test_settings_show_what_somebody_else_has_saved(self, p: Pages) -> None:
        mine, theirs = await settings(p, reserve="20"), await settings(p, visit_timeout="3d")
        assert (await p.post(f"{OWN}/settings", theirs)).status == 303
        answer = await p.post(f"{OWN}/settings", mine)
        assert answer.status == 409
        assert "changed the site meanwhile" in said(answer.text)
        shown = values(answer.text)
        assert (shown["visit_timeout"], shown["reserve"]) == ("3d", "10")
        assert hidden(answer.text, "edition") == (await definition(p))["edition"]

    @pytest.mark.parametrize(
        ("path", "fields", "wrong"),
        [
            (f"{OWN}/settings", {"reserve": "20"}, {"reserve": "many"}),
            (SALES, {"method": "pool", "lease": "2h"}, {"pool_size": "many"}),
        ],
    )
    async def test_one_that_is_late_and_wrong_is_late_when_it_is_corrected(
        self, p: Pages, path: str, fields: dict[str, str], wrong: dict[str, str]
    ) -> None:
        form = await (settings if path.endswith("settings") else current)(p, **fields)
        assert (await p.post(f"{OWN}/origins", {"origin": "https://a.garden.example"})).status == 303
        before = await definition(p)
        answer = await p.post(path, form | wrong)
        assert (answer.status, hidden(answer.text, "edition")) == (400, form["edition"])
        answer = await p.post(path, form | {"edition": hidden(answer.text, "edition")})
        assert answer.status == 409
        assert "changed the site meanwhile: look again" in said(answer.text)
        assert hidden(answer.text, "edition") == before["edition"]
        assert await definition(p) == before

    async def test_two_at_once_never_both_say_that_they_are_saved(self, p: Pages) -> None:
        forms = [await settings(p, reserve=str(20 + number)) for number in range(6)]
        answers = await asyncio.gather(*(p.post(f"{OWN}/settings", form) for form in forms))
        assert sorted(answer.status for answer in answers) == [303, *[409] * 5]

    async def test_a_rule_that_has_another_place_now_is_not_offered_to_be_replaced(self, p: Pages) -> None:
        form = await current(p, marker="fair_2", page="/fair/*", rule="1")
        up = await current(p, rule="1", action="up")
        assert (await p.post(f"{OWN}/sources/order", up)).status == 303
        answer = await p.post(f"{OWN}/sources", form)
        assert answer.status == 409
        assert "A new rule" in said(answer.text)
        assert values(answer.text)["marker"] == ""


class TestSwitches:
    async def test_a_form_leaves_them_alone(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody switches Track e-mails off after the form's site was read, before it is written."""
        form, judge = await settings(p, reserve="20"), sites_api._judge
        garden = p.world.site("garden").id

        async def slow(*args: Any) -> None:
            await judge(*args)
            await p.world.store.redefine(lambda tx: sites.switch(tx, garden, tracking=False))

        monkeypatch.setattr(sites_api, "_judge", slow)
        assert (await p.post(f"{OWN}/settings", form)).status == 303
        after = await definition(p)
        assert (after["tracking"], after["send_to_crm"], after["reserve"]) == (False, True, 20)

    async def test_each_is_thrown_by_itself(self, p: Pages) -> None:
        switches = ({"tracking": "off"}, {"send_to_crm": "off"})
        for answer in await asyncio.gather(*(p.post(f"{OWN}/switch", form) for form in switches)):
            assert answer.status == 303
        after = await definition(p)
        assert (after["tracking"], after["send_to_crm"]) == (False, False)

    async def test_they_make_no_form_late(self, p: Pages) -> None:
        form = await settings(p, reserve="20")
        assert (await p.post(f"{OWN}/switch", {"tracking": "off"})).status == 303
        assert (await p.post(f"{OWN}/settings", form)).status == 303


async def test_the_log_says_what_became_another_and_no_secret(p: Pages) -> None:
    hop = "smtps://user:s3cret@mail.garden.example"
    form = await current(p, method="pool", domain="t.garden.example", lease="15m", forward_to="a@box.example")
    assert (await p.post(SALES, form | {"next_hop": hop})).status == 303
    latest = (await changes.page(p.world.store.reader, None, None, 1))[0].change
    assert latest.details == {
        "sales@garden.example.forward_to": {"before": None, "after": "a@box.example"},
        "sales@garden.example.next_hop": "changed",
    }
    page = (await p.get("/ui/settings/changes")).text
    assert "sales@garden.example: forward to – → a@box.example" in said(page)
    assert "s3cret" not in page
