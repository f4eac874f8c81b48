"""The anytime-valid test: its guarantee counted out exactly, its symmetry, its interval and its forecast."""

from __future__ import annotations

import itertools
import math
import random
from functools import cache

import pytest

from training.sequential import (
    ALPHA,
    BETS,
    Tally,
    interval,
    leader,
    log_wealth,
    read_votes,
    threshold,
    votes_to_go,
)


@cache
def _leader(won: int, lost: int) -> str:
    return leader(Tally(won, lost))


def _ever_shown(win: float, tie: float, votes: int) -> dict[str, float]:
    """The exact probability that each side is ever shown to be better, over every course of so many votes."""
    alive, shown = {(0, 0): 1.0}, {"candidate": 0.0, "current": 0.0}
    for _ in range(votes):
        after: dict[tuple[int, int], float] = {}
        for (won, lost), p in alive.items():
            for step, q in (((1, 0), win), ((0, 1), 1 - win - tie), ((0, 0), tie)):
                if not q:
                    continue
                place = (won + step[0], lost + step[1])
                side = _leader(*place) if step != (0, 0) else ""
                if side:
                    shown[side] += p * q
                else:
                    after[place] = after.get(place, 0.0) + p * q
        alive = after
    return shown


@pytest.mark.parametrize("tie", [0.0, 0.3])
def test_an_equal_candidate_is_called_better_with_5_percent_at_most_and_worse_with_as_much(tie):
    shown = _ever_shown((1 - tie) / 2, tie, 150)
    assert 0 < shown["candidate"] <= ALPHA
    assert shown["candidate"] == pytest.approx(shown["current"])


def test_a_worse_candidate_is_called_better_more_rarely_still():
    assert _ever_shown(0.45, 0.0, 100)["candidate"] < _ever_shown(0.5, 0.0, 100)["candidate"] / 2


def test_a_better_candidate_is_found():
    assert _ever_shown(0.7, 0.0, 150)["candidate"] > 0.98


def test_a_fair_vote_gains_nothing_on_average():
    """The wealth is a martingale at every state: its mean after the next vote is what it is."""
    for won, lost, tied in itertools.product(range(0, 30, 7), repeat=3):
        now = math.exp(log_wealth(Tally(won, lost, tied)))
        after = [Tally(won + 1, lost, tied), Tally(won, lost + 1, tied)]
        assert sum(math.exp(log_wealth(tally)) for tally in after) / 2 == pytest.approx(now)
        assert math.exp(log_wealth(Tally(won, lost, tied + 1))) == pytest.approx(now), "a tie says nothing"


def test_bets_stake_the_whole_wealth_and_never_more():
    assert sum(share for _, share in BETS) == pytest.approx(1.0)
    assert all(0 < bet < 1 for bet, _ in BETS)
    assert log_wealth(Tally()) == pytest.approx(0.0)


def test_what_was_shown_once_stays_shown():
    outcome = read_votes([1.0] * 30 + [0.0] * 30)
    assert outcome.better == "candidate"
    assert outcome.at is not None
    assert outcome.at < 30
    assert leader(outcome.tally) == ""
    assert outcome.tally == Tally(30, 30, 0)


def test_the_first_side_that_is_shown_counts():
    assert read_votes([0.0] * 30 + [1.0] * 300).better == "current"


@pytest.mark.parametrize("tally", [Tally(20, 20, 5), Tally(60, 35, 10), Tally(3, 0, 0), Tally(0, 8, 1)])
def test_the_interval_leaves_a_half_exactly_where_the_test_ends(tally):
    low, high = interval(tally)
    assert 0 <= low <= tally.win_rate <= high <= 1
    assert (low > 0.5) == (leader(tally) == "candidate")
    assert (high < 0.5) == (leader(tally) == "current")


def test_the_interval_is_mirrored_with_the_votes():
    low, high = interval(Tally(40, 25, 7))
    other_low, other_high = interval(Tally(25, 40, 7))
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low))


def test_the_interval_holds_at_all_times_at_once():
    """Of 300 candidates that win 62 % with ties among the votes, few may leave it ever."""
    left, rng = 0, random.Random(5)
    for _ in range(300):
        tally, out = Tally(), False
        for number in range(1, 121):
            tally = tally.plus(rng.choices((1.0, 0.5, 0.0), (0.52, 0.2, 0.28))[0])
            if number % 4 == 0 and not out:
                # Outside exactly where one of the two claims "at most 0.62" and "at least 0.62" is refused.
                out = max(log_wealth(tally, 0.62), log_wealth(tally.mirrored, 0.38)) >= threshold()
        left += out
    assert left / 300 <= 2 * ALPHA


def test_without_votes_nothing_is_known():
    outcome = read_votes([])
    assert (outcome.better, outcome.at, outcome.series) == ("", None, [])
    assert outcome.as_json()["win_rate"] is None
    assert interval(Tally()) == (0.0, 1.0)
    assert votes_to_go(Tally()) is None


def test_a_plot_has_few_points_the_last_and_the_one_that_decided():
    votes = [1.0, 0.0, 1.0] * 700
    outcome = read_votes(votes)
    assert len(outcome.series) <= 61
    assert outcome.series[-1].votes == 2100
    assert outcome.at in [point.votes for point in outcome.series]
    assert outcome.as_json()["interval"] == [outcome.series[-1].low, outcome.series[-1].high]


def test_a_forecast_of_votes_comes_true_in_order_of_size():
    tally = Tally(60, 40, 0)
    more = votes_to_go(tally)
    assert more is not None
    grown = 1 + more / tally.votes
    assert leader(tally) == ""
    assert leader(Tally(round(60 * grown * 1.3), round(40 * grown * 1.3), 0)) == "candidate"
    assert leader(Tally(round(60 * grown * 0.6), round(40 * grown * 0.6), 0)) == ""
    assert votes_to_go(Tally(40, 60, 0)) == more, "towards either side"
    assert votes_to_go(Tally(50, 50, 3)) is None
