"""One optimiser step of stock TRL's trainer and one of the engine's, prepared from the same pairs."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pairs import TextPair, training_run

RANK, ALPHA, BETA, MAX_LENGTH = 16, 32, 0.1, 1024
# Measured where the CPU has bfloat16; elsewhere the fast mode is float32 anyway. The other variants choose themselves.
PRECISIONS = {"exact_bfloat16": "bfloat16", "fast_float32": "float32"}
TUNED_BATCH = 2  # pairs a forward; more is slower on a CPU and takes gigabytes


@dataclass
class Setup:
    """What all variants share."""

    model_dir: Path
    pairs: list[TextPair]
    device: str
    threads: int
    repeats: int = 1
    default_batch: int = 8


class StockStep:
    """TRL's ``DPOTrainer`` as it is, on the token ids that Tiebreak trains on."""

    def __init__(self, variant: str, setup: Setup) -> None:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import DPOConfig, DPOTrainer

        class Tokenised(DPOTrainer):
            def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
                return dataset

        self.prepared_s = 0.0
        default = variant == "stock_default"
        on_cuda = setup.device == "cuda"
        tokenizer = AutoTokenizer.from_pretrained(setup.model_dir)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        dtype = torch.bfloat16 if on_cuda else torch.float32
        model = AutoModelForCausalLM.from_pretrained(setup.model_dir, dtype=dtype)
        triples = tokenised(setup, tokenizer)
        columns = ("prompt_ids", "chosen_ids", "rejected_ids")
        self.batch_size = setup.default_batch if default else TUNED_BATCH
        own: dict[str, Any] = {} if default else {"gradient_checkpointing": False, "bf16": on_cuda}
        if variant == "stock_precomputed":
            own |= {"precompute_ref_log_probs": True, "precompute_ref_batch_size": TUNED_BATCH}
        started = time.perf_counter()
        self.trainer = Tokenised(
            model=model,
            args=DPOConfig(output_dir=tempfile.mkdtemp(), use_cpu=not on_cuda, beta=BETA, report_to="none", **own),
            train_dataset=Dataset.from_dict({name: [getattr(item, name) for item in triples] for name in columns}),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linear_names(model), task_type="CAUSAL_LM"),
        )
        if variant == "stock_precomputed":
            self.prepared_s = time.perf_counter() - started
        ready(self.trainer)

    def batches(self) -> list[list[dict[str, Any]]]:
        rows = list(self.trainer.train_dataset)
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def warm_up(self) -> None:
        self.backward([max(self.batches(), key=longest_row)])

    def whole(self) -> None:
        self.backward(self.batches())
        update(self.trainer)

    def backward(self, batches: list[list[dict[str, Any]]]) -> float:
        pairs = sum(map(len, batches))
        total = 0.0
        for rows in batches:
            self.trainer.model.train()
            inputs = self.trainer._prepare_inputs(self.trainer.data_collator(rows))
            with self.trainer.compute_loss_context_manager():
                loss = self.trainer.compute_loss(self.trainer.model, inputs) * (len(rows) / pairs)
            self.trainer.accelerator.backward(loss)
            total += loss.item()
        return total

    def parity(self) -> str:
        leave_reference(self.trainer.model)
        return save_gradients(self.trainer.model, self.backward(self.batches()))


def longest_row(rows: list[dict[str, Any]]) -> int:
    return max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows)


class OurStep:
    """The engine's own trainer, prepared as a run prepares it."""

    def __init__(self, variant: str, setup: Setup) -> None:
        from training.engine import dpo, frozen_layers
        from training.engine.journal import MetricsJournal

        self.setup = setup
        run_dir, job = training_run(
            setup.model_dir,
            setup.pairs,
            mode=variant.split("_")[0],
            precision=PRECISIONS.get(variant, "auto"),
            pairs_per_step=len(setup.pairs),
            epochs=1.0,
            beta=BETA,
            lora_rank=RANK,
            lora_alpha=ALPHA,
            max_length=MAX_LENGTH,
            device=setup.device,
            threads=setup.threads,
        )
        states = frozen_layers.open_cache(str(run_dir / "cache"), job.cache_mb)
        self.setting = dpo.prepare(run_dir, job, MetricsJournal(run_dir), states)
        started = time.perf_counter()
        values, _ = dpo.read_reference(self.setting)
        self.prepared_s = time.perf_counter() - started
        self.trainer, _ = dpo.build_trainer(self.setting, values)
        ready(self.trainer)

    def warm_up(self) -> None:
        examples = self.trainer.course.examples
        largest = self.trainer.micro_batches(examples)[0]  # from long to short
        self.trainer.course.plan.append([examples.index(example) for example in largest])
        self.trainer.training_step(self.trainer.model, {"step": len(self.trainer.course.plan) - 1})
        self.trainer.state.global_step = 1  # what follows is no first step any more

    def whole(self) -> None:
        self.trainer.training_step(self.trainer.model, {"step": 0})
        update(self.trainer)

    def parity(self) -> str:
        leave_reference(self.trainer.model)
        self.trainer.state.global_step = 1
        return save_gradients(self.trainer.model, self.trainer.training_step(self.trainer.model, {"step": 0}).item())

    def gflop(self) -> float:
        """Of one step as it is computed here: forward, and gradients of activations and adapter; no recomputation."""
        from training import footprint
        from training.engine.arrangement import packed_tokens, scored_tokens
        from training.footprint import Shape

        shape = Shape.from_config(self.setting.start.plain.config.to_dict())
        body = shape.layers * footprint.layer_parameters(shape)
        head = shape.vocab * shape.hidden
        adapter = footprint.adapter_parameters(shape, RANK, shape.layers)
        triples = self.setting.data.train
        tokens, scored = sum(map(packed_tokens, triples)), sum(map(scored_tokens, triples))
        attention = 4 * shape.layers * shape.query_width * sum(attended(triple) for triple in triples)
        # Twice the forward for frozen weights (gradients of activations alone), thrice for attention.
        return (4 * tokens * body + 4 * scored * head + 8 * tokens * adapter + 3 * attention) / 1e9


def attended(triple: Any) -> int:
    """Keys that all positions of a packed pair see together."""
    prompt = len(triple.prompt_ids)
    both = (len(triple.chosen_ids), len(triple.rejected_ids))
    return prompt * (prompt + 1) // 2 + sum(length * prompt + length * (length + 1) // 2 for length in both)


def ready(trainer: Any) -> None:
    """As ``train`` does before its first step: accelerate puts its autocast around the model's forward here."""
    trainer.create_optimizer()
    trainer.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)


def tokenised(setup: Setup, tokenizer: Any) -> list[Any]:
    """The very ids that Tiebreak trains on."""
    from training.engine.preference_data import read_preferences

    run_dir, _ = training_run(setup.model_dir, setup.pairs)
    return read_preferences(run_dir / "dataset.jsonl", tokenizer, MAX_LENGTH).train


def linear_names(model: Any) -> list[str]:
    from training.engine.reference import linear_layer_names

    return linear_layer_names(model)


def update(trainer: Any) -> None:
    import torch

    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.model.zero_grad()


def leave_reference(model: Any) -> None:
    """Set the adapter to fixed values, the same for both, under which policy and reference differ."""
    import torch

    model.zero_grad()
    for number, (name, tensor) in enumerate(sorted(model.named_parameters())):
        if tensor.requires_grad:
            generator = torch.Generator().manual_seed(number)
            scale = 0.02 if "lora_B" in name else 1 / tensor.shape[1] ** 0.5
            with torch.no_grad():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)


def save_gradients(model: Any, loss: float) -> str:
    import torch

    gradients = {name: tensor.grad.cpu() for name, tensor in model.named_parameters() if tensor.grad is not None}
    path = tempfile.mkstemp(suffix=".pt")[1]
    torch.save({"loss": loss, "gradients": gradients}, path)
    return path
