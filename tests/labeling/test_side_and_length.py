"""The pulls of side and length: each with the other taken out, with intervals that hold where votes depend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.quality import LEAST_VOTES, wilson
from labeling.side_and_length import Decided, fit, longer_wins, pulls
from labeling.votes import Floats, VoteColumns, columns

VOTES = st.lists(
    st.tuples(st.booleans(), st.sampled_from([-9.0, -2.0, -0.1, 0.0, 0.1, 1.0, 9.0]), st.integers(1, 9)),
    min_size=1,
    max_size=60,
)


def _logistic(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


def _simulated(
    side: float, length: float, *, pairs: int, each: int = 1, of_pair: float = 0.0, seed: int = 0
) -> Decided:
    """Votes of people who are drawn by side and length; ``of_pair``: how far pairs differ in what they are worth."""
    source = np.random.default_rng(seed)
    a_doublings, worth = source.normal(0, 1, pairs), source.normal(0, of_pair, pairs)
    pair = np.repeat(np.arange(pairs), each)
    a_left = np.tile([1.0, -1.0], len(pair) // 2 + 1)[: len(pair)]
    logit = side + a_left * (length * a_doublings[pair] + worth[pair])
    return Decided((source.random(len(pair)) < _logistic(logit)).astype(float), a_left * a_doublings[pair], pair)


def test_both_are_recovered() -> None:
    at, errors = fit(_simulated(0.4, 0.7, pairs=40_000))
    assert at == pytest.approx([0.4, 0.7], abs=0.04)
    assert (errors < 0.02).all()


def test_length_alone_does_not_look_like_side_and_side_not_like_length() -> None:
    for side, length in ((0.8, 0.0), (0.0, 0.8)):
        (found_side, found_length), errors = fit(_simulated(side, length, pairs=4_000))
        assert abs(found_side - side) < 3 * errors[0]
        assert abs(found_length - length) < 3 * errors[1]


def test_with_equal_lengths_the_side_is_the_plain_share() -> None:
    decided = Decided(np.repeat([1.0, 0.0], [700, 300]), np.zeros(1000), np.arange(1000))
    (side, length), (error, _) = fit(decided)
    plain = wilson(700, 1000)
    assert _logistic(side) == pytest.approx(0.7, abs=0.002)
    assert _logistic(side - 1.96 * error) == pytest.approx(plain.low, abs=0.003)
    assert _logistic(side + 1.96 * error) == pytest.approx(plain.high, abs=0.003)
    assert length == 0


def test_intervals_hold_the_truth_about_as_often_as_they_say_where_votes_share_their_pairs() -> None:
    truth, held = fit(_simulated(0.3, 0.5, pairs=200_000, of_pair=1.5, seed=99))[0], np.zeros(2)
    for seed in range(300):
        at, errors = fit(_simulated(0.3, 0.5, pairs=100, each=4, of_pair=1.5, seed=seed))
        held += np.abs(at - truth) < 1.96 * errors
    assert (held / 300 > 0.91).all()
    assert (held / 300 < 0.99).all()


def test_the_same_votes_once_more_make_nothing_surer() -> None:
    once = _simulated(0.2, 0.4, pairs=200, of_pair=1.0)
    twice = Decided(*(np.tile(column, 2) for column in vars(once).values()))
    assert (fit(twice)[1] > 0.98 * fit(once)[1]).all()


@given(VOTES)
def test_the_fit_ends_at_its_optimum_whatever_the_votes(votes: list[tuple[bool, float, int]]) -> None:
    won, doublings, pair = (np.array(column) for column in zip(*votes, strict=True))
    at, errors = fit(Decided(won.astype(float), doublings, pair))
    x = np.column_stack([np.ones(len(won)), np.clip(doublings, -3, 3)])
    assert x.T @ (won - _logistic(x @ at)) - at / 2.5**2 == pytest.approx(0, abs=1e-6)
    assert np.isfinite(errors).all()
    assert (errors > 0).all()


def _votes(rows: list[tuple[int, str, str]]) -> VoteColumns:
    pair, choice, left = zip(*rows, strict=True)
    return columns(pair, [1] * len(rows), choice, left)


def test_a_longer_response_that_stood_left_more_often_is_corrected() -> None:
    rows = [(n, "a" if n % 10 < 8 else "b", "a") for n in range(100)]
    rows += [(n, "a" if n % 10 < 4 else "b", "b") for n in range(100, 120)]
    decided = Decided.of(_votes(rows), np.full(120, 0.5))
    share = longer_wins(decided)
    assert share.hits / share.of == pytest.approx(88 / 120)
    assert share.value == pytest.approx((0.8 + 0.4) / 2)


def test_naming_the_responses_the_other_way_round_changes_nothing() -> None:
    source, other = np.random.default_rng(3), {"a": "b", "b": "a", "tie": "tie"}
    rows = [(n // 2, str(source.choice(["a", "b", "tie"])), str(source.choice(["a", "b"]))) for n in range(200)]
    doublings = np.repeat(source.normal(0, 1, 100), 2)
    swapped = [(pair, other[choice], other[left]) for pair, choice, left in rows]
    assert pulls(_votes(rows), doublings) == pulls(_votes(swapped), -doublings)


def test_steps_part_the_pairs_by_how_much_longer_one_is() -> None:
    rows = [(n, "a", "ab"[n % 2]) for n in range(10)]
    doublings = np.array([0.0, 0.0, 0.2, -0.3, 0.4, 1.0, -1.5, 2.0, 3.0, 12.0])
    assert [step["of"] for step in pulls(_votes(rows), doublings)["by_length"]] == [2, 2, 2, 2]


def test_too_few_say_so_and_only_decided_ones_count() -> None:
    rows = [(n, "a", "ab"[n % 2]) for n in range(LEAST_VOTES - 1)] + [(n, "tie", "a") for n in range(90, 99)]
    doublings = np.full(len(rows), 0.5)
    found = pulls(_votes(rows), doublings)
    assert found["side"]["value"] is None
    assert found["side"]["template"] % found["side"]["figures"] == "29 decided judgements so far; a figure needs 30."
    rows.append((200, "b", "a"))
    found = pulls(_votes(rows), np.append(doublings, 0.0))
    assert found["side"]["of"] == 30
    assert found["side"]["low"] < found["side"]["value"] < found["side"]["high"]
    assert found["length"]["value"] is None, "29 of pairs whose lengths differ"
