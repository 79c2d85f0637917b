"""The checks over HTTP: one run at a time, bounded in time, results kept, failures first."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import pytest

from relay.core.check import FAIL, NAMES, OK, WARN, Finding, Tell
from tests.webapi_fixtures import Api, serving
from webapi import checks


class Checker:
    """Finds what it is told to, when it is told to. ``asked``: the names of every run."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.tell: Tell = lambda name, findings: None
        self.end = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, names: Collection[str], tell: Tell) -> None:
        self.asked.append(tuple(names))
        self.tell = tell
        await self.end.wait()
        self.end.clear()
        if self.error is not None:
            raise self.error


async def shown(api: Api) -> Any:
    status, answer = await api.call("GET", "/v1/checks", token=await api.token())
    assert status == 200
    return answer


async def started(api: Api, checker: Checker, *names: str) -> None:
    status, answer = await api.call("POST", "/v1/checks", {"checks": list(names) or None}, token=await api.token())
    assert (status, answer["running"]) == (202, True)
    assert await asyncio.wait_for(_asked(checker, names or NAMES), 5)


async def _asked(checker: Checker, names: tuple[str, ...]) -> bool:
    while not checker.asked or checker.asked[-1] != names:
        await asyncio.sleep(0)
    return True


async def ended(api: Api, checker: Checker) -> Any:
    checker.end.set()
    async with asyncio.timeout(5):
        while (answer := await shown(api))["running"]:
            pass
    return answer


def by_name(answer: Any) -> dict[str, Any]:
    return {check["name"]: check for check in answer["checks"]}


async def test_nothing_runs_before_somebody_asks(tmp_path: Path) -> None:
    checker = Checker()
    async with serving(tmp_path, run_checks=checker) as api:
        answer = await shown(api)
        assert (answer["running"], answer["started_at"], checker.asked) == (False, None, [])
        assert [check["name"] for check in answer["checks"]] == list(NAMES)
        assert {check["state"] for check in answer["checks"]} == {"unknown"}


async def test_results_come_one_by_one_failures_first_and_stay(tmp_path: Path) -> None:
    checker = Checker()
    async with serving(tmp_path, run_checks=checker) as api:
        await started(api, checker)
        checker.tell("disk", [Finding(OK, "disk", "room")])
        checker.tell(
            "dns", [Finding(OK, "MX", "here"), Finding(FAIL, "SPF", "none", "add one"), Finding(WARN, "PTR", "")]
        )
        answer = await shown(api)
        assert (answer["running"], answer["started_at"]) == (True, "2027-01-15T08:00:00.000Z")
        dns, *_, last = answer["checks"]
        assert (dns["name"], last["name"]) == ("dns", "disk")
        assert (dns["state"], dns["running"], dns["checked_at"]) == ("fail", False, "2027-01-15T08:00:00.000Z")
        assert [finding["what"] for finding in dns["findings"]] == ["SPF", "PTR", "MX"]
        assert dns["findings"][0]["hint"] == "add one"
        assert by_name(answer)["tls"]["running"]
        for name in NAMES:
            checker.tell(name, [Finding(OK, name, "well")])
        answer = await ended(api, checker)
        assert {check["state"] for check in answer["checks"]} == {"ok"}


async def test_one_run_at_a_time(tmp_path: Path) -> None:
    checker = Checker()
    async with serving(tmp_path, run_checks=checker) as api:
        await started(api, checker)
        status, problem = await api.call("POST", "/v1/checks", {}, token=await api.token())
        assert (status, "running just now" in problem["detail"]) == (409, True)
        await ended(api, checker)
        await started(api, checker, "dns")
        assert checker.asked == [NAMES, ("dns",)]


async def test_one_check_alone_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    checker = Checker()
    async with serving(tmp_path, run_checks=checker) as api:
        await started(api, checker)
        for name in NAMES:
            checker.tell(name, [Finding(WARN, name, "hm", "look")])
        await ended(api, checker)
        api.w.pass_time(60)
        await started(api, checker, "disk", "tls")
        assert by_name(await shown(api))["disk"]["state"] == "warn"  # as it was, until it is known better
        checker.tell("disk", [Finding(OK, "disk", "room")])
        checker.tell("tls", [Finding(OK, "tls", "good")])
        found = by_name(await ended(api, checker))
        assert (found["disk"]["state"], found["disk"]["checked_at"]) == ("ok", "2027-01-15T08:01:00.000Z")
        assert (found["dns"]["state"], found["dns"]["checked_at"]) == ("warn", "2027-01-15T08:00:00.000Z")


async def test_a_run_ends_in_time_and_says_what_it_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "PATIENCE", 0.05)
    checker = Checker()
    async with serving(tmp_path, run_checks=checker) as api:
        await started(api, checker, "disk", "dns")
        async with asyncio.timeout(5):
            while (answer := await shown(api))["running"]:
                pass
        assert by_name(answer)["dns"]["findings"] == [
            {"level": "fail", "what": "DNS", "text": "did not end in 0.05 seconds"}
            | {"hint": "try again; look at DNS and network"}
        ]
        assert by_name(answer)["tls"]["state"] == "unknown"


async def test_a_run_that_breaks_is_a_finding(tmp_path: Path) -> None:
    checker = Checker()
    checker.error = RuntimeError("unforeseen")
    async with serving(tmp_path, run_checks=checker) as api:
        await started(api, checker, "disk")
        found = by_name(await ended(api, checker))
        assert (found["disk"]["state"], found["disk"]["findings"][0]["text"]) == ("fail", "could not be checked")


async def test_a_server_that_stops_ends_the_run(tmp_path: Path) -> None:
    checker = Checker()
    async with serving(tmp_path, run_checks=checker) as api:
        await started(api, checker)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "checks"]


@pytest.mark.parametrize("body", [{"checks": []}, {"checks": ["nonsense"]}, {"check": "dns"}, []])
async def test_nonsense_is_refused(tmp_path: Path, body: Any) -> None:
    async with serving(tmp_path) as api:
        assert (await api.call("POST", "/v1/checks", body, token=await api.token()))[0] == 400


def test_the_names_of_the_api_are_those_of_the_checks() -> None:
    assert get_args(checks.Name) == NAMES
