"""What all of these pages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.shortcuts import get_object_or_404

from labeling.access import SignedInRequest, role_of
from labeling.models import Project
from training import services
from training.exceptions import Rejected
from training.models import Checkpoint, Job, TrainingRun


def frame(request: SignedInRequest, project: Project) -> dict[str, Any]:
    return {
        "project": project,
        "role": role_of(request.user, project),
        "policy": services.current_policy(project),
    }


def run_or_404(project: Project, number: int) -> TrainingRun:
    runs = TrainingRun.objects.select_related(
        "project", "snapshot", "reference", "checkpoint", "requested_by", "sweep", "rebuild_of"
    )
    found: TrainingRun = get_object_or_404(runs, project=project, number=number)
    return found


def checkpoint_or_404(project: Project, uuid: UUID) -> Checkpoint:
    rows = services.known_checkpoints(project).select_related("base", "parent")
    found: Checkpoint = get_object_or_404(rows, uuid=uuid)
    return found


def say(request: SignedInRequest, act: Callable[[], Any], success: str) -> None:
    """Do it, and tell the person how it went."""
    try:
        outcome = act()
    except Rejected as refusal:
        messages.error(request, str(refusal))
        return
    if success:
        messages.success(request, success)
    if isinstance(outcome, Job):
        tell_if_unheard(request, outcome)


def tell_if_unheard(request: SignedInRequest, job: Job) -> None:
    if job.is_active and job.hinted_at is None:
        messages.error(
            request,
            f"{job} is kept, but the message broker cannot be reached, so no worker knows of it. "
            "It starts by itself once the broker is back.",
        )
