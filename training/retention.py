"""Which old checkpoints may lose their weights, and the deleting of them.

What is deleted are weight files and archives. The row, the manifest, the card and the small files stay, and
``removed_at`` says since when. A checkpoint that anything may still need is kept, whatever the rule says: each reason
is a sentence, which the page shows.

Whoever makes something need a checkpoint does so under the lock of its project and asks ``registry.refuse_removed``
there. The mark is set under the same lock, before any file goes: so either the rule sees the need, or the other sees
the mark.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from django.db import transaction
from django.db.models import Max, Q
from django.utils import timezone

from labeling.models import Project
from training import gate_pairs, services, store, withdrawing
from training.exceptions import CheckpointDamaged, Rejected
from training.models import (
    Checkpoint,
    CheckpointExport,
    Gate,
    HubPush,
    Job,
    LabelEffects,
    Promotion,
    RetentionRule,
    SampleBatch,
    SideBySide,
    Sweep,
    TrainingRun,
)
from training.supervision import RESUME_PERIOD

log = logging.getLogger(__name__)

WEIGHTS = ".safetensors"
FINISH_WITHIN = timedelta(days=7)  # that a deletion which broke off is gone on with
# Every kind of job needs weights while it is active; what it does with them.
READERS: dict[type[Job], str] = {
    TrainingRun: "{} trains from it.",
    SampleBatch: "{} writes pairs with it.",
    CheckpointExport: "{} is being prepared.",
    HubPush: "{} is under way.",
    SideBySide: "{} asks it.",
    LabelEffects: "{} compares it.",
    Gate: "{} measures it.",
}
Reasons = dict[int, str]  # by checkpoint: why it is kept


@dataclass(frozen=True)
class Plan:
    """What the rule comes to at this moment: which checkpoints would lose their files, and why others keep theirs."""

    old: list[Checkpoint]
    kept: list[tuple[Checkpoint, str]]
    sizes: dict[int, int]  # bytes that would become free, by checkpoint of ``old``

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    @property
    def rows(self) -> list[tuple[Checkpoint, int]]:
        return [(checkpoint, self.sizes[checkpoint.pk]) for checkpoint in self.old]


def rule_of(project: Project) -> RetentionRule:
    rule, _ = RetentionRule.objects.get_or_create(project=project)
    return rule


def preview(project: Project, rule: RetentionRule) -> Plan:
    """What the rule would delete now, whether it is on or not."""
    mine = _with_weights(project)
    reasons = why_kept(project, rule)
    old = [checkpoint for checkpoint in mine if checkpoint.pk not in reasons]
    kept = [(checkpoint, reasons[checkpoint.pk]) for checkpoint in mine if checkpoint.pk in reasons]
    return Plan(old, kept, {checkpoint.pk: freed_by(checkpoint) for checkpoint in old})


def apply_rules() -> None:
    """Once a day: what the rules that are on say, and what broke off before."""
    for rule in RetentionRule.objects.filter(is_on=True).select_related("project"):
        clear(rule.project, rule)
    recently = timezone.now() - FINISH_WITHIN
    for checkpoint in Checkpoint.objects.filter(removed_at__gte=recently).select_related("project"):
        _could_delete(checkpoint)


def clear(project: Project, rule: RetentionRule) -> list[Checkpoint]:
    """Mark what the rule lets go, then delete its files. Returns the checkpoints whose files are gone."""
    with transaction.atomic():
        services.lock(project)
        mine = _with_weights(project)  # first: one that a worker publishes meanwhile is in neither
        reasons = why_kept(project, rule)
        old = [checkpoint for checkpoint in mine if checkpoint.pk not in reasons]
        Checkpoint.objects.filter(pk__in=[each.pk for each in old]).update(removed_at=timezone.now())
    for checkpoint in old:
        log.info("%s: the retention rule of %s deletes its weights", checkpoint, project)
    return [checkpoint for checkpoint in old if _could_delete(checkpoint)]


def _could_delete(checkpoint: Checkpoint) -> bool:
    """A file that cannot be deleted must not keep all others; it is tried again every day for a while."""
    try:
        delete_files(checkpoint)
    except OSError:
        log.exception("%s: its weights could not be deleted", checkpoint)
        return False
    return True


def _with_weights(project: Project) -> list[Checkpoint]:
    return list(Checkpoint.objects.filter(project=project, removed_at__isnull=True).select_related("project"))


def delete_files(checkpoint: Checkpoint) -> None:
    """Delete the weights and archives of a checkpoint that is marked as removed. Harmless to do twice."""
    with transaction.atomic():
        if checkpoint.project is not None:
            services.lock(checkpoint.project)
        if not Checkpoint.objects.filter(pk=checkpoint.pk, removed_at__isnull=False).exists():
            return  # brought back meanwhile
        for path in _weight_files(checkpoint):
            path.unlink(missing_ok=True)
        store.remove_archives(checkpoint.uuid)


def freed_by(checkpoint: Checkpoint) -> int:
    archives = [store.archive_path(checkpoint.uuid, variant) for variant in store.VARIANTS]
    return sum(path.stat().st_size for path in [*_weight_files(checkpoint), *archives] if path.is_file())


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    directory = store.checkpoint_dir(checkpoint.uuid)
    return [path for path in directory.glob(f"*{WEIGHTS}") if path.is_file()] if directory.is_dir() else []


def why_kept(project: Project, rule: RetentionRule, now: datetime | None = None) -> Reasons:
    """Every checkpoint that must keep its files, with the first reason found for it.

    Its bases, parents and references are among them, however far back: an adapter cannot be loaded without its base,
    and nothing of what is kept loses what it was made from.
    """
    now = now or timezone.now()
    reasons: Reasons = {}
    for checkpoint_id, why in _needed(project, rule, now):
        reasons.setdefault(checkpoint_id, why)
    _add_ancestors(project, reasons)
    return reasons


def _needed(project: Project, rule: RetentionRule, now: datetime) -> Iterator[tuple[int, str]]:
    yield from _policies(project)
    yield from _runs(project, now)
    yield from _jobs()
    yield from _gates(project, now)
    yield from _rebuilds(project)
    yield from _sweeps(project, now - timedelta(days=rule.keep_days))
    yield from _by_age(project, rule, now)


def _policies(project: Project) -> Iterator[tuple[int, str]]:
    chain = services.policies_behind(project)
    if chain:
        yield chain[-1], "It is the policy."
    if (first := Promotion.first_checkpoint(project)) is not None:
        yield first.pk, "It was the first policy, which every later one is measured against."
    for checkpoint_id in chain[:-1]:
        yield checkpoint_id, "Rolling back can make it the policy again."


def _runs(project: Project, now: datetime) -> Iterator[tuple[int, str]]:
    stopped = TrainingRun.objects.filter(
        project=project, state__in=[Job.State.FAILED, Job.State.CANCELLED], finished_at__gte=now - RESUME_PERIOD
    )
    for run in stopped:
        yield run.reference_id, f"{run} can be resumed, and trains from it."


def _jobs() -> Iterator[tuple[int, str]]:
    """Of whichever project: a job reads the weights of its checkpoints when a worker gets to it."""
    for model, words in READERS.items():
        for job in model.objects.active().select_related(*model.reads):
            for checkpoint in job.checkpoints_read:
                yield checkpoint.pk, words.format(job)


def _gates(project: Project, now: datetime) -> Iterator[tuple[int, str]]:
    for gate in Gate.objects.filter(project=project).exclude(stage=Gate.Stage.DECIDED):
        yield gate.candidate_id, f"{gate} has not decided about it yet."
        yield gate.current_id, f"{gate} compares with it."
    policy = services.current_policy(project)
    stopped = Gate.objects.filter(project=project, state__in=[Job.State.FAILED, Job.State.CANCELLED])
    for gate in stopped.filter(finished_at__gte=now - RESUME_PERIOD).select_related("candidate", "current"):
        if not gate_pairs.why_stale(gate, policy):
            for checkpoint_id in (gate.candidate_id, gate.current_id):
                yield checkpoint_id, f"{gate} can be started again, and measures it."


def _rebuilds(project: Project) -> Iterator[tuple[int, str]]:
    for run in withdrawing.runs_to_rebuild(project):
        try:
            reference, _ = withdrawing.clean_reference(run)
        except Rejected:
            continue  # it cannot be made again before another is
        yield reference.pk, f"{run} can be made again without what was withdrawn, and trains from it."


def _sweeps(project: Project, since: datetime) -> Iterator[tuple[int, str]]:
    """The points of a sweep stay together until somebody has picked one, or its newest is old as well."""
    newest = Max("runs__checkpoint__created_at")
    open_sweeps = Sweep.objects.filter(project=project, picked__isnull=True).annotate(newest=newest)
    waiting = open_sweeps.filter(Q(newest__gte=since) | Q(runs__state__in=Job.State.active()))
    for run in TrainingRun.objects.filter(sweep__in=waiting.values("pk")).select_related("sweep"):
        if run.checkpoint_id is not None:
            yield run.checkpoint_id, f"Nobody has picked a point of {run.sweep} yet."


def _by_age(project: Project, rule: RetentionRule, now: datetime) -> Iterator[tuple[int, str]]:
    mine = Checkpoint.objects.filter(project=project).order_by("-pk")
    for checkpoint_id in mine.values_list("pk", flat=True)[: rule.keep_last]:
        yield checkpoint_id, f"It is one of the newest {rule.keep_last}."
    young = mine.filter(created_at__gte=now - timedelta(days=rule.keep_days))
    for checkpoint_id in young.values_list("pk", flat=True):
        yield checkpoint_id, f"It is younger than {rule.keep_days} days."


def _add_ancestors(project: Project, reasons: Reasons) -> None:
    """Base, parent and, of one that came from a run, its reference, of all that is kept; however far back."""
    columns = ("pk", "name", "base_id", "parent_id", "run__reference_id")
    rows = Checkpoint.objects.filter(project=project).values_list(*columns)
    behind = {pk: (name, base, {parent, reference}) for pk, name, base, parent, reference in rows}
    waiting = [pk for pk in reasons if pk in behind]
    while waiting:
        name, base, made_from = behind[waiting.pop()]
        words = dict.fromkeys(made_from, f"{name} was trained from it.") | {base: f"{name} is an adapter on it."}
        for pk, why in words.items():
            if pk in behind and pk not in reasons:
                reasons[pk] = why
                waiting.append(pk)


def bring_back(checkpoint: Checkpoint, source: Path) -> None:
    """Put the weights of a removed checkpoint back from ``source``, a directory with all its files.

    They must be those that were removed, by content hash; ``CheckpointDamaged`` says what is not.
    """
    files = store.list_files(source)
    if store.content_hash(files, checkpoint.base.content_hash if checkpoint.base else None) != checkpoint.content_hash:
        raise CheckpointDamaged(f"These are other weights than those that {checkpoint} had, so it stays as it is.")
    with transaction.atomic():
        if checkpoint.project is not None:
            services.lock(checkpoint.project)
        store.put_back(checkpoint.uuid, source, [file.path for file in files if file.path.endswith(WEIGHTS)])
        Checkpoint.objects.filter(pk=checkpoint.pk).update(removed_at=None)
    checkpoint.refresh_from_db(fields=["removed_at"])
