"""Agreement: against the package, against enumeration, and what its words say."""

from __future__ import annotations

from itertools import combinations

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.agreement import LEAST_PAIRS, Estimate, band, by_annotator, overall, self_agreement
from labeling.votes import CHOICES, Vote, VoteColumns, as_columns

CHOICE = st.sampled_from(CHOICES)
PAIRS = st.lists(st.lists(CHOICE, min_size=2, max_size=5), min_size=LEAST_PAIRS, max_size=40)
READING = {"a": -1.0, "b": 1.0, "tie": 0.0}
quick = settings(max_examples=40, deadline=None)


def _votes(pairs: list[list[str]]) -> list[Vote]:
    """Each pair judged by annotators 1, 2, 3 and so on."""
    return [Vote(n, who, choice, "a") for n, pair in enumerate(pairs) for who, choice in enumerate(pair, start=1)]


def _drawn(random: np.random.Generator, right: list[float], pairs: int) -> list[Vote]:
    """Annotators who choose what is better of a or b with these probabilities, all on all pairs."""
    better = random.random(pairs) < 0.5
    found = random.random((pairs, len(right))) < np.asarray(right)
    return [
        Vote(n, who, "a" if found[n, who] == better[n] else "b", "a") for n in range(pairs) for who in range(len(right))
    ]


@quick
@given(PAIRS)
def test_alpha_is_that_of_the_package(pairs):
    counts = np.array([[pair.count(choice) for choice in CHOICES] for pair in pairs])
    ours = overall(_votes(pairs)).alpha
    if ours.value is None:
        assert len({choice for pair in pairs for choice in pair}) == 1
        assert "are the same" in ours.reason
    else:
        assert ours.value == pytest.approx(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


@quick
@given(PAIRS)
def test_the_interval_reading_is_that_of_the_package(pairs):
    kept = [[READING[choice] for choice in pair if choice != "both_bad"] for pair in pairs]
    kept = [pair for pair in kept if len(pair) > 1]
    ours = overall(_votes(pairs)).alpha_interval
    if len(kept) < LEAST_PAIRS:
        assert ours.value is None
        assert ours.reason == f"{len(kept)} shared pairs so far; a figure needs {LEAST_PAIRS}."
    elif ours.value is not None:
        counts = np.array([[pair.count(place) for place in (-1, 0, 1)] for pair in kept])
        theirs = krippendorff.alpha(value_counts=counts, value_domain=[-1, 0, 1], level_of_measurement="interval")
        assert ours.value == pytest.approx(theirs)


@quick
@given(PAIRS)
def test_shares_are_those_of_an_enumeration(pairs):
    met = [two for pair in pairs for two in combinations(pair, 2)]
    agreement = overall(_votes(pairs))
    assert agreement.equal.value == pytest.approx(np.mean([one == other for one, other in met]))
    compared = [two for two in met if "both_bad" not in two]
    if agreement.half.value is not None:
        credit = [1.0 if one == other else 0.5 if "tie" in (one, other) else 0.0 for one, other in compared]
        assert agreement.half.value == pytest.approx(np.mean(credit))


@quick
@given(PAIRS)
def test_an_annotator_against_the_others_is_an_enumeration_too(pairs):
    found = by_annotator(_votes(pairs))
    for who in (1, 2):
        shares = [
            np.mean([pair[who - 1] == other for place, other in enumerate(pair, start=1) if place != who])
            for pair in pairs
        ]
        assert found[who].value == pytest.approx(np.mean(shares))


@quick
@given(st.lists(st.lists(CHOICE, min_size=2, max_size=2), min_size=LEAST_PAIRS, max_size=40))
def test_of_two_each_agrees_with_the_other_as_both_do(pairs):
    votes = _votes(pairs)
    together, found = overall(votes), by_annotator(votes)
    for who in (1, 2):
        assert found[who].value == pytest.approx(together.equal.value)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    right = [0.9, 0.8, 0.7]
    truth = np.mean([one * other + (1 - one) * (1 - other) for one, other in combinations(right, 2)])
    held = [
        estimate.low <= truth <= estimate.high
        for seed in range(100)
        if (estimate := overall(_drawn(np.random.default_rng(seed), right, 80), seed=seed).equal)
    ]
    assert 0.88 <= np.mean(held) <= 0.99


def test_the_interval_is_the_bootstrap_over_pairs():
    """Draws over kinds of pairs against draws over the pairs themselves."""
    random = np.random.default_rng(5)
    votes = _drawn(random, [0.85, 0.7], 60)
    estimate = overall(votes).equal
    same = np.array([votes[2 * n].choice == votes[2 * n + 1].choice for n in range(60)])
    drawn = same[random.integers(0, 60, (20_000, 60))].mean(axis=1)
    assert [estimate.low, estimate.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert overall(votes).equal == estimate, "seeded"


def test_growing_redundancy_is_left_out_where_it_is_told():
    """Two asked, a third where they differ: all judgements together read too low, the first two do not."""
    random = np.random.default_rng(1)
    pairs = []
    for _ in range(4000):
        first, second, third = random.choice(["a", "b"], 3, p=[0.775, 0.225])
        pairs.append([first, second] if first == second else [first, second, third])
    truth = 0.775**2 + 0.225**2
    assert overall(_votes(pairs)).equal.value < truth - 0.04
    assert overall(_votes(pairs), asked=2).equal.value == pytest.approx(truth, abs=0.02)


def test_only_the_first_of_repeated_judgements_counts():
    pairs = [["a", "b"]] * 15 + [["a", "a"]] * 15
    again = [Vote(n, 2, "a", "b") for n in range(15)]
    assert overall(_votes(pairs) + again).equal.value == 0.5
    assert overall(_votes(pairs) + again).equal.pairs == 30


def test_too_little_is_told_with_its_reason():
    found = overall(_votes([["a", "a"]] * 3 + [["a"]] * 50))
    assert found.equal == Estimate(None, None, None, 3, found.equal.template)
    assert found.equal.reason == "3 shared pairs so far; a figure needs 20."
    assert by_annotator([]) == {}
    assert overall([]).alpha.value is None


def test_an_annotator_without_shared_pairs_is_not_in_it():
    votes = [*_votes([["a", "a"]] * 30), *[Vote(100 + n, 9, "a", "a") for n in range(30)]]
    assert set(by_annotator(votes)) == {1, 2}


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.6, 0.8, "in line"),
        (0.80, 0.95, "in line"),
        (0.5, 0.70, "in line"),
        (0.5, 0.65, "a little apart"),
        (0.3, 0.55, "often apart"),
    ],
)
def test_the_band_is_a_word(low, high, word):
    assert band(Estimate((low + high) / 2, low, high, 50), 0.70) == word


def test_the_band_of_too_few():
    assert band(Estimate(None, None, None, 3, "few"), 0.7) == "too few"
    assert band(Estimate(0.5, 0.4, 0.6, 30), None) == "too few"


def test_people_alike_are_rarely_called_apart_and_a_clicker_is():
    words, clicker = [], []
    for seed in range(10):
        votes = _drawn(np.random.default_rng(seed), [0.85] * 6 + [0.5], 100)
        project = overall(votes).equal.value
        found = {who: band(share, project) for who, share in by_annotator(votes).items()}
        clicker.append(found.pop(6))
        words += found.values()
    assert words.count("in line") >= 0.95 * len(words)
    assert "in line" not in clicker


def test_self_agreement_tells_sides_apart():
    votes = []
    for n in range(10):  # the same sides, the same choice
        votes += [Vote(n, 1, "a", "a"), Vote(n, 1, "a", "a")]
    for n in range(10, 30):  # other sides, always left
        votes += [Vote(n, 1, "a", "a"), Vote(n, 1, "b", "b")]
    votes += [Vote(40, 1, "tie", "a"), Vote(40, 1, "a", "b"), Vote(40, 1, "tie", "b"), Vote(41, 2, "a", "a")]
    found = self_agreement(votes)
    assert set(found) == {1}
    assert (found[1].overall.hits, found[1].overall.of) == (10, 31)
    assert (found[1].sides_kept.hits, found[1].sides_kept.of) == (10, 10)
    assert (found[1].sides_changed.hits, found[1].sides_changed.of) == (0, 21)
    assert (found[1].followed_side.hits, found[1].followed_side.of) == (20, 20)
    assert self_agreement([]) == {}


def test_a_hundred_thousand_pairs_are_no_work():
    random = np.random.default_rng(0)
    size = 200_000
    votes = VoteColumns(
        np.repeat(np.arange(size // 2), 2),
        np.arange(size) % 50,
        random.integers(0, 4, size),
        random.random(size) < 0.5,
        np.zeros(size, np.bool_),
    )
    found = overall(votes)
    assert found.equal.value == pytest.approx(0.25, abs=0.01)
    assert found.alpha.low < 0 < found.alpha.high
    assert len(by_annotator(votes)) == 50


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.sampled_from("ab")), max_size=150), st.integers(1, 4)
)
def test_a_number_for_each_judgement_is_the_number_for_all_where_they_are_the_same(rows, asked):
    votes = as_columns(Vote(pair, who, choice, "a") for pair, who, choice in rows)
    each = np.full(len(votes), asked)
    assert overall(votes, asked=each) == overall(votes, asked=asked)
    assert by_annotator(votes, asked=each) == by_annotator(votes, asked=asked)


def test_each_pair_has_a_number_of_its_own():
    votes = [Vote(pair, who, "ab"[who == 2], "a") for pair in range(60) for who in range(3)]
    columns = as_columns(votes)
    asked = np.where(columns.pair_id < 30, 2, 3)
    assert overall(votes, asked=asked).equal.value == pytest.approx((30 * 1 + 30 * 1) / (30 * 1 + 30 * 3))
