"""An optimiser step gives the loss and the gradients of stock TRL, whatever way the pairs go through the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine import architectures, stock
from tests.engine.prepared import Gradients, assert_same_step, examples_of, move, ready_trainer, whole_step
from tests.engine.runs import steps, succeed, triple
from training.engine.dpo_trainer import PairTrainer
from training.engine.memory import Room
from training.engine.scoring import Scorer
from training.jobspec import Completion, ModelRef, TripleLine
from training.modelfiles import ALLOWED_MODEL_TYPES

MakeRun = Callable[..., Path]
Step = tuple[float, Gradients]
NO_BOUND = 10**9


def mixed_pairs() -> list[TripleLine]:
    """Short and long, one token and many, of several turns, and two that are cut at 64 tokens."""
    turns = [
        {"role": "system", "content": "You are a bird."},
        {"role": "user", "content": "Where is the house?"},
        {"role": "assistant", "content": "On the island, my king."},
        {"role": "user", "content": "And the garden?"},
    ]
    long = " ".join(["bird book horse house"] * 20)
    return [
        triple(0),
        triple(1, chosen=Completion(" bird"), rejected=Completion(" cold night and long rain again and again.")),
        triple(2, messages=turns),
        triple(3, chosen=Completion(f" good {long}"), rejected=Completion(" no")),
        triple(4, chosen=Completion(" a"), rejected=Completion(f" big {long} end")),
        triple(5, messages=turns, chosen=Completion(" good fish", [], "length"), rejected=Completion(" all apples")),
    ]


@pytest.fixture
def adapter_dir(train_run: MakeRun) -> Path:
    run_dir = train_run(4, name="earlier", lora_rank=2, seed=11)
    succeed("train_dpo", run_dir)
    return run_dir / "checkpoint"


def compare(run_dir: Path, *, checkpointing: bool = False, size: float = 0.02) -> tuple[PairTrainer, Step]:
    """Our step against stock's, at the same weights, where the policy has left the reference."""
    ours = ready_trainer(run_dir)
    places = range(len(ours.course.examples))
    move(ours.model, size)
    step = whole_step(ours, places)
    assert abs(ours.totals.chosen_drift) > 0.01, "the policy has not left the reference"
    theirs = stock.stock_trainer(run_dir, gradient_checkpointing=checkpointing)
    assert len(theirs.train_dataset) == len(places)
    stock.put_where(theirs, ours.model)
    expected = stock.stock_step(theirs)
    assert_same_step(step, expected)
    return ours, expected


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_step_is_that_of_stock_trl_however_it_is_cut(train_run: MakeRun, method: str) -> None:
    run_dir = train_run(mixed_pairs(), max_length=64, beta=0.3, method=method, micro_batch=0)
    ours, expected = compare(run_dir)
    assert ours.course.scorer.packed
    assert max(len(item.prompt_ids) + len(item.chosen_ids) for item in examples_of(ours)) == 64
    for room in (Room(1, 1), Room(NO_BOUND, 1), Room(NO_BOUND, 4), Room(130, NO_BOUND), Room(NO_BOUND, NO_BOUND)):
        ours.course.room = room
        assert_same_step(whole_step(ours, range(6)), expected)
    ours.course.scorer = Scorer(packed=False)
    assert_same_step(whole_step(ours, range(6)), expected)


def test_a_continued_adapter_has_itself_as_reference(
    train_run: MakeRun, reference: ModelRef, adapter_dir: Path
) -> None:
    continued = dataclasses.replace(reference, adapter_dir=str(adapter_dir), adapter_hash="hash-of-adapter")
    compare(train_run(mixed_pairs(), reference=continued, max_length=64, micro_batch=2))


def test_full_training_from_a_folded_adapter_has_the_fold_as_reference(
    train_run: MakeRun, reference: ModelRef, adapter_dir: Path
) -> None:
    continued = dataclasses.replace(reference, adapter_dir=str(adapter_dir), adapter_hash="hash-of-adapter")
    compare(train_run(mixed_pairs(), reference=continued, method="full", max_length=64, micro_batch=2))


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_get_their_whole_gradient(train_run: MakeRun, tmp_path: Path, tied: bool) -> None:
    directory = architectures.build("llama", tmp_path / "model", tie_word_embeddings=tied)
    run_dir = train_run(mixed_pairs(), reference=ModelRef(str(directory), "h"), method="full", max_length=64)
    _, (_, gradients) = compare(run_dir)
    assert ("lm_head.weight" in gradients) is not tied
    assert gradients["model.embed_tokens.weight"].norm() > 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_checkpointing_changes_nothing(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    from training.engine import memory

    genuine = memory.plan

    def sparing(*arguments: Any) -> memory.Plan:
        plan = genuine(*arguments)
        return dataclasses.replace(plan, room=Room(NO_BOUND, 2, checkpointing=True))

    run_dir = train_run(mixed_pairs(), method=method, max_length=64)
    _, plain = compare(run_dir)
    monkeypatch.setattr(memory, "plan", sparing)
    ours, expected = compare(run_dir, checkpointing=True)
    assert ours.args.gradient_checkpointing
    assert_same_step(expected, plain)


@pytest.mark.parametrize("model_type", sorted(ALLOWED_MODEL_TYPES))
def test_every_architecture_gives_stock_numbers(train_run: MakeRun, tmp_path: Path, model_type: str) -> None:
    """Packed, in rows, and stock; with sequences several times as long as a sliding window."""
    directory = architectures.build(model_type, tmp_path / "model")
    run_dir = train_run(mixed_pairs()[1:4], reference=ModelRef(str(directory), "h"), max_length=400, micro_batch=2)
    ours, expected = compare(run_dir, size=0.01)
    assert ours.course.scorer.packed is (model_type not in architectures.ROWS)
    ours.course.scorer = Scorer(packed=False)
    assert_same_step(whole_step(ours, range(3)), expected)


@pytest.mark.parametrize("model_type", sorted(architectures.SLIDING))
def test_the_window_is_reached(model_type: str) -> None:
    """The test above says something about windows only where a window changes the numbers."""
    ids = torch.arange(40)[None] + 260
    with torch.no_grad():
        narrow = architectures.small_model(model_type)(ids).logits
        wide = architectures.small_model(model_type, sliding_window=400)(ids).logits
    assert (narrow[0, : architectures.WINDOW] - wide[0, : architectures.WINDOW]).abs().max() < 1e-4
    assert (narrow[0, -1] - wide[0, -1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("model_type", "packed", "fields"),
    [
        ("gemma2", True, {"attn_logit_softcapping": None}),
        ("falcon", False, {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 4}),
        ("falcon", False, {"new_decoder_architecture": False, "multi_query": True}),
        ("phi3", True, {"sliding_window": None}),
    ],
)
def test_other_settings_of_an_architecture_give_stock_numbers(
    train_run: MakeRun, tmp_path: Path, model_type: str, packed: bool, fields: dict[str, Any]
) -> None:
    directory = architectures.build(model_type, tmp_path / "model", **fields)
    run_dir = train_run(mixed_pairs()[1:4], reference=ModelRef(str(directory), "h"), max_length=64, micro_batch=2)
    ours, _ = compare(run_dir, size=0.01)
    assert ours.course.scorer.packed is packed


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("granite", {"attention_dropout": 0.3}),
        ("starcoder2", {"attention_dropout": 0.3, "residual_dropout": 0.3, "embedding_dropout": 0.3}),
        ("gpt2", {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}),
        ("gpt_neox", {"attention_dropout": 0.3, "hidden_dropout": 0.3}),
        ("falcon", {"attention_dropout": 0.3, "hidden_dropout": 0.3}),
    ],
)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_dropout_of_a_configuration_is_off(
    train_run: MakeRun, tmp_path: Path, method: str, model_type: str, fields: dict[str, float]
) -> None:
    """Or policy and reference would differ before the first step."""
    directory = architectures.build(model_type, tmp_path / "model", **fields)
    run_dir = train_run(2, reference=ModelRef(str(directory), "h"), method=method, epochs=1, learning_rate=1e-4)
    succeed("train_dpo", run_dir)
    assert abs(steps(run_dir)[0]["reward_margin"]) < 1e-5
    if method == "full":
        config = json.loads((run_dir / "checkpoint" / "config.json").read_text())
        assert {name: config[name] for name in fields} == fields
