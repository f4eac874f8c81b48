"""The policies that are in force, one generation after the other, and the curves over them.

Every figure is as it was measured when the checkpoint was made or compared; nothing here is computed anew, and what was
not measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.charts import Chart, Series, line_chart
from labeling.models import Project
from labeling.templatetags.formatting import decimals, percent
from training import services
from training.models import Checkpoint, Gate, LoopRule, Promotion


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, figures: Any, name: str, interval: str = "") -> Figure | None:
        """``name`` of an engine's figures; ``None`` where it was not measured, or they are of a version without it."""
        value = figures.get(name) if isinstance(figures, dict) else None
        if not isinstance(value, int | float):
            return None
        low, high = figures.get(interval or f"{name}_interval") or (None, None)
        return cls(value, low, high)


@dataclass(frozen=True)
class Generation:
    """A policy in force. ``won_votes``: of the votes at its gate, those it won from the one before at equal length."""

    number: int
    checkpoint: Checkpoint
    won_pairs: Figure | None
    won_votes: Figure | None
    kl_first: Figure | None
    mean_tokens: Figure | None


@dataclass(frozen=True)
class Generations:
    rows: list[Generation]
    charts: list[Chart]


def read_generations(project: Project) -> Generations:
    """The generations, the first policy being 0, and their curves; no curve before there are two of them."""
    policies = services.policies_behind(project)
    checkpoints = Checkpoint.objects.select_related("parent").in_bulk(set(policies))
    gates = _gates(project)
    rows = [_generation(number, checkpoints[policy], gates.get(policy)) for number, policy in enumerate(policies)]
    if rows:
        rows[0] = _first(rows)
    budget = LoopRule.objects.filter(project=project).values_list("kl_first_budget", flat=True).first()
    return Generations(rows, _charts(rows, budget) if len(rows) > 1 else [])


def _gates(project: Project) -> dict[int, Gate]:
    """The gate through which a policy came, by the policy."""
    through = Promotion.objects.filter(project=project, gate__isnull=False).select_related("gate").order_by("pk")
    return {promotion.checkpoint_id: promotion.gate for promotion in through if promotion.gate}


def _generation(number: int, checkpoint: Checkpoint, gate: Gate | None) -> Generation:
    """As its run measured it, on the held-out pairs and prompts of that time, which are others in another generation:
    pairs are judged and prompts imported meanwhile. Its gate's figures stand in where there are none."""
    held_out, wrote = _part(checkpoint.details, "held_out"), _part(checkpoint.details, "on_policy", "after")
    at_gate = _part(gate.report, "on_policy", "candidate") if gate else {}
    return Generation(
        number=number,
        checkpoint=checkpoint,
        won_pairs=Figure.read(
            _part(held_out, "after") | {"interval": held_out.get("accuracy_interval")}, "accuracy", "interval"
        ),
        won_votes=Figure.read(_part(gate.votes, "length_controlled"), "value", "interval") if gate else None,
        kl_first=Figure.read(wrote, "kl_first") or Figure.read(at_gate, "kl_first"),
        mean_tokens=Figure.read(wrote, "mean_tokens") or Figure.read(at_gate, "mean_tokens"),
    )


def _first(rows: Sequence[Generation]) -> Generation:
    """The first policy is no distance from itself; its length was measured by those that were trained from it."""
    first = rows[0]
    trained_from_it = (row.checkpoint for row in rows if row.checkpoint.parent_id == first.checkpoint.pk)
    lengths = (Figure.read(_part(one.details, "on_policy", "before"), "mean_tokens") for one in trained_from_it)
    length = first.mean_tokens or next(filter(None, lengths), None)
    return Generation(0, first.checkpoint, None, None, Figure(0.0), length)


def _part(figures: Any, *names: str) -> dict[str, Any]:
    for name in names:
        figures = figures.get(name) if isinstance(figures, dict) else None
    return figures if isinstance(figures, dict) else {}


# Curves


def _charts(rows: Sequence[Generation], budget: float | None) -> list[Chart]:
    won = [
        _series("reward", "main", rows, lambda row: row.won_pairs, 100),
        _series("people", "other", rows, lambda row: row.won_votes, 100),
    ]
    kl = [_series("policy", "main", rows, lambda row: row.kl_first)]
    tokens = [_series("policy", "main", rows, lambda row: row.mean_tokens)]
    first_length = rows[0].mean_tokens
    drawn = [
        _chart("Held-out win rate, %", won, ("chance", 50.0), rows, lambda y: percent(y / 100, 1)),
        _chart("KL from the first policy, nats a response", kl, ("budget", budget), rows, _places(2)),
        _chart(
            "Mean length, tokens",
            tokens,
            ("first", first_length.value if first_length else None),
            rows,
            _places(1),
        ),
    ]
    return [chart for chart in drawn if chart]


def _places(places: int) -> Callable[[float], str]:
    return lambda value: decimals(value, places)


def _series(
    label: str, role: str, rows: Sequence[Generation], figure: Callable[[Generation], Figure | None], scale: float = 1
) -> Series:
    found = [(float(row.number), one) for row in rows if (one := figure(row)) is not None]
    return Series(
        label,
        role,
        [(x, scale * one.value) for x, one in found],
        [(x, scale * one.low, scale * one.high) for x, one in found if one.low is not None and one.high is not None],
    )


def _chart(
    title: str,
    series: Sequence[Series],
    level: tuple[str, float | None],
    rows: Sequence[Generation],
    y_label: Callable[[float], str],
) -> Chart | None:
    """``level``: what the curve is held against, as a muted line right across; left out where it is not known.

    No curve where nothing is known of any policy but the first.
    """
    name, height = level
    drawn = [one for one in series if one.points]
    if not any(x for one in drawn for x, _ in one.points):
        return None
    last = float(rows[-1].number)
    if height is not None:
        drawn.append(Series(name, "muted", [(0.0, height), (last, height)]))
    return line_chart(title, drawn, x_max=last, x_name="generation", y_label=y_label)
