"""What people ask of training. Views, API, commands and the scheduler all come through here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Count, Max, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from labeling.models import Choice, Preference, Project, Prompt
from training import forecast, gate_pairs, label_effects, reference_choice, registry, tallies
from training.exceptions import Overtaken, Rejected
from training.models import (
    Checkpoint,
    DatasetSnapshot,
    Gate,
    Job,
    LoopRule,
    PairOrigin,
    Promotion,
    SampleBatch,
    SampleRefusal,
    Sweep,
    TrainingRun,
    new_seed,
)
from training.recipe import Decoding, Recipe
from training.rule_changes import NOT_REFUSED
from training.rule_changes import change_rule as change_rule
from training.rule_changes import end_pause as end_pause
from training.rule_changes import loop_rule as loop_rule
from training.rule_changes import pause_rule as pause_rule
from training.rule_changes import use_recipe as use_recipe
from training.snapshots import freeze_snapshot
from training.tasks import hint_on_commit
from training.triples import LabelRule, TripleCounts

MIN_TRAIN_TRIPLES = 8
MIN_TRAIN_PROMPTS = 2
MAX_PAIRS_PER_BATCH = 2000
MAX_REASON = 300  # characters of a promotion's reason
Requester = User | None


# Policy


def current_policy(project: Project) -> Checkpoint | None:
    """The checkpoint of the newest promotion."""
    newest = Promotion.objects.filter(project=project).select_related("checkpoint__base").first()
    return newest.checkpoint if newest else None


def default_reference(project: Project) -> Checkpoint | None:
    """The first policy or, where the rule says so, a promoted one; ``reference_choice`` says why."""
    choice = reference_choice.choose(project)
    return choice.checkpoint if choice else None


def known_checkpoints(project: Project) -> Any:
    """What the project's pages show: its own checkpoints and those of no project, also where the files are gone."""
    return Checkpoint.objects.filter(Q(project=project) | Q(project__isnull=True))


def usable_checkpoints(project: Project) -> Any:
    """What the project may train from or promote: those of ``known_checkpoints`` that have their weights."""
    return known_checkpoints(project).filter(removed_at__isnull=True)


def promote_checkpoint(
    *,
    project: Project,
    checkpoint: Checkpoint,
    by: Requester = None,
    reason: str = "",
    is_rollback: bool = False,
    gate: Gate | None = None,
    claim: Callable[[], object] | None = None,
) -> Promotion:
    """Make the checkpoint the project's policy and ask it for new pairs.

    Open pairs of the former policy keep the place in the queue that its own margins gave them: how uncertain a pair is
    is not asked of the new policy again. ``gate``: what decided on it. ``claim``: takes what must still hold, or
    raises; it is called when nobody else can promote any more, and what it writes is written with the promotion.
    """
    if checkpoint.project_id not in (None, project.pk):
        raise Rejected(f"{checkpoint} belongs to another project.")
    registry.weights_of(checkpoint)  # reads every byte, so it comes before the transaction
    with transaction.atomic():
        lock(project)
        registry.refuse_removed(checkpoint)
        if claim:
            claim()
        if current_policy(project) == checkpoint:
            raise Rejected(f"{checkpoint} is the policy already.")
        about = {"promoted_by": by, "reason": reason[:MAX_REASON], "is_rollback": is_rollback, "gate": gate}
        return _promote(Promotion(project=project, checkpoint=checkpoint, **about))


def _promote(promotion: Promotion) -> Promotion:
    """Write the promotion, with all that follows from it; the project is locked."""
    project, by = promotion.project, promotion.promoted_by
    before = current_policy(project)
    promotion.gate = promotion.gate or gate_pairs.decide_by_promotion(promotion, before)
    promotion.save()
    for batch in SampleBatch.objects.active().filter(project=project).exclude(policy=promotion.checkpoint):
        with contextlib.suppress(Rejected):  # it has just ended
            cancel_job(job=batch)
    for gate in gate_pairs.settle_stale(project, promotion.checkpoint):
        with contextlib.suppress(Rejected):  # measured already
            cancel_job(job=gate)
    rule = loop_rule(project)
    if wanted := rule.open_pairs_wanted:
        with contextlib.suppress(Rejected):  # no prompts yet, or it is writing pairs already
            request_samples(project=project, pairs=min(wanted, MAX_PAIRS_PER_BATCH), by=by)
    label_effects.request(promotion, before, rule.effects_per_person)  # behind the pairs, which people wait for
    return promotion


def roll_back(
    *,
    project: Project,
    leaves: Checkpoint | None = None,
    to: Checkpoint | None = None,
    by: Requester = None,
    reason: str = "",
) -> Promotion:
    """Promote the policy before the current one, as a new row. Rolling back twice goes two policies back.

    ``leaves`` and ``to``: the policy that goes and the one that comes back, as whoever asks has seen them; by default
    those of this moment. ``Rejected``, and nothing happens, where they are others once nobody else can promote.
    """
    leaves, to = way_back(project, leaves, to)  # early: the weights of what comes back are read before the lock
    return promote_checkpoint(
        project=project,
        checkpoint=to,
        by=by,
        reason=reason or "Rolled back",
        is_rollback=True,
        claim=lambda: way_back(project, leaves, to),
    )


def way_back(
    project: Project, leaves: Checkpoint | None = None, to: Checkpoint | None = None
) -> tuple[Checkpoint, Checkpoint]:
    """The policy and the one before it; ``Rejected`` if there are none, or they are not ``leaves`` and ``to``."""
    policy, earlier = current_policy(project), policy_before(project)
    if policy is None:
        raise Rejected("Nothing was promoted yet.")
    if leaves not in (None, policy):
        raise Rejected(f"{leaves} is not the policy any more: that is {policy} now. Nothing was rolled back.")
    if earlier is None:
        raise Rejected(f"{policy} is the first policy; there is nothing to roll back to.")
    if to not in (None, earlier):
        raise Rejected(
            f"The policy before {policy} is {earlier} and not {to}. Nothing was rolled back: {policy} is the policy."
        )
    return policy, earlier


def policy_before(project: Project) -> Checkpoint | None:
    """The policy that a rollback goes back to."""
    policies = policies_behind(project)
    return Checkpoint.objects.get(pk=policies[-2]) if len(policies) > 1 else None


def policies_behind(project: Project) -> list[int]:
    """The checkpoints one behind the other, the current policy last: a rollback takes away what it rolled back."""
    return [promotion.checkpoint_id for promotion in reference_choice.promotions_in_force(project)]


# Sampling


@transaction.atomic
def request_samples(
    *, project: Project, pairs: int, decoding: Decoding | None = None, seed: int | None = None, by: Requester = None
) -> SampleBatch:
    """Ask the current policy for pairs on the prompts that have the fewest from it."""
    lock(project)
    policy = current_policy(project)
    if policy is None:
        raise Rejected("The project has no policy yet. Add a model and promote it first.")
    if not 1 <= pairs <= MAX_PAIRS_PER_BATCH:
        raise Rejected(f"Ask for 1 to {MAX_PAIRS_PER_BATCH:,} pairs at a time, not {pairs:,}.")
    if _has_active_batch(project, policy):
        raise Rejected("This policy is already writing pairs for the project. Wait until it is done, or cancel it.")
    decoding = decoding or Decoding()
    prompt_ids = _prompts_to_sample(project, policy, decoding, pairs)
    if not prompt_ids:
        raise Rejected(_why_no_prompt(project, policy))
    batch = SampleBatch.objects.create(
        project=project,
        policy=policy,
        prompt_ids=prompt_ids,
        decoding=decoding.to_dict(),
        seed=new_seed() if seed is None else seed,
        requested_by=by,
    )
    hint_on_commit(batch)
    return batch


def _has_active_batch(project: Project, policy: Checkpoint) -> bool:
    return SampleBatch.objects.active().filter(project=project, policy=policy).exists()


def _why_no_prompt(project: Project, policy: Checkpoint) -> str:
    if not Prompt.objects.in_use().filter(project=project).exists():
        return "There is no prompt to sample from. Import prompts first."
    return (
        f"{policy} could write no pair for any prompt of the project with these settings; the last batch says why. "
        "Import other prompts, or sample with another temperature or length."
    )


def _prompts_to_sample(project: Project, policy: Checkpoint, decoding: Decoding, limit: int) -> list[int]:
    same = SampleBatch.objects.filter(project=project, policy=policy, decoding=decoding.to_dict())
    refused = SampleRefusal.objects.filter(batch__in=same).values("prompt")
    from_policy = PairOrigin.objects.filter(policy=policy, prompt=OuterRef("pk")).order_by()
    written = Coalesce(Subquery(from_policy.values("prompt").annotate(pairs=Count("pk")).values("pairs")), 0)
    prompts = Prompt.objects.in_use().filter(project=project).exclude(pk__in=refused).order_by(written, "?")
    return list(prompts.values_list("pk", flat=True)[:limit])


# Runs


def request_run(
    *,
    project: Project,
    recipe: Recipe,
    reference: Checkpoint | None = None,
    seed: int | None = None,
    by: Requester = None,
    rule: LoopRule | None = None,
    fixed_time: datetime | None = None,
) -> TrainingRun:
    """Freeze the triples of now and queue a DPO run on them; ``Rejected`` with the reason if it makes no sense.

    ``rule``: the retrain rule that asks, as it was when it was found to hold. Of two schedulers one is refused.
    ``fixed_time``: that of the rule's times which this run acts on.
    """
    recipe.check()
    refuse_second_run(project)
    reference, reason = reference_for(project, reference, by)
    recipe = continued(recipe, reference)
    refuse_impossible(recipe, reference)
    snapshot = freeze(project, recipe, reference)
    recipe = recipe.settled(snapshot.train_triples)
    expected = forecast.of_run(project, recipe, reference, snapshot).to_dict()
    try:
        with transaction.atomic():
            lock(project)
            registry.refuse_removed(reference)
            refuse_second_run(project)
            if rule is not None:
                _refuse_stale(rule)
            run = TrainingRun.objects.create(
                project=project,
                number=next_number(project),
                snapshot=snapshot,
                reference=reference,
                reference_reason=reason,
                recipe=recipe.to_dict(),
                forecast=expected,
                seed=new_seed() if seed is None else seed,
                requested_by=by,
                is_automatic=rule is not None,
            )
            move_watermark(snapshot, fixed_time)
            hint_on_commit(run)
    except IntegrityError:
        refuse_second_run(project)
        raise
    return run


def reference_for(project: Project, chosen: Checkpoint | None, by: Requester) -> tuple[Checkpoint, str]:
    """The reference of a run or a sweep, and in one sentence why it is that one; ``Rejected`` if there is none."""
    choice = reference_choice.choose(project)
    if chosen is None and choice is None:
        raise Rejected("The project has no reference model yet. Add a model and promote it first.")
    if choice is not None and chosen in (None, choice.checkpoint):
        return choice
    assert chosen is not None
    return chosen, f"Chosen by {by.get_username()}." if by else "Named in the request."


def freeze(project: Project, recipe: Recipe, reference: Checkpoint) -> DatasetSnapshot:
    """The triples of now, for runs against ``reference``. Whether its weights are there is asked first, and by whoever
    queues the runs once more under the lock: labels are not frozen for what is refused."""
    registry.refuse_removed(reference)
    try:
        snapshot, _ = freeze_snapshot(
            project=project,
            rule=recipe.label_rule,
            reference_hash=reference.content_hash,
            check=refuse_too_little,
        )
    except OSError as error:
        raise Rejected(
            f"The snapshot of the labels could not be written: {error.strerror or error}. Nothing was queued and no "
            "label is lost. See to the disk that holds the data directory, and train again."
        ) from error
    return snapshot


def continued(recipe: Recipe, reference: Checkpoint) -> Recipe:
    """An adapter is trained on at its own rank and in its own layers, so that is what the recipe of the run says."""
    if recipe.method != "lora" or not reference.is_adapter:
        return recipe
    earlier = TrainingRun.objects.filter(checkpoint=reference).first()
    return replace(recipe, **earlier.adapter) if earlier else recipe


def refuse_impossible(recipe: Recipe, reference: Checkpoint) -> None:
    """``Rejected`` for what the recipe alone does not show: the model is smaller, or the workers have no GPU."""
    if recipe.processes > 1 and settings.ENGINE_DEVICE == "cpu":
        raise Rejected(
            f"A run on {recipe.processes} GPUs was asked for, and here training is on the CPU (TIEBREAK_DEVICE), where "
            "one process uses every core. Leave GPUs at 1."
        )
    if recipe.processes > 1 and (recipe.sharding, recipe.mode) == ("fsdp", "fast"):
        raise Rejected(
            "The fast mode runs the lower layers by themselves, which a model that FSDP shares out cannot do. Choose "
            "DDP, or the exact mode; an adapter of the fast mode is trained on in the fast mode."
        )
    shape = registry.shape_of(reference) if recipe.mode == "fast" else None
    if shape and recipe.fast_layers > shape.layers:
        raise Rejected(
            f"The fast mode is to train {recipe.fast_layers} layers, and the model has {shape.layers}. "
            "Choose fewer, or 0 for a third of them."
        )


def _refuse_stale(rule: LoopRule) -> None:
    """Whatever a decision follows from, and another scheduler or a person may have changed since, is on the row."""
    now = LoopRule.objects.select_related("project").get(pk=rule.pk)
    if now.project.is_paused:
        raise Overtaken("The project is paused: an admin ends that in its settings.")
    if not now.retrains or any(getattr(now, name) != getattr(rule, name) for name in LoopRule.DECISIVE):
        raise Overtaken("The rule was changed, or has just been acted on.")
    if watermark(now.project) != rule.trained_preference_id:
        raise Overtaken("A run that had failed was resumed.")


def refuse_second_run(project: Project, but_of: Sweep | None = None) -> None:
    """``Rejected`` while a run or a sweep of the project is active; runs of the sweep ``but_of`` may be."""
    active = TrainingRun.objects.active().filter(project=project).select_related("sweep")
    if going_on := (active.exclude(sweep=but_of) if but_of else active).first():
        raise Overtaken(f"{going_on.sweep or going_on} is still going on. Wait until it is done, or cancel it.")


def next_number(project: Project) -> int:
    return int(TrainingRun.objects.filter(project=project).aggregate(last=Max("number"))["last"] or 0) + 1


def move_watermark(snapshot: DatasetSnapshot, fixed_time: datetime | None = None) -> None:
    """What the snapshot has looked at is new to the retrain rule no more, and ``fixed_time`` of it was acted on."""
    acted_on = {"fixed_time_seen_at": fixed_time, "passed_by": ""} if fixed_time else {}
    LoopRule.objects.filter(project=snapshot.project).update(
        trained_preference_id=snapshot.last_preference_id,
        trained_at=timezone.now(),
        new_triples=0,
        **NOT_REFUSED,
        **acted_on,
    )


def watermark(project: Project) -> int:
    """The newest preference that a run has looked at, but for runs that have failed: what those were to train on is
    new again, unless a person had asked for their end. A sweep gives nothing back: somebody looks at its points."""
    failed = Q(state=Job.State.FAILED, cancel_requested_at__isnull=True, sweep__isnull=True)
    runs = TrainingRun.objects.filter(~failed, project=project)
    return int(runs.aggregate(newest=Max("snapshot__last_preference_id"))["newest"] or 0)


def settle_watermark(rule: LoopRule) -> None:
    """Put the rule's watermark back where runs have failed, and forth where they were resumed; on ``rule`` as well.

    Nothing is written if another run was asked for since ``rule`` was read.
    """
    settled = watermark(rule.project)
    if settled == rule.trained_preference_id:
        return
    unchanged = LoopRule.objects.filter(
        pk=rule.pk, trained_preference_id=rule.trained_preference_id, trained_at=rule.trained_at
    )
    if unchanged.update(trained_preference_id=settled):
        rule.trained_preference_id = settled


def refuse_too_little(counts: TripleCounts) -> None:
    if counts.decided >= MIN_TRAIN_TRIPLES and len(counts.train_prompts) >= MIN_TRAIN_PROMPTS:
        return
    raise Rejected(
        f"There is not enough to train on: {counts.decided} triples on {len(counts.train_prompts)} prompts, "
        f"and at least {MIN_TRAIN_TRIPLES} on {MIN_TRAIN_PROMPTS} are needed. {_where_labels_went(counts)}"
    )


def _where_labels_went(counts: TripleCounts) -> str:
    parts = [
        (counts.ties, "ties"),
        (counts.both_bad, "both-bad judgements"),
        (counts.split_votes, "pairs with split votes"),
    ]
    kept = [f"{number} {name}" for number, name in parts if number]
    if counts.tie_triples:
        kept.append(f"{counts.tie_triples} triples of ties, which teach nothing by themselves")
    if counts.held_out:
        kept.append(f"{counts.held_out} triples on held-out prompts, which are only evaluated on")
    return f"Kept, but not trained on: {', '.join(kept)}." if kept else "Label some pairs first."


def cancel_job(*, job: Job) -> None:
    """Cancel at once what waits; ask the worker of what runs to save and stop."""
    now = timezone.now()
    jobs = type(job).objects.filter(pk=job.pk)
    if jobs.filter(state=Job.State.QUEUED).update(state=Job.State.CANCELLED, finished_at=now, cancel_requested_at=now):
        return
    if not jobs.filter(state=Job.State.RUNNING).update(cancel_requested_at=now):
        job.refresh_from_db()
        raise Rejected(f"{job} is {job.get_state_display().lower()}, so there is nothing to cancel.")


def resume_job(*, job: Job) -> None:
    """Queue a cancelled or failed job again. It goes on from its last saved step with the same frozen inputs."""
    stopped = [Job.State.CANCELLED, Job.State.FAILED]
    try:
        with transaction.atomic():
            _hold_weights(job)
            if isinstance(job, TrainingRun) and not job.is_active:
                refuse_second_run(job.project, but_of=job.sweep)
            resumed = (
                type(job)
                .objects.filter(pk=job.pk, state__in=stopped)
                .update(
                    state=Job.State.QUEUED,
                    attempt=0,
                    cancel_requested_at=None,
                    not_before=None,
                    hinted_at=None,
                    finished_at=None,
                    error_code="",
                    error="",
                    hint="",
                )
            )
    except IntegrityError:
        raise Rejected("Another one is still going on. Wait until it is done, or cancel it.") from None
    if not resumed:
        raise Rejected(f"Only what was cancelled or has failed can be resumed, and {job} was not.")
    job.refresh_from_db()
    hint_on_commit(job)


def _hold_weights(job: Any) -> None:
    """Be ahead of the retention rule, which does not keep what a job reads that has ended."""
    if project := getattr(job, "project", None):  # an export has none: whoever asks for it has the lock
        lock(project)
    job.refresh_from_db()
    registry.refuse_removed(*job.checkpoints_read)


# The loop by itself


def count_new_triples(project: Project, after_preference_id: int, rule: LabelRule | None = None) -> int:
    """Triples by ``rule``, the usual one by default, of pairs with a preference newer than the watermark, and of
    rewrites that are. Costs in the number of new preferences alone; a verdict on an older pair makes nothing new."""
    rule = rule or LabelRule()
    counted = Preference.objects.counted()
    new = counted.filter(project=project, pk__gt=after_preference_id, pair__prompt__is_held_out=False)
    votes = new.exclude(tallies.counts_as(Choice.BOTH_BAD))
    pairs = tallies.by_pair(counted.filter(pair__in=votes.values("pair")))
    gives_triple = tallies.is_judged() if rule.ties == "half" else tallies.is_decided(rule)
    return pairs.filter(gives_triple).count() + new.filter(rewrite__isnull=False).count()


def lock(project: Project) -> None:
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)  # who labels is not kept waiting
