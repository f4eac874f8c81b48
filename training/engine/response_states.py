"""Mean last hidden states of responses in one model, kept by content: what the judge sees of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from training.engine import packed_attention, reference_logps
from training.engine.arrangement import Arrangement, Tokens, Unlabelled
from training.engine.cache import Cache, key_of
from training.engine.compute import VERSIONS, Compute
from training.engine.on_policy import Opened
from training.engine.scoring import Scorer
from training.jobspec import ModelRef

LAYOUT = "states 1"  # to be counted up when the same inputs give other values
CACHE_SHARE = 0.1  # of the bound of the cache directory; a pair takes two states of the model's width
SAVED_TOGETHER = 32  # pairs


def open_cache(cache_dir: Path, limit_mb: int) -> Cache:
    return Cache(cache_dir / "response-states.sqlite3", int(limit_mb * 2**20 * CACHE_SHARE))


class StateReader:
    """States of pairs in the policy ``policy``, each pair read once."""

    def __init__(self, policy: ModelRef, opened: Opened, scorer: Scorer, compute: Compute, cache: Cache) -> None:
        self.opened = opened
        self.scorer = scorer
        self.compute = compute
        self.cache = cache
        self.name = (LAYOUT, *VERSIONS, reference_logps.content_hash(policy), compute.name)

    def differences(self, pairs: Sequence[Tokens], tick: Callable[[int, int], None] | None = None) -> np.ndarray:
        """The state of each pair's chosen response less that of its rejected one, (pairs, width) float32."""
        found = []
        fresh: list[tuple[bytes, bytes]] = []
        for done, tokens in enumerate(pairs, start=1):
            pair = Unlabelled.of(tokens)
            states = self.kept(pair)
            if states is None:
                states = self.read(pair)
                fresh.append((self.key(pair), states.astype("<f4").tobytes()))
            if len(fresh) >= SAVED_TOGETHER or done == len(pairs):
                self.cache.put(fresh)
                fresh = []
            first, second = states
            found.append(second - first if pair.swapped else first - second)
            if tick:
                tick(done, len(pairs))
        return np.array(found, dtype=np.float32)

    def key(self, pair: Unlabelled) -> bytes:
        return key_of(*self.name, pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)

    def kept(self, pair: Unlabelled) -> np.ndarray | None:
        data = self.cache.get(self.key(pair))
        return None if data is None else np.frombuffer(data, dtype="<f4").reshape(2, -1)

    @torch.no_grad()
    def read(self, pair: Unlabelled) -> np.ndarray:
        """(2, width) float32."""
        batch = self.scorer.arrange([pair], self.compute.device)
        with self.opened() as model, self.scorer.over(model), self.compute.autocast():
            if self.scorer.packed:
                packed_attention.attention.lay_out(batch)
            output = decoder_of(model)(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
            )
        states = output.last_hidden_state.flatten(0, 1).float()
        means = [states[start : start + length].mean(dim=0) for start, length in places(batch, pair)]
        return torch.stack(means).cpu().numpy()


def decoder_of(model: PreTrainedModel | PeftModel) -> Any:
    """The model below its output head, with whatever adapter is switched on in its layers."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return plain.base_model


def places(batch: Arrangement, pair: Unlabelled) -> list[tuple[int, int]]:
    """Where each response begins in the flattened rows, and how long it is."""
    prompt, width = len(pair.prompt_ids), batch.input_ids.shape[1]
    starts = [batch.spans[0].chosen, batch.spans[0].rejected] if batch.spans else [prompt, width + prompt]
    return list(zip(starts, batch.lengths, strict=True))
