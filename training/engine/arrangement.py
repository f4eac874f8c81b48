"""Pairs as one batch of tokens: where each prompt and each response lies, and which positions predict which tokens.

Two layouts carry the same mathematics.

*Packed*: all pairs of a micro-batch lie in one row, each as prompt, chosen, rejected, without padding::

    x1 x1 x1 w1 w1 l1 l1 l1 | x2 x2 w2 w2 w2 l2 l2 | ...

The prompt is computed once for both responses. Attention keeps the pairs apart and hides the chosen response from the
rejected one, and both start at the position after the prompt (``packed_attention``).

*Rows*: two padded rows a pair, for models whose attention cannot be replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch


class Tokens(Protocol):
    """What is arranged: token ids of a prompt and of two responses to it."""

    @property
    def prompt_ids(self) -> list[int]: ...
    @property
    def chosen_ids(self) -> list[int]: ...
    @property
    def rejected_ids(self) -> list[int]: ...


@dataclass(frozen=True)
class Unlabelled:
    """A pair whose order its label does not decide, so that what is computed of it does not depend on the label.

    ``swapped`` where the chosen response comes second.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    swapped: bool = False

    @classmethod
    def of(cls, pair: Tokens) -> Unlabelled:
        swapped = pair.rejected_ids < pair.chosen_ids
        both = (pair.rejected_ids, pair.chosen_ids) if swapped else (pair.chosen_ids, pair.rejected_ids)
        return cls(pair.prompt_ids, *both, swapped)


@dataclass(frozen=True)
class Span:
    """Columns of one pair in the packed row: the prompt, then the chosen, then the rejected response, to ``end``."""

    prompt: int
    chosen: int
    rejected: int
    end: int

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of the prompt, the chosen and the rejected response."""
        return self.chosen - self.prompt, self.rejected - self.chosen, self.end - self.rejected


@dataclass(frozen=True)
class Arrangement:
    """A batch as a model reads it.

    ``input_ids`` and ``position_ids`` are (rows, columns) int64, and so is ``attention_mask`` where there is padding.
    ``sources`` (scored tokens,) are the positions in the flattened rows whose hidden state predicts a token, and
    ``targets`` (scored tokens,) those tokens: the chosen response of the first pair, its rejected one, and so on, of
    the lengths ``lengths`` (2 x pairs).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    spans: list[Span]
    sources: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]
    states: torch.Tensor | None = None  # (rows, columns, width): what enters the first trained layer, where it is known

    @property
    def pairs(self) -> int:
        return len(self.lengths) // 2

    def by_pair(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of the scored tokens as chosen and rejected, each (pairs, longest) and zero where padded."""
        parts = values.split(self.lengths)
        return tuple(torch.nn.utils.rnn.pad_sequence(parts[side::2], batch_first=True) for side in (0, 1))  # type: ignore[return-value]

    def lengths_of(self, side: int) -> torch.Tensor:
        return torch.tensor(self.lengths[side::2])


def packed_tokens(pair: Tokens) -> int:
    """Positions that a pair takes in the packed layout."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def padded_tokens(pair: Tokens) -> int:
    """Positions that a pair takes as two rows."""
    return 2 * (len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)))


def scored_tokens(pair: Tokens) -> int:
    return len(pair.chosen_ids) + len(pair.rejected_ids)


def pack(pairs: Sequence[Tokens], device: torch.device | str = "cpu") -> Arrangement:
    """One row of ``sum(packed_tokens)`` columns."""
    ids, positions, sources, targets = [], [], [], []
    starts = [0, *accumulate(packed_tokens(pair) for pair in pairs)]
    spans = [span_of(pair, start) for pair, start in zip(pairs, starts, strict=False)]
    for pair, span in zip(pairs, spans, strict=True):
        prompt = len(pair.prompt_ids)
        ids += pair.prompt_ids + pair.chosen_ids + pair.rejected_ids
        positions += range(prompt)
        for completion, start in ((pair.chosen_ids, span.chosen), (pair.rejected_ids, span.rejected)):
            positions += range(prompt, prompt + len(completion))
            # The last token of the prompt predicts the first of either response.
            sources += [span.chosen - 1, *range(start, start + len(completion) - 1)]
            targets += completion
    return Arrangement(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        attention_mask=None,
        spans=spans,
        sources=torch.tensor(sources, device=device),
        targets=torch.tensor(targets, device=device),
        lengths=lengths_of(pairs),
    )


def span_of(pair: Tokens, start: int) -> Span:
    chosen = start + len(pair.prompt_ids)
    rejected = chosen + len(pair.chosen_ids)
    return Span(start, chosen, rejected, rejected + len(pair.rejected_ids))


def rows(pairs: Sequence[Tokens], device: torch.device | str = "cpu") -> Arrangement:
    """Two rows a pair, padded on the right, where causal attention does not see it."""
    sequences = [(pair.prompt_ids, completion) for pair in pairs for completion in (pair.chosen_ids, pair.rejected_ids)]
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    sources = [
        number * width + len(prompt) - 1 + place
        for number, (prompt, completion) in enumerate(sequences)
        for place in range(len(completion))
    ]
    lengths = torch.tensor([len(prompt) + len(completion) for prompt, completion in sequences], device=device)
    columns = torch.arange(width, device=device).expand(len(sequences), width)
    padded = [prompt + completion + [0] * (width - len(prompt) - len(completion)) for prompt, completion in sequences]
    return Arrangement(
        input_ids=torch.tensor(padded, device=device),
        position_ids=columns,
        attention_mask=(columns < lengths[:, None]).long(),
        spans=[],
        sources=torch.tensor(sources, device=device),
        targets=torch.tensor([token for _, completion in sequences for token in completion], device=device),
        lengths=lengths_of(pairs),
    )


def lengths_of(pairs: Sequence[Tokens]) -> list[int]:
    return [length for pair in pairs for length in (len(pair.chosen_ids), len(pair.rejected_ids))]
