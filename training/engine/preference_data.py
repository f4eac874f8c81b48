"""Triples as token ids, and which of them cannot be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from training.engine.chat import PromptError, completion_token_ids, prompt_token_ids
from training.engine.errors import EngineError
from training.engine.jsonlines import read_lines
from training.jobspec import TripleLine


@dataclass(frozen=True)
class TokenTriple:
    """(x, y_w, y_l) as ids, cut so that prompt and completion together fit the maximum length."""

    pair_id: str
    prompt_id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


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


def read_preferences(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreferenceData:
    """Read and tokenise ``dataset.jsonl``. Raises ``EngineError`` bad_dataset when nothing is left to train on."""
    data = PreferenceData([], [], [], [])
    lines = read_lines(path, TripleLine)
    check_plain(lines)
    for line in lines:
        triple = tokenize(line, tokenizer, max_length)
        if reason := triple if isinstance(triple, str) else problem(triple):
            data.left_out.append(LeftOut(line.pair_id, line.split, reason))
        elif not isinstance(triple, str):
            (data.train if line.split == "train" else data.held_out).append(triple)
            if was_retokenised(line, triple):
                data.retokenised.append(line.pair_id)
    if not data.train:
        raise nothing_to_train_on(lines, data.left_out)
    return data


def check_plain(lines: list[TripleLine]) -> None:
    """The loss of Rafailov et al. 2023 has no weights and no label noise; to ignore them would be a silent lie."""
    for line in lines:
        if line.weight != 1.0 or line.label_noise != 0.0:
            message = f"Pair {line.pair_id} has weight {line.weight} and label noise {line.label_noise}."
            raise EngineError("bad_dataset", message, "This trainer takes weight 1 and label noise 0 only.")


def tokenize(line: TripleLine, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenTriple | str:
    """The ids of ``line``, or the sentence that says why it has none."""
    try:
        prompt_ids = prompt_token_ids(tokenizer, line.messages)
    except PromptError as error:
        return str(error)
    room = max_length - len(prompt_ids)
    if room <= 0:
        return f"The prompt has {len(prompt_ids):,} tokens and training reads {max_length:,} with the response."
    chosen, rejected = (completion_token_ids(tokenizer, item)[:room] for item in (line.chosen, line.rejected))
    return TokenTriple(line.pair_id, line.prompt_id, prompt_ids, chosen, rejected)


def was_retokenised(line: TripleLine, triple: TokenTriple) -> bool:
    both = ((line.chosen.token_ids, triple.chosen_ids), (line.rejected.token_ids, triple.rejected_ids))
    return any(sampled and sampled[: len(used)] != used for sampled, used in both)


def problem(triple: TokenTriple) -> str:
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
