"""The win rate at equal length: what it takes out, what it leaves, and that its interval may be looked at often."""

from __future__ import annotations

import math
import random

import pytest

from training.length_control import (
    LEAST_VOTES,
    LengthVote,
    controlled,
    doublings,
    fit,
    half_width,
    sigmoid,
)
from training.sequential import ALPHA


def _votes(rng, count, *, identity=0.0, length=0.0, longer=0.0, ties=0.0, compared=True, per_prompt=1):
    votes = []
    for number in range(count):
        by = rng.gauss(longer, 0.6)
        p = sigmoid(identity * compared + length * by)
        outcome = 0.5 if rng.random() < ties else float(rng.random() < p)
        votes.append(LengthVote(outcome, by, number // per_prompt + (0 if compared else 10**6), compared))
    return votes


def test_a_candidate_that_is_only_longer_is_equal_at_equal_length():
    rng = random.Random(1)
    gate = _votes(rng, 1500, length=0.8, longer=1.0)
    ordinary = _votes(rng, 3000, length=0.8, compared=False)
    raw = sum(vote.outcome for vote in gate) / len(gate)
    found = controlled([*gate, *ordinary])
    assert raw > 0.65
    assert found.value == pytest.approx(0.5, abs=0.05)
    assert found.interval is not None
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.is_longer
    assert found.longer_wins == pytest.approx(sigmoid(0.8), abs=0.03)


def test_a_better_candidate_stays_better_at_equal_length():
    rng = random.Random(2)
    gate = _votes(rng, 800, identity=0.7, length=0.8, longer=0.4, ties=0.1)
    found = controlled([*gate, *_votes(rng, 2000, length=0.8, compared=False)])
    assert found.value == pytest.approx(sigmoid(0.7), abs=0.05)
    assert found.interval is not None
    assert found.interval[0] > 0.5


def test_ordinary_votes_tell_identity_and_length_apart_where_the_candidate_is_always_as_much_longer():
    rng = random.Random(3)
    gate = [LengthVote(float(rng.random() < sigmoid(0.8)), 1.0, number, True) for number in range(600)]
    alone, with_others = controlled(gate), controlled([*gate, *_votes(rng, 3000, length=0.8, compared=False)])
    assert alone.interval is not None
    assert with_others.interval is not None
    assert alone.interval[1] - alone.interval[0] > 0.6, "nothing says which of the two it was"
    assert with_others.value == pytest.approx(0.5, abs=0.06)


def test_too_few_votes_have_no_interval():
    rng = random.Random(4)
    assert controlled(_votes(rng, LEAST_VOTES - 1)).interval is None
    assert controlled(_votes(rng, LEAST_VOTES)).interval is not None
    nothing = controlled(_votes(rng, 50, compared=False))
    assert (nothing.value, nothing.interval, nothing.votes) == (None, None, 0)
    assert not nothing.is_longer


def test_it_stays_finite_where_one_side_always_wins():
    found = controlled([LengthVote(1.0, 3.0, number, True) for number in range(200)])
    assert found.value is not None
    assert 0.5 < found.value < 1
    assert found.interval is not None
    assert found.interval[0] < 0.5, "it may all have been the length"


def test_votes_on_one_prompt_count_for_less_than_votes_on_many():
    apart = [LengthVote(outcome, 0.0, number, True) for number, outcome in enumerate([1.0, 1.0, 0.0] * 60)]
    same = [LengthVote(outcome, 0.0, number // 12, True) for number, outcome in enumerate([1.0] * 120 + [0.0] * 60)]
    assert fit(same)[2] > 3 * fit(apart)[2]
    assert fit(same)[0] == pytest.approx(fit(apart)[0])


def test_the_estimate_is_that_of_a_plain_logit_without_length():
    votes = [LengthVote(outcome, 0.0, number, True) for number, outcome in enumerate([1.0] * 600 + [0.0] * 400)]
    identity, _, variance = fit(votes)
    assert identity == pytest.approx(math.log(0.6 / 0.4), abs=0.003)
    assert variance == pytest.approx(1 / (1000 * 0.6 * 0.4), rel=0.02)


def test_ties_narrow_the_interval_towards_a_half():
    decided = [LengthVote(float(number % 2), 0.0, number, True) for number in range(200)]
    tied = [LengthVote(0.5, 0.0, number, True) for number in range(200)]
    assert fit(tied)[2] < fit(decided)[2] / 10


def test_the_interval_may_be_looked_at_after_every_vote():
    """A Brownian motion, looked at often, is above the boundary ever with 5 % at most."""
    rng, above, times = random.Random(6), 0, [5 * number for number in range(1, 61)]
    boundary = [half_width(1 / time) * time for time in times]
    for _ in range(2000):
        at, over = 0.0, False
        for limit in boundary:
            at += rng.gauss(0.0, math.sqrt(5))
            over |= at >= limit
        above += over
    assert above / 2000 <= ALPHA


def test_the_interval_narrows_with_information_and_widens_with_confidence():
    assert half_width(0.01) < half_width(0.02)
    assert half_width(0.01, alpha=0.01) > half_width(0.01)
    assert half_width(0.01) > 1.645 * 0.1, "wider than one that may be looked at once"


def test_doublings():
    assert doublings(200, 100) == pytest.approx(1.0)
    assert doublings(100, 200) == pytest.approx(-1.0)
    assert doublings(10_000, 0) == 3.0
    assert doublings(0, 0) == 0.0
