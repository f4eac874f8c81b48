"""Celery's view of the work: a message names a row, and ``execution`` looks at it. No task holds logic or state."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from celery import shared_task
from django.db import transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from labeling.places import sweep_expired
from training import execution, notices, supervision
from training.models import CheckpointExport, Gate, HubPush, Job, LabelEffects, SampleBatch, SideBySide, TrainingRun

log = logging.getLogger(__name__)

HINT_AGAIN_AFTER = timedelta(seconds=20)
HINT_AGAIN_AT_MOST_AFTER = timedelta(minutes=5)


@shared_task
def run_training(run_id: int) -> None:
    run = TrainingRun.objects.filter(pk=run_id).first()
    if run is None or run.is_behind:
        return
    supervision.execute(run, execution.Training)
    if run.sweep_id and (behind := TrainingRun.objects.due().filter(sweep=run.sweep_id).order_by("number").first()):
        send_hint(behind)


@shared_task
def run_sampling(batch_id: int) -> None:
    if batch := SampleBatch.objects.filter(pk=batch_id).first():
        supervision.execute(batch, execution.Sampling)


@shared_task
def run_export(export_id: int) -> None:
    if export := CheckpointExport.objects.filter(pk=export_id).first():
        supervision.execute(export, execution.Export)


@shared_task
def run_side_by_side(comparison_id: int) -> None:
    if comparison := SideBySide.objects.filter(pk=comparison_id).first():
        supervision.execute(comparison, execution.Answering)


@shared_task
def run_label_effects(effects_id: int) -> None:
    effects = LabelEffects.objects.filter(pk=effects_id).select_related("project").first()
    # People wait for pairs and not for this; the reconciler asks again.
    if effects and not SampleBatch.objects.due().filter(project=effects.project).exists():
        supervision.execute(effects, execution.Effects)


@shared_task
def run_gate(gate_id: int) -> None:
    if gate := Gate.objects.filter(pk=gate_id).first():
        supervision.execute(gate, execution.Comparing)


@shared_task
def run_push(push_id: int) -> None:
    if push := HubPush.objects.filter(pk=push_id).first():
        supervision.execute(push, execution.Push)


@shared_task
def sweep_leases() -> None:
    sweep_expired()


@shared_task
def reconcile() -> None:
    """Bring rows and workers together again, whatever was lost between them. Harmless to run twice or at once."""
    supervision.recover_expired()
    supervision.clean_staging()
    for job_type in supervision.JOB_TYPES:
        for job in job_type.objects.due():
            if _is_hint_stale(job):
                send_hint(job)


def _is_hint_stale(job: Job) -> bool:
    """Whether the message may be lost. A job that waits behind a long one is asked after more and more rarely."""
    if job.hinted_at is None:
        return True
    patience = HINT_AGAIN_AFTER + (job.hinted_at - job.created_at) / 2
    return timezone.now() - job.hinted_at > min(patience, HINT_AGAIN_AT_MOST_AFTER)


@shared_task
def tell_people() -> None:
    notices.notice_what_happened()
    notices.send_due()


@shared_task
def forget_ended_jobs() -> None:
    supervision.forget_ended_jobs()


TASKS: dict[type[Job], Any] = {
    TrainingRun: run_training,
    SampleBatch: run_sampling,
    CheckpointExport: run_export,
    SideBySide: run_side_by_side,
    LabelEffects: run_label_effects,
    Gate: run_gate,
    HubPush: run_push,
}


def hint_on_commit(job: Job) -> None:
    """Tell a worker about a job once the row that it will look at is there."""
    transaction.on_commit(lambda: send_hint(job))


def send_hint(job: Job) -> None:
    """Send the message. An unreachable broker delays the job and loses nothing: the reconciler sends it again."""
    try:
        TASKS[type(job)].apply_async(args=[job.pk])
    except (OperationalError, OSError) as error:
        log.error("The broker cannot be reached, so %s waits: %s", job, error)
        return
    job.hinted_at = timezone.now()
    type(job).objects.filter(pk=job.pk).update(hinted_at=job.hinted_at)
