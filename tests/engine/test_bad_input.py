"""What is wrong with a job, its data, its weights or its machine ends in words that an administrator understands.

Further cases stand where the part is tested that meets them: weights and tokenizers when sampling (``test_models``),
labels that mean nothing, lines without a field, responses without tokens, GPUs that are not there (``test_training``),
a full disk (``test_processes``), a cache in trouble (``test_cache``, ``test_reference_logps``), settings of a loss
(``test_losses``), more layers than there are (``test_frozen_layers``), several processes (``test_distributed``).
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.runs import ROOT, adapter_bytes, do, question, steps, succeed, triple
from training import jobspec
from training.engine import loading, preference_data
from training.engine.errors import EngineError
from training.engine.limits import LIMITS, Limit, check_numbers
from training.jobspec import EXIT_FAILED, Completion, ModelRef, Result, TrainJob

MakeRun = Callable[..., Path]


def assert_told(result: Result, code: str, *words: str) -> None:
    """A code, a sentence with ``words`` in it, and something to do."""
    assert not result.ok
    assert result.error_code == code, result
    for word in words:
        assert word in result.error, result
    assert len(result.hint.split()) >= 2, result
    assert result.hint.endswith("."), result


# The job.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learning_rate": math.nan}, "nan for learning rate"),
        ({"learning_rate": math.inf}, "inf for learning rate"),
        ({"learning_rate": -1e-5}, "-1e-05 for learning rate"),
        ({"learning_rate": "fast"}, "'fast' for learning rate"),
        ({"epochs": math.nan}, "nan for epochs"),
        ({"epochs": 0.0}, "0.0 for epochs"),
        ({"epochs": math.inf}, "inf for epochs"),
        ({"warmup_ratio": -0.1}, "-0.1 for warmup ratio"),
        ({"warmup_ratio": 1.5}, "1.5 for warmup ratio"),
        ({"lora_rank": 0}, "0 for lora rank"),
        ({"lora_rank": 2.5}, "2.5 for lora rank"),
        ({"lora_rank": 10**400}, "for lora rank"),
        ({"lora_alpha": 0}, "0 for lora alpha"),
        ({"pairs_per_step": True}, "True for pairs per step"),
        ({"max_length": 0}, "0 for max length"),
        ({"seed": -1}, "-1 for seed"),
        ({"seed": 2**32}, "4294967296 for seed"),
        ({"threads": 10**6}, "1000000 for threads"),
        ({"cache_mb": -1}, "-1 for cache mb"),
        ({"fast_layers": -1}, "-1 for fast layers"),
        ({"loss": "magic"}, "no loss 'magic'"),
        ({"beta": math.nan}, "beta is nan"),
        ({"method": "dora"}, "no method 'dora'"),
    ],
)
def test_a_setting_that_means_nothing_is_named(train_run: MakeRun, fields: dict[str, Any], words: str) -> None:
    assert_told(do("train_dpo", train_run(1, **fields)), "bad_job", words)


def test_limits_are_said_in_words() -> None:
    assert str(Limit(1, LIMITS["lora_rank"].high)) == "a whole number from 1 on"
    assert str(LIMITS["seed"]) == "a whole number from 0 to 4,294,967,295"
    assert str(LIMITS["warmup_ratio"]) == "a number from 0 to 1"
    assert str(LIMITS["learning_rate"]) == "a number above zero"
    check_numbers(TrainJob(ModelRef("", ""), 0))


@pytest.mark.parametrize("field", ["base_dir", "adapter_dir"])
def test_a_directory_that_is_gone_is_named(
    train_run: MakeRun, tiny_model_dir: Path, tmp_path: Path, field: str
) -> None:
    gone = str(tmp_path / "gone")
    fields = {"base_dir": str(tiny_model_dir), "base_hash": "b", "adapter_hash": "a"} | {field: gone}
    assert_told(do("train_dpo", train_run(1, reference=ModelRef(**fields))), "bad_weights", gone)


def test_more_layers_than_the_model_has_are_told_with_their_number(train_run: MakeRun) -> None:
    assert_told(do("train_dpo", train_run(1, mode="fast", fast_layers=3)), "bad_job", "2 layers", "3 cannot")


@pytest.mark.parametrize("fields", [{"learning_rate": 1e6}, {"learning_rate": 1e6, "mode": "fast", "fast_layers": 1}])
def test_a_learning_rate_that_is_too_high_is_told_with_the_step(train_run: MakeRun, fields: dict[str, Any]) -> None:
    run_dir = train_run(6, epochs=10.0, **fields)
    assert_told(do("train_dpo", run_dir), "diverged", f"at step {steps(run_dir)[-1]['step'] + 1}")
    assert not (run_dir / "checkpoint").exists()


# The data.


@pytest.mark.parametrize(
    "line", [b'{"pair_id": ', b'{"pair_id": "\xff"}', b"[1, 2]", b"null", b"", b'{"pair_id": "x", "spirit": "train"}']
)
def test_a_line_that_cannot_be_read_is_told_with_its_number(train_run: MakeRun, line: bytes) -> None:
    run_dir = train_run(3)
    lines = (run_dir / "dataset.jsonl").read_bytes().splitlines()
    (run_dir / "dataset.jsonl").write_bytes(b"\n".join([*lines[:1], line, *lines[1:]]) + b"\n")
    assert_told(do("train_dpo", run_dir), "bad_dataset", "Line 2 of dataset.jsonl")


def test_a_torn_last_line_is_told_with_its_number(train_run: MakeRun) -> None:
    run_dir = train_run(3)
    size = (run_dir / "dataset.jsonl").stat().st_size
    os.truncate(run_dir / "dataset.jsonl", size - 30)
    assert_told(do("train_dpo", run_dir), "bad_dataset", "Line 3 of dataset.jsonl")


def test_no_flipped_bit_of_the_data_ends_in_anything_else(train_run: MakeRun, tiny_model_dir: Path) -> None:
    """Some change a letter of a text, which nothing but the snapshot's own hash notices. The others are told."""
    run_dir = train_run([triple(number, weight=0.5, prompt_token_ids=[1, 20, 30]) for number in range(3)])
    path, tokenizer = run_dir / "dataset.jsonl", loading.load_tokenizer(tiny_model_dir)
    whole, draw, told = path.read_bytes(), random.Random(8), []
    for _ in range(300):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            preference_data.read_preferences(path, tokenizer, 128)
        except EngineError as error:
            told.append(error)
    assert 50 < len(told) < 250
    for error in told:
        assert error.code == "bad_dataset"
        assert error.message.startswith(("Line ", "Pair "))
        assert error.hint


def test_a_dataset_that_is_gone_is_told(train_run: MakeRun) -> None:
    run_dir = train_run(1)
    (run_dir / "dataset.jsonl").unlink()
    result = do("train_dpo", run_dir)
    assert result.error_code == "bad_job"
    assert "dataset.jsonl" in result.error


def test_a_prompt_that_fills_the_context_is_left_out_with_the_numbers(train_run: MakeRun) -> None:
    """The context of the model, where the recipe would read more."""
    long = triple(0, messages=question(0, "rain " * 600).messages)
    details = succeed("train_dpo", train_run([long, triple(1)], max_length=100_000))
    assert details["triples"]["train"] == 1
    assert "training reads 512 with the response" in details["left_out"][0]["reason"]
    result = do("train_dpo", train_run([long], name="alone", max_length=100_000))
    assert_told(result, "bad_dataset", "None of the 1 training pairs", "512")


@pytest.mark.parametrize(
    ("completion", "ends"),
    [
        (Completion(" bird", [], ""), True),
        (Completion(" bird", [], "stop"), True),
        (Completion(" bird", [], "length"), False),
        (Completion(" bird bird bird bird", [], "stop"), False),  # cut here, by the greatest length of training
    ],
)
def test_a_response_that_was_cut_does_not_end(
    train_run: MakeRun, tiny_model_dir: Path, completion: Completion, ends: bool
) -> None:
    tokenizer = loading.load_tokenizer(tiny_model_dir)
    run_dir = train_run([triple(0, chosen=completion, rejected=Completion(" a", [], "length"))])
    prompt = len(preference_data.read_preferences(run_dir / "dataset.jsonl", tokenizer, 128).train[0].prompt_ids)
    (read,) = preference_data.read_preferences(run_dir / "dataset.jsonl", tokenizer, prompt + 3).train
    assert (read.chosen_ids[-1] == tokenizer.eos_token_id) == ends
    assert tokenizer.eos_token_id not in read.rejected_ids
    assert succeed("train_dpo", run_dir)["steps"] == 2


def test_pairs_whose_responses_are_all_the_same_cannot_be_trained_on(train_run: MakeRun) -> None:
    same = Completion(" bird")
    result = do("train_dpo", train_run([triple(number, chosen=same, rejected=same) for number in range(4)]))
    assert_told(result, "bad_dataset", "None of the 4 training pairs", "are the same")


def test_one_pair_many_times_is_trained_on(train_run: MakeRun) -> None:
    run_dir = train_run([triple(0)] * 5, pairs_per_step=5, epochs=4.0)
    details = succeed("train_dpo", run_dir)
    assert details["triples"]["train"] == 5
    assert details["reference_logps"]["forwards"] <= 5
    assert steps(run_dir)[-1]["reward_margin"] > 0


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_one_pair_is_enough_for_every_way_to_train(train_run: MakeRun, method: str, mode: str) -> None:
    run_dir = train_run(1, method=method, mode=mode, fast_layers=int(mode == "fast"), pairs_per_step=8, epochs=3.0)
    assert succeed("train_dpo", run_dir)["steps"] == 3


def test_the_robust_loss_names_the_tie_that_it_cannot_use(train_run: MakeRun) -> None:
    rows = [triple(0), triple(1, label_noise=0.5)]
    assert_told(do("train_dpo", train_run(rows, loss="robust")), "bad_dataset", "pair-1 is a tie")
    assert succeed("train_dpo", train_run(rows, name="dpo"))["ties"] == 1


@pytest.mark.parametrize("fields", [{"weight": math.inf}, {"weight": -0.1}, {"label_noise": 0.51}, {"label_noise": -1}])
def test_a_label_out_of_range_is_told_in_the_held_out_pairs_too(train_run: MakeRun, fields: dict[str, float]) -> None:
    rows = [triple(0), triple(7, split="held_out", **fields)]
    assert_told(do("train_dpo", train_run(rows)), "bad_dataset", "pair-7", str(next(iter(fields.values()))))


def test_a_pair_of_an_unknown_split_is_not_taken_for_a_held_out_one(train_run: MakeRun) -> None:
    rows = [triple(0), triple(7, split="test")]
    assert_told(do("train_dpo", train_run(rows)), "bad_dataset", "pair-7", "'test'")


# Weights and tokenizers.


def spoil(path: Path, tensor: str, value: float) -> None:
    tensors = load_file(path)
    tensors[tensor].flatten()[5] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["lora", "full"])
def test_base_weights_that_are_no_numbers_are_named(train_run: MakeRun, copied_model: Path, method: str) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    spoil(copied_model / "model.safetensors", name, math.nan)
    result = do("train_dpo", train_run(2, method=method, reference=ModelRef(str(copied_model), "hash")))
    assert_told(result, "bad_weights", name)


@pytest.fixture
def adapter(train_run: MakeRun, reference: ModelRef) -> ModelRef:
    run_dir = train_run(2, name="earlier", epochs=1.0)
    succeed("train_dpo", run_dir)
    return ModelRef(reference.base_dir, reference.base_hash, str(run_dir / "checkpoint"), "hash-of-adapter")


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_adapter_that_is_no_numbers_is_named(
    train_run: MakeRun, adapter: ModelRef, method: str, value: float
) -> None:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    assert adapter.adapter_dir is not None
    spoil(Path(adapter.adapter_dir) / "adapter_model.safetensors", name, value)
    result = do("train_dpo", train_run(2, method=method, reference=adapter))
    assert_told(result, "bad_weights", "layers.0.mlp.up_proj.lora_B")


@pytest.mark.parametrize("keep", [0, 7, 300, 5000])
def test_weights_that_were_cut_are_told(train_run: MakeRun, copied_model: Path, adapter: ModelRef, keep: int) -> None:
    os.truncate(copied_model / "model.safetensors", keep)
    result = do("train_dpo", train_run(2, name="base", reference=ModelRef(str(copied_model), "hash")))
    assert_told(result, "bad_weights")
    assert adapter.adapter_dir is not None
    os.truncate(Path(adapter.adapter_dir) / "adapter_model.safetensors", keep)
    result = do("train_dpo", train_run(2, name="adapter", reference=adapter))
    assert_told(result, "bad_weights")


def edit_tokenizer(directory: Path, **changes: Any) -> ModelRef:
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    return ModelRef(str(directory), "hash")


def test_a_tokenizer_without_an_end_cannot_be_trained_with(train_run: MakeRun, copied_model: Path) -> None:
    reference = edit_tokenizer(copied_model, eos_token=None)
    assert_told(do("train_dpo", train_run(1, reference=reference)), "bad_tokenizer", "end-of-sequence")


def test_a_tokenizer_without_padding_gives_the_same_adapter(train_run: MakeRun, copied_model: Path) -> None:
    """Nothing is padded that is read."""
    reference = edit_tokenizer(copied_model, pad_token=None)
    with_one, without = train_run(3, name="with"), train_run(3, name="without", reference=reference)
    succeed("train_dpo", with_one)
    succeed("train_dpo", without)
    assert adapter_bytes(without) == adapter_bytes(with_one)


def test_a_model_without_chat_template_cannot_be_trained(train_run: MakeRun, copied_model: Path) -> None:
    (copied_model / "chat_template.jinja").unlink()
    reference = ModelRef(str(copied_model), "hash")
    assert_told(do("train_dpo", train_run(1, reference=reference)), "no_chat_template", "chat template")


# The machine.


@pytest.mark.parametrize(("mode", "name"), [("exact", "reference-logps"), ("fast", "hidden-states")])
def test_flipped_bytes_in_a_cache_are_counted_and_told_and_do_no_harm(
    train_run: MakeRun, tmp_path: Path, mode: str, name: str
) -> None:
    fields: dict[str, Any] = {"mode": mode, "fast_layers": int(mode == "fast"), "cache_dir": str(tmp_path / "kept")}
    first, second = train_run(4, name="first", **fields), train_run(4, name="second", **fields)
    succeed("train_dpo", first)
    path = tmp_path / "kept" / f"{name}.sqlite3"
    flip_values(path)
    counts = succeed("train_dpo", second)["reference_logps"]
    # The lower layers run anew for the pair whose value is checked, whatever is kept of it.
    assert counts["damaged"] == 4 - (counts["checked"] if mode == "fast" else 0)
    assert adapter_bytes(first) == adapter_bytes(second)
    third = train_run(4, name="third", **fields)
    assert succeed("train_dpo", third)["reference_logps"]["damaged"] == 0  # mended


def flip_values(path: Path) -> None:
    """One bit of each value, as a disk would do it: SQLite is not asked."""
    import sqlite3

    connection = sqlite3.connect(path)
    values = [value for (value,) in connection.execute("SELECT value FROM content")]
    connection.close()
    data = bytearray(path.read_bytes())
    for value in values:
        parts = (value[start : start + 24] for start in range(0, len(value), 24))
        data[data.index(next(part for part in parts if data.count(part) == 1))] ^= 1
    path.write_bytes(data)


def test_no_room_for_the_saved_state_is_a_full_disk(train_run: MakeRun) -> None:
    """The weights of the adapter pass the limit, those of the optimiser do not; what was trained before is kept."""
    run_dir = train_run(6, save_every_steps=2, epochs=2.0)
    succeed("train_dpo", run_dir)
    state = run_dir / "trainer" / "checkpoint-6"
    adapter, optimizer = ((state / name).stat().st_size for name in ("adapter_model.safetensors", "optimizer.pt"))
    assert adapter < optimizer
    shutil.rmtree(run_dir / "trainer")
    shutil.rmtree(run_dir / "checkpoint")
    limit = (adapter + optimizer) // 2
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from training.engine import process, train_dpo\n"
        "from training.jobspec import TrainJob\n"
        "process.run(train_dpo.main, TrainJob, '', [sys.argv[1]])"
    )
    command = [sys.executable, "-c", code, str(run_dir)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == EXIT_FAILED
    result = jobspec.read_result(run_dir)
    assert result is not None
    assert_told(result, "disk_full", "MiB are free")
    assert not (run_dir / "checkpoint").exists()
    assert succeed("train_dpo", run_dir)["steps"] == 6


def test_too_little_memory_is_told_with_both_numbers(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.engine import memory

    monkeypatch.setattr(memory, "memory_of", lambda compute: 100 * 2**20)
    assert_told(do("train_dpo", train_run(1)), "out_of_memory", "GiB", "0.1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("fields", [{"device": "cuda"}, {"device": "cuda", "processes": 2}])
def test_a_gpu_that_is_not_there_is_told_with_what_to_choose(train_run: MakeRun, fields: dict[str, Any]) -> None:
    assert_told(do("train_dpo", train_run(1, **fields)), "no_gpu", "none")
