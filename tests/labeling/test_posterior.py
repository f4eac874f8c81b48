"""The joint model of annotators and pairs: its symmetries, what moves it, and what it recovers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling import credible, logistic_annotator
from labeling.logistic_annotator import MOST_STRENGTH, Parameters
from labeling.posterior import ADJUDICATION_ERROR, GOLD_ERROR, Adjudication, Fit, _evidence, fit, update
from labeling.votes import Vote, VoteColumns, columns

OTHER = {"a": "b", "b": "a", "tie": "tie", "both_bad": "both_bad"}
VOTES = st.lists(
    st.builds(
        Vote,
        pair_id=st.integers(1, 6),
        annotator_id=st.integers(1, 4),
        choice=st.sampled_from(["a", "b", "tie", "both_bad"]),
        shown_left=st.sampled_from(["a", "b"]),
        is_strong=st.booleans(),
    ),
    max_size=30,
)
DECISIONS = st.dictionaries(st.integers(1, 8), st.sampled_from(["a", "b", "tie", "both_bad"]), max_size=4)
quick = settings(max_examples=60, deadline=None)


def _adjudications(decisions: dict[int, str]) -> list[Adjudication]:
    return [Adjudication(pair_id, choice) for pair_id, choice in decisions.items()]


def _simulated(
    ability: Sequence[float], side: Sequence[float], pairs: int, judgements: int, seed: int = 0, strength: float = 1.0
) -> tuple[VoteColumns, np.ndarray]:
    """Votes of annotators with these logits on pairs whose better response is known, a third of them strong."""
    random = np.random.default_rng(seed)
    a_better = random.random(pairs) < 0.5
    pair = np.repeat(np.arange(pairs), judgements)
    annotator = np.argsort(random.random((pairs, len(ability))), axis=1)[:, :judgements].ravel()
    a_left, strong = random.random(len(pair)) < 0.5, random.random(len(pair)) < 1 / 3
    toward = np.where(a_left == a_better[pair], 1, -1) * np.where(strong, strength, 1.0)
    logit = toward * np.asarray(ability)[annotator] + np.asarray(side)[annotator]
    left = random.random(len(pair)) < 1 / (1 + np.exp(-logit))
    choice = np.where(left == a_left, 0, 1)
    return VoteColumns(pair, annotator, choice, a_left, strong), a_better


def _reliability(ability: Sequence[float], side: Sequence[float]) -> np.ndarray:
    a, b = np.asarray(ability), np.asarray(side)
    return (1 / (1 + np.exp(-a - b)) + 1 / (1 + np.exp(-a + b))) / 2


def _p(fitted: Fit) -> dict[int, float]:
    return dict(zip(fitted.posterior.pair_ids.tolist(), fitted.posterior.p.tolist(), strict=True))


@quick
@given(VOTES, DECISIONS, st.integers(1, 6))
def test_swapping_the_responses_of_a_pair_mirrors_its_p_and_moves_no_other(votes, decisions, swapped):
    turned = [
        replace(vote, choice=OTHER[vote.choice], shown_left=OTHER[vote.shown_left]) if vote.pair_id == swapped else vote
        for vote in votes
    ]
    before = _p(fit(votes, adjudications=_adjudications(decisions)))
    mirrored = {pair: OTHER[choice] if pair == swapped else choice for pair, choice in decisions.items()}
    after = _p(fit(turned, adjudications=_adjudications(mirrored)))
    expected = {pair: 1 - p if pair == swapped else p for pair, p in before.items()}
    assert after == pytest.approx(expected, abs=1e-6)


@quick
@given(VOTES, st.permutations([1, 2, 3, 4]), st.randoms(use_true_random=False))
def test_names_of_annotators_and_order_of_votes_change_nothing(votes, names, random):
    renamed = [replace(vote, annotator_id=names[vote.annotator_id - 1] * 100) for vote in votes]
    random.shuffle(renamed)
    assert _p(fit(renamed)) == pytest.approx(_p(fit(votes)), abs=1e-6)


@quick
@given(VOTES, DECISIONS)
def test_the_objective_never_falls_and_everything_is_a_probability(votes, decisions):
    fitted = fit(votes, adjudications=_adjudications(decisions))
    assert np.diff(fitted.objective).min(initial=0.0) >= -1e-9
    assert fitted.has_converged
    assert ((fitted.posterior.p >= 0) & (fitted.posterior.p <= 1)).all()
    for annotator in fitted.annotators:
        assert 0 <= annotator.reliability_low <= annotator.reliability <= annotator.reliability_high <= 1
        assert 0 <= annotator.left_low <= annotator.left <= annotator.left_high <= 1


@quick
@given(VOTES, st.sampled_from(["a", "b"]), st.integers(1, 6), st.booleans())
def test_a_vote_more_for_a_never_lowers_its_p(votes, left, pair, strong):
    fitted = fit(votes)
    able = {vote.annotator_id for vote in votes if fitted.annotator(vote.annotator_id).ability > 0} | {99}
    for who in able - {vote.annotator_id for vote in votes if vote.pair_id == pair}:
        theirs = [vote for vote in votes if vote.pair_id == pair]
        before = update(fitted, theirs).of(pair) if theirs else 0.5
        assert update(fitted, [*theirs, Vote(pair, who, "a", left, strong)]).of(pair) >= before


@quick
@given(VOTES, st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4), st.sampled_from(["tie", "both_bad"]))))
def test_ties_and_both_bad_move_no_p_and_no_reliability(votes, more):
    known = {vote.pair_id for vote in votes}, {vote.annotator_id for vote in votes}
    added = [Vote(pair, who, what, "a") for pair, who, what in more if pair in known[0] and who in known[1]]
    before, after = fit(votes), fit([*votes, *added])
    assert _p(after) == pytest.approx(_p(before), abs=1e-9)
    assert [one.reliability for one in after.annotators] == pytest.approx(
        [one.reliability for one in before.annotators]
    )


def test_ties_are_counted_and_move_nothing():
    votes = [Vote(n, n % 2, "tie" if n % 2 else "a", "a") for n in range(100)]
    fitted = fit([*votes, Vote(100, 0, "both_bad", "a")])
    assert fitted.posterior.ties.tolist() == [n % 2 for n in range(100)] + [0]
    assert fitted.posterior.of(1) == fitted.posterior.of(100) == 0.5
    assert (fitted.annotator(0).votes, fitted.annotator(0).decided) == (51, 50)


@pytest.mark.parametrize("sizes", [(300, 1), (300, 2), (300, 3)])
def test_update_is_the_e_step_of_the_fit(sizes):
    votes, _ = _simulated([2, 1, 1, 0.2], [0, 1, -1, 0], *sizes)
    decisions = [Adjudication(3, "b"), Adjudication(4, "tie"), Adjudication(900, "a")]
    fitted = fit(votes, adjudications=decisions)
    some = np.isin(votes.pair_id, np.arange(0, 300, 7)) | (votes.pair_id < 5)
    updated = update(fitted, votes.take(some), adjudications=decisions)
    whole = _p(fitted)
    assert updated.p.tolist() == pytest.approx([whole[pair] for pair in updated.pair_ids.tolist()], abs=1e-12)
    restored = Parameters.from_json(fitted.parameters.as_json())
    assert update(restored, votes.take(some), adjudications=decisions).p.tolist() == updated.p.tolist()


def test_a_warm_start_ends_where_a_cold_one_does_and_sooner():
    votes, _ = _simulated([2, 1, 1, 0.2, 1.5, 0.7], [0, 1, -1, 0, 0, 0], 400, 2)
    cold = fit(votes)
    warm = fit(votes, start=cold)
    assert warm.iterations < cold.iterations
    assert warm.posterior.p == pytest.approx(cold.posterior.p, abs=1e-3)
    assert fit(votes).posterior.p.tolist() == cold.posterior.p.tolist()


def test_an_unknown_annotator_has_the_mean_ability():
    votes, _ = _simulated([2, 1, 1, 0.5], [0, 0, 0, 0], 300, 3)
    fitted = fit(votes)
    p = update(fitted, [Vote(1000, 77, "a", "b")]).of(1000)
    assert p == pytest.approx(1 / (1 + np.exp(-fitted.parameters.mean)))


def test_parameters_are_recovered():
    ability, side = [2.5, 1.5, 1.0, 0.0, 0.3, 1.8, 0.8, 1.2], [0, 0.8, -0.8, 4.0, 0, 0, -0.4, 0.3]
    votes, a_better = _simulated(ability, side, 6000, 3)
    fitted = fit(votes)
    truth = _reliability(ability, side)
    assert [one.reliability for one in fitted.annotators] == pytest.approx(truth, abs=0.04)
    left = 1 / (1 + np.exp(-np.asarray(side)))
    assert [one.left for one in fitted.annotators] == pytest.approx(left, abs=0.04)
    hit = (fitted.posterior.p > 0.5) == a_better
    assert np.square(fitted.posterior.p - a_better).mean() < np.square(_majority(votes) - a_better).mean() - 0.02
    sure = np.abs(fitted.posterior.p - 0.5) > 0.45
    assert hit[sure].mean() > 0.96


def _majority(votes: VoteColumns) -> np.ndarray:
    return np.bincount(votes.pair_id, votes.choice == 0) / np.bincount(votes.pair_id)


def test_more_votes_come_nearer_to_the_truth():
    ability, side = [2.0, 1.5, 1.0, 0.5, 0.2], [0, 1, -1, 0.5, 0]
    off = []
    for pairs in (40, 4000):
        errors = [
            np.abs([one.reliability for one in fit(_simulated(ability, side, pairs, 3, seed)[0]).annotators]
                   - _reliability(ability, side)).mean()
            for seed in range(5)
        ]  # fmt: skip
        off.append(np.mean(errors))
    assert off[1] < 0.03 < off[0]


@pytest.mark.parametrize(("judgements", "least"), [(2, 0.88), (3, 0.88)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(judgements, least):
    held = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        ability, side = random.normal(1.25, 0.75, 12), random.normal(0, 0.7, 12)
        fitted = fit(_simulated(ability, side, 600, judgements, seed)[0])
        truth, left = _reliability(ability, side), 1 / (1 + np.exp(-side))
        held += [one.reliability_low <= truth[one.annotator_id] <= one.reliability_high for one in fitted.annotators]
        held += [one.left_low <= left[one.annotator_id] <= one.left_high for one in fitted.annotators]
    assert least <= np.mean(held) <= 0.99


def test_alone_annotators_are_a_little_too_sure_and_never_less(monkeypatch):
    votes, _ = _simulated([2, 1, 1, 0.2, 1.5, 0.7], [0, 1, -1, 0, 0, 0], 300, 2)
    together = fit(votes)
    monkeypatch.setattr(credible, "MOST_TOGETHER", 3)
    alone = fit(votes)
    for one, other in zip(together.annotators, alone.annotators, strict=True):
        assert one.reliability == other.reliability
        assert one.reliability_high - one.reliability_low >= other.reliability_high - other.reliability_low - 1e-9


def test_an_annotator_who_always_votes_left_is_worth_nothing_even_without_a_shared_pair():
    votes = [Vote(n, 1, "a" if n % 2 else "b", "a" if n % 2 else "b") for n in range(200)]
    fitted = fit(votes)
    assert fitted.annotator(1).shared == 0
    assert fitted.annotator(1).left > 0.97
    assert np.abs(fitted.posterior.p - 0.5).max() < 0.05


def test_without_shared_pairs_reliability_is_the_priors():
    votes = [Vote(n, n % 3, "a" if n % 4 < 2 else "b", "a" if n % 8 < 4 else "b") for n in range(240)]
    fitted = fit(votes)
    assert [one.reliability for one in fitted.annotators] == pytest.approx([0.777] * 3, abs=0.01)
    assert all(one.reliability_low < 0.5 < 0.9 < one.reliability_high for one in fitted.annotators)
    assert [one.shared for one in fitted.annotators] == [0, 0, 0]


def test_few_votes_are_drawn_to_the_mean():
    votes, _ = _simulated([1.5] * 5, [0] * 5, 1000, 3)
    wrong = [Vote(5000 + n, who, "a", "a") for n in range(3) for who in range(5)]
    against = [Vote(5000 + n, 9, "b", "b") for n in range(3)]
    fitted = fit([*_rows(votes), *wrong, *against])
    newcomer = fitted.annotator(9)
    assert 0.4 < newcomer.reliability < fitted.annotator(0).reliability
    assert newcomer.reliability_high - newcomer.reliability_low > 0.3


def _rows(votes: VoteColumns) -> list[Vote]:
    words = ("a", "b", "tie", "both_bad")
    return [
        Vote(pair, who, words[choice], "a" if left else "b", strong)
        for pair, who, choice, left, strong in zip(*(column.tolist() for column in vars(votes).values()), strict=True)
    ]


def test_strong_votes_count_more_only_where_they_are_better():
    plain = fit(_simulated([1.0] * 6, [0] * 6, 3000, 3)[0])
    better = fit(_simulated([1.0] * 6, [0] * 6, 3000, 3, strength=2.0)[0])
    assert 1.0 <= plain.parameters.strength < 1.15
    assert better.parameters.strength == pytest.approx(2.0, abs=0.25)
    votes = [Vote(1, 0, "a", "a", True), Vote(2, 0, "a", "a", False)]
    updated = update(better, votes)
    assert updated.of(1) > updated.of(2) > 0.5


def test_strong_votes_that_are_worse_still_count_as_one():
    fitted = fit(_simulated([1.5] * 6, [0] * 6, 1000, 3, strength=0.3)[0])
    assert fitted.parameters.strength == 1.0
    assert logistic_annotator.within_bounds(replace(fitted.parameters, strength=9.0)).strength == MOST_STRENGTH


def test_a_decision_stands_against_ordinary_votes():
    votes = [Vote(1, who, "a", "a") for who in (1, 2, 3)]
    fitted = fit(votes, adjudications=[Adjudication(1, "b"), Adjudication(2, "a")])
    assert fitted.posterior.of(1) < 0.5
    assert fitted.posterior.of(2) == pytest.approx(1 - ADJUDICATION_ERROR)
    assert all(one.reliability < 0.777 for one in fitted.annotators)
    assert [one.shared for one in fitted.annotators] == [1, 1, 1]


@pytest.mark.parametrize("choice", ["tie", "both_bad"])
def test_a_decision_that_none_is_better_closes_the_pair(choice):
    votes = [Vote(1, who, "a", "a") for who in (1, 2, 3)]
    fitted = fit(votes, adjudications=[Adjudication(1, choice)])
    assert fitted.posterior.of(1) == 0.5
    assert fitted.posterior.decided.tolist() == [3]
    assert all(one.ability == pytest.approx(logistic_annotator.PRIOR_MEAN) for one in fitted.annotators)


def test_decisions_teach_who_is_reliable():
    votes = [Vote(n, 1, "a" if n % 2 else "b", "a") for n in range(60)]
    votes += [Vote(n, 2, "a" if n % 3 == 0 else "b", "a") for n in range(60)]
    fitted = fit(votes, adjudications=[Adjudication(n, "a" if n % 2 else "b") for n in range(60)])
    assert fitted.annotator(1).reliability > 0.9
    assert fitted.annotator(2).reliability < 0.6


def test_repeats_of_one_annotator_count_as_one_vote():
    fitted = fit([Vote(n, who, "a", "a") for n in range(20) for who in (1, 2)])
    once = update(fitted, [Vote(1, 1, "a", "a")]).of(1)
    assert update(fitted, [Vote(1, 1, "a", "a")] * 4).of(1) == pytest.approx(once)
    assert update(fitted, [Vote(1, 1, "a", "a"), Vote(1, 1, "b", "b")]).of(1) == pytest.approx(0.5)
    assert update(fitted, [Vote(1, 1, "a", "a"), Vote(1, 2, "a", "a")]).of(1) > once


def test_the_sign_does_not_flip_when_everybody_disagrees():
    votes = [Vote(n, who, "a" if who == n % 2 else "b", "a") for n in range(100) for who in (0, 1)]
    fitted = fit(votes)
    assert fitted.parameters.mean >= logistic_annotator.MEAN_FLOOR
    assert np.abs(fitted.posterior.p - 0.5).max() < 0.05


def test_the_expected_counts_have_the_slope_of_the_likelihood():
    votes, _ = _simulated([2, 1, 0], [0, 1, 0], 50, 2)
    evidence = _evidence(votes, [])
    counts = evidence.counts(np.full(50, 0.3))
    assert counts.sum() == pytest.approx(100)
    parameters = Parameters.before_votes(evidence.annotator_ids)
    step = 1e-5
    p, _, likelihood = evidence.expectation(parameters)
    moved = replace(parameters, ability=parameters.ability + step * np.eye(3)[1])
    slope = (evidence.expectation(moved)[2] - likelihood) / step
    first, _ = logistic_annotator._slopes(parameters, evidence.counts(p))
    assert slope == pytest.approx((first[1] * logistic_annotator.BETTER_SIDE).sum(), abs=1e-3)


def test_intervals_are_those_of_the_observed_curvature():
    """The matrix from Louis' identity against second differences of the penalised log-likelihood."""
    votes, _ = _simulated([1.5, 1.0, 0.6], [0, 0.5, -0.3], 80, 2, seed=3)
    fitted = fit(replace(votes, is_strong=np.zeros(len(votes), np.bool_)))
    evidence = _evidence(replace(votes, is_strong=np.zeros(len(votes), np.bool_)), [])
    center = np.concatenate([fitted.parameters.ability, fitted.parameters.side, [fitted.parameters.mean]])

    def value(vector: np.ndarray) -> float:
        moved = replace(fitted.parameters, ability=vector[:3], side=vector[3:6], mean=float(vector[6]))
        return evidence.expectation(moved)[1]

    step, size = 1e-3, len(center)
    hessian = np.zeros((size, size))
    for one in range(size):
        for other in range(size):
            e, f = step * np.eye(size)[one], step * np.eye(size)[other]
            hessian[one, other] = (
                value(center + e + f) - value(center + e - f) - value(center - e + f) + value(center - e - f)
            ) / (4 * step**2)
    by_differences = np.linalg.inv(-hessian)
    p = fitted.posterior.p
    ours = credible.covariance(evidence.differences(fitted.parameters), fitted.parameters, evidence.counts(p), p)
    for place in range(3):
        expected = by_differences[np.ix_([place, 3 + place], [place, 3 + place])]
        assert ours[place] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_nothing_and_what_is_none():
    fitted = fit([])
    assert (fitted.annotators, fitted.posterior.p.tolist()) == ([], [])
    with pytest.raises(KeyError, match="Pair 3 has no judgement"):
        fitted.posterior.of(3)
    with pytest.raises(ValueError, match="not 'left'"):
        columns([1], [1], ["left"], ["a"])
    with pytest.raises(ValueError, match="not 'c'"):
        columns([1], [1], ["a"], ["c"])
    with pytest.raises(ValueError, match="must have one length"):
        columns([1, 2], [1], ["a"], ["a"])
    with pytest.raises(ValueError, match="A choice is a place"):
        VoteColumns(*(np.array([9]),) * 3, *(np.array([True]),) * 2)


def test_two_hundred_thousand_votes_take_seconds():
    """Generous by an order of magnitude: what fails here loops over votes."""
    random = np.random.default_rng(0)
    votes, _ = _simulated(random.normal(1.25, 0.7, 40), random.normal(0, 0.5, 40), 66_667, 3)
    started = time.perf_counter()
    fitted = fit(votes)
    assert fitted.has_converged
    assert time.perf_counter() - started < 15


@pytest.mark.parametrize("error", [0.01, 0.05, 0.2])
def test_a_decision_counts_by_how_often_it_is_wrong(error):
    fitted = fit([], adjudications=[Adjudication(1, "a", error), Adjudication(2, "b", error)])
    assert _p(fitted) == pytest.approx({1: 1 - error, 2: error})


def test_an_answer_beside_a_known_one_shows_who_is_able():
    votes = [Vote(n, n % 2, "a" if n % 2 else "b", "ab"[n // 2 % 2]) for n in range(80)]
    known = [Adjudication(n, "a", GOLD_ERROR) for n in range(80)]
    wrong, right = fit(votes, adjudications=known).annotators
    assert wrong.reliability < 0.25 < 0.85 < right.reliability
    assert (wrong.shared, right.shared) == (40, 40)
