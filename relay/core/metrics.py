"""Figures as Prometheus reads them: what is counted into, and the text of its exposition format 0.0.4.

    # HELP relay_example_seconds What it is.
    # TYPE relay_example_seconds histogram
    relay_example_seconds_bucket{le="0.005"} 1          of the observations so many were at most 0.005, and so on
    relay_example_seconds_bucket{le="+Inf"} 2
    relay_example_seconds_sum 3.2
    relay_example_seconds_count 2

Labels are sites, webhooks' numbers, states: few values each, and nothing that a stranger chooses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, TypeVar

#: Upper bounds in seconds as Prometheus' client libraries have them, for what somebody waits for.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: The same for what may take until tomorrow.
LONG_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 3600.0, 21_600.0, 86_400.0, 432_000.0)

Kind = Literal["counter", "gauge", "histogram"]
Labels = TypeVar("Labels", bound=tuple[str, ...])


@dataclass(slots=True)
class Histogram:
    """Observations by upper bound. One thread observes; another may read meanwhile and miss the last one."""

    bounds: tuple[float, ...] = SECONDS
    sum: float = 0.0
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """``value`` below 0, of a clock that was set back, counts as 0."""
        value = max(0.0, value)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def __add__(self, other: Histogram) -> Histogram:
        """The observations of both, which have the same bounds."""
        both = Histogram(self.bounds, self.sum + other.sum)
        both.counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        return both


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. ``labels`` are the names of its labels; a sample is their values, in that order, and its figure."""

    name: str
    kind: Kind
    about: str
    labels: tuple[str, ...]
    samples: tuple[tuple[tuple[str, ...], float | Histogram], ...]

    def lines(self) -> Iterable[str]:
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} {self.kind}"
        for values, figure in self.samples:
            labels = list(zip(self.labels, values, strict=True))
            if isinstance(figure, Histogram):
                yield from _buckets(self.name, labels, figure)
            else:
                yield f"{self.name}{_braced(labels)} {_number(figure)}"


def counter(name: str, about: str, value: float) -> Family:
    return Family(name, "counter", about, (), (((), value),))


def gauge(name: str, about: str, value: float) -> Family:
    return Family(name, "gauge", about, (), (((), value),))


def histogram(name: str, about: str, value: Histogram) -> Family:
    return Family(name, "histogram", about, (), (((), value),))


def each(kind: Kind, name: str, about: str, labels: str, values: Mapping[Labels, float]) -> Family:
    """A family with labels; ``labels`` are their names, separated by spaces."""
    return Family(name, kind, about, tuple(labels.split()), tuple(sorted(values.items())))


def text(families: Iterable[Family]) -> str:
    """All of it."""
    return "".join(f"{line}\n" for family in families for line in family.lines())


def _buckets(name: str, labels: Sequence[tuple[str, str]], figure: Histogram) -> Iterable[str]:
    counts = list(accumulate(figure.counts))
    for bound, count in zip((*figure.bounds, float("inf")), counts, strict=True):
        yield f"{name}_bucket{_braced([*labels, ('le', _number(bound))])} {count}"
    yield f"{name}_sum{_braced(labels)} {_number(figure.sum)}"
    yield f"{name}_count{_braced(labels)} {counts[-1]}"


def _braced(labels: Sequence[tuple[str, str]]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)
