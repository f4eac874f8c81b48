"""Triples as token ids, and which of them cannot be trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from transformers import PreTrainedTokenizerBase

from training.engine.chat import (
    PromptError,
    completion_token_ids,
    is_of_this_tokenizer,
    prompt_token_ids,
    prompt_token_ids_as_sampled,
)
from training.engine.errors import EngineError
from training.engine.jsonlines import read_lines
from training.jobspec import Completion, Split, TripleLine

TIE_NOISE = 0.5


@dataclass(frozen=True)
class TokenTriple:
    """(x, y_w, y_l) as ids, cut so that prompt and completion together fit the maximum length.

    ``weight`` and ``label_noise``: see ``TripleLine``. ``beyond`` is what did not fit of either response, as far as the
    reference reads. ``chosen_logps`` and ``rejected_logps`` are those of the sampler that wrote both responses, in nats
    a token and also of what is beyond, where it was the reference itself; else empty.
    """

    pair_id: str
    prompt_id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    weight: float = 1.0
    label_noise: float = 0.0
    chosen_logps: tuple[float, ...] = ()
    rejected_logps: tuple[float, ...] = ()
    cut: bool = False  # whether a response did not fit
    beyond: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    line: int = 0  # of ``dataset.jsonl``, counted from 1

    @property
    def is_tie(self) -> bool:
        return self.label_noise == TIE_NOISE

    @property
    def uncut(self) -> TokenTriple:
        """With both responses as far as the reference reads them."""
        chosen, rejected = self.chosen_ids + self.beyond[0], self.rejected_ids + self.beyond[1]
        return replace(self, chosen_ids=chosen, rejected_ids=rejected, beyond=([], []), cut=False)


@dataclass(frozen=True)
class LeftOut:
    pair_id: str
    split: str
    reason: str


@dataclass(frozen=True)
class PreferenceData:
    train: list[TokenTriple]
    held_out: list[TokenTriple]
    left_out: list[LeftOut]
    retokenised: list[str]  # pairs with a response whose sampled ids are another tokenizer's


def read_preferences(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    reference_hash: str = "",
    *,
    turn_end: int | None = None,
    read_length: int = 0,
    to_train: bool = True,
) -> PreferenceData:
    """Read and tokenise ``dataset.jsonl``.

    ``reference_hash`` says whose log-probabilities may stand in for the reference's, ``read_length`` how much of prompt
    and response the reference reads: ``max_length`` at least. ``turn_end`` is the id that ends a response of which only
    the text is known, by default the end of text. Raises ``EngineError`` bad_dataset for a line that no loss can be
    made of, and ``to_train`` when nothing is left to train on.
    """
    data = PreferenceData([], [], [], [])
    lines = read_lines(path, TripleLine)
    check_labels(lines)
    turn_end = int(tokenizer.eos_token_id) if turn_end is None else turn_end
    for number, line in enumerate(lines, start=1):
        triple = tokenize(line, tokenizer, turn_end, (max_length, read_length or max_length), reference_hash)
        if reason := triple if isinstance(triple, str) else problem(triple):
            data.left_out.append(LeftOut(line.pair_id, line.split, reason))
        elif not isinstance(triple, str):
            (data.train if line.split == "train" else data.held_out).append(replace(triple, line=number))
            if was_retokenised(line, triple):
                data.retokenised.append(line.pair_id)
    if to_train and not data.train:
        raise nothing_to_train_on(lines, data.left_out)
    return data


def check_labels(lines: list[TripleLine]) -> None:
    for line in lines:
        if line.split not in get_args(Split):
            message = f"Pair {line.pair_id} belongs to the split {line.split!r}."
            raise EngineError("bad_dataset", message, f"A split is one of {', '.join(get_args(Split))}.")
        if not (math.isfinite(line.weight) and line.weight >= 0 and 0 <= line.label_noise <= TIE_NOISE):
            message = f"Pair {line.pair_id} has weight {line.weight} and label noise {line.label_noise}."
            hint = "A weight must be at least 0, and label noise lies between 0 and one half."
            raise EngineError("bad_dataset", message, hint)


def tokenize(
    line: TripleLine, tokenizer: PreTrainedTokenizerBase, turn_end: int, lengths: tuple[int, int], of_reference: str
) -> TokenTriple | str:
    """The ids of ``line``, or the sentence that says why it has none.

    ``lengths``: what training reads, and what the reference does. ``of_reference``: its content hash.
    """
    sampled_prompt = prompt_token_ids_as_sampled(tokenizer, line)
    try:
        prompt_ids = sampled_prompt or prompt_token_ids(tokenizer, line.messages)
    except PromptError as error:
        return str(error)
    sides = (line.chosen, line.rejected)
    chosen, rejected = (completion_token_ids(tokenizer, item, turn_end) for item in sides)
    room, readable = (length - len(prompt_ids) for length in lengths)
    if room <= 0:
        return f"The prompt has {len(prompt_ids):,} tokens and training reads {lengths[0]:,} with the response."
    logps = [sampled_logps(tokenizer, item, of_reference)[:readable] if sampled_prompt else () for item in sides]
    return TokenTriple(
        line.pair_id,
        line.prompt_id,
        prompt_ids,
        chosen[:room],
        rejected[:room],
        line.weight,
        line.label_noise,
        *(logps if all(logps) else ((), ())),
        cut=max(len(chosen), len(rejected)) > room,
        beyond=(chosen[room:readable], rejected[room:readable]),
    )


def sampled_logps(tokenizer: PreTrainedTokenizerBase, completion: Completion, reference_hash: str) -> tuple[float, ...]:
    """The sampler's log-probabilities, where the sampler was the reference and its tokens are the ones trained on."""
    ours = completion.policy_hash == reference_hash != "" and len(completion.logps) == len(completion.token_ids)
    return tuple(completion.logps) if ours and is_of_this_tokenizer(tokenizer, completion) else ()


def was_retokenised(line: TripleLine, triple: TokenTriple) -> bool:
    both = ((line.chosen.token_ids, triple.chosen_ids), (line.rejected.token_ids, triple.rejected_ids))
    return any(sampled and sampled[: len(used)] != used for sampled, used in both)


def problem(triple: TokenTriple) -> str:
    if not (triple.prompt_ids and triple.chosen_ids and triple.rejected_ids):
        return "The prompt or a response has no tokens."
    if triple.chosen_ids == triple.rejected_ids:
        total = len(triple.prompt_ids) + len(triple.chosen_ids)
        return f"Chosen and rejected are the same within the {total:,} tokens that training reads."
    return ""


def nothing_to_train_on(lines: list[TripleLine], left_out: list[LeftOut]) -> EngineError:
    for_training = sum(line.split == "train" for line in lines)
    message = f"None of the {for_training} training pairs can be trained on."
    if reasons := [item.reason for item in left_out if item.split == "train"]:
        message = f"{message} The first: {reasons[0]}"
    return EngineError("bad_dataset", message, "Label more pairs, or raise the maximum length.")
