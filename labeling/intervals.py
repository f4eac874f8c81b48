"""Figures with their intervals, a row each on one scale, as numbers for inline SVGs. Pure.

Places are percent of the width: a row is drawn as wide as its page lets it be, and the words beside it keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labeling.charts import Tick, nice_ticks

INSET = 3.0  # percent of the width that is left free at either end, for points and arrows that stand there
Span = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A figure. ``value``: ``None`` where it was not measured. ``mark``: a second bound, of this row alone.

    ``outcome``: what it comes to, for its looks, and ``said``: the same in words.
    """

    name: str
    value: float | None
    interval: Span | None = None
    mark: float | None = None
    outcome: str = ""
    said: str = ""


@dataclass(frozen=True)
class Row:
    """An estimate in its place. ``below`` and ``above``: whether it goes on beyond that end of the scale.

    ``place`` is ``None`` where nothing was measured; ``low`` and ``high`` are where there is no interval.
    """

    name: str
    outcome: str
    said: str
    value: str = ""
    interval: str = ""
    place: float | None = None
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    below: bool = False
    above: bool = False
    is_off: bool = False  # the figure itself lies beyond an end, and is drawn there


@dataclass(frozen=True)
class Panel:
    """Rows on one scale. ``level``: the place of the line that they are held against. No tick: nothing was measured."""

    rows: list[Row]
    level: float | None = None
    ticks: Sequence[Tick] = ()


@dataclass(frozen=True)
class Scale:
    """From a value to its place; what lies beyond an end is put there."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(INSET + (100 - 2 * INSET) * share, 2)


def interval_panel(
    estimates: Sequence[Estimate],
    *,
    level: float,
    window: Span,
    show: Callable[[float], str],
    tick: Callable[[float], str] = "{:g}".format,
    holds: Sequence[float] = (),
) -> Panel:
    """Put the estimates on one scale, which has room for the level, for ``holds`` and for everything in ``window``.

    What lies outside the window stretches the scale no farther: its row says at which end it goes on. ``show`` writes a
    figure, ``tick`` one at the axis. Infinite and undefined figures were not measured.
    """
    found = [estimate for estimate in estimates if _is_measured(estimate)]
    if not found:
        return Panel([_row(estimate, None, show) for estimate in estimates])
    low, high = window
    values = [end for estimate in found for end in _ends(estimate)]
    inside = [level, *holds, *(min(max(value, low), high) for value in values)]
    steps = nice_ticks(min(inside), max(inside))
    scale = Scale(steps[0], steps[-1])
    return Panel(
        rows=[_row(estimate, scale, show) for estimate in estimates],
        level=scale(level),
        ticks=[Tick(scale(step), tick(step)) for step in steps],
    )


def _is_measured(estimate: Estimate) -> bool:
    return estimate.value is not None and math.isfinite(estimate.value)


def _interval(estimate: Estimate) -> Span | None:
    return estimate.interval if estimate.interval and all(map(math.isfinite, estimate.interval)) else None


def _ends(estimate: Estimate) -> list[float]:
    marks = [estimate.mark] if estimate.mark is not None else []
    return [estimate.value or 0.0, *(_interval(estimate) or ()), *marks]


def _row(estimate: Estimate, scale: Scale | None, show: Callable[[float], str]) -> Row:
    value, interval = estimate.value, _interval(estimate)
    if scale is None or value is None or not _is_measured(estimate):
        return Row(estimate.name, estimate.outcome, estimate.said)
    low, high = interval or (value, value)
    return Row(
        name=estimate.name,
        outcome=estimate.outcome,
        said=estimate.said,
        value=show(value),
        interval=" to ".join(map(show, interval)) if interval else "",
        place=scale(value),
        low=scale(low) if interval else None,
        high=scale(high) if interval else None,
        mark=scale(estimate.mark) if estimate.mark is not None else None,
        below=min(low, value) < scale.low,
        above=max(high, value) > scale.high,
        is_off=not scale.low <= value <= scale.high,
    )
