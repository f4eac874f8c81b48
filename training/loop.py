"""What the scheduler does for each project: keep pairs open, retrain when the rule says so, move gates on. Idempotent.

Two schedulers at once ask for one batch and one run: the database allows only one active one of each.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone

from labeling.models import Project, Prompt, Slot
from training import gates, retraining
from training.exceptions import Overtaken, Rejected
from training.models import Job, LoopRule, SampleBatch, TrainingRun
from training.retraining import Decision, decide
from training.services import MAX_PAIRS_PER_BATCH, current_policy, request_run, request_samples, settle_watermark
from training.what_now import known_of, look_closer, recipe_of

log = logging.getLogger(__name__)

# After a failed batch the scheduler leaves a person time to look, rather than failing in a circle.
PAUSE_AFTER_FAILURE = timedelta(minutes=10)
# Who counts as somebody that pairs must be open for.
ACTIVE_LATELY = timedelta(days=1)


def evaluate_rules() -> None:
    for rule in LoopRule.objects.select_related("project", "paused_by"):
        # Of a paused project is written what stands in the way of a run, and nothing is asked for.
        for evaluate in (retrain,) if rule.project.is_paused else (refill, retrain):
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
    settle_watermark(rule)
    known = known_of(rule, timezone.now())
    decision = decide(rule, known)
    if decision.starts:
        known = look_closer(rule, known)
        decision = decide(rule, known)
    run, refusal = _ask(rule, decision) if decision.starts else (None, None)
    now = timezone.now()
    if run:
        LoopRule.objects.filter(pk=rule.pk).update(new_triples=0, verdict=f"{run} started.", evaluated_at=now)
        return run
    words = str(refusal or decision.words)
    seen: dict[str, Any] = {"new_triples": known.new_triples, "verdict": words, "evaluated_at": now}
    if not isinstance(refusal, Overtaken):
        if decision.fixed_time and rule.retrains:
            passed_by = retraining.passed_by(decision.fixed_time, known, words) if refusal else decision.passed_by
            seen |= {"fixed_time_seen_at": decision.fixed_time, "passed_by": passed_by}
        if refusal:
            seen |= {"refused_at": now, "refusal": words}
    _as_it_was_read(rule).update(**seen)
    return None


def _ask(rule: LoopRule, decision: Decision) -> tuple[TrainingRun | None, Rejected | None]:
    try:
        recipe = recipe_of(rule)
        return request_run(project=rule.project, recipe=recipe, rule=rule, fixed_time=decision.fixed_time), None
    except Rejected as refusal:
        return None, refusal


def _as_it_was_read(rule: LoopRule) -> Any:
    """The rule's row, unless another scheduler has acted on it or written what it saw: then nothing of what this one
    has read holds any more."""
    names = ("trained_preference_id", "trained_at", "fixed_time_seen_at", "evaluated_at")
    return LoopRule.objects.filter(pk=rule.pk, **{name: getattr(rule, name) for name in names})
