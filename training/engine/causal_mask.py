"""Which keys the last positions of a sequence do not see, made once for all layers of a model."""

from __future__ import annotations

import torch

Masks = dict[tuple[int, int, int, torch.dtype], torch.Tensor]


def causal_mask(made: Masks, queries: int, keys: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """(queries, keys): 0 where the last ``queries`` of ``keys`` positions attend, -inf elsewhere. Kept in ``made``."""
    window = keys if window is None else min(window, keys)
    if (mask := made.get((queries, keys, window, like.dtype))) is None:
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
        hidden = (distance < 0) | (distance >= window)
        mask = torch.zeros(queries, keys, dtype=like.dtype).masked_fill_(hidden, float("-inf")).to(like.device)
        made[queries, keys, window, like.dtype] = mask
    return mask
