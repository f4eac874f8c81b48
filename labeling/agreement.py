"""How far annotators agree: Krippendorff's alpha and shares of agreeing judgements, with intervals over pairs.

For background tasks only (numpy). Alpha (Krippendorff 2011, Computing Krippendorff's alpha-reliability) allows for the
agreement that chance would bring and for pairs with different numbers of judgements. It is computed here and not by a
package, because the bootstrap needs what each pair adds to it; the tests hold it against the package `krippendorff`.

Every figure here is a function of sums over pairs, and pairs with the same judgements add the same. A bootstrap over
pairs is therefore a multinomial draw over the few kinds of pairs there are: exact, and the same work for a thousand
pairs as for a million. Of several judgements of one annotator on one pair the first counts; the others are for
``self_agreement``.

Agreement is not accuracy: people may agree on what is wrong, and on a hard pair the careful disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from labeling.quality import Share, gettext_noop, wilson
from labeling.votes import BOTH_BAD, CHOICES, Bools, Floats, Ints, Vote, VoteColumns, as_columns

Band = Literal["too few", "in line", "a little apart", "often apart"]

LEAST_PAIRS = 20  # shared pairs; a bootstrap over fewer is too narrow, and any interval says nothing
REPLICATES, SEED = 2000, 20
APART = 0.10  # beyond the project's mean by more than this with the whole interval: "often apart"

_KINDS = len(CHOICES)
NOMINAL: Floats = 1.0 - np.eye(_KINDS)
_READING = np.array([-1.0, 1.0, 0.0, np.nan])  # a, b, tie; both-bad has no place between them
INTERVAL: Floats = np.nan_to_num(np.square(_READING[:, None] - _READING[None, :]))
# Agreement of two judgements: equal or not, and WebGPT's reading (Nakano et al. 2021, C), a tie with a decision half.
EQUAL: Floats = np.eye(_KINDS)
HALF: Floats = np.array([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.5, 0.0], [0.5, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


@dataclass(frozen=True)
class Estimate:
    """``value`` with its 95 % bootstrap interval over ``pairs``; ``None`` where there is too little, with the reason.

    ``template`` is the reason as a message id for translation, ``""`` where there is a value.
    """

    value: float | None
    low: float | None
    high: float | None
    pairs: int
    template: str = ""

    @property
    def figures(self) -> dict[str, int]:
        return {"pairs": self.pairs, "least": LEAST_PAIRS}

    @property
    def reason(self) -> str:
        return self.template % self.figures


@dataclass(frozen=True)
class Agreement:
    """Four readings of the same judgements.

    ``alpha``: over a, b, tie, both-bad as names. ``alpha_interval``: a -1, tie 0, b +1, squared distance, without
    both-bad. ``equal``: share of pairs of judgements that are the same. ``half``: the same without both-bad, where a
    tie agrees by half with a decision.
    """

    alpha: Estimate
    alpha_interval: Estimate
    equal: Estimate
    half: Estimate


@dataclass(frozen=True)
class SelfAgreement:
    """First and second judgement of one annotator on one pair, by whether both stood on the same sides each time.

    ``followed_side``: where the sides changed and both judgements were decided, how often both went to the same side,
    and so to different responses.
    """

    overall: Share
    sides_kept: Share
    sides_changed: Share
    followed_side: Share


def overall(votes: VoteColumns | Iterable[Vote], *, asked: Ints | int | None = None, seed: int = SEED) -> Agreement:
    """Agreement of all annotators on pairs that two or more judged.

    ``asked``: count only so many judgements of a pair, the first; a number for all, or one for each judgement. Where
    disagreement calls for more judgements (``quality.judgements_needed``) give the number that the pair was asked for
    when it was made: with all of them, the pairs that people disagree on carry most pairs of judgements. Two asked, a
    third where they differ: an agreement of 65 % would be read as 59 %.
    """
    columns = _shared(as_columns(votes), asked)
    return _agreement(_counts(columns), seed)


def by_annotator(
    votes: VoteColumns | Iterable[Vote], *, asked: Ints | int | None = None, seed: int = SEED
) -> dict[int, Estimate]:
    """Of each annotator the share of the others' judgements, on the pairs they share, that are the same; a pair weighs
    the same however many others it has.

    Only annotators who share a pair are in it; ``asked`` as for ``overall``.
    """
    columns = _shared(as_columns(votes), asked)
    _, pair = np.unique(columns.pair_id, return_inverse=True)
    own = np.eye(_KINDS)[columns.choice]
    others = _counts(columns)[pair] - own
    people, person = np.unique(columns.annotator_id, return_inverse=True)
    order = np.argsort(person, kind="stable")
    bounds = np.searchsorted(person[order], np.arange(len(people) + 1))
    return {
        int(who): _share_of_same(others[order[start:end]], own[order[start:end]], seed)
        for who, start, end in zip(people, bounds[:-1], bounds[1:], strict=True)
    }


def band(estimate: Estimate, project_mean: float | None) -> Band:
    """A word for an annotator's own page. ``estimate``: a share of agreement; ``project_mean``: the same over all.

    "in line" where the interval reaches the project's mean, "a little apart" where it ends less than ``APART`` below
    it, "often apart" beyond. Never a rank, and nothing for those who agree more than most.
    """
    if estimate.high is None or project_mean is None:
        return "too few"
    if estimate.high >= project_mean:
        return "in line"
    return "a little apart" if estimate.high >= project_mean - APART else "often apart"


def self_agreement(votes: VoteColumns | Iterable[Vote]) -> dict[int, SelfAgreement]:
    """Of annotators who judged a pair twice, in the order of the votes; a third time is left out."""
    columns = as_columns(votes)
    first, second = _repeats(columns)
    same = columns.choice[first] == columns.choice[second]
    kept = columns.a_left[first] == columns.a_left[second]
    decided = columns.decided[first] & columns.decided[second] & ~kept
    sided = columns.voted_left[first] == columns.voted_left[second]
    found = {}
    for who in np.unique(columns.annotator_id[first]).tolist():
        own = columns.annotator_id[first] == who
        found[who] = SelfAgreement(
            overall=_share(same, own),
            sides_kept=_share(same, own & kept),
            sides_changed=_share(same, own & ~kept),
            followed_side=_share(sided, own & decided),
        )
    return found


def _share(hits: Bools, of: Bools) -> Share:
    return wilson(int((hits & of).sum()), int(of.sum()))


def _keys(columns: VoteColumns) -> Ints:
    """A number for each pair with each annotator."""
    _, pair = np.unique(columns.pair_id, return_inverse=True)
    people, person = np.unique(columns.annotator_id, return_inverse=True)
    return np.asarray(pair * max(len(people), 1) + person, np.int64)


def _shared(columns: VoteColumns, asked: Ints | int | None) -> VoteColumns:
    """One judgement, the first, of each annotator on each pair; of each pair the first ``asked``; two at least."""
    _, first = np.unique(_keys(columns), return_index=True)
    first = np.sort(first)
    once = columns.take(first)
    if asked is not None:
        once = once.take(_turn(once.pair_id) < np.broadcast_to(asked, len(columns))[first])
    _, pair, times = np.unique(once.pair_id, return_inverse=True, return_counts=True)
    return once.take(times[pair] > 1)


def _turn(pair_id: Ints) -> Ints:
    """Of each judgement, how many of its pair stand before it."""
    order = np.argsort(pair_id, kind="stable")
    _, starts, times = np.unique(pair_id[order], return_index=True, return_counts=True)
    turn = np.empty(len(pair_id), np.int64)
    turn[order] = np.arange(len(pair_id)) - np.repeat(starts, times)
    return turn


def _repeats(columns: VoteColumns) -> tuple[Ints, Ints]:
    """Places of the first and of the second judgement of one annotator on one pair."""
    keys = _keys(columns)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, np.int64)
    again = starts[starts + 1 < len(ordered)]
    again = again[ordered[again] == ordered[again + 1]]
    return order[again], order[again + 1]


def _counts(columns: VoteColumns) -> Floats:
    """Judgements of each kind, a row a pair."""
    pairs, pair = np.unique(columns.pair_id, return_inverse=True)
    cells = np.bincount(pair * _KINDS + columns.choice, minlength=len(pairs) * _KINDS)
    return cells.reshape(-1, _KINDS).astype(np.float64)


def _agreement(counts: Floats, seed: int) -> Agreement:
    compared = counts.copy()
    compared[:, BOTH_BAD] = 0
    compared = compared[compared.sum(axis=1) > 1]
    return Agreement(
        alpha=_estimate(_alpha_parts(counts, NOMINAL), partial(_alpha, NOMINAL), seed),
        alpha_interval=_estimate(_alpha_parts(compared, INTERVAL), partial(_alpha, INTERVAL), seed),
        equal=_estimate(_share_parts(counts, EQUAL), _ratio, seed),
        half=_estimate(_share_parts(compared, HALF), _ratio, seed),
    )


def _alpha_parts(counts: Floats, distance: Floats) -> Floats:
    """Of each pair its observed distance and its judgements of each kind, as they enter the coincidences."""
    observed = np.einsum("uk,kl,ul->u", counts, distance, counts) / (counts.sum(axis=1) - 1)
    return np.column_stack([observed, counts])


def _alpha(distance: Floats, sums: Floats) -> Floats:
    """1 - observed / expected distance, of sums of parts in the last axis; not a number where all chose the same."""
    observed, values = sums[..., 0], sums[..., 1:]
    expected = np.einsum("...k,kl,...l->...", values, distance, values)
    nothing = np.full(observed.shape, np.nan)
    return np.asarray(1 - np.divide((values.sum(axis=-1) - 1) * observed, expected, out=nothing, where=expected > 0))


def _share_parts(counts: Floats, agree: Floats) -> Floats:
    """Of each pair how much its pairs of judgements agree, and how many these are."""
    judged = counts.sum(axis=1)
    together = np.einsum("uk,kl,ul->u", counts, agree, counts) - counts @ np.diag(agree)
    return np.column_stack([together, judged * (judged - 1)])


def _share_of_same(others: Floats, own: Floats, seed: int) -> Estimate:
    same = (own * others).sum(axis=1) / others.sum(axis=1)
    return _estimate(np.column_stack([same, np.ones(len(same))]), _ratio, seed)


def _ratio(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _estimate(parts: Floats, statistic: Callable[[Floats], Floats], seed: int) -> Estimate:
    pairs = len(parts)
    if pairs < LEAST_PAIRS:
        few = gettext_noop("%(pairs)d shared pairs so far; a figure needs %(least)d.")
        return Estimate(None, None, None, pairs, few)
    value = float(statistic(parts.sum(axis=0)))
    if np.isnan(value):
        same = gettext_noop("All judgements of the %(pairs)d shared pairs are the same: chance cannot be told apart.")
        return Estimate(None, None, None, pairs, same)
    kinds, times = np.unique(parts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(pairs, times / pairs, size=REPLICATES)
    low, high = np.nanquantile(statistic(draws @ kinds), [0.025, 0.975])
    return Estimate(value, float(low), float(high), pairs)
