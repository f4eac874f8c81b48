"""TRL's ``DPOTrainer`` with token ids as they were sampled, and with a stop when a step cannot be right."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from training.engine import process, resume
from training.engine.compute import Compute
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.engine.preference_data import TokenTriple
from training.jobspec import StepMetrics, TrainJob

# transformers 5.23 renames an argument that TRL 1.16 still reads under its old name.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)

# In nats of log pi / pi_ref of the first step's pairs, which is zero when the reference is the right one: both sides
# are then the same arithmetic. A wrong reference is off by nats.
REFERENCE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}

SHOWN_METRICS = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


def score_completions_only() -> None:
    """Keep TRL from computing the output head for prompts and padding on a CPU.

    On a CPU TRL 1.16 scores every position and masks afterwards; this switch makes it select the completion's
    positions first, as it does on a GPU. A position's log-probability does not depend on the other rows of the
    product. The name in this module decides about that selection only; the kernel keeps a flag of its own.
    """
    trl_utils._use_triton = lambda device: True


class TokenDPOTrainer(DPOTrainer):
    """``DPOTrainer`` on a dataset of ``prompt_ids``, ``chosen_ids``, ``rejected_ids``."""

    reference_tolerance: float
    mean_pairs = 0.0  # pairs a micro-batch of the current step; zero before the first one

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # Re-tokenising text would not give back what was sampled, and TRL would add a newline after the end of turn.
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: TRL's card of a saved state would name paths of this machine."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self.mean_pairs = sum(map(pairs_in, batches)) / len(batches)
        return batches, items

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any], return_outputs: bool) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs, return_outputs)
        if not torch.isfinite(loss):
            raise diverged(self.state.global_step + 1)
        if self.state.global_step == 0:
            self.check_reference()
        # Trainer averages over micro-batches. The last one of an epoch may be smaller, and its pairs count no more.
        share = pairs_in(inputs) / self.mean_pairs if self.mean_pairs else 1.0
        if share != 1.0:
            for name in SHOWN_METRICS:
                self._metrics["train"][name][-1] *= share
        return loss * share

    def check_reference(self) -> None:
        """Before the first update policy and reference must agree on both completions, not only on the difference."""
        metrics = self._metrics["train"]
        for name in ("rewards/chosen", "rewards/rejected"):
            drift = metrics[name][-1] / self.beta
            if abs(drift) > self.reference_tolerance:
                message = (
                    f"Before the first step policy and reference differ by {drift:.3g} nats on the "
                    f"{name.removeprefix('rewards/')} responses; they must be the same model."
                )
                raise EngineError(
                    "wrong_reference", message, "Report this: the run would have trained against a wrong model."
                )


def pairs_in(batch: dict[str, Any]) -> int:
    return len(batch["input_ids"]) // 2  # chosen rows, then rejected rows


def diverged(step: int) -> EngineError:
    message = f"The loss stopped being a number at step {step}."
    return EngineError("diverged", message, "Lower the learning rate, or raise beta, and start a new run.")


class StepRecorder(TrainerCallback):
    """Writes a line a step, seals saved states, and ends training politely when the process is asked to stop."""

    def __init__(self, metrics: MetricsJournal, last: StepMetrics | None) -> None:
        self.metrics = metrics
        self.seconds_before = last.seconds if last else 0.0
        self.started = time.monotonic()
        self.last = last

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if process.stop.requested:
            control.should_save = not resume.is_whole(state_dir(args, state))
            control.should_training_stop = True

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A step of many pairs takes minutes, and nobody waits so long for a stop. The gradient so far is dropped; the
        # weights are still those of the last step.
        if process.stop.requested:
            control.should_save = state.global_step > 0 and not resume.is_whole(state_dir(args, state))
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:  # the summary that Trainer logs at the end
            return
        if not torch.isfinite(torch.tensor([logs["loss"], logs["grad_norm"]])).all():
            raise diverged(state.global_step)
        self.last = step_metrics(logs, state, self.seconds)
        self.metrics.step(self.last)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        resume.seal(state_dir(args, state))

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def state_dir(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{resume.PREFIX}{state.global_step}"


def step_metrics(logs: dict[str, float], state: TrainerState, seconds: float) -> StepMetrics:
    margin, accuracy = logs["rewards/margins"], logs["rewards/accuracies"]
    if margin == 0.0 and accuracy == 0.0:
        accuracy = 0.5  # nothing but ties, as in the first step, and TRL counts a tie as lost
    return StepMetrics(
        step=state.global_step,
        steps=state.max_steps,
        seconds=round(seconds, 3),
        loss=logs["loss"],
        reward_margin=margin,
        reward_accuracy=accuracy,
        logp_chosen=logs["logps/chosen"],
        logp_rejected=logs["logps/rejected"],
        learning_rate=logs["learning_rate"],
        grad_norm=logs["grad_norm"],
        epoch=logs["epoch"],
    )


def to_dataset(triples: list[TokenTriple]) -> Dataset:
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: [getattr(triple, name) for triple in triples] for name in columns})


def total_steps(job: TrainJob, pairs: int) -> int:
    """Optimiser steps of the whole run; the last step of an epoch may have fewer pairs."""
    steps_per_epoch = -(-pairs // job.pairs_per_step)
    return max(1, -int(-job.epochs * steps_per_epoch // 1))


def configuration(job: TrainJob, compute: Compute, pairs: int, trainer_dir: Path) -> DPOConfig:
    return DPOConfig(
        output_dir=str(trainer_dir),
        beta=job.beta,
        loss_type=["sigmoid"],
        max_length=job.max_length,
        learning_rate=job.learning_rate,
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.pairs_per_step // job.micro_batch,
        lr_scheduler_type="cosine",
        # Rounded down: the first step of a warm-up has learning rate zero, which a short run cannot afford.
        warmup_steps=int(total_steps(job, pairs) * job.warmup_ratio),
        optim="adamw_torch",
        max_grad_norm=1.0,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=not compute.on_cuda,
        bf16=compute.on_cuda,
        fp16=False,
        gradient_checkpointing=False,
        precompute_ref_log_probs=False,
        disable_dropout=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        save_strategy="steps",
        save_steps=job.save_every_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
