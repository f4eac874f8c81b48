"""Charts as numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, line_chart, nice_ticks

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
