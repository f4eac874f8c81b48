"""Keys and values of the responses in flight, in buffers that are written in place.

A buffer has a place for each response and a column for each token. All responses write their next token to one and the
same column, so a response that began later, or with a shorter prompt, starts at a later column: what left padding is to
a batch that is made at once. Attention in a window of columns therefore sees the same distances as in a text alone,
which keeps the masks of sliding-window layers right. No token copies what is there already, a new response writes its
prompt and nothing else, and columns that no response uses any more are left out of the views that attention reads.
"""

from __future__ import annotations

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

LEAST_SLACK = 64  # columns to grow into before the buffers are rearranged


class PlaceLayer(CacheLayerMixin):
    """Keys and values of one layer, (places, heads, columns, head size). The cache says which of them are in use."""

    is_sliding = False

    def __init__(self, cache: ResponseCache, places: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.cache = cache
        self.keys = keys.new_zeros(places, keys.shape[1], 0, keys.shape[3])
        self.values = values.new_zeros(places, values.shape[1], 0, values.shape[3])
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do: the buffers are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token of every response, (responses, heads, 1, head size), and return views of all columns."""
        rows, first, end = len(self.cache.starts), self.cache.first, self.cache.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        return self.keys[:rows, :, first : end + 1], self.values[:rows, :, first : end + 1]

    def get_seq_length(self) -> int:
        return self.cache.end - self.cache.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def write(self, place: int, first: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put (heads, tokens, head size) into ``place`` from column ``first`` on."""
        self.keys[place, :, first : first + keys.shape[1]] = keys
        self.values[place, :, first : first + values.shape[1]] = values

    def move(self, source: int, target: int, first: int, end: int) -> None:
        self.keys[target, :, first:end] = self.keys[source, :, first:end]
        self.values[target, :, first:end] = self.values[source, :, first:end]

    def rearrange(self, columns: int, new_end: int) -> None:
        """Have ``columns`` columns, with the window in use ending at ``new_end``."""
        self.keys = self._rearranged(self.keys, columns, new_end)
        self.values = self._rearranged(self.values, columns, new_end)

    def _rearranged(self, old: torch.Tensor, columns: int, new_end: int) -> torch.Tensor:
        rows, first, end = len(self.cache.starts), self.cache.first, self.cache.end
        window = old[:rows, :, first:end]
        if old.shape[2] == columns:
            new, window = old, window.clone()
        else:
            # Zeros, because a weight of zero times whatever memory held before may be NaN.
            new = old.new_zeros(old.shape[0], old.shape[1], columns, old.shape[3])
        new[:rows, :, new_end - (end - first) : new_end] = window
        return new


class ResponseCache(Cache):
    """A cache for up to ``places`` responses in flight, shaped like the prompt cache ``like``.

    Responses take the places 0 to ``len(starts)`` - 1. ``starts`` holds the first column of each, ``first`` the least
    of them, and ``end`` the column that the next token of every response goes to.
    """

    def __init__(self, places: int, like: DynamicCache) -> None:
        super().__init__(layers=[])
        self.layers = [PlaceLayer(self, places, layer.keys, layer.values) for layer in like.layers]
        self.starts: list[int] = []
        self.first = self.end = self.columns = 0

    def make_room(self, prompt_tokens: int = 0) -> None:
        """Have ``prompt_tokens`` columns before ``end`` and at least one after it.

        The window in use moves within the buffers where they are large enough, which costs one copy every so many
        tokens. New ones are made where they are too small, or after long prompts much too large.
        """
        if prompt_tokens <= self.end < self.columns:
            return
        new_end = max(prompt_tokens, self.end - self.first)
        wanted = new_end + max(LEAST_SLACK, new_end // 4)
        self.columns = self.columns if wanted <= self.columns <= 2 * wanted else wanted
        for layer in self.layers:
            layer.rearrange(self.columns, new_end)
        self.starts = [start + new_end - self.end for start in self.starts]
        self.end = new_end
        self._find_first()

    def add(self, prompt: DynamicCache, index: int, tokens: int) -> None:
        """Give the next place to a response to row ``index`` of ``prompt``, whose last ``tokens`` columns count."""
        place, first = len(self.starts), self.end - tokens
        for layer, read in zip(self.layers, prompt.layers, strict=True):
            layer.write(place, first, read.keys[index, :, -tokens:], read.values[index, :, -tokens:])
        self.starts.append(first)
        self._find_first()

    def remove(self, places: set[int]) -> list[int]:
        """Free ``places``; responses from the last places move into the holes.

        Returns the old place of each response that is left, in the order of the new ones.
        """
        left = len(self.starts) - len(places)
        order = list(range(left))
        movers = (place for place in range(left, len(self.starts)) if place not in places)
        for hole, mover in zip(sorted(place for place in places if place < left), movers, strict=True):
            order[hole] = mover
            for layer in self.layers:
                layer.move(mover, hole, self.starts[mover], self.end)
        self.starts = [self.starts[place] for place in order]
        self._find_first()
        return order

    def step(self) -> None:
        """The column ``end`` has been written in every layer."""
        self.end += 1

    def positions(self, device: torch.device) -> torch.Tensor:
        """Position of the next token of each response in its own text, (responses, 1), int64."""
        return torch.tensor([[self.end - start] for start in self.starts], device=device)

    def mask(self, device: torch.device) -> torch.Tensor:
        """Which columns up to and with ``end`` belong to each response, (responses, columns), int64."""
        columns = torch.arange(self.first, self.end + 1, device=device)
        return (columns >= torch.tensor(self.starts, device=device)[:, None]).long()

    def _find_first(self) -> None:
        self.first = min(self.starts, default=self.end)
