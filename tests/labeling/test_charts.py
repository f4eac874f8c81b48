"""Charts as numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Band, Series, bar_chart, line_chart, nice_ticks

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(finite, finite)
def test_ticks_enclose_the_values_and_are_few(one, two):
    low, high = min(one, two), max(one, two)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8


@given(st.lists(finite, min_size=1, max_size=40))
def test_every_point_lies_in_the_box(values):
    points = [(float(step), value) for step, value in enumerate(values, 1)]
    chart = line_chart("Loss", [Series("loss", "main", points)], x_max=len(values))
    assert chart is not None
    for dot in chart.lines[0].dots:
        assert LEFT <= dot.x <= WIDTH - RIGHT
        assert TOP - 0.2 <= dot.y <= HEIGHT - BOTTOM + 0.2


def test_labels_at_the_end_of_close_lines_do_not_cover_each_other():
    both = [Series("chosen", "main", [(1.0, -100.0)]), Series("rejected", "other", [(1.0, -100.1)])]
    chart = line_chart("Log-probability", both, x_max=1)
    assert chart is not None
    one, two = (line.label_y for line in chart.lines)
    assert abs(one - two) >= 14


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, math.nan]])
def test_without_a_finite_value_there_is_no_chart(values):
    assert line_chart("Loss", [Series("loss", "main", [(1.0, value) for value in values])], x_max=1) is None


def test_days_name_the_points_and_the_ticks():
    days = ["1 Nov", "2 Nov", "3 Nov"]
    points = [(0.0, 60.0), (1.0, 61.0), (2.0, 64.0)]
    chart = line_chart(
        "Agreement", [Series("equal", "main", points)], x_max=2, x_name="on", x_label=lambda x: days[int(x)]
    )
    assert chart is not None
    assert chart.lines[0].dots[1].title == "equal, on 2 Nov: 61"
    assert [tick.label for tick in chart.x_ticks] == days
    assert "on 3 Nov" in chart.summary


def test_intervals_are_drawn_around_their_points_and_said_with_them():
    whiskers = [(1.0, 40.0, 90.0), (2.0, math.nan, 70.0)]
    series = Series("win rate", "main", [(1.0, 60.0), (2.0, 62.0)], whiskers)
    chart = line_chart("Win rate", [series], x_max=2)
    assert chart is not None
    (line,) = chart.lines
    (whisker,) = line.whiskers
    assert whisker.x == line.dots[0].x
    assert TOP - 0.2 <= whisker.top < line.dots[0].y < whisker.bottom <= HEIGHT - BOTTOM + 0.2
    assert [dot.title for dot in line.dots] == ["win rate, step 1: 60 (40 to 90)", "win rate, step 2: 62"]


def test_an_interval_wider_than_all_values_is_within_the_box():
    chart = line_chart("KL", [Series("KL", "main", [(1.0, 5.0)], [(1.0, -50.0, 300.0)])], x_max=1)
    assert chart is not None
    (whisker,) = chart.lines[0].whiskers
    assert whisker.top >= TOP - 0.2
    assert whisker.bottom <= HEIGHT - BOTTOM + 0.2


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=80).filter(any))
def test_bars_stand_on_the_line_as_high_as_their_value_and_few_are_named(values):
    chart = bar_chart("Labels", [(str(place), value) for place, value in enumerate(values)])
    assert chart is not None
    for bar, value in zip(chart.bars, values, strict=True):
        assert bar.y + bar.height == pytest.approx(HEIGHT - BOTTOM, abs=0.2)
        assert bar.y >= TOP - 0.2
        assert bar.x >= LEFT
        assert bar.x + bar.width <= WIDTH
        assert (bar.height == 0) == (value == 0) or value / max(values) < 0.001
    assert len(chart.x_ticks) <= 9
    assert chart.x_ticks[-1].label == str(len(values) - 1), "the newest is always named"


@pytest.mark.parametrize("bars", [[], [("1 Nov", 0), ("2 Nov", 0)]])
def test_without_a_bar_there_is_no_chart(bars):
    assert bar_chart("Labels", bars) is None


def test_a_band_encloses_its_line_and_the_axis_encloses_the_band():
    series = [Series("win rate", "main", [(1.0, 0.5), (2.0, 0.55)])]
    chart = line_chart("Votes", series, x_max=2, bands=[Band("main", [(1.0, 0.0, 1.0), (2.0, 0.4, 0.7)])])
    assert chart is not None
    (area,) = chart.areas
    edge = [tuple(map(float, point.split())) for point in area.path.strip("MZ").split("L")]
    assert len(edge) == 4
    (line,) = chart.lines
    for (x, high), (_, low), dot in zip(edge[:2], reversed(edge[2:]), line.dots, strict=True):
        assert x == dot.x
        assert TOP - 0.2 <= high < dot.y < low <= HEIGHT - BOTTOM + 0.2


def test_a_band_without_points_is_no_area():
    chart = line_chart("Votes", [Series("win rate", "main", [(1.0, 0.5)])], x_max=1, bands=[Band("main", [])])
    assert chart is not None
    assert chart.areas == []
