"""Judgements as columns: what the statistics of annotation read. Knows numpy and no database.

For background tasks only; the web process imports no numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Choice = Literal["a", "b", "tie", "both_bad"]
Side = Literal["a", "b"]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "both_bad")
A, B, TIE, BOTH_BAD = range(4)
_CODES = {word: code for code, word in enumerate(CHOICES)}


@dataclass(frozen=True, slots=True)
class Vote:
    """One annotator's current judgement of one pair; ``shown_left`` is the response that stood on the left."""

    pair_id: int
    annotator_id: int
    choice: Choice
    shown_left: Side
    is_strong: bool = False


@dataclass(frozen=True)
class VoteColumns:
    """The same votes, one array a field, all of one length. ``choice`` holds places in ``CHOICES``.

    Raises ``ValueError`` where lengths differ or a code is none of a choice.
    """

    pair_id: Ints
    annotator_id: Ints
    choice: Ints
    a_left: Bools
    is_strong: Bools

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in vars(self).items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The columns of votes must have one length, and they have {lengths}.")
        if len(self.choice) and not 0 <= self.choice.min() <= self.choice.max() < len(CHOICES):
            raise ValueError(f"A choice is a place in {CHOICES}, and these go from {self.choice.min()} to "
                             f"{self.choice.max()}.")  # fmt: skip

    def __len__(self) -> int:
        return len(self.pair_id)

    @property
    def decided(self) -> Bools:
        """Which votes are for one of the two responses."""
        return self.choice <= B

    @property
    def voted_left(self) -> Bools:
        """Of decided votes, which are for the response that stood on the left; of others without meaning."""
        return np.asarray((self.choice == A) == self.a_left)

    def take(self, places: Ints | Bools) -> VoteColumns:
        return VoteColumns(*(column[places] for column in vars(self).values()))


def columns(
    pair_ids: Sequence[int],
    annotator_ids: Sequence[int],
    choices: Sequence[str],
    shown_left: Sequence[str],
    is_strong: Sequence[bool] | None = None,
) -> VoteColumns:
    """Columns from the words of the database. Raises ``ValueError`` where a word is no choice or no side."""
    if foreign := {*choices} - _CODES.keys():
        raise ValueError(f"A choice is one of {', '.join(CHOICES)}, not {', '.join(map(repr, sorted(foreign)))}.")
    if foreign := {*shown_left} - {"a", "b"}:
        raise ValueError(f"The left response is a or b, not {', '.join(map(repr, sorted(foreign)))}.")
    return VoteColumns(
        np.asarray(pair_ids, np.int64),
        np.asarray(annotator_ids, np.int64),
        np.asarray([_CODES[word] for word in choices], np.int64),  # type: ignore[index]
        np.asarray([side == "a" for side in shown_left], np.bool_),
        np.zeros(len(choices), np.bool_) if is_strong is None else np.asarray(is_strong, np.bool_),
    )


def as_columns(votes: VoteColumns | Iterable[Vote]) -> VoteColumns:
    if isinstance(votes, VoteColumns):
        return votes
    rows = list(votes)
    return columns(
        [vote.pair_id for vote in rows],
        [vote.annotator_id for vote in rows],
        [vote.choice for vote in rows],
        [vote.shown_left for vote in rows],
        [vote.is_strong for vote in rows],
    )
