"""The recipe: its bounds and choices, and recipes of earlier versions."""

from __future__ import annotations

from dataclasses import fields

import pytest

from training.exceptions import Rejected
from training.jobspec import ModelRef, TrainJob
from training.recipe import CHOICES, LABELS, Recipe, for_engine
from training.triples import LabelRule

# As runs of version 0.1 before the fast mode and the losses have it in the database.
EARLIER = {
    "method": "lora",
    "beta": 0.1,
    "learning_rate": 5e-5,
    "epochs": 3.0,
    "pairs_per_step": 8,
    "micro_batch": 1,
    "max_length": 1024,
    "warmup_ratio": 0.1,
    "lora_rank": 16,
    "lora_alpha": 32,
}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"beta": -1.0}, "beta is -1"),
        ({"epochs": 1000}, "epochs is 1000"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"micro_batch": -1}, "micro_batch is -1; it must lie between 0 and"),
        ({"sft_weight": -0.1}, "sft_weight is -0.1"),
        ({"ld_alpha": 1.1}, "ld_alpha is 1.1; it must lie between 0 and 1"),
        ({"fast_layers": -1}, "fast_layers is -1"),
        ({"processes": 65}, "processes is 65"),
        ({"method": "magic"}, "no method “magic”; use lora or full"),
        ({"mode": "slow"}, "no mode “slow”; use exact or fast"),
        ({"loss": "kto"}, "no loss “kto”; use dpo, ipo, hinge, robust, apo_zero or apo_down"),
        ({"sharding": "zero"}, "no sharding “zero”"),
        ({"ties": "win"}, "no ties “win”; use drop or half"),
        ({"pair_weight": "votes", "label_noise": "none"}, "would weigh a pair most on which people disagree most"),
        ({"pair_weight": "votes"}, "count each twice. Take label noise from the votes"),
        ({"pair_weight": "posterior"}, "label noise from the posterior say the same doubt"),
        ({"pair_weight": "posterior", "label_noise": "votes"}, "label noise from the votes say the same doubt"),
        ({"label_noise": ["votes"]}, "no label noise"),
        ({"pair_weight": "people"}, "no pair weight “people”; use equal, votes or posterior"),
        ({"speed": 1}, "no field “speed”"),
        ({"beta": "high"}, "beta must be a number"),
        ({"lora_rank": True}, "lora_rank must be a number"),
        ({"lora_rank": 16.5}, "must be a whole number"),
        ({"loss": "robust", "ties": "half", "label_noise": "votes"}, "The robust loss divides by 1 − 2ε"),
        ({"loss": "robust", "label_noise": "none"}, "without any it is plain DPO. Take label noise from the votes"),
        ({"loss": "apo_zero", "ties": "half"}, "Under APO-zero a tie has no gradient.*Leave ties out"),
        ({"loss": "apo_down", "ties": "half"}, "Under APO-down a tie makes both of its responses less likely"),
    ],
)
def test_a_recipe_out_of_bounds_is_refused(values, reason):
    with pytest.raises(Rejected, match=reason):
        Recipe.from_dict(values)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "hinge"])
def test_other_losses_take_ties(loss):
    assert Recipe.from_dict({"loss": loss, "ties": "half"}).loss == loss


def test_the_robust_loss_takes_its_noise_from_the_votes():
    assert Recipe.from_dict({"loss": "robust", "label_noise": "votes"}).label_rule == LabelRule(noise="votes")
    both = Recipe.from_dict({"pair_weight": "votes", "label_noise": "votes", "ties": "half"})
    assert both.label_rule == LabelRule("half", "votes", "votes")


def test_the_posterior_is_taken_for_noise_or_for_weights():
    noise = Recipe.from_dict({"loss": "robust"})
    assert noise.label_rule == LabelRule(noise="posterior") == LabelRule() == Recipe().label_rule
    weights = Recipe.from_dict({"pair_weight": "posterior", "label_noise": "none", "ties": "half"})
    assert weights.label_rule.uses_posterior
    assert not Recipe.from_dict({"label_noise": "votes"}).label_rule.uses_posterior


def test_the_engine_splits_a_step_freely():
    assert Recipe.from_dict({"pairs_per_step": 8, "micro_batch": 3}).micro_batch == 3


def test_a_recipe_of_an_earlier_version_is_read_and_is_a_job_still():
    recipe = Recipe.from_dict(EARLIER)
    assert (recipe.mode, recipe.loss, recipe.micro_batch, recipe.label_rule) == ("exact", "dpo", 1, LabelRule())
    job = TrainJob(reference=ModelRef("base", "hash"), seed=1, **for_engine(EARLIER))
    assert (job.micro_batch, job.loss) == (1, "dpo")


def test_the_engine_is_told_all_but_how_labels_come_of_preferences():
    told = for_engine(Recipe(ties="half", label_noise="votes").to_dict())
    assert set(Recipe().to_dict()) - set(told) == {"ties", "label_noise", "pair_weight"}
    job = TrainJob(reference=ModelRef("base", "hash"), seed=1, **told)
    assert {name: getattr(job, name) for name in told} == told


def test_every_field_has_a_name_for_people_and_every_value_of_a_choice():
    assert set(LABELS) == {field.name for field in fields(Recipe)}
    assert {name: tuple(labels) for name, labels in CHOICES.items()} == Recipe.VALUES
    assert set(Recipe.BOUNDS) | set(Recipe.VALUES) == set(LABELS)
