"""Gates as they go: asked for, measured, put to people, decided, acted on. Schedulers, pages and commands come here.

A gate is decided once. Whoever moves it from one stage to the next does so by an UPDATE that names the stage it was in,
so that of two schedulers, or of a scheduler and an admin, one moves it and the other finds it moved. What follows from
a decision, a promotion or a rollback, is written in the same transaction.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import F, Max, QuerySet
from django.utils import timezone

from labeling.models import Preference, Project, Prompt
from training import gate_pairs, registry, sequential, services
from training.exceptions import Rejected
from training.gate import Decision, People, decide_watch, decide_with_people
from training.length_control import controlled
from training.models import Checkpoint, Gate, Job, Promotion, ReleaseRule, TrainingRun
from training.tasks import hint_on_commit

log = logging.getLogger(__name__)

LEAST_PROMPTS = 10
MEASURED_PROMPTS = 200
# Of the prompts that people could be asked about some give the same answer twice: so many more are answered.
SPARE_PROMPTS = 1.15
# How long after its end a run is compared by itself: not those that ended before there was a rule.
COMPARE_WITHIN = timedelta(days=1)
FROZEN = ("decides", "asks_people", "most_votes", "watches", "watch_votes", "rolls_back")
Requester = User | None


class _Settled(Rejected):
    """Somebody else was faster: the gate has moved on, or there is one already."""


class _TakenBack(Exception):
    """What is left of what a decision rested on no longer comes to it."""


# The rule


def release_rule(project: Project) -> ReleaseRule:
    rule, _ = ReleaseRule.objects.get_or_create(project=project)
    return rule


def change_release_rule(*, project: Project, **values: Any) -> None:
    """From the next gate on; what is open keeps the rule that it was asked for with."""
    ReleaseRule.objects.filter(pk=release_rule(project).pk).update(**values)


# Asking for a comparison


def request_gate(
    *, project: Project, candidate: Checkpoint, run: TrainingRun | None = None, by: Requester = None
) -> Gate:
    """Compare a checkpoint with the current policy, by the release rule as it is now; ``Rejected`` if there is no sense
    in it."""
    current = services.current_policy(project)
    if current is None:
        raise Rejected(f"The project has no policy yet, so there is nothing to compare {candidate} with. Promote it.")
    if candidate.project_id not in (None, project.pk):
        raise Rejected(f"{candidate} belongs to another project.")
    if candidate == current:
        raise _Settled(f"{candidate} is the policy already.")
    return _create(Gate(project=project, candidate=candidate, current=current, run=run, requested_by=by))


def request_watch(*, project: Project, by: Requester = None) -> Gate:
    """Ask people whether the policy is worse than the one before it."""
    policy, before = services.current_policy(project), services.policy_before(project)
    if policy is None or before is None:
        raise Rejected("No policy was promoted in the place of another, so there is none to watch.")
    return _create(Gate(project=project, kind=Gate.Kind.WATCH, candidate=policy, current=before, requested_by=by))


def _create(gate: Gate) -> Gate:
    """Freeze the rule and the prompts, and queue the measurement."""
    project = gate.project
    rule = release_rule(project)
    gate.rule = {name: getattr(rule, name) for name in FROZEN}
    gate.rule["kl_first_budget"] = services.loop_rule(project).kl_first_budget
    gate.prompt_ids = _frozen_prompts(gate)
    try:
        with transaction.atomic():
            services.lock(project)
            registry.refuse_removed(gate.candidate, gate.current)
            last = Gate.objects.filter(project=project).aggregate(last=Max("number"))["last"] or 0
            gate.number = last + 1
            gate.save()
            hint_on_commit(gate)
    except IntegrityError:
        raise _Settled(f"{gate.candidate} is being compared with {gate.current} already.") from None
    return gate


def held_out_prompts(project: Project) -> QuerySet[Prompt]:
    """What the two policies of a gate can be asked."""
    return Prompt.objects.in_use().filter(project=project, is_held_out=True)


def why_too_few(prompts: int) -> str:
    """Why nothing can be compared or watched in a project with so many held-out prompts; empty where it can."""
    if prompts >= LEAST_PROMPTS:
        return ""
    return (
        f"The project has {prompts} held-out prompt{'' if prompts == 1 else 's'}, and a comparison needs "
        f"{LEAST_PROMPTS} at least. Import more prompts: a fixed share of all is held out."
    )


def _frozen_prompts(gate: Gate) -> list[int]:
    """Held-out prompts by chance, the same for the same seed."""
    prompts = list(held_out_prompts(gate.project).order_by("content_hash").values_list("pk", flat=True))
    if too_few := why_too_few(len(prompts)):
        raise Rejected(too_few)
    is_watch = gate.kind == Gate.Kind.WATCH
    asked = gate_pairs.most_votes(gate) if is_watch or gate.rule["asks_people"] else 0
    wanted = max(0 if is_watch else MEASURED_PROMPTS, math.ceil(SPARE_PROMPTS * asked))
    return random.Random(gate.seed).sample(prompts, min(wanted, len(prompts)))  # noqa: S311  (a sample, not a secret)


def compare_finished_run(run: TrainingRun) -> Gate | None:
    """Compare the checkpoint of a run, once, if the project's rule wants that and it is no part of a sweep.

    Where that is refused, the run says why from then on.
    """
    return None if run.sweep_id else _compare(run)


def compare_picked(run: TrainingRun, by: Requester = None) -> Gate | None:
    """The same for the point of a sweep that somebody has picked."""
    return _compare(run, by)


def _compare(run: TrainingRun, by: Requester = None) -> Gate | None:
    if run.checkpoint is None or Gate.objects.filter(run=run).exists():
        return None
    if not release_rule(run.project).compares or services.current_policy(run.project) in (None, run.checkpoint):
        return None
    rows = TrainingRun.objects.filter(pk=run.pk)
    try:
        return request_gate(project=run.project, candidate=run.checkpoint, run=run, by=by)
    except _Settled:
        raise
    except Rejected as refusal:
        if rows.exclude(not_compared=str(refusal)).update(not_compared=str(refusal)):  # or it is written every tick
            log.info("%s is not compared: %s", run, refusal)
        return None


def can_start_again(gate: Gate, policy: Checkpoint | None) -> bool:
    """Whether it was stopped, asks what is still the question, and the weights of both are there."""
    is_there = gate.candidate.removed_at is None and gate.current.removed_at is None
    has_stopped = gate.state in (Job.State.FAILED, Job.State.CANCELLED)
    return has_stopped and is_there and not gate_pairs.why_stale(gate, policy)


def start_again(*, gate: Gate) -> None:
    """Measure again what failed or was cancelled, with the same prompts and rule."""
    if reason := gate_pairs.why_stale(gate, services.current_policy(gate.project)):
        raise Rejected(reason)
    fresh: dict[str, Any] = {
        "outcome": "",
        "reasons": [],
        "checks": [],
        "decided_at": None,
        "decided_by": None,
        "advice": "",
    }
    stopped = Gate.objects.filter(pk=gate.pk, state__in=(Job.State.FAILED, Job.State.CANCELLED))
    try:
        with transaction.atomic():
            services.lock(gate.project)  # before the row of the gate, as whoever promotes has it
            stopped.update(stage=Gate.Stage.MEASURING, **fresh)
            services.resume_job(job=gate)
    except IntegrityError:
        raise Rejected("The two are being compared already.") from None


# What the scheduler does


def turn_gates() -> None:
    """Start what is due and move on every open gate. Idempotent; several schedulers at once do each thing once."""
    for act in (*_due_comparisons(), *_due_watches(), *_open_gates(), gate_pairs.close_left_open):
        try:
            act()
        except Rejected as refusal:
            log.info("%s", refusal)
        except Exception:
            # One gate in trouble must not stop the others.
            log.exception("A gate could not be moved on")


def _open_gates() -> list[Callable[[], object]]:
    gates = Gate.objects.exclude(stage=Gate.Stage.DECIDED).select_related("project", "candidate", "current")
    return [partial(settle, gate) for gate in gates.order_by("pk")]


def _due_comparisons() -> list[Callable[[], object]]:
    since = timezone.now() - COMPARE_WITHIN
    runs = TrainingRun.objects.filter(
        state=Job.State.SUCCEEDED, finished_at__gte=since, sweep=None, gates=None, project__is_paused=False
    )
    runs = runs.exclude(checkpoint__promotions__project=F("project"))  # a person, or a rollback, has had the last word
    newest = runs.values("project").annotate(run=Max("pk")).values("run")
    finished = TrainingRun.objects.filter(pk__in=newest).select_related("project", "checkpoint")
    return [partial(compare_finished_run, run) for run in finished]


def _due_watches() -> list[Callable[[], object]]:
    rules = ReleaseRule.objects.filter(watches=True, project__is_paused=False).select_related("project")
    return [partial(_watch_if_due, rule.project) for rule in rules]


def _watch_if_due(project: Project) -> Gate | None:
    newest = Promotion.objects.filter(project=project).first()
    if newest is None or newest.is_rollback or services.policy_before(project) is None:
        return None
    watched = Gate.objects.filter(project=project, kind=Gate.Kind.WATCH, candidate=newest.checkpoint_id)
    if watched.filter(created_at__gte=newest.created_at).exists():
        return None
    promotion = Promotion.objects.filter(pk=newest.pk)
    try:
        gate = request_watch(project=project)
    except _Settled:
        raise
    except Rejected as refusal:
        if promotion.exclude(not_watched=str(refusal)).update(not_watched=str(refusal)):
            log.info("%s is not watched: %s", newest.checkpoint, refusal)
        return None
    promotion.update(not_watched="")
    return gate


def settle(gate: Gate) -> None:
    """Move a gate on as far as it goes now. Harmless twice."""
    gate.refresh_from_db()  # it was read before others were moved on, which may have taken minutes
    if reason := gate_pairs.why_stale(gate, services.current_policy(gate.project)):
        _decide(gate, Decision("hold", [], [reason]))
    elif gate.stage == Gate.Stage.MEASURING and gate.state in (Job.State.FAILED, Job.State.CANCELLED):
        _decide(gate, Decision("hold", [], _why_not_measured(gate)))
    elif gate.stage == Gate.Stage.MEASURING and gate.state == Job.State.SUCCEEDED:
        _after_measuring(gate)
    elif gate.stage == Gate.Stage.ASKING:
        _read_votes(gate)


def _why_not_measured(gate: Gate) -> list[str]:
    if gate.state == Job.State.CANCELLED:
        return ["The comparison was cancelled. It can be started again."]
    return [text for text in (f"The comparison failed: {gate.error}", gate.hint, "It can be started again.") if text]


def _after_measuring(gate: Gate) -> None:
    is_watch = gate.kind == Gate.Kind.WATCH
    decision = Decision("", [], []) if is_watch else gate_pairs.decide_by_figures(gate, gate.report)
    if decision.outcome:
        _conclude(gate, decision)
    elif _move(gate, Gate.Stage.ASKING, checks=decision.checks_as_json, reasons=decision.reasons):
        _read_votes(gate)


def _read_votes(gate: Gate) -> None:
    """Look at the votes, if there is another one, or one less, than at the last look."""
    state = [*gate_pairs.seen(gate), gate_pairs.is_over(gate)]
    if gate.votes.get("seen") == state:
        return
    # What was decided and is still to be acted on stands, whoever has voted since; another may be acting on it now.
    outcome, until = gate.votes.get("decided") or ("", 0)
    if not outcome or not _still_comes_to(outcome, gate, until):
        until = gate_pairs.newest_judgement(gate.project)
    people, votes = _people(gate, until)
    decision = _decision(gate, people)
    # Whoever dies before acting on it is followed by who looks again.
    votes |= {"seen": None, "decided": [decision.outcome, until]} if decision.outcome else {"seen": state}
    values = {"votes": votes, "checks": decision.checks_as_json, "reasons": decision.reasons}
    unchanged = Gate.objects.filter(pk=gate.pk, stage=Gate.Stage.ASKING)
    if not gate.votes.get("decided"):  # nor may another scheduler have decided meanwhile, who is acting on it
        unchanged = unchanged.filter(votes__decided__isnull=True)
    if unchanged.update(**values) and decision.outcome:
        _conclude(gate, decision, until)


def _people(gate: Gate, until: int) -> tuple[People, dict[str, Any]]:
    """What people have said ``until`` this judgement, as far as it still counts; and the same as it is kept."""
    votes = gate_pairs.votes_of(gate, until)
    outcome = sequential.read_votes(votes.outcomes)
    lengths = controlled([*votes.lengths, *gate_pairs.ordinary_votes(gate.project, until)])
    are_few = len(gate.prompt_ids) < gate_pairs.most_votes(gate)
    people = People(outcome, lengths, gate_pairs.is_over(gate), of_few_prompts=are_few)
    shown = {"asked": gate.pairs.count(), "both_bad": votes.both_bad, "length_controlled": lengths.as_json()}
    shown["preferences"] = sorted(votes.preferences)  # so that it can be told how many of them were withdrawn since
    return people, outcome.as_json() | shown


def _decision(gate: Gate, people: People) -> Decision:
    if gate.kind == Gate.Kind.WATCH:
        return decide_watch(people)
    return decide_with_people(gate_pairs.decide_by_figures(gate, gate.report).checks, people)


def _still_comes_to(outcome: str, gate: Gate, until: int | None) -> bool:
    """Whether what was decided follows from figures, marks of now and what still counts of the judgements of then.

    What people have said since is left out: the test had ended. With the project locked no withdrawal begins beside
    this.
    """
    if until is None:
        return gate_pairs.decide_by_figures(gate, gate.report).outcome == outcome
    return _decision(gate, _people(gate, until)[0]).outcome == outcome


def is_withheld_from(gate: Gate, user: User) -> bool:
    """Whether what people say so far is not for this person's eyes: whoever labels in the project could read off it
    which pairs are the gate's and which side is whose."""
    is_coming_in = gate.stage == Gate.Stage.ASKING
    return is_coming_in and Preference.objects.filter(project=gate.project_id, annotator=user).exists()


# Deciding


def _conclude(gate: Gate, decision: Decision, until: int | None = None) -> None:
    """Act on a decision, or put it before an admin where the rule leaves it to one.

    ``until``: of a decision by votes, the newest judgement that was looked at.
    """
    is_watch = gate.kind == Gate.Kind.WATCH
    by_itself = gate.setting("rolls_back") if is_watch else gate.setting("decides") == ReleaseRule.Decides.GATE
    acts = decision.outcome == ("reject" if is_watch else "promote")
    is_open_question = acts or (decision.outcome == "hold" and not is_watch)
    if acts and by_itself:
        _act_by_itself(gate, decision, until)
    elif is_open_question and not by_itself:
        _leave_to_admin(gate, decision)
    else:
        _decide(gate, decision)


def _leave_to_admin(gate: Gate, decision: Decision) -> None:
    if _move(gate, Gate.Stage.WAITING, **_as_values(decision)):
        gate_pairs.close_pairs(gate.pk)


def _act_by_itself(gate: Gate, decision: Decision, until: int | None) -> None:
    """Reads every byte of the weights, which takes minutes of a large model; people go on labeling beside it."""
    reason = f"{gate}: {' '.join(decision.reasons)}"

    def check() -> None:
        if not _still_comes_to(decision.outcome, gate, until):
            raise _TakenBack

    try:
        _act(gate, _as_values(decision), reason, check=check)
    except _Settled:
        log.info("%s was moved on by somebody else", gate)
    except _TakenBack:
        log.info("%s is looked at again: something that it was decided on was taken back", gate)
        settle(gate)
    except (Rejected, OSError) as error:
        failed = "rolled back" if gate.kind == Gate.Kind.WATCH else "promoted"
        gate.refresh_from_db()
        told = f"It was not {failed}, although the gate would have it so: {error}"
        _leave_to_admin(gate, replace(decision, reasons=[told, *decision.reasons]))


def _act(
    gate: Gate, values: dict[str, Any], reason: str, by: Requester = None, check: Callable[[], None] | None = None
) -> Promotion:
    """Promote the candidate, or roll the watched policy back, and decide the gate: all of it or nothing.

    ``check`` raises where there is no longer a reason to; nobody else can promote or withdraw while it looks.
    """

    def claim() -> None:
        if stale := gate_pairs.why_stale(gate, services.current_policy(gate.project)):
            raise _Settled(stale)
        if check:
            check()
        if not _move(gate, Gate.Stage.DECIDED, decided_at=timezone.now(), decided_by=by, **values):
            raise _Settled(f"{gate} was decided meanwhile. Reload the page to see how.")
        if is_rollback:
            services.way_back(gate.project, gate.candidate, gate.current)

    is_rollback = gate.kind == Gate.Kind.WATCH
    promotion = services.promote_checkpoint(
        project=gate.project,
        checkpoint=gate.current if is_rollback else gate.candidate,
        by=by,
        reason=reason,
        is_rollback=is_rollback,
        gate=gate,
        claim=claim,
    )
    gate_pairs.close_pairs(gate.pk)
    return promotion


def admin_decides(*, gate: Gate, verdict: str, by: User, reason: str = "") -> Promotion | None:
    """An admin's word on a gate that waits for it, or on which people are still asked.

    ``promote``, ``hold`` or ``reject``. Of a watch, ``reject`` rolls the policy back and the others leave it.
    """
    if verdict not in Gate.Outcome.values:
        raise Rejected(f"A gate ends with {', '.join(Gate.Outcome.values)}, and not with {verdict!r}.")
    gate.refresh_from_db()
    if not gate.is_open:
        raise Rejected(f"{gate} is decided already: {gate.get_outcome_display().lower()}.")
    if gate.stage == Gate.Stage.MEASURING:
        raise Rejected(f"{gate} is still being measured. Wait for its figures, or cancel it.")
    said = f"{by} decided: {Gate.Outcome(verdict).label.lower()}. {reason}".strip()
    values = {"outcome": verdict, "reasons": [said, *gate.reasons]}
    if verdict == (Gate.Outcome.REJECT if gate.kind == Gate.Kind.WATCH else Gate.Outcome.PROMOTE):
        return _act(gate, values, reason or said, by)
    if not _move(gate, Gate.Stage.DECIDED, decided_at=timezone.now(), decided_by=by, **values):
        raise Rejected(f"{gate} was decided meanwhile. Reload the page to see how.")
    gate_pairs.close_pairs(gate.pk)
    return None


def _decide(gate: Gate, decision: Decision) -> None:
    """End a gate with nothing to follow from it."""
    values = _as_values(decision)
    if not decision.checks:
        del values["checks"]  # those that there are still say what was found
    if _move(gate, Gate.Stage.DECIDED, decided_at=timezone.now(), **values):
        if gate.is_active:
            with contextlib.suppress(Rejected):  # it has just ended
                services.cancel_job(job=gate)
        gate_pairs.close_pairs(gate.pk)


def _as_values(decision: Decision) -> dict[str, Any]:
    checks = decision.checks_as_json
    return {"outcome": decision.outcome, "advice": decision.outcome, "checks": checks, "reasons": decision.reasons}


def _move(gate: Gate, stage: str, **values: Any) -> bool:
    """From the stage in which it was read to another; ``False`` if somebody else was faster. A decision is the last."""
    as_read = Gate.objects.filter(pk=gate.pk, stage=gate.stage, state=gate.state)
    if not gate.is_open or not as_read.update(stage=stage, **values):
        return False
    for name, value in (values | {"stage": stage}).items():
        setattr(gate, name, value)
    return True
