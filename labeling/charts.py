"""Charts as numbers for an inline SVG: scaled points or bars, ticks, labels at the line's end. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 88, 12, 26
MIN_LABEL_GAP = 14
BAR_RIGHT, BAR_GAP, MOST_LABELS = 8, 0.25, 8


@dataclass(frozen=True)
class Series:
    """One line. ``role`` picks its colour: ``main``, ``other`` or ``muted``. ``whiskers``: intervals of its points."""

    label: str
    role: str
    points: Sequence[tuple[float, float]]  # (x, y)
    whiskers: Sequence[tuple[float, float, float]] = ()  # (x, low, high)


@dataclass(frozen=True)
class Band:
    """What lies between two lines, such as an interval: the colour of ``role``, washed out."""

    role: str
    points: Sequence[tuple[float, float, float]]  # (x, low, high)


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A point with its value for the pointer and for screen readers."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Whisker:
    """The interval around one point, from ``top`` to ``bottom``."""

    x: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Line:
    label: str
    role: str
    path: str
    dots: list[Dot]
    label_x: float
    label_y: float
    whiskers: list[Whisker] = field(default_factory=list)


@dataclass(frozen=True)
class Area:
    role: str
    path: str


@dataclass(frozen=True)
class Chart:
    title: str
    summary: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    zero_y: float | None
    areas: Sequence[Area] = ()

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Bar:
    """One bar with its value for the pointer and for screen readers."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class BarChart:
    title: str
    summary: str
    bars: list[Bar]
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - BAR_RIGHT
    bottom: int = HEIGHT - BOTTOM


def bar_chart(title: str, bars: Sequence[tuple[str, float]], *, summary: str = "") -> BarChart | None:
    """One bar for each (label, value) with values from 0 on; ``None`` where all of them are 0."""
    highest = max((value for _, value in bars), default=0)
    if highest <= 0:
        return None
    ticks = nice_ticks(0, highest, whole=True)
    room = (WIDTH - LEFT - BAR_RIGHT) / len(bars)
    scale = (HEIGHT - TOP - BOTTOM) / ticks[-1]
    drawn = [
        Bar(
            x=round(LEFT + room * place + room * BAR_GAP / 2, 1),
            y=round(HEIGHT - BOTTOM - value * scale, 1),
            width=round(room * (1 - BAR_GAP), 1),
            height=round(value * scale, 1),
            title=f"{label}: {value:g}",
        )
        for place, (label, value) in enumerate(bars)
    ]
    every = math.ceil(len(bars) / MOST_LABELS)
    named = [place for place in range(len(bars)) if (len(bars) - 1 - place) % every == 0]
    return BarChart(
        title=title,
        summary=summary or title,
        bars=drawn,
        x_ticks=[Tick(round(drawn[place].x + drawn[place].width / 2, 1), bars[place][0]) for place in named],
        y_ticks=[Tick(round(HEIGHT - BOTTOM - y * scale, 1), f"{y:.6g}") for y in ticks],
    )


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_max: float,
    bands: Sequence[Band] = (),
    x_name: str = "step",
    x_label: Callable[[float], str] = "{:g}".format,
    y_label: Callable[[float], str] = "{:.4g}".format,
    y_tick: Callable[[float], str] | None = None,
    summary: str = "",
) -> Chart | None:
    """Scale the series into the chart's box, with ``bands`` behind them; ``None`` without a finite point.

    ``x_label`` and ``y_label`` write a value of x and of y, ``y_tick`` one at the axis;
    ``summary`` is said before each line's last value.
    """
    finite = [_finite(one) for one in series]
    if not any(one.points for one in finite):
        return None
    values = [y for one in finite for _, y in one.points]
    values += [end for one in finite for _, *ends in one.whiskers for end in ends]
    values += [edge for band in bands for _, *both in band.points for edge in both]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def x_of(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x / x_max if x_max else 0), 1)

    def y_of(y: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low), 1)

    def area_of(band: Band) -> Area:
        edge = [(x, high) for x, _, high in band.points] + [(x, low) for x, low, _ in reversed(band.points)]
        return Area(band.role, "M" + "L".join(f"{x_of(x)} {y_of(y)}" for x, y in edge) + "Z")

    lines = []
    for one in finite:
        if not one.points:
            continue
        within = _within(one, y_label)
        dots = [
            Dot(x_of(x), y_of(y), f"{one.label}, {x_name} {x_label(x)}: {y_label(y)}{within.get(x, '')}")
            for x, y in one.points
        ]
        path = "M" + "L".join(f"{dot.x} {dot.y}" for dot in dots)
        whiskers = _whiskers(one, x_of, y_of)
        lines.append(Line(one.label, one.role, path, dots, dots[-1].x + 8, dots[-1].y + 4, whiskers))
    last = "; ".join(f"{one.label} {y_label(one.points[-1][1])}" for one in finite if one.points)
    end = x_label(max(one.points[-1][0] for one in finite if one.points))
    return Chart(
        title=title,
        summary=f"{summary or f'{title} at {x_name} {end}'}: {last}",
        lines=_spread(lines),
        x_ticks=[Tick(x_of(x), x_label(x)) for x in nice_ticks(0, x_max, whole=True) if x <= x_max],
        y_ticks=[Tick(y_of(y), y_tick(y) if y_tick else f"{y:.6g}".replace("-", "\u2212")) for y in ticks],
        zero_y=y_of(0) if low < 0 < high else None,
        areas=[area_of(band) for band in bands if band.points],
    )


def _finite(series: Series) -> Series:
    """Without the points, and the intervals, that cannot be drawn."""
    points = [point for point in series.points if math.isfinite(point[1])]
    whiskers = [whisker for whisker in series.whiskers if all(map(math.isfinite, whisker))]
    return replace(series, points=points, whiskers=whiskers)


def _whiskers(series: Series, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> list[Whisker]:
    return [Whisker(x_of(x), y_of(high), y_of(low)) for x, low, high in series.whiskers]


def _within(series: Series, y_label: Callable[[float], str]) -> dict[float, str]:
    """What is said of the interval around a point, by the point's x."""
    return {x: f" ({y_label(low)} to {y_label(high)})" for x, low, high in series.whiskers}


def nice_ticks(low: float, high: float, *, count: int = 4, whole: bool = False) -> list[float]:
    """Round values that enclose ``low`` to ``high`` in steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    raw = max((high - low) / count, 1e-12 * max(1.0, abs(low), abs(high)))  # closer values have one label
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step), math.ceil(high / step)
    if last == first:
        last += 1
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _spread(lines: list[Line]) -> list[Line]:
    """Move end labels apart so that none covers another."""
    spread: list[Line] = []
    for line in sorted(lines, key=lambda line: line.label_y):
        y = max(line.label_y, spread[-1].label_y + MIN_LABEL_GAP) if spread else line.label_y
        spread.append(replace(line, label_y=y))
    return spread
