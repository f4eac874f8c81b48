"""How hard the loss pulled at each training pair: which labels moved a policy most, to first order.

In a step the gradient of a pair's loss with respect to the weights is

    g_w d log pi(y_w | x) / d theta + g_l d log pi(y_l | x) / d theta

with two numbers g_w and g_l that follow from the pair's log-probabilities, its weight and its label noise alone. The
pull of a visit is their mean size, (abs(g_w) + abs(g_l)) / 2. Under DPO that is
w beta abs(epsilon sigma(z) - (1 - epsilon) sigma(-z)): half of w beta for a sure label at margin zero, next to nothing
for one that the policy has learnt. The pull of a pair is the sum over its visits. It costs no forward: the loss is
differentiated once more, down to the log-probabilities and no further.

What it is not: an influence function (Koh and Liang 2017), which asks what the policy would be without the pair, nor
TracIn (Pruthi et al. 2020), its relative, which multiplies the gradients of a training and a test example and weighs
each visit by its learning rate. The size of d log pi / d theta, the learning rate and the optimiser are left out, and
so is whether pairs pull the same way.

A line a step is kept beside the saved states (``trainer/pulls.jsonl``) and is rewound with them, so that a run that was
killed ends with the bytes of one that was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.engine import ranks
from training.engine.journal import Journal
from training.engine.losses import LossSettings, PairLogps, pair_losses, rewards
from training.engine.preference_data import TokenTriple
from training.jobspec import TrainedPair, write_atomically

TOLD = "training_pairs.jsonl"
KEPT = "trainer/pulls.jsonl"
Visit = tuple[int, float, float]  # the pair's place among the training pairs, pull, margin


@torch.enable_grad()
def pulls(logps: PairLogps, weight: Tensor, label_noise: Tensor, settings: LossSettings) -> Tensor:
    """(abs(g_w) + abs(g_l)) / 2 of each pair, (pairs,) float64.

    Each token's log-probability is moved alike: g is the derivative along their sum, divided by the tokens that the
    response has, so that it is that of log pi(y | x) where the loss reads nothing but sums.
    """
    with torch.autocast(weight.device.type, enabled=False):
        chosen, rejected = (logps.policy_chosen.detach().double(), logps.policy_rejected.detach().double())
        moved = [torch.zeros(len(weight), dtype=torch.float64, device=weight.device, requires_grad=True) for _ in "wl"]
        shifted = PairLogps(
            chosen + spread(moved[0], chosen, logps.chosen_tokens),
            rejected + spread(moved[1], rejected, logps.rejected_tokens),
            logps.reference_chosen.double(),
            logps.reference_rejected.double(),
            logps.chosen_tokens,
            logps.rejected_tokens,
        )
        losses = pair_losses(shifted, weight.double(), label_noise.double(), settings)
        of_chosen, of_rejected = torch.autograd.grad(losses.sum(), moved)
    return (of_chosen.abs() + of_rejected.abs()) / 2


def spread(moved: Tensor, values: Tensor, tokens: Tensor) -> Tensor:
    """``moved`` shared out over the tokens of each response, (pairs, tokens), and none over what is padded."""
    is_token = torch.arange(values.shape[1], device=values.device) < tokens[:, None]
    return is_token * (moved / tokens.clamp(min=1))[:, None]


class PullRecord(TrainerCallback):
    """What the steps of a run note of their pairs, in the order in which they were computed.

    ``is_whole``: every step so far is on record. One that was begun by an earlier version has no such record.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.visits: list[Visit] = []
        self.is_whole = True

    def begin_step(self) -> None:
        """Forget what was noted of a step that did not come to its end."""
        self.visits = []

    def add(
        self, places: Sequence[int], logps: PairLogps, labels: tuple[Tensor, Tensor], settings: LossSettings
    ) -> None:
        """Note a visit of the pairs at ``places``, a micro-batch."""
        chosen, rejected = rewards(logps, settings)
        margins = (chosen.double() - rejected.double()).tolist()
        self.visits += zip(places, pulls(logps, *labels, settings).tolist(), margins, strict=True)

    def end_step(self) -> None:
        """Bring the visits of all processes together."""
        self.visits = [visit for part in ranks.of_all(self.visits) for visit in part]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if ranks.is_first():
            self.journal.append({"step": state.global_step, "pairs": self.visits})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.sync()

    def sync(self) -> None:
        """Bring the record to the disk: the state that is sealed next goes on from it."""
        if ranks.is_first() and self.journal.path.exists():
            with self.journal.path.open("ab") as file:
                os.fsync(file.fileno())

    @property
    def journal(self) -> Journal:
        return Journal(self.run_dir / KEPT)

    def rewind(self, step: int) -> None:
        """Forget the steps after ``step``, which will be made again."""
        if not ranks.is_first():
            return
        kept = [line for line in self.journal.read() if line["step"] <= step]
        self.is_whole = [line["step"] for line in kept] == list(range(1, step + 1))
        lines = (json.dumps(line, separators=(",", ":")) + "\n" for line in kept)
        write_atomically(self.journal.path, "".join(lines))

    def tell(self, triples: Sequence[TokenTriple]) -> None:
        """Write ``training_pairs.jsonl``, a line for each of ``triples``; no file where the record is not whole."""
        (self.run_dir / TOLD).unlink(missing_ok=True)
        if self.is_whole:
            lines = (pair.to_json() + "\n" for pair in summed(triples, self.journal.read()))
            write_atomically(self.run_dir / TOLD, "".join(lines))


@dataclass
class _Sum:
    visits: int = 0
    pull: float = 0.0
    margin: float = 0.0


def summed(triples: Sequence[TokenTriple], steps: Sequence[dict[str, Any]]) -> Iterator[TrainedPair]:
    """Each training pair with the sum of its pulls and its margin at the last visit, in the order of the snapshot."""
    sums = [_Sum() for _ in triples]
    for step in steps:
        for place, pull, margin in step["pairs"]:
            known = sums[place]
            known.visits, known.pull, known.margin = known.visits + 1, known.pull + pull, margin
    for triple, known in zip(triples, sums, strict=True):
        yield TrainedPair(triple.line, triple.pair_id, known.visits, known.pull, known.margin)
