"""The two plots of the pool advisor as plain numbers; the template draws them as SVG, with a table beside each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from relay.core.sizing import Advice
from webapi.advisor import Attendance

#: The size of a plot in units of its own, and the space around what is drawn.
WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 42, 14, 34, 30
#: Points of a curve, at most: more than the plot has pixels would be seen by nobody.
POINTS = 200
_HOUR = 3600.0
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A size that stands out, where it is drawn. ``beyond``: it lies farther out than the plot goes."""

    kind: str  # now | wanted
    size: int
    at: float
    y: float
    anchor: str
    beyond: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One size with what it would have meant."""

    size: int
    kinds: tuple[str, ...]  # of now | wanted | none
    shared: float
    visits: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Pool size to share of visits without an address. ``line`` and ``area`` are SVG paths, ``table`` says the same."""

    line: str
    area: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    table: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Hour:
    """A bar: what was the most at once in the hour that begins at ``began``. ``over``: more than the pool has."""

    began: float
    most: int
    x: float
    y: float
    height: float
    over: bool


@dataclass(frozen=True, slots=True)
class Hours:
    bars: tuple[Hour, ...]
    width: float
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    marks: tuple[Mark, ...]  # levels: ``y`` is theirs


def curve(advice: Advice, size: int) -> Curve:
    """The curve of an advice, with the size that the pool has now."""
    wanted = advice.recommendation.size
    end = max(len(advice.shares) - 1, wanted)
    last = max(round(end * 1.1), end + 1)
    if size <= last * 1.5:
        last = max(last, size + 1)

    def x(at: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * at / last, 1)

    step = max(1, last // POINTS)
    points = [(x(n), _up(advice.shared(n), 1.0)) for n in sorted({*range(0, last + 1, step), last, min(size, last)})]
    line = "M" + "L".join(f"{across} {up}" for across, up in points)
    floor = _up(0, 1.0)
    marks = [_mark("wanted", wanted, x(wanted), _up(advice.shared(wanted), 1.0), last)]
    if size:
        marks.append(_mark("now", size, x(min(size, last)), _up(advice.shared(size), 1.0), last))
    return Curve(
        line=line,
        area=f"{line}L{points[-1][0]} {floor}L{points[0][0]} {floor}Z",
        across=tuple(Tick(x(at), f"{at:g}") for at in _round_steps(last)),
        up=tuple(Tick(_up(share, 1.0), f"{share * 100:g} %") for share in (0, 0.25, 0.5, 0.75, 1)),
        marks=tuple(marks),
        table=tuple(_lines(advice, size)),
    )


def hours(attendance: Attendance, size: int, wanted: int) -> Hours:
    """Hour by hour, the most addresses that visits held at once."""
    most = max(attendance.busy, default=0)
    top = max(most, wanted, 1)
    if size <= top * 2:
        top = max(top, size)
    width = (WIDTH - LEFT - RIGHT) / max(1, len(attendance.busy))
    bars = [
        Hour(
            began=attendance.since + index * _HOUR,
            most=held,
            x=round(LEFT + index * width, 2),
            y=_up(held, top),
            height=round(_up(0, top) - _up(held, top), 1),
            over=held > size,
        )
        for index, held in enumerate(attendance.busy)
    ]
    marks = [Mark("wanted", wanted, WIDTH - RIGHT, _up(wanted, top), "end")]
    if size:
        marks.append(Mark("now", size, LEFT, _up(min(size, top), top), "start", beyond=size > top))
    return Hours(
        bars=tuple(bars),
        width=round(width * 0.82, 2),
        across=tuple(_midnights(attendance, width)),
        up=tuple(Tick(_up(at, top), f"{at:g}") for at in _round_steps(top)),
        marks=tuple(marks),
    )


def _up(value: float, top: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top, 1)


def _mark(kind: str, size: int, across: float, up: float, last: int) -> Mark:
    anchor = "start" if across < LEFT + (WIDTH - LEFT - RIGHT) * 0.55 else "end"
    return Mark(kind, size, across, up, anchor, beyond=size > last)


def _round_steps(last: float) -> list[int]:
    """Some five round numbers from 0 to ``last``.

    >>> _round_steps(57), _round_steps(2603), _round_steps(1)
    ([0, 10, 20, 30, 40, 50], [0, 500, 1000, 1500, 2000, 2500], [0, 1])
    """
    steps = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    step = next(step for step in steps if last / step <= 6)
    return list(range(0, int(last) + 1, step))


def _midnights(attendance: Attendance, width: float) -> Iterable[Tick]:
    first = -(-attendance.since // _DAY) * _DAY
    for number in range(3):
        at = first + number * _DAY
        yield Tick(round(LEFT + (at - attendance.since) / _HOUR * width, 1), day(at))


def day(seconds: float) -> str:
    """
    >>> day(1_800_000_000)
    '15 Jan'
    """
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.day} {moment:%b}"


def _lines(advice: Advice, size: int) -> Iterable[Line]:
    """The sizes that say most: those that stand out, and steps from few to enough."""
    wanted = advice.recommendation.size
    enough = len(advice.shares) - 1
    steps = {max(1, round(enough * part)) for part in (0.25, 0.5, 0.65, 0.8, 0.9)}
    for number in sorted({wanted, enough, *steps, *([size] if size else [])} - {0}):
        kinds = [kind for kind, at in (("now", size), ("wanted", wanted), ("none", enough)) if at == number]
        if "none" in kinds and advice.recommendation.method != "replay":
            kinds.remove("none")
        shared = advice.shared(number)
        yield Line(number, tuple(kinds), shared, round(shared * advice.visits))
