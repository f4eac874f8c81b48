"""The sampling loop: many prompts at once, each response with a random stream of its own.

A response depends on its prompt, its seed and the weights. It does not depend on the responses written beside it,
except for the rounding of sums, because no random number is shared and padding is masked out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from training.jobspec import FinishReason

LIKELIEST = 2048  # as many candidates are sorted first; all are, where these hold less than top_p


@dataclass(frozen=True)
class Decoding:
    temperature: float
    top_p: float  # nucleus sampling, Holtzman et al. 2020, section 3.1
    stop_ids: frozenset[int]
    pad_id: int


@dataclass(frozen=True)
class Request:
    """Write one response for each of ``seeds``, each at most ``max_new_tokens`` long."""

    prompt_ids: list[int]
    seeds: list[int]
    max_new_tokens: int


@dataclass
class Row:
    """One response being written."""

    request: int
    seed: int
    max_new_tokens: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = ""

    def __post_init__(self) -> None:
        # On the CPU also for a model on a GPU, so that both draw the same numbers.
        self.generator = torch.Generator().manual_seed(self.seed)

    def add(self, token: int, stop_ids: frozenset[int]) -> None:
        self.token_ids.append(token)
        if token in stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = "length"


@torch.inference_mode()
def write_responses(
    model: PreTrainedModel, requests: list[Request], decoding: Decoding
) -> Iterator[tuple[int, list[Row]]]:
    """Yield (number of the request, its rows in the order of its seeds) as soon as all rows of a request have ended.

    The prompt is read once for all responses to it. Rows that have ended leave the batch.
    """
    answers = [[Row(number, seed, item.max_new_tokens) for seed in item.seeds] for number, item in enumerate(requests)]
    rows = [row for answer in answers for row in answer]
    input_ids, mask = left_padded([request.prompt_ids for request in requests], decoding.pad_id, model.device)
    cache = DynamicCache(config=model.config)
    logits = forward(model, input_ids, mask, cache)
    owners = torch.tensor([row.request for row in rows], device=model.device)
    logits, mask = logits[owners], mask[owners]
    cache.batch_select_indices(owners)

    while rows:
        uniforms = torch.cat([torch.rand(1, generator=row.generator, dtype=torch.float64) for row in rows])
        tokens = choose(logits, uniforms, decoding)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.add(token, decoding.stop_ids)
        ended = sorted({row.request for row in rows if row.finish_reason})
        yield from ((number, answers[number]) for number in ended if all(row.finish_reason for row in answers[number]))
        kept = [place for place, row in enumerate(rows) if not row.finish_reason]
        if not kept:
            return
        if len(kept) < len(rows):
            index = torch.tensor(kept, device=model.device)
            cache.batch_select_indices(index)
            mask, tokens, rows = mask[index], tokens[index], [rows[place] for place in kept]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = forward(model, tokens[:, None], mask, cache)


def left_padded(
    sequences: list[list[int]], pad_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both (sequences, longest), int64."""
    longest = max(len(ids) for ids in sequences)
    padded = [[pad_id] * (longest - len(ids)) + ids for ids in sequences]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in sequences]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def forward(model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Logits of the last position, (rows, vocabulary), float32. ``cache`` grows by the columns of ``input_ids``."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


def choose(logits: torch.Tensor, uniforms: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Draw a token a row by inverting the cumulative distribution of the nucleus at ``uniforms``.

    ``logits`` (rows, vocabulary) float32, ``uniforms`` (rows,) float64 in [0, 1). Returns (rows,) int64.
    """
    probabilities = torch.softmax(logits / decoding.temperature, dim=-1)
    top, ids = probabilities.topk(min(LIKELIEST, probabilities.shape[-1]), dim=-1)
    # Rounding leaves the sum of everything a little off one: with top_p 1 everything is in the nucleus anyway.
    if bool((top.double().sum(dim=-1) < decoding.top_p).any()):
        top, ids = probabilities.sort(dim=-1, descending=True)
    top = top.double()
    before = top.cumsum(dim=-1) - top
    nucleus = top.masked_fill(before >= decoding.top_p, 0.0)
    cumulative = nucleus.cumsum(dim=-1)
    targets = uniforms.to(cumulative.device)[:, None] * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, targets, right=True)
    last = (nucleus > 0).sum(dim=-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(picked, last)).squeeze(1)
