"""A taste that is known, and people who have it, more or less. Pure.

The taste is for plain words: the fewer characters a word has, the better. It is a function of the text alone, grades
any two responses, and a response gains nothing by being longer or shorter. What stands between two spaces is a word,
so that a response of one endless number, which small models write now and then, is a bad one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

LONGEST_WORD = 20  # characters that count of a word, so that one endless word does not decide a mean

Side = Literal["left", "right"]


def plainness(text: str) -> float:
    """Characters a word, negated, so that more is better. No words at all are as bad as the longest ones."""
    words = text.split()
    if not words:
        return -float(LONGEST_WORD)
    return -sum(min(len(word), LONGEST_WORD) for word in words) / len(words)


@dataclass(frozen=True)
class Annotator:
    """Votes left without reading in ``left_habit`` of the pairs. Of the others the plainer response has the vote, and
    the other one with the probability ``label_noise``, however plain or clear the difference. Equals are a toss."""

    name: str
    label_noise: float
    left_habit: float = 0.0

    def vote(self, left: str, right: str, chance: random.Random) -> Side:
        """Two numbers of ``chance`` a vote, whatever is voted, so that the votes of two projects stay in step."""
        habit, slip = chance.random(), chance.random()
        if habit < self.left_habit:
            return "left"
        difference = plainness(left) - plainness(right)
        if difference == 0:
            return "left" if slip < 0.5 else "right"
        return "left" if (difference > 0) != (slip < self.label_noise) else "right"


def annotators(label_noise: float) -> tuple[Annotator, Annotator, Annotator]:
    return (
        Annotator("ada", label_noise),
        Annotator("ben", label_noise),
        Annotator("leo", label_noise, left_habit=0.35),
    )
