"""Preferences to triples (x, y_w, y_l). Pure: judgements in, ``TripleLine`` and counts out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

from labeling.models import Choice
from labeling.strangers import probability_by_strangers
from training.jobspec import Completion, Message, Split, TripleLine

Ties = Literal["drop", "half"]
Noise = Literal["none", "votes", "posterior"]
Weight = Literal["equal", "votes", "posterior"]
TIE_NOISE = 0.5
# A loss that divides by 1 - 2 epsilon would give a pair of 51 against 49 votes fifty times its weight.
MOST_NOISE = 0.45
# A posterior probability from here to there says that neither response is better.
UNDECIDED = (0.48, 0.52)
# Of a triple's fields those that only the engine reads; they are several times the size of the rest.
ENGINE_FIELDS = ("prompt_token_ids",)
ENGINE_COMPLETION_FIELDS = ("logps", "policy_hash")
AS_JSON: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}


@dataclass(frozen=True)
class LabelRule:
    """How the judgements of a pair become a label.

    A reviewer's verdict stands in the place of each of the pair's judgements, whatever they were: with a verdict for
    one response the label is certain. A pair that nobody has judged gives no triple, with a verdict or without.

    ``ties``: a pair without a majority for one response, with a tie or a split vote among its judgements, gives no
    triple ("drop"), or one with label noise 1/2 ("half"; Mitchell 2023, a note on DPO with noisy preferences). Only on
    prompts that are trained on: a held-out pair without a better response says nothing about who finds it.
    ``noise``: a majority is certain ("none"), or wrong with the probability of the share of votes against it, a tie
    being half a vote ("votes"; the loss of the same note), at most ``MOST_NOISE``. Both-bad judgements are no votes.
    Or it is 1 - max(p, 1 - p), at most ``MOST_NOISE``, for p the probability that a person who compares the two will
    prefer A, and the label is the side of p ("posterior"). The estimate gives the probability that A is better given
    all votes and what is known of those who cast them, and says nothing by ties. But every tie is a statement that
    there is no difference, half a vote for either side: with d statements for a side and t ties, p is
    (d * estimate + t / 2) / (d + t), the soft label of the same note. Statements for a side are the judgements for one,
    and the known answer of a pair that has one, for the estimate counts it as a vote. A p within ``UNDECIDED`` is no
    majority. A pair that was judged since the last estimate has none; then the majority of its votes is right with the
    probability that the estimate gives where nothing is known of anybody: a vote that nobody has looked into is doubted
    like any other, 0.22 for a single one.
    ``weight``: every pair counts the same ("equal"), or every judgement behind a triple does ("votes"). With votes for
    noise, DPO's loss is then the likelihood of these judgements, each by itself, under Bradley and Terry's model, but
    for pairs at ``MOST_NOISE``. Answers to a pair that was served for its known answer add nothing to its weight, for
    they test people, and every one of them is asked. For the noise ties among them are ties like others: it is a share,
    which many answers do not make larger, and answers for a side are in it as well. Or a pair counts as much as its p
    is sure of the side ("posterior"): w = abs(2 p - 1), p being that of "posterior" above. At margin z = 0, where
    training starts, a hard label of that weight has the gradient of the soft label of Mitchell's note, -(1 - epsilon)
    sigma(-z) + epsilon sigma(z) = -(1 - 2 epsilon) / 2 = -w / 2. Further on they part: the soft label has its optimum
    at z = log((1 - epsilon) / epsilon), and the weighted hard label goes on pulling. The weights are not made to
    average 1: that would let each pair's depend on all others, so that one more label changed every triple, and would
    undo the equality; a factor common to all pairs changes next to nothing under Adam. With any label noise besides,
    the same doubt would be counted twice. A tie weighs 1.
    """

    ties: Ties = "drop"
    noise: Noise = "posterior"
    weight: Weight = "equal"

    @property
    def uses_posterior(self) -> bool:
        return "posterior" in (self.noise, self.weight)

    @property
    def reads_ties(self) -> bool:
        """Whether the ties beside a majority have a say in its label."""
        return self.noise != "none" or self.uses_posterior


@dataclass(frozen=True)
class Judgement:
    """One counted preference with everything its triples need.

    ``verdict`` is a reviewer's decision on the pair, ``known_answer`` what was agreed on beforehand and ``p_a`` the
    posterior probability that A is better, where there is one. ``as_gold``: the pair was served because its answer is
    known. ``rewrite`` is what the annotator made of the response they chose.
    """

    preference_id: int
    pair_id: int
    prompt_id: int
    choice: str
    is_held_out: bool
    messages: list[Message]
    response_a: Completion
    response_b: Completion
    prompt_token_ids: list[int] = field(default_factory=list)
    verdict: str = ""
    known_answer: str = ""
    p_a: float | None = None
    as_gold: bool = False
    rewrite: Completion | None = None

    @property
    def counts_as(self) -> str:
        return self.verdict or self.choice


@dataclass
class TripleCounts:
    """What became of the judgements. What gave no triple is kept in the database all the same.

    ``tie_triples`` are those of label noise 1/2 and ``rewrites`` those of rewrites; ``train`` and ``held_out`` count
    them as well. ``ties`` are tie judgements behind no triple, ``ties_used`` those behind one; ``split_votes`` are
    pairs. A judgement counts as what the reviewer says of its pair. ``train_prompts`` are those with a better response.
    """

    train: int = 0
    held_out: int = 0
    tie_triples: int = 0
    rewrites: int = 0
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

    def add(self, triple: TripleLine) -> None:
        self.rewrites += triple.source == "rewrite"
        if triple.split == "held_out":
            self.held_out += 1
            return
        self.train += 1
        if triple.label_noise < TIE_NOISE:
            self.train_prompts.add(int(triple.prompt_id))


def derive_triples(
    judgements: Iterable[Judgement], counts: TripleCounts, rule: LabelRule | None = None
) -> Iterator[TripleLine]:
    """Yield at most one triple a pair, then one for each rewrite of its responses. By default ties give none, and the
    posterior says how far a label is believed.

    ``judgements`` come sorted by pair.
    """
    rule = rule or LabelRule()
    for _, group in groupby(judgements, key=attrgetter("pair_id")):
        pair = list(group)
        triples = [*_triples_of(pair, counts, rule), *_triples_of_rewrites(pair)]
        counts.preference_ids.extend(sorted({number for triple in triples for number in triple.preference_ids}))
        for triple in triples:
            counts.add(triple)
            yield triple


def as_line(triple: TripleLine) -> str:
    """The bytes of ``TripleLine.to_json``, which copies every token on its way and takes several times as long."""
    data = vars(triple) | {side: vars(getattr(triple, side)) for side in ("chosen", "rejected")}
    if triple.source == "pair":
        del data["source"]
    return json.dumps(data, **AS_JSON)


def without_engine_fields(triple: TripleLine) -> dict[str, Any]:
    """The triple as people get it, by export or API."""
    data: dict[str, Any] = {name: value for name, value in vars(triple).items() if name not in ENGINE_FIELDS}
    for side in ("chosen", "rejected"):
        completion = vars(data[side])
        data[side] = {name: value for name, value in completion.items() if name not in ENGINE_COMPLETION_FIELDS}
    return data


@dataclass(frozen=True)
class _Label:
    """What the judgements of a pair come to. ``lead``: above 0 for A, below for B, 0 for neither; ``doubt``: the
    probability that the other side is the better one."""

    lead: float
    doubt: float


def _triples_of(judgements: Sequence[Judgement], counts: TripleCounts, rule: LabelRule) -> list[TripleLine]:
    """The triple of the pair, or none."""
    ties = [judgement for judgement in judgements if judgement.counts_as == Choice.TIE]
    decided = [judgement for judgement in judgements if judgement.counts_as in (Choice.A, Choice.B)]
    counts.both_bad += len(judgements) - len(ties) - len(decided)
    label = _label(decided, ties, rule)
    if label.lead:
        behind = [*decided, *ties] if rule.reads_ties else decided
    elif rule.ties == "half" and not judgements[0].is_held_out:
        behind = [*decided, *ties]
    else:
        behind = []
        counts.split_votes += bool(decided)
    used = sum(judgement.counts_as == Choice.TIE for judgement in behind)
    counts.ties_used += used
    counts.ties += len(ties) - used
    if not behind:
        return []
    counts.tie_triples += not label.lead
    return [_triple(behind, label, rule)]


def _label(decided: Sequence[Judgement], ties: Sequence[Judgement], rule: LabelRule) -> _Label:
    said = [*decided, *ties]
    lead = sum(1 if judgement.counts_as == Choice.A else -1 for judgement in decided)
    if rule.uses_posterior and said and not said[0].verdict:
        return _label_by_posterior(said[0], lead, len(decided), len(ties))
    return _Label(lead, _share_against(len(decided), abs(lead), len(ties)))


def _label_by_posterior(pair: Judgement, lead: int, decided: int, ties: int) -> _Label:
    if pair.p_a is None:
        p_a = probability_by_strangers(lead)
    else:
        p_a = pair.p_a
        decided += pair.known_answer in (Choice.A, Choice.B)
    # The very steps of ``tallies``, for sums that are written otherwise can round to the other side of a bound.
    p = 0.5 + (p_a - 0.5) * decided / (decided + ties)
    low, high = UNDECIDED
    return _Label(0.0 if low <= p <= high else p - 0.5, 1 - max(p, 1 - p))


def _share_against(decided: int, lead: int, ties: int) -> float:
    """The share of votes against the majority, a tie being half a vote; below 1/2 wherever there is a majority."""
    against = (decided - lead) / 2 + ties / 2
    return against / (decided + ties) if decided + ties else TIE_NOISE


def _noise(label: _Label, rule: LabelRule) -> float:
    if not label.lead:
        return TIE_NOISE
    return 0.0 if rule.noise == "none" else min(label.doubt, MOST_NOISE)


def _weight(behind: Sequence[Judgement], label: _Label, rule: LabelRule) -> float:
    if rule.weight == "votes":
        return float(max(1, sum(not judgement.as_gold for judgement in behind)))
    return 1 - 2 * label.doubt if rule.weight == "posterior" and label.lead else 1.0


def _triple(behind: Sequence[Judgement], label: _Label, rule: LabelRule) -> TripleLine:
    first = behind[0]
    chosen, rejected = first.response_a, first.response_b
    if label.lead < 0:
        chosen, rejected = rejected, chosen
    return TripleLine(
        pair_id=str(first.pair_id),
        prompt_id=str(first.prompt_id),
        split=_split(first),
        messages=first.messages,
        chosen=chosen,
        rejected=rejected,
        preference_ids=sorted(judgement.preference_id for judgement in behind),
        weight=_weight(behind, label, rule),
        label_noise=_noise(label, rule),
        prompt_token_ids=first.prompt_token_ids,
    )


def _triples_of_rewrites(judgements: Sequence[Judgement]) -> Iterator[TripleLine]:
    """(x, rewrite, the response that it improves): what its author says by writing it, so of weight 1 and certain.

    It holds whatever became of the pair itself. The text has no tokens of a sampler's, so the other response's
    log-probabilities, which the engine takes for both or for neither, are left out.
    """
    for judgement in judgements:
        if judgement.rewrite is not None and judgement.choice in (Choice.A, Choice.B):
            improved = judgement.response_a if judgement.choice == Choice.A else judgement.response_b
            yield TripleLine(
                pair_id=str(judgement.pair_id),
                prompt_id=str(judgement.prompt_id),
                split=_split(judgement),
                messages=judgement.messages,
                chosen=judgement.rewrite,
                rejected=replace(improved, logps=[], policy_hash=""),
                preference_ids=[judgement.preference_id],
                source="rewrite",
            )


def _split(judgement: Judgement) -> Split:
    return "held_out" if judgement.is_held_out else "train"
