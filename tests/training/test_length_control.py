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
    is_refused,
    sigmoid,
    slope,
    spread_of,
    tabled,
)
from training.sequential import ALPHA, Tally, interval


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


def _width(votes):
    low, high = controlled(votes).interval
    return high - low


def test_votes_on_one_prompt_count_for_less_than_votes_on_many():
    apart = [LengthVote(outcome, 0.0, number, True) for number, outcome in enumerate([1.0] * 120 + [0.0] * 60)]
    same = [LengthVote(vote.outcome, 0.0, vote.prompt // 12, True) for vote in apart]
    assert controlled(same).value == controlled(apart).value
    assert _width(same) > 1.5 * _width(apart)
    assert spread_of(same, *fit(tabled(same))) > 5


def test_the_estimate_is_that_of_a_plain_logit_without_length():
    votes = [LengthVote(outcome, 0.0, number, True) for number, outcome in enumerate([1.0] * 600 + [0.0] * 400)]
    identity, length = fit(tabled(votes))
    assert identity == pytest.approx(math.log(0.6 / 0.4), abs=0.003)
    assert length == 0.0
    assert slope(tabled(votes), identity, length).efficient == pytest.approx(1000 * 0.6 * 0.4, rel=0.001)


def test_the_slope_is_that_of_the_likelihood():
    cells = tabled(_votes(random.Random(7), 50, length=0.4, longer=0.3))

    def likelihood(identity, length):
        fits = [(cell, sigmoid(identity + length * cell.doublings)) for cell in cells]
        votes = sum(cell.won * math.log(p) + (cell.count - cell.won) * math.log(1 - p) for cell, p in fits)
        return votes - length**2 / 2 / 2.5**2

    at, step = slope(cells, 0.3, -0.2), 1e-5
    by_identity = (likelihood(0.3 + step, -0.2) - likelihood(0.3 - step, -0.2)) / (2 * step)
    by_length = (likelihood(0.3, -0.2 + step) - likelihood(0.3, -0.2 - step)) / (2 * step)
    assert (at.identity, at.length) == pytest.approx((by_identity, by_length), rel=1e-5)


def test_without_length_it_says_nearly_what_the_sequential_test_says():
    for won, lost, tied in ((60, 35, 10), (45, 20, 30), (30, 0, 0), (110, 80, 5)):
        outcomes = [1.0] * won + [0.0] * lost + [0.5] * tied
        votes = [LengthVote(outcome, 0.0, number, True) for number, outcome in enumerate(outcomes)]
        assert controlled(votes).interval == pytest.approx(interval(Tally(won, lost, tied)), abs=0.04)


def test_ties_narrow_the_interval_towards_a_half():
    decided = [LengthVote(float(number % 2), 0.0, number, True) for number in range(200)]
    tied = [LengthVote(0.5, 0.0, number, True) for number in range(200)]
    assert _width(tied) < _width(decided) / 3


def test_the_interval_may_be_looked_at_after_every_vote():
    """A Brownian motion, looked at often, is refused ever with 5 % at most."""
    rng, refused = random.Random(6), 0
    for _ in range(1000):
        at, over = 0.0, False
        for number in range(1, 61):
            at += rng.gauss(0.0, math.sqrt(2))
            over = over or is_refused(at, 2.0 * number)
        refused += over
    assert 0 < refused / 1000 <= ALPHA


def test_an_equal_but_longer_candidate_is_called_better_ever_with_5_percent_at_most():
    """Looked at four times, the length learnt from these and from 300 ordinary votes."""
    rng, better = random.Random(8), 0
    for _ in range(50):
        ordinary = _votes(rng, 300, length=0.8, compared=False)
        gate = _votes(rng, 150, length=0.8, longer=0.8, ties=0.1)
        better += any(controlled([*gate[:n], *ordinary]).interval[0] > 0.5 for n in (20, 40, 80, 150))
    assert better <= 5, "5 % of 50, and two of its standard errors"


def test_the_interval_widens_with_confidence():
    votes = _votes(random.Random(9), 100)
    low, high = controlled(votes, alpha=0.01).interval
    assert high - low > _width(votes)


def test_doublings():
    assert doublings(200, 100) == pytest.approx(1.0)
    assert doublings(100, 200) == pytest.approx(-1.0)
    assert doublings(10_000, 0) == 3.0
    assert doublings(0, 0) == 0.0
