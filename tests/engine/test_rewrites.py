"""Rewrites, which are text alone, beside responses that were sampled: what the engine and TRL make of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from labeling.models import Response, Rewrite
from tests.engine.runs import question, succeed, triple, write_lines
from training import demonstrations
from training.engine import loading, preference_data
from training.engine.chat import prompt_token_ids
from training.jobspec import Completion


def test_a_rewrite_is_tokenised_and_what_was_sampled_is_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The sampled response ends without an end token, which its text alone would not tell."""
    tokenizer = loading.load_tokenizer(tiny_model_dir)
    prompt = prompt_token_ids(tokenizer, question(1).messages)
    ids = tokenizer(" a bird", add_special_tokens=False)["input_ids"]
    sampled = Completion(tokenizer.decode(ids), ids, "length")
    lines = [
        triple(1, chosen=sampled, rejected=Completion(" night", []), prompt_token_ids=prompt),
        triple(1, chosen=Completion(" a fine bird"), rejected=sampled, source="rewrite"),
    ]
    write_lines(tmp_path, lines)
    data = preference_data.read_preferences(tmp_path / "dataset.jsonl", tokenizer, 128)
    _, rewrite = data.train
    assert rewrite.prompt_ids == prompt
    text = tokenizer(" a fine bird", add_special_tokens=False)["input_ids"]
    assert rewrite.chosen_ids == [*text, tokenizer.eos_token_id]
    assert rewrite.rejected_ids == ids
    assert (data.left_out, data.retokenised) == ([], [])


def test_a_run_trains_and_evaluates_on_rewrites_of_the_same_pair(train_run: Callable[..., Path]) -> None:
    better = Completion(" a much better bird book")
    pairs = [triple(number, "held_out" if number > 3 else "train") for number in range(6)]
    rewrites = [dataclasses.replace(each, chosen=better, rejected=each.chosen, source="rewrite") for each in pairs]
    details = succeed("train_dpo", train_run([*pairs, *rewrites], epochs=1.0))
    assert details["triples"] == {"train": 8, "held_out": 4, "left_out": 0}
    assert details["held_out"]["pairs"] == 4


@pytest.mark.django_db
def test_trl_fine_tunes_on_the_file_of_demonstrations(
    project: Any, label: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    for pair in label(4):
        text = Response.objects.create(prompt=pair.prompt, text="A far better answer.")
        Rewrite.objects.create(preference=pair.preferences.get(), response=text)
    path = tmp_path / "demonstrations.jsonl"
    demonstrations.write(project=project, path=path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    dataset = Dataset.from_list([row for row in rows if row["split"] == "train"])
    args = SFTConfig(
        output_dir=str(tmp_path / "sft"), max_steps=1, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        gradient_checkpointing=False, dataloader_pin_memory=False, disable_tqdm=True, per_device_train_batch_size=4,
    )  # fmt: skip
    tokenizer = loading.load_tokenizer(tiny_model_dir)
    trainer = SFTTrainer(model=str(tiny_model_dir), args=args, train_dataset=dataset, processing_class=tokenizer)
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]).count("A far better answer.") == 1
    assert trainer.train().training_loss > 0
