"""Held-out scores, pair by pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.runs import read_lines, succeed, triple
from training.engine import evaluation, loading
from training.engine.compute import Compute
from training.engine.preference_data import TokenTriple
from training.engine.reference_logps import scored_with
from training.engine.scoring import Scorer, add_scoring_head
from training.jobspec import Completion, PairScore, TripleLine

MakeRun = Callable[..., Path]
CPU = Compute(torch.device("cpu"), torch.float32)


def logps_of(model: Any, item: TokenTriple) -> tuple[float, float]:
    """Log-probabilities of both completions of ``item``, as a run scores them."""
    add_scoring_head(model)
    chosen, rejected = scored_with(model, Scorer(packed=True), CPU)(item)
    return float(chosen.double().sum()), float(rejected.double().sum())


def test_log_probabilities_equal_a_token_by_token_sum(tiny_model_dir: Path) -> None:
    model = loading.load_weights(tiny_model_dir, torch.float32).eval()
    item = TokenTriple("pair", "prompt", [1, 40, 50, 60], [300, 301, 302, 2], [310, 2])
    for completion, value in zip((item.chosen_ids, item.rejected_ids), logps_of(model, item), strict=True):
        expected, seen = 0.0, list(item.prompt_ids)
        for token in completion:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([seen])).logits[0, -1]
            expected += torch.log_softmax(logits.double(), 0)[token].item()
            seen.append(token)
        assert value == pytest.approx(expected, abs=1e-4)


Two = tuple[float, float]
TRAINED_ON = [(5, 2), (9, 4), (3, 3), (2, 6)]  # the longer one won two and a half times of four


def score_of(pair: str, prompt: str, reference: Two, policy: Two, tokens: tuple[int, int] = (4, 3)) -> PairScore:
    return PairScore(pair, prompt, *reference, *policy, *tokens)


def test_summary_by_hand() -> None:
    scores = [
        score_of("1", "a", (-10, -12), (-8, -13)),  # margin 0.5 * (2 + 1) = 1.5, won; chosen likelier before and after
        score_of("2", "a", (-10, -9), (-10, -9)),  # margin 0, a tie; rejected likelier before and after
        score_of("3", "b", (-10, -9), (-11, -12)),  # margin 0.5 * (-1 + 3) = 1, won; chosen likelier only after
        score_of("4", "c", (-5, -5), (-6, -4)),  # margin 0.5 * (-1 - 1) = -1, lost; even before, rejected after
    ]
    summary = evaluation.summarise(scores, 0.5, TRAINED_ON)
    assert summary["pairs"] == 4
    assert summary["prompts"] == 3
    assert summary["before"] == {"accuracy": 0.5, "margin": 0.0, "logp_accuracy": 0.375}
    assert summary["after"] == {"accuracy": 0.625, "margin": 0.375, "logp_accuracy": 0.5}
    assert summary["chosen_shift"] == pytest.approx((2 + 0 - 1 - 1) / 4 / 4)  # of four tokens each
    for interval, mean in (("accuracy_interval", 0.625), ("margin_interval", 0.375), ("chosen_shift_interval", 0.0)):
        low, high = summary[interval]
        assert low < mean < high
    assert summary["accuracy_interval"][0] >= 0.0
    assert summary["accuracy_interval"][1] <= 1.0
    assert evaluation.summarise(scores, 0.5, TRAINED_ON) == summary
    json.dumps(summary)


WON, LOST = ((-5, -5), (-4, -6)), ((-5, -5), (-6, -4))


def test_the_length_baseline_learns_its_rule_from_the_training_pairs_and_is_judged_on_the_others() -> None:
    scores = [
        score_of("1", "a", *WON, tokens=(9, 2)),
        score_of("2", "b", *WON, tokens=(3, 5)),
        score_of("3", "c", *LOST, tokens=(4, 8)),
        score_of("4", "d", *WON, tokens=(6, 6)),
    ]
    baseline = evaluation.summarise(scores, 0.5, TRAINED_ON)["length_baseline"]
    assert (baseline["rule"], baseline["accuracy"]) == ("longer", (1 + 0 + 0 + 0.5) / 4)
    assert baseline["advantage"] == pytest.approx((0 + 1 + 0 + 0.5) / 4)
    turned = [(rejected, chosen) for chosen, rejected in TRAINED_ON]
    baseline = evaluation.summarise(scores, 0.5, turned)["length_baseline"]
    assert (baseline["rule"], baseline["accuracy"]) == ("shorter", (0 + 1 + 1 + 0.5) / 4)
    assert baseline["advantage"] == pytest.approx(0.75 - 0.625)
    assert baseline["interval"][0] <= 0.625 <= baseline["interval"][1]
    assert evaluation.length_rule([(2, 3), (3, 2)]) == evaluation.length_rule([]) == "longer"


def test_a_policy_that_only_follows_length_has_no_advantage_and_no_doubt_about_it() -> None:
    scores = [
        score_of(str(number), str(number), *(LOST if number % 3 else WON), tokens=(2, 5) if number % 3 else (5, 2))
        for number in range(60)
    ]
    baseline = evaluation.summarise(scores, 0.1, [(5, 2)])["length_baseline"]
    assert baseline["advantage"] == 0.0
    assert baseline["advantage_interval"] == [0.0, 0.0]
    assert baseline["interval"][0] < baseline["interval"][1]


def test_the_interval_treats_the_pairs_of_a_prompt_as_one() -> None:
    won = np.array([[1.0]] * 50 + [[0.0]] * 50)
    alike = ["a"] * 50 + ["b"] * 50
    each = [str(number) for number in range(100)]
    assert evaluation.intervals(won, alike) == [[0.0, 1.0]]
    [(low, high)] = evaluation.intervals(won, each)
    assert low == pytest.approx(0.4, abs=0.03)
    assert high == pytest.approx(0.6, abs=0.03)


def test_prompts_with_more_pairs_weigh_more() -> None:
    values = np.array([[1.0]] * 900 + [[0.0]] * 10)
    prompts = [str(number // 90) for number in range(900)] + [f"other-{number}" for number in range(10)]
    [(low, high)] = evaluation.intervals(values, prompts)
    assert 0.9 < low < 900 / 910 < high <= 1.0


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    # 95 of 100 within the noise of 200 repetitions; a bootstrap of the pairs alone would be at 63.
    generator = np.random.default_rng(3)
    prompts = [number // 5 for number in range(200)]
    inside = 0
    for _ in range(200):
        values = np.repeat(generator.normal(size=40), 5)
        [(low, high)] = evaluation.intervals(values[:, None], prompts)
        inside += low <= 0.0 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_many_prompts_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(12.0)[:, None]
    whole = evaluation.intervals(values, range(12))
    monkeypatch.setattr(evaluation, "RESAMPLED_AT_ONCE", 50)  # four draws of twelve prompts
    assert evaluation.intervals(values, range(12)) == whole


def test_without_held_out_pairs_there_is_no_number() -> None:
    assert evaluation.summarise([], 0.1, TRAINED_ON) == {"pairs": 0}


def train_lengths(run_dir: Path, rows: list[TripleLine]) -> list[tuple[int, int]]:
    tokenizer = loading.load_tokenizer(run_dir / "checkpoint")

    def tokens(item: Completion) -> int:
        return len(tokenizer(item.text)["input_ids"]) + 1  # and the end of turn

    return [(tokens(row.chosen), tokens(row.rejected)) for row in rows if row.split == "train"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_scores_its_held_out_pairs(train_run: MakeRun, reference: object, method: str) -> None:
    rows = [triple(number) for number in range(4)] + [triple(number, split="held_out") for number in range(4, 9)]
    rows.append(triple(9, split="held_out", prompt_id="prompt-8", chosen=Completion(" bird", [], "")))
    run_dir = train_run(rows, method=method, learning_rate=1e-2 if method == "lora" else 1e-3, epochs=5)
    details = succeed("train_dpo", run_dir)
    scores = [PairScore.from_dict(line) for line in read_lines(run_dir, "held_out.jsonl")]
    assert [item.pair_id for item in scores] == [f"pair-{number}" for number in range(4, 10)]
    assert details["held_out"] == evaluation.summarise(scores, 0.1, train_lengths(run_dir, rows))
    assert details["held_out"]["prompts"] == 5
    assert details["held_out"]["after"]["margin"] > 0.05

    base = loading.load_policy(reference, CPU)  # type: ignore[arg-type]
    tokenizer = loading.load_tokenizer(run_dir / "checkpoint")
    ids = tokenizer.apply_chat_template(rows[4].messages, add_generation_prompt=True, return_dict=False)
    chosen = [*tokenizer(rows[4].chosen.text)["input_ids"], tokenizer.eos_token_id]
    chosen_logp, _ = logps_of(base, TokenTriple("", "", ids, chosen, chosen[:2]))
    assert scores[0].reference_chosen == pytest.approx(chosen_logp, abs=1e-4)
    assert scores[0].chosen_tokens == len(chosen)
