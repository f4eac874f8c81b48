"""What a project's judgements say of agreement, biases and people, as plain data. Pure; of columns, so with numpy.

For background tasks only. What is stored of a day (``QualityReport.data``) is what ``report`` returns; pages read it
and compute nothing. Second looks count for self-agreement alone. Pairs with a known answer test people: they were
chosen for being clear, and everybody answers them, so they say nothing of how far people agree on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from labeling import agreement, side_and_length
from labeling.agreement import Agreement, Estimate, SelfAgreement
from labeling.posterior import Annotator, Fit
from labeling.quality import (
    LEAST_VOTES,
    Share,
    Signal,
    Timing,
    gold_signal,
    length_signal,
    pace_signals,
    reliability_signal,
    side_signal,
    side_verdict,
    speed_signal,
    streak_signal,
    wilson,
)
from labeling.votes import CHOICES, TIE, A, Bools, Floats, Ints, VoteColumns

# Signals look at what somebody did lately: whoever reads more slowly since a talk is not followed for ever.
RECENT = 1000
NOT_GOLD = -1


@dataclass(frozen=True)
class JudgementColumns:
    """Current judgements of a project in the order in which each was first given, one array a field.

    ``asked``: judgements wanted of the pair when it was made, two at least. ``gold``: the known answer as a place in
    ``CHOICES``, or ``NOT_GOLD``. ``as_gold``: judged when the pair was served for its known answer. ``a_doublings``:
    log2 of how many times as long response A is as B, in characters. ``words``: of both responses together.
    """

    votes: VoteColumns
    is_repeat: Bools
    seconds: Floats
    asked: Ints
    gold: Ints
    as_gold: Bools
    is_control: Bools
    a_doublings: Floats
    words: Ints

    def __len__(self) -> int:
        return len(self.votes)

    def take(self, places: Ints | Bools) -> JudgementColumns:
        columns = {name: column[places] for name, column in vars(self).items() if name != "votes"}
        return replace(self, votes=self.votes.take(places), **columns)

    @property
    def first_looks(self) -> JudgementColumns:
        return self.take(~self.is_repeat)

    @property
    def ordinary(self) -> JudgementColumns:
        """Those of pairs without a known answer, now or when they were judged."""
        return self.take((self.gold == NOT_GOLD) & ~self.as_gold)


def report(judgements: JudgementColumns, fitted: Fit) -> dict[str, Any]:
    """Everything the pages show of the quality of these judgements."""
    counted = judgements.first_looks
    ordinary = counted.ordinary
    together = agreement.overall(ordinary.votes, asked=ordinary.asked)
    again = agreement.self_agreement(_first_looks_first(judgements))
    return {
        "judgements": len(counted),
        "pairs": len(np.unique(counted.votes.pair_id)),
        "median_seconds": _median(counted.seconds),
        "agreement": {name: _estimate(one) for name, one in vars(together).items()},
        "self_agreement": asdict(_sum(one.overall for one in again.values())),
        "followed_side": asdict(_sum(one.followed_side for one in again.values())),
        **_shares(counted),
        "longer_won": asdict(longer_won(ordinary)),
        "pulls": side_and_length.pulls(ordinary.votes, ordinary.a_doublings),
        "signals": [asdict(signal) for signal in _project_signals(counted)],
        "arms": {
            "ordered": _arm(ordinary.take(~ordinary.is_control)),
            "control": _arm(ordinary.take(ordinary.is_control)),
        },
        "annotators": _annotators(counted, fitted, together, again),
    }


def longer_won(counted: JudgementColumns) -> Share:
    """How often the longer response won, of decided judgements on pairs whose lengths differ."""
    compared = counted.votes.decided & (counted.a_doublings != 0)
    won = (counted.votes.choice == A) == (counted.a_doublings > 0)
    return wilson(int((won & compared).sum()), int(compared.sum()))


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return asdict(estimate) | {"figures": estimate.figures}


def _shares(counted: JudgementColumns) -> dict[str, Any]:
    votes = counted.votes
    left, verdict = side_verdict(*_left(votes))
    return {
        "left": asdict(left),
        "left_verdict": verdict,
        "ties": asdict(wilson(int((votes.choice == TIE).sum()), len(votes))),
        "gold": asdict(_gold(counted)),
    }


def _left(votes: VoteColumns) -> tuple[int, int]:
    """Decided votes for the left response, and decided votes."""
    return int((votes.voted_left & votes.decided).sum()), int(votes.decided.sum())


def _gold(counted: JudgementColumns) -> Share:
    """Of what was judged before a pair was made gold nothing: its answer may have been chosen by those judgements."""
    known = counted.as_gold & (counted.gold != NOT_GOLD)
    return wilson(int(((counted.votes.choice == counted.gold) & known).sum()), int(known.sum()))


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None


def _sum(shares: Iterator[Share]) -> Share:
    hits, of = 0.0, 0.0
    for share in shares:
        hits, of = hits + share.hits, of + share.of
    return wilson(hits, of)


def _first_looks_first(judgements: JudgementColumns) -> VoteColumns:
    return judgements.votes.take(np.argsort(judgements.is_repeat, kind="stable"))


def _arm(counted: JudgementColumns) -> dict[str, Any]:
    """One order of serving: conflicts are pairs with several judgements that are not all the same."""
    pair_ids, pair = np.unique(counted.votes.pair_id, return_inverse=True)
    times = np.bincount(pair, minlength=len(pair_ids))
    kinds = np.bincount(np.unique(pair * len(CHOICES) + counted.votes.choice) // len(CHOICES), minlength=len(pair_ids))
    return {
        "judgements": len(counted),
        "pairs": len(pair_ids),
        "ties": asdict(wilson(int((counted.votes.choice == TIE).sum()), len(counted))),
        "conflicts": asdict(wilson(int((kinds > 1).sum()), int((times > 1).sum()))),
        "median_seconds": _median(counted.seconds),
    }


def _project_signals(counted: JudgementColumns) -> list[Signal]:
    longer = longer_won(counted.ordinary)
    found = [side_signal(*_left(counted.votes)), length_signal(int(longer.hits), int(longer.of))]
    return [signal for signal in found if signal]


# --- People ----------------------------------------------------------------------------------------------------------


def _annotators(
    counted: JudgementColumns, fitted: Fit, together: Agreement, again: Mapping[int, SelfAgreement]
) -> dict[str, Any]:
    ordinary = counted.ordinary
    own_agreement = agreement.by_annotator(ordinary.votes, asked=ordinary.asked)
    nothing = agreement.overall([]).equal
    mean = together.equal.value
    of_people = dict(_by_person(counted))
    signals = person_signals(of_people, fitted)
    found = {}
    for who, own in of_people.items():
        agrees = own_agreement.get(who, nothing)
        found[str(who)] = {
            "judgements": len(own),
            "median_seconds": _median(own.seconds),
            "agreement": _estimate(agrees),
            "band": agreement.band(agrees, mean),
            "self_agreement": _self(again.get(who)),
            **_model(fitted.annotator(who)),
            **_shares(own),
            "signals": [asdict(signal) for signal in signals[who]],
        }
    return found


def person_signals(of_people: Mapping[int, JudgementColumns], fitted: Fit) -> dict[int, list[Signal]]:
    """Of each person's newest judgements, what a person should look at; gold answers are rare and all count, and what
    the label model knows is of all.
    """
    recent = {who: own.take(np.arange(max(0, len(own) - RECENT), len(own))) for who, own in of_people.items()}
    pace = pace_signals({who: own.seconds.tolist() for who, own in recent.items()})
    found = {}
    for who, own in recent.items():
        gold = _gold(of_people[who])
        of_all = [gold_signal(int(gold.hits), int(gold.of)), _reliability_signal(fitted.annotator(who))]
        signals = [pace.get(who), *of_all, *_recent_signals(own)]
        found[who] = [signal for signal in signals if signal]
    return found


def _reliability_signal(one: Annotator) -> Signal | None:
    if one.shared < agreement.LEAST_PAIRS:
        return None
    return reliability_signal(one.reliability, one.reliability_low, one.reliability_high, one.shared)


def _recent_signals(own: JudgementColumns) -> list[Signal | None]:
    votes = own.votes
    pairs = zip(own.seconds.tolist(), own.words.tolist(), strict=True)
    sides = np.where(votes.voted_left[votes.decided], "left", "right").tolist()
    return [
        side_signal(*_left(votes)),
        speed_signal([Timing(seconds, words) for seconds, words in pairs]),
        streak_signal(sides, "side"),
        streak_signal([CHOICES[choice] for choice in votes.choice.tolist()], "choice"),
    ]


def _by_person(counted: JudgementColumns) -> Iterator[tuple[int, JudgementColumns]]:
    people, person = np.unique(counted.votes.annotator_id, return_inverse=True)
    order = np.argsort(person, kind="stable")
    bounds = np.searchsorted(person[order], np.arange(len(people) + 1))
    for who, start, end in zip(people.tolist(), bounds[:-1], bounds[1:], strict=True):
        yield who, counted.take(order[start:end])


def _self(own: SelfAgreement | None) -> dict[str, Any]:
    nothing = wilson(0, 0)
    shares = own or SelfAgreement(nothing, nothing, nothing, nothing)
    return {name: asdict(getattr(shares, name)) for name in ("overall", "sides_changed", "followed_side")}


def _model(annotator: Annotator) -> dict[str, Any]:
    """The label model's reading of a person; none of it where no shared or decided pair could teach it."""
    is_known = annotator.shared >= agreement.LEAST_PAIRS
    reliability = {
        "value": annotator.reliability,
        "low": annotator.reliability_low,
        "high": annotator.reliability_high,
    }
    pull = {"value": annotator.left, "low": annotator.left_low, "high": annotator.left_high}
    return {
        "shared": annotator.shared,
        "reliability": reliability if is_known else None,
        "pull": pull if annotator.decided >= LEAST_VOTES else None,
    }
