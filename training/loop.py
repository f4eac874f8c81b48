"""What the scheduler does for each project: keep pairs open, retrain when the rule says so, move gates on. Idempotent.

Two schedulers at once ask for one batch and one run: the database allows only one active one of each.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.db.models import Q
from django.utils import timezone

from labeling.models import Project, Prompt, Slot
from training import gates, retraining
from training.exceptions import Rejected
from training.models import Job, LoopRule, SampleBatch, TrainingRun
from training.retraining import Decision, decide
from training.services import MAX_PAIRS_PER_BATCH, current_policy, request_run, request_samples
from training.what_now import known_of, recipe_of

log = logging.getLogger(__name__)

# After a failed batch the scheduler leaves a person time to look, rather than failing in a circle.
PAUSE_AFTER_FAILURE = timedelta(minutes=10)
# Who counts as somebody that pairs must be open for.
ACTIVE_LATELY = timedelta(days=1)


def evaluate_rules() -> None:
    for rule in LoopRule.objects.filter(project__is_paused=False).select_related("project", "paused_by"):
        for evaluate in (refill, retrain):
            try:
                evaluate(rule)
            except Rejected as refusal:
                log.info("%s: %s", rule, refusal)
            except Exception:
                # One project in trouble must not stop the others.
                log.exception("%s could not be evaluated", rule)
    gates.turn_gates()


def refill(rule: LoopRule) -> SampleBatch | None:
    """Ask for pairs when fewer are open than the rule wants."""
    project = rule.project
    if not rule.open_pairs_wanted or current_policy(project) is None:
        return None
    if not Prompt.objects.in_use().filter(project=project).exists():
        return None
    newest = SampleBatch.objects.filter(project=project).first()
    if newest and (newest.is_active or _stopped_lately(newest)):
        return None
    wanted = rule.open_pairs_wanted
    missing = wanted - _open_for_the_worst_served(project, wanted)
    if missing <= wanted // 2:
        return None
    return request_samples(project=project, pairs=min(missing, MAX_PAIRS_PER_BATCH))


def _open_for_the_worst_served(project: Project, wanted: int) -> int:
    """Slots open to the member who has the fewest, counted no further than ``wanted``.

    A slot may be open and still be nobody's to take: whoever has judged or skipped its pair is not given it again.
    """
    open_slots = Slot.objects.filter(project=project, state=Slot.State.OPEN)
    lately = Q(user__slots__project=project, user__slots__leased_at__gt=timezone.now() - ACTIVE_LATELY)
    members = project.memberships.filter(lately).values_list("user_id", flat=True).distinct()
    free = [Slot.objects.filter(project=project).open_for(user_id)[:wanted].count() for user_id in members]
    return min(free, default=open_slots[:wanted].count())


def _stopped_lately(job: Job) -> bool:
    stopped = job.state in (Job.State.FAILED, Job.State.CANCELLED)
    return stopped and job.finished_at is not None and timezone.now() - job.finished_at < PAUSE_AFTER_FAILURE


def retrain(rule: LoopRule) -> TrainingRun | None:
    """Start a run if the rule is on and its conditions hold; writes what it saw and decided onto the rule's row."""
    known = known_of(rule, timezone.now())
    decision = decide(rule, known)
    run, words = _start(rule, decision) if decision.starts else (None, decision.words)
    if run is None and decision.fixed_time and rule.retrains:
        refused = retraining.passed_by(decision.fixed_time, known, words)
        _let_pass(rule, decision.fixed_time, refused if decision.starts else decision.passed_by)
    new = 0 if run else known.new_triples
    LoopRule.objects.filter(pk=rule.pk).update(new_triples=new, verdict=words, evaluated_at=timezone.now())
    return run


def _start(rule: LoopRule, decision: Decision) -> tuple[TrainingRun | None, str]:
    try:
        recipe = recipe_of(rule)
        run = request_run(project=rule.project, recipe=recipe, rule=rule, fixed_time=decision.fixed_time)
    except Rejected as refusal:
        return None, str(refusal)
    return run, f"{run} started."


def _let_pass(rule: LoopRule, fixed_time: datetime, passed_by: str) -> None:
    """Unless another scheduler has acted on it: then nothing of what this one has read holds any more."""
    unchanged = {name: getattr(rule, name) for name in ("trained_preference_id", "trained_at", "fixed_time_seen_at")}
    rows = LoopRule.objects.filter(pk=rule.pk, **unchanged)
    rows.update(fixed_time_seen_at=fixed_time, passed_by=passed_by)
