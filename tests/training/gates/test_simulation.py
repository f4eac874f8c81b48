"""The gate on simulated candidates whose truth is known; ``benchmarks/gate.py`` does more of the same."""

from __future__ import annotations

import random

import pytest

from benchmarks import gate


def test_looking_after_every_vote_promotes_an_equal_candidate_with_5_percent_at_most():
    row = gate.the_test(0.5, 1000, 150, random.Random(1))
    assert 0 < row["promoted"] <= 0.05
    assert 0 < row["rejected"] <= 0.05
    assert row["peeking_interval"][0] > 0.1, "the same looks at an interval that is meant for one look"


def test_power_grows_with_the_difference_and_votes_fall():
    rows = [gate.the_test(win, 200, 300, random.Random(2)) for win in (0.55, 0.6, 0.7)]
    assert rows[0]["promoted"] < rows[1]["promoted"] < rows[2]["promoted"]
    assert rows[1]["promoted"] > 0.65
    assert rows[2]["promoted"] > 0.98
    assert rows[2]["median_votes"] < 70 < rows[1]["median_votes"]


def test_figures_alone_promote_an_equal_candidate_with_2_5_percent_at_most_whatever_the_judge_has_learnt():
    row = gate.whole(gate.World("equal"), 600, 0, random.Random(3))
    assert row["promote"] <= 0.04, "2.5 % and two and a half standard errors of 600"
    figures = [gate.measured(gate.World("equal"), random.Random(number), has_judge=True) for number in range(100)]
    for_sure = sum(one["win_rate"]["length_controlled_interval"][0] > 0.5 for one in figures)
    assert for_sure > 25, "the judge calls many of them better"


@pytest.mark.parametrize("most_votes", [0, 150], ids=["by figures", "by people"])
def test_a_candidate_that_is_only_longer_is_not_promoted(most_votes):
    (world,) = (world for world in gate.WORLDS if world.name == "only longer")
    row = gate.whole(world, 6 if most_votes else 30, most_votes, random.Random(4), every=15)
    assert row["promote"] == 0
    assert row["reject"] > 0.6


def test_the_whole_gate_finds_a_better_candidate():
    row = gate.whole(gate.World("70 %", 0.7), 8, 300, random.Random(5), every=5)
    assert row["promote"] > 0.8
    assert row["mean_votes"] < 150


def test_the_same_seed_gives_the_same_figures():
    assert gate.simulate(20, 1, 40, 7, figures_gates=2) == gate.simulate(20, 1, 40, 7, figures_gates=2)
