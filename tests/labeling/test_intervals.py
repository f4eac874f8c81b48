"""Figures with intervals on one scale: where each stands, what lies beyond, and what was not measured."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from labeling.intervals import INSET, Estimate, Panel, interval_panel


def _panel(*estimates: Estimate, level: float = 0, window=(-40, 40), holds=()) -> Panel:
    return interval_panel(estimates, level=level, window=window, show="{:+g}".format, holds=holds)


def test_what_is_more_stands_farther_to_the_right():
    values = [-12.0, -3.5, 0.0, 0.1, 8.0]
    panel = _panel(*(Estimate(f"{value}", value, (value - 2, value + 2)) for value in values))
    for row in panel.rows:
        assert row.low < row.place < row.high
    for name in ("low", "place", "high"):
        assert all(getattr(one, name) < getattr(other, name) for one, other in pairwise(panel.rows))
    assert panel.rows[2].place == panel.level, "a figure at the level stands on the line"
    ticks = [tick.at for tick in panel.ticks]
    assert ticks == sorted(ticks)
    assert (ticks[0], ticks[-1]) == (INSET, 100 - INSET)


def test_the_scale_has_room_for_the_line_the_mark_and_what_it_is_told_to_hold():
    panel = _panel(Estimate("kl", 4.0, (3.0, 5.0)), level=20, window=(0, 60), holds=(0,))
    assert [tick.label for tick in panel.ticks] == ["0", "5", "10", "15", "20"]
    assert panel.level == 100 - INSET
    panel = _panel(Estimate("share", 1.0, (0.5, 1.5), mark=-5))
    (row,) = panel.rows
    assert INSET <= row.mark < panel.level < row.place


def test_a_row_says_its_figure_and_its_interval():
    (row,) = _panel(Estimate("a", 2.5, (-1, 6), outcome="pass", said="Passed")).rows
    assert (row.value, row.interval, row.outcome, row.said) == ("+2.5", "-1 to +6", "pass", "Passed")
    assert (row.below, row.above, row.is_off) == (False, False, False)


@pytest.mark.parametrize(
    ("value", "interval", "below", "above", "is_off"),
    [
        (-10.0, (-90.0, 12.0), True, False, False),
        (10.0, (-12.0, 90.0), False, True, False),
        (0.0, (-90.0, 90.0), True, True, False),
        (-70.0, (-90.0, -50.0), True, False, True),
        (70.0, None, False, True, True),
    ],
)
def test_what_lies_beyond_the_window_ends_at_its_edge_and_is_marked(value, interval, below, above, is_off):
    (row,) = _panel(Estimate("far", value, interval)).rows
    assert (row.below, row.above, row.is_off) == (below, above, is_off)
    places = [place for place in (row.low, row.place, row.high) if place is not None]
    assert all(INSET <= place <= 100 - INSET for place in places)
    assert places == sorted(places)


def test_one_that_is_far_off_leaves_the_others_room():
    (near, _) = _panel(Estimate("near", 0.0, (-5.0, 5.0)), Estimate("far", -4000.0, (-5000.0, -3000.0))).rows
    assert near.high - near.low > 10


@pytest.mark.parametrize("interval", [None, (math.nan, 1.0), (0.0, math.inf)])
def test_without_an_interval_there_is_a_point_alone(interval):
    (row,) = _panel(Estimate("a", 2.0, interval)).rows
    assert row.place is not None
    assert (row.low, row.high, row.interval) == (None, None, "")


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_was_not_measured_keeps_its_row_and_has_no_place(value):
    missing, there = _panel(Estimate("a", value, (0.0, 1.0)), Estimate("b", 1.0)).rows
    assert (missing.name, missing.place, missing.value) == ("a", None, "")
    assert there.place is not None
    alone = _panel(Estimate("a", value))
    assert (alone.level, list(alone.ticks)) == (None, [])
    assert [row.place for row in alone.rows] == [None]
