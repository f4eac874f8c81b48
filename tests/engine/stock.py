"""TRL's own ``DPOTrainer`` on the token ids of a run: what every number here must agree with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from tests.engine.prepared import CPU, Gradients, gradients, read_job, trained
from training.engine import loading, preference_data
from training.engine.preference_data import TokenTriple
from training.engine.reference import fresh_adapter

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class StockTrainer(DPOTrainer):
    """Nothing is changed but that the ids come tokenised."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def stock_trainer(run_dir: Path, **options: Any) -> StockTrainer:
    """On the pairs of ``run_dir``; ``options`` go to ``DPOConfig``. TRL cuts long pairs by itself."""
    job = read_job(run_dir)
    tokenizer = loading.load_tokenizer(job.reference.base_dir)
    model = loading.load_base(job.reference, torch.float32)
    models: dict[str, Any] = {"model": model}
    if job.method == "full":
        frozen = loading.load_full_weights(job.reference, torch.float32).eval()
        policy = loading.load_full_weights(job.reference, torch.float32).requires_grad_(True)
        models = {"model": policy, "ref_model": frozen}
    elif job.reference.adapter_dir:
        models["model"] = loading.load_adapter(model, job.reference.adapter_dir, trainable=True)
    else:
        models["peft_config"] = fresh_adapter(model, job)
    defaults = {"gradient_checkpointing": False, "bf16": False, "report_to": "none", "use_cpu": True}
    return StockTrainer(
        **models,
        args=DPOConfig(str(run_dir / "stock"), beta=job.beta, max_length=job.max_length, **(defaults | options)),
        train_dataset=Dataset.from_dict(columns(uncut_pairs(run_dir))),
        processing_class=tokenizer,
    )


def uncut_pairs(run_dir: Path) -> list[TokenTriple]:
    tokenizer = loading.load_tokenizer(read_job(run_dir).reference.base_dir)
    return preference_data.read_preferences(run_dir / "dataset.jsonl", tokenizer, 10**6).train


def columns(triples: list[TokenTriple]) -> dict[str, list[list[int]]]:
    return {name: [getattr(triple, name) for triple in triples] for name in COLUMNS}


def stock_step(trainer: StockTrainer) -> tuple[float, Gradients]:
    """Loss and gradients of one batch of all pairs."""
    trainer.model.zero_grad()
    trainer.model.train()
    inputs = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), gradients(trainer.model)


def put_where(trainer: StockTrainer, policy: torch.nn.Module) -> None:
    """Give the trained tensors of ``trainer`` the values that they have in ``policy``."""
    own = dict(trained(trainer.model))
    theirs = dict(trained(policy))
    assert own.keys() == theirs.keys()
    with torch.no_grad():
        for name, tensor in theirs.items():
            own[name].copy_(tensor)


__all__ = ["CPU", "StockTrainer", "columns", "put_where", "stock_step", "stock_trainer", "uncut_pairs"]
