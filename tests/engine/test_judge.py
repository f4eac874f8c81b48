"""The judge: it learns a taste, it learns length, and it tells the two apart."""

from __future__ import annotations

import numpy as np
import pytest

from training.engine import judge
from training.engine.judge import Labelled, Pairs

WIDTH = 12
TASTE = np.zeros(WIDTH)
TASTE[:2] = (2.0, -1.5)


def differences(pairs: int, seed: int, *, tokens: float = 0.0, leak: float = 0.0) -> Pairs:
    """Pairs of a prompt in twos. ``tokens``: by how many the first is longer on average; ``leak``: how strongly the
    last state says which is longer."""
    generator = np.random.default_rng(seed)
    lengths = generator.normal(tokens, 30, size=pairs).round()
    states = generator.normal(size=(pairs, WIDTH))
    states[:, -1] += leak * lengths / 30
    return Pairs(states, lengths, [f"prompt {number // 2}" for number in range(pairs)])


def labelled(pairs: Pairs, logits: np.ndarray, seed: int = 9) -> Labelled:
    """Labels drawn from Bradley and Terry's model; each pair is turned so that its preferred response is first."""
    preferred = np.random.default_rng(seed).random(len(pairs)) < judge.sigmoid(logits)
    sign = np.where(preferred, 1.0, -1.0)
    ones = np.ones(len(pairs))
    return Labelled(pairs.states * sign[:, None], pairs.tokens * sign, pairs.prompts, ones, 0 * ones)


def by_taste(pairs: Pairs) -> np.ndarray:
    return pairs.states @ TASTE


def by_length(pairs: Pairs) -> np.ndarray:
    return 3 * np.tanh(pairs.tokens / 30)


def taught(logits: object, pairs: int = 600, **values: float) -> judge.Judge:
    shown = differences(pairs, seed=1, **values)
    found = judge.fit(labelled(shown, logits(shown)))  # type: ignore[operator]
    assert found is not None
    return found


def weights_of_states(found: judge.Judge) -> np.ndarray:
    return found.view.axes @ found.weights[:-1] / found.view.scale


def test_a_linear_taste_is_recovered() -> None:
    found = taught(by_taste)
    learnt = weights_of_states(found)
    assert learnt @ TASTE / np.linalg.norm(learnt) / np.linalg.norm(TASTE) > 0.97
    unseen = differences(400, seed=2)
    figures = judge.describe(found, found.pairs, labelled(unseen, by_taste(unseen), seed=3))
    assert figures["accuracy"] > 0.8
    assert figures["usable"]
    assert figures["accuracy_interval"][0] < figures["accuracy"] < figures["accuracy_interval"][1]
    assert (figures["pairs"], figures["train_pairs"], figures["train_prompts"]) == (400, 600, 300)


def test_the_optimum_has_no_slope() -> None:
    shown = differences(80, seed=4)
    pairs = labelled(shown, by_taste(shown) + by_length(shown))
    columns = judge.View.of(pairs).columns(pairs)
    noise, weight = np.linspace(0, 0.45, 80), np.linspace(0.5, 2, 80)
    theta = judge.fitted(columns, weight, noise, 0.01)
    ridge = np.full(len(theta), 0.01)
    ridge[-1] = judge.LENGTH_PENALTY

    def objective(at: np.ndarray) -> float:
        return judge.loss(columns @ at, weight / weight.sum(), noise) + float(ridge @ at**2) / 2

    for place in range(len(theta)):
        step = np.eye(len(theta))[place] * 1e-4
        slope = (objective(theta + step) - objective(theta - step)) / 2e-4
        assert slope == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("leak", [0.0, 1.0])
def test_where_only_length_matters_a_longer_candidate_gains_nothing_by_it(leak: float) -> None:
    """Also where the states themselves say how long a response is."""
    found = taught(by_length, leak=leak)
    figures = judge.win_rate(found, differences(200, seed=5, tokens=60, leak=leak))
    assert figures["raw"] > 0.85
    low, high = figures["length_controlled_interval"]
    assert low < 0.5 < high
    assert figures["length_controlled"] == pytest.approx(0.5, abs=0.05)
    assert figures["raw_interval"][0] > 0.7


def test_a_better_candidate_of_the_same_length_wins_either_way() -> None:
    found = taught(lambda pairs: by_taste(pairs) + by_length(pairs))
    answers = differences(200, seed=6)
    better = Pairs(answers.states + 0.5 * TASTE, answers.tokens, answers.prompts)
    figures = judge.win_rate(found, better)
    assert figures["raw_interval"][0] > 0.55
    assert figures["length_controlled_interval"][0] > 0.55
    assert figures["prompts"] == 200


def test_an_equal_candidate_that_learnt_the_same_mistakes_is_preferred_for_sure() -> None:
    """Which is why the judge promotes nothing.

    People have a taste in two directions of a hundred; in the others their labels are chance. The candidate's answers
    are as good as any and have moved along what the labels happen to say in those others. The judge is right about the
    taste, so it is believed; a judge that the same people taught by other labels has nothing for the candidate.
    """
    wide, generator = 100, np.random.default_rng(15)
    taste = np.pad(TASTE[:2], (0, wide - 2))

    def drawn(pairs: int) -> Pairs:
        names = [f"prompt {number // 2}" for number in range(pairs)]
        return Pairs(generator.normal(size=(pairs, wide)), generator.normal(0, 30, size=pairs).round(), names)

    def taught_by_people(seed: int) -> judge.Judge:
        shown = drawn(400)
        found = judge.fit(labelled(shown, shown.states @ taste, seed))
        assert found is not None
        return found

    same, others = taught_by_people(16), taught_by_people(17)
    mistakes = np.where(taste == 0, same.pairs.states.mean(axis=0), 0)
    plain = drawn(300)
    answers = Pairs(plain.states + mistakes / np.linalg.norm(mistakes), plain.tokens, plain.prompts)
    unseen = drawn(200)
    assert judge.describe(same, same.pairs, labelled(unseen, unseen.states @ taste))["usable"]
    assert judge.win_rate(same, answers)["length_controlled_interval"][0] > 0.5
    low, high = judge.win_rate(others, answers)["length_controlled_interval"]
    assert low < 0.5 < high


def test_identical_answers_are_won_by_half_of_each() -> None:
    found = taught(by_taste)
    same = Pairs(np.zeros((8, WIDTH)), np.zeros(8), [str(number) for number in range(8)])
    figures = judge.win_rate(found, same)
    assert figures["raw"] == figures["length_controlled"] == 0.5
    assert figures["raw_interval"] == [0.5, 0.5]


def test_the_sides_of_a_pair_do_not_matter() -> None:
    """There is no intercept: what is said of (a, b) is the opposite of what is said of (b, a)."""
    found = taught(lambda pairs: by_taste(pairs) + by_length(pairs))
    answers = differences(50, seed=7, tokens=20)
    turned = Pairs(-answers.states, -answers.tokens, answers.prompts)
    assert judge.win_rate(found, answers)["raw"] == pytest.approx(1 - judge.win_rate(found, turned)["raw"])
    sides = np.where(np.arange(len(found.pairs)) % 2, 1, -1)
    shown = found.pairs
    upside_down = Labelled(-shown.states, -shown.tokens, shown.prompts, shown.weight, 1 - shown.noise)
    again = judge.fit(upside_down)
    assert again is not None
    assert len(sides) == len(again.pairs)
    assert weights_of_states(again) == pytest.approx(weights_of_states(found), abs=1e-6)


def test_weight_and_label_noise_are_respected() -> None:
    """Wrong labels of no weight do no harm, and a tie pulls towards no preference."""
    shown = differences(200, seed=8)
    pairs = labelled(shown, 4 * by_taste(shown))
    wrong = np.arange(200) % 2 == 0
    turn = np.where(wrong, -1.0, 1.0)
    weight = np.where(wrong, 0.0, 1.0)
    muddled = Labelled(pairs.states * turn[:, None], pairs.tokens * turn, pairs.prompts, weight, pairs.noise)
    found = judge.fit(muddled)
    assert found is not None
    right = judge.wins(found.view.columns(pairs) @ found.weights).mean()
    assert right > 0.9
    ties = judge.fit(Labelled(pairs.states, pairs.tokens, pairs.prompts, pairs.weight, 0 * pairs.noise + 0.5))
    assert ties is not None
    assert np.abs(ties.weights).max() < 1e-6


def test_labels_that_say_nothing_are_held_small_and_the_judge_is_not_believed() -> None:
    noise = taught(lambda pairs: 0 * pairs.tokens, pairs=120)
    assert noise.penalty >= 0.1
    unseen = differences(120, seed=11)
    figures = judge.describe(noise, noise.pairs, labelled(unseen, by_taste(unseen)))
    assert not figures["usable"]
    few = judge.describe(noise, noise.pairs, differences(judge.LEAST_PAIRS - 1, seed=12))
    assert not few["usable"]


def test_a_few_right_pairs_do_not_make_a_judge_believed() -> None:
    found = taught(by_taste)
    sure = differences(judge.LEAST_PAIRS - 1, seed=13)
    sign = np.sign(by_taste(sure))
    easy = Pairs(sure.states * sign[:, None] + TASTE, sure.tokens, sure.prompts)
    figures = judge.describe(found, found.pairs, easy)
    assert figures["accuracy"] == 1.0
    assert not figures["usable"]


@pytest.mark.parametrize(("pairs", "prompts"), [(0, 1), (judge.LEAST_PAIRS - 1, 99), (40, judge.LEAST_PROMPTS - 1)])
def test_too_little_to_learn_from_is_no_judge(pairs: int, prompts: int) -> None:
    names = [str(number % prompts) for number in range(pairs)]
    shown = Labelled(np.ones((pairs, 3)), np.ones(pairs), names, np.ones(pairs), np.zeros(pairs))
    assert judge.fit(shown) is None
    assert judge.describe(None, shown, differences(30, seed=1)) == {
        "train_pairs": pairs, "train_prompts": len(set(names)), "pairs": 0, "usable": False,
    }  # fmt: skip
    assert judge.win_rate(None, differences(30, seed=1)) == {"prompts": 0}


def test_pairs_of_one_prompt_are_in_one_fold() -> None:
    prompts = [f"prompt {number % 13}" for number in range(60)]
    folds = judge.folds_of(prompts)
    assert len({*zip(prompts, folds.tolist(), strict=True)}) == 13
    assert set(folds) == set(range(judge.FOLDS))


def test_the_interval_knows_how_little_the_judge_was_taught() -> None:
    """The same answers, by a judge of few labels and by one of many."""
    plain = differences(400, seed=14)
    answers = Pairs(plain.states + TASTE / 2, plain.tokens, plain.prompts)
    widths = []
    for pairs in (40, 1500):
        low, high = judge.win_rate(taught(by_taste, pairs=pairs), answers)["length_controlled_interval"]
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1]
