"""A strict reader of Prometheus' text format 0.0.4, and of the page that documents our metrics.

Strict: what a lenient scraper would forgive (a sample outside its family, a bucket that goes down, a counter without
_total) is an error here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "metrics.md"
MONITORING = ROOT / "docs" / "monitoring"

_NAME = re.compile(r"[a-z][a-z0-9_]*").fullmatch
_SAMPLE = re.compile(r"([a-z][a-z0-9_]*)(?:\{(.+)\})? ([^ ]+)").fullmatch
_LABEL = re.compile(r'([a-z][a-z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|\Z)')
_SELECTOR = re.compile(r"\b([a-z][a-z0-9_]*)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_ROW = re.compile(r"\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\| ([^|]+) \|").fullmatch

Labels = tuple[tuple[str, str], ...]


@dataclass
class Metric:
    name: str
    kind: str
    about: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    @property
    def labels(self) -> set[str]:
        return {name for _, labels in self.samples for name, _ in labels} - {"le"}

    def value(self, **labels: str) -> float:
        """The one sample with these labels; of a histogram its count."""
        name = self.name + ("_count" if self.kind == "histogram" else "")
        return self.samples[name, tuple(sorted(labels.items()))]


def parse(text: str) -> dict[str, Metric]:
    """Every metric by its name; raises AssertionError for what is not right."""
    assert text.endswith("\n")
    found: dict[str, Metric] = {}
    metric: Metric | None = None
    about = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, _, about = line[7:].partition(" ")
            assert _NAME(name), line
            assert name not in found, f"{name} twice"
            assert about.endswith("."), line
            metric = Metric(name, "", about)
        elif line.startswith("# TYPE "):
            assert metric is not None
            name, kind = line[7:].split(" ")
            assert (name, metric.kind) == (metric.name, ""), line
            assert kind in ("counter", "gauge", "histogram"), line
            assert (kind == "counter") == name.endswith("_total"), line
            metric.kind = kind
            found[name] = metric
        else:
            assert metric is not None
            assert metric.kind, line
            _add(metric, line)
    for one in found.values():
        if one.kind == "histogram":
            _judge(one)
    return found


def _add(metric: Metric, line: str) -> None:
    read = _SAMPLE(line)
    assert read, line
    suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
    assert read[1] in [metric.name + suffix for suffix in suffixes], line
    labels = _labels(read[2] or "")
    value = float(read[3])
    assert value >= 0, line
    assert math.isfinite(value), line
    assert (read[1], labels) not in metric.samples, f"twice: {line}"
    metric.samples[read[1], labels] = value


def _labels(text: str) -> Labels:
    labels, at = [], 0
    while at < len(text):
        pair = _LABEL.match(text, at)
        assert pair, text
        labels.append((pair[1], re.sub(r"\\(.)", lambda one: "\n" if one[1] == "n" else one[1], pair[2])))
        at = pair.end()
    assert len({name for name, _ in labels}) == len(labels), text
    return tuple(sorted(labels))


def _judge(metric: Metric) -> None:
    series: dict[Labels, list[tuple[float, float]]] = {}
    for (name, labels), value in metric.samples.items():
        if name.endswith("_bucket"):
            bound = float(dict(labels)["le"])
            series.setdefault(tuple(pair for pair in labels if pair[0] != "le"), []).append((bound, value))
    assert series, f"{metric.name} has no buckets"
    for labels, buckets in series.items():
        assert buckets == sorted(buckets), metric.name
        assert [count for _, count in buckets] == sorted(count for _, count in buckets), metric.name
        assert buckets[-1] == (math.inf, metric.samples[f"{metric.name}_count", labels]), metric.name
        assert (f"{metric.name}_sum", labels) in metric.samples


def documented() -> dict[str, tuple[str, set[str]]]:
    """Kind and labels of each metric that docs/metrics.md describes."""
    found: dict[str, tuple[str, set[str]]] = {}
    for line in DOCUMENT.read_text("utf-8").splitlines():
        if line.startswith("| `"):
            row = _ROW(line)
            assert row, line
            assert row[1] not in found, f"{row[1]} twice"
            found[row[1]] = row[2], set(re.findall(r"`(\w+)`", row[3]))
    assert found
    return found


def rules() -> list[dict[str, Any]]:
    """The alert rules, as the file has them."""
    read: Any = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))
    return [rule for group in read["groups"] for rule in group["rules"]]


def selected(expression: str, found: dict[str, Metric]) -> float:
    """The sum of the samples that an expression's selectors select, those with braces; a sample counts once."""
    keys = {
        key
        for name, matchers in _SELECTOR.findall(expression)
        for key in found[name].samples
        if all(_matches(dict(key[1]).get(label, ""), how, what) for label, how, what in _MATCHER.findall(matchers))
    }
    return sum(metric.samples.get(key, 0.0) for metric in found.values() for key in keys)


def _matches(value: str, how: str, what: str) -> bool:
    same = re.fullmatch(what, value) is not None if how.endswith("~") else value == what
    return same != how.startswith("!")
