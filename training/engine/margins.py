"""How sure a policy is which of its two responses is better: the margin between their implicit rewards.

beta [log pi(a | x) / pi_ref(a | x) - log pi(b | x) / pi_ref(b | x)] (Rafailov et al. 2023, eq. 5), in nats times beta.
The reference is what lies below the policy's adapter. Where the adapter was trained on from another one, this is the
sum of what all of its runs have learnt. Full weights are their own reference here: every margin would be zero, so they
have none.

The sampler knows log pi of what it has written, so a pair costs one forward more, of the reference, with the prompt
read once for both responses. In bfloat16, where the sampler's values are not kept, it costs two. What the reference
says is kept with the pair: a run against this reference, which reads each pair once, need not read this one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.nn import functional as F
from transformers import PreTrainedModel

from training.engine.arrangement import Unlabelled
from training.engine.compute import Compute
from training.engine.decoding import rounded
from training.engine.scoring import Scorer, choose_scorer
from training.jobspec import SampledResponse

Model = PreTrainedModel | PeftModel
AsReference = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Update:
    """s B A, which an adapter adds to the weights of one linear layer."""

    layer: torch.nn.Module
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scale: float

    def taken_from(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
        """y - s (x A^T) B^T: the layer's output without the update that is folded into its weights."""
        low = F.linear(inputs[0], self.lora_a)
        return torch.sub(output, F.linear(low, self.lora_b), alpha=self.scale)


def updates_of(model: PeftModel) -> list[Update] | None:
    """Those of ``model``'s adapter; ``None`` where it is more than plain LoRA on layers below the output head."""
    modules = list(model.modules())
    tuned = [module for module in modules if isinstance(module, BaseTunerLayer)]
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in modules) or not all(map(is_plain, tuned)):
        return None
    if model.get_output_embeddings() in tuned:  # its weights are read without a call of its ``forward``
        return None
    return [
        Update(layer.base_layer, *(part["default"].weight for part in (layer.lora_A, layer.lora_B)), scale)
        for layer in tuned
        for scale in [float(layer.scaling["default"])]
    ]


def is_plain(layer: BaseTunerLayer) -> bool:
    """Whether the layer adds s (x A^T) B^T to what its weights give, and nothing else."""
    if not isinstance(layer, LoraLinear) or list(layer.lora_A) != ["default"]:
        return False
    return layer.lora_B["default"].bias is None and "default" not in layer.lora_variant


@contextmanager
def taken_out(updates: Sequence[Update]) -> Iterator[None]:
    """Let the layers compute as if nothing had been folded into them, to rounding. No weight is written."""
    with ExitStack() as hooks:
        for update in updates:
            hooks.callback(update.layer.register_forward_hook(update.taken_from).remove)
        yield


@dataclass(frozen=True)
class Scored:
    """``margin``: the implicit reward of the first response less that of the second.

    ``reference_logps``: the reference's log-probability of each token of both, in nats; empty in bfloat16.
    """

    margin: float
    reference_logps: list[list[float]]


class Margins:
    """Margins of one policy's pairs. ``model`` is the policy, and inside ``as_reference`` it is the reference."""

    def __init__(self, model: Model, compute: Compute, beta: float, as_reference: AsReference) -> None:
        self.model = model
        self.compute = compute
        self.beta = beta
        self.as_reference = as_reference
        # On a GPU the kernel for packed rows takes longer to compile than a batch takes to score.
        self.scorer = Scorer(packed=False) if compute.on_cuda else choose_scorer(model, compute)

    @classmethod
    def beside(cls, model: PeftModel, compute: Compute, beta: float) -> Margins | None:
        """Of an adapter that lies beside the weights; ``None`` where it cannot be switched off as a whole."""
        return cls(model, compute, beta, model.disable_adapter) if updates_of(model) is not None else None

    @classmethod
    def folded(cls, model: PreTrainedModel, updates: Sequence[Update], compute: Compute, beta: float) -> Margins:
        """Of an adapter whose ``updates`` have been folded into the weights."""
        return cls(model, compute, beta, partial(taken_out, updates))

    def of(self, prompt_ids: list[int], responses: Sequence[SampledResponse]) -> Scored:
        a, b = responses
        pair = Unlabelled(prompt_ids, a.token_ids, b.token_ids)
        of_policy = sums(self.known(responses) or self.logps(pair, nullcontext))
        reference = self.logps(pair, self.as_reference)
        first, second = (ours - theirs for ours, theirs in zip(of_policy, sums(reference), strict=True))
        is_exact = self.compute.dtype is torch.float32
        return Scored(self.beta * (first - second), list(map(rounded, reference)) if is_exact else [[], []])

    def known(self, responses: Sequence[SampledResponse]) -> list[torch.Tensor]:
        """log pi of each token as the sampler found it; empty where it did not keep it."""
        if not all(response.logps for response in responses):
            return []
        return [torch.tensor(response.logps) for response in responses]

    @torch.no_grad()
    def logps(self, pair: Unlabelled, as_whom: AsReference) -> list[torch.Tensor]:
        """Log-probabilities of each token of both responses, (tokens,) float32 each, in nats."""
        batch = self.scorer.arrange([pair], self.compute.device)
        with as_whom(), self.scorer.over(self.model), self.compute.autocast():
            values = self.scorer.token_logps(self.model, batch)
        return list(values.float().cpu().split(batch.lengths))


def sums(logps: Sequence[torch.Tensor]) -> list[float]:
    return [float(values.double().sum()) for values in logps]
