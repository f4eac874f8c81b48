"""Log-probabilities of response tokens under a model, with the output head computed where it is asked for and nowhere
else.

``add_scoring_head`` gives a causal language model a second way through its ``forward``, so that whatever wraps the
model (an adapter, DistributedDataParallel, FSDP) keeps its hooks. ``Scorer.token_logps`` goes that way.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from training.engine import arrangement as arranging
from training.engine import frozen_layers, packed_attention, process
from training.engine.arrangement import Arrangement, Tokens, Unlabelled
from training.engine.compute import Compute
from training.engine.frozen_layers import FrozenLayers
from training.engine.journal import say
from training.engine.products import linear
from training.footprint import HEAD_ROWS

CHUNK = HEAD_ROWS  # positions whose logits are in memory at once
ROWS_IN_CACHE = 16  # of a CPU: with 49,152 tokens three megabytes of float32

# Names under which configurations keep a factor of the logits. Granite divides by its own.
LOGIT_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")


@dataclass(frozen=True)
class Head:
    """logits = cap * tanh(scale * (h W^T + b) / cap), without the parts that a model does not have."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    cap: float | None

    def product(self, hidden: torch.Tensor) -> torch.Tensor:
        """h W^T, (positions, vocabulary), of ``hidden`` (positions, width)."""
        return linear(hidden, self.weight)

    def logits(self, product: torch.Tensor) -> torch.Tensor:
        """(positions, vocabulary) float32: ``product`` itself, where nothing is to be made of it."""
        logits = product if self.bias is None else product + self.bias
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        """d logits / d (h W^T + b), elementwise; None for one everywhere."""
        if self.cap is None:
            return None if self.scale == 1.0 else torch.full((), self.scale)
        return (1 - (logits / self.cap) ** 2) * self.scale


class TokenLogps(torch.autograd.Function):
    """log softmax(logits(h))[target] for each position, without ever holding all logits.

    The gradient of one position's log-probability with respect to its hidden state is
    J = (onehot(target) - softmax(logits)) W. It does not depend on what the loss makes of it, so it is computed beside
    the value, from the same logits, and the backward pass is one multiplication. Where the head itself is trained, the
    logits of each chunk are computed once more for its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor, head: Any
    ) -> Any:
        values = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            values[part], residue = head_chunk(head, hidden[part], targets[part], residues=slopes is not None)
            if slopes is not None:
                slopes[part] = linear(residue, weight.t())
        ctx.head = head
        ctx.save_for_backward(hidden if any(ctx.needs_input_grad[1:3]) else None, slopes, targets)
        return values

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        hidden, slopes, targets = ctx.saved_tensors
        for_hidden = slopes * grad[:, None].to(slopes.dtype) if slopes is not None else None
        for_weight = for_bias = None
        if hidden is not None:
            for_weight, for_bias = head_gradient(ctx.head, hidden, targets, grad, with_bias=ctx.needs_input_grad[2])
        return for_hidden, for_weight, for_bias, None, None


def head_chunk(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, *, residues: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (positions,), and d log-probability / d (h W^T + b), (positions, vocabulary), if asked for.

    The residues take the place of the logits. On a CPU a few rows go through all steps while they are in its caches.
    """
    product = head.product(hidden)
    values = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    at_once = len(targets) if hidden.is_cuda else ROWS_IN_CACHE
    for start in range(0, len(targets), at_once):
        part = slice(start, start + at_once)
        values[part] = log_softmax_of(head, product[part], targets[part], residues=residues)
    return values, product


def log_softmax_of(head: Head, product: torch.Tensor, targets: torch.Tensor, *, residues: bool) -> torch.Tensor:
    """Log-probabilities (positions,) float32. ``product`` is overwritten, with the residues if they are asked for."""
    logits = head.logits(product)
    slope = head.slope(logits) if residues else None
    picked = logits.gather(1, targets[:, None])
    largest = logits.amax(dim=1, keepdim=True)
    weights = logits.sub_(largest).exp_()
    total = weights.sum(dim=1, keepdim=True)
    if residues:
        residue = weights.div_(-total)
        residue[torch.arange(len(targets), device=targets.device), targets] += 1  # unlike scattering, deterministic
        if slope is not None:
            residue.mul_(slope.to(residue.device))
        if residue is not product:
            product.copy_(residue)
    return (picked - largest - total.log()).squeeze(1)


def head_gradient(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, grad: torch.Tensor, *, with_bias: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    for_weight = torch.zeros_like(head.weight, dtype=torch.float32)
    for_bias = torch.zeros(len(head.weight), device=hidden.device) if with_bias else None
    for start in range(0, len(targets), CHUNK):
        part = slice(start, start + CHUNK)
        _, residue = head_chunk(head, hidden[part], targets[part], residues=True)
        residue = residue.float() * grad[part, None]
        for_weight.addmm_(residue.t(), hidden[part].float())
        if for_bias is not None:
            for_bias += residue.sum(dim=0)
    return for_weight.to(head.weight.dtype), for_bias


def add_scoring_head(model: PreTrainedModel) -> None:
    """Let ``model(..., sources=, targets=)`` return ``TokenLogps`` of those positions; without them it is as before.

    To be called before an adapter is put around the model.
    """
    original = model.forward
    config = model.config.get_text_config()
    scale, cap = logit_scale(config), getattr(config, "final_logit_softcapping", None)

    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, sources: Any = None, targets: Any = None, **kwargs: Any) -> Any:
        if sources is None:
            return original(*args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}  # what an adapter passes on empty
        hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state.flatten(0, 1)
        output = self.get_output_embeddings()
        with torch.autocast(hidden.device.type, enabled=False):
            # Without autocast the product is that of the weights' own precision; what follows is float32.
            head = Head(output.weight, getattr(output, "bias", None), scale, cap)
            scored = hidden.index_select(0, sources).to(output.weight.dtype)
            return TokenLogps.apply(scored, head.weight, head.bias, targets, head)

    model.forward = types.MethodType(forward, model)


def logit_scale(config: Any) -> float:
    if getattr(config, "logits_scaling", None) is not None:
        return 1 / float(config.logits_scaling)
    found = [getattr(config, name, None) for name in LOGIT_SCALES]
    return float(next((value for value in found if value is not None), 1.0))


@dataclass(frozen=True)
class Scorer:
    """How the pairs of a run are laid out and scored: packed where the model can take it, from ``lower`` where the
    lower layers are frozen and what comes out of them is known.
    """

    packed: bool
    lower: FrozenLayers | None = None

    def arrange(self, pairs: Sequence[Tokens], device: torch.device | str = "cpu") -> Arrangement:
        batch = self.arrange_tokens(pairs, device)
        if self.lower is None:
            return batch
        return dataclasses.replace(batch, states=frozen_layers.join(self.lower.states(pairs, self), batch))

    def arrange_tokens(self, pairs: Sequence[Tokens], device: torch.device | str = "cpu") -> Arrangement:
        return arranging.pack(pairs, device) if self.packed else arranging.rows(pairs, device)

    def positions(self, pairs: Sequence[Tokens]) -> int:
        """Positions that a batch of ``pairs`` has, padding and all."""
        if self.packed:
            return sum(map(arranging.packed_tokens, pairs))
        return len(pairs) * max(map(arranging.padded_tokens, pairs))

    def over(self, model: PreTrainedModel | PeftModel) -> AbstractContextManager[None]:
        """A context in which ``token_logps`` may be called on ``model``, and nothing else may."""
        return packed_attention.used_by(model) if self.packed else nullcontext()

    def token_logps(self, model: Any, batch: Arrangement) -> torch.Tensor:
        """log pi of each scored token in nats, (scored tokens,) float32, in the order of ``batch.targets``."""
        if self.lower is None:
            return self.forward(model, batch)
        self.lower.given = batch.states
        try:
            return self.forward(model, batch)
        finally:
            self.lower.given = None

    def forward(self, model: Any, batch: Arrangement) -> torch.Tensor:
        if self.packed:
            packed_attention.attention.lay_out(batch)
        values: torch.Tensor = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            sources=batch.sources,
            targets=batch.targets,
        )
        return values


# In nats a token. Two ways of computing the same numbers differ by the rounding of their sums.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@torch.no_grad()
def choose_scorer(model: PreTrainedModel | PeftModel, compute: Compute) -> Scorer:
    """Packed where it gives the numbers of plain rows on a small batch, tried out on this very model; else rows.

    The sample is short, so it does not reach over a sliding window; what a window hides follows from positions alone.
    """
    if not packed_attention.can_serve(model):
        return Scorer(packed=False)
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    lengths = ((7, 5, 3), (4, 2, 6))
    pairs = [
        Unlabelled(*(torch.randint(vocabulary, (length,), generator=generator).tolist() for length in parts))
        for parts in lengths
    ]
    found = []
    for scorer in (Scorer(packed=True), Scorer(packed=False)):
        try:
            with scorer.over(model), compute.autocast():
                found.append(scorer.token_logps(model, scorer.arrange(pairs, model.device)))
        except Exception as error:  # whatever a compiler of kernels raises where it has no C compiler, for one
            if not (scorer.packed and compute.on_cuda) or process.is_out_of_memory(error):
                raise
            say(f"Attention over a shared prompt does not run on this GPU, so pairs are plain rows: {error}"[:500])
            return Scorer(packed=False)
    agree = bool((found[0] - found[1]).abs().max() <= AGREEMENT[compute.dtype])
    return Scorer(packed=agree)
