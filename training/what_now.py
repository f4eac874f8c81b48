"""What is known about a project's rule at this moment, and so what would happen now and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import takewhile

from django.db.models import Count, Min
from django.utils import timezone

from labeling.models import Choice, Preference, Project
from training import fixed_times, reference_choice, registry
from training.exceptions import Rejected
from training.models import Job, LoopRule, Promotion, TrainingRun
from training.preflight import triples_lately
from training.recipe import Recipe
from training.retraining import Decision, Failure, Known, Trainable, decide, is_paused
from training.rule_changes import loop_rule, zone
from training.services import continued, count_new_triples, refuse_impossible
from training.triples import LabelRule

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
    known = look_closer(rule, known_of(rule, timezone.now(), counted_lately=True))
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


def _label_rule(rule: LoopRule) -> LabelRule:
    recipe = _usable_recipe(rule)
    return recipe.label_rule if recipe else LabelRule()


def look_closer(rule: LoopRule, known: Known) -> Known:
    """What is known, and also whether the recipe can be used and there is enough to train on.

    That counts all triples of the project, so the scheduler asks only where nothing else stands in the way.
    """
    choice, recipe, refusal = reference_choice.choose(rule.project), Recipe(), ""
    try:
        recipe = recipe_of(rule)
        if choice:
            registry.refuse_removed(choice.checkpoint)
            refuse_impossible(continued(recipe, choice.checkpoint), choice.checkpoint)
    except Rejected as rejected:
        refusal = str(rejected)
    found = triples_lately(rule.project, recipe)
    trainable = Trainable(found.decided, found.train_prompts, found.least_triples, found.least_prompts)
    return replace(known, recipe_refusal=refusal, trainable=trainable)


def known_of(rule: LoopRule, now: datetime, *, counted_lately: bool = False) -> Known:
    """``counted_lately``: what the scheduler has counted will do, so that a page need not."""
    project, label_rule = rule.project, _label_rule(rule)
    newest = list(TrainingRun.objects.filter(project=project, sweep__isnull=True).order_by("-pk")[:RUNS_LOOKED_AT])
    active = TrainingRun.objects.active().filter(project=project).select_related("sweep").first()
    runs_today = TrainingRun.objects.filter(
        project=project, is_automatic=True, created_at__gte=fixed_times.midnight_before(zone(), now)
    )
    fresh = counted_lately and rule.evaluated_at is not None and now - rule.evaluated_at < COUNTED_LATELY
    return Known(
        now=now,
        zone=zone(),
        new_triples=rule.new_triples if fresh else count_new_triples(project, rule.trained_preference_id, label_rule),
        triples_an_hour=_pace(rule, label_rule, now),
        active_run=str((active.sweep or active) if active else ""),
        runs_today=runs_today.count(),
        failure=_failure(newest),
        cancelled_run=_cancelled(newest),
        has_policy=Promotion.objects.filter(project=project).exists(),
        project_is_paused=project.is_paused,
        paused_by=rule.paused_by.get_username() if rule.paused_by else "",
    )


def _pace(rule: LoopRule, label_rule: LabelRule, now: datetime) -> float:
    """Pairs to train on that were decided today and since the last run, an hour. Costs in the number of those alone."""
    ties = [Choice.TIE] if label_rule.ties == "half" else []
    decided = Preference.objects.counted().filter(
        project=rule.project,
        pk__gt=rule.trained_preference_id,
        created_at__gte=fixed_times.midnight_before(zone(), now),
        choice__in=[Choice.A, Choice.B, *ties],
        pair__prompt__is_held_out=False,
    )
    found = decided.aggregate(pairs=Count("pair", distinct=True), since=Min("created_at"))
    if found["pairs"] < PAIRS_OF_A_PACE:
        return 0.0
    hours = max(now - found["since"], TIME_OF_A_PACE) / timedelta(hours=1)
    return float(found["pairs"] / hours)


def _failure(newest: list[TrainingRun]) -> Failure | None:
    """The newest runs, if they have failed. One that was resumed, cancelled or done since ends the row."""
    failed = list(takewhile(lambda run: run.state == Job.State.FAILED and not _was_ended(run), newest))
    if not failed:
        return None
    return Failure(str(failed[0]), failed[0].finished_at or failed[0].created_at, len(failed))


def _cancelled(newest: list[TrainingRun]) -> str:
    """The newest run, if a person has ended it. A rebuild has used nothing that was new."""
    is_cancelled = bool(newest) and newest[0].rebuild_of_id is None and _was_ended(newest[0])
    return str(newest[0]) if is_cancelled else ""


def _was_ended(run: TrainingRun) -> bool:
    """By a person, though it may have failed before it heard of that."""
    if run.state == Job.State.CANCELLED:
        return True
    return run.state == Job.State.FAILED and run.cancel_requested_at is not None
