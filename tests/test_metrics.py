"""Figures and their text; and that dashboard and alert rules name nothing that is not there."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from relay.core.metrics import Family, Histogram, counter, each, gauge, histogram, text
from relay.core.reply import (
    INSUFFICIENT_STORAGE,
    INTERNAL_ERROR,
    NO_SUCH_USER,
    STORE_UNAVAILABLE,
    TOO_MANY_RECIPIENTS,
    Reply,
)
from relay.loopwatch import REMEMBERED, LoopWatch
from relay.measures import refusals
from relay.smtp_service import Tally
from relay.store.errors import StoreUnavailable
from tests.exposition import MONITORING, documented, parse, rules, selected
from tests.store_fixtures import TRACK
from tests.webapi_fixtures import serving

_NAMES = re.compile(r"\b((?:relay|process)_\w+)(?:\{([^}]*)\})?")
_GROUPS = re.compile(r"\bby \(([^)]*)\)")


class TestText:
    def test_each_kind_is_read_as_it_was_meant(self) -> None:
        seconds = Histogram((0.1, 1.0))
        for value in (0.05, 0.1, 0.5, 7.0):
            seconds.observe(value)
        found = parse(
            text(
                [
                    counter("relay_a_total", "As.", 3),
                    gauge("relay_b", "Bs.", 0.25),
                    histogram("relay_c_seconds", "Cs.", seconds),
                    each("gauge", "relay_d", "Ds.", "site end", {("shop", "quit"): 1, ("", "timeout"): 2}),
                    each("gauge", "relay_e", "Without any.", "site", {}),
                ]
            )
        )
        assert found["relay_a_total"].value() == 3
        assert found["relay_b"].value() == 0.25
        assert found["relay_c_seconds"].samples == {
            ("relay_c_seconds_bucket", (("le", "0.1"),)): 2,
            ("relay_c_seconds_bucket", (("le", "1"),)): 3,
            ("relay_c_seconds_bucket", (("le", "+Inf"),)): 4,
            ("relay_c_seconds_sum", ()): pytest.approx(7.65),
            ("relay_c_seconds_count", ()): 4,
        }
        assert found["relay_d"].value(site="", end="timeout") == 2
        assert not found["relay_e"].samples

    @pytest.mark.parametrize("value", ['a"b', "a\\", "a\nb", 'a",b="c', "имя", "{}", "\\n"])
    def test_a_label_is_read_as_it_was_whatever_is_in_it(self, value: str) -> None:
        found = parse(text([each("gauge", "relay_a", "As.", "site", {(value,): 1})]))
        assert found["relay_a"].value(site=value) == 1

    def test_a_clock_that_was_set_back_makes_no_sum_smaller(self) -> None:
        seconds = Histogram()
        seconds.observe(-5.0)
        assert seconds.sum == 0.0
        assert seconds.counts[0] == 1

    def test_as_many_values_as_labels(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            text([Family("relay_a", "gauge", "As.", ("site", "end"), ((("shop",), 1),))])

    @pytest.mark.parametrize(
        "wrong",
        [
            "relay_a 1\n",
            "# HELP relay_a As.\n# TYPE relay_a gauge\nrelay_b 1\n",
            "# HELP relay_a As.\n# TYPE relay_a gauge\nrelay_a 1\nrelay_a 1\n",
            "# HELP relay_a As.\n# TYPE relay_a counter\nrelay_a 1\n",
            '# HELP relay_a As.\n# TYPE relay_a gauge\nrelay_a{b="c"d"} 1\n',
            '# HELP a A.\n# TYPE a histogram\na_bucket{le="+Inf"} 1\na_sum 1\na_count 9\n',
            "# HELP relay_a As.\n# TYPE relay_a gauge\nrelay_a 1",
        ],
    )
    def test_the_reader_of_these_tests_is_strict(self, wrong: str) -> None:
        with pytest.raises(AssertionError):
            parse(wrong)


class TestLoop:
    def test_the_largest_lag_is_remembered_for_a_minute_however_often_it_is_read(self) -> None:
        watch = LoopWatch()
        watch.note(0.5, 1000.0, 0.0)
        watch.note(0.001, 1001.0, 0.0)
        assert [watch.largest, watch.largest] == [0.5, 0.5]
        watch.note(0.002, 1000.0 + REMEMBERED, 0.0)
        assert watch.largest == 0.5
        watch.note(0.001, 1000.0 + 2 * REMEMBERED, 0.0)
        assert watch.largest == 0.002
        assert sum(watch.lag.counts) == 4

    def test_a_long_one_is_told(self) -> None:
        with structlog.testing.capture_logs() as logs:
            LoopWatch().note(1.5, 0.0, 0.2)
            LoopWatch().note(0.9, 0.0, 0.9)
        assert [(entry["event"], entry["seconds"], entry["busy"]) for entry in logs] == [
            ("event loop held up", 1.5, 0.2)
        ]

    async def test_what_the_loop_itself_does_is_told_from_what_it_waits_for(self) -> None:
        watch = LoopWatch()
        watching = asyncio.create_task(watch.run())
        await asyncio.sleep(0)
        time.sleep(0.3)  # as if others had the processor
        while not sum(watch.lag.counts):
            await asyncio.sleep(0.01)
        assert watch.lag.sum > 0.2
        assert watch.busy.sum < 0.2
        began = time.thread_time()
        while time.thread_time() - began < 0.3:
            pass
        while sum(watch.lag.counts) < 2:
            await asyncio.sleep(0.01)
        assert watch.busy.sum > 0.3
        watching.cancel()


class TestFigures:
    async def test_page_views_are_counted_by_what_came_of_them(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as api:
            await api.bind()
            await api.bind(addresses=[])
            await api.bind(headers={"Origin": "https://elsewhere.example"})
            await api.bind("nowhere", headers={"Origin": "https://www.shop.example"})
            await api.call("POST", "/v1/bind", {"site": 5}, headers={"Content-Type": "text/plain"})
            _, octets = await api.request("GET", "/metrics")
            views = parse(octets.decode())["relay_binds_total"]
            for site, outcome, count in (
                ("shop", "shown", 1),
                ("shop", "plain", 1),
                ("shop", "refused", 1),
                ("", "invalid", 2),
            ):
                assert views.value(site=site, outcome=outcome) == count
            assert sum(views.samples.values()) == 5

    async def test_a_pool_by_addresses_those_held_and_the_times_it_was_exhausted(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as api:
            shown = set()
            for _ in range(40):
                _, answer = await api.bind()
                shown.update(answer["addresses"].values())
                _, octets = await api.request("GET", "/metrics")
                found = parse(octets.decode())
                (key,) = [key for key in found["relay_pool_addresses"].samples if ("site", "shop") in key[1]]
                labels = dict(key[1])
                pooled = sum(address.startswith("info") and address.endswith(TRACK) for address in shown)
                assert found["relay_pool_addresses_held"].value(**labels) == pooled
                if exhausted := found["relay_pool_exhausted_total"].value(**labels):
                    break
            assert exhausted == 1
            assert found["relay_pool_addresses"].value(**labels) == pooled

    @pytest.mark.parametrize(("reason", "looking"), [(None, False), (None, True), ("malformed", False)])
    async def test_damage_of_the_database(self, tmp_path: Path, reason: str | None, looking: bool) -> None:
        async with serving(tmp_path) as api:
            api.w.store.damage.reason, api.w.store.damage.looking = reason, looking
            _, octets = await api.request("GET", "/metrics")
            trouble = parse(octets.decode())["relay_database_trouble"]
            values = trouble.value(kind="damaged"), trouble.value(kind="looking")
            assert values == (reason is not None, looking)

    async def test_a_database_that_cannot_be_read_hides_only_what_is_in_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serving(tmp_path) as api:
            await api.bind()
            _, octets = await api.request("GET", "/metrics")
            everything = parse(octets.decode())
            monkeypatch.setattr("relay.store.figures.depths", unreadable)
            response, octets = await api.request("GET", "/metrics")
            assert response.status == 200
            rest = parse(octets.decode())
            assert rest["relay_binds_total"].value(site="shop", outcome="shown") == 1
            hidden = r"relay_(messages|deliveries|extractions|posts|pool)_?\w*"
            assert set(rest) == {name for name in everything if not re.fullmatch(hidden, name)}

    async def test_the_watch_of_the_documentation_tells_of_held_and_of_late_mail(self, tmp_path: Path) -> None:
        page = (MONITORING.parent / "operations.md").read_text()
        (program,) = re.findall(r"/metrics \| awk '\n(.*?)'\n```", page, re.DOTALL)

        def watched(metrics: str) -> tuple[int, str]:
            done = subprocess.run(["awk", program], input=metrics, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout

        async with serving(tmp_path) as api:
            _, octets = await api.request("GET", "/metrics")
        well = octets.decode()
        assert watched(well) == (0, "")
        assert watched("") == (1, "visit-relay does not tell its figures: journalctl -u relay\n")
        for figure, value, said in (
            ("relay_messages_held", 2, "holds mail"),
            ('relay_deliveries_oldest_age_seconds{state="queued"}', 3601, "for over an hour"),
            ('relay_deliveries_oldest_age_seconds{state="deferred"}', 3600.5, "for over an hour"),
        ):
            assert f"\n{figure} 0\n" in well
            code, words = watched(well.replace(f"\n{figure} 0\n", f"\n{figure} {value}\n"))
            assert (code, said in words) == (1, True)
        failed = 'relay_deliveries_oldest_age_seconds{state="failed"}'  # told by what is held
        assert watched(well.replace(f"\n{failed} 0\n", f"\n{failed} 9999\n")) == (0, "")


async def unreadable(*_: object) -> None:
    raise StoreUnavailable("database disk image is malformed")


def used(expression: str) -> Iterable[tuple[str, set[str]]]:
    """The metrics of an expression, with the labels that are asked of each."""
    grouped = {name.strip() for names in _GROUPS.findall(expression) for name in names.split(",")} - {"le", ""}
    for name, matchers in _NAMES.findall(expression):
        yield name, grouped | set(re.findall(r"(\w+)\s*[=!]", matchers))


def expressions() -> Iterable[tuple[str, str, str]]:
    """Where each stands, the expression, and the text in which its labels are used."""
    for rule in rules():
        said = " ".join(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        yield rule["alert"], rule["expr"], said
    dashboard: Any = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], " ".join(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))


def unknown(expression: str, said: str) -> list[str]:
    """What an expression, or what is said about it, names that there is not."""
    known = documented()
    wrong = []
    for name, labels in used(expression):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        histogram = base != name and known.get(base, ("",))[0] == "histogram"
        kind, having = known.get(base if histogram else name, ("", set()))
        if not kind or (kind == "histogram") != histogram:
            wrong.append(name)
        wrong += sorted((labels | set(said.split())) - having)
    return wrong


class TestMonitoring:
    @pytest.mark.parametrize(("where", "expression", "said"), list(expressions()))
    def test_everything_that_is_named_exists(self, where: str, expression: str, said: str) -> None:
        assert list(used(expression)), where
        assert unknown(expression, said) == []

    @pytest.mark.parametrize(
        ("where", "expression"),
        [(where, expression) for where, expression, _ in expressions() if "process_" in expression],
    )
    def test_what_every_process_tells_of_itself_is_asked_of_ours_alone(self, where: str, expression: str) -> None:
        """Other jobs have figures of the same names."""
        assert expression.endswith(" and on(instance, job) relay_build_info"), where

    def test_every_metric_is_on_the_dashboard(self) -> None:
        shown = (MONITORING / "dashboard.json").read_text()
        left_out = {name for name in documented() if not re.search(rf"\b{name}(_bucket)?\b", shown)}
        assert not left_out

    @pytest.mark.parametrize(
        ("expression", "said"),
        [
            ("relay_nothing > 1", ""),
            ('relay_deliveries{site="x"}', ""),
            ("sum by (site) (relay_deliveries)", ""),
            ("rate(relay_accept_seconds[5m])", ""),
            ("relay_deliveries_bucket", ""),
            ("relay_deliveries", "webhook"),
        ],
    )
    def test_what_does_not_exist_is_noticed(self, expression: str, said: str) -> None:
        assert unknown(expression, said)

    @pytest.mark.parametrize("rule", rules(), ids=[rule["alert"] for rule in rules()])
    def test_every_alert_says_how_grave_it_is_what_is_the_matter_and_what_to_do(self, rule: dict[str, Any]) -> None:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert f"| `{rule['alert']}` |" in (MONITORING.parent / "operations.md").read_text()


class TestMailPutOff:
    """VisitRelayMailPutOff sees what we put off for our own trouble, and nothing that a client brought upon itself."""

    (rule,) = (rule for rule in rules() if rule["alert"] == "VisitRelayMailPutOff")

    @pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "BDAT", "idle"])
    @pytest.mark.parametrize("answer", [STORE_UNAVAILABLE, INTERNAL_ERROR, INSUFFICIENT_STORAGE])
    def test_our_own_trouble_is_seen_wherever_it_is_told(self, command: str, answer: Reply) -> None:
        if (command, answer) != ("RCPT", INSUFFICIENT_STORAGE):  # never given there
            assert self.seen(command, answer) == 1

    @pytest.mark.parametrize(("command", "answer"), [("RCPT", TOO_MANY_RECIPIENTS), ("RCPT", NO_SUCH_USER)])
    def test_a_client_s_own_is_not(self, command: str, answer: Reply) -> None:
        assert self.seen(command, answer) == 0

    @pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "BDAT"])
    def test_the_first_one_is_an_increase(self, command: str) -> None:
        assert parse(text([refusals(Tally())]))["relay_smtp_refusals_total"].value(command=command, code="451") == 0

    def seen(self, command: str, answer: Reply) -> float:
        tally = Tally()
        tally.refused(command, answer)
        return selected(self.rule["expr"], parse(text([refusals(tally)])))
