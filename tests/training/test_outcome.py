"""What a result says, whole, in part, and as older runs have it; and the card that goes with the weights."""

from __future__ import annotations

import pytest

from training.model_card import OBJECTIVES, render_card
from training.outcome import read_outcome
from training.recipe import CHOICES

OLDER = {
    "held_out": {
        "pairs": 4,
        "prompts": 3,
        "before": {"accuracy": 0.5, "margin": 0.0, "logp_accuracy": 0.25},
        "after": {"accuracy": 0.75, "margin": 0.31, "logp_accuracy": 0.5},
        "accuracy_interval": [0.25, 1.0],
    }
}
HELD_OUT = OLDER["held_out"] | {
    "margin_interval": [-0.1, 0.6],
    "length_baseline": {"rule": "shorter", "accuracy": 0.7, "interval": [0.3, 0.9], "advantage": 0.05}
    | {"advantage_interval": [-0.125, 0.225]},
    "chosen_shift": -0.02,
    "chosen_shift_interval": [-0.05, 0.01],
}
ON_POLICY = {
    "prompts": 16,
    "max_new_tokens": 128,
    "before": {"kl_reference": 0.0, "mean_tokens": 90.0, "finish_rate": 0.5, "distinct_1": 0.4},
    "after": {
        "kl_reference": 1.234,
        "kl_reference_interval": [1.0, 1.5],
        "kl_first": 2.5,
        "mean_tokens": 70.25,
        "finish_rate": 0.75,
        "distinct_1": 0.35,
        "distinct_2": 0.8,
        "distinct_3": 0.95,
    },
}
DETAILS = {
    "held_out": HELD_OUT,
    "on_policy": ON_POLICY,
    "flags": [{"code": "chosen_fell", "message": "Chosen responses became less likely.", "hint": "Add an SFT term."}],
    "reference_logps": {"forwards": 3, "cached": 1200, "sampled": 40, "checked": 12, "damaged": 0},
    "memory": {"estimate_mb": 2048, "limit_mb": 8192, "micro_batch": 8, "tokens": 1024}
    | {"checkpointing": True, "halved": True}
    | {"peak_rss_mb": 1536},
    "speed": {"pairs_per_s": 0.456, "tokens_per_s": 1234.5},
    "shared_prompt": True,
    "mode": "exact",
    "device": "cpu",
    "dtype": "bfloat16",
}


def _rows(comparison) -> dict[str, tuple[str, str, str]]:
    return {row.name: (row.before, row.after, row.interval) for row in comparison.rows}


def test_a_whole_result():
    outcome = read_outcome(DETAILS)
    held_out = _rows(outcome.held_out.comparison)
    assert held_out["Reward margin, nats"] == ("0.000", "+0.310", "−0.100 to +0.600")
    assert held_out["Chosen responses likelier by, nats a token"] == ("0.000", "−0.020", "−0.050 to +0.010")
    assert (outcome.held_out.length_rule, outcome.held_out.length_accuracy) == ("shorter", "70.0\u202f%")
    assert (outcome.held_out.accuracy, outcome.held_out.interval) == ("75.0\u202f%", "25.0\u202f% to 100.0\u202f%")
    assert held_out["Accuracy by implicit reward"][1:] == (outcome.held_out.accuracy, outcome.held_out.interval)
    assert held_out["Advantage over always choosing the shorter response, points"] == ("", "+5.0", "−12.5 to +22.5")
    on_policy = _rows(outcome.on_policy.comparison)
    assert on_policy["KL from the reference, nats a response"] == ("0.00", "1.23", "1.00 to 1.50")
    assert on_policy["KL from the first policy, nats a response"] == ("–", "2.50", "")
    assert on_policy["Length, tokens"] == ("90.0", "70.2", "")
    assert on_policy["Ended by themselves"][:2] == ("50.0\u202f%", "75.0\u202f%")
    assert [flag.hint for flag in outcome.flags] == ["Add an SFT term."]
    assert dict(outcome.facts) == {
        "Computed": "on a CPU in bfloat16",
        "Speed": "0.46 pairs/s, 1,234 tokens/s",
        "Memory": "peak 1.5\xa0GB, estimated 2.0\xa0GB, 8.0\xa0GB to use",
        "At once": "up to 1,024 tokens in memory, each prompt computed once, activations computed again "
        "(checkpointing), halved when memory ran out",
        "Reference": "3 computed, 1,200 from earlier runs, 40 kept by the sampler, 12 checked",
    }


def test_a_result_of_an_older_run():
    outcome = read_outcome(OLDER)
    assert outcome.held_out.accuracy == "75.0\u202f%"
    assert outcome.held_out.comparison.has_intervals
    assert list(_rows(outcome.held_out.comparison)) == [
        "Accuracy by implicit reward",
        "Accuracy by log-probability",
        "Reward margin, nats",
    ]
    assert (outcome.held_out.length_rule, outcome.on_policy.comparison.rows) == ("", [])
    assert (outcome.flags, outcome.facts) == ([], [])


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"held_out": {"pairs": 0}, "on_policy": {"prompts": 0}, "flags": []},
        {"held_out": None, "on_policy": None, "flags": None, "memory": None, "speed": None, "reference_logps": {}},
        {"on_policy": {"prompts": 0, "before": {"prompts": 0}, "after": {"prompts": 0}}, "memory": {}},
    ],
)
def test_nothing_measured_is_nothing_shown(details):
    outcome = read_outcome(details)
    assert outcome.held_out.pairs == 0
    assert (outcome.on_policy.comparison.rows, outcome.flags, outcome.facts) == ([], [], [])


@pytest.mark.parametrize("missing", ["before", "after", "accuracy_interval", "margin_interval", "length_baseline"])
def test_any_part_may_be_missing(missing):
    figures = {name: value for name, value in HELD_OUT.items() if name != missing}
    outcome = read_outcome({"held_out": figures})
    assert outcome.held_out.pairs == 4
    assert len(outcome.held_out.comparison.rows) == (4 if missing == "length_baseline" else 5)


def test_pairs_at_once_are_told_where_somebody_asked_for_them():
    memory = {"memory": {"micro_batch": 2, "tokens": 800}}
    assert read_outcome(memory, {"micro_batch": 2}).facts == [
        ("At once", "up to 800 tokens in memory, 2 pairs in memory")
    ]
    assert read_outcome(memory, {"micro_batch": 0}).facts == [("At once", "up to 800 tokens in memory")]
    assert read_outcome({"memory": {"micro_batch": 2}}, {}).facts == [("At once", "2 pairs in memory")]


def test_a_run_that_computed_no_reference_at_all_says_so():
    facts = read_outcome({"reference_logps": {"forwards": 0, "cached": 24, "damaged": 1}}).facts
    assert facts == [("Reference", "0 computed, 24 from earlier runs, 1 damaged and computed again")]


def _manifest(**changes) -> dict:
    return {
        "name": "helpful-dpo-1",
        "kind": "dpo",
        "content_hash": "c" * 64,
        "files": [],
        "base": {"name": "somebody/base", "content_hash": "b" * 64},
        "licence": "",
        "reference": {"name": "base", "content_hash": "b" * 64},
        "snapshot": {"sha256": "5" * 64, "train_triples": 20, "held_out_triples": 4, "ties": 1, "both_bad": 0},
        "recipe": {"method": "lora", "beta": 0.1},
        "seed": 3,
        "figures": OLDER,
    } | changes


def test_the_card_of_an_older_run_has_none_of_the_new():
    card = render_card(_manifest())
    assert "0.750" in card
    for absent in ("fast", "ties |", "To look at", "response, without reading it"):
        assert absent not in card, absent


def test_the_card_says_what_a_reader_must_know():
    snapshot = _manifest()["snapshot"] | {"tie_triples": 6}
    card = render_card(_manifest(recipe={"mode": "fast"}, snapshot=snapshot, figures=DETAILS))
    assert "Trained in the fast mode: only the upper layers could change" in card
    assert "| Of those for training, ties | 6, with label noise 1/2 |" in card
    assert (
        "Taking the shorter response, without reading it, is right in 0.700 (95 % interval 0.300 to 0.900) of them."
        in card
    )
    assert "## To look at before using it\n\n- Chosen responses became less likely. Add an SFT term." in card


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ("dpo", "trained with Direct Preference Optimization (Rafailov et al. 2023) on human"),
        ("ipo", "IPO; Azar et al. 2023"),
        ("hinge", "Liu et al. 2023, RSO, after SLiC of Zhao et al. 2023"),
        ("robust", "robust DPO (Chowdhury et al. 2024)"),
        ("apo_zero", "APO-zero; D’Oosterlinck et al. 2024"),
        ("apo_down", "APO-down; D’Oosterlinck et al. 2024"),
    ],
)
def test_the_card_names_what_was_minimised(loss, named):
    assert set(OBJECTIVES) == set(CHOICES["loss"])
    card = render_card(_manifest(recipe={"method": "lora", "loss": loss}))
    assert named in card
    assert ("Direct Preference Optimization" in card) == (loss == "dpo")
