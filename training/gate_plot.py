"""The checks of a gate that were measured, each as a figure with its interval against what it is held to. Pure.

Points, shares and nats are different things, so each kind has a scale of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.intervals import Estimate, Panel, interval_panel
from labeling.templatetags.formatting import decimals, percent, signed
from training.gate import OUTCOMES, tolerated

FAR = 40.0  # points: a change by more tells nothing more, and would leave no room for the others on the scale
BUDGETS = 3  # so many times the budget are drawn of a KL
SHARES = ("finish_rate", "must_refuse", "must_answer")
Check = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Checks on one scale. ``unit``: what it counts, and what its line is."""

    unit: str
    panel: Panel


def read_plot(checks: Sequence[Check]) -> list[Measured]:
    """Of a gate's checks as they are kept; nothing where none of them is a figure, as of a watch."""
    by_name = {check["name"]: check for check in checks}
    found = [draw(by_name) for draw in (_held_out, _win_rate, _kl_first, _shares)]
    return [measured for measured in found if measured]


def _held_out(checks: dict[str, Check]) -> Measured | None:
    if not (check := checks.get("held_out")):
        return None
    panel = interval_panel(
        [_estimate(check, "difference", 100)], level=0, window=(-FAR, FAR), show=_points, tick=_whole_points
    )
    return Measured("difference in points; the line is no difference", panel)


def _win_rate(checks: dict[str, Check]) -> Measured | None:
    if not (check := checks.get("win_rate")):
        return None
    panel = interval_panel(
        [_estimate(check, "length_controlled", 100)], level=50, window=(0, 100), show=_share, tick=_tick(decimals)
    )
    return Measured("percent; the line is 50, neither wins more often", panel)


def _kl_first(checks: dict[str, Check]) -> Measured | None:
    if not (check := checks.get("kl_first")):
        return None
    budget = float(check["figures"]["budget"])
    panel = interval_panel(
        [_estimate(check, "kl_first")],
        level=budget,
        window=(0, BUDGETS * budget),
        show=lambda nats: decimals(nats, 2),
        tick=_tick(decimals),
        holds=(0.0,),
    )
    return Measured(f"nats a response; the line is the budget, {budget:g}", panel)


def _shares(checks: dict[str, Check]) -> Measured | None:
    found = [checks[name] for name in SHARES if name in checks]
    if not found:
        return None
    panel = interval_panel(
        [_estimate(check, "change", 100, mark=-100 * tolerated(check["figures"].get("prompts"))) for check in found],
        level=0,
        window=(-FAR, FAR),
        show=_points,
        tick=_whole_points,
    )
    return Measured("change in points; the line is no change, the dashes are what is tolerated", panel)


def _estimate(check: Check, name: str, scale: float = 1, mark: float | None = None) -> Estimate:
    """What a check left out was not measured, whatever its figures say: of a judge that is not believed, say."""
    figures, title, outcome = check["figures"], check["title"], check["outcome"]
    value, interval = figures.get(name), figures.get(f"{name}_interval")
    if value is None or outcome == "not_measured":
        return Estimate(title, None, outcome="not_measured", said=OUTCOMES["not_measured"])
    ends = (scale * interval[0], scale * interval[1]) if interval else None
    return Estimate(title, scale * value, ends, mark, outcome, OUTCOMES[outcome])


def _points(value: float) -> str:
    return signed(value, 1)


def _whole_points(value: float) -> str:
    return signed(value, 1 if value % 1 else 0)


def _share(value: float) -> str:
    return percent(value / 100, 1)


def _tick(show: Callable[[float, int], str]) -> Callable[[float], str]:
    return lambda value: show(value, 1 if value % 1 else 0)
