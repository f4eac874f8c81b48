"""An anytime-valid test of votes, candidate against current policy, and the interval that goes with it. Pure.

Each vote is one pair's: 1 for the candidate, 0 for the current policy, 1/2 for a tie or both bad. The test plays
against the claim that a vote is worth m on average, whatever came before it: it bets a share c of its wealth on the
candidate, so that a vote x multiplies the wealth by 1 + c (x / m - 1). While the claim holds, or the mean is lower, no
such bet gains on average: the wealth is a non-negative supermartingale that begins at 1, and the probability that it
ever reaches 1 / alpha is at most alpha (Ville 1939). So it may be looked at after every vote, and asking may end
whenever somebody likes. That is testing by betting for bounded means (Waudby-Smith and Ramdas 2024, "Estimating means
of bounded random variables by betting", JRSS B 86; Shafer 2021, "Testing by betting").

The wealth here is that of a portfolio: fixed bets, each begun with a share of the stake, so no bet looks ahead. With
fixed bets it depends on the counts alone, not on the order of the votes. A tie at m = 1/2 multiplies by 1: it costs
time, and says nothing for either side.

For the candidate the claim is "the mean is at most 1/2", for the current policy the mirrored one, each tested at
``ALPHA``. An equal candidate is therefore called better with a probability of at most 5 %, and worse with at most 5 %.
The interval has those values of the mean that neither of its two tests has refused: of level 1 - 2 ALPHA = 90 %, at all
times at once, and it leaves 1/2 in the moment in which the test ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ALPHA = 0.05
# Share of the wealth that a bet stakes, and share of the stake it begins with. At m = 1/2 a bet of c is the best there
# is where decided votes are for the candidate with probability (1 + c) / 2: those between are for 55 to 70 %, the first
# keeps a long test of a small difference alive, the last ends a short one of a large one.
BETS: tuple[tuple[float, float], ...] = (
    (0.05, 0.08),
    (0.1, 0.17),
    (0.15, 0.17),
    (0.2, 0.17),
    (0.3, 0.17),
    (0.4, 0.16),
    (0.6, 0.08),
)
MOST_POINTS = 60
BISECTIONS = 40
Side = Literal["", "candidate", "current"]


@dataclass(frozen=True)
class Tally:
    """How many votes were for which side."""

    candidate: int = 0
    current: int = 0
    ties: int = 0

    @property
    def votes(self) -> int:
        return self.candidate + self.current + self.ties

    @property
    def win_rate(self) -> float | None:
        """A tie is half a vote for each."""
        return (self.candidate + self.ties / 2) / self.votes if self.votes else None

    @property
    def mirrored(self) -> Tally:
        return Tally(self.current, self.candidate, self.ties)

    def plus(self, vote: float) -> Tally:
        if vote == 0.5:
            return Tally(self.candidate, self.current, self.ties + 1)
        return Tally(self.candidate + (vote == 1.0), self.current + (vote == 0.0), self.ties)


@dataclass(frozen=True)
class Point:
    """How things stood after so many votes; ``evidence`` is the wealth's natural logarithm."""

    votes: int
    win_rate: float
    low: float
    high: float
    evidence: float


@dataclass(frozen=True)
class Outcome:
    """Which side the votes have shown to be better, after how many, and how all of them stand.

    What was shown once stays shown: the bound holds for the first time that the wealth gets there.
    """

    better: Side
    at: int | None
    tally: Tally
    series: list[Point]

    def as_json(self) -> dict[str, Any]:
        return {
            "better": self.better,
            "at": self.at,
            "votes": self.tally.votes,
            "for_candidate": self.tally.candidate,
            "for_current": self.tally.current,
            "ties": self.tally.ties,
            "win_rate": self.tally.win_rate,
            "interval": [self.series[-1].low, self.series[-1].high] if self.series else None,
            "series": [vars(point) for point in self.series],
        }


def log_wealth(tally: Tally, mean: float = 0.5) -> float:
    """The logarithm of the portfolio's wealth after these votes, betting that their mean is above ``mean``."""
    parts = []
    for bet, share in BETS:
        won, tied, lost = 1 + bet * (1 / mean - 1), 1 + bet * (0.5 / mean - 1), 1 - bet
        grown = tally.candidate * math.log(won) + tally.ties * math.log(tied) + tally.current * math.log(lost)
        parts.append(math.log(share) + grown)
    highest = max(parts)
    return highest + math.log(sum(math.exp(part - highest) for part in parts))


def threshold(alpha: float = ALPHA) -> float:
    """The logarithm of the wealth at which a claim is refused."""
    return math.log(1 / alpha)


def leader(tally: Tally, alpha: float = ALPHA) -> Side:
    """The side that these votes, looked at now, show to be better; empty while they show neither."""
    if tally.candidate > tally.current:
        return "candidate" if log_wealth(tally) >= threshold(alpha) else ""
    return "current" if tally.current and log_wealth(tally.mirrored) >= threshold(alpha) else ""


def interval(tally: Tally, alpha: float = ALPHA) -> tuple[float, float]:
    """The means that neither test refuses at these counts: of a sequence that holds for all times with 1 - 2 alpha."""
    return _lower(tally, alpha), 1 - _lower(tally.mirrored, alpha)


def _lower(tally: Tally, alpha: float) -> float:
    """The mean below which "at most this" is refused. The wealth falls with it, so halving finds it."""
    if not tally.votes:
        return 0.0
    return _where_it_ends(lambda mean: log_wealth(tally, mean) >= threshold(alpha))


def _where_it_ends(refused: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refused(middle) else (low, middle)
    return low


def read_votes(votes: Sequence[float], alpha: float = ALPHA) -> Outcome:
    """Read the votes in the order in which they were given, looking after each. O(votes · bets)."""
    tallies = [Tally()]
    better: Side = ""
    at = None
    for number, vote in enumerate(votes, start=1):
        tallies.append(tallies[-1].plus(vote))
        if not better and (better := leader(tallies[-1], alpha)):
            at = number
    return Outcome(better, at, tallies[-1], [_point(tallies[number], alpha) for number in _shown(len(votes), at)])


def _shown(votes: int, at: int | None) -> list[int]:
    """Which moments a plot shows: evenly many, the last, and the one in which something was found."""
    every = max(1, math.ceil(votes / MOST_POINTS))
    return sorted({*range(votes, 0, -every), *([at] if at else [])})


def _point(tally: Tally, alpha: float) -> Point:
    low, high = interval(tally, alpha)
    rate = tally.win_rate
    assert rate is not None
    return Point(tally.votes, round(rate, 4), round(low, 4), round(high, 4), round(log_wealth(tally), 3))


def votes_to_go(tally: Tally, alpha: float = ALPHA) -> int | None:
    """About how many votes more would show what these suggest, if they went on like this; ``None``: nothing to go by.

    The best bet's wealth grows by its expected logarithm a vote. An estimate of an estimate: to be rounded.
    """
    ahead = tally if tally.candidate >= tally.current else tally.mirrored
    won, lost = (ahead.candidate / ahead.votes, ahead.current / ahead.votes) if ahead.votes else (0.0, 0.0)
    growth = [(won * math.log1p(bet) + lost * math.log1p(-bet), share) for bet, share in BETS]
    needed = [(threshold(alpha) - math.log(share)) / rate for rate, share in growth if rate > 0]
    return max(1, math.ceil(min(needed) - tally.votes)) if needed else None
