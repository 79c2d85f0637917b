"""The alert rules in Prometheus' own words: each fires on what it is for, and not on what is just short of that."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.exposition import MONITORING, ROOT, rules
from tests.missing import missing

#: Where tests/debian.sh puts it.
UNPACKED = ROOT / "build" / "promtool" / "promtool"
EXPRESSIONS: dict[str, str] = {rule["alert"]: rule["expr"] for rule in rules()}
_NAMES = re.compile(r"\b(?:relay|process)_\w+")

#: Series, with values of half an hour, a minute each (promtool's notation: a value, what is added, how often).
Series = dict[str, str]


def steady(**values: float) -> Series:
    return {name: f"{value}x30" for name, value in values.items()}


def labelled(name: str, value: float | str, **labels: str) -> Series:
    words = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return {f"{name}{{{words}}}": f"{value}x30"}


def growing(name: str, step: float, **labels: str) -> Series:
    return labelled(name, f"0+{step}", **labels)


def commits(fast: float, slow: float) -> Series:
    """So many a minute in half a second, and in one."""
    name = "relay_store_commit_seconds_bucket"
    bounds = (("0.5", fast), ("1", fast + slow), ("+Inf", fast + slow))
    return {series: values for bound, count in bounds for series, values in growing(name, count, le=bound).items()}


def descriptors(open_: float, of: str) -> Series:
    """Of the process ``ours``, while visit-relay is ``of``."""
    ours = {"instance": "ours", "job": "relay"}
    return (
        labelled("process_open_fds", open_, **ours)
        | labelled("process_max_fds", 100, **ours)
        | labelled("relay_build_info", 1, instance=of, job="relay")
    )


TRIED, REFUSED, AGE = "relay_forward_attempts_total", "relay_smtp_refusals_total", "relay_deliveries_oldest_age_seconds"
DAMAGE, POOL, HOOK = "relay_database_trouble", "relay_pool_exhausted_total", {"site": "shop", "webhook": "1"}
#: For each rule: what fires it, and what does not.
CASES: dict[str, tuple[list[Series], list[Series]]] = {
    "VisitRelayDown": ([steady(relay_messages_held=0)], [steady(relay_build_info=1)]),
    "VisitRelayMailHeld": ([steady(relay_messages_held=1)], [steady(relay_messages_held=0)]),
    "VisitRelayMailWaits": (
        [labelled(AGE, 901, state="queued"), labelled(AGE, 901, state="deferred")],
        [labelled(AGE, 900, state="queued") | labelled(AGE, 9999, state="failed")],
    ),
    "VisitRelayForwardingFails": (
        [growing(TRIED, 1, outcome="delivered") | growing(TRIED, 2, outcome="temporary")],
        [growing(TRIED, 2, outcome="delivered") | growing(TRIED, 1, outcome="temporary")],
    ),
    "VisitRelayMailPutOff": (
        [growing(REFUSED, 0.1, command="RCPT", code="451"), growing(REFUSED, 0.1, command="MAIL", code="452")],
        [growing(REFUSED, 9, command="RCPT", code="452") | growing(REFUSED, 9, command="RCPT", code="550")],
    ),
    "VisitRelayConnectionsRunOut": (
        [steady(relay_smtp_connections=801, relay_smtp_connections_max=1000)],
        [steady(relay_smtp_connections=800, relay_smtp_connections_max=1000)],
    ),
    "VisitRelayDatabaseDamaged": ([labelled(DAMAGE, 1, kind="damaged")], [labelled(DAMAGE, 1, kind="looking")]),
    "VisitRelayDatabaseDoubtful": (
        [labelled(DAMAGE, 1, kind="looking")],
        [labelled(DAMAGE, 1, kind="damaged"), {f'{DAMAGE}{{kind="looking"}}': "0x26 1x3"}],
    ),
    "VisitRelayStoreFails": (
        [{"relay_store_failures_total": "0x26 1x3"}],
        [{"relay_store_failures_total": "0x10 1x19"}],
    ),
    "VisitRelayCommitsSlow": ([commits(98, 2)], [commits(100, 0)]),
    "VisitRelayDiskNearlyFull": (
        [steady(relay_disk_free_bytes=499, relay_disk_floor_bytes=100)],
        [steady(relay_disk_free_bytes=500, relay_disk_floor_bytes=100)],
    ),
    "VisitRelayWebhookDisabled": (
        [labelled("relay_webhook_enabled", 0, **HOOK)],
        [labelled("relay_webhook_enabled", 1, **HOOK)],
    ),
    "VisitRelayWebhookFails": (
        [labelled("relay_webhook_consecutive_failures", 10, **HOOK)],
        [labelled("relay_webhook_consecutive_failures", 9, **HOOK)],
    ),
    "VisitRelayPostsLate": (
        [labelled("relay_posts_oldest_age_seconds", 3601, **HOOK)],
        [labelled("relay_posts_oldest_age_seconds", 3600, **HOOK)],
    ),
    "VisitRelayReadingLate": (
        [steady(relay_extractions_oldest_age_seconds=301)],
        [steady(relay_extractions_oldest_age_seconds=300)],
    ),
    "VisitRelayPoolExhausted": (
        [growing(POOL, 0.4, site="shop", target="1")],
        [growing(POOL, 0.3, site="shop", target="1")],
    ),
    "VisitRelayEventLoopLate": (
        [steady(relay_event_loop_lag_max_seconds=1.1)],
        [steady(relay_event_loop_lag_max_seconds=1)],
    ),
    "VisitRelayFewDescriptors": ([descriptors(81, "ours")], [descriptors(80, "ours"), descriptors(81, "another")]),
}


def test_every_rule_has_its_cases() -> None:
    assert list(CASES) == list(EXPRESSIONS)


def test_prometheus_takes_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(MONITORING / "alerts.yml"))


def test_each_rule_fires_on_what_it_is_for_and_on_nothing_else(tmp_path: Path) -> None:
    judged(
        tmp_path,
        [
            Case(alert, series, fires)
            for alert, both in CASES.items()
            for fires, all_series in zip((True, False), both, strict=True)
            for series in all_series
        ],
    )


@pytest.mark.parametrize(("held", "fires"), [(0, True), (1, False)])
def test_a_rule_that_does_otherwise_is_noticed(tmp_path: Path, held: int, fires: bool) -> None:
    with pytest.raises(AssertionError, match="VisitRelayMailHeld"):
        judged(tmp_path, [Case("VisitRelayMailHeld", steady(relay_messages_held=held), fires)])


@dataclass(frozen=True)
class Case:
    """Whether an alert fires after half an hour of these values."""

    alert: str
    series: Series
    fires: bool

    @property
    def metrics(self) -> set[str]:
        """Those that it has, and those that its rule asks for."""
        return set(_NAMES.findall(" ".join((EXPRESSIONS[self.alert], *self.series))))

    @property
    def test(self) -> dict[str, Any]:
        firing = f'count by (alertname) (ALERTS{{alertname="{self.alert}",alertstate="firing"}})'
        sample = {"labels": "{}", "value": int(self.fires)}
        return {"expr": f"count({firing}) or vector(0)", "eval_time": "30m", "exp_samples": [sample]}


def judged(directory: Path, cases: list[Case]) -> None:
    """Raises AssertionError. Cases without a metric in common share a database: making one takes longest of all."""
    shared: list[tuple[set[str], list[Case]]] = []
    for case in cases:
        metrics, its = next((one for one in shared if one[0].isdisjoint(case.metrics)), (set(), []))
        if not its:
            shared.append((metrics, its))
        metrics |= case.metrics
        its.append(case)
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": its.series[name]} for its in group for name in its.series],
            "promql_expr_test": [its.test for its in group],
        }
        for _, group in shared
    ]
    file = directory / "cases.yml"
    whole = {"rule_files": [str(MONITORING / "alerts.yml")], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(whole))
    promtool("test", "rules", str(file))


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool") or (str(UNPACKED) if UNPACKED.exists() else None)
    if program is None:
        missing("NOT TESTED: the alert rules: no promtool (as root on Debian: make debian)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
