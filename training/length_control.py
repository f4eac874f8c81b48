"""The win rate at equal length: what people's votes would be if no response were longer than the other. Pure.

logit P(the candidate's response wins) = identity + length · doublings

where ``doublings`` is log2(characters of the candidate's response / characters of the current policy's), cut at eight
times as long, as the quality page has it. σ(identity) is the win rate at equal length: the length-controlled win rate
of Dubois et al. 2024 ("Length-Controlled AlpacaEval", arXiv 2404.04475), whose third term, the difficulty of the
instruction, needs several judged models on each prompt and is left out. Stiennon et al. 2020 ("Learning to summarize
from human feedback", appendix F) control the length of their summaries by a logistic regression in the same way.

A candidate that is always longer leaves a comparison that cannot tell identity and length apart. So the length is
estimated from the project's ordinary votes as well: their two responses are one policy's, have no identity between
them, and enter as ``length · doublings`` alone. What the length earns because longer responses say more is part of it:
that is what "at equal length" takes out.

Ties are half a win, and vary less than a vote does: the model's own variance is taken down by their share. A wide
Gaussian prior keeps the fit finite where one side, or one length, always wins. Variances hold for votes that depend on
each other: scores are summed by prompt before they are squared (Liang and Zeger 1986), and the larger of that and the
model's own is taken.

The interval may be looked at after every vote, as the sequential test may. An efficient estimate, multiplied by its
information, moves like a Brownian motion in the time that is measured in information, whatever else is estimated beside
it (Scharfstein, Tsiatis and Robins 1997, JASA 92). Against a Brownian motion S the portfolio of the sequential test has
the wealth of sum share · exp(effect · S - effect² · information / 2), a martingale, and so reaches 1 / alpha with a
probability of at most alpha (Robbins 1970; as asymptotic confidence sequences Waudby-Smith, Arbour, Sinha, Kennedy and
Ramdas 2024, Annals of Statistics 52). It holds for many votes; ``LEAST_VOTES`` is the fewest for which an interval is
given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training.sequential import ALPHA, BETS, BISECTIONS, threshold

LEAST_VOTES = 20
PRIOR_SD = 2.5  # logits: two thirds of the prior between 8 and 92 %
MOST_DOUBLINGS = 3.0
NEWTON_STEPS = 50
MOST_STEP = 2.0  # logits: Newton's method does not run away from a few extreme votes
# The bets of the sequential test as effects: a bet of c is the best one where the logit is this.
EFFECTS = tuple((2 * math.atanh(bet), math.log(share)) for bet, share in BETS)
Z95 = 1.959964


@dataclass(frozen=True)
class LengthVote:
    """One vote: 1, 1/2 or 0 for the first response, how many doublings that is longer, and on which prompt.

    ``is_compared``: the first response is the candidate's. Of an ordinary vote both are one policy's.
    """

    outcome: float
    doublings: float
    prompt: int
    is_compared: bool


@dataclass(frozen=True)
class Controlled:
    """``value`` and its interval are win rates at equal length; the interval is ``None`` where votes are too few.

    ``longer_wins``: how often a response wins over an equal one that is half as long. ``doublings``: how much longer
    the candidate writes, on average over the compared pairs, with a 95 % interval.
    """

    value: float | None
    interval: tuple[float, float] | None
    longer_wins: float | None
    doublings: float
    doublings_interval: tuple[float, float] | None
    votes: int
    ordinary_votes: int

    @property
    def is_longer(self) -> bool:
        return self.doublings_interval is not None and self.doublings_interval[0] > 0

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {
            "interval": list(self.interval) if self.interval else None,
            "doublings_interval": list(self.doublings_interval) if self.doublings_interval else None,
        }


def doublings(first: int, second: int) -> float:
    """How many times over the first text is as long as the second, by characters; an empty one counts as one."""
    apart = math.log2(max(first, 1) / max(second, 1))
    return max(-MOST_DOUBLINGS, min(MOST_DOUBLINGS, apart))


def controlled(votes: Sequence[LengthVote], alpha: float = ALPHA) -> Controlled:
    """The win rate of the candidate at equal length, of its own votes and the ordinary ones together."""
    compared = [vote for vote in votes if vote.is_compared]
    mean, spread = _mean([vote.doublings for vote in compared])
    identity, length, variance = fit(votes) if compared else (0.0, 0.0, math.inf)
    enough = len(compared) >= LEAST_VOTES
    half = half_width(variance, alpha) if enough else math.inf
    return Controlled(
        value=sigmoid(identity) if compared else None,
        interval=(sigmoid(identity - half), sigmoid(identity + half)) if enough else None,
        longer_wins=sigmoid(length) if compared else None,
        doublings=mean,
        doublings_interval=(mean - Z95 * spread, mean + Z95 * spread) if enough else None,
        votes=len(compared),
        ordinary_votes=len(votes) - len(compared),
    )


def half_width(variance: float, alpha: float = ALPHA) -> float:
    """Half of the interval of an estimate with this variance. Whenever it is looked at, each side of it is left by the
    truth with a probability of about ``alpha`` at most."""
    information = 1 / variance
    low, high = 0.0, 1.0
    while _log_wealth(high * information, information) < threshold(alpha):
        high *= 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_short = _log_wealth(middle * information, information) < threshold(alpha)
        low, high = (middle, high) if is_short else (low, middle)
    return high


def _log_wealth(moved: float, information: float) -> float:
    parts = [share + effect * moved - effect**2 * information / 2 for effect, share in EFFECTS]
    highest = max(parts)
    return highest + math.log(sum(math.exp(part - highest) for part in parts))


def fit(votes: Sequence[LengthVote]) -> tuple[float, float, float]:
    """Identity and length, in logits, and the variance of identity."""
    identity = length = 0.0
    for _ in range(NEWTON_STEPS):
        slope, curve = _slope(votes, identity, length), _curve(votes, identity, length)
        step = _solved(curve, slope)
        brake = MOST_STEP / max(MOST_STEP, *map(abs, step))
        identity, length = identity + brake * step[0], length + brake * step[1]
        if max(map(abs, step)) < 1e-9:
            break
    return identity, length, _variance(votes, identity, length)


Two = tuple[float, float]
Curve = tuple[float, float, float]  # of a symmetric matrix: the first, both, the second


def _slope(votes: Iterable[LengthVote], identity: float, length: float) -> Two:
    one, two = -identity / PRIOR_SD**2, -length / PRIOR_SD**2
    for vote in votes:
        missed = vote.outcome - sigmoid(identity * vote.is_compared + length * vote.doublings)
        one += missed * vote.is_compared
        two += missed * vote.doublings
    return one, two


def _curve(votes: Iterable[LengthVote], identity: float, length: float) -> Curve:
    one, both, two = 1 / PRIOR_SD**2, 0.0, 1 / PRIOR_SD**2
    for vote in votes:
        p = sigmoid(identity * vote.is_compared + length * vote.doublings)
        weight = p * (1 - p)
        one += weight * vote.is_compared
        both += weight * vote.is_compared * vote.doublings
        two += weight * vote.doublings**2
    return one, both, two


def _solved(curve: Curve, slope: Two) -> Two:
    one, both, two = curve
    whole = one * two - both * both
    return (two * slope[0] - both * slope[1]) / whole, (one * slope[1] - both * slope[0]) / whole


def _variance(votes: Sequence[LengthVote], identity: float, length: float) -> float:
    """Of identity: the larger of the model's own, less what ties do not vary, and the one over prompts."""
    curve = _curve(votes, identity, length)
    row = _solved(curve, (1.0, 0.0))  # the first row of the inverse
    by_prompt: dict[int, float] = {}
    for vote in votes:
        missed = vote.outcome - sigmoid(identity * vote.is_compared + length * vote.doublings)
        pull = missed * (row[0] * vote.is_compared + row[1] * vote.doublings)
        by_prompt[vote.prompt] = by_prompt.get(vote.prompt, 0.0) + pull
    prompts = len(by_prompt)
    between = sum(pull * pull for pull in by_prompt.values()) * prompts / max(prompts - 1, 1)
    decided = sum(vote.outcome != 0.5 for vote in votes if vote.is_compared)
    share = (decided + 1) / (sum(vote.is_compared for vote in votes) + 1)
    return max(row[0] * share, between)


def sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    grown = math.exp(x)
    return grown / (1 + grown)


def _mean(values: Sequence[float]) -> Two:
    """The mean and its standard error; of one value the error is not known."""
    if not values:
        return 0.0, math.inf
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.inf
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
