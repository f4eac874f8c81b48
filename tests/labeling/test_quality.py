"""Signals from counts and times: exact where they can be, rare where nothing is wrong, and in words."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import quality
from labeling.quality import Timing, judgements_needed, longest_run, run_chance, wilson
from tests.installation import ROOT

CHOICES = st.lists(st.sampled_from(["a", "b", "tie", "both_bad"]), max_size=12)


# --- Shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_as_published(hits, of, low, high):
    share = wilson(hits, of)
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_holds_its_share_and_mirrors(hits, misses):
    share, mirrored = wilson(hits, hits + misses), wilson(misses, hits + misses)
    assert 0 <= share.low <= (share.value if share.value is not None else 0.5) <= share.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - share.high, 1 - share.low))


def test_wilson_of_nothing_and_of_nonsense():
    assert wilson(0, 0) == quality.Share(0, 0, None, 0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(
    ("left", "decided", "verdict"), [(29, 29, "too few"), (55, 100, "even"), (70, 100, "left"), (30, 100, "right")]
)
def test_the_verdict_on_sides(left, decided, verdict):
    assert quality.side_verdict(left, decided)[1] == verdict


def test_the_side_signal_says_why():
    signal = quality.side_signal(180, 200)
    assert signal.severity == "look"
    assert signal.sentence.startswith("90 % of 200 decided judgements went to the left side (85 to 93 %)")
    mirrored = quality.side_signal(20, 200)
    assert mirrored.sentence == signal.sentence.replace("left", "right")
    assert quality.side_signal(115, 200) is None, "the 95 % interval leaves 1/2 out, the 99 % does not"
    assert quality.side_signal(20, 20) is None
    assert quality.side_signal(600, 1000).severity == "note"


def test_side_signals_are_rare_where_sides_do_not_pull():
    source = random.Random(4)
    told = sum(
        quality.side_signal(sum(source.random() < 0.5 for _ in range(200)), 200) is not None for _ in range(2000)
    )
    assert told < 0.02 * 2000


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_the_corrected_share_mirrors_and_holds_itself(left, right, data):
    wins_left, wins_right = data.draw(st.integers(0, left)), data.draw(st.integers(0, right))
    share = quality.corrected_share(wins_left, left, wins_right, right)
    other = quality.corrected_share(right - wins_right, right, left - wins_left, left)
    assert share.low <= share.value <= share.high
    assert share.value == pytest.approx(1 - other.value)
    assert (share.low, share.high) == pytest.approx((1 - other.high, 1 - other.low))


def test_the_pull_of_a_side_cancels_though_the_sides_are_not_balanced():
    """Wins 60 % on either side plus 20 points left; shown left nine times in ten."""
    share = quality.corrected_share(720, 900, 40, 100)
    assert share.hits / share.of == 0.76
    assert share.value == pytest.approx(0.6)
    assert share.low < 0.6 < share.high < 0.7
    assert quality.corrected_share(3, 5, 0, 0).value is None
    with pytest.raises(ValueError, match="Wins are between"):
        quality.corrected_share(6, 5, 0, 1)


def test_the_corrected_interval_holds_the_truth_about_as_often_as_it_says():
    source = random.Random(1)
    held = 0
    for _ in range(1000):
        wins_left = sum(source.random() < 0.85 for _ in range(40))
        wins_right = sum(source.random() < 0.55 for _ in range(20))
        share = quality.corrected_share(wins_left, 40, wins_right, 20)
        held += share.low <= 0.7 <= share.high
    assert 0.93 <= held / 1000 <= 0.985


# --- Redundancy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "wanted", "most", "needed"),
    [
        ("", 1, 5, 1),
        ("a", 1, 5, 1),
        ("a", 2, 5, 2),
        ("aa", 2, 5, 2),
        ("ab", 2, 5, 3),
        ("at", 2, 5, 3),
        ("ab", 3, 5, 3),
        ("aba", 3, 5, 3),
        ("abt", 3, 5, 5),
        ("abt", 3, 3, 3),
        ("abt", 3, 4, 4),
        ("aabbt", 5, 5, 5),
        ("aabbt", 5, 9, 5),
        ("abt", 2, 5, 5),
        ("ab", 2, 1, 2),
        ("aabb", 4, 5, 5),
    ],
)
def test_a_pair_grows_where_nobody_has_the_majority(choices, wanted, most, needed):
    assert judgements_needed(list(choices), wanted, most) == needed


@given(CHOICES, st.integers(1, 6), st.integers(1, 7))
def test_growth_is_bounded_and_waits_for_its_places(choices, wanted, most):
    needed = judgements_needed(choices, wanted, most)
    assert wanted <= needed <= max(wanted, most)
    if needed > len(choices):
        assert judgements_needed(choices, needed, most) == needed, "no more before they are filled"
    assert judgements_needed(choices[::-1], wanted, most) == needed
    if needed > wanted:
        assert len(choices) >= wanted
        assert all(2 * choices.count(choice) <= len(choices) for choice in choices)


def test_a_pair_wants_one_judgement_at_least():
    with pytest.raises(ValueError, match="not 0"):
        judgements_needed([], 0, 5)


# --- Speed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words", "fast"), [(9.9, 100, True), (10, 100, False), (0.9, 2, True), (1, 2, False)]
)
def test_faster_than_reading(seconds, words, fast):
    assert Timing(seconds, words).is_faster_than_reading is fast


def test_the_speed_signal_says_why():
    signal = quality.speed_signal([Timing(4, 200)] * 80 + [Timing(60, 200)] * 20)
    assert signal.severity == "look"
    assert signal.sentence == (
        "80 % of 100 judgements came faster than both texts can be read, even at 600 words a minute (half of them "
        "within 4.0 s; half of the pairs have 200 words or fewer)."
    )
    assert quality.speed_signal([Timing(4, 200)] * 55 + [Timing(60, 200)] * 45).severity == "note"
    assert quality.speed_signal([Timing(4, 200)] * 35 + [Timing(60, 200)] * 65) is None, "clear from the first lines"
    assert quality.speed_signal([Timing(4, 200)] * 29) is None


def test_an_unusual_pace_is_told_of_those_who_have_it():
    source = random.Random(2)
    times = {who: [20 * source.lognormvariate(0, 0.6) for _ in range(40)] for who in range(8)}
    times |= {"hasty": [2.0] * 40, "away": [400.0] * 40, "new": [1.0] * 5}
    signals = quality.pace_signals(times)
    assert {who: signal.severity for who, signal in signals.items()} == {"hasty": "look", "away": "note"}
    assert signals["hasty"].sentence.startswith("Half of the judgements took 2.0 s or less; of the 9 others,")
    assert signals["away"].figures["z"] > 3.5
    assert quality.pace_signals({who: times[who] for who in (0, 1, 2, "hasty")}) == {}, "four are no measure"
    assert quality.pace_signals({}) == {}


# --- Streaks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [("", (None, 0)), ("a", ("a", 1)), ("abbab", ("b", 2)), ("aabb", ("a", 2)), ("abbb", ("b", 3))],
)
def test_the_longest_run(values, expected):
    assert longest_run(values) == expected


@given(st.integers(1, 8), st.integers(0, 9), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_the_chance_of_a_run_is_that_of_an_enumeration(of, length, parts):
    rates = [part / sum(parts) for part in parts]
    chance = 0.0
    for drawn in product(range(len(rates)), repeat=of):
        if longest_run(drawn)[1] >= length:
            probability = 1.0
            for value in drawn:
                probability *= rates[value]
            chance += probability
    assert run_chance(rates, length, of) == pytest.approx(chance)


def test_the_chance_of_long_runs():
    assert run_chance([0.5, 0.5], 7, 100) == pytest.approx(0.5423, abs=1e-3)  # heads or tails, Schilling 1990
    assert run_chance([1.0], 50, 50) == 1.0
    with pytest.raises(ValueError, match="sum to 1"):
        run_chance([0.5, 0.6], 3, 10)


def test_the_streak_signal_says_why():
    source = random.Random(3)
    sides = [source.choice(["left", "right"]) for _ in range(80)]
    assert quality.streak_signal(sides, "side") is None
    signal = quality.streak_signal([*sides, "right", *["left"] * 30], "side")
    assert signal.severity == "look"
    assert signal.sentence.startswith("30 judgements in a row went to the left side, of 111.")
    assert quality.streak_signal(["left"] * 200, "side") is None, "no run is unlikely for one who always votes left"
    assert quality.streak_signal(["left"] * 10, "side") is None
    ties = quality.streak_signal(["a", "b", "tie", "b", "a"] * 12 + ["tie"] * 15, "choice")
    assert "were “tie”" in ties.sentence


def test_streak_signals_are_rare_where_nothing_is_wrong():
    source = random.Random(5)
    told = sum(
        quality.streak_signal(["ab"[source.random() < 0.6] for _ in range(60)], "choice") is not None
        for _ in range(500)
    )
    assert told <= 0.02 * 500


# --- Gold, length, pace of the project -------------------------------------------------------------------------------


def test_low_reliability_is_told_where_it_is_surely_below():
    assert quality.reliability_signal(0.5, 0.3, 0.7, 20) is None, "it could be 70 %"
    assert quality.reliability_signal(0.55, 0.51, 0.596, 400) is None, "at 99 % it could"
    assert quality.reliability_signal(0.8, 0.7, 0.87, 100) is None
    note, look = quality.reliability_signal(0.54, 0.51, 0.57, 2000), quality.reliability_signal(0.3, 0.2, 0.42, 60)
    assert (note.severity, look.severity) == ("note", "look")
    assert "By the 60 judgements" in look.sentence
    assert "30 % (20 to 42 %)" in look.sentence


def test_gold_is_told_where_it_is_surely_below():
    assert quality.gold_signal(0, 0) is None
    assert quality.gold_signal(7, 10) is None, "it could be 80 %"
    assert quality.gold_signal(40, 50) is None
    note, look = quality.gold_signal(60, 100), quality.gold_signal(24, 50)
    assert (note.severity, look.severity) == ("note", "look")
    assert look.sentence == "24 of 50 gold pairs were judged as agreed (35 to 61 %); 80 % are wanted."


def test_length_is_told_and_not_judged():
    assert quality.length_signal(55, 100) is None
    assert quality.length_signal(20, 20) is None
    signal = quality.length_signal(80, 100)
    assert signal.severity == "look"
    assert signal.sentence.startswith("The longer response won 80 % of 100 decided judgements (71 to 87 %).")
    assert quality.length_signal(600, 1000).severity == "note"
    assert quality.length_signal(400, 1000).figures["share"] == pytest.approx(40)


def test_the_eta_is_at_the_rate_of_the_last_days():
    estimate = quality.eta(100, [10, 20, 15, 0, 5])
    assert (estimate.days, estimate.a_day) == (10.0, 10.0)
    assert estimate.earliest < 10 < estimate.latest
    assert quality.eta(100, [1, 0, 0, 0]).latest is None
    assert quality.eta(100, [0, 0]) is None
    assert quality.eta(100, []) is None
    assert quality.eta(0, [4]).days == 0
    with pytest.raises(ValueError, match="not negative"):
        quality.eta(-1, [4])


# --- What may import it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["labeling.quality", "labeling.strangers"])
def test_it_needs_the_standard_library_alone(module):
    code = (
        f"import sys; before = set(sys.modules); import {module}\n"
        "foreign = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert foreign == {'labeling'}, foreign"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@given(st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_at_its_ends_the_share_lies_as_far_away_as_the_interval_is_defined(numbers):
    hits, of = numbers
    share = quality.wilson(hits, of)
    assert 0 <= share.low <= hits / of <= share.high <= 1
    for end in (share.low, share.high):
        distance = (hits / of - end) ** 2
        assert distance == pytest.approx(quality.Z95**2 * end * (1 - end) / of, abs=1e-12)


def test_of_eight_in_ten_and_of_nothing():
    share, none = quality.wilson(8, 10), quality.wilson(0, 0)
    assert (share.low, share.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (none.value, none.low, none.high) == (None, 0.0, 1.0)
