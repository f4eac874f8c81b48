"""Attention over a packed row with products in bfloat16, for CPUs that multiply it by themselves.

torch's fused kernel for CPUs takes as long in bfloat16 as in float32, where such a CPU multiplies twice as fast, and
computes all scores between a response and what it sees, masked or not. Here scores and softmax are float32 and the
other products bfloat16, summed up in float32. The queries of a sequence go in blocks, whose later keys are left out;
query heads that share a key head are rows of one product. The attention weights are kept for the backward pass, up to
a number of keys, and above that made again: two bytes for each head and key of a position, which the plan of memory
has room for, because it counts activations as float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from training.engine.arrangement import Span
from training.engine.causal_mask import Masks, causal_mask

BLOCK = 192  # queries of a block; of 96 to 256 the fastest for responses of some hundred tokens
KEPT_WIDTHS = 16  # keys, in widths of a head: 1,024 for heads of 64


@dataclass(frozen=True)
class Row:
    """A packed row, and how its positions attend."""

    spans: list[Span]
    scaling: float
    window: int | None = None
    masks: Masks = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Of each sequence the columns that all of it sees, and its own."""
        for span in self.spans:
            prompt = slice(span.prompt, span.chosen)
            yield slice(span.prompt, span.prompt), prompt
            yield prompt, slice(span.chosen, span.rejected)
            yield prompt, slice(span.rejected, span.end)

    def mask_(self, scores: torch.Tensor) -> None:
        """Set to -inf what the last queries of a sequence do not see. ``scores``: (kv heads, queries, group, keys)."""
        queries, keys = scores.shape[1], scores.shape[3]
        near = self.window is None or self.window >= keys
        seen = keys - queries if near else 0  # keys that every one of these queries sees
        mask = causal_mask(self.masks, queries, keys - seen, None if near else self.window, scores)
        scores[..., seen:] += mask[:, None]


@dataclass(frozen=True)
class Block:
    """Queries of one sequence, ``first`` to ``last`` in the row, which see the first ``keys`` of its keys."""

    first: int
    last: int
    keys: int

    @property
    def columns(self) -> slice:
        return slice(self.first, self.last)

    def keeps_weights(self, width: int) -> bool:
        """Whether attention weights are kept for the backward pass, for heads of ``width``."""
        return self.keys <= KEPT_WIDTHS * width


def blocks(prompt: slice, own: slice) -> Iterator[Block]:
    for first in range(own.start, own.stop, BLOCK):
        last = min(own.stop, first + BLOCK)
        yield Block(first, last, prompt.stop - prompt.start + last - own.start)


class BFloat16Attention(torch.autograd.Function):
    """softmax(s q k^T) v for a packed row, and its gradients; the products in the precision of ``query``."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row) -> torch.Tensor:
        """``query`` (heads, columns, width), ``key`` and ``value`` (kv heads, columns, width) of a divisor of heads.

        Returns (columns, heads, width of the values).
        """
        ctx.row, ctx.kv_heads, ctx.width = row, len(key), key.shape[2]
        wanted = any(ctx.needs_input_grad)
        output = value.new_empty(query.shape[1], len(query), value.shape[2])
        saved: list[torch.Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for prompt, own in row.parts():
                keys, values = beside(key, prompt, own), beside(value, prompt, own)
                saved += [keys, values] if wanted else []
                for block in blocks(prompt, own):
                    queries = rows_of(query[:, block.columns], len(key))
                    weights = attention_weights(queries, keys[:, : block.keys], row, block)
                    store(output, block, torch.bmm(weights, values[:, : block.keys]))
                    if wanted:
                        saved += [queries, weights] if block.keeps_weights(ctx.width) else [queries]
        ctx.save_for_backward(*saved)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        saved = iter(ctx.saved_tensors)
        columns, heads, value_width = grad.shape
        for_query = grad.new_empty(columns, heads, ctx.width)
        for_key, for_value = (zeros(grad, ctx.kv_heads, columns, width) for width in (ctx.width, value_width))
        grad = grad.transpose(0, 1)
        for prompt, own in ctx.row.parts():
            keys, values = next(saved), next(saved)
            for block in blocks(prompt, own):
                queries, seen = next(saved), keys[:, : block.keys]
                kept = block.keeps_weights(ctx.width)
                weights = next(saved) if kept else attention_weights(queries, seen, ctx.row, block)
                upstream = rows_of(grad[:, block.columns], ctx.kv_heads)
                add(for_value, prompt, own, torch.bmm(weights.transpose(1, 2), upstream))
                for_weights = torch.bmm(upstream, values[:, : block.keys].transpose(1, 2))
                for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
                store(for_query, block, torch.bmm(for_scores, seen))
                add(for_key, prompt, own, torch.bmm(for_scores.transpose(1, 2), queries))
        for_query, for_key = for_query.mul_(ctx.row.scaling), for_key.mul_(ctx.row.scaling)
        return for_query.transpose(0, 1), for_key.to(grad.dtype), for_value.to(grad.dtype), None


def attention_weights(queries: torch.Tensor, keys: torch.Tensor, row: Row, block: Block) -> torch.Tensor:
    """(kv heads, queries x group, keys), of scores in float32 at least, in the precision of ``queries``."""
    precise = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.new_empty(len(queries), queries.shape[1], block.keys, dtype=precise)
    factors = queries.to(precise), keys.to(precise).transpose(1, 2)
    torch.baddbmm(scores, *factors, beta=0, alpha=row.scaling, out=scores)
    row.mask_(scores.unflatten(1, (block.last - block.first, -1)))
    return torch.softmax(scores, -1).to(queries.dtype)


def beside(tensor: torch.Tensor, prompt: slice, own: slice) -> torch.Tensor:
    """What a sequence of (kv heads, columns, width) sees, in one piece, as the products need it."""
    return torch.cat([tensor[:, prompt], tensor[:, own]], dim=1)


def rows_of(tensor: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(heads, positions, width) as (kv heads, positions x group, width)."""
    heads, positions, width = tensor.shape
    grouped = tensor.reshape(kv_heads, heads // kv_heads, positions, width).transpose(1, 2)
    return grouped.reshape(kv_heads, -1, width)


def store(output: torch.Tensor, block: Block, values: torch.Tensor) -> None:
    """Write ``rows_of`` a block into (columns, heads, width)."""
    target = output[block.columns].unflatten(1, (len(values), -1))
    target.copy_(values.unflatten(1, (block.last - block.first, -1)).transpose(0, 1))


def zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """What gradients are summed up in: float32 at least."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def add(total: torch.Tensor, prompt: slice, own: slice, part: torch.Tensor) -> None:
    """Add gradients of the first keys of a sequence to those of the row."""
    shared = prompt.stop - prompt.start
    if shared:
        total[:, prompt] += part[:, :shared]
    total[:, own.start : own.start + part.shape[1] - shared] += part[:, shared:]
