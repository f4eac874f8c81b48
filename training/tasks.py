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
from training import execution, supervision
from training.models import CheckpointExport, HubPush, Job, SampleBatch, TrainingRun

log = logging.getLogger(__name__)

HINT_AGAIN_AFTER = timedelta(seconds=20)
HINT_AGAIN_AT_MOST_AFTER = timedelta(minutes=5)


@shared_task
def run_training(run_id: int) -> None:
    if run := TrainingRun.objects.filter(pk=run_id).first():
        supervision.execute(run, execution.Training)


@shared_task
def run_sampling(batch_id: int) -> None:
    if batch := SampleBatch.objects.filter(pk=batch_id).first():
        supervision.execute(batch, execution.Sampling)


@shared_task
def run_export(export_id: int) -> None:
    if export := CheckpointExport.objects.filter(pk=export_id).first():
        supervision.execute(export, execution.Export)


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
def forget_ended_jobs() -> None:
    supervision.forget_ended_jobs()


TASKS: dict[type[Job], Any] = {
    TrainingRun: run_training,
    SampleBatch: run_sampling,
    CheckpointExport: run_export,
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
