"""Attention over a packed row: each pair by itself, its prompt shared, its two responses hidden from each other.

A position attends to the same keys as in a row of its own, so the numbers are those of the plain computation up to the
order of sums. On a CPU each pair costs three calls of the fused kernel: the prompt with itself, and each response with
the prompt and itself; ``bfloat16_attention`` does that for bfloat16 where the CPU multiplies it by itself. On a GPU one
call of FlexAttention (Dong et al. 2024) with a block mask serves the whole row.

The attention function of a model is replaced through transformers' public registry. Where the pairs lie does not reach
it through the arguments of every architecture, so the spans are kept here, from one forward to the end of its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from training.engine import bfloat16_attention
from training.engine.arrangement import Arrangement, Span
from training.engine.causal_mask import Masks, causal_mask
from training.engine.compute import has_bfloat16

NAME = "tiebreak_packed"


class PackedAttention:
    """The spans of the row that is being computed, and attention over them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.masks: Masks = {}
        self.blocks: dict[int | None, BlockMask] = {}

    def lay_out(self, arrangement: Arrangement) -> None:
        self.spans = arrangement.spans
        self.masks.clear()
        self.blocks.clear()

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """``query`` (1, heads, columns, width), ``key`` and ``value`` with as many heads or a divisor of them.

        Returns (1, columns, heads, width).
        """
        if kwargs.get("softcap") is not None or dropout:
            raise ValueError("Packed attention has neither soft-capping nor dropout.")
        if query.is_cuda:
            output = self.in_one_call(query, key, value, scaling, sliding_window)
        elif {query.dtype, key.dtype, value.dtype} == {torch.bfloat16} and has_bfloat16():
            return self.in_bfloat16(query, key, value, scaling, sliding_window), None
        else:
            # In float32 at least: the kernel's backward pass takes half as long again in bfloat16.
            precise = torch.promote_types(query.dtype, torch.float32)
            with torch.autocast("cpu", enabled=False):
                inputs = (tensor.to(precise) for tensor in (query, key, value))
                output = self.pair_by_pair(*inputs, scaling, sliding_window)
        return output.to(query.dtype).transpose(1, 2).contiguous(), None

    def in_bfloat16(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        row = bfloat16_attention.Row(self.spans, scaling, window, self.masks)
        inputs = (tensor.squeeze(0) for tensor in (query, key, value))
        output: torch.Tensor = bfloat16_attention.BFloat16Attention.apply(*inputs, row)
        return output[None]

    def pair_by_pair(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        outputs = []
        # Split at once: the gradient of a split is one concatenation, and that of a slice a row of zeros to be added.
        lengths = [length for span in self.spans for length in span.lengths]
        parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
        for (queries, shared_key, shared_value), *responses in zip(parts, parts, parts, strict=True):
            outputs.append(self.attend(queries, shared_key, shared_value, scaling, window))
            for own_queries, own_key, own_value in responses:
                keys = torch.cat([shared_key, own_key], dim=2)
                values = torch.cat([shared_value, own_value], dim=2)
                outputs.append(self.attend(own_queries, keys, values, scaling, window))
        return torch.cat(outputs, dim=2)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        """Causal attention of the last ``query`` positions of a sequence to all of it."""
        queries, keys = query.shape[2], key.shape[2]
        if queries == keys and (window is None or window >= keys):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        mask = causal_mask(self.masks, queries, keys, window, query)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)

    def in_one_call(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        if window not in self.blocks:
            self.blocks[window] = block_mask(self.spans, query.device, window)
        output = compiled_flex_attention()(
            query, key, value, block_mask=self.blocks[window], scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        assert isinstance(output, torch.Tensor)
        return output


def block_mask(spans: list[Span], device: torch.device, window: int | None) -> BlockMask:
    """Which key each position sees: of its own pair, not later in its own sequence, not in the other response."""
    columns = spans[-1].end
    pair, part, position = (torch.empty(columns, dtype=torch.int64) for _ in range(3))
    for number, span in enumerate(spans):
        prompt = span.chosen - span.prompt
        pair[span.prompt : span.end] = number
        part[span.prompt : span.chosen], part[span.chosen : span.rejected], part[span.rejected : span.end] = 0, 1, 2
        position[span.prompt : span.chosen] = torch.arange(prompt)
        for start, end in ((span.chosen, span.rejected), (span.rejected, span.end)):
            position[start:end] = torch.arange(prompt, prompt + end - start)
    pair, part, position = pair.to(device), part.to(device), position.to(device)
    # A tensor, because the compiler takes no number of Python's out of the surroundings.
    reach = torch.tensor(0 if window is None else window, device=device)

    def seen(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        same = (pair[query] == pair[key]) & ((part[key] == 0) | (part[key] == part[query]))
        distance = position[query] - position[key]
        near = same & (distance >= 0)
        return near if window is None else near & (distance < reach)

    return create_block_mask(seen, B=None, H=None, Q_LEN=columns, KV_LEN=columns, device=str(device))


@cache
def compiled_flex_attention() -> Callable[..., Any]:
    """The plain form would hold all scores in memory. Lengths stay dynamic.

    Made when it is first called: the compiler alone takes more than a second to import.
    """
    return torch.compile(flex_attention, dynamic=True)


attention = PackedAttention()
AttentionInterface.register(NAME, attention)
# No mask is built: which keys a position sees follows from the spans.
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@contextmanager
def used_by(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model`` attend over packed rows inside the block, and as before after it."""
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def can_serve(model: PreTrainedModel) -> bool:
    """Whether the model's attention can be replaced at all; ``scoring`` tries out whether the numbers agree."""
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return bool(getattr(model, "_supports_attention_backend", False)) and softcap is None
