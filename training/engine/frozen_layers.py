"""The fast mode: only the upper layers are trained, on hidden states of the lower ones that are computed once.

What enters the first trained layer does not change while the layers below it are frozen, so it is kept by content like
the reference's log-probabilities: a forward and a backward then cost the upper layers alone. It is another hypothesis
class than LoRA on every layer, not an approximation of it: the numbers are exactly those of an adapter on the upper
layers, which is also what the checkpoint holds.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from training.engine.arrangement import Arrangement, Tokens, Unlabelled
from training.engine.cache import Cache, key_of
from training.engine.compute import VERSIONS, Compute
from training.engine.errors import EngineError

LAYOUT = "states 5"
TRAINED_SHARE = 3  # a third of the layers
CACHE_SHARE = 0.9  # of the bound of the cache directory

Segments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of prompt, chosen, rejected: (tokens, width)


class LowerLayersDone(Exception):
    """Raised out of a forward that is only run for the states that enter the first trained layer."""


def decoder_layers(model: PreTrainedModel | PeftModel) -> torch.nn.ModuleList:
    """The blocks of a causal language model, first to last."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    count = plain.config.get_text_config().num_hidden_layers
    for module in plain.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise EngineError("unsupported_model", "The layers of this model were not found.", "Choose the exact mode.")


def first_trained(layers: int, wanted: int) -> int:
    """Number of the lowest layer that is trained, when ``wanted`` layers are, or a third for 0."""
    trained = wanted or max(1, layers // TRAINED_SHARE)
    if not 1 <= trained <= layers:
        raise EngineError("bad_job", f"The model has {layers} layers, so {trained} cannot be trained.", "Choose fewer.")
    return layers - trained


@dataclass
class FrozenLayers:
    """Layers below ``first`` of ``model``: their states out of ``cache``, and their place taken while training.

    ``name`` is the content hash of the weights. ``computed`` counts forwards through the lower layers.
    """

    model: PreTrainedModel | PeftModel
    first: int
    name: str
    compute: Compute
    cache: Cache
    computed: int = 0
    given: torch.Tensor | None = None  # what the next forward takes for the output of the lower layers
    taken: torch.Tensor | None = None
    taking: bool = field(default=False, repr=False)
    in_tuple: bool = False  # the form that this model's layers give their states in
    trusted: bool = True  # whether states of earlier runs are used
    read_now: set[bytes] = field(default_factory=set, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the states: that of the weights, which with full fine-tuning are float32 whatever products are made in."""
        return self.model.get_input_embeddings().weight.dtype

    def __post_init__(self) -> None:
        layers = decoder_layers(self.model)
        self.in_tuple = isinstance(self.output_of(layers[self.first - 1]), tuple)
        trained = {id(tensor) for layer in layers[self.first :] for tensor in layer.parameters()}
        for tensor in self.model.parameters():
            if id(tensor) not in trained:  # a trained embedding would change the states
                tensor.requires_grad_(False)
        for number, layer in enumerate(layers[: self.first]):
            layer.forward = types.MethodType(self.stand_in(layer.forward, number), layer)

    def stand_in(self, original: Any, number: int) -> Any:
        """``forward`` of a lower layer: its own, unless its output is given already."""
        last = number == self.first - 1

        def forward(layer: torch.nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.given is not None:
                states = self.given if last else hidden_states
                return (states,) if self.in_tuple else states
            output = original(hidden_states, *args, **kwargs)
            if last and self.taking:
                self.taken = output[0] if isinstance(output, tuple) else output
                raise LowerLayersDone
            return output

        return forward

    @torch.no_grad()
    def output_of(self, layer: torch.nn.Module) -> Any:
        """What ``layer`` returns, found out with one token."""
        found: list[Any] = []
        hook = layer.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            with self.compute.autocast():
                self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.compute.device), use_cache=False)
        finally:
            hook.remove()
        return found[0]

    def states(self, pairs: Sequence[Tokens], scorer: Any) -> list[Segments]:
        """Hidden states that enter layer ``first``, in the model's own precision, on the CPU."""
        return [self.of(Unlabelled.of(pair), scorer) for pair in pairs]

    def of(self, pair: Unlabelled, scorer: Any) -> Segments:
        prompt, first, second = self.known(pair) or self.read(pair, scorer)
        return (prompt, second, first) if pair.swapped else (prompt, first, second)

    def known(self, pair: Unlabelled) -> Segments | None:
        key = self.key(pair)
        data = self.cache.get(key) if self.trusted or key in self.read_now else None
        if data is None:
            return None
        lengths = [len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)]
        prompt, first, second = from_bytes(data, self.dtype, sum(lengths)).split(lengths)
        return prompt, first, second

    @torch.no_grad()
    def read(self, pair: Unlabelled, scorer: Any) -> Segments:
        """Run the lower layers on ``pair`` and keep what comes out."""
        batch = scorer.arrange_tokens([pair], self.compute.device)
        self.taking = True
        try:
            with scorer.over(self.model), self.compute.autocast():
                scorer.forward(self.model, batch)
        except LowerLayersDone:
            pass
        finally:
            self.taking = False
        assert self.taken is not None
        states, self.taken = self.taken.to(self.dtype).cpu(), None
        self.computed += 1
        segments = cut(states, pair, batch)
        self.read_now.add(self.key(pair))
        self.cache.put([(self.key(pair), to_bytes(torch.cat(segments)))])
        return segments

    @contextmanager
    def distrusted(self) -> Iterator[None]:
        """Inside the block the lower layers run, whatever was kept: a check against itself would find nothing."""
        trusted, read_now = self.trusted, self.read_now
        self.trusted, self.read_now = False, set()
        try:
            yield
        finally:
            self.trusted, self.read_now = trusted, read_now | self.read_now

    def key(self, pair: Unlabelled) -> bytes:
        """Of the whole pair, which is computed at once: so a run gives the same bytes whatever was kept of others."""
        name = (LAYOUT, *VERSIONS, self.name, self.compute.name, str(self.first))
        return key_of(*name, pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)


def cut(states: torch.Tensor, pair: Tokens, batch: Arrangement) -> Segments:
    """The states of one pair as prompt, chosen and rejected."""
    prompt, chosen, rejected = len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)
    if batch.spans:
        parts = states[0].split([prompt, chosen, rejected])
        return parts[0], parts[1], parts[2]
    return states[0, :prompt], states[0, prompt : prompt + chosen], states[1, prompt : prompt + rejected]


def join(segments: Sequence[Segments], batch: Arrangement) -> torch.Tensor:
    """States of a whole batch in its layout, (rows, columns, width)."""
    if batch.spans:
        states = torch.cat([part for pair in segments for part in pair])[None]
    else:
        rows = [torch.cat([prompt, completion]) for prompt, *both in segments for completion in both]
        states = pad_sequence(rows, batch_first=True)
    return states.to(batch.input_ids.device)


def open_cache(cache_dir: str, limit_mb: int) -> Cache:
    path = Path(cache_dir) / "hidden-states.sqlite3" if cache_dir else None
    return Cache(path, int(limit_mb * 2**20 * CACHE_SHARE))


def to_bytes(states: torch.Tensor) -> bytes:
    return states.contiguous().view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, dtype: torch.dtype, tokens: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).view(dtype).view(tokens, -1)
