"""What the judgements of each pair come to, counted by the database as ``triples`` derives it."""

from __future__ import annotations

from typing import Any

from django.db.models import Case, Count, F, FloatField, Q, QuerySet, Sum, When
from django.db.models.functions import Abs, Exp, Least

from labeling.models import Choice, Preference
from labeling.strangers import PRIOR_MEAN
from training.triples import UNDECIDED, LabelRule


def counts_as(choice: str) -> Q:
    """Preferences that count as ``choice``: a reviewer's verdict stands in the place of each of a pair's judgements."""
    return Q(pair__adjudicated_choice=choice) | Q(pair__adjudicated_choice="", choice=choice)


# Past this lead the probability is 1 in floating point, and PostgreSQL's exponential function soon out of range.
SURE_LEAD = 30
VOTE = Case(When(counts_as(Choice.A), then=1), When(counts_as(Choice.B), then=-1), default=0)


def by_pair(preferences: QuerySet[Preference]) -> QuerySet[Any, Any]:
    """One row a pair of ``preferences``: ``votes`` (both-bad ones are none), those ``for_one`` of the responses,
    ``lead`` of A, ``rewrites``, its p_a, known answer and reviewer's verdict, its prompt and whether that is held out.
    ``p``: that a person will prefer A, by the posterior rule of a pair without a verdict.
    """
    rows = preferences.values("pair_id").annotate(
        votes=Count("pk", filter=~counts_as(Choice.BOTH_BAD)),
        for_one=Count("pk", filter=counts_as(Choice.A) | counts_as(Choice.B)),
        lead=Sum(VOTE),
        rewrites=Count("rewrite"),
        p_a=F("pair__p_a"),
        known_answer=F("pair__gold_choice"),
        verdict=F("pair__adjudicated_choice"),
        is_held_out=F("pair__prompt__is_held_out"),
        prompt=F("pair__prompt_id"),
    )
    return rows.annotate(p=_probability())


def _probability() -> Case:
    """The very steps of ``triples``: sums that are written otherwise can round to the other side of a bound."""
    for_majority = 1.0 / (1.0 + Exp(-PRIOR_MEAN * Least(Abs(F("lead")), SURE_LEAD)))
    by_strangers = Case(When(lead__gte=0, then=for_majority), default=1.0 - for_majority)
    known = Case(When(known_answer__in=(Choice.A, Choice.B), then=1.0), default=0.0)
    ties = F("votes") - F("for_one")
    return Case(
        When(votes=0, then=0.5),
        When(p_a__isnull=True, then=_with_ties(by_strangers, 1.0 * F("for_one"), ties)),
        default=_with_ties(F("p_a"), known + F("for_one"), ties),
        output_field=FloatField(),
    )


def _with_ties(p: Any, for_one: Any, ties: Any) -> Any:
    return 0.5 + (p - 0.5) * for_one / (for_one + ties)


def is_judged() -> Q:
    """Of rows of ``by_pair``: somebody has voted, if for a tie."""
    return Q(votes__gt=0)


def is_decided(rule: LabelRule) -> Q:
    """Of rows of ``by_pair`` that are judged: one response is the better one."""
    by_votes = ~Q(lead=0)
    if not rule.uses_posterior:
        return by_votes
    low, high = UNDECIDED
    return Q(verdict="") & (Q(p__lt=low) | Q(p__gt=high)) | ~Q(verdict="") & by_votes
