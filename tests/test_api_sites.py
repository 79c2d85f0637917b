"""Sites, targets, pools, webhooks and the recommendation over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.config import Forward
from relay.config.models import SiteOptions
from relay.core.site import SiteSettings
from relay.store import posts as post_verbs
from relay.store.schema import sites as sites_table
from tests.store_fixtures import NOW, SHOP, TRACK, site
from tests.webapi_fixtures import Api, fields, of_all, serving
from webapi import signature

SITE: dict[str, Any] = {
    "name": "garden",
    "key": "pk_garden",
    "origins": ["https://www.garden.example", "https://*.garden.example"],
    "targets": [
        {"address": "sales@garden.example", "domain": "t.garden.example", "pool": ["a@t.garden.example"]},
        {"address": "help@garden.example", "method": "plus", "domain": "t.garden.example", "lease": "1h"},
    ],
    "statics": [{"address": "card@t.garden.example", "target": "sales@garden.example", "label": "card"}],
}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


@pytest.fixture
async def admin(api: Api) -> str:
    return await api.token()


async def created(api: Api, token: str, **changes: Any) -> Any:
    status, answer = await api.call("POST", "/v1/sites", SITE | changes, token=token)
    assert status == 201, answer
    return answer


def target(**changes: Any) -> dict[str, Any]:
    return {"address": "sales@garden.example", "domain": "t.garden.example"} | changes


class TestReading:
    async def test_the_list_has_every_site(self, api: Api, admin: str) -> None:
        status, answer = await api.call("GET", "/v1/sites", token=admin)
        assert status == 200
        assert [item["name"] for item in answer["items"]] == ["other", "shop"]
        assert answer["items"][1]["targets"] == ["sales@example.com", "help@example.com", "jobs@example.com"]
        assert answer["items"][1]["declared"] is True

    async def test_a_site_is_shown_as_relay_toml_would_say_it(self, api: Api, admin: str) -> None:
        _, answer = await api.call("GET", "/v1/sites/shop", token=admin)
        assert answer["visit_timeout"] == "14d"
        assert answer["targets"][0] == {
            "address": "sales@example.com",
            "method": "pool",
            "domain": TRACK,
            "pool": [f"info1@{TRACK}", f"info2@{TRACK}"],
            "lease": "15m",
            "additional": False,
            "forward_to": None,
            "next_hop": None,
        }
        assert answer["statics"] == [{"address": f"card@{TRACK}", "target": "sales@example.com", "label": "card"}]
        assert (answer["require_visit"], answer["skip_bounces"], answer["skip_automatic"]) == (True, True, True)

    async def test_targets_come_with_their_leases(self, api: Api, admin: str) -> None:
        await api.bind()
        _, answer = await api.call("GET", "/v1/sites/shop/targets", token=admin)
        leased, free, card = answer["items"][0]["substitutes"]
        assert leased == {
            "address": f"info1@{TRACK}",
            "kind": "pool",
            "label": None,
            "leased_until": "2027-01-15T08:15:00.000Z",
        }
        assert free["leased_until"] is None
        assert (card["kind"], card["label"]) == ("static", "card")

    @pytest.mark.parametrize("name", ["nobody", "SHOP", "%00", "shop%2Fx", "a" * 500])
    async def test_an_unknown_site_is_not_there(self, api: Api, admin: str, name: str) -> None:
        for path in ("", "/targets", "/recommendation", "/webhooks"):
            assert (await api.call("GET", f"/v1/sites/{name}{path}", token=admin))[0] == 404


class TestCreating:
    async def test_a_site_works_at_once(self, api: Api, admin: str) -> None:
        answer = await created(api, admin)
        assert (answer["name"], answer["key"], answer["declared"]) == ("garden", "pk_garden", False)
        assert answer["targets"][1]["lease"] == "1h"
        body = {"site": "pk_garden", "addresses": ["sales@garden.example"]}
        headers = {"Origin": "https://shop.garden.example", "User-Agent": "Mozilla/5.0"}
        _, bound = await api.call("POST", "/v1/bind", body, headers=headers)
        assert bound["addresses"] == {"sales@garden.example": "a@t.garden.example"}
        assert (await api.w.recipient("card@t.garden.example")).forward_to == "sales@garden.example"

    async def test_key_and_pool_are_made_where_none_are_given(self, api: Api, admin: str) -> None:
        body = {"name": "plain", "origins": ["https://plain.example"], "targets": [target(pool_size=3)]}
        status, answer = await api.call("POST", "/v1/sites", body, token=admin)
        assert status == 201
        assert answer["key"].startswith("pk_")
        assert answer["targets"][0]["pool"] == [f"sales{number}@t.garden.example" for number in (1, 2, 3)]

    async def test_only_a_token_for_all_sites_makes_a_site(self, api: Api) -> None:
        token = await api.token("admin", "garden")
        assert (await api.call("POST", "/v1/sites", SITE, token=token))[0] == 403

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"name": "shop"}, "name"),
            ({"key": "pk_shop"}, "key"),
            ({"targets": [target(pool=[f"info1@{TRACK}"])], "statics": []}, "targets[0].pool[0]"),
            (
                {"statics": [{"address": f"card@{TRACK}", "target": "sales@garden.example", "label": "x"}]},
                "statics[0].address",
            ),
        ],
    )
    async def test_what_is_taken_is_named(self, api: Api, admin: str, changes: dict[str, Any], field: str) -> None:
        status, problem = await api.call("POST", "/v1/sites", SITE | changes, token=admin)
        assert (status, fields(problem)) == (409, [field])
        assert len(await api.w.rows(sites_table.select())) == 2

    @of_all
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"name": ""}, "name"),
            ({"name": "a b"}, "name"),
            ({"key": "garden"}, "key"),
            ({"origins": []}, "origins"),
            ({"origins": ["garden.example"]}, "origins[0]"),
            ({"origins": ["https://garden.example/path"]}, "origins[0]"),
            ({"tracking": "yes"}, "tracking"),
            ({"bots": "some"}, "bots"),
            ({"visit_timeout": 60}, "visit_timeout"),
            ({"visit_timeout": "10s"}, "visit_timeout"),
            ({"colour": "red"}, "colour"),
            ({"targets": {}}, "targets"),
            ({"targets": [{}], "statics": []}, "targets[0].address"),
            ({"targets": [target(address="sales")], "statics": []}, "targets[0].address"),
            ({"targets": [target(method="magic")], "statics": []}, "targets[0].method"),
            ({"targets": [target(lease="0s")], "statics": []}, "targets[0].lease"),
            ({"targets": [target(leese="15m")], "statics": []}, "targets[0].leese"),
            ({"targets": [target(next_hop="http://x")], "statics": []}, "targets[0].next_hop"),
            ({"targets": [target(pool=["a@b.example", "no"])], "statics": []}, "targets[0].pool[1]"),
            # what only the rules of relay.toml see
            ({"targets": [target(domain="", method="plus")], "statics": []}, "targets[0].domain"),
            ({"targets": [target(pool=["a+b@t.garden.example"])], "statics": []}, "targets[0].pool[0]"),
            ({"targets": [target(pool=["postmaster@t.garden.example"])], "statics": []}, "targets[0].pool[0]"),
            ({"targets": [target(), target()], "statics": []}, "targets[1].address"),
            ({"targets": [target(forward_to="x@t.garden.example")], "statics": []}, "targets[0].forward_to"),
            (
                {"statics": [{"address": "c@t.garden.example", "target": "no@x.example", "label": "x"}]},
                "statics[0].target",
            ),
            # what only the store knows
            ({"targets": [target(forward_to=f"info1@{TRACK}")], "statics": []}, "targets[0].forward_to"),
            ({"targets": [target(forward_to=f"boss@{TRACK}")], "statics": []}, "targets[0].next_hop"),
        ],
    )
    async def test_nonsense_is_named_and_changes_nothing(
        self, shared: Api, changes: dict[str, Any], field: str
    ) -> None:
        status, problem = await shared.call("POST", "/v1/sites", SITE | changes, token=await shared.token())
        assert status == 400
        assert field in fields(problem)
        assert "site[0]" not in str(problem)
        assert len(await shared.w.rows(sites_table.select())) == 2

    async def test_every_error_is_named_at_once(self, api: Api, admin: str) -> None:
        body = {"name": "a b", "origins": [], "tracking": 1}
        _, problem = await api.call("POST", "/v1/sites", body, token=admin)
        assert sorted(fields(problem)) == ["name", "origins", "tracking"]

    async def test_mail_that_goes_by_a_next_hop_may_go_to_a_domain_of_substitutes(self, tmp_path: Path) -> None:
        async with serving(tmp_path, forward=Forward.model_validate({"next_hop": "smtp://127.0.0.1:25"})) as api:
            changes = {"targets": [target(forward_to=f"boss@{TRACK}")], "statics": []}
            assert (await api.call("POST", "/v1/sites", SITE | changes, token=await api.token()))[0] == 201

    async def test_a_targets_mailbox_cannot_become_a_substitute(self, api: Api, admin: str) -> None:
        changes = {"targets": [target(pool=["jobs@example.com"])], "statics": []}
        status, problem = await api.call("POST", "/v1/sites", SITE | changes, token=admin)
        assert (status, fields(problem)) == (409, ["targets[0].pool[0]"])
        assert "jobs@example.com" in problem["detail"]
        changes = {"statics": [{"address": "jobs@example.com", "target": "sales@garden.example", "label": "x"}]}
        status, problem = await api.call("POST", "/v1/sites", SITE | changes, token=admin)
        assert (status, fields(problem)) == (409, ["statics[0].address"])


class TestChanging:
    async def test_what_was_read_can_be_given_back(self, api: Api, admin: str) -> None:
        before = await created(api, admin)
        body = {key: value for key, value in before.items() if key != "declared"}
        assert await api.call("PUT", "/v1/sites/garden", body, token=admin) == (200, before)

    async def test_the_whole_definition_is_replaced_and_what_is_gone_goes_on_forwarding(
        self, api: Api, admin: str
    ) -> None:
        await created(api, admin)
        body = {"origins": ["https://new.example"], "targets": [target(pool=["b@t.garden.example"])]}
        status, answer = await api.call("PUT", "/v1/sites/garden", body, token=admin)
        assert (status, answer["key"], answer["origins"]) == (200, "pk_garden", ["https://new.example"])
        assert [found["pool"] for found in answer["targets"]] == [["b@t.garden.example"]]
        assert answer["statics"] == []
        gone = await api.w.recipient("a@t.garden.example")
        assert gone.forward_to == "sales@garden.example"
        assert gone.route is not None
        assert not gone.route.attributed

    async def test_a_password_is_never_shown_and_kept_when_given_back_as_shown(self, api: Api, admin: str) -> None:
        hop = "smtps://us%40er:secret@mail.example:465"
        answer = await created(api, admin, targets=[target(next_hop=hop)], statics=[])
        assert answer["targets"][0]["next_hop"] == "smtps://us%40er:***@mail.example:465"
        body = {key: value for key, value in answer.items() if key != "declared"}
        _, answer = await api.call("PUT", "/v1/sites/garden", body, token=admin)
        stored = api.w.target("sales@garden.example", "garden").next_hop
        assert stored is not None
        assert "secret" not in stored
        assert api.context.keys.unseal(stored) == hop

    async def test_only_who_has_all_sites_sets_a_next_hop(self, api: Api, admin: str) -> None:
        hop = "smtps://user:secret@mail.example:465"
        answer = await created(api, admin, targets=[target(next_hop=hop), SITE["targets"][1]], statics=[])
        shown = {key: value for key, value in answer.items() if key != "declared"}
        sealed = api.w.target("sales@garden.example", "garden").next_hop
        own = await api.token("admin", "garden")

        async def given(first: Any, second: Any) -> tuple[int, Any]:
            targets = [one | {"next_hop": hop} for one, hop in zip(shown["targets"], (first, second), strict=True)]
            return await api.call("PUT", "/v1/sites/garden", shown | {"targets": targets}, token=own)

        masked = shown["targets"][0]["next_hop"]
        for new in ("smtp://127.0.0.1:6379", "smtp://mail.example", hop, masked.replace("mail", "elsewhere")):
            status, problem = await given(new, None)
            assert (status, fields(problem)) == (403, ["targets[0].next_hop"]), new
        status, problem = await given(masked, masked)
        assert (status, fields(problem)) == (403, ["targets[1].next_hop"])
        assert (await given(masked, None))[0] == 200
        assert api.w.target("sales@garden.example", "garden").next_hop == sealed
        assert (await given(None, None))[0] == 200
        assert api.w.target("sales@garden.example", "garden").next_hop is None

    async def test_a_declared_site_is_changed_in_relay_toml(self, api: Api, admin: str) -> None:
        for method, path, body in (
            ("PUT", "/v1/sites/shop", {"origins": ["https://www.shop.example"]}),
            ("DELETE", "/v1/sites/shop", None),
            ("DELETE", f"/v1/sites/shop/substitutes/info1@{TRACK}", None),
            ("POST", "/v1/sites/shop/webhooks", {"url": "https://crm.example/2"}),
            ("DELETE", f"/v1/webhooks/{api.w.site().webhooks[0].id}", None),
        ):
            status, problem = await api.call(method, path, body, token=admin)
            assert (status, "relay.toml" in problem["detail"]) == (409, True), path
        assert len(api.w.site().targets) == len(SHOP.targets)

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            (
                {"statics": [{"address": f"jobs@{TRACK}", "target": "sales@garden.example", "label": "x"}]},
                "statics[0].address",
            ),
            ({"targets": [target(pool=[f"jobs@{TRACK}"])]}, "targets[0].pool[0]"),
            (
                {"targets": [target(), target(address="jobs@garden.example", method="plus", domain=TRACK)]},
                "targets[1].address",
            ),
        ],
    )
    async def test_another_sites_base_address_is_taken(
        self, api: Api, admin: str, changes: dict[str, Any], field: str
    ) -> None:
        """By who may change this site alone, too: mail to it and to any tag behind it is the other site's."""
        before = await created(api, admin)
        token = await api.token("admin", "garden")
        body = {"origins": ["https://new.example"], "targets": [target()]} | changes
        status, problem = await api.call("PUT", "/v1/sites/garden", body, token=token)
        assert (status, fields(problem)) == (409, [field])
        assert (await api.call("GET", "/v1/sites/garden", token=admin))[1] == before
        assert (await api.w.recipient(f"jobs+anything@{TRACK}")).forward_to == "jobs@example.com"

    async def test_a_site_keeps_its_name(self, api: Api, admin: str) -> None:
        await created(api, admin)
        body = {"name": "other-name", "origins": ["https://new.example"]}
        status, problem = await api.call("PUT", "/v1/sites/garden", body, token=admin)
        assert (status, fields(problem)) == (400, ["name"])

    async def test_switches_are_changed_one_by_one(self, api: Api) -> None:
        token = await api.token("manager", "shop")
        _, answer = await api.call("PATCH", "/v1/sites/shop", {"tracking": False}, token=token)
        assert (answer["tracking"], answer["send_to_crm"]) == (False, True)
        assert (await api.bind())[1]["addresses"] == {}
        _, answer = await api.call("PATCH", "/v1/sites/shop", {"send_to_crm": False}, token=token)
        assert (answer["tracking"], answer["send_to_crm"]) == (False, False)
        for body in ({}, {"tracking": 1}, {"name": "x"}):
            assert (await api.call("PATCH", "/v1/sites/shop", body, token=token))[0] == 400

    async def test_a_removed_site_is_gone_and_its_mail_goes_on(self, api: Api, admin: str) -> None:
        await created(api, admin)
        assert await api.call("DELETE", "/v1/sites/garden", token=admin) == (204, None)
        assert (await api.call("GET", "/v1/sites/garden", token=admin))[0] == 404
        assert (await api.bind("garden"))[0] == 404
        assert (await api.w.recipient("a@t.garden.example")).forward_to == "sales@garden.example"


#: Every option of a site away from its default, as relay.toml says it.
OPTIONS: dict[str, Any] = {
    "tracking": False,
    "send_to_crm": False,
    "bots": "lease",
    "lease_on": "interaction",
    "reserve": 25,
    "visit_timeout": "90m",
    "touch": "last_non_direct",
    "visit_cookie": "other_visit",
    "marker_cookie": "other_marker",
    "cookie_domain": "garden.example",
    "respect_gpc": True,
    "google_analytics": True,
    "metrica": 12345678,
    "require_visit": False,
    "skip_bounces": False,
    "skip_automatic": False,
    "sources": [
        {"marker": "partner_acme", "channel": "referral", "referrer": "acme.example"},
        {"marker": "print_spring", "parameter": "qr", "value": "7"},
        {"marker": "fair", "page": "/fair/*"},
    ],
}
RULE = {"channel": None, "referrer": None, "parameter": None, "value": None, "page": None}


class TestEdition:
    async def test_a_definition_that_others_have_changed_is_kept(self, api: Api, admin: str) -> None:
        before = await created(api, admin)
        body = {name: value for name, value in before.items() if name != "declared"}
        theirs = body | {"reserve": 33}
        status, after = await api.call("PUT", "/v1/sites/garden", theirs, token=admin)
        assert (status, after["edition"] != before["edition"]) == (200, True)
        status, problem = await api.call("PUT", "/v1/sites/garden", body | {"reserve": 44}, token=admin)
        assert status == 409
        assert problem["detail"] == "somebody else has changed the site meanwhile: look again"
        assert await api.get("/v1/sites/garden") == after

    async def test_without_one_nothing_is_compared(self, api: Api, admin: str) -> None:
        await created(api, admin)
        for reserve in (1, 2):
            body = {"origins": ["https://new.example"], "reserve": reserve}
            assert (await api.call("PUT", "/v1/sites/garden", body, token=admin))[0] == 200

    async def test_pool_and_static_addresses_are_of_it_and_switches_are_not(self, api: Api, admin: str) -> None:
        found = [(await created(api, admin))["edition"]]
        await api.call("PATCH", "/v1/sites/garden", {"tracking": False}, token=admin)
        assert (await api.get("/v1/sites/garden"))["edition"] == found[0]
        target = (await api.get("/v1/sites/garden"))["targets"][0]["address"]
        await api.call("POST", f"/v1/sites/garden/targets/{target}/pool", {"grow": 1}, token=admin)
        found.append((await api.get("/v1/sites/garden"))["edition"])
        assert len(set(found)) == 2

    async def test_switches_that_are_left_out_stay(self, api: Api, admin: str) -> None:
        await created(api, admin)
        await api.call("PATCH", "/v1/sites/garden", {"tracking": False}, token=admin)
        body = {"origins": ["https://new.example"]}
        _, answer = await api.call("PUT", "/v1/sites/garden", body, token=admin)
        assert (answer["tracking"], answer["send_to_crm"]) == (False, True)
        _, answer = await api.call("PUT", "/v1/sites/garden", body | {"send_to_crm": False}, token=admin)
        assert (answer["tracking"], answer["send_to_crm"]) == (False, False)


class TestOptions:
    def test_every_option_is_tried(self) -> None:
        assert {*OPTIONS, "origins", "server_cookies"} == set(SiteOptions.model_fields)

    async def test_they_are_shown_as_they_were_given_and_can_be_given_back(self, api: Api, admin: str) -> None:
        before = await created(api, admin, **OPTIONS)
        assert {name: before[name] for name in OPTIONS} == OPTIONS | {
            "sources": [RULE | rule for rule in OPTIONS["sources"]]
        }
        stored = api.w.site("garden").settings
        body = {key: value for key, value in before.items() if key != "declared"}
        assert await api.call("PUT", "/v1/sites/garden", body, token=admin) == (200, before)
        assert await api.call("GET", "/v1/sites/garden", token=admin) == (200, before)
        assert api.w.site("garden").settings == stored

    async def test_what_is_left_out_has_its_default(self, api: Api, admin: str) -> None:
        answer = await created(api, admin)
        defaults = {
            "lease_on": "view",
            "reserve": 10,
            "touch": "last",
            "visit_cookie": "roistat_visit",
            "marker_cookie": "roistat_marker",
            "cookie_domain": None,
            "server_cookies": False,
            "respect_gpc": False,
            "google_analytics": False,
            "metrica": 0,
            "sources": [],
        }
        assert {name: answer[name] for name in defaults} == defaults
        assert api.w.site("garden").settings == SiteSettings()

    async def test_an_option_that_is_left_out_of_a_put_goes_back_to_its_default(self, api: Api, admin: str) -> None:
        await created(api, admin, **OPTIONS)
        await api.call("PUT", "/v1/sites/garden", {"origins": ["https://new.example"]}, token=admin)
        assert api.w.site("garden").settings == SiteSettings()

    @pytest.mark.parametrize("nothing", ["", None])
    async def test_cookies_can_be_switched_off(self, api: Api, admin: str, nothing: str | None) -> None:
        before = await created(api, admin, visit_cookie=nothing, marker_cookie=nothing, cookie_domain=nothing)
        assert [before[name] for name in ("visit_cookie", "marker_cookie", "cookie_domain")] == [None] * 3
        body = {key: value for key, value in before.items() if key != "declared"}
        assert await api.call("PUT", "/v1/sites/garden", body, token=admin) == (200, before)

    async def test_an_additional_target_is_shown_as_one(self, api: Api, admin: str) -> None:
        before = await created(api, admin, targets=[target(additional=True)], statics=[])
        assert before["targets"][0]["additional"] is True
        assert api.w.target("sales@garden.example", "garden").additional
        body = {key: value for key, value in before.items() if key != "declared"}
        assert await api.call("PUT", "/v1/sites/garden", body, token=admin) == (200, before)

    async def test_the_site_works_by_its_rules_at_once(self, api: Api, admin: str) -> None:
        await created(api, admin, **OPTIONS)
        body = {"site": "pk_garden", "page": "https://www.garden.example/fair/map"}
        headers = {"Origin": "https://www.garden.example", "User-Agent": "Mozilla/5.0"}
        _, answer = await api.call("POST", "/v1/bind", body, headers=headers)
        assert (await api.get(f"/v1/visits/{answer['visit']}"))["marker"] == "fair"

    async def test_server_cookies_are_taken_where_our_own_address_is_within_their_domain(self, tmp_path: Path) -> None:
        changes = {"server_cookies": True, "cookie_domain": "Garden.Example"}
        for public_url in ("https://t.garden.example", "https://garden.example"):
            (directory := tmp_path / public_url[8:]).mkdir()
            async with serving(directory, public_url=public_url) as api:
                answer = await created(api, await api.token(), **changes)
                assert (answer["server_cookies"], answer["cookie_domain"]) == (True, "garden.example")

    @of_all
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"lease_on": "load"}, "lease_on"),
            ({"reserve": -1}, "reserve"),
            ({"reserve": 91}, "reserve"),
            ({"reserve": "10"}, "reserve"),
            ({"touch": "middle"}, "touch"),
            ({"visit_cookie": "a b"}, "visit_cookie"),
            ({"marker_cookie": "a;b=c"}, "marker_cookie"),
            ({"marker_cookie": "x" * 65}, "marker_cookie"),
            ({"cookie_domain": "not a domain"}, "cookie_domain"),
            ({"cookie_domain": "a.example; Path=/"}, "cookie_domain"),
            ({"server_cookies": 1}, "server_cookies"),
            ({"server_cookies": True}, "cookie_domain"),
            ({"server_cookies": True, "cookie_domain": "garden.example"}, "server_cookies"),  # public_url is 127.0.0.1
            ({"respect_gpc": "yes"}, "respect_gpc"),
            ({"google_analytics": "G-1"}, "google_analytics"),
            ({"metrica": -1}, "metrica"),
            ({"metrica": "17"}, "metrica"),
            ({"sources": {}}, "sources"),
            ({"sources": [{}]}, "sources[0].marker"),
            ({"sources": [{"marker": "x"}]}, "sources[0]"),
            ({"sources": [{"marker": "x", "value": "7"}]}, "sources[0]"),
            ({"sources": [{"marker": "", "page": "/"}]}, "sources[0].marker"),
            (
                {"sources": [{"marker": "x", "page": "/"}, {"marker": "x", "page": "/", "value": "7"}]},
                "sources[1].value",
            ),
            ({"sources": [{"marker": "x", "page": "/", "channel": "radio"}]}, "sources[0].channel"),
            ({"sources": [{"marker": "x", "referrer": "no host"}]}, "sources[0].referrer"),
            ({"sources": [{"marker": "x", "pages": "/"}]}, "sources[0].pages"),
            ({"sources": [{"marker": "x", "page": "/"}] * 1001}, "sources"),
        ],
    )
    async def test_nonsense_is_named_and_changes_nothing(
        self, shared: Api, changes: dict[str, Any], field: str
    ) -> None:
        status, problem = await shared.call("POST", "/v1/sites", SITE | changes, token=await shared.token())
        assert (status, fields(problem)) == (400, [field])
        assert "site[0]" not in str(problem)
        assert len(await shared.w.rows(sites_table.select())) == 2


class TestPool:
    PATH = "/v1/sites/shop/targets/sales@example.com/pool"

    async def test_addresses_are_added_and_leased(self, api: Api) -> None:
        body = {"addresses": [f"new1@{TRACK}", f"new2@{TRACK}"]}
        status, answer = await api.call("POST", self.PATH, body, token=await api.token("manager", "shop"))
        assert (status, answer) == (201, {"added": [f"new1@{TRACK}", f"new2@{TRACK}"]})
        shown = [(await api.bind())[1]["addresses"]["sales@example.com"] for _ in range(4)]
        assert sorted(shown) == sorted([f"info1@{TRACK}", f"info2@{TRACK}", f"new1@{TRACK}", f"new2@{TRACK}"])

    async def test_names_are_made_on_demand(self, api: Api, admin: str) -> None:
        for expected in ("sales1", "sales2"):
            _, answer = await api.call("POST", self.PATH, {"grow": 1}, token=admin)
            assert answer == {"added": [f"{expected}@{TRACK}"]}

    @of_all
    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            ({}, 400, "grow"),
            ({"addresses": [f"x@{TRACK}"], "grow": 1}, 400, "grow"),
            ({"grow": 0}, 400, "grow"),
            ({"grow": 10_001}, 400, "grow"),
            ({"addresses": ["x"]}, 400, "addresses[0]"),
            ({"addresses": [f"x@{TRACK}", f"a+b@{TRACK}"]}, 400, "addresses[1]"),
            ({"addresses": [f"abuse@{TRACK}"]}, 400, "addresses[0]"),
            ({"addresses": [f"x@{TRACK}", f"X@{TRACK}"]}, 400, "addresses[1]"),
            ({"addresses": ["other1@track.other.example"]}, 409, "addresses"),
        ],
    )
    async def test_nonsense_is_named_and_changes_nothing(
        self, shared: Api, body: dict[str, Any], status: int, field: str
    ) -> None:
        found, problem = await shared.call("POST", self.PATH, body, token=await shared.token())
        assert (found, fields(problem)) == (status, [field])
        assert len(await shared.w.store.sites.substitutes(shared.w.target().id)) == 3

    async def test_where_mail_goes_by_mx_no_addresses_are_given_out(self, api: Api, admin: str) -> None:
        """What the MX of a target's mail domain takes is not ours; and the site could not be changed any more."""
        await created(api, admin)
        garden = "/v1/sites/garden/targets/sales@garden.example/pool"
        for path, address, status in (
            (garden, "x@garden.example", 400),
            (garden, "x@example.com", 409),
            (self.PATH, "x@garden.example", 409),
        ):
            found, problem = await api.call("POST", path, {"addresses": [address]}, token=admin)
            assert (found, fields(problem)) == (status, ["addresses"])
            assert "site[0]" not in str(problem)
        changes = {"name": "taker", "key": "pk_taker", "statics": []}
        for taken, field in (
            (target(address="sales@taker.example", pool=["x@garden.example"]), "targets[0].pool[0]"),
            (target(address="x@taker.example", domain="garden.example", method="plus"), "targets[0].address"),
        ):
            found, problem = await api.call("POST", "/v1/sites", SITE | changes | {"targets": [taken]}, token=admin)
            assert (found, fields(problem)) == (409, [field])
        shown = await api.get("/v1/sites/garden")
        del shown["declared"]
        assert (await api.call("PUT", "/v1/sites/garden", shown, token=admin))[0] == 200

    @pytest.mark.parametrize(
        ("own", "configured"), [("smtp://127.0.0.1:25", None), (None, "smtp://127.0.0.1:25")], ids=["own", "configured"]
    )
    async def test_where_mail_goes_by_a_next_hop_they_are(
        self, own: str | None, configured: str | None, tmp_path: Path
    ) -> None:
        forward = Forward() if configured is None else Forward.model_validate({"next_hop": configured})
        async with serving(tmp_path, forward=forward) as api:
            admin = await api.token()
            await created(api, admin, targets=[target() if own is None else target(next_hop=own)], statics=[])
            path = "/v1/sites/garden/targets/sales@garden.example/pool"
            for address in ("x@garden.example", "y@garden.example"):
                assert (await api.call("POST", path, {"addresses": [address]}, token=admin))[0] == 201
            shown = await api.get("/v1/sites/garden")
            del shown["declared"]
            assert (await api.call("PUT", "/v1/sites/garden", shown, token=admin))[0] == 200

    async def test_only_pools_grow(self, api: Api, admin: str) -> None:
        path = "/v1/sites/shop/targets/help@example.com/pool"
        assert (await api.call("POST", path, {"grow": 1}, token=admin))[0] == 409
        for name in ("nobody@example.com", "nonsense", "%00@x"):
            path = f"/v1/sites/shop/targets/{name}/pool"
            assert (await api.call("POST", path, {"grow": 1}, token=admin))[0] == 404

    async def test_a_pool_without_a_domain_does_not_grow_by_itself(self, tmp_path: Path) -> None:
        listed = {"address": "sales@garden.example", "pool": ["a@t.garden.example"]}
        async with serving(tmp_path) as api:
            token = await api.token()
            await created(api, token, targets=[listed], statics=[])
            path = "/v1/sites/garden/targets/sales@garden.example/pool"
            status, problem = await api.call("POST", path, {"grow": 1}, token=token)
            assert (status, fields(problem)) == (409, ["grow"])

    async def test_a_substitute_is_retired_and_goes_on_forwarding(self, api: Api, admin: str) -> None:
        await created(api, admin)
        path = "/v1/sites/garden/substitutes/{}@t.garden.example"
        for local in ("a", "card"):
            assert await api.call("DELETE", path.format(local), token=admin) == (204, None)
            assert (await api.call("DELETE", path.format(local), token=admin))[0] == 404
            assert (await api.w.recipient(f"{local}@t.garden.example")).forward_to == "sales@garden.example"
        assert (await api.call("DELETE", path.format("help"), token=admin))[0] == 404  # a base address is none
        assert (await api.call("DELETE", "/v1/sites/garden/substitutes/x", token=admin))[0] == 404

    async def test_what_was_added_to_a_declared_pool_can_be_taken_out(self, api: Api, admin: str) -> None:
        await api.call("POST", self.PATH, {"addresses": [f"new1@{TRACK}"]}, token=admin)
        path = f"/v1/sites/shop/substitutes/new1@{TRACK}"
        assert (await api.call("DELETE", path, token=admin))[0] == 204


class TestRecommendation:
    async def test_grows_with_the_attendance_of_three_days(self, api: Api, admin: str) -> None:
        for _ in range(30):
            await api.bind()
        _, answer = await api.call("GET", "/v1/sites/shop/recommendation", token=admin)
        assert answer["visits"] == 30
        (pool,) = answer["pools"]
        assert (pool["address"], pool["addresses"], pool["peak_per_hour"]) == ("sales@example.com", 2, 30)
        assert pool["size"] > 10
        assert (pool["method"], pool["shared"] < 0.005) == ("erlang-b", True)
        api.w.pass_time(4 * 86_400)
        _, answer = await api.call("GET", "/v1/sites/shop/recommendation", token=admin)
        assert (answer["visits"], answer["pools"][0]["size"]) == (0, 5)

    async def test_is_there_before_there_is_a_pool(self, tmp_path: Path) -> None:
        async with serving(tmp_path, site("shop")) as api:
            _, answer = await api.call("GET", "/v1/sites/shop/recommendation", token=await api.token())
            assert [pool["address"] for pool in answer["pools"]] == [""]


class TestWebhooks:
    async def test_the_secret_is_answered_once(self, api: Api, admin: str) -> None:
        await created(api, admin)
        body = {"url": "https://crm.example/hook", "fill": "likely"}
        status, answer = await api.call("POST", "/v1/sites/garden/webhooks", body, token=admin)
        assert status == 201
        secret = answer.pop("secret")
        assert len(signature.decode_secret(secret)) == 32
        assert answer == {
            "id": answer["id"],
            "site": "garden",
            "url": "https://crm.example/hook",
            "fill": "likely",
            "enabled": True,
            "disabled_reason": None,
            "declared": False,
            "edition": answer["edition"],
            "events": ["message.received"],
            "extras": False,
            "concurrency": 10,
            "login": None,
            "headers": [],
            "variables": [],
            "template": "",
            "deal_id": "",
            "deal_url": "",
            "conditions": {
                "require_visit": "site",
                "skip_bounces": "site",
                "skip_automatic": "site",
                "skip_blocked": "site",
                "attribution": "",
                "first_letter": "0s",
                "min_size": 0,
                "max_size": 0,
                "max_recipients": 0,
                "recipients": [],
                "subject": None,
            },
        }
        _, listed = await api.call("GET", "/v1/sites/garden/webhooks", token=admin)
        assert listed == {"items": [answer]}
        (view,) = api.w.site("garden").webhooks
        assert secret not in view.hook.secret
        assert api.context.keys.unseal(view.hook.secret) == secret

    async def test_ones_own_secret_is_taken(self, api: Api, admin: str) -> None:
        await created(api, admin)
        secret = signature.new_secret(b"k" * 24)
        body = {"url": "https://crm.example/hook", "secret": secret}
        _, answer = await api.call("POST", "/v1/sites/garden/webhooks", body, token=admin)
        assert answer["secret"] == secret

    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            ({}, 400, "url"),
            ({"url": "ftp://crm.example"}, 400, "url"),
            ({"url": "https://user:pw@crm.example"}, 400, "url"),
            ({"url": "https://crm.example", "secret": "short"}, 400, "secret"),
            ({"url": "https://crm.example", "fill": "all"}, 400, "fill"),
            ({"url": "https://crm.example/first"}, 409, "url"),
        ],
    )
    async def test_nonsense_is_named(self, api: Api, admin: str, body: dict[str, Any], status: int, field: str) -> None:
        await created(api, admin)
        path = "/v1/sites/garden/webhooks"
        await api.call("POST", path, {"url": "https://crm.example/first"}, token=admin)
        found, problem = await api.call("POST", path, body, token=admin)
        assert (found, fields(problem)) == (status, [field])
        assert len(api.w.site("garden").webhooks) == 1

    async def test_a_removed_webhook_is_gone(self, api: Api, admin: str) -> None:
        await created(api, admin)
        body = {"url": "https://crm.example/hook"}
        _, answer = await api.call("POST", "/v1/sites/garden/webhooks", body, token=admin)
        path = f"/v1/webhooks/{answer['id']}"
        assert await api.call("DELETE", path, token=admin) == (204, None)
        for method, verb in (("DELETE", ""), ("GET", "/deliveries"), ("POST", "/enable")):
            assert (await api.call(method, path + verb, token=admin))[0] == 404

    async def test_a_disabled_one_is_enabled_and_the_poster_woken(self, api: Api, admin: str) -> None:
        webhook = api.w.site().webhooks[0].id
        await api.w.store.redefine(
            lambda tx: tx.sql("UPDATE webhooks SET enabled = 0, disabled_reason = '410' WHERE id = ?", (webhook,))
        )
        _, answer = await api.call("GET", "/v1/sites/shop/webhooks", token=admin)
        assert (answer["items"][0]["enabled"], answer["items"][0]["disabled_reason"]) == (False, "410")
        status, answer = await api.call("POST", f"/v1/webhooks/{webhook}/enable", token=admin)
        assert (status, answer["enabled"], answer["disabled_reason"]) == (200, True, None)
        assert api.woken == ["posts"]

    async def test_its_deliveries_are_listed_newest_first(self, api: Api) -> None:
        for number in range(3):
            _, substitute = await api.w.shown("jobs@example.com")
            accepted = await api.w.accept(substitute, claim=None, body=b"%d" % number)
            (job,) = await api.w.extract(accepted.message_id, claim="poster")
            state = "delivered" if number else "waiting"
            result = post_verbs.PostResult(job, state, NOW + 5, 200, f"answer {number}", NOW, 0.1)
            await api.w.store.write(lambda tx, result=result: post_verbs.finish_post(tx, result, NOW))  # type: ignore[misc]
        token = await api.token("viewer", "shop")
        path = f"/v1/webhooks/{api.w.site().webhooks[0].id}/deliveries"
        _, first = await api.call("GET", f"{path}?limit=2", token=token)
        assert [item["answer"] for item in first["items"]] == ["answer 2", "answer 1"]
        _, second = await api.call("GET", f"{path}?limit=2&cursor={first['next']}", token=token)
        (item,) = second["items"]
        assert (item["state"], item["status"], item["next_at"]) == ("waiting", 200, "2027-01-15T08:00:05.000Z")
        assert item["event"].startswith("evt_")
        assert second["next"] is None
        status, problem = await api.call("GET", f"{path}?cursor=x", token=token)
        assert (status, fields(problem)) == (400, ["cursor"])
