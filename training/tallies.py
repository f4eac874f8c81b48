"""What the judgements of each pair come to, counted by the database as ``triples`` derives it."""

from __future__ import annotations

from typing import Any

from django.db.models import Case, Count, F, Q, QuerySet, Sum, When

from labeling.models import Choice, Preference
from training.triples import UNDECIDED, LabelRule


def counts_as(choice: str) -> Q:
    """Preferences that count as ``choice``: a reviewer's verdict stands in the place of each of a pair's judgements."""
    return Q(pair__adjudicated_choice=choice) | Q(pair__adjudicated_choice="", choice=choice)


VOTE = Case(When(counts_as(Choice.A), then=1), When(counts_as(Choice.B), then=-1), default=0)


def by_pair(preferences: QuerySet[Preference]) -> QuerySet[Any, Any]:
    """One row a pair of ``preferences``: ``votes`` (both-bad ones are none), ``lead`` of A, ``rewrites``, its p_a,
    the reviewer's verdict, its prompt and whether that is held out."""
    return preferences.values("pair_id").annotate(
        votes=Count("pk", filter=~counts_as(Choice.BOTH_BAD)),
        lead=Sum(VOTE),
        rewrites=Count("rewrite"),
        p_a=F("pair__p_a"),
        verdict=F("pair__adjudicated_choice"),
        is_held_out=F("pair__prompt__is_held_out"),
        prompt=F("pair__prompt_id"),
    )


def is_judged() -> Q:
    """Of rows of ``by_pair``: somebody has voted, if for a tie."""
    return Q(votes__gt=0)


def is_decided(rule: LabelRule) -> Q:
    """Of rows of ``by_pair`` that are judged: one response is the better one."""
    by_votes = ~Q(lead=0)
    if not rule.uses_posterior:
        return by_votes
    has_posterior = Q(p_a__isnull=False, verdict="")
    low, high = UNDECIDED
    return (has_posterior & (Q(p_a__lt=low) | Q(p_a__gt=high))) | (~has_posterior & by_votes)
