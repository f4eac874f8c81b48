"""What a policy writes by itself on fixed prompts, and how far that is from what other policies would write.

Held-out pairs tell what the policy thinks of responses that somebody else wrote. Drift, rambling and collapse only show
in its own. Prompts and seeds are fixed, so two policies are compared on the same random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from training.engine.chat import context_length, stop_token_ids
from training.engine.compute import Compute
from training.engine.decoding import Decoding, Request, Row, write_responses
from training.engine.evaluation import intervals
from training.jobspec import FinishReason

# A model, in eval mode, for as long as the context is open. Two of them may be one PeftModel whose adapter is on in one
# context and off in the other, so no two contexts are open at the same time.
Opened = Callable[[], AbstractContextManager[PreTrainedModel | PeftModel]]

# float64 numbers in a block of positions by vocabulary: 32 MB, of which a handful is alive.
LOGITS_AT_ONCE = 2**22
SEED_BITS = 63  # what torch takes as a seed


@dataclass(frozen=True)
class OnPolicySettings:
    seed: int = 0
    max_new_tokens: int = 128
    rows: int = 16  # responses in flight at once
    temperature: float = 1.0
    top_p: float = 1.0
    least_room: int | None = None  # tokens that a prompt must leave for its response, by default all


@dataclass(frozen=True)
class OnPolicyResponse:
    """A response to prompt ``prompt``, counted from 0; ``kl`` in nats, by the name of the other policy."""

    prompt: int
    token_ids: list[int]
    finish_reason: FinishReason
    kl: dict[str, float]

    @property
    def text_ids(self) -> list[int]:
        return self.token_ids[:-1] if self.finish_reason == "stop" else self.token_ids


def as_it_is(model: PreTrainedModel | PeftModel) -> Opened:
    return partial(nullcontext, model)


def without_adapter(model: PeftModel) -> Opened:
    """The base weights below ``model``'s adapter."""

    @contextmanager
    def switched_off() -> Iterator[PeftModel]:
        with model.disable_adapter():
            yield model

    return switched_off


def measure(
    policy: Opened,
    others: Mapping[str, Opened],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    settings: OnPolicySettings,
    compute: Compute,
    tick: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], list[OnPolicyResponse]]:
    """One response to each prompt, drawn at temperature 1 from the whole distribution, and the figures over them.

    A prompt that does not leave room for ``max_new_tokens`` in the context is left out; with none left the figures are
    ``{"prompts": 0}``. Else, with the interval over prompts in ``NAME_interval`` but for ``distinct_n``:

    ``kl_NAME``, for each of ``others``: KL(policy || other) in nats a response, of responses cut at
    ``max_new_tokens``; ``kl_NAME_per_token``: the same, of all responses together, a token of them.
    ``mean_tokens``: with the token that ends a response. ``finish_rate``: share that ended by themselves.
    ``distinct_1``, ``distinct_2``, ``distinct_3``: see ``distinct``.

    ``tick`` hears how many responses of how many have been scored. Raises ``EngineError`` bad_weights.
    """
    rows = write(policy, tokenizer, prompts, settings, compute)
    responses = []
    for number, row in sorted(rows.items()):
        kl = sequence_kl(policy, others, prompts[number], row.token_ids, compute)
        responses.append(OnPolicyResponse(number, row.token_ids, row.finish_reason, kl))
        if tick:
            tick(len(responses), len(rows))
    return figures(responses), responses


def write(
    policy: Opened,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    settings: OnPolicySettings,
    compute: Compute,
    tick: Callable[[int, int], None] | None = None,
) -> dict[int, Row]:
    """The response to each prompt that leaves room for one, by the number of the prompt."""
    least_room = settings.max_new_tokens if settings.least_room is None else settings.least_room
    found: dict[int, Row] = {}
    with policy() as model, compute.autocast():
        context = context_length(model.config)
        numbers = [number for number, ids in enumerate(prompts) if len(ids) + least_room <= context]
        requests = [
            Request(ids, [prompt_seed(settings.seed, ids)], min(settings.max_new_tokens, context - len(ids)))
            for ids in (prompts[number] for number in numbers)
        ]
        stop_ids = frozenset(stop_token_ids(tokenizer, model.generation_config))
        decoding = Decoding(settings.temperature, settings.top_p, stop_ids, int(tokenizer.pad_token_id))
        for number, (row,) in write_responses(model, requests, decoding, rows=settings.rows) if requests else ():
            found[numbers[number]] = row
            if tick:
                tick(len(found), len(numbers))
    return found


def prompt_seed(seed: int, prompt_ids: Sequence[int]) -> int:
    """A seed that nothing but these decides, so that the other prompts do not matter."""
    digest = hashlib.sha256(f"{seed}\0{list(prompt_ids)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


@torch.inference_mode()
def sequence_kl(
    policy: Opened, others: Mapping[str, Opened], prompt_ids: list[int], token_ids: list[int], compute: Compute
) -> dict[str, float]:
    """KL(policy || other) in nats for each of ``others``, estimated from one response that the policy drew.

    ``token_ids`` were drawn at temperature 1. The Rao-Blackwellised estimator of Amini et al. 2025 ("Better estimation
    of the KL divergence between language models"): at each prefix of the response the whole KL between the two
    next-token distributions. It has the mean of log policy(y | x) / other(y | x), never a greater variance, and is
    never negative.
    """
    ours = Reader(policy, compute)
    theirs = {name: Reader(other, compute) for name, other in others.items()}
    sequence = prompt_ids + token_ids[:-1]  # the last token is drawn from what stands before it
    read, totals = 0, dict.fromkeys(others, 0.0)
    while theirs and read < len(sequence):
        start = max(read, len(prompt_ids) - 1)  # the first column that a token of the response was drawn after
        end = min(start + ours.positions, len(sequence))
        ids, kept = sequence[read:end], end - start
        logps = ours.logps(ids, kept)
        for name, reader in theirs.items():
            totals[name] += next_token_kl(logps, reader.logps(ids, kept))
        read = end
    return totals


def next_token_kl(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Sum over positions of KL(ours || theirs), both log-probabilities (positions, vocabulary)."""
    probabilities = ours.exp()
    # A token that the model has ruled out has log-probability minus infinity on both sides.
    terms = torch.where(probabilities > 0, probabilities * (ours - theirs), 0.0)
    return float(terms.sum())


class Reader:
    """Next-token distributions of one model along one sequence, a piece at a time."""

    def __init__(self, opened: Opened, compute: Compute) -> None:
        self.opened = opened
        self.compute = compute
        with opened() as model:
            self.cache = DynamicCache(config=model.config)
            self.positions = max(1, LOGITS_AT_ONCE // int(model.config.get_text_config().vocab_size))

    def logps(self, ids: list[int], kept: int) -> torch.Tensor:
        """Read ``ids``, which go on from the last call, and return the last ``kept``, (kept, vocabulary) float64."""
        with self.opened() as model, self.compute.autocast():
            logits = model(
                input_ids=torch.tensor([ids], device=model.device),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=kept,
            ).logits
        return torch.log_softmax(logits[0, -kept:].double(), dim=-1)


def figures(responses: Sequence[OnPolicyResponse]) -> dict[str, Any]:
    """See ``measure``."""
    if not responses:
        return {"prompts": 0}
    columns = {
        "mean_tokens": np.array([len(item.token_ids) for item in responses], dtype=float),
        "finish_rate": np.array([item.finish_reason == "stop" for item in responses], dtype=float),
    }
    tokens = columns["mean_tokens"].sum()
    result: dict[str, Any] = {"prompts": len(responses)}
    for name in responses[0].kl:
        columns[f"kl_{name}"] = np.array([item.kl[name] for item in responses])
        result[f"kl_{name}_per_token"] = float(columns[f"kl_{name}"].sum() / tokens)
    bounds = intervals(np.stack(list(columns.values()), axis=1), range(len(responses)))
    for (name, values), interval in zip(columns.items(), bounds, strict=True):
        result |= {name: float(values.mean()), f"{name}_interval": interval}
    texts = [item.text_ids for item in responses]
    return result | {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}


def outlines(responses: Sequence[OnPolicyResponse]) -> dict[str, list[int]]:
    """By the number of the prompt: how many tokens the response to it has, and whether it ended by itself (1 or 0)."""
    return {str(item.prompt): [len(item.token_ids), int(item.finish_reason == "stop")] for item in responses}


def change(before: Mapping[str, list[int]], after: Mapping[str, list[int]]) -> dict[str, Any]:
    """What became of ``mean_tokens`` and ``finish_rate`` on the prompts of both, each with its interval over prompts.

    Paired, because prompts differ more than policies do: one asks for a word and one for a page. Both arguments are
    ``outlines``. Empty where no prompt is in both.
    """
    prompts = sorted(before.keys() & after.keys())
    if not prompts:
        return {}
    differences = np.array([after[prompt] for prompt in prompts], float) - [before[prompt] for prompt in prompts]
    bounds = intervals(differences, range(len(prompts)))
    result: dict[str, Any] = {"prompts": len(prompts)}
    for name, values, interval in zip(("mean_tokens", "finish_rate"), differences.T, bounds, strict=True):
        result |= {name: float(values.mean()), f"{name}_interval": interval}
    return result


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of all ``texts`` together (Li et al. 2016, section 5), of tokens not words.

    0 when there are none. More text has a smaller share of different n-grams, all else equal.
    """
    ngrams = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
