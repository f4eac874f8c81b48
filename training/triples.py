"""Preferences to triples (x, y_w, y_l). Pure: judgements in, ``TripleLine`` and counts out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

from labeling.models import Choice
from training.jobspec import Completion, Message, Split, TripleLine

Ties = Literal["drop", "half"]
Noise = Literal["none", "votes"]
Weight = Literal["equal", "votes"]
TIE_NOISE = 0.5
# A loss that divides by 1 - 2 epsilon would give a pair of 51 against 49 votes fifty times its weight.
MOST_NOISE = 0.45
# Of a triple's fields those that only the engine reads; they are several times the size of the rest.
ENGINE_FIELDS = ("prompt_token_ids",)
ENGINE_COMPLETION_FIELDS = ("logps", "policy_hash")
AS_JSON: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}


@dataclass(frozen=True)
class LabelRule:
    """How the judgements of a pair become a label.

    ``ties``: a pair without a majority for one response, with a tie or a split vote among its judgements, gives no
    triple ("drop"), or one with label noise 1/2 ("half"; Mitchell 2023, a note on DPO with noisy preferences). Only on
    prompts that are trained on: a held-out pair without a better response says nothing about who finds it.
    ``noise``: a majority is certain ("none"), or wrong with the probability of the share of votes against it, a tie
    being half a vote ("votes"; the loss of the same note), at most ``MOST_NOISE``. Both-bad judgements are no votes.
    ``weight``: every pair counts the same ("equal"), or every judgement behind a triple does ("votes"). With votes for
    noise, DPO's loss is then the likelihood of these judgements, each by itself, under Bradley and Terry's model, but
    for pairs at ``MOST_NOISE``.
    """

    ties: Ties = "drop"
    noise: Noise = "none"
    weight: Weight = "equal"


@dataclass(frozen=True)
class Judgement:
    """One current preference with everything its triple needs."""

    preference_id: int
    pair_id: int
    prompt_id: int
    choice: str
    is_held_out: bool
    messages: list[Message]
    response_a: Completion
    response_b: Completion
    prompt_token_ids: list[int] = field(default_factory=list)


@dataclass
class TripleCounts:
    """What became of the judgements. What gave no triple is kept in the database all the same.

    ``tie_triples`` are those of label noise 1/2, which ``train`` counts as well. ``ties`` are tie judgements behind no
    triple, ``ties_used`` those behind one; ``split_votes`` are pairs. ``train_prompts`` are those with a majority.
    """

    train: int = 0
    held_out: int = 0
    tie_triples: int = 0
    ties: int = 0
    ties_used: int = 0
    both_bad: int = 0
    split_votes: int = 0
    train_prompts: set[int] = field(default_factory=set)
    preference_ids: list[int] = field(default_factory=list)

    @property
    def triples(self) -> int:
        return self.train + self.held_out

    @property
    def decided(self) -> int:
        """Triples to train on that say which response is better."""
        return self.train - self.tie_triples


def derive_triples(
    judgements: Iterable[Judgement], counts: TripleCounts, rule: LabelRule | None = None
) -> Iterator[TripleLine]:
    """Yield at most one triple a pair; ``judgements`` come sorted by pair. By default ties give none."""
    rule = rule or LabelRule()
    for _, group in groupby(judgements, key=attrgetter("pair_id")):
        triple = _triple_of(list(group), counts, rule)
        if triple is None:
            continue
        counts.preference_ids.extend(triple.preference_ids)
        if triple.split == "held_out":
            counts.held_out += 1
        else:
            counts.train += 1
            if triple.label_noise < TIE_NOISE:
                counts.train_prompts.add(int(triple.prompt_id))
        yield triple


def as_line(triple: TripleLine) -> str:
    """The bytes of ``TripleLine.to_json``, which copies every token on its way and takes several times as long."""
    return json.dumps(vars(triple) | {side: vars(getattr(triple, side)) for side in ("chosen", "rejected")}, **AS_JSON)


def without_engine_fields(triple: TripleLine) -> dict[str, Any]:
    """The triple as people get it, by export or API."""
    data: dict[str, Any] = {name: value for name, value in vars(triple).items() if name not in ENGINE_FIELDS}
    for side in ("chosen", "rejected"):
        completion = vars(data[side])
        data[side] = {name: value for name, value in completion.items() if name not in ENGINE_COMPLETION_FIELDS}
    return data


def _triple_of(judgements: Sequence[Judgement], counts: TripleCounts, rule: LabelRule) -> TripleLine | None:
    ties = [judgement for judgement in judgements if judgement.choice == Choice.TIE]
    decided = [judgement for judgement in judgements if judgement.choice in (Choice.A, Choice.B)]
    counts.both_bad += len(judgements) - len(ties) - len(decided)
    lead = sum(1 if judgement.choice == Choice.A else -1 for judgement in decided)
    if lead:
        behind = [*decided, *ties] if rule.noise == "votes" else decided
        noise = _noise(len(decided), abs(lead), len(ties)) if rule.noise == "votes" else 0.0
    elif rule.ties == "half" and not judgements[0].is_held_out:
        behind, noise = [*decided, *ties], TIE_NOISE
    else:
        behind, noise = [], 0.0
        counts.split_votes += bool(decided)
    used = sum(judgement.choice == Choice.TIE for judgement in behind)
    counts.ties_used += used
    counts.ties += len(ties) - used
    if not behind:
        return None
    counts.tie_triples += not lead
    weight = float(len(behind)) if rule.weight == "votes" else 1.0
    return _triple(behind, noise, weight, swapped=lead < 0)


def _noise(decided: int, lead: int, ties: int) -> float:
    """The share of votes against the majority; always below 1/2, since the majority leads."""
    against = (decided - lead) / 2 + ties / 2
    return min(against / (decided + ties), MOST_NOISE)


def _triple(behind: Sequence[Judgement], noise: float, weight: float, *, swapped: bool) -> TripleLine:
    first = behind[0]
    split: Split = "held_out" if first.is_held_out else "train"
    chosen, rejected = first.response_a, first.response_b
    if swapped:
        chosen, rejected = rejected, chosen
    return TripleLine(
        pair_id=str(first.pair_id),
        prompt_id=str(first.prompt_id),
        split=split,
        messages=first.messages,
        chosen=chosen,
        rejected=rejected,
        preference_ids=sorted(judgement.preference_id for judgement in behind),
        weight=weight,
        label_noise=noise,
        prompt_token_ids=first.prompt_token_ids,
    )
