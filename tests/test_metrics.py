"""Figures and their text; and that dashboard and alert rules name nothing that is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import yaml

from relay.core.metrics import Family, Histogram, counter, each, gauge, histogram, text
from relay.loopwatch import REMEMBERED, LoopWatch
from tests.exposition import ROOT, documented, parse
from tests.store_fixtures import TRACK
from tests.webapi_fixtures import serving

MONITORING = ROOT / "docs" / "monitoring"
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
        watch.note(0.5, 1000.0)
        watch.note(0.001, 1001.0)
        assert [watch.largest, watch.largest] == [0.5, 0.5]
        watch.note(0.002, 1000.0 + REMEMBERED)
        assert watch.largest == 0.5
        watch.note(0.001, 1000.0 + 2 * REMEMBERED)
        assert watch.largest == 0.002
        assert sum(watch.lag.counts) == 4

    def test_a_long_one_is_told(self) -> None:
        with structlog.testing.capture_logs() as logs:
            LoopWatch().note(1.5, 0.0)
            LoopWatch().note(0.9, 0.0)
        assert [(entry["event"], entry["seconds"]) for entry in logs] == [("event loop held up", 1.5)]


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


RULES: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]


def used(expression: str) -> Iterable[tuple[str, set[str]]]:
    """The metrics of an expression, with the labels that are asked of each."""
    grouped = {name.strip() for names in _GROUPS.findall(expression) for name in names.split(",")} - {"le", ""}
    for name, matchers in _NAMES.findall(expression):
        yield name, grouped | set(re.findall(r"(\w+)\s*[=!]", matchers))


def expressions() -> Iterable[tuple[str, str, str]]:
    """Where each stands, the expression, and the text in which its labels are used."""
    for rule in RULES:
        said = " ".join(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        yield rule["alert"], rule["expr"], said
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
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

    @pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
    def test_every_alert_says_how_grave_it_is_what_is_the_matter_and_what_to_do(self, rule: dict[str, Any]) -> None:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert f"| `{rule['alert']}` |" in (MONITORING.parent / "operations.md").read_text()
