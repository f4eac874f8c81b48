"""The learning rate of a recipe that names none: by the steps of the run, once its triples are counted."""

from __future__ import annotations

import itertools

import pytest

from training import services, sweeps
from training.engine.step_plan import plan_steps
from training.exceptions import Rejected
from training.jobspec import TrainJob
from training.learning_rate import HIGHEST, LOWEST, OF_FAST, OF_FULL, REACH, steps_of, usual_learning_rate
from training.models import TrainingRun
from training.recipe import Recipe, for_engine


def test_the_steps_are_those_that_the_engine_plans():
    for pairs, epochs, together in itertools.product((1, 7, 8, 9, 100), (0.1, 0.5, 1.0, 2.5, 3.0), (1, 8, 16)):
        assert steps_of(pairs, epochs, together) == len(plan_steps(pairs, together, epochs, seed=0))


def test_it_falls_as_steps_grow_and_stays_between_its_bounds():
    rates = [usual_learning_rate("lora", "exact", steps) for steps in range(12_000)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[1], rates[-1]) == (HIGHEST, HIGHEST, LOWEST)
    for steps in range(round((REACH / HIGHEST) ** 2), round((REACH / LOWEST) ** 2)):
        assert steps**0.5 * rates[steps] == pytest.approx(REACH, rel=0.06), "a rate of two digits"
        assert usual_learning_rate("full", "exact", steps) == pytest.approx(rates[steps] * OF_FULL, rel=0.06)
        assert usual_learning_rate("lora", "fast", steps) == pytest.approx(rates[steps] * OF_FAST, rel=0.06)


def test_one_that_was_named_stays():
    assert Recipe(learning_rate=3e-6).settled(10) == Recipe(learning_rate=3e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_recipe_of_a_run_says_which_it_was(project, policy, label, method):
    label(10)
    run = services.request_run(project=project, recipe=Recipe(method=method))
    steps = steps_of(run.snapshot.train_triples, Recipe.epochs, Recipe.pairs_per_step)
    assert run.recipe["learning_rate"] == usual_learning_rate(method, "exact", steps) > 0
    assert TrainJob(reference=None, seed=0, **for_engine(run.recipe)).learning_rate == run.recipe["learning_rate"]


def test_runs_of_the_rule_follow_the_labels_that_have_come(project, policy, label):
    """What the rule keeps is only what was changed, so that the rate is found anew for every run."""
    services.use_recipe(project=project, recipe=Recipe(epochs=5.0).to_dict())
    rule = services.loop_rule(project)
    assert rule.recipe == {"epochs": 5.0}
    label(10)
    run = services.request_run(project=project, recipe=Recipe.from_dict(rule.recipe))
    assert Recipe.from_dict(rule.recipe).settled(60_000).learning_rate == LOWEST < run.recipe["learning_rate"]


def test_the_points_of_a_sweep_share_one_unless_several_are_named(project, policy, label):
    label(10)
    sweep = sweeps.request_sweep(project=project, recipe=Recipe(), betas=(0.1, 0.5))
    runs = TrainingRun.objects.filter(sweep=sweep)
    assert {run.recipe["learning_rate"] for run in runs} == {Recipe().settled(10).learning_rate}


def test_nought_is_no_learning_rate_of_a_sweep():
    with pytest.raises(Rejected, match="Name none for the usual one"):
        sweeps.grid(Recipe(), (0.1, 0.5), (0.0, 1e-4))
