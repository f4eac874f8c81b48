"""What is known about a project's rule at this moment, and so what would happen now and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count, Min
from django.utils import timezone

from labeling.models import Choice, Preference, Project
from training import fixed_times, reference_choice
from training.exceptions import Rejected
from training.models import Job, LoopRule, Promotion, TrainingRun
from training.recipe import Recipe
from training.retraining import Decision, Failure, Known, decide, is_paused
from training.rule_changes import loop_rule, zone
from training.services import count_new_triples

# The scheduler looks every ten seconds; what it has counted is taken from its row for so long.
COUNTED_LATELY = timedelta(seconds=30)
LATE = timedelta(minutes=2)
# A pace is told from so many pairs in so much time at least.
PAIRS_OF_A_PACE = 5
TIME_OF_A_PACE = timedelta(minutes=5)
RUNS_LOOKED_AT = 10


@dataclass(frozen=True)
class WhatNow:
    """The rule, what is known, and the decision. ``scheduler_is_late``: nobody has looked at the rule for a while, so
    that nothing happens whatever is decided. ``recipe``: of the next run; ``None`` where the rule's cannot be used."""

    rule: LoopRule
    known: Known
    decision: Decision
    scheduler_is_late: bool
    reference: reference_choice.Choice | None
    recipe: Recipe | None

    @property
    def is_paused(self) -> bool:
        return is_paused(self.rule, self.known.now)

    @property
    def lacks_triples(self) -> bool:
        return self.known.new_triples < self.rule.min_new_triples


def what_now(project: Project) -> WhatNow:
    rule = loop_rule(project)
    known = known_of(rule, timezone.now(), counted_lately=True)
    return WhatNow(
        rule=rule,
        known=known,
        decision=decide(rule, known),
        scheduler_is_late=rule.evaluated_at is None or known.now - rule.evaluated_at > LATE,
        reference=reference_choice.choose(project),
        recipe=_usable_recipe(rule),
    )


def _usable_recipe(rule: LoopRule) -> Recipe | None:
    try:
        return recipe_of(rule)
    except Rejected:
        return None


def recipe_of(rule: LoopRule) -> Recipe:
    """``Rejected`` if what the rule says is no recipe of this version."""
    return Recipe.from_dict(rule.recipe)


def known_of(rule: LoopRule, now: datetime, *, counted_lately: bool = False) -> Known:
    """``counted_lately``: what the scheduler has counted will do, so that a page need not."""
    project = rule.project
    active = TrainingRun.objects.active().filter(project=project).select_related("sweep").first()
    runs_today = TrainingRun.objects.filter(
        project=project, is_automatic=True, created_at__gte=fixed_times.midnight_before(zone(), now)
    )
    fresh = counted_lately and rule.evaluated_at is not None and now - rule.evaluated_at < COUNTED_LATELY
    return Known(
        now=now,
        zone=zone(),
        new_triples=rule.new_triples if fresh else count_new_triples(project, rule.trained_preference_id),
        triples_an_hour=_pace(rule, now),
        active_run=str((active.sweep or active) if active else ""),
        runs_today=runs_today.count(),
        failure=_failure(project),
        has_policy=Promotion.objects.filter(project=project).exists(),
        project_is_paused=project.is_paused,
        paused_by=rule.paused_by.get_username() if rule.paused_by else "",
    )


def _pace(rule: LoopRule, now: datetime) -> float:
    """Pairs to train on that were decided today and since the last run, an hour. Costs in the number of those alone."""
    decided = Preference.objects.counted().filter(
        project=rule.project,
        pk__gt=rule.trained_preference_id,
        created_at__gte=fixed_times.midnight_before(zone(), now),
        choice__in=[Choice.A, Choice.B],
        pair__prompt__is_held_out=False,
    )
    found = decided.aggregate(pairs=Count("pair", distinct=True), since=Min("created_at"))
    if found["pairs"] < PAIRS_OF_A_PACE:
        return 0.0
    hours = max(now - found["since"], TIME_OF_A_PACE) / timedelta(hours=1)
    return float(found["pairs"] / hours)


def _failure(project: Project) -> Failure | None:
    """The newest runs, if they have failed. One that was resumed, cancelled or done since ends the row."""
    failed: list[TrainingRun] = []
    for run in TrainingRun.objects.filter(project=project, sweep__isnull=True).order_by("-pk")[:RUNS_LOOKED_AT]:
        if run.state != Job.State.FAILED:
            break
        failed.append(run)
    if not failed:
        return None
    return Failure(str(failed[0]), failed[0].finished_at or failed[0].created_at, len(failed))
