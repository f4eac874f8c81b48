"""Held-out scores, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.runs import read_lines, succeed, triple
from training.engine import evaluation, loading
from training.engine.compute import Compute
from training.engine.preference_data import TokenTriple
from training.jobspec import Completion, PairScore

MakeRun = Callable[..., Path]
CPU = Compute(torch.device("cpu"), torch.float32)


def test_log_probabilities_equal_a_token_by_token_sum(tiny_model_dir: Path) -> None:
    model = loading.load_weights(tiny_model_dir, torch.float32).eval()
    item = TokenTriple("pair", "prompt", [1, 40, 50, 60], [300, 301, 302, 2], [310, 2])
    scored = evaluation.score(model, [item], CPU)[0]
    for completion, value in ((item.chosen_ids, scored.chosen), (item.rejected_ids, scored.rejected)):
        expected, seen = 0.0, list(item.prompt_ids)
        for token in completion:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([seen])).logits[0, -1]
            expected += torch.log_softmax(logits.double(), 0)[token].item()
            seen.append(token)
        assert value == pytest.approx(expected, abs=1e-4)


def score_of(pair: str, prompt: str, reference: tuple[float, float], policy: tuple[float, float]) -> PairScore:
    return PairScore(pair, prompt, *reference, *policy, chosen_tokens=3, rejected_tokens=4)


def test_summary_by_hand() -> None:
    scores = [
        score_of("1", "a", (-10, -12), (-8, -13)),  # margin 0.5 * (2 + 1) = 1.5, won; chosen likelier before and after
        score_of("2", "a", (-10, -9), (-10, -9)),  # margin 0, a tie; rejected likelier before and after
        score_of("3", "b", (-10, -9), (-11, -12)),  # margin 0.5 * (-1 + 3) = 1, won; chosen likelier only after
        score_of("4", "c", (-5, -5), (-6, -4)),  # margin 0.5 * (-1 - 1) = -1, lost; even before, rejected after
    ]
    summary = evaluation.summarise(scores, beta=0.5)
    assert summary["pairs"] == 4
    assert summary["prompts"] == 3
    assert summary["before"] == {"accuracy": 0.5, "margin": 0.0, "logp_accuracy": 0.375}
    assert summary["after"] == {"accuracy": 0.625, "margin": 0.375, "logp_accuracy": 0.5}
    low, high = summary["accuracy_interval"]  # type: ignore[misc]
    assert 0.0 <= low < 0.625 < high <= 1.0
    assert evaluation.summarise(scores, beta=0.5) == summary


def test_the_interval_treats_the_pairs_of_a_prompt_as_one() -> None:
    margins = np.array([1.0] * 50 + [-1.0] * 50)
    alike = ["a"] * 50 + ["b"] * 50
    each = [str(number) for number in range(100)]
    assert evaluation.accuracy_interval(margins, alike) == [0.0, 1.0]
    low, high = evaluation.accuracy_interval(margins, each)
    assert low == pytest.approx(0.4, abs=0.03)
    assert high == pytest.approx(0.6, abs=0.03)


def test_without_held_out_pairs_there_is_no_number() -> None:
    assert evaluation.summarise([], beta=0.1) == {"pairs": 0}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_scores_its_held_out_pairs(train_run: MakeRun, reference: object, method: str) -> None:
    rows = [triple(number) for number in range(4)] + [triple(number, split="held_out") for number in range(4, 9)]
    rows.append(triple(9, split="held_out", prompt_id="prompt-8", chosen=Completion(" bird", [], "")))
    run_dir = train_run(rows, method=method, learning_rate=1e-2 if method == "lora" else 1e-3, epochs=5)
    details = succeed("train_dpo", run_dir)
    scores = [PairScore.from_dict(line) for line in read_lines(run_dir, "held_out.jsonl")]
    assert [item.pair_id for item in scores] == [f"pair-{number}" for number in range(4, 10)]
    assert details["held_out"] == evaluation.summarise(scores, beta=0.1)
    assert details["held_out"]["prompts"] == 5
    assert details["held_out"]["after"]["margin"] > 0.05

    base = loading.load_policy(reference, CPU)  # type: ignore[arg-type]
    tokenizer = loading.load_tokenizer(run_dir / "checkpoint")
    ids = tokenizer.apply_chat_template(rows[4].messages, add_generation_prompt=True, return_dict=False)
    chosen = [*tokenizer(rows[4].chosen.text)["input_ids"], tokenizer.eos_token_id]
    logps = evaluation.score(base, [TokenTriple("", "", ids, chosen, chosen[:2])], CPU)[0]
    assert scores[0].reference_chosen == pytest.approx(logps.chosen, abs=1e-4)
    assert scores[0].chosen_tokens == len(chosen)
