"""Reads judgements and pairs from the database as columns, in a stream. For background tasks only (numpy)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from django.db.models import F, Min, Q, QuerySet, Value
from django.db.models.functions import Length, Replace

from labeling.models import Choice, Pair, Preference, Project, Slot
from labeling.posterior import ADJUDICATION_ERROR, GOLD_ERROR, Adjudication, Posterior
from labeling.quality import wilson
from labeling.quality_report import NOT_GOLD, JudgementColumns
from labeling.votes import CHOICES, Bools, Floats, Ints, VoteColumns

CHUNK = 5000
# Of a pair that was made before it was kept how many it was asked for: every shared pair was asked for so many.
LEAST_ASKED = 2
CODES = {choice: code for code, choice in enumerate(CHOICES)} | {"": NOT_GOLD}
VOTE_FIELDS = (
    *("pk", "pair_id", "annotator_id", "choice", "shown_left", "is_strong", "is_repeat", "seconds"),
    "slot__kind",
)
FIRST_FIELDS = ("pair_id", "annotator_id", "is_repeat")
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Moved:
    """A pair as it was read, and its new probability."""

    pair_id: int
    judgements: int
    p_a: float | None
    new_p_a: float | None


@dataclass(frozen=True)
class PairColumns:
    """Pairs, sorted by id, with what a measurement asks of them.

    ``gold`` and ``decided``: places in ``CHOICES`` or ``NOT_GOLD``. ``asked``, ``p_a`` and ``new_p_a``: nan where there
    is none.
    """

    pair_id: Ints
    judgements: Ints
    asked: Floats
    is_control: Bools
    is_retired: Bools
    gold: Ints
    decided: Ints
    p_a: Floats
    new_p_a: Floats
    a_doublings: Floats
    words: Ints

    @property
    def decisions(self) -> list[Adjudication]:
        """What reviewers decided of pairs that are not retired, and else the answers that are known."""
        is_decided = self.decided != NOT_GOLD
        choice = np.where(is_decided, self.decided, self.gold)
        error = np.where(is_decided, ADJUDICATION_ERROR, GOLD_ERROR)
        which = (choice != NOT_GOLD) & ~self.is_retired
        rows = zip(*(column[which].tolist() for column in (self.pair_id, choice, error)), strict=True)
        return [Adjudication(pair_id, CHOICES[code], wrong) for pair_id, code, wrong in rows]

    def with_p(self, found: Posterior) -> PairColumns:
        """The probabilities of ``found``; none for a pair that is not in it."""
        new = np.full(len(self.pair_id), np.nan)
        places, is_known = find(found.pair_ids, self.pair_id)
        new[is_known] = found.p[places[is_known]]
        return replace(self, new_p_a=new)

    def moved_by(self, least: float) -> list[Moved]:
        """Pairs whose probability moved by more than ``least``, came or went."""
        is_gone, was_none = np.isnan(self.new_p_a), np.isnan(self.p_a)
        distance = np.abs(np.nan_to_num(self.new_p_a) - np.nan_to_num(self.p_a))
        moved = (is_gone != was_none) | (distance > least)
        columns = (self.pair_id, self.judgements, self.p_a, self.new_p_a)
        rows = zip(*(column[moved].tolist() for column in columns), strict=True)
        return [Moved(pair_id, judgements, _or_none(p_a), _or_none(new)) for pair_id, judgements, p_a, new in rows]


def load_all(project: Project) -> tuple[JudgementColumns, PairColumns]:
    """The project's current judgements in the order in which each was first given, without those of retired pairs; and
    every pair that has a judgement, a decision or a probability.
    """
    numbers, votes, is_repeat, seconds, as_gold = _votes(
        Preference.objects.filter(project=project, is_current=True).order_by("pk")
    )
    touched = Q(judgements_count__gt=0) | Q(p_a__isnull=False) | ~Q(adjudicated_choice="")
    pairs = _pairs(Pair.objects.filter(touched, project=project).order_by("pk"))
    places, is_known = find(pairs.pair_id, votes.pair_id)
    kept = is_known & ~pairs.is_retired[places] if len(pairs.pair_id) else is_known
    place = places[kept]
    asked = np.nan_to_num(pairs.asked[place], nan=LEAST_ASKED).astype(np.int64)
    judgements = JudgementColumns(
        votes=votes.take(kept),
        is_repeat=is_repeat[kept],
        seconds=seconds[kept],
        asked=np.maximum(asked, LEAST_ASKED),
        gold=pairs.gold[place],
        as_gold=as_gold[kept],
        is_control=pairs.is_control[place],
        a_doublings=pairs.a_doublings[place],
        words=pairs.words[place],
    )
    return judgements.take(_by_first_version(project, numbers[kept], judgements)), pairs


def _by_first_version(project: Project, numbers: Ints, judgements: JudgementColumns) -> Ints:
    """The order in which people first said something of each pair: who looks again has not come later."""
    rows = Preference.objects.filter(project=project, is_current=False).order_by()
    changed = rows.values("pair_id", "annotator_id", "is_repeat").annotate(first=Min("pk"))
    first = {tuple(key): number for *key, number in changed.values_list(*FIRST_FIELDS, "first").iterator(CHUNK)}
    votes = judgements.votes
    keys = zip(votes.pair_id.tolist(), votes.annotator_id.tolist(), judgements.is_repeat.tolist(), strict=True)
    began = [first.get(key, number) for key, number in zip(keys, numbers.tolist(), strict=True)]
    return np.argsort(np.asarray(began, np.int64), kind="stable")


def load_of(pair_ids: Sequence[int]) -> tuple[VoteColumns, PairColumns]:
    """Everything that counts of a few pairs."""
    _, votes, *_ = _votes(Preference.objects.counted().filter(pair__in=pair_ids).order_by("pk"))
    return votes, _pairs(Pair.objects.filter(pk__in=pair_ids).order_by("pk"))


def load_criteria(project: Project) -> list[dict[str, Any]]:
    """Of each criterion of the project its ties, and how often it went with the choice where both were decided."""
    if not project.criteria:
        return []
    said: Counter[tuple[str, str]] = Counter()
    rows = Preference.objects.counted().filter(project=project).exclude(criteria={})
    for choice, criteria in rows.values_list("choice", "criteria").iterator(chunk_size=CHUNK):
        said.update((name, _relation(choice, own)) for name, own in criteria.items())
    return [_criterion(name, said) for name in project.criteria]


def _criterion(name: str, said: Counter[tuple[str, str]]) -> dict[str, Any]:
    with_it, against, ties = (said[name, relation] for relation in ("with", "against", "tie"))
    judged = with_it + against + ties + said[name, "undecided"]
    return {
        "name": name,
        "judged": judged,
        "agrees": asdict(wilson(with_it, with_it + against)),
        "ties": asdict(wilson(ties, judged)),
    }


def _relation(choice: str, own: str) -> str:
    if own == Choice.TIE:
        return "tie"
    if choice not in (Choice.A, Choice.B):
        return "undecided"
    return "with" if own == choice else "against"


def find(known: Ints, wanted: Ints) -> tuple[Ints, Bools]:
    """Of each wanted id its place among the sorted known ones, and whether it is one of them."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return places, known[places] == wanted


def _votes(rows: QuerySet[Preference]) -> tuple[Ints, VoteColumns, Bools, Floats, Bools]:
    pk, pair, annotator, choice, left, strong, repeat, seconds, as_gold = _columns(
        rows.values_list(*VOTE_FIELDS).iterator(chunk_size=CHUNK),
        (np.int64, np.int64, np.int64, _code, _is_a, np.bool_, np.bool_, np.float64, _is_gold),
    )
    return pk, VoteColumns(pair, annotator, choice, left, strong), repeat, seconds, as_gold


def _pairs(rows: QuerySet[Pair]) -> PairColumns:
    """Lengths are counted by the database: the texts themselves stay there."""
    lengths = {
        "a_length": Length("response_a__text"),
        "b_length": Length("response_b__text"),
        "words": _words("response_a__text") + _words("response_b__text"),
    }
    columns: dict[str, Any] = {
        "pk": np.int64,
        "judgements_count": np.int64,
        "judgements_asked": np.float64,
        "is_control": np.bool_,
        "is_retired": np.bool_,
        "gold_choice": _code,
        "adjudicated_choice": _code,
        "p_a": np.float64,
        "a_length": np.float64,
        "b_length": np.float64,
        "words": np.int64,
    }
    found = rows.annotate(**lengths).values_list(*columns).iterator(chunk_size=CHUNK)
    read = dict(zip(columns, _columns(found, list(columns.values())), strict=True))
    return PairColumns(
        pair_id=read["pk"],
        judgements=read["judgements_count"],
        asked=read["judgements_asked"],
        is_control=read["is_control"],
        is_retired=read["is_retired"],
        gold=read["gold_choice"],
        decided=read["adjudicated_choice"],
        p_a=read["p_a"],
        new_p_a=np.full(len(read["pk"]), np.nan),
        # And one: an empty response has no logarithm.
        a_doublings=np.log2((read["a_length"] + 1) / (read["b_length"] + 1)),
        words=read["words"],
    )


def _words(field: str) -> Any:
    """Spaces and one: close enough for a bound on reading time, and too few rather than too many."""
    return Length(F(field)) - Length(Replace(F(field), Value(" "))) + 1


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _code(values: Sequence[str]) -> Ints:
    return np.fromiter((CODES[value] for value in values), np.int64, len(values))


def _is_a(values: Sequence[str]) -> Bools:
    return np.fromiter((value == "a" for value in values), np.bool_, len(values))


def _is_gold(kinds: Sequence[str]) -> Bools:
    return np.fromiter((kind == Slot.Kind.GOLD for kind in kinds), np.bool_, len(kinds))


def _columns(rows: Iterator[Row], kinds: Sequence[Any]) -> list[Any]:
    """A column of each kind: a numpy type, or a function of the values. Python holds one chunk of rows at a time."""
    parts: list[list[Any]] = [[_column(kind, ()) for kind in kinds]]
    while chunk := list(islice(rows, CHUNK)):
        parts.append([_column(kind, values) for kind, values in zip(kinds, zip(*chunk, strict=True), strict=True)])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _column(kind: Any, values: Sequence[Any]) -> Any:
    return np.array(values, dtype=kind) if isinstance(kind, type) else kind(values)
