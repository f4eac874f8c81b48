"""Charts of points with names: where things stand, and that no name covers another."""

from __future__ import annotations

import itertools
import math

import pytest

from labeling.scatter import LETTER, LINE_HEIGHT, WIDTH, Name, Spot, Track, scatter_chart


def _chart(*spots: Spot, **options):
    return scatter_chart("Accuracy", [Track("", "main", spots)], x_name="KL, nats", **options)


def _box(name: Name) -> tuple[float, float, float, float]:
    width = LETTER * len(name.text)
    left = name.x if name.anchor == "start" else name.x - width
    return left, name.y - LINE_HEIGHT, left + width, name.y


def _overlap(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_nothing_to_draw_is_no_chart():
    assert scatter_chart("Accuracy", [Track("", "main", [])], x_name="KL") is None
    assert _chart(Spot(math.nan, 0.5, "a")) is None


def test_farther_is_to_the_right_and_better_is_up():
    chart = _chart(Spot(1.0, 0.6, "a"), Spot(4.0, 0.7, "b"))
    a, b = chart.tracks[0].spots
    assert a.x < b.x
    assert a.y > b.y
    assert chart.x_ticks[0].label == "0"
    assert chart.tracks[0].path == f"M{a.x} {a.y}L{b.x} {b.y}"
    assert chart.summary == "Accuracy, by KL, nats: a: 0.6 at 1; b: 0.7 at 4"


def test_intervals_and_the_level_are_within_the_axes():
    chart = _chart(Spot(1.0, 0.6, "a", (0.2, 0.9), (0.5, 7.0), is_ringed=True), level=(0.0, "chance"))
    (spot,) = chart.tracks[0].spots
    across, along = spot.whiskers
    assert across.x1 == across.x2 == spot.x
    assert along.y1 == along.y2 == spot.y
    assert across.y2 < spot.y < across.y1 <= chart.bottom
    assert chart.left <= along.x1 < spot.x < along.x2 <= chart.right
    assert chart.level.label == "chance"
    assert across.y1 < chart.level.y <= chart.bottom
    assert spot.is_ringed


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.1, 0.3])
def test_names_of_points_that_are_close_do_not_cover_each_other(gap):
    chart = _chart(Spot(1.0, 0.6, "beta 0.1"), Spot(1.0 + gap, 0.6 + gap / 50, "beta 0.3"), Spot(4.0, 0.5, "beta 1"))
    boxes = [_box(spot.name) for spot in chart.tracks[0].spots]
    assert not any(_overlap(one, other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert all(left >= 0 and right <= WIDTH for left, _, right, _ in boxes)


def test_a_track_is_named_beside_its_farthest_point():
    tracks = [Track("slow", "main", [Spot(5.0, 0.7, "a"), Spot(1.0, 0.6, "b")]), Track("fast", "other", [])]
    (track,) = scatter_chart("Accuracy", tracks, x_name="KL").tracks
    assert (track.label, track.label_y) == ("slow", track.spots[0].y + 4)


def test_labels_of_tracks_that_end_at_one_height_stand_apart():
    ends = [Track(f"rate {n}", "main", [Spot(1.0 + n, 0.6, "a")]) for n in range(3)]
    chart = scatter_chart("Accuracy", ends, x_name="KL", level=(0.6, "reference"))
    heights = sorted([chart.level.y + 4, *(track.label_y for track in chart.tracks)])
    assert [track.label for track in chart.tracks] == ["rate 0", "rate 1", "rate 2"], "in their order"
    assert all(below - above >= LINE_HEIGHT for above, below in itertools.pairwise(heights))
