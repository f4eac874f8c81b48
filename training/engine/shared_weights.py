"""Several policies in one process: those that are adapters on the same weights share them in memory.

The policies of a project are most often a base and adapters on it, so one model serves all of them and only the adapter
is switched. Of policies with weights of their own no more than ``MOST_WEIGHTS`` are held at once: whoever compares more
of them goes through them two by two.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from training.engine import loading, process
from training.engine.compute import Compute
from training.engine.on_policy import Opened
from training.engine.scoring import Scorer, add_scoring_head, choose_scorer
from training.jobspec import ModelRef

MOST_WEIGHTS = 2
FIRST_ADAPTER = "default"  # the name that PEFT gives to the adapter that a model is wrapped with


@dataclass
class Weights:
    """Full weights in memory with the adapters that were loaded onto them, by the adapter's directory."""

    model: PreTrainedModel | PeftModel
    scorer: Scorer | None = None  # chosen when it is first asked for: not everybody scores
    adapters: dict[str, str] = field(default_factory=dict)

    def add(self, directory: str, compute: Compute) -> None:
        if not isinstance(self.model, PeftModel):
            wrapped = loading.load_adapter(self.model, directory, trainable=False)
            self.model = wrapped.to(compute.device).eval().requires_grad_(False)
            self.adapters[directory] = FIRST_ADAPTER
            return
        name = f"adapter-{len(self.adapters)}"
        loading.add_adapter(self.model, directory, name)
        self.model.to(compute.device).eval().requires_grad_(False)
        self.adapters[directory] = name

    @contextmanager
    def with_adapter(self, directory: str | None) -> Iterator[PreTrainedModel | PeftModel]:
        if not isinstance(self.model, PeftModel):
            yield self.model
        elif directory is None:
            with self.model.disable_adapter():
                yield self.model
        else:
            # Who is asked for a token at a time is most often on already, and switching goes through every layer.
            if self.model.active_adapter != self.adapters[directory]:
                self.model.set_adapter(self.adapters[directory], inference_mode=True)
            yield self.model

    def chosen_scorer(self, compute: Compute) -> Scorer:
        if self.scorer is None:
            with self.with_adapter(None) as model:
                # On a GPU the kernel for packed rows takes longer to compile than a comparison takes to score.
                self.scorer = Scorer(packed=False) if compute.on_cuda else choose_scorer(model, compute)
        return self.scorer


class Policies:
    """The policies of a job. No two of them are open at the same time."""

    def __init__(self, compute: Compute, most_weights: int = MOST_WEIGHTS) -> None:
        self.compute = compute
        self.most_weights = most_weights
        self.held: OrderedDict[str, Weights] = OrderedDict()  # by the directory of the weights, used last at the end
        self.loads = 0
        self.tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    def opened(self, policy: ModelRef) -> Opened:
        """Opens the policy's model, ready to write and to score."""

        @contextmanager
        def with_model() -> Iterator[PreTrainedModel | PeftModel]:
            # Whoever opens it may be in inference mode, and what is loaded must outlive that.
            with torch.inference_mode(mode=False):
                weights = self.weights_of(policy)
                if policy.adapter_dir is not None and policy.adapter_dir not in weights.adapters:
                    weights.add(policy.adapter_dir, self.compute)
            with weights.with_adapter(policy.adapter_dir) as model:
                yield model

        return with_model

    def scorer_of(self, policy: ModelRef) -> Scorer:
        return self.weights_of(policy).chosen_scorer(self.compute)

    def tokenizer_of(self, policy: ModelRef) -> PreTrainedTokenizerBase:
        if policy.base_dir not in self.tokenizers:
            self.tokenizers[policy.base_dir] = loading.load_tokenizer(policy.base_dir)
        return self.tokenizers[policy.base_dir]

    def weights_of(self, policy: ModelRef) -> Weights:
        if policy.base_dir not in self.held:
            while len(self.held) >= self.most_weights:
                self.let_go()
            self.held[policy.base_dir] = self.load(policy)
        self.held.move_to_end(policy.base_dir)
        return self.held[policy.base_dir]

    def let_go(self) -> None:
        """Of the weights that were used longest ago."""
        self.held.popitem(last=False)
        gc.collect()  # a model with a scoring head refers to itself
        process.give_back_freed_memory()

    def load(self, policy: ModelRef) -> Weights:
        self.loads += 1
        model = loading.load_base(policy, self.compute.dtype).to(self.compute.device).eval().requires_grad_(False)
        add_scoring_head(model)
        return Weights(model)

    def have_same_tokens(self, one: ModelRef, other: ModelRef) -> bool:
        """Whether the two write the same ids for the same text: else there is no KL between them."""
        if one.base_hash == other.base_hash:
            return True
        if vocabulary_size(one) != vocabulary_size(other):
            return False
        return bool(self.tokenizer_of(one).get_vocab() == self.tokenizer_of(other).get_vocab())


def vocabulary_size(policy: ModelRef) -> int:
    config = AutoConfig.from_pretrained(policy.base_dir, local_files_only=True, trust_remote_code=False)
    return int(config.get_text_config().vocab_size)
