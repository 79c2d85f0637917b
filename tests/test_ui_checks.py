"""Checks: nothing runs by itself but for the first look; failures first with what to do; for who sees all sites."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from relay.core.check import FAIL, NAMES, OK, WARN, Finding, Tell
from tests.test_ui_queue import Tags, hostile
from tests.ui_fixtures import Pages, pages

FAILED = Finding(FAIL, "next hop mail.example:25", "connect: Connection refused", "see that it runs")


class Checker:
    """Tells everything at once, or when ``go`` is set. ``asked``: the names of every run."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.found: dict[str, list[Finding]] = {name: [Finding(OK, name, "it is well")] for name in NAMES}
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, names: Collection[str], tell: Tell) -> None:
        self.asked.append(tuple(names))
        await self.go.wait()
        for name in names:
            tell(name, self.found[name])


@pytest.fixture
def checker() -> Checker:
    return Checker()


@pytest.fixture
async def p(tmp_path: Path, checker: Checker) -> AsyncIterator[Pages]:
    async with pages(tmp_path, run_checks=checker) as found:
        yield found


async def looked(p: Pages) -> str:
    """The page once nothing runs any more."""
    async with asyncio.timeout(5):
        while "hx-get" in (text := (await p.get("/ui/checks")).text):
            pass
    return text


async def test_the_first_look_runs_everything_and_later_ones_nothing(p: Pages, checker: Checker) -> None:
    assert "All is well." in await looked(p)
    await looked(p)
    assert checker.asked == [NAMES]


async def test_what_failed_comes_first_with_its_remedy(p: Pages, checker: Checker) -> None:
    checker.found["next_hops"] = [Finding(OK, "other", "250"), FAILED]
    checker.found["clock"] = [Finding(WARN, "clock", "nothing keeps it right", "run an NTP client")]
    text = await looked(p)
    assert "<strong>1 check failed</strong>, 1 with a warning" in text
    assert text.index(FAILED.text) < text.index("nothing keeps it right") < text.index("it is well")
    assert f"What to do:</span> {FAILED.hint}" in text
    assert text.index(FAILED.text) < text.index("1 is well")


async def test_while_it_runs_the_page_says_so_and_looks_again(p: Pages, checker: Checker) -> None:
    checker.go.clear()
    text = (await p.get("/ui/checks")).text
    assert 'hx-get="/ui/checks/progress"' in text
    assert f"{len(NAMES)} of {len(NAMES)} still to come" in text
    assert text.count("disabled") == len(NAMES) + 1
    part = await p.get("/ui/checks/progress", **{"HX-Request": "true"})
    assert (part.status, part.text.lstrip().startswith('<div id="checks"')) == (200, True)
    assert "<html" not in part.text
    answer = await p.get("/ui/checks/progress")  # a browser that went there by itself
    assert (answer.status, answer.location) == (303, "/ui/checks")
    assert (await p.post("/ui/checks")).location == "/ui/checks"  # which changes nothing
    checker.go.set()
    await looked(p)
    assert checker.asked == [NAMES]


async def test_one_is_tested_alone(p: Pages, checker: Checker) -> None:
    checker.found["next_hops"] = [FAILED]
    assert FAILED.text in await looked(p)
    checker.found["next_hops"] = [Finding(OK, "next hop", "250 ok")]
    answer = await p.post("/ui/checks", {"check": "next_hops"})
    assert (answer.status, answer.location) == (303, "/ui/checks")
    assert "All is well." in await looked(p)
    assert checker.asked == [NAMES, ("next_hops",)]
    assert (await p.post("/ui/checks", {"check": "nonsense"})).status == 400


async def test_nothing_to_test_is_said(p: Pages, checker: Checker) -> None:
    checker.found["webhooks"] = []
    assert "nothing to test" in await looked(p)


async def test_only_who_sees_all_sites_may(p: Pages, checker: Checker) -> None:
    for user in (await p.user("viewer"), await p.user("manager"), await p.user("admin", "shop")):
        for path in ("/ui/checks", "/ui/checks/progress"):
            assert (await user.get(path)).status == 403
        assert (await user.post("/ui/checks")).status == 403
    assert checker.asked == []


async def test_hostile_findings_are_text(p: Pages, checker: Checker) -> None:
    """What servers answer and what configuration names is shown as it is."""
    plain = [Finding(FAIL, "plain", "plain", "plain"), Finding(OK, "plain", "plain")]
    checker.found = dict.fromkeys(NAMES, plain)
    expected = Tags(await looked(p)).elements
    texts = hostile()
    for start in range(0, len(texts), 100):
        text = " ".join(texts[start : start + 100])
        checker.found = {name: [Finding(FAIL, text, text, text), Finding(OK, text, text)] for name in NAMES}
        await p.post("/ui/checks")
        assert Tags(await looked(p)).elements == expected
