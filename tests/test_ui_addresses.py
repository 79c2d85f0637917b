"""The page of addresses: what it shows of each, the advice for a pool, and what may be done by whom."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from relay.config import Forward
from relay.core.address import parse
from relay.core.sizing import advise
from relay.store import addresses, changes
from relay.store.sites import grow_pool
from tests.corpora import corpus
from tests.store_fixtures import LEASE, OTHER, SHOP, TRACK, live, pool_target, site
from tests.ui_fixtures import Answer, Pages, pages
from webapi import advisor
from webapi.advisor import KEPT, attended
from webapi.ui import addresses_plot as plot

HERE = "/ui/addresses"
SALES = {"site": "shop", "target": "sales@example.com"}
INFO1, CARD = f"info1@{TRACK}", f"card@{TRACK}"
#: A pool at somebody else's domain, which does not grow by itself.
PROVIDER = site("firm", pool_target("office@firm.example", "office1@firm.example", domain=None))


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Pages]:
    async with pages(tmp_path) as found:
        yield found


def at(**query: str) -> str:
    return f"{HERE}?{urlencode(query)}"


class Shape(HTMLParser):
    """The elements of a page with the names of their attributes, and what it says, cell by cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.said = ""
        self.values: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.values += [value for _, value in attrs if value]
        if tag not in ("a", "code", "em", "span", "strong"):
            self.said += " "

    def handle_data(self, data: str) -> None:
        self.said += data


def words(answer: Answer) -> str:
    """What the page says, spaces made alike."""
    return " ".join(Shape(answer.text).said.split())


def row(answer: Answer, address: str) -> str:
    """What the list says of an address."""
    found = next(part for part in answer.text.split("<tr>") if f">{address}</code>" in part)
    return " ".join(Shape(found.partition("</tr>")[0]).said.split())


async def visited(p: Pages, count: int, name: str = "shop", every: float = 60.0) -> None:
    """So many visits of one page view each, the last one a while ago."""
    site_id, now = p.world.site(name).id, p.world.now
    times = [now - 7200 - every * index for index in range(count)]
    insert = "INSERT INTO visits (site_id, number, own, started_at, last_seen_at) VALUES (?, ?, 0, ?, ?)"
    await p.world.store.write(
        lambda tx: [tx.sql(insert, (site_id, f"9{index}", began, began)) for index, began in enumerate(times)]
    )


async def pool(p: Pages, address: str = "sales@example.com", name: str = "shop") -> int:
    return p.world.target(address, name).pool_size


class TestList:
    async def test_an_address_says_who_holds_it_and_what_came_last(self, p: Pages) -> None:
        visit, address = await p.world.shown("sales@example.com")
        accepted = await p.api.letter(address)
        answer = await p.get(at(site="shop"))
        said = row(answer, address)
        assert "leased" in said
        assert "15 Jan 2027, 08:15:00" in said
        assert "exact" in said
        assert f'<a href="/ui/history?site=shop&amp;visit={visit}">{visit}</a>' in answer.text
        assert f'<a href="/ui/messages/{accepted.message_id}">' in answer.text
        assert "never used" in row(answer, f"info2@{TRACK}")
        assert "card" in row(answer, CARD)
        p.world.pass_time(LEASE + 1)
        said = row(await p.get(at(site="shop")), address)
        assert said.startswith(f"{address} free last {visit} 15 Jan 2027, 08:15:00")

    async def test_it_is_filtered_by_state_and_by_a_part_of_the_address(self, p: Pages) -> None:
        await p.world.shown("sales@example.com")
        for query, shown in (
            ({}, [INFO1, f"info2@{TRACK}", CARD]),
            ({"state": "leased"}, [INFO1]),
            ({"state": "unused"}, [f"info2@{TRACK}"]),
            ({"state": "static"}, [CARD]),
            ({"state": "retired"}, []),
            ({"state": "nonsense"}, [INFO1, f"info2@{TRACK}", CARD]),
            ({"q": "info"}, [INFO1, f"info2@{TRACK}"]),
            ({"q": "info", "state": "leased"}, [INFO1]),
            ({"q": "\0"}, [INFO1, f"info2@{TRACK}", CARD]),
        ):
            answer = await p.get(at(**SALES, **query))
            assert re.findall(r'<td class="address"><code>([^<]+)', answer.text) == shown, query

    async def test_a_large_pool_has_pages(self, p: Pages) -> None:
        shop, target = p.world.site().id, p.world.target().id
        await p.world.store.redefine(lambda tx: grow_pool(tx, shop, target, "sales", TRACK, 2500, p.world.now))
        answer = await p.get(at(**SALES))
        assert answer.text.count('<td class="address">') == 100
        assert "1–100 of 2 503" in words(answer)
        assert "Page 1 of 26" in words(answer)
        answer = await p.get(at(**SALES, page="26"))
        assert answer.text.count('<td class="address">') == 3
        for page in ("27", "999999999"):
            assert "Page 26 of 26" in words(await p.get(at(**SALES, page=page)))
        for page in ("0", "-1", "x", "1e9", "99999999999999999999"):
            assert "Page 1 of 26" in words(await p.get(at(**SALES, page=page)))
        assert len(answer.text) < 60_000

    async def test_a_letter_too_old_to_be_looked_for_is_said_to_be_so(
        self, p: Pages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "none in the latest" not in (await p.get(at(site="shop"))).text

        await p.api.letter(INFO1)
        await p.api.letter(CARD, number=2)
        monkeypatch.setattr(addresses, "LATEST", 1)
        assert "none in the latest 1 letters" in row(await p.get(at(site="shop")), INFO1)

    async def test_the_letters_of_many_are_walked_once_for_a_minute(
        self, p: Pages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        walks, walk = [], addresses.latest

        async def latest(*asked: Any) -> addresses.Latest:
            walks.append(asked)
            return await walk(*asked)

        monkeypatch.setattr(addresses, "latest", latest)
        assert "exact" not in row(await p.get(at(site="shop")), CARD)
        assert len(walks) == 1  # for the targets, the list and whether there are more
        await p.api.letter(CARD)
        assert "exact" in row(await p.get(at(site="shop")), CARD)  # few are never old
        monkeypatch.setattr(advisor, "FEW", 0)
        for passed, times in ((0, 1), (1, 1), (KEPT, 2)):
            p.world.pass_time(passed)
            assert "exact" in row(await p.get(at(site="shop")), CARD)
            assert len(walks) == 2 + times, passed


class TestTargets:
    async def test_each_target_is_summarised(self, p: Pages) -> None:
        await p.world.bind()
        await p.api.letter(INFO1)
        said = words(await p.get(at(site="shop")))
        assert "sales@example.com 1 of 2 addresses leased last letter just now" in said
        assert "help@example.com plus addresses: never run out no letter lately" in said
        assert "jobs@example.com unique addresses: never run out" in said

    async def test_plus_and_unique_targets_have_no_list(self, p: Pages) -> None:
        await p.world.bind()
        said = words(await p.get(at(site="shop", target="help@example.com")))
        assert f"help+visit@{TRACK}" in said
        assert "one by one" not in said
        said = words(await p.get(at(site="shop", target="jobs@example.com")))
        assert "Unique addresses made in 24 hours 1" in said

    async def test_a_site_without_targets_and_nobodys_sites_say_what_to_do(self, tmp_path: Path) -> None:
        async with pages(tmp_path, site("bare")) as p:
            assert "No targets yet" in words(await p.get(HERE))
            await p.world.declare()
            assert "No sites yet" in words(await p.get(HERE))

    async def test_before_there_is_a_target_the_visits_tell_how_large_a_pool_is_needed(self, tmp_path: Path) -> None:
        async with pages(tmp_path, site("bare")) as p:
            assert "Nobody came in the last 3 days" in words(await p.get(HERE))
            p.world.pass_time(KEPT)
            await visited(p, 400, "bare")
            said = words(await p.get(HERE))
            assert "By the 400 visits of the last 3 days we recommend a pool of 15 addresses." in said


class TestAdvice:
    async def test_a_pool_that_is_too_small_says_by_how_much_and_grows_by_one_click(self, p: Pages) -> None:
        await visited(p, 400, every=30.0)
        answer = await p.get(at(site="shop"))
        said = words(answer)
        assert "Too few: 2 of the 30 addresses that we recommend" in said
        assert "With 2 addresses, 93 % of the visits of the last 3 days would have found none free." in said
        assert "They would have been given one of their own" in said
        assert "Add 28 addresses at track.example.com" in said
        done = await p.post(f"{HERE}/grow", SALES | {"count": "28"})
        assert (done.status, done.location) == (303, f"{at(**SALES)}&done=pool_grown")
        assert await pool(p) == 30
        said = words(await p.get(done.location))
        assert "The pool has grown." in said
        assert "Enough: 30 addresses, we recommend 30 Everybody of the last 3 days would have found one free." in said
        assert "little room" in said
        (change,) = await changes.page(p.world.store.reader, None, None, 10)
        assert (change.change.name, change.change.subject) == ("admin-all", "shop, sales@example.com")

    async def test_few_visits_are_said_to_be_few(self, p: Pages) -> None:
        await visited(p, 30)
        said = words(await p.get(at(site="shop")))
        assert "of visits as in the busiest hour would have found none free" in said
        assert "with fewer it would mirror chance" in said
        assert "by Erlang B" in said

    async def test_nobody_came(self, p: Pages) -> None:
        answer = await p.get(at(site="shop"))
        assert "Nobody came in the last 3 days" in words(answer)
        assert "<svg" not in answer.text

    async def test_room_for_more_is_said(self, p: Pages) -> None:
        await visited(p, 400)
        shop, target = p.world.site().id, p.world.target().id
        await p.world.store.redefine(lambda tx: grow_pool(tx, shop, target, "sales", TRACK, 40, p.world.now))
        said = words(await p.get(at(site="shop")))
        assert "Enough: 42 addresses, we recommend 15" in said
        assert re.search(r"They do for about [3-5]\.\d times as many visits", said)

    async def test_the_references_rule_is_stated(self, p: Pages) -> None:
        await visited(p, 400)
        said = words(await p.get(at(site="shop")))
        assert "from the attendance of the last 3 days and links an address to a visit for 15 minutes" in said

    async def test_the_plots_say_the_same_in_words_and_tables(self, p: Pages) -> None:
        await visited(p, 400)
        answer = await p.get(at(site="shop"))
        assert answer.text.count('<svg viewBox="0 0 480 230" role="img"') == 2
        assert answer.text.count("<title id=") == answer.text.count("<desc id=") == 2
        said = words(answer)
        assert re.search(r"to 0 % with the recommended 15\. The pool has 2 now: 8\d %", said)
        assert "15 0 % 0 recommended, nobody goes without" in said

    async def test_tracking_that_is_off_is_said(self, p: Pages) -> None:
        await p.api.call("PATCH", "/v1/sites/shop", {"tracking": False}, token=await p.api.token())
        assert "Track e-mails is off" in words(await p.get(at(site="shop")))

    async def test_a_pool_that_was_exhausted_says_how_often(self, p: Pages) -> None:
        for _ in range(5):
            await p.world.shown("sales@example.com")
        said = words(await p.get(at(site="shop")))
        assert "Found none free, since 12 Jan 3 page views" in said
        assert "Unique addresses made in 24 hours 3" in said


class TestProvider:
    @pytest.fixture
    async def p(self, tmp_path: Path) -> AsyncIterator[Pages]:
        forward = Forward.model_validate({"next_hop": "smtp://127.0.0.1:25"})  # else the firm's MX would have its mail
        async with pages(tmp_path, PROVIDER, SHOP, forward=forward) as found:
            await visited(found, 400, "firm")
            yield found

    async def test_names_to_create_are_proposed(self, p: Pages) -> None:
        answer = await p.get(at(site="firm"))
        found = re.search(r'<textarea id="names"[^>]*>([^<]*)<', answer.text)
        assert found is not None
        names = found[1].split("\n")
        assert names == [f"office{number}@firm.example" for number in range(2, 16)]
        assert 'data-copy="names"' in answer.text
        assert "They would have seen office@firm.example itself, and their letters have no visit." in words(answer)
        assert f'action="{HERE}/grow"' not in answer.text

    async def test_what_was_created_is_added_and_works(self, p: Pages) -> None:
        form = {"site": "firm", "target": "office@firm.example"}
        done = await p.post(f"{HERE}/add", form | {"addresses": "a@firm.example\r\n b@firm.example; ,c@firm.example\n"})
        assert (done.status, "done=pool_added" in done.location) == (303, True)
        assert {"a@firm.example", "b@firm.example", "c@firm.example"} <= set(await live(p.world))
        assert await pool(p, "office@firm.example", "firm") == 4

    async def test_a_mistake_is_said_beside_the_list_which_is_kept(self, p: Pages) -> None:
        form = {"site": "firm", "target": "office@firm.example"}
        for text, status, said in (
            ("a@firm.example nonsense", 400, "nonsense"),
            ("office@firm.example", 400, "its mail would come back here"),
            ("jobs@example.com", 409, "where a target"),
            (INFO1, 409, "another substitute already"),
            ("", 400, "write at least one address"),
        ):
            answer = await p.post(f"{HERE}/add", form | {"addresses": text})
            assert (answer.status, "Nothing was changed" in words(answer)) == (status, True)
            assert said in words(answer)
            assert f">{text}</textarea>" in answer.text
        assert await pool(p, "office@firm.example", "firm") == 1

    async def test_a_pool_of_others_does_not_grow_by_itself(self, p: Pages) -> None:
        form = {"site": "firm", "target": "office@firm.example"}
        assert (await p.post(f"{HERE}/grow", form | {"count": "3"})).status == 409


class TestChanges:
    @pytest.mark.parametrize("count", ["", "0", "-1", "10001", "x", "1.5", "9" * 30, "٣"])
    async def test_a_senseless_number_changes_nothing(self, p: Pages, count: str) -> None:
        answer = await p.post(f"{HERE}/grow", SALES | {"count": count})
        assert (answer.status, "Nothing was changed" in words(answer)) == (400, True)
        assert await pool(p) == 2

    async def test_an_added_address_is_retired_and_used_again(self, p: Pages) -> None:
        await p.post(f"{HERE}/grow", SALES | {"count": "1"})
        extra = f"sales1@{TRACK}"
        answer = await p.get(at(**SALES))
        assert f"Retire {extra}" in row(answer, extra)
        assert "in relay.toml" in row(answer, INFO1)
        place = {"state": "unused", "q": "sales", "page": "1"}
        done = await p.post(f"{HERE}/retire", SALES | {"address": extra} | place)
        assert (done.status, done.location) == (303, f"{at(**SALES)}&done=address_retired&{urlencode(place)}")
        said = row(await p.get(at(**SALES)), extra)
        assert "retired" in said
        assert "Use again" in said
        assert (await p.post(f"{HERE}/add", SALES | {"addresses": extra})).status == 303
        assert "never used" in row(await p.get(at(**SALES)), extra)

    async def test_what_relay_toml_names_is_not_retired_here(self, p: Pages) -> None:
        answer = await p.post(f"{HERE}/retire", SALES | {"address": INFO1})
        assert (answer.status, "relay.toml" in words(answer)) == (409, True)
        assert INFO1 in await live(p.world)

    @pytest.mark.parametrize("address", ["nobody@x.example", "x", "", f"help@{TRACK}", "other1@track.other.example"])
    async def test_only_an_address_of_the_site_is_retired(self, p: Pages, address: str) -> None:
        assert (await p.post(f"{HERE}/retire", SALES | {"address": address})).status == 404

    async def test_a_form_of_another_page_changes_nothing(self, p: Pages) -> None:
        for action, form in (
            ("grow", {"count": "1"}),
            ("add", {"addresses": f"x@{TRACK}"}),
            ("retire", {"address": CARD}),
        ):
            assert (await p.post(f"{HERE}/{action}", SALES | form, csrf="wrong")).status == 403
        assert await pool(p) == 2


class TestRights:
    async def test_a_viewer_sees_everything_and_changes_nothing(self, p: Pages) -> None:
        await visited(p, 400)
        viewer = await p.user("viewer", "shop")
        answer = await viewer.get(at(site="shop"))
        assert "Too few" in words(answer)
        assert f"{HERE}/" not in answer.text.replace(f"{HERE}?", "")
        for action in ("grow", "add", "retire"):
            form = SALES | {"count": "1", "addresses": f"x@{TRACK}", "address": INFO1}
            assert (await viewer.post(f"{HERE}/{action}", form)).status == 403
        assert await pool(p) == 2

    async def test_a_manager_adds_but_does_not_retire(self, p: Pages) -> None:
        manager = await p.user("manager", "shop")
        assert (await manager.post(f"{HERE}/grow", SALES | {"count": "1"})).status == 303
        answer = await manager.get(at(**SALES))
        assert f'action="{HERE}/retire"' not in answer.text
        assert (await manager.post(f"{HERE}/retire", SALES | {"address": f"sales1@{TRACK}"})).status == 403

    async def test_another_site_is_not_there(self, p: Pages) -> None:
        mine = await p.user("admin", "other")
        answer = await mine.get(HERE)
        assert "track.other.example" in answer.text
        assert "shop" not in words(answer)
        assert (await mine.get(at(site="shop"))).status == 404
        assert (await mine.get(at(site="nobody"))).status == 404
        assert (await mine.get(at(site="other", target="help@example.com"))).status == 404
        for action, form in (
            ("grow", {"count": "1"}),
            ("add", {"addresses": "x@y.example"}),
            ("retire", {"address": CARD}),
        ):
            assert (await mine.post(f"{HERE}/{action}", SALES | form)).status == 404
        assert await pool(p) == 2
        nobody = await p.user("admin", "gone")
        assert "No sites yet" in words(await nobody.get(HERE))


def hostile() -> list[str]:
    strings: list[str] = json.loads((corpus("strings-blns") / "blns.json").read_text("utf-8"))
    for name, file in (("xss-h5sc", "vectors.txt"), ("csv-injection", "csv-payload.txt")):
        strings += (corpus(name) / file).read_text("utf-8").splitlines()
    kept = {" ".join(text.replace("\0", "").split()) for text in strings}
    return sorted(text for text in kept if text)


class TestHostile:
    """Nothing that somebody can fill becomes markup: the page has the same elements, and says what was filled in."""

    async def test_labels(self, p: Pages) -> None:
        samples = hostile()
        shop, target = p.world.site().id, p.world.target().id
        await p.world.store.redefine(
            lambda tx: grow_pool(tx, shop, target, "x", TRACK, len(samples) + 97 - len(samples) % 100, p.world.now)
        )
        relabel = "UPDATE routes SET label = ? WHERE local = ?"
        await p.world.store.write(
            lambda tx: [tx.sql(relabel, ("plain", f"x{index + 1}")) for index in range(len(samples))]
        )
        last = len(samples) // 100 + 1
        plain = [Shape((await p.get(at(**SALES, page=str(page)))).text) for page in range(1, last + 1)]
        await p.world.store.write(
            lambda tx: [tx.sql(relabel, (text, f"x{index + 1}")) for index, text in enumerate(samples)]
        )
        filled = [Shape((await p.get(at(**SALES, page=str(page)))).text) for page in range(1, last + 1)]
        assert [shape.elements for shape in filled] == [shape.elements for shape in plain]
        said = " ".join(" ".join(shape.said for shape in filled).split())
        assert [text for text in samples if text not in said] == []

    async def test_queries_and_forms(self, p: Pages) -> None:
        plain = Shape((await p.get(at(**SALES, q="plain"))).text).elements
        refused = Shape((await p.post(f"{HERE}/add", SALES | {"addresses": "plain"})).text).elements
        for text in hostile()[::23]:
            found = Shape((await p.get(f"{HERE}?site=shop&target={quote('sales@example.com')}&q={quote(text)}")).text)
            assert found.elements == plain, text
            assert text[:320].strip() in found.values, text
            answer = await p.post(f"{HERE}/add", SALES | {"addresses": text})
            assert answer.status == 400
            found = Shape(answer.text)
            assert {tag for tag, _ in found.elements} <= {tag for tag, _ in refused} | {"li", "ul"}, text
            assert not [name for _, names in found.elements for name in names if name.startswith("on")]
            for query in ({"site": text}, {"site": "shop", "target": text}, {"site": "shop", "state": text}):
                answer = await p.get(at(**query))
                assert "<script>" not in answer.text

    async def test_a_quoted_target(self, tmp_path: Path) -> None:
        name = '"<img src=x>\'&"@example.com'
        async with pages(tmp_path, site("shop", pool_target(name, INFO1, domain=None))) as p:
            await visited(p, 400)
            answer = await p.get(at(site="shop"))
            assert answer.status == 200
            assert ("img", ("src",)) not in Shape(answer.text).elements
            assert str(parse(name)) in Shape(answer.text).said
            assert await p.get(at(site="shop", target=str(parse(name)))) != 404


class TestPlots:
    @pytest.mark.parametrize("count", [1, 30, 400, 3000])
    @pytest.mark.parametrize("size", [0, 1, 15, 10_000])
    def test_everything_is_drawn_within(self, count: int, size: int) -> None:
        now = 1_800_000_000.0
        stays = [(now - 50.0 * index, now - 50.0 * index + 600) for index in range(count)]
        found = attended(stays, LEASE, now)
        curve = plot.curve(found.advice, size)
        hours = plot.hours(found, size, found.advice.recommendation.size)
        numbers = [float(text) for text in re.findall(r"[\d.]+", curve.area)]
        assert all(plot.LEFT <= x <= plot.WIDTH - plot.RIGHT for x in numbers[::2])
        assert all(plot.TOP <= y <= plot.HEIGHT - plot.BOTTOM for y in numbers[1::2])
        for mark in (*curve.marks, *hours.marks):
            assert plot.LEFT <= mark.at <= plot.WIDTH - plot.RIGHT
            assert plot.TOP <= mark.y <= plot.HEIGHT - plot.BOTTOM
        for bar in hours.bars:
            assert plot.TOP <= bar.y <= bar.y + bar.height <= plot.HEIGHT - plot.BOTTOM + 0.11
            assert plot.LEFT <= bar.x <= bar.x + hours.width <= plot.WIDTH - plot.RIGHT
        assert len(curve.line) < 4000

    def test_the_table_says_what_the_curve_says(self) -> None:
        advice = advise([(10.0 * index, 10.0 * index) for index in range(1000)], LEASE)
        table = {line.size: line for line in plot.curve(advice, 40).table}
        assert table[40].kinds == ("now",)
        assert table[advice.recommendation.size].kinds == ("wanted", "none")
        for size, line in table.items():
            assert (line.shared, line.visits) == (advice.shared(size), round(advice.shared(size) * 1000))


async def test_two_sites_pools_are_advised_apart(p: Pages) -> None:
    await visited(p, 400)
    assert OTHER.name in (await p.get(at(site="other"))).text
    assert "Nobody came" in words(await p.get(at(site="other")))
    assert "Too few" in words(await p.get(at(site="shop")))
