"""Log-probabilities of every response under the frozen reference: computed once, kept by content, checked when used.

The key of a value names all that it follows from: the reference's content hash, the precision, the ids of the prompt
and of both responses, which are computed side by side in an order that the label does not decide. So a run gives the
same bytes whether its values were kept or not, and a pair that is judged the other way round needs no forward. Values
are per token, and of whole responses where it costs little, so that any loss, length normalisation or cut is computed
from them. TRL's own cache is not used: it keys by a fingerprint of the whole dataset, computes all of it anew when one
pair is added, and returns values of another setting when only the settings have changed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.engine import ranks
from training.engine.arrangement import Tokens, Unlabelled
from training.engine.cache import Cache, key_of
from training.engine.compute import VERSIONS, Compute
from training.engine.frozen_layers import FrozenLayers
from training.engine.journal import say
from training.engine.preference_data import TokenTriple
from training.engine.scoring import AGREEMENT, Scorer
from training.jobspec import ModelRef, TrainJob

LAYOUT = "logps 6"  # to be counted up when the same inputs give other values
CHECKED_SHARE = 0.01  # of the values that were not computed now
SAVED_TOGETHER = 32  # pairs; an interrupted run loses no more
CACHE_SHARE = 0.1  # of the bound of the cache directory; a pair takes a kilobyte

Pair = tuple[torch.Tensor, torch.Tensor]  # chosen and rejected, (tokens,) float32 in nats
Tick = Callable[[int, int], None]


@dataclass
class Counts:
    """Where the values of a run came from, in pairs. A forward reads one pair, with its prompt once."""

    forwards: int = 0
    cached: int = 0
    sampled: int = 0
    checked: int = 0
    damaged: int = 0


def content_hash(reference: ModelRef) -> str:
    """What names the reference: its adapter stands on exactly one base, but both are named."""
    return f"{reference.base_hash}+{reference.adapter_hash}" if reference.adapter_dir else reference.base_hash


def policy_hash(reference: ModelRef) -> str:
    """The content hash of the checkpoint that the reference is; empty where it is not known."""
    return (reference.adapter_hash or "") if reference.adapter_dir else reference.base_hash


def form_of(job: TrainJob, compute: Compute) -> str:
    """How the checkpoint's weights are held: in which precision, and where its adapter is."""
    dtype = torch.float32 if job.method == "full" else compute.dtype
    adapter = "none" if not job.reference.adapter_dir else "folded" if job.method == "full" else "beside"
    return f"{dtype}, adapter {adapter}"


@dataclass
class ReferenceLogps:
    """Reference values of a run's pairs. ``compute`` scores pairs with the reference model, one pair a forward."""

    reference: ModelRef
    precision: Compute
    cache: Cache
    compute: Callable[[Tokens], Pair]
    seed: int = 0
    counts: Counts = field(default_factory=Counts)
    form: str = ""  # of the weights: the same checkpoint rounded or folded otherwise gives other values
    lower: FrozenLayers | None = None  # whose kept states the values are computed from

    def of(self, triples: Sequence[TokenTriple], tick: Tick | None = None) -> list[Pair]:
        """Values of ``triples`` in order: the sampler's, those of the cache, and for the rest the reference's own.

        They are looked up and computed for whole responses, and given as far as a triple's own ids go.
        A hundredth of what was not computed now is computed again. Where it differs by more than rounding, all values
        of that source are computed anew.
        """
        cut, triples = triples, [triple.uncut for triple in triples]
        found = [self.sampled(triple) for triple in triples]
        if not self.hold(triples, found):
            say("The sampler's log-probabilities are not those of the reference; they are computed anew.")
            found = [None] * len(triples)
        self.counts.sampled += sum(pair is not None for pair in found)
        open_places = [place for place, pair in enumerate(found) if pair is None]
        cached = [self.cached(triples[place]) for place in open_places]
        if not self.hold([triples[place] for place in open_places], cached):
            say("The kept log-probabilities are not those of the reference; they are computed anew.")
            cached = [None] * len(cached)
            self.counts.damaged += 1
        self.counts.cached += sum(pair is not None for pair in cached)
        for place, pair in zip(open_places, cached, strict=True):
            found[place] = pair
        values = self.complete(triples, found, tick)
        return [
            (chosen[: len(triple.chosen_ids)], rejected[: len(triple.rejected_ids)])
            for triple, (chosen, rejected) in zip(cut, values, strict=True)
        ]

    def hold(self, triples: Sequence[TokenTriple], found: Sequence[Pair | None]) -> bool:
        """Whether a random share of ``found`` is what the reference says now."""
        known = [(triple, pair) for triple, pair in zip(triples, found, strict=True) if pair is not None]
        drawn = random.Random(self.seed).sample(known, math.ceil(CHECKED_SHARE * len(known)))
        self.counts.checked += len(drawn)
        with self.lower.distrusted() if self.lower else nullcontext():
            held = all(self.agree(pair, self.computed(triple)) for triple, pair in drawn)
        held = all(ranks.of_all(held))  # the processes of a run must not go on from different sources
        if not held and self.lower:
            self.lower.trusted = False
        return held

    def agree(self, one: Pair, other: Pair) -> bool:
        tolerance = AGREEMENT[self.precision.dtype]
        return all(float((a - b).abs().max()) <= tolerance for a, b in zip(one, other, strict=True))

    def complete(self, triples: Sequence[TokenTriple], found: list[Pair | None], tick: Tick | None) -> list[Pair]:
        missing = [place for place, pair in enumerate(found) if pair is None]
        fresh: list[tuple[bytes, bytes]] = []
        for done, place in enumerate(missing, start=1):
            found[place] = pair = self.computed(triples[place])
            self.counts.forwards += 1
            fresh.append((self.key(triples[place]), to_bytes(torch.cat(in_order(triples[place], pair)))))
            if len(fresh) >= SAVED_TOGETHER or done == len(missing):
                self.cache.put(fresh)
                fresh = []
            if tick:
                tick(done, len(missing))
        return [pair for pair in found if pair is not None]

    def sampled(self, triple: TokenTriple) -> Pair | None:
        if not triple.chosen_logps or self.precision.dtype is not torch.float32:  # as the sampler's are
            return None
        return torch.tensor(triple.chosen_logps), torch.tensor(triple.rejected_logps)

    def cached(self, triple: TokenTriple) -> Pair | None:
        data = self.cache.get(self.key(triple))
        pair = Unlabelled.of(triple)
        lengths = [len(pair.chosen_ids), len(pair.rejected_ids)]
        if data is None or len(data) != 4 * sum(lengths):
            return None
        first, second = from_bytes(data).split(lengths)
        return in_order(triple, (first, second))

    def computed(self, triple: TokenTriple) -> Pair:
        return in_order(triple, self.compute(Unlabelled.of(triple)))

    def key(self, triple: TokenTriple) -> bytes:
        pair = Unlabelled.of(triple)
        name = (LAYOUT, *VERSIONS, content_hash(self.reference), self.form, self.precision.name)
        return key_of(*name, pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)


def in_order(triple: TokenTriple, values: Pair) -> Pair:
    """From (chosen, rejected) to the order of ``Unlabelled``, or back."""
    return (values[1], values[0]) if Unlabelled.of(triple).swapped else values


def open_cache(cache_dir: str, limit_mb: int) -> Cache:
    path = Path(cache_dir) / "reference-logps.sqlite3" if cache_dir else None
    return Cache(path, int(limit_mb * 2**20 * CACHE_SHARE))


def scored_with(model: Any, scorer: Scorer, precision: Compute) -> Callable[[Tokens], Pair]:
    """The values of one pair under ``model`` as it is when called."""

    @torch.no_grad()
    def compute(pair: Tokens) -> Pair:
        batch = scorer.arrange([pair], precision.device)
        with scorer.over(model), precision.autocast():
            chosen, rejected = scorer.token_logps(model, batch).float().cpu().split(batch.lengths)
        return chosen.clone(), rejected.clone()

    return compute


def to_bytes(values: torch.Tensor) -> bytes:
    return values.numpy().astype("<f4").tobytes()


def from_bytes(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").copy())
