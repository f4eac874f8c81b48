"""A chart of points that have names, as numbers for an inline SVG. Pure.

Points of one series are joined in their order. A name stands beside its point, wherever it covers nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from labeling.charts import LEFT, Tick, nice_ticks

WIDTH, HEIGHT = 640, 300
RIGHT, TOP, BOTTOM = 96, 16, 46
LETTER, LINE_HEIGHT = 7, 15  # about as wide and high as a letter is drawn
CLEAR = 9  # from a point to its name


@dataclass(frozen=True)
class Spot:
    """One point. ``across`` and ``along``: what its y and its x may be as well."""

    x: float
    y: float
    name: str
    across: tuple[float, float] | None = None
    along: tuple[float, float] | None = None
    is_ringed: bool = False


@dataclass(frozen=True)
class Track:
    """Points that are joined. ``role`` picks its colour: ``main``, ``other`` or ``muted``."""

    label: str
    role: str
    spots: Sequence[Spot]


@dataclass(frozen=True)
class Name:
    x: float
    y: float
    anchor: str  # start or end
    text: str


@dataclass(frozen=True)
class Whisker:
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Drawn:
    """A point with its value for the pointer and for screen readers."""

    x: float
    y: float
    title: str
    name: Name
    whiskers: list[Whisker]
    is_ringed: bool


@dataclass(frozen=True)
class Joined:
    label: str
    role: str
    path: str
    spots: list[Drawn]
    label_x: float
    label_y: float


@dataclass(frozen=True)
class Level:
    """A muted line across the chart, such as what chance would do."""

    y: float
    label: str


@dataclass(frozen=True)
class Scatter:
    title: str
    summary: str
    x_name: str
    tracks: list[Joined]
    level: Level | None
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Scale:
    """From a value to its place on one axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 1)


def scatter_chart(
    title: str,
    tracks: Sequence[Track],
    *,
    x_name: str,
    x_label: Callable[[float], str] = "{:g}".format,
    y_label: Callable[[float], str] = "{:.4g}".format,
    level: tuple[float, str] | None = None,
) -> Scatter | None:
    """``None`` without a finite point. The axes have room for every interval; x begins at 0.

    ``level``: the height of a line across the chart, and what it is called.
    """
    tracks = [Track(one.label, one.role, [spot for spot in one.spots if _is_finite(spot)]) for one in tracks]
    spots = [spot for track in tracks for spot in track.spots]
    if not spots:
        return None
    heights = [y for spot in spots for y in (spot.y, *(spot.across or ()))] + ([level[0]] if level else [])
    x_ticks = nice_ticks(0, max(x for spot in spots for x in (spot.x, *(spot.along or ()))))
    y_ticks = nice_ticks(min(heights), max(heights))
    x_of = Scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y_of = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    names = _names(spots, x_of, y_of)

    def drawn(spot: Spot) -> Drawn:
        title = f"{spot.name}: {y_label(spot.y)} at {x_label(spot.x)}"
        return Drawn(x_of(spot.x), y_of(spot.y), title, names[id(spot)], _whiskers(spot, x_of, y_of), spot.is_ringed)

    said = "; ".join(drawn(spot).title for spot in spots)
    joined = [_joined(track, [drawn(spot) for spot in track.spots]) for track in tracks if track.spots]
    return Scatter(
        title=title,
        summary=f"{title}, by {x_name}: {said}",
        x_name=x_name,
        tracks=_apart(joined, [y_of(level[0]) + 4] if level else []),
        level=Level(y_of(level[0]), level[1]) if level else None,
        x_ticks=[Tick(x_of(x), x_label(x)) for x in x_ticks],
        y_ticks=[Tick(y_of(y), y_label(y)) for y in y_ticks],
    )


def _is_finite(spot: Spot) -> bool:
    return all(map(math.isfinite, (spot.x, spot.y, *(spot.across or ()), *(spot.along or ()))))


def _whiskers(spot: Spot, x_of: Scale, y_of: Scale) -> list[Whisker]:
    x, y = x_of(spot.x), y_of(spot.y)
    found = []
    if spot.across:
        found.append(Whisker(x, y_of(spot.across[0]), x, y_of(spot.across[1])))
    if spot.along:
        found.append(Whisker(x_of(spot.along[0]), y, x_of(spot.along[1]), y))
    return found


def _joined(track: Track, spots: list[Drawn]) -> Joined:
    """The track's own label stands in the margin, at the height of its point farthest to the right."""
    last = max(spots, key=lambda spot: spot.x)
    path = "M" + "L".join(f"{spot.x} {spot.y}" for spot in spots)
    return Joined(track.label, track.role, path, spots, WIDTH - RIGHT + 8, last.y + 4)


def _apart(tracks: Sequence[Joined], taken: Sequence[float]) -> list[Joined]:
    """The tracks with their labels one above the other, none on another nor at a height that is ``taken``."""
    heights, apart = list(taken), []
    for track in sorted(tracks, key=lambda track: track.label_y):
        y = track.label_y
        while track.label and (close := [height for height in heights if abs(height - y) < LINE_HEIGHT]):
            y = max(close) + LINE_HEIGHT
        heights += [y] if track.label else []
        apart.append(replace(track, label_y=y))
    return sorted(apart, key=lambda track: [one.path for one in tracks].index(track.path))


Box = tuple[float, float, float, float]


def _names(spots: Sequence[Spot], x_of: Scale, y_of: Scale) -> dict[int, Name]:
    """Where each name stands: right above its point, or in another corner if it would cover something there."""
    taken: list[Box] = [_around(x_of(spot.x), y_of(spot.y)) for spot in spots]
    names = {}
    for spot in spots:
        places = [_placed(spot.name, x_of(spot.x), y_of(spot.y), side, up) for up in (True, False) for side in (1, -1)]
        name = next((place for place in places if _is_free(_box(place), taken)), places[0])
        taken.append(_box(name))
        names[id(spot)] = name
    return names


def _placed(text: str, x: float, y: float, side: int, up: bool) -> Name:
    return Name(
        x + side * CLEAR, y - CLEAR if up else y + CLEAR + LINE_HEIGHT / 2, "start" if side > 0 else "end", text
    )


def _around(x: float, y: float) -> Box:
    return x - CLEAR / 2, y - CLEAR / 2, x + CLEAR / 2, y + CLEAR / 2


def _box(name: Name) -> Box:
    width = LETTER * len(name.text)
    left = name.x if name.anchor == "start" else name.x - width
    return left, name.y - LINE_HEIGHT, left + width, name.y


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    left, top, right, bottom = box
    inside = left >= LEFT and top >= 0
    return inside and not any(
        left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in taken
    )
