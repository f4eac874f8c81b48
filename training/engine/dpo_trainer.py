"""TRL's ``DPOTrainer`` with a step of our own: pairs without padding, reference values from outside, a loss per pair.

TRL builds the adapter, the optimiser and the schedule, and saves and resumes. What a step is, is decided here: which
pairs (``step_plan``), how they are laid out (``arrangement``), how they are scored (``scoring``), what is made of it
(``losses``), what is told of it (``step_record``, ``pulls``). Of TRL's private parts these are replaced:
``_prepare_dataset``, ``_precompute_ref_logps`` and ``_compute_loss``; a contract test holds each to what it is replaced
for.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from training.engine import guards, memory, process, ranks, resume
from training.engine.arrangement import Arrangement
from training.engine.compute import Compute
from training.engine.guards import TrainingGuard
from training.engine.journal import say
from training.engine.losses import LossSettings, PairLogps, disagreement, pair_losses
from training.engine.memory import Room
from training.engine.preference_data import TokenTriple
from training.engine.pulls import PullRecord
from training.engine.reference_logps import Pair
from training.engine.scoring import Scorer
from training.engine.step_record import Means, StepTotals, state_dir
from training.jobspec import TrainJob

# transformers 5.23 renames an argument that TRL 1.16 still reads under its old name.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


@dataclass(frozen=True)
class Example:
    """A triple with the reference's per-token log-probabilities of both responses."""

    triple: TokenTriple
    reference: Pair
    place: int = 0  # among the training pairs


@dataclass(frozen=True)
class MicroBatch:
    """Examples that are computed at once, and how many pairs the whole optimiser step has on all processes."""

    examples: list[Example]
    batch: Arrangement
    pairs_in_step: int
    silent: bool = False  # it counts for nothing


class Stopped(Exception):
    """The process was asked to stop within an optimiser step, whose gradient so far is dropped."""


@dataclass
class Course:
    """What the trainer is given beside a model: the pairs, the plan of steps, and how a step is computed."""

    examples: list[Example]
    plan: list[list[int]]
    scorer: Scorer
    loss: LossSettings
    room: Room
    guard: TrainingGuard
    pulls: PullRecord


class PairTrainer(DPOTrainer):
    """``DPOTrainer`` whose dataset is a plan of optimiser steps over ``course.examples``."""

    def __init__(self, *, course: Course, **options: Any) -> None:
        self.course = course
        self.totals = StepTotals()
        steps = Dataset.from_dict({"step": list(range(len(course.plan)))})
        super().__init__(train_dataset=steps, data_collator=first_of, **options)

    # What TRL would do and must not.

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Nothing: re-tokenising would not give back what was sampled, and TRL would add a newline after the turn."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Nothing: the examples carry the reference's values."""
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: TRL's card of a saved state would name paths of this machine."""

    def get_train_dataloader(self) -> DataLoader:
        """The steps in order, the same on every process: each takes its share of a step's pairs."""
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=first_of)

    # A step.

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of all pairs of a step, in micro-batches. Returns this process's part of the loss.

        Raises ``Stopped``. When memory runs out for the first time, the step is made again in half the room.
        """
        model.train()
        places = self.course.plan[inputs["step"]]
        try:
            return self.step_over(model, places)
        except Exception as error:
            if not self.may_retry(error):
                raise
            say(f"Out of memory at step {self.state.global_step + 1}; trying again with half the micro-batch.")
        model.zero_grad(set_to_none=True)
        free_memory()
        self.make_room(places)
        return self.step_over(model, places)

    def may_retry(self, error: Exception) -> bool:
        alone = self.accelerator.num_processes == 1  # the others would wait for this one's gradients
        room = self.course.room
        return process.is_out_of_memory(error) and alone and not room.halved

    def make_room(self, places: Sequence[int]) -> None:
        """Halve what is in memory at once, by the largest micro-batch of the pairs at ``places``."""
        room, positions = self.course.room, self.course.scorer.positions
        batches = self.micro_batches([self.course.examples[place] for place in places])
        largest = max(batches, key=lambda batch: positions([item.triple for item in batch]))
        room.halve(positions([item.triple for item in largest]), len(largest))
        if room.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        memory.remember(room, Path(str(self.args.output_dir)))

    def step_over(self, model: torch.nn.Module, places: list[int]) -> torch.Tensor:
        with self.course.scorer.over(self.model):
            return self.whole_step(model, places)

    def whole_step(self, model: torch.nn.Module, places: list[int]) -> torch.Tensor:
        self.totals = StepTotals()
        self.course.pulls.begin_step()
        shared = ranks.share(places)  # at least one pair: ``plan_steps`` makes no step of fewer pairs than processes
        batches = self.micro_batches([self.course.examples[place] for place in shared])
        silent = fillers(batches) if self.is_fsdp_enabled else []
        total = torch.zeros((), device=self.accelerator.device)
        for number, examples in enumerate([*batches, *silent], start=1):
            if process.stop.requested and self.accelerator.num_processes == 1:
                raise Stopped
            batch = MicroBatch(examples, self.arrange(examples), len(places), number > len(batches))
            # Gradients travel between processes once a step.
            with nullcontext() if number == len(batches) + len(silent) else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch)
                self.accelerator.backward(loss)
            total += loss.detach()
        self.note_step()
        return total

    def arrange(self, examples: Sequence[Example]) -> Arrangement:
        return self.course.scorer.arrange([example.triple for example in examples], self.accelerator.device)

    def micro_batches(self, examples: list[Example]) -> list[list[Example]]:
        """``examples`` from long to short, as many at once as there is room for."""
        room, positions = self.course.room, self.course.scorer.positions
        batches: list[list[Example]] = []
        for example in sorted(examples, key=lambda item: -positions([item.triple])):
            last = [*batches[-1], example] if batches else []
            if 1 < len(last) <= room.pairs and positions([item.triple for item in last]) <= room.tokens:
                batches[-1].append(example)
            else:
                batches.append([example])
        return batches

    def _compute_loss(self, model: PreTrainedModel, inputs: MicroBatch, return_outputs: bool) -> torch.Tensor:  # type: ignore[override]
        """The micro-batch's part of the mean loss over the pairs of the step; TRL's ``compute_loss`` calls this.

        With several processes it is scaled up by their number, because they average their gradients.
        """
        if self.is_fsdp_enabled:
            unshard_head(model)
        values = self.course.scorer.token_logps(model, inputs.batch)
        logps = self.beside_reference(inputs, values)
        weight, noise = labels_of(inputs.examples, values.device)
        losses = pair_losses(logps, weight, noise, self.course.loss)
        total = losses.sum()
        if not torch.isfinite(total):
            raise guards.diverged(self.state.global_step + 1)
        if self.state.global_step == 0:
            self.course.guard.check_reference(*disagreement(logps))
        if not inputs.silent:
            self.totals.add(logps, self.course.loss, [example.triple.is_tie for example in inputs.examples])
            places = [example.place for example in inputs.examples]
            self.course.pulls.add(places, logps, (weight, noise), self.course.loss)
        return total * (self.accelerator.num_processes / inputs.pairs_in_step)

    def beside_reference(self, inputs: MicroBatch, values: torch.Tensor) -> PairLogps:
        policy = inputs.batch.by_pair(values)
        parts = torch.cat([side for example in inputs.examples for side in example.reference])
        reference = inputs.batch.by_pair(parts.to(values.device))
        lengths = (inputs.batch.lengths_of(side).to(values.device) for side in (0, 1))
        return PairLogps(*policy, *reference, *lengths)

    # What is told of a step.

    def note_step(self) -> None:
        """Means over the pairs of all processes, for the line that this step is logged with."""
        self.course.pulls.end_step()
        self.totals.stops = float(process.stop.requested)
        summed = self.accelerator.reduce(self.totals.tensor(self.accelerator.device), reduction="sum")
        totals = StepTotals(*summed.tolist())
        if self.accelerator.num_processes > 1:
            process.stop.agreed = totals.stops > 0  # all end with the same step, whichever of them was told
        means = Means.of(totals)
        for name, value in vars(means).items():
            self._metrics["train"][name] = [value]


def fillers(batches: list[list[Example]]) -> list[list[Example]]:
    """Batches of weight zero, so that all processes make as many forwards: with FSDP each needs all of them."""
    missing = max(ranks.of_all(len(batches))) - len(batches)
    return [[replace(example, triple=replace(example.triple, weight=0.0)) for example in batches[-1][:1]]] * missing


def unshard_head(model: torch.nn.Module) -> None:
    """Bring the weights of the output head together, which FSDP does where its ``forward`` is called; ours is not."""
    if isinstance(head := model.get_output_embeddings(), FSDPModule):
        head.unshard()


def first_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return rows[0]


def labels_of(examples: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and label noise, (pairs,) float32 each."""
    weight = torch.tensor([example.triple.weight for example in examples], device=device)
    noise = torch.tensor([example.triple.label_noise for example in examples], device=device)
    return weight, noise


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(trainer: PairTrainer, state: Path | None) -> None:
    """Train to the end, or until the process is asked to stop; then the weights of the last step are saved."""
    try:
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    except Stopped:
        trainer.model.zero_grad(set_to_none=True)
        if trainer.state.global_step > 0 and not resume.is_whole(state_dir(trainer.args, trainer.state)):
            trainer._save_checkpoint(trainer.model, trial=None)
            trainer.course.pulls.sync()
            resume.seal(state_dir(trainer.args, trainer.state))


def configuration(job: TrainJob, compute: Compute, steps: int, trainer_dir: Path, *, checkpointing: bool) -> DPOConfig:
    return DPOConfig(
        output_dir=str(trainer_dir),
        beta=job.beta,
        loss_type=["sigmoid"],  # not used: the loss is ``losses.pair_losses``
        max_length=job.max_length,
        learning_rate=job.learning_rate,
        num_train_epochs=1,  # of the plan of steps
        per_device_train_batch_size=1,  # a step
        gradient_accumulation_steps=1,
        remove_unused_columns=False,
        lr_scheduler_type="cosine",
        # Rounded down: the first step of a warm-up has learning rate zero, which a short run cannot afford.
        warmup_steps=int(steps * job.warmup_ratio),
        optim="adamw_torch",
        max_grad_norm=1.0,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=not compute.on_cuda,
        bf16=compute.dtype is torch.bfloat16,
        fp16=False,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        # So that TRL loads no reference, which with an adapter it would not do anyway; it hashes all weights for this.
        precompute_ref_log_probs=job.method == "full",
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
