"""The loop's benchmark: a known taste, people who have it more or less, and figures that say how good a policy is."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from benchmarks.loop_figures import Answer, compared, difference, interval, reward, table, wins
from benchmarks.loop_plot import svg
from benchmarks.loop_prompts import JUDGING_SUBJECTS, LABELLED_SUBJECTS, asked_about
from benchmarks.taste import LONGEST_WORD, Annotator, annotators, plainness
from labeling.prompts import content_hash, is_held_out

PLAIN, HEAVY = "the cat sat on the mat", "considerable sophistication characterises contemporary architecture"


def answers(**texts):
    return {prompt: [Answer(text, len(text.split()))] for prompt, text in texts.items()}


def row(number, rate):
    return {
        "round": number,
        "labels": 96 * number,
        "label_accuracy": 0.7,
        "true_win_rate": rate,
        "ci": [rate - 0.1, rate + 0.1],
        "true_reward": -4.5,
        "kl": None,
        "mean_length": 31.0,
        "heldout_accuracy": None,
        "heldout_ci": None,
    }


def test_plain_words_are_liked_however_many_there_are():
    assert plainness(PLAIN) > plainness(HEAVY)
    assert plainness(PLAIN) == pytest.approx(plainness(f"{PLAIN} {PLAIN}"))
    assert plainness("aa bbbb") == -3


def test_an_endless_word_and_no_words_are_as_bad_as_can_be():
    assert plainness("1" * 400) == plainness("") == -LONGEST_WORD


def test_a_careful_annotator_finds_the_plainer_side_and_a_noisy_one_misses_a_quarter():
    chance = random.Random(1)
    careful, noisy = Annotator("a", 0.0), Annotator("b", 0.25)
    assert {careful.vote(PLAIN, HEAVY, chance) for _ in range(50)} == {"left"}
    assert {careful.vote(HEAVY, PLAIN, chance) for _ in range(50)} == {"right"}
    votes = Counter(noisy.vote(HEAVY, PLAIN, chance) for _ in range(4000))
    assert votes["left"] / 4000 == pytest.approx(0.25, abs=0.03)


def test_one_of_three_leans_to_the_left():
    chance = random.Random(2)
    ada, ben, leo = annotators(0.25)
    assert (ada.left_habit, ben.left_habit) == (0, 0)
    lefts = Counter(leo.vote(*random.Random(number).sample([PLAIN, HEAVY], 2), chance) for number in range(4000))
    assert lefts["left"] / 4000 == pytest.approx(0.35 + 0.65 / 2, abs=0.03)


def test_equals_are_a_toss_and_every_vote_takes_as_much_of_chance():
    leo = Annotator("leo", 0.25, left_habit=0.5)
    tossed = Counter(Annotator("a", 0.0).vote(PLAIN, PLAIN, random.Random(number)) for number in range(400))
    assert 130 < tossed["left"] < 270
    one, other = random.Random(3), random.Random(3)
    for pair in ((PLAIN, HEAVY), (HEAVY, PLAIN), (PLAIN, PLAIN)):
        leo.vote(*pair, one)
        leo.vote(PLAIN, HEAVY, other)
    assert one.random() == other.random()


def test_prompts_that_judge_are_on_no_subject_that_is_labelled():
    labelled, judging = asked_about(LABELLED_SUBJECTS), asked_about(JUDGING_SUBJECTS)
    assert len(set(labelled)) == len(labelled) >= 160
    assert len(set(judging)) == len(judging) >= 96
    assert not set(LABELLED_SUBJECTS) & set(JUDGING_SUBJECTS)
    held_out = [is_held_out(content_hash([{"role": "user", "content": prompt}])) for prompt in labelled]
    assert 0.1 < sum(held_out) / len(held_out) < 0.3, "enough to train on, and enough to judge a run by"


def test_a_policy_is_compared_on_the_prompts_that_both_have_answered():
    better, sft = answers(a=PLAIN, b=PLAIN, c=PLAIN), answers(a=HEAVY, b=PLAIN, d=HEAVY)
    assert wins(better, sft) == [1.0, 0.5]
    assert compared(better, sft)["true_win_rate"] == 0.75
    assert difference(sft, better)["win_rate"] == 0.25
    assert reward(better) == pytest.approx(plainness(PLAIN))


def test_every_answer_meets_every_other_of_its_prompt():
    ours = {"a": [Answer(PLAIN, 6), Answer(HEAVY, 4)]}
    theirs = {"a": [Answer(HEAVY, 4), Answer(HEAVY, 4)]}
    assert wins(ours, theirs) == [0.75]


def test_the_interval_holds_the_mean_and_narrows_with_prompts():
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 200)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert interval([0.5] * 10) == [0.5, 0.5]


def test_the_table_has_a_line_for_each_round_of_each_arm():
    lines = table({"one": [row(1, 0.6), row(2, 0.7)], "two": [row(1, 0.55)]}).splitlines()
    assert len(lines) == 4
    assert "60.0% (50% to 70%)" in lines[1]
    assert "none" in lines[1]


def test_the_plot_is_well_formed_names_its_lines_and_keeps_names_apart():
    drawn = ElementTree.fromstring(svg({"one & all": [row(1, 0.6), row(2, 0.7)], "two": [row(1, 0.6)]}, "A <title>"))
    name = "{http://www.w3.org/2000/svg}"
    texts = {element.text: element for element in drawn.iter(f"{name}text")}
    assert {"one & all", "two", "A <title>", "SFT"} <= set(texts)
    heights = sorted(float(texts[each].get("y")) for each in ("one & all", "two"))
    assert heights[1] - heights[0] >= 18
    assert len(list(drawn.iter(f"{name}circle"))) == 3
    assert not list(drawn.iter(f"{name}style"))
