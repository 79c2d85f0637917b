"""The pages of sites: what they show, what they change, who may, and that no value becomes markup."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
import pytest_asyncio

from relay.store import history
from tests.ledger import SOAK
from tests.markup import check, fillings, hostile, parts, said, values
from tests.store_fixtures import TRACK
from tests.ui_fixtures import Pages, pages
from tests.webapi_fixtures import of_all
from webapi.ui.site_forms import NEW_TARGET, SETTINGS

GARDEN: dict[str, Any] = {
    "name": "garden",
    "key": "pk_garden",
    "origins": ["https://www.garden.example"],
    "targets": [
        {"address": "sales@garden.example", "domain": "t.garden.example", "pool": ["a@t.garden.example"]},
        {"address": "help@garden.example", "method": "plus", "domain": "t.garden.example"},
    ],
    "statics": [{"address": "card@t.garden.example", "target": "sales@garden.example", "label": "card"}],
    "sources": [
        {"marker": "partner_spring", "parameter": "ref", "value": "spring"},
        {"marker": "fair", "page": "/fair/*", "channel": "referral"},
    ],
}
OWN = "/ui/sites/garden"
SALES = f"{OWN}/targets/sales%40garden.example"

#: What htmx asks with.
HTMX = {"HX-Request": "true"}


@contextlib.asynccontextmanager
async def garden(directory: Path) -> AsyncIterator[Pages]:
    """The shop and the other are declared in relay.toml, the garden was made here."""
    async with pages(directory) as found:
        status, answer = await found.api.call("POST", "/v1/sites", GARDEN, token=await found.api.token())
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


async def definition(p: Pages, name: str = "garden") -> Any:
    return await p.api.get(f"/v1/sites/{name}")


async def settings(p: Pages, **changes: str) -> dict[str, str]:
    """The garden's settings as its form sends them."""
    site = await definition(p)
    return {
        "edition": site["edition"],
        **{name: "on" if value is True else str(value) for name, value in SETTINGS.filled(site).items() if value},
        **changes,
    }


def hidden(text: str, name: str) -> str:
    """What the page's first form carries in a hidden field."""
    return text.partition(f'name="{name}" value="')[2].partition('"')[0]


async def current(p: Pages, **fields: str) -> dict[str, str]:
    """A form that was opened just now."""
    return {"edition": (await definition(p))["edition"], **fields}


class TestList:
    async def test_each_site_with_its_switches_and_addresses(self, p: Pages) -> None:
        answer = await p.get("/ui/sites")
        words = said(answer.text)
        for expected in ("garden", "shop", "other", "https://www.garden.example", "help@garden.example", "pool of 2"):
            assert expected in words
        assert "never: is the tag in?" in words
        await p.api.bind("shop")
        p.world.pass_time(90)
        assert "2 min ago" in said((await p.get("/ui/sites")).text)

    async def test_only_ones_own_sites(self, p: Pages) -> None:
        viewer = await p.user("viewer", "garden")
        words = said((await viewer.get("/ui/sites")).text)
        assert "garden" in words
        assert "shop" not in words
        assert (await viewer.get("/ui/sites/shop")).status == 404
        assert (await viewer.get("/ui/sites/shop/seen", **HTMX)).status == 404

    async def test_without_any_it_says_what_a_site_is(self, tmp_path: Path) -> None:
        async with pages(tmp_path) as empty:
            await empty.world.declare()
            answer = await empty.get("/ui/sites")
            assert "No site yet" in answer.text
            assert 'href="/ui/sites/new"' in answer.text
            viewer = await empty.user("viewer")
            assert 'href="/ui/sites/new"' not in (await viewer.get("/ui/sites")).text


class TestOverview:
    async def test_the_tag_is_there_as_text(self, p: Pages) -> None:
        answer = await p.get(OWN)
        assert f'<script async src="{p.api.context.public_url}/mailtrack.js?site=pk_garden"></script>' in said(
            answer.text
        )

    async def test_a_declared_site_says_why_it_is_changed_elsewhere(self, p: Pages) -> None:
        answer = await p.get("/ui/sites/shop")
        assert "defined in relay.toml" in said(answer.text)
        assert "/ui/sites/shop/settings" not in answer.text
        assert "/statics" not in answer.text
        assert 'role="switch"' in answer.text
        target = await p.get("/ui/sites/shop/targets/sales%40example.com")
        assert "Add to the pool" in target.text
        assert 'name="lease"' not in target.text
        for path in ("settings", "sources", "remove", "targets/new"):
            assert (await p.get(f"/ui/sites/shop/{path}")).location == "/ui/sites/shop?done=declared"
        assert (await p.post("/ui/sites/shop/remove")).status == 409

    async def test_conditions_stand_there_in_words(self, p: Pages) -> None:
        words = said((await p.get(OWN)).text)
        assert "has a visit, or was sent to a static address is no bounce is no automatic mail" in words
        await p.post(
            f"{OWN}/settings", {k: v for k, v in (await settings(p)).items() if not k.startswith(("skip", "req"))}
        )
        assert "comes from no blocked sender" in said((await p.get(OWN)).text)

    async def test_unknown_ones_are_not_there(self, p: Pages) -> None:
        for path in ("nobody", "GARDEN", "%00", "x" * 300, "garden/targets/nobody%40x.example"):
            assert (await p.get(f"/ui/sites/{path}")).status == 404


class TestSeen:
    async def test_it_turns_on_with_the_first_page_view(self, p: Pages) -> None:
        first = await p.get(f"{OWN}/seen", **HTMX)
        assert "Not seen yet" in first.text
        assert "hx-get" in first.text
        assert "<html" not in first.text
        await p.api.bind("garden", page="https://www.garden.example/contact?token=s3cret#x")
        seen = await p.get(f"{OWN}/seen", **HTMX)
        assert "Seen on your pages" in said(seen.text)
        assert "https://www.garden.example/contact" in said(seen.text)
        assert "s3cret" not in seen.text
        assert "hx-get" not in seen.text

    async def test_a_script_that_asks_for_nothing_is_told_from_none(self, p: Pages) -> None:
        await p.api.request("GET", "/mailtrack.js?site=pk_garden")
        assert "wait for consent" in said((await p.get(f"{OWN}/seen", **HTMX)).text)

    async def test_a_refused_origin_can_be_added(self, p: Pages) -> None:
        status, _ = await p.api.bind("garden", headers={"Origin": "https://shop.garden.example"})
        assert status == 403
        seen = await p.get(f"{OWN}/seen", **HTMX)
        assert "https://shop.garden.example was turned away" in said(seen.text)
        assert "hx-get" in seen.text
        answer = await p.post(f"{OWN}/origins", {"origin": "https://shop.garden.example"})
        assert answer.status == 303
        assert (await definition(p))["origins"] == ["https://www.garden.example", "https://shop.garden.example"]
        assert (await p.api.bind("garden", headers={"Origin": "https://shop.garden.example"}))[0] == 200

    async def test_what_is_no_origin_is_shown_and_cannot_be_added(self, p: Pages) -> None:
        known = parts((await p.get(f"{OWN}/seen", **HTMX)).text)
        await p.api.bind("garden", headers={"Origin": "https://x.example"})
        known |= parts((await p.get(f"{OWN}/seen", **HTMX)).text)
        for origin in ("null", '"><script>alert(1)</script>', "https://x.example/<b>", "x" * 4000):
            assert (await p.api.bind("garden", headers={"Origin": origin}))[0] == 403
            seen = await p.get(f"{OWN}/seen", **HTMX)
            check(seen.text, known)
            assert origin[:100] in said(seen.text)
            assert "add it" not in seen.text
        assert (await p.post(f"{OWN}/origins", {"origin": "null"})).status == 400

    async def test_visits_say_it_after_a_restart(self, p: Pages) -> None:
        await p.world.bind("shop")
        p.world.pass_time(7200)
        assert "the latest visitor was last there 2 h ago" in said((await p.get("/ui/sites/shop/seen", **HTMX)).text)

    async def test_the_api_says_the_same(self, p: Pages) -> None:
        assert await p.api.get("/v1/sites/garden/seen") == {
            "page_view": None,
            "refused": None,
            "script_at": None,
            "last_visit": None,
        }
        await p.api.bind("garden", page="https://www.garden.example/?a=1")
        await p.api.bind("garden", headers={"Origin": "https://evil.example"})
        seen = await p.api.get("/v1/sites/garden/seen")
        assert (seen["page_view"]["origin"], seen["page_view"]["page"]) == (
            "https://www.garden.example",
            "https://www.garden.example/",
        )
        assert seen["refused"]["origin"] == "https://evil.example"
        assert seen["last_visit"] == seen["page_view"]["at"]
        token = await p.api.token("viewer", "shop")
        assert (await p.api.call("GET", "/v1/sites/garden/seen", token=token))[0] == 404


class TestSwitches:
    @pytest.mark.parametrize("name", ["tracking", "send_to_crm"])
    async def test_each_turns_alone(self, p: Pages, name: str) -> None:
        before = await definition(p)
        assert (await p.post(f"{OWN}/switch", {name: "off"})).status == 303
        after = await definition(p)
        assert after == before | {name: False}
        assert 'aria-checked="false"' in (await p.get(OWN)).text
        await p.post(f"{OWN}/switch", {name: "on"})
        assert await definition(p) == before

    async def test_nothing_given_is_refused(self, p: Pages) -> None:
        assert (await p.post(f"{OWN}/switch", {})).status == 400


class TestMaking:
    FORM: ClassVar = {
        "name": "shed",
        "origins": "https://shed.example\r\nhttps://*.shed.example",
        "tracking": "on",
        "targets[0].address": "info@shed.example",
        "targets[0].method": "pool",
        "targets[0].domain": "t.shed.example",
        "targets[0].pool_size": "3",
        "targets[0].lease": "20m",
    }

    async def test_a_site_with_its_first_address(self, p: Pages) -> None:
        answer = await p.post("/ui/sites/new", self.FORM)
        assert (answer.status, answer.location) == (303, "/ui/sites/shed?done=site_made")
        made = await definition(p, "shed")
        assert made["origins"] == ["https://shed.example", "https://*.shed.example"]
        assert (made["tracking"], made["send_to_crm"]) == (True, False)
        assert made["targets"][0]["pool"] == [f"info{number}@t.shed.example" for number in (1, 2, 3)]
        assert made["targets"][0]["lease"] == "20m"

    async def test_a_site_with_an_address_of_another_domain_in_its_pool(self, p: Pages) -> None:
        form = self.FORM | {"targets[0].pool": "x@y.example", "targets[0].pool_size": ""}
        assert (await p.post("/ui/sites/new", form)).status == 303

    async def test_a_site_without_any_address_yet(self, p: Pages) -> None:
        form = {"name": "bare", "origins": "https://bare.example", "targets[0].method": "pool"}
        assert (await p.post("/ui/sites/new", form)).status == 303
        assert (await definition(p, "bare"))["targets"] == []
        assert "No address yet" in (await p.get("/ui/sites/bare")).text

    @of_all
    @pytest.mark.parametrize(
        ("changes", "field", "words"),
        [
            ({"name": "no spaces"}, "name", "must be 1 to 64 letters"),
            ({"name": "garden"}, "name", "another site"),
            ({"name": "new"}, "name", "this page has that name"),
            ({"origins": "www.shed.example"}, "origins", "must be a URL that starts with https://"),
            ({"origins": ""}, "origins", "must not be empty"),
            ({"targets[0].address": "info"}, "targets[0].address", "is not an address"),
            ({"targets[0].domain": ""}, "targets[0].domain", "is required with pool_size"),
            ({"targets[0].pool_size": "many"}, "targets[0].pool_size", "must be a whole number"),
            ({"targets[0].lease": "soon"}, "targets[0].lease", "must be a duration"),
            ({"targets[0].forward_to": "?"}, "targets[0].forward_to", "is not an address"),
        ],
    )
    async def test_errors_stand_beside_their_field_and_what_was_typed_stays(
        self, shared: Pages, changes: dict[str, str], field: str, words: str
    ) -> None:
        form = self.FORM | changes
        answer = await shared.post("/ui/sites/new", form)
        assert answer.status in (400, 409)
        assert f'id="wrong-{field}"' in answer.text
        assert words in said(answer.text)
        shown = values(answer.text)
        for name, typed in form.items():
            if name in shown:
                assert shown[name].strip() == typed.replace("\r\n", "\n")
        assert "shed" not in [site.name for site in shared.world.store.sites.by_id.values()]

    async def test_only_who_sees_all_sites(self, p: Pages) -> None:
        own = await p.user("admin", "garden")
        assert 'href="/ui/sites/new"' not in (await own.get("/ui/sites")).text
        assert (await own.get("/ui/sites/new")).status == 403
        assert (await own.post("/ui/sites/new", self.FORM)).status == 403


class TestSettings:
    async def test_what_is_sent_as_it_is_shown_changes_nothing(self, p: Pages) -> None:
        before = await definition(p)
        assert (await p.get(f"{OWN}/settings")).status == 200
        answer = await p.post(f"{OWN}/settings", await settings(p))
        assert (answer.status, answer.location) == (303, f"{OWN}?done=site_changed")
        assert await definition(p) == before

    async def test_each_field_is_changed(self, p: Pages) -> None:
        form = await settings(
            p,
            origins="https://a.example\nhttps://b.example",
            touch="first",
            visit_timeout="2d",
            visit_cookie="",
            cookie_domain="garden.example",
            reserve="33",
            lease_on="interaction",
            bots="lease",
            metrica="17",
            respect_gpc="on",
        )
        assert (await p.post(f"{OWN}/settings", form)).status == 303
        after = await definition(p)
        assert after["origins"] == ["https://a.example", "https://b.example"]
        assert (after["touch"], after["visit_timeout"], after["visit_cookie"]) == ("first", "2d", None)
        assert (after["reserve"], after["lease_on"], after["bots"], after["metrica"]) == (
            33,
            "interaction",
            "lease",
            17,
        )
        assert after["respect_gpc"] is True
        assert [target["address"] for target in after["targets"]] == ["sales@garden.example", "help@garden.example"]
        assert len(after["sources"]) == 2

    async def test_errors_stand_beside_their_fields(self, p: Pages) -> None:
        form = await settings(p, reserve="91", visit_timeout="1s", origins="x", server_cookies="on", metrica="x")
        answer = await p.post(f"{OWN}/settings", form)
        assert answer.status == 400
        assert 'id="wrong-metrica"' in answer.text
        answer = await p.post(f"{OWN}/settings", form | {"metrica": "0"})
        for name in ("reserve", "visit_timeout", "origins"):
            assert f'id="wrong-{name}"' in answer.text
        answer = await p.post(f"{OWN}/settings", await settings(p, server_cookies="on"))
        assert 'id="wrong-cookie_domain"' in answer.text
        assert "is required with server_cookies" in answer.text


class TestTargets:
    async def test_one_is_added(self, p: Pages) -> None:
        assert "Real address" in (await p.get(f"{OWN}/targets/new")).text
        form = {"address": "jobs@garden.example", "method": "unique", "domain": "t.garden.example", "lease": "15m"}
        answer = await p.post(f"{OWN}/targets/new", form)
        assert (answer.status, answer.location) == (303, f"{OWN}?done=target_added#targets")
        assert "The address is added." in said((await p.get(answer.location.partition("#")[0])).text)
        assert (await definition(p))["targets"][2]["method"] == "unique"

    async def test_one_is_changed_and_keeps_its_pool(self, p: Pages) -> None:
        page = await p.get(SALES)
        assert values(page.text)["lease"] == "15m"
        form = {"method": "pool", "domain": "", "lease": "1h", "forward_to": "box@garden.example", "additional": "on"}
        assert (await p.post(SALES, form | {"edition": hidden(page.text, "edition")})).status == 303
        target = (await definition(p))["targets"][0]
        assert target["pool"] == ["a@t.garden.example"]
        assert (target["lease"], target["forward_to"], target["additional"], target["domain"]) == (
            "1h",
            "box@garden.example",
            True,
            None,
        )

    async def test_a_stored_password_is_kept_where_it_was_not_shown(self, p: Pages) -> None:
        form = {"method": "pool", "lease": "15m", "next_hop": "smtps://user:s3cret@mail.garden.example"}
        assert (await p.post(SALES, await current(p, **form))).status == 303
        page = await p.get(SALES)
        assert "s3cret" not in page.text
        sealed = p.world.target("sales@garden.example", "garden").next_hop
        shown = values(page.text)["next_hop"]
        assert (await p.post(SALES, await current(p, **form | {"next_hop": shown, "lease": "2h"}))).status == 303
        assert p.world.target("sales@garden.example", "garden").next_hop == sealed
        own = await p.user("admin", "garden")
        assert (await own.post(SALES, await current(p, **form | {"next_hop": shown, "lease": "3h"}))).status == 303
        answer = await own.post(SALES, await current(p, **form | {"next_hop": "smtp://127.0.0.1:25"}))
        assert (answer.status, 'id="wrong-next_hop"' in answer.text) == (403, True)
        assert p.world.target("sales@garden.example", "garden").next_hop == sealed

    async def test_another_method_retires_the_pool(self, p: Pages) -> None:
        form = await current(p, method="unique", domain="t.garden.example", lease="15m")
        assert (await p.post(SALES, form)).status == 303
        assert (await definition(p))["targets"][0]["pool"] == []
        assert not (await p.world.recipient("a@t.garden.example")).route.attributed  # type: ignore[union-attr]

    async def test_errors_stand_beside_their_fields(self, p: Pages) -> None:
        form = await current(p, method="plus", domain="", lease="x", forward_to="a@t.garden.example")
        answer = await p.post(SALES, form)
        assert answer.status == 400
        assert 'id="wrong-lease"' in answer.text
        answer = await p.post(SALES, form | {"lease": "15m"})
        assert 'id="wrong-domain"' in answer.text
        assert 'value="a@t.garden.example"' in answer.text
        answer = await p.post(
            f"{OWN}/targets/new", {"address": "help@garden.example", "method": "pool", "pool": "z@t.garden.example"}
        )
        assert answer.status == 400
        assert "is already the address of help@garden.example" in said(answer.text)

    async def test_the_pool_grows_by_names_and_by_number(self, p: Pages) -> None:
        assert (await p.post(f"{SALES}/pool", {"grow": "2", "addresses": ""})).status == 303
        assert (await p.post(f"{SALES}/pool", {"grow": "", "addresses": "b@t.garden.example"})).status == 303
        pool = (await definition(p))["targets"][0]["pool"]
        assert sorted(pool) == [
            "a@t.garden.example",
            "b@t.garden.example",
            "sales1@t.garden.example",
            "sales2@t.garden.example",
        ]
        assert "Pool of 4 addresses" in said((await p.get(SALES)).text)
        shop = "/ui/sites/shop/targets/sales%40example.com"
        assert (await p.post(f"{shop}/pool", {"grow": "1"})).status == 303

    @of_all
    @pytest.mark.parametrize(
        ("form", "words"),
        [
            ({"grow": "", "addresses": ""}, "give either addresses or grow"),
            ({"grow": "1", "addresses": "b@t.garden.example"}, "give either addresses or grow"),
            ({"grow": "x", "addresses": ""}, "must be a whole number"),
            ({"grow": "", "addresses": "b@t.garden.example, no"}, "is not an address"),
            ({"grow": "", "addresses": "card@t.garden.example"}, "another substitute already"),
            ({"grow": "", "addresses": "sales@garden.example"}, "its mail would come back here"),
            ({"grow": "", "addresses": "jobs@example.com"}, "cannot be a substitute"),
            ({"grow": "", "addresses": "help@garden.example"}, "garden.example is a domain of substitutes"),
        ],
    )
    async def test_what_cannot_join_is_said(self, shared: Pages, form: dict[str, str], words: str) -> None:
        answer = await shared.post(f"{SALES}/pool", form)
        assert answer.status in (400, 409)
        assert words in said(answer.text)
        if form["addresses"]:
            assert form["addresses"] in values(answer.text)["addresses"]

    async def test_one_is_removed_with_what_leads_to_it(self, p: Pages) -> None:
        assert "card@t.garden.example" in said((await p.get(SALES)).text)
        assert (await p.post(f"{SALES}/remove", await current(p))).status == 303
        after = await definition(p)
        assert [target["address"] for target in after["targets"]] == ["help@garden.example"]
        assert after["statics"] == []
        assert (await p.world.recipient("card@t.garden.example")).forward_to == "sales@garden.example"


class TestStatics:
    async def test_one_is_added_relabelled_and_retired(self, p: Pages) -> None:
        form = {"address": "fair@t.garden.example", "label": "fair 2027", "target": "help@garden.example"}
        assert (await p.post(f"{OWN}/statics", form)).status == 303
        assert (await definition(p))["statics"][-1] == form
        own = f"{OWN}/statics/fair%40t.garden.example"
        assert (await p.post(own, await current(p, label="fair 2028"))).status == 303
        assert (await definition(p))["statics"][-1]["label"] == "fair 2028"
        assert (await p.post(own, await current(p, label=""))).status == 400
        long = "fair " * 100
        answer = await p.post(own, await current(p, label=long))
        assert (answer.status, f'value="{long.strip()}"' in answer.text) == (400, True)
        assert (await p.post(f"{OWN}/statics/no%40t.garden.example", {"label": "x"})).status == 404
        gone = f"{OWN}/substitutes/fair%40t.garden.example/retire"
        assert (await p.post(gone)).status == 303
        assert len((await definition(p))["statics"]) == 1
        assert (await p.world.recipient("fair@t.garden.example")).forward_to == "help@garden.example"
        assert (await p.post(gone)).status == 404

    async def test_letters_that_came_before_keep_their_label_as_it_says(self, p: Pages) -> None:
        accepted = await p.world.accept("card@t.garden.example")
        own = f"{OWN}/statics/card%40t.garden.example"
        assert (await p.post(own, await current(p, label="fair"))).status == 303
        found = await history.one(p.world.store.reader, accepted.message_id, None)
        assert found is not None
        assert [delivery.source for delivery in found.deliveries] == ["card"]
        assert "the letters that came before keep theirs" in said((await p.get(OWN)).text)

    async def test_errors_stand_beside_their_fields_and_the_form_is_open(self, p: Pages) -> None:
        form = {"address": "card", "label": "", "target": "help@garden.example"}
        answer = await p.post(f"{OWN}/statics", form)
        assert answer.status == 400
        for name in ("address", "label"):
            assert f'id="wrong-{name}"' in answer.text
        assert values(answer.text)["address"] == "card"
        taken = await p.post(f"{OWN}/statics", form | {"address": "a@t.garden.example", "label": "x"})
        assert taken.status in (400, 409)
        assert "wrong-address" in taken.text


class TestRules:
    async def test_they_stand_there_in_words_and_in_order(self, p: Pages) -> None:
        words = said((await p.get(f"{OWN}/sources")).text)
        assert words.index("has ?ref=spring") < words.index("begins on /fair/*")

    async def test_one_is_added_changed_moved_and_removed(self, p: Pages) -> None:
        async def edition() -> str:
            page = (await p.get(f"{OWN}/sources")).text
            return page.partition('name="edition" value="')[2].partition('"')[0]

        blank = {"referrer": "", "parameter": "", "value": "", "page": "", "channel": "", "rule": ""}
        new = blank | {"edition": await edition(), "marker": "paper", "referrer": "paper.example"}
        assert (await p.post(f"{OWN}/sources", new)).status == 303
        assert [rule["marker"] for rule in (await definition(p))["sources"]] == ["partner_spring", "fair", "paper"]
        assert values((await p.get(f"{OWN}/sources?rule=1")).text)["page"] == "/fair/*"
        change = blank | {"edition": await edition(), "rule": "1", "marker": "fair_2", "page": "/fair/*"}
        assert (await p.post(f"{OWN}/sources", change)).status == 303
        up = {"edition": await edition(), "rule": "2", "action": "up"}
        assert (await p.post(f"{OWN}/sources/order", up)).status == 303
        assert [rule["marker"] for rule in (await definition(p))["sources"]] == ["partner_spring", "paper", "fair_2"]
        assert (await p.post(f"{OWN}/sources/order", up | {"action": "remove"})).status == 409  # of other rules
        gone = {"edition": await edition(), "rule": "0", "action": "remove"}
        assert (await p.post(f"{OWN}/sources/order", gone)).status == 303
        assert [rule["marker"] for rule in (await definition(p))["sources"]] == ["paper", "fair_2"]
        late = await p.post(f"{OWN}/sources", new)
        assert late.status == 409
        assert values(late.text)["marker"] == "paper"

    async def test_errors_stand_beside_their_fields(self, p: Pages) -> None:
        page = (await p.get(f"{OWN}/sources")).text
        form = {
            "edition": page.partition('name="edition" value="')[2].partition('"')[0],
            "marker": "",
            "referrer": "no host",
        }
        answer = await p.post(f"{OWN}/sources", form)
        assert answer.status == 400
        assert 'id="wrong-marker"' in answer.text
        assert 'id="wrong-referrer"' in answer.text
        answer = await p.post(f"{OWN}/sources", form | {"marker": "m", "referrer": "", "value": "1"})
        assert "needs a referrer, a parameter or a page" in said(answer.text)


async def test_a_site_is_removed_after_it_was_asked(p: Pages) -> None:
    assert "still forwarded" in (await p.get(f"{OWN}/remove")).text
    assert (await p.post(f"{OWN}/remove")).location == "/ui/sites?done=site_removed"
    assert (await p.get(OWN)).status == 404


class TestRoles:
    #: Every action, with what it sends, and the least role.
    ACTIONS = (
        ("manager", f"{OWN}/switch", {"tracking": "off"}),
        ("manager", f"{SALES}/pool", {"grow": "1"}),
        ("admin", f"{OWN}/origins", {"origin": "https://a.example"}),
        ("admin", f"{OWN}/statics", {"address": "x@t.garden.example", "label": "x", "target": "help@garden.example"}),
        ("admin", f"{OWN}/statics/card%40t.garden.example", {"label": "x"}),
        ("admin", f"{OWN}/substitutes/card%40t.garden.example/retire", {}),
        ("admin", f"{OWN}/settings", {}),
        ("admin", f"{OWN}/sources", {"marker": "x", "page": "/x"}),
        ("admin", f"{OWN}/sources/order", {"rule": "0"}),
        (
            "admin",
            f"{OWN}/targets/new",
            {"address": "x@garden.example", "method": "unique", "domain": "t.garden.example"},
        ),
        ("admin", SALES, {"method": "pool", "lease": "1h"}),
        ("admin", f"{SALES}/remove", {}),
        ("admin", f"{OWN}/remove", {}),
        ("admin", "/ui/sites/new", {"name": "x", "origins": "https://x.example"}),
    )
    PAGES = (f"{OWN}/settings", f"{OWN}/sources", f"{OWN}/remove", f"{OWN}/targets/new", "/ui/sites/new")

    @pytest.mark.parametrize("role", ["viewer", "manager"])
    async def test_who_may_not_gets_403_and_changes_nothing(self, p: Pages, role: str) -> None:
        somebody, before = await p.user(role, "garden"), await definition(p)
        for least, path, form in self.ACTIONS:
            if not (role == "manager" and least == "manager"):
                assert (await somebody.post(path, form)).status == 403, path
        for path in self.PAGES:
            assert (await somebody.get(path)).status == 403, path
        assert await definition(p) == before

    async def test_what_a_manager_may_works(self, p: Pages) -> None:
        manager = await p.user("manager", "garden")
        for least, path, form in self.ACTIONS:
            if least == "manager":
                assert (await manager.post(path, form)).status == 303, path

    async def test_another_sites_administrator_finds_nothing(self, p: Pages) -> None:
        other, before = await p.user("admin", "shop"), await definition(p)
        for _, path, form in self.ACTIONS[:-1]:
            assert (await other.post(path, form)).status == 404, path
        assert await definition(p) == before

    async def test_a_viewer_sees_no_buttons_and_a_manager_those_that_work(self, p: Pages) -> None:
        viewer, manager = await p.user("viewer", "garden"), await p.user("manager", "garden")
        for path in (OWN, SALES, "/ui/sites"):
            shown = (await viewer.get(path)).text
            assert shown.count("<form") == 1, path  # to log out
            assert f"{OWN}/settings" not in shown
        overview = (await manager.get(OWN)).text
        assert overview.count("<form") == 1 + 2
        assert (await manager.get(SALES)).text.count("<form") == 1 + 1

    async def test_a_form_without_its_token_changes_nothing(self, p: Pages) -> None:
        before = await definition(p)
        for _, path, form in self.ACTIONS:
            assert (await p.post(path, form, csrf="")).status == 403, path
        assert await definition(p) == before


class TestHostile:
    async def test_what_is_typed_is_shown_again_as_text(self, p: Pages) -> None:
        """Every field of every form, refused: no markup comes of it."""
        fields = {
            "/ui/sites/new": ["name", "origins", *(f"targets[0].{name}" for name in NEW_TARGET.fields)],
            f"{OWN}/settings": list(SETTINGS.fields),
            f"{OWN}/targets/new": list(NEW_TARGET.fields),
            SALES: list(NEW_TARGET.fields),
            f"{SALES}/pool": ["grow", "addresses"],
            f"{OWN}/statics": ["address", "label", "target"],
            f"{OWN}/sources": ["marker", "channel", "referrer", "parameter", "value", "page", "rule", "edition"],
        }
        own = await current(p)
        for path, names in fields.items():
            known = parts((await p.get(path.removesuffix("/pool").removesuffix("/statics"))).text)
            known |= parts((await p.post(path, own | dict.fromkeys(names, "!"))).text)
            known |= parts((await p.post(path, own | dict.fromkeys(names, ""))).text)
            for name in names:  # what is wrong with one alone is said of it
                known |= parts((await p.post(path, own | {name: "!"})).text)
            for filled in fillings(names):
                answer = await p.post(path, own | filled)
                assert answer.status in (400, 409), (path, filled)
                check(answer.text, known)

    async def test_what_is_stored_is_shown_as_text(self, p: Pages) -> None:
        before = await definition(p)
        shown = (OWN, f"{OWN}/sources", f"{OWN}/sources?rule=7")
        known = set().union(*[parts((await p.get(path)).text) for path in (*shown[:2], f"{OWN}/sources?rule=0")])
        texts = [text for text in hostile() if len(text) <= 200 and text.isprintable()]
        statics = [
            {"address": f"x{number}@t.garden.example", "target": "sales@garden.example", "label": text}
            for number, text in enumerate(texts)
        ]
        rules = [{"marker": text, "parameter": text, "value": text, "page": text} for text in texts]
        body = before | {"statics": statics, "sources": rules}
        del body["declared"]
        status, answer = await p.api.call("PUT", "/v1/sites/garden", body, token=await p.api.token())
        assert status == 200, answer
        assert len(texts) > 400
        for path in shown:
            check((await p.get(path)).text, known)
        words = said((await p.get(f"{OWN}/sources")).text)
        assert [text for text in texts if " ".join(text.split()) not in words] == []

    async def test_pages_seen_are_shown_as_text(self, p: Pages) -> None:
        await p.api.bind("garden")
        known = parts((await p.get(OWN)).text)
        for sample in hostile()[:: 1 if SOAK else 15]:
            status, _ = await p.api.bind("garden", page=sample[:1900])
            assert status == 200
            check((await p.get(f"{OWN}/seen", **HTMX)).text, known)


async def test_the_second_name_of_the_script_is_the_one_to_copy(tmp_path: Path) -> None:
    from relay.config import Http

    async with pages(tmp_path, http=Http(script_path="/assets/site.js")) as p:
        assert "/assets/site.js?site=pk_shop" in (await p.get("/ui/sites/shop")).text
        assert quote(TRACK) in (await p.get("/ui/sites/shop")).text
