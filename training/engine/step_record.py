"""What is told of an optimiser step: means over its pairs, and a line of ``metrics.jsonl``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.engine import process, ranks, resume
from training.engine.guards import TrainingGuard
from training.engine.journal import MetricsJournal
from training.engine.losses import LossSettings, PairLogps, rewards
from training.jobspec import StepMetrics

# A margin below it is that of a policy which has not moved, and counts as a tie. In float32 two ways of computing the
# same 100 tokens, such as the sampler's and training's, give margins up to 6e-5 at beta 0.1 (SmolLM2-135M).
ROUNDING = 1e-4


@dataclass
class StepTotals:
    """Sums over the pairs of a step on this process; means are taken over all processes."""

    pairs: float = 0.0
    decided: float = 0.0  # pairs that are no tie
    won: float = 0.0
    margin: float = 0.0
    logp_chosen: float = 0.0
    logp_rejected: float = 0.0
    chosen_tokens: float = 0.0
    chosen_drift: float = 0.0  # log pi / pi_ref of the chosen responses, in nats
    stops: float = 0.0  # whether this process was asked to stop

    def add(self, logps: PairLogps, loss: LossSettings, ties: Sequence[bool]) -> None:
        """Count the pairs of a micro-batch in. ``ties``: which of them have no winner."""
        chosen, rejected = (side.double() for side in rewards(logps, loss))
        drift = (logps.policy_chosen - logps.reference_chosen).detach().sum()
        decided = ~torch.tensor(ties, dtype=torch.bool, device=chosen.device)
        margin = chosen - rejected
        wins = (margin.sign() * (margin.abs() >= ROUNDING) + 1) / 2
        self.pairs += len(ties)
        self.decided += float(decided.sum())
        self.won += float(wins[decided].sum())
        self.margin += float(margin.sum())
        self.logp_chosen += float(logps.policy_chosen.detach().sum())
        self.logp_rejected += float(logps.policy_rejected.detach().sum())
        self.chosen_tokens += float(logps.chosen_tokens.sum())
        self.chosen_drift += float(drift)

    def tensor(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(list(vars(self).values()), dtype=torch.float64, device=device)


@dataclass
class Means:
    """What a step is logged with."""

    margin: float
    accuracy: float
    logp_chosen: float
    logp_rejected: float
    chosen_shift: float  # log pi / pi_ref of the chosen responses, in nats a token

    @classmethod
    def of(cls, totals: StepTotals) -> Means:
        return cls(
            margin=totals.margin / totals.pairs,
            accuracy=totals.won / totals.decided if totals.decided else 0.5,
            logp_chosen=totals.logp_chosen / totals.pairs,
            logp_rejected=totals.logp_rejected / totals.pairs,
            chosen_shift=totals.chosen_drift / totals.chosen_tokens,
        )


class StepRecorder(TrainerCallback):
    """Writes a line a step, seals saved states, and ends training politely when the process is asked to stop."""

    def __init__(self, metrics: MetricsJournal, guard: TrainingGuard, steps_per_epoch: int = 1) -> None:
        self.metrics = metrics
        self.guard = guard
        self.steps_per_epoch = steps_per_epoch
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.ended: float | None = None
        self.last: StepMetrics | None = None

    def go_on_from(self, steps: Sequence[StepMetrics]) -> None:
        """``steps`` of an earlier attempt that are kept: its time, its figures, and what the guard had seen."""
        self.last = steps[-1] if steps else None
        self.seconds_before = self.last.seconds if self.last else 0.0
        for metrics in steps:
            self.guard.watch(metrics, metrics.chosen_shift)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.monotonic()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ended = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if process.stop.due:
            process.stop.requested = True
            control.should_save = not resume.is_whole(state_dir(args, state))
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs or not state.is_world_process_zero:  # or the summary at the end
            return
        metrics = self.step_metrics(logs, state)
        self.guard.check_step(metrics.loss, metrics.grad_norm, metrics.step)
        self.last = metrics
        self.metrics.step(metrics)
        self.guard.watch(metrics, metrics.chosen_shift)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ranks.wait()  # each has written a file of its own
        if state.is_world_process_zero:
            resume.seal(state_dir(args, state))

    def step_metrics(self, logs: dict[str, float], state: TrainerState) -> StepMetrics:
        return StepMetrics(
            step=state.global_step,
            steps=state.max_steps,
            seconds=round(self.seconds, 3),
            loss=logs["loss"],
            reward_margin=logs["margin"],
            reward_accuracy=logs["accuracy"],
            logp_chosen=logs["logp_chosen"],
            logp_rejected=logs["logp_rejected"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            epoch=round(state.global_step / self.steps_per_epoch, 4),
            chosen_shift=logs["chosen_shift"],
        )

    @property
    def seconds(self) -> float:
        """Spent on steps, and on saving them, over all attempts."""
        return self.seconds_before + (self.ended or time.monotonic()) - self.started


def state_dir(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{resume.PREFIX}{state.global_step}"
