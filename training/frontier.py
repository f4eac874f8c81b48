"""What the runs of a sweep have come to: how much each has gained, and how far it went for it. Pure reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.scatter import Scatter, Spot, Track, scatter_chart
from labeling.templatetags.formatting import decimals, percent, signed
from training.models import Job, Sweep, TrainingRun

Interval = tuple[float, float]
OVERALL = {"kl_first": "KL from the first policy", "kl_reference": "KL from the reference"}


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval, where one was computed."""

    value: float
    interval: Interval | None = None

    def scaled(self, factor: float) -> Figure:
        interval = (self.interval[0] * factor, self.interval[1] * factor) if self.interval else None
        return Figure(self.value * factor, interval)


@dataclass(frozen=True)
class Cell:
    """A figure as the table writes it."""

    value: str = "–"
    interval: str = ""


@dataclass(frozen=True)
class Point:
    """One run. Margins of different beta are on different scales, so ``nats`` is the same without beta.

    ``is_best``: no other point has at least its accuracy at no more KL, so nothing is lost by taking none but these.
    """

    run: TrainingRun
    beta: float
    learning_rate: float
    kl: Figure | None = None
    accuracy: Figure | None = None
    margin: Figure | None = None
    is_best: bool = False
    is_picked: bool = False

    @property
    def nats(self) -> Figure | None:
        return self.margin.scaled(1 / self.beta) if self.margin else None

    @property
    def cells(self) -> list[Cell]:
        return [
            _cell(self.kl, lambda value: decimals(value, 2)),
            _cell(self.accuracy, lambda value: percent(value, 1)),
            _cell(self.nats, lambda value: signed(value, 2)),
            _cell(self.margin, lambda value: signed(value, 3)),
        ]

    @property
    def can_be_picked(self) -> bool:
        return self.run.state == Job.State.SUCCEEDED and not self.is_picked


def _cell(figure: Figure | None, show: Callable[[float], str]) -> Cell:
    if figure is None:
        return Cell()
    return Cell(show(figure.value), " to ".join(map(show, figure.interval)) if figure.interval else "")


@dataclass(frozen=True)
class Frontier:
    sweep: Sweep
    points: list[Point]
    kl_name: str
    charts: list[Scatter]

    @property
    def is_active(self) -> bool:
        return any(point.run.is_active for point in self.points)

    @property
    def done(self) -> int:
        return sum(point.run.state == Job.State.SUCCEEDED for point in self.points)

    @property
    def stopped(self) -> int:
        return sum(point.run.state in (Job.State.FAILED, Job.State.CANCELLED) for point in self.points)

    @property
    def is_cancelling(self) -> bool:
        return any(point.run.is_cancelling for point in self.points)

    @property
    def rates(self) -> list[float]:
        return sorted({point.learning_rate for point in self.points})


def read_frontier(sweep: Sweep) -> Frontier:
    runs = list(TrainingRun.objects.filter(sweep=sweep).select_related("checkpoint", "project").order_by("number"))
    measured = [_part(run, "on_policy", "after") for run in runs if run.state == Job.State.SUCCEEDED]
    # What two sweeps have in common is the first policy; where it cannot be measured from, the reference is.
    from_first = bool(measured) and all(figures.get("kl_first") is not None for figures in measured)
    kl = "kl_first" if from_first else "kl_reference"
    points = _with_best([_point(sweep, run, kl) for run in runs])
    return Frontier(sweep, points, OVERALL[kl], _charts(points, OVERALL[kl]))


def _point(sweep: Sweep, run: TrainingRun, kl: str) -> Point:
    held_out, on_policy = _part(run, "held_out"), _part(run, "on_policy", "after")
    after = _part(run, "held_out", "after")
    return Point(
        run=run,
        beta=run.beta,
        learning_rate=float(run.recipe["learning_rate"]),
        kl=_figure(on_policy.get(kl), on_policy.get(f"{kl}_interval")),
        accuracy=_figure(after.get("accuracy"), held_out.get("accuracy_interval")),
        margin=_figure(after.get("margin"), held_out.get("margin_interval")),
        is_picked=sweep.picked_id == run.pk,
    )


def _part(run: TrainingRun, *names: str) -> dict[str, Any]:
    part: Any = run.checkpoint.details if run.checkpoint else {}
    for name in names:
        part = part.get(name)
        if not isinstance(part, dict):
            return {}
    return dict(part)


def _figure(value: float | None, interval: Sequence[float] | None) -> Figure | None:
    return None if value is None else Figure(value, (interval[0], interval[1]) if interval else None)


def _with_best(points: list[Point]) -> list[Point]:
    measured = [(point.kl.value, point.accuracy.value) for point in points if point.kl and point.accuracy]
    return [
        Point(**(vars(point) | {"is_best": not _is_dominated((point.kl.value, point.accuracy.value), measured)}))
        if point.kl and point.accuracy
        else point
        for point in points
    ]


def _is_dominated(one: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """Whether another (KL, accuracy) has at least the accuracy at no more KL, and is not the same."""
    return any(other != one and other[0] <= one[0] and other[1] >= one[1] for other in others)


def _charts(points: Sequence[Point], kl_name: str) -> list[Scatter]:
    x_name = f"{kl_name}, nats a response"
    charts = [
        scatter_chart(
            "Held-out accuracy",
            _tracks(points, "accuracy"),
            x_name=x_name,
            y_label=lambda share: percent(share, 1 if share * 100 % 1 else 0),
            level=(0.5, "reference"),
        ),
        scatter_chart(
            "Reward margin without β, nats", _tracks(points, "nats"), x_name=x_name, y_label=_few_digits,
            level=(0.0, "reference"),
        ),
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def _few_digits(value: float) -> str:
    return decimals(value, 1 if value % 1 else 0)


def _tracks(points: Sequence[Point], name: str) -> list[Track]:
    """One for each learning rate, in the order of beta. A single one needs no name, with nothing to tell it from."""
    rates = sorted({point.learning_rate for point in points})
    return [
        Track(
            f"rate {rate:g}" if len(rates) > 1 else "",
            "main" if rate == rates[0] else "other",
            [
                _spot(point, name)
                for point in points
                if point.learning_rate == rate and point.kl and getattr(point, name)
            ],
        )
        for rate in rates
    ]


def _spot(point: Point, name: str) -> Spot:
    assert point.kl is not None
    figure: Figure = getattr(point, name)
    return Spot(point.kl.value, figure.value, f"β {point.beta:g}", figure.interval, point.kl.interval, point.is_picked)
