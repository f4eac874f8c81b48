"""What p means for a loss: both labels have the gradient at margin 0 that they claim."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.soft_label import RESOLUTION, Label, hard_label, soft_label

probabilities = st.floats(0, 1)


def _loss(label: Label, margin: float) -> float:
    """Of a margin in favour of A."""
    toward = margin if label.better == "a" else -margin
    right, wrong = math.log1p(math.exp(-toward)), math.log1p(math.exp(toward))
    return label.weight * ((1 - label.epsilon) * right + label.epsilon * wrong)


def _slope(label: Label, margin: float = 0.0, step: float = 1e-5) -> float:
    return (_loss(label, margin + step) - _loss(label, margin - step)) / (2 * step)


@given(probabilities.filter(lambda p: abs(p - 0.5) >= RESOLUTION))
def test_both_labels_take_the_same_first_step(p):
    assert _slope(soft_label(p)) == pytest.approx(_slope(hard_label(p)), abs=1e-8)
    assert _slope(soft_label(p)) == pytest.approx(-(2 * p - 1) / 2, abs=1e-8)


@given(st.floats(0.56, 0.99))
def test_only_the_soft_label_has_an_end(p):
    end = math.log(p / (1 - p))
    assert _slope(soft_label(p), end) == pytest.approx(0, abs=1e-6)
    assert _slope(hard_label(p), end) < -1e-5


@given(probabilities)
def test_swapping_the_responses_swaps_the_label(p):
    here, there = soft_label(p), soft_label(1 - p)
    assert here.epsilon == pytest.approx(there.epsilon)
    if abs(abs(p - 0.5) - RESOLUTION) > 1e-9:
        assert {here.better, there.better} in ({"a", "b"}, {None})
    assert 0 <= here.epsilon <= 0.5
    assert here.weight == 1.0


@pytest.mark.parametrize(("p", "better"), [(0.5, None), (0.54, None), (0.46, None), (0.56, "a"), (0.44, "b"), (1, "a")])
def test_near_one_half_no_response_is_better(p, better):
    assert soft_label(p).better == hard_label(p).better == better


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_told(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        soft_label(p)
    with pytest.raises(ValueError, match="between 0 and 1"):
        hard_label(p)
