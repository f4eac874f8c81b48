"""Preferences to triples (x, y_w, y_l). Pure: judgements in, ``TripleLine`` and counts out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from labeling.models import Choice
from training.jobspec import Completion, Message, Split, TripleLine


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


@dataclass
class TripleCounts:
    """What became of the judgements. Ties and both-bad are kept in the database; they only give no triple."""

    train: int = 0
    held_out: int = 0
    ties: int = 0
    both_bad: int = 0
    split_votes: int = 0
    train_prompts: set[int] = field(default_factory=set)
    preference_ids: list[int] = field(default_factory=list)

    @property
    def triples(self) -> int:
        return self.train + self.held_out


def derive_triples(judgements: Iterable[Judgement], counts: TripleCounts) -> Iterator[TripleLine]:
    """Yield one triple for each pair with a majority for one response; ``judgements`` come sorted by pair."""
    for _, group in groupby(judgements, key=attrgetter("pair_id")):
        triple = _triple_of(list(group), counts)
        if triple is None:
            continue
        counts.preference_ids.extend(triple.preference_ids)
        if triple.split == "held_out":
            counts.held_out += 1
        else:
            counts.train += 1
            counts.train_prompts.add(int(triple.prompt_id))
        yield triple


def _triple_of(judgements: Sequence[Judgement], counts: TripleCounts) -> TripleLine | None:
    counts.ties += sum(judgement.choice == Choice.TIE for judgement in judgements)
    counts.both_bad += sum(judgement.choice == Choice.BOTH_BAD for judgement in judgements)
    decided = [judgement for judgement in judgements if judgement.choice in (Choice.A, Choice.B)]
    lead = sum(1 if judgement.choice == Choice.A else -1 for judgement in decided)
    if lead == 0:
        counts.split_votes += bool(decided)
        return None
    first = decided[0]
    split: Split = "held_out" if first.is_held_out else "train"
    chosen, rejected = first.response_a, first.response_b
    if lead < 0:
        chosen, rejected = rejected, chosen
    return TripleLine(
        pair_id=str(first.pair_id),
        prompt_id=str(first.prompt_id),
        split=split,
        messages=first.messages,
        chosen=chosen,
        rejected=rejected,
        preference_ids=[judgement.preference_id for judgement in decided],
    )
