"""How far the side and the length pull at the choices, each with the other taken out. Pure; of columns, so with numpy.

logit P(the left response wins | decided) = side + length · log2(characters left / characters right)

σ(side) is how often the left side wins where both are equally long, σ(length) how often a response wins that is twice
as long as the other, wherever it stands. Sides are shuffled, so the raw share of the left side is right as well; the
raw share of the longer response mixes a hair longer with ten times as long, which the logarithm keeps apart. What the
length earns because longer responses say more stays in it: it is what the labels reward, not what is unfair.

Intervals hold for votes that depend on each other: those on one pair are of the same texts, so their scores are summed
before they are squared (Liang and Zeger 1986). That variance is too small where nearly all votes are the same; the
larger of it and the model's own is taken. A wide Gaussian prior on both keeps the fit finite where one side or one
length wins always.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from labeling.logistic_annotator import sigmoid
from labeling.quality import LEAST_VOTES, Z95, Share, corrected_share, gettext_noop
from labeling.votes import Floats, Ints, VoteColumns

PRIOR_SD = 2.5  # logits: two thirds of the prior between 8 and 92 %
MOST_DOUBLINGS = 3.0  # a response that is eight times as long is simply long: a few empty ones must not bend the line
NEWTON_STEPS = 25
STEPS = (0.0, 0.32, 1.0, 2.0)  # doublings: a quarter longer, twice, four times as long


@dataclass(frozen=True)
class Pull:
    """A share with its 95 % interval over ``of`` decided votes; ``None`` where these are too few, with the reason."""

    value: float | None
    low: float | None
    high: float | None
    of: int
    template: str = ""

    @property
    def figures(self) -> dict[str, int]:
        return {"of": self.of, "least": LEAST_VOTES}


@dataclass(frozen=True)
class Decided:
    """Decided votes: whether the left response won, how many doublings it is longer, and of which pair each is."""

    left_won: Floats
    doublings: Floats
    pair: Ints

    @classmethod
    def of(cls, votes: VoteColumns, a_doublings: Floats) -> Decided:
        """``a_doublings``: log2 of how many times as long A is as B, a vote each."""
        which = votes.decided
        chosen = votes.take(which)
        doublings = np.where(chosen.a_left, a_doublings[which], -a_doublings[which])
        return cls(chosen.voted_left.astype(np.float64), doublings, chosen.pair_id)

    def __len__(self) -> int:
        return len(self.left_won)


def pulls(votes: VoteColumns, a_doublings: Floats) -> dict[str, Any]:
    """As plain data: both pulls, and how often the longer response wins with the sides taken out, in all and by step.

    ``by_length``: of pairs one of whose responses is longer by more than each of ``STEPS`` and not by the next.
    """
    decided = Decided.of(votes, a_doublings)
    side, length = _fitted(decided)
    steps = zip(STEPS, (*STEPS[1:], np.inf), strict=True)
    return {
        "side": _stored(side),
        "length": _stored(length),
        "longer": asdict(longer_wins(decided)),
        "by_length": [asdict(longer_wins(decided, above, up_to)) for above, up_to in steps],
    }


def longer_wins(decided: Decided, above: float = 0.0, up_to: float = np.inf) -> Share:
    """How often the longer response wins, as the mean over both sides: what pulls at a side cancels."""
    by = np.abs(decided.doublings)
    inside = (by > above) & (by <= up_to)
    is_left = decided.doublings > 0
    won = np.where(is_left, decided.left_won, 1 - decided.left_won)
    counts = [(int(won[inside & side].sum()), int((inside & side).sum())) for side in (is_left, ~is_left)]
    return corrected_share(*counts[0], *counts[1])


def fit(decided: Decided) -> tuple[Floats, Floats]:
    """The two coefficients (logits: of the side, of a doubling) and their standard errors."""
    x = _design(decided)
    at = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        step = np.linalg.solve(_information(x, at), x.T @ (decided.left_won - sigmoid(x @ at)) - at / PRIOR_SD**2)
        at = at + step
        if np.abs(step).max() < 1e-9:
            break
    return at, _errors(decided, x, at)


def _fitted(decided: Decided) -> tuple[Pull, Pull]:
    of, unequal = len(decided), int((decided.doublings != 0).sum())
    few = gettext_noop("%(of)d decided judgements so far; a figure needs %(least)d.")
    if of < LEAST_VOTES:
        return Pull(None, None, None, of, few), Pull(None, None, None, unequal, few)
    at, errors = fit(decided)
    low, high = sigmoid(at - Z95 * errors), sigmoid(at + Z95 * errors)
    side, length = (
        Pull(float(value), float(least), float(most), count)
        for value, least, most, count in zip(sigmoid(at), low, high, (of, unequal), strict=True)
    )
    if unequal < LEAST_VOTES:
        length = Pull(None, None, None, unequal, few)
    return side, length


def _design(decided: Decided) -> Floats:
    doublings = np.clip(decided.doublings, -MOST_DOUBLINGS, MOST_DOUBLINGS)
    return np.column_stack([np.ones(len(decided)), doublings])


def _information(x: Floats, at: Floats) -> Floats:
    p = sigmoid(x @ at)
    return np.asarray((x * (p * (1 - p))[:, None]).T @ x + np.eye(2) / PRIOR_SD**2)


def _errors(decided: Decided, x: Floats, at: Floats) -> Floats:
    inverse = np.linalg.inv(_information(x, at))
    _, place = np.unique(decided.pair, return_inverse=True)
    residual = decided.left_won - sigmoid(x @ at)
    scores = np.column_stack([np.bincount(place, residual * column) for column in x.T])
    pairs = len(scores)
    between = inverse @ (scores.T @ scores) @ inverse * (pairs / max(pairs - 1, 1))
    return np.sqrt(np.maximum(np.diag(between), np.diag(inverse)))


def _stored(pull: Pull) -> dict[str, Any]:
    return asdict(pull) | {"figures": pull.figures}
