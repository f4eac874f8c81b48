"""The plot of a loop: the true win rate against SFT by the number of labels, a line and its intervals for each arm.

An SVG by itself, without fonts or colours that only one background suits: mid tones for the lines and a grey for the
rest stand on white as on black. Names stand at the ends of their lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 220, 44, 52
COLOURS = ("#8a8f98", "#c2653a")
GREY = "#7d828a"
LEAST_GAP = 18  # between two names at the right
STEP = 0.1
APART = 5  # pixels by which the arms' points of one round stand apart

Rows = Sequence[dict[str, Any]]


def write_plot(path: Path, arms: dict[str, Rows], title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg(arms, title), encoding="utf-8")


def svg(arms: dict[str, Rows], title: str) -> str:
    scale = _Scale(arms)
    parts = [*_axes(scale, title)]
    for number, (name, rows) in enumerate(arms.items()):
        parts += _line(scale, rows, COLOURS[number % len(COLOURS)], (number - (len(arms) - 1) / 2) * APART, name)
    parts += _names(scale, arms)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>\n"])


class _Scale:
    """From labels and shares to pixels; the upright one spans what is to be seen, in tenths."""

    def __init__(self, arms: dict[str, Rows]) -> None:
        rows = [row for each in arms.values() for row in each]
        self.most_labels = max((row["labels"] for row in rows), default=1) or 1
        bounds = [bound for row in rows for bound in row["ci"]]
        self.low = int(min([0.5 - STEP, *bounds]) * 10) / 10
        self.high = min(1.0, int(max([0.5 + STEP, *bounds]) * 10 + 0.999) / 10)

    def x(self, labels: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * labels / self.most_labels, 1)

    def y(self, share: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (share - self.low) / (self.high - self.low), 1)

    def ticks(self) -> list[float]:
        return [round(self.low + STEP * step, 1) for step in range(round((self.high - self.low) / STEP) + 1)]


def _axes(scale: _Scale, title: str) -> Iterator[str]:
    yield f'<text x="{LEFT}" y="22" fill="{GREY}" font-size="15">{escape(title)}</text>'
    right = WIDTH - RIGHT
    for tick in scale.ticks():
        y, is_half = scale.y(tick), tick == 0.5
        look = 'stroke-dasharray="4 4"' if is_half else 'stroke-opacity="0.25"'
        yield f'<line x1="{LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="{GREY}" {look}/>'
        yield f'<text x="{LEFT - 10}" y="{y + 4}" fill="{GREY}" text-anchor="end">{tick:.0%}</text>'
    bottom = HEIGHT - BOTTOM
    yield f'<text x="{LEFT}" y="{bottom + 20}" fill="{GREY}" text-anchor="middle">0</text>'
    yield f'<text x="{right}" y="{bottom + 20}" fill="{GREY}" text-anchor="middle">{scale.most_labels}</text>'
    yield f'<text x="{(LEFT + right) / 2}" y="{bottom + 38}" fill="{GREY}" text-anchor="middle">labels</text>'


def _line(scale: _Scale, rows: Rows, colour: str, shift: float, name: str) -> Iterator[str]:
    points = [(scale.x(0), scale.y(0.5))]
    points += [(round(scale.x(row["labels"]) + shift, 1), scale.y(row["true_win_rate"])) for row in rows]
    path = " ".join(f"{x},{y}" for x, y in points)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for row, (x, y) in zip(rows, points[1:], strict=True):
        low, high = (scale.y(bound) for bound in row["ci"])
        said = f"{name}, round {row['round']}: {row['true_win_rate']:.1%} ({row['ci'][0]:.0%} to {row['ci'][1]:.0%})"
        yield f'<g stroke="{colour}"><title>{escape(said)}</title>'
        yield f'<line x1="{x}" y1="{low}" x2="{x}" y2="{high}" stroke-width="1.5"/>'
        yield f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/></g>'


def _names(scale: _Scale, arms: dict[str, Rows]) -> Iterator[str]:
    """At the ends of the lines, moved down where they would lie on each other."""
    ends = [
        (scale.y(rows[-1]["true_win_rate"]), name, COLOURS[number % len(COLOURS)])
        for number, (name, rows) in enumerate(arms.items())
        if rows
    ]
    lowest = 0.0
    for y, name, colour in sorted(ends):
        lowest = max(y + 4, lowest + LEAST_GAP)
        yield f'<text x="{WIDTH - RIGHT + 14}" y="{lowest}" fill="{colour}">{escape(name)}</text>'
    yield f'<text x="{WIDTH - RIGHT + 14}" y="{scale.y(0.5) + 4}" fill="{GREY}">SFT</text>'
