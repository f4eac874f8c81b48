"""When a run stops, and what is told of one that ended."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.engine.runs import ROOT
from training.engine import evaluation, guards, losses, on_policy
from training.engine.errors import EngineError
from training.engine.guards import TrainingGuard, flags
from training.engine.losses import PairLogps
from training.jobspec import PairScore, StepMetrics

STEP = StepMetrics(
    step=40,
    steps=40,
    seconds=9.0,
    loss=0.4,
    reward_margin=1.0,
    reward_accuracy=0.8,
    logp_chosen=-90.0,
    logp_rejected=-99.0,
    learning_rate=1e-5,
    grad_norm=2.0,
    epoch=2.0,
)
ALL_RIGHT = dataclasses.replace(STEP, reward_accuracy=1.0)


def test_the_guard_needs_no_torch() -> None:
    code = "import sys, training.engine.guards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# Stops.


@pytest.mark.parametrize(("loss", "grad_norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run(loss: float, grad_norm: float) -> None:
    guard = TrainingGuard()
    guard.check_step(0.7, 3.0, 6)
    with pytest.raises(EngineError, match="step 7") as caught:
        guard.check_step(loss, grad_norm, 7)
    assert caught.value.code == "diverged"
    assert caught.value.hint


@pytest.mark.parametrize(("dtype", "rounding", "other"), [(torch.float32, 2e-4, 2e-3), (torch.bfloat16, 0.04, 0.14)])
def test_policy_and_reference_may_differ_by_rounding_before_the_first_step(
    dtype: torch.dtype, rounding: float, other: float
) -> None:
    guard = TrainingGuard.of(dtype)
    guard.check_reference(rounding, rounding)
    for side, drifts in (("chosen", (other, 0.0)), ("rejected", (0.0, other)), ("chosen", (math.nan, 0.0))):
        with pytest.raises(EngineError, match=f"on the {side} responses") as caught:
            guard.check_reference(*drifts)
        assert caught.value.code == "wrong_reference"


def test_a_reference_that_is_wrong_in_both_directions_is_still_wrong() -> None:
    policy, reference = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.5, 0.0]])
    same = torch.tensor([[-1.0, 0.0]])
    logps = PairLogps(policy, same, reference, same, torch.tensor([2]), torch.tensor([1]))
    assert losses.log_ratios(logps, 1.0).chosen.item() == 0.0
    chosen, rejected = losses.disagreement(logps)
    assert (chosen, rejected) == (pytest.approx(0.5), 0.0)
    with pytest.raises(EngineError, match="must be the same model"):
        TrainingGuard().check_reference(chosen, rejected)


def watched(*shifts: float) -> TrainingGuard:
    guard = TrainingGuard()
    for number, shift in enumerate(shifts, start=1):
        guard.watch(dataclasses.replace(STEP, step=number), shift)
    return guard


def test_chosen_responses_that_the_policy_no_longer_writes_stop_the_run() -> None:
    with pytest.raises(EngineError, match=r"By step 7 .* 2\.2 nats") as caught:
        watched(0.0, -1.0, -1.5, -2.0, -2.0, -2.2, -3.4)
    assert caught.value.code == "displaced"
    assert "SFT" in caught.value.hint


def test_one_odd_step_or_a_smaller_fall_stops_nothing() -> None:
    assert watched(-9.0).chosen_shift == -9.0
    assert watched(0.0, 0.0, -9.0, 0.0, 0.0, 0.0, 0.0).chosen_shift == pytest.approx(-1.8)
    assert watched(*[-1.9] * 20).chosen_shift == pytest.approx(-1.9)
    assert watched(*[5.0] * 20).chosen_shift == 5.0
    assert TrainingGuard().chosen_shift == 0.0


def test_a_loss_that_pushes_both_responses_down_is_let_do_so() -> None:
    guard = TrainingGuard.of("float32", "apo_down")
    for number in range(1, 9):
        guard.watch(dataclasses.replace(STEP, step=number), -3.0)
    assert guard.chosen_shift == -3.0
    assert codes(GOOD, {}, STEP, guard.chosen_shift) == ["displaced_chosen"]


# Flags.


def held_out(accuracy: float, prompts: int = 200, rule_accuracy: float = 0.5, shift: float = 0.0) -> dict[str, Any]:
    """The summary of a policy that is right on the first pairs, as a rule about length is on the last ones."""
    won, rule_won = round(accuracy * prompts), round(rule_accuracy * prompts)
    scores = []
    for number in range(prompts):
        margin = 1.0 if number < won else -1.0
        tokens = (10, 5) if number >= prompts - rule_won else (10, 15)
        scores.append(
            PairScore(str(number), str(number), -30.0, -30.0, -30.0 + 10 * shift, -30.0 + 10 * shift - margin, *tokens)
        )
    return evaluation.summarise(scores, 0.1, [(3, 2)])


def written(**fields: Any) -> dict[str, Any]:
    """Figures as ``on_policy.measure`` gives them."""
    means = {"mean_tokens": 80.0, "finish_rate": 0.9, "kl_reference": 3.0, "kl_first": 8.0} | fields
    half_widths = {"mean_tokens": 5.0, "finish_rate": 0.03, "kl_reference": 1.0, "kl_first": 2.0}
    found: dict[str, Any] = {"prompts": 64, "distinct_2": 0.7} | means
    for name, half in half_widths.items():
        found[f"{name}_interval"] = [found[name] - half, found[name] + half]
    return found | {name: value for name, value in fields.items() if name.endswith("_interval")}


def compared(sure: bool = True, **fields: Any) -> dict[str, Any]:
    """``written()`` and what it became; ``sure``: whether the intervals of the changes leave zero out."""
    before, after = written(), written(**fields)
    change: dict[str, Any] = {"prompts": 64}
    for name, half in {"mean_tokens": 5.0, "finish_rate": 0.03}.items():
        change[name] = moved = after[name] - before[name]
        half = half if sure else abs(moved) + half
        change[f"{name}_interval"] = [moved - half, moved + half]
    return {"before": before, "after": after, "change": change}


def codes(*arguments: Any) -> list[str]:
    found = flags(*arguments)
    assert all(set(item) == {"code", "message", "hint"} and all(item.values()) for item in found)
    return [item["code"] for item in found]


GOOD = held_out(0.8)
CALM = compared(mean_tokens=85.0)


def test_a_run_that_went_well_has_no_flag() -> None:
    assert codes(GOOD, CALM, STEP, -0.2) == []
    assert codes(GOOD, {}, ALL_RIGHT) == []
    assert codes(GOOD, {"before": {"prompts": 0}, "after": {"prompts": 0}}, None) == []


def test_few_held_out_prompts_are_told_and_nothing_is_read_from_them() -> None:
    assert codes({"pairs": 0}, {}, STEP) == ["few_held_out"]
    assert codes({}, {}, None) == ["few_held_out"]
    assert codes(held_out(0.5, prompts=19), {}, ALL_RIGHT) == ["few_held_out"]
    assert "19 prompts" in flags(held_out(0.5, prompts=19), {}, STEP)[0]["message"]
    assert "few_held_out" not in codes(held_out(0.9, prompts=20), {}, STEP)


def test_perfect_training_beside_chance_is_nothing_learned() -> None:
    chance = held_out(0.52, rule_accuracy=0.2)
    assert chance["length_baseline"]["advantage_interval"][0] > 0
    assert codes(chance, {}, ALL_RIGHT) == ["nothing_learned"]
    assert codes(chance, {}, STEP) == []
    message = flags(chance, {}, ALL_RIGHT)[0]["message"]
    assert "52%" in message
    assert "always choosing the longer response (20%)" in message


def test_what_a_rule_about_length_also_gets_is_not_learned() -> None:
    lengthy = held_out(0.72, rule_accuracy=0.70)
    assert lengthy["accuracy_interval"][0] > 0.5
    assert codes(lengthy, {}, STEP) == codes(lengthy, {}, None) == ["length_only"]
    assert codes(lengthy, {}, ALL_RIGHT) == ["nothing_learned"]


def test_a_clear_advantage_over_length_is_no_flag_although_the_two_intervals_meet() -> None:
    """The comparison is by pair: the policy is right wherever the rule is, and in a tenth more."""
    scores = [
        PairScore(
            str(number), str(number), -9.0, -9.0, -9.0, -10.0 if number < 65 else -8.0, 10, 5 if number < 55 else 15
        )
        for number in range(100)
    ]
    summary = evaluation.summarise(scores, 0.1, [(3, 2)])
    assert summary["accuracy_interval"][0] < summary["length_baseline"]["interval"][1]
    assert codes(summary, {}, STEP) == []


def test_chosen_responses_that_fell_are_told_wherever_they_fell_further() -> None:
    fallen = held_out(0.8, shift=-0.7)
    assert codes(fallen, {}, STEP) == ["displaced_chosen"]
    assert "held-out pairs became 0.70 nats" in flags(fallen, {}, STEP, -0.6)[0]["message"]
    assert "training pairs became 0.90 nats" in flags(fallen, {}, STEP, -0.9)[0]["message"]
    assert codes(held_out(0.8, shift=-0.4), {}, STEP, -0.45) == []
    assert codes(held_out(0.8, shift=0.9), {}, STEP) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mean_tokens": 110.0}, ["length_drift"]),
        ({"mean_tokens": 50.0}, ["length_drift"]),
        ({"mean_tokens": 87.0}, []),  # surely longer, by less than a tenth
        ({"mean_tokens": 110.0, "sure": False}, []),  # perhaps a few odd responses
        ({"finish_rate": 0.7}, ["unfinished"]),
        ({"finish_rate": 0.82}, []),
        ({"finish_rate": 0.7, "sure": False}, []),
        ({"distinct_2": 0.5}, ["repetitive"]),
        ({"distinct_2": 0.6}, []),
        ({"kl_reference": 25.0}, ["far_from_reference"]),
        ({"kl_reference": 19.0}, []),
        ({"kl_first": 41.0}, ["far_from_first"]),
        ({"kl_reference": 41.0, "kl_first": 41.0}, ["far_from_reference"]),  # the first policy is the reference
        ({"mean_tokens": 128.0, "finish_rate": 0.1, "distinct_2": 0.1}, ["length_drift", "unfinished", "repetitive"]),
    ],
)
def test_changes_of_what_the_policy_writes(fields: dict[str, Any], expected: list[str]) -> None:
    assert codes(GOOD, compared(**fields), STEP) == expected


@pytest.mark.parametrize(
    ("fields", "budget", "expected"),
    [
        ({"kl_first": 8.0}, 5.0, ["far_from_first"]),
        ({"kl_first": 60.0}, 80.0, []),
        ({"kl_reference": 8.0, "kl_first": 8.0}, 5.0, ["far_from_first"]),  # within the budget of the reference
        ({"kl_reference": 25.0, "kl_first": 25.0}, 5.0, ["far_from_reference"]),  # one distance, told once
        ({"kl_reference": 25.0, "kl_first": 45.0}, 40.0, ["far_from_reference", "far_from_first"]),
    ],
)
def test_the_first_policy_has_the_projects_own_budget(
    fields: dict[str, Any], budget: float, expected: list[str]
) -> None:
    found = flags(GOOD, compared(**fields), STEP, 0.0, budget)
    assert [item["code"] for item in found] == expected
    for item in found:
        assert item["code"] != "far_from_first" or f"Beyond {budget:g} it is seldom" in item["message"]


def test_a_flag_says_the_numbers() -> None:
    figures = compared(mean_tokens=110.0, finish_rate=0.6, kl_reference=25.4)
    longer, unfinished, far = (item["message"] for item in flags(GOOD, figures, STEP))
    assert longer == "Responses became longer: 80 tokens before, 110 after."
    assert unfinished == "Fewer responses come to an end: 90% before, 60% after."
    assert "25 nats a response away from its reference (95% interval 24 to 26)" in far


def test_figures_without_other_policies_have_no_drift() -> None:
    alone = {name: value for name, value in written().items() if not name.startswith("kl_")}
    assert codes(GOOD, {"before": alone, "after": alone}, STEP) == []
    assert guards.sure({"prompts": 99, "x_interval": [0.0, 1.0]}, "x") is False
    assert guards.sure({"prompts": 20, "x_interval": [0.1, 1.0]}, "x") is True
    assert guards.sure({"prompts": 19, "x_interval": [0.1, 1.0]}, "x") is False, "a bootstrap over so few is too narrow"


def test_the_default_model_that_stops_finishing_or_grows_to_the_cut_is_told() -> None:
    """Responses are cut at 128 tokens, and this model writes 114 of them: what it can grow is little, and enough."""
    before = {str(number): [128, 0] if number < 24 else [72, 1] for number in range(32)}
    after = {str(number): [128, 0] if number < 30 else [90, 1] for number in range(32)}
    change = on_policy.change(before, after)
    assert change["mean_tokens"] == pytest.approx((6 * 56 + 2 * 18) / 32)
    assert change["finish_rate"] == pytest.approx(-6 / 32)
    figures = {
        "before": written(mean_tokens=114.0, finish_rate=8 / 32),
        "after": written(mean_tokens=125.6, finish_rate=2 / 32),
        "change": change,
    }
    assert codes(GOOD, figures, STEP) == ["length_drift", "unfinished"]


def test_few_compared_prompts_are_told_where_there_are_held_out_ones() -> None:
    figures = compared(mean_tokens=160.0, finish_rate=0.0)
    figures["change"]["prompts"] = 19
    assert codes(GOOD, figures, STEP) == ["few_compared"]
    assert "Only 19 held-out prompts" in flags(GOOD, figures, STEP)[0]["message"]
    assert codes(held_out(0.5, prompts=19), figures, STEP) == ["few_held_out"], "which says it all"


def test_changes_are_of_the_prompts_that_both_answered() -> None:
    assert on_policy.change({"0": [5, 1]}, {"1": [9, 1]}) == {}
    change = on_policy.change({"0": [5, 1], "1": [9, 0]}, {"1": [7, 1], "2": [100, 0]})
    assert (change["prompts"], change["mean_tokens"], change["finish_rate"]) == (1, -2.0, 1.0)
