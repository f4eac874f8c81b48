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

Ties are half a win. A wide Gaussian prior keeps the fit finite where one side, or one length, always wins. Lengths are
rounded to a tenth of a doubling, so that votes become a small table however many there are.

The interval has those identities that a score test does not refuse: with ``length`` fitted under each of them, it
compares the votes' surplus over what that identity has them be with the information in them (less what finding out the
length costs). Unlike an estimate and its error it does not fail where nearly all votes are for one side. It may be
looked at after every vote, as the sequential test may: a score, in the time that is measured in information, moves like
a Brownian motion, whatever else is estimated beside it (Scharfstein, Tsiatis and Robins 1997, JASA 92), and against a
Brownian motion S the portfolio of the sequential test has the wealth of sum share · exp(effect · S - effect² ·
information / 2), a martingale, which reaches 1 / alpha with a probability of at most alpha (Robbins 1970; as asymptotic
confidence sequences Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, Annals of Statistics 52). That holds for many
votes; ``LEAST_VOTES`` is the fewest for which an interval is given.

Score and information are both divided by how much more the votes vary than the model has it: less than 1 with ties,
which vary less than votes do, and more than 1 where votes on one prompt depend on each other; for that, scores are
summed by prompt before they are squared (Liang and Zeger 1986).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training.sequential import ALPHA, BETS, threshold

LEAST_VOTES = 20
PRIOR_SD = 2.5  # logits: two thirds of the prior between 8 and 92 %
MOST_DOUBLINGS = 3.0
NEWTON_STEPS = 50
SMALL_STEP = 1e-4  # the step after it would be its square
BISECTIONS = 14  # to a thousandth of a logit
MOST_STEP = 2.0  # logits: Newton's method does not run away from a few extreme votes
PER_DOUBLING = 10  # steps that a length is rounded to
MOST_IDENTITY = 8.0  # logits: whatever is beyond is as good as always, or never
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
class Cell:
    """Votes that are alike: how many doublings the first response is longer, the number of votes, and their sum."""

    doublings: float
    is_compared: bool
    count: int
    won: float


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
    cells = tabled(votes) if compared else []
    identity, length = fit(cells)
    enough = len(compared) >= LEAST_VOTES
    return Controlled(
        value=sigmoid(identity) if compared else None,
        interval=_interval(cells, length, spread_of(votes, identity, length), alpha) if enough else None,
        longer_wins=sigmoid(length) if compared else None,
        doublings=mean,
        doublings_interval=(mean - Z95 * spread, mean + Z95 * spread) if enough else None,
        votes=len(compared),
        ordinary_votes=len(votes) - len(compared),
    )


def tabled(votes: Iterable[LengthVote]) -> list[Cell]:
    found: dict[tuple[int, bool], list[float]] = defaultdict(lambda: [0, 0.0])
    for vote in votes:
        cell = found[round(vote.doublings * PER_DOUBLING), vote.is_compared]
        cell[0] += 1
        cell[1] += vote.outcome
    return [
        Cell(steps / PER_DOUBLING, is_compared, int(count), won) for (steps, is_compared), (count, won) in found.items()
    ]


# Fitting


@dataclass(frozen=True)
class Slope:
    """Of the log-likelihood in identity and in length, and its curvature, which is the information."""

    identity: float
    length: float
    information: float
    shared: float
    of_length: float

    @property
    def efficient(self) -> float:
        """Information on identity, less what finding out the length costs."""
        return self.information - self.shared**2 / self.of_length


def slope(cells: Iterable[Cell], identity: float, length: float) -> Slope:
    """With the prior of length, without that of identity."""
    one, two = 0.0, -length / PRIOR_SD**2
    information, shared, of_length = 0.0, 0.0, 1 / PRIOR_SD**2
    for cell in cells:
        p = sigmoid(identity * cell.is_compared + length * cell.doublings)
        missed, weight = cell.won - cell.count * p, cell.count * p * (1 - p)
        one += missed * cell.is_compared
        two += missed * cell.doublings
        information += weight * cell.is_compared
        shared += weight * cell.is_compared * cell.doublings
        of_length += weight * cell.doublings**2
    return Slope(one, two, information, shared, of_length)


def fit(cells: Sequence[Cell]) -> tuple[float, float]:
    """Identity and length, in logits, by Newton's method."""
    identity = length = 0.0
    for _ in range(NEWTON_STEPS):
        at = slope(cells, identity, length)
        one, information = at.identity - identity / PRIOR_SD**2, at.information + 1 / PRIOR_SD**2
        whole = information * at.of_length - at.shared**2
        steps = (
            (at.of_length * one - at.shared * at.length) / whole,
            (information * at.length - at.shared * one) / whole,
        )
        brake = MOST_STEP / max(MOST_STEP, *map(abs, steps))
        identity, length = identity + brake * steps[0], length + brake * steps[1]
        if max(map(abs, steps)) < SMALL_STEP:
            break
    return identity, length


def _profiled(cells: Sequence[Cell], identity: float, length: float) -> Slope:
    """The slope in identity where length is the best one under it, looked for from the one given."""
    for _ in range(NEWTON_STEPS):
        at = slope(cells, identity, length)
        step = at.length / at.of_length
        length += max(-MOST_STEP, min(MOST_STEP, step))
        if abs(step) < SMALL_STEP:
            break
    return at


def spread_of(votes: Sequence[LengthVote], identity: float, length: float) -> float:
    """How much more the votes vary, as far as identity goes, than the model has it."""
    at = slope(tabled(votes), identity, length)
    by_prompt: dict[int, float] = defaultdict(float)
    for vote in votes:
        missed = vote.outcome - sigmoid(identity * vote.is_compared + length * vote.doublings)
        by_prompt[vote.prompt] += missed * (vote.is_compared - at.shared / at.of_length * vote.doublings)
    prompts = len(by_prompt)
    between = sum(pull * pull for pull in by_prompt.values()) * prompts / max(prompts - 1, 1)
    compared = [vote for vote in votes if vote.is_compared]
    decided = sum(vote.outcome != 0.5 for vote in compared)
    return max(between / at.efficient, (decided + 1) / (len(compared) + 1))


# The interval


def _interval(cells: Sequence[Cell], length: float, spread: float, alpha: float) -> tuple[float, float]:
    def is_too_low(identity: float) -> bool:
        at = _profiled(cells, identity, length)
        return is_refused(at.identity / spread, at.efficient / spread, alpha)

    def is_not_too_high(identity: float) -> bool:
        at = _profiled(cells, identity, length)
        return not is_refused(-at.identity / spread, at.efficient / spread, alpha)

    return sigmoid(_where_it_ends(is_too_low)), sigmoid(_where_it_ends(is_not_too_high))


def _where_it_ends(holds: Callable[[float], bool]) -> float:
    low, high = -MOST_IDENTITY, MOST_IDENTITY
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def is_refused(score: float, information: float, alpha: float = ALPHA) -> bool:
    """Whether what a score is of is refused, looked at whenever: by chance, and ever, with alpha at most."""
    parts = [share + effect * score - effect**2 * information / 2 for effect, share in EFFECTS]
    highest = max(parts)
    return highest + math.log(sum(math.exp(part - highest) for part in parts)) >= threshold(alpha)


def sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    grown = math.exp(x)
    return grown / (1 + grown)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; of one value the error is not known."""
    if not values:
        return 0.0, math.inf
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.inf
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
