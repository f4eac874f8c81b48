"""What the commands of training share: finding rows by the words of a command line, and waiting for a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError

from labeling.models import Project
from training import services
from training.models import Checkpoint, Job

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0


def project_named(slug: str) -> Project:
    project = Project.objects.filter(slug=slug).first()
    if project is None:
        known = ", ".join(Project.objects.values_list("slug", flat=True)[:20]) or "none"
        raise CommandError(f"There is no project “{slug}”. Known: {known}.")
    return project


def checkpoint_named(project: Project, word: str) -> Checkpoint:
    """A checkpoint by its name, uuid, or the beginning of its content hash."""
    rows = list(services.usable_checkpoints(project).order_by("pk"))
    found = [
        row
        for row in rows
        if word in (row.name, str(row.uuid)) or (len(word) >= 6 and row.content_hash.startswith(word))
    ]
    if len(found) == 1:
        checkpoint: Checkpoint = found[0]
        return checkpoint
    if found:
        raise CommandError(
            f"“{word}” names {len(found)} checkpoints; use the uuid: {', '.join(str(row.uuid) for row in found)}."
        )
    raise CommandError(f"There is no checkpoint “{word}”. Known: {', '.join(row.name for row in rows) or 'none'}.")


def wait_for(job: Job, say: Callable[[str], None]) -> None:
    """Report progress until the job has ended. Raises ``CommandError`` if it did not succeed or no worker takes it."""
    shown = ""
    queued_since = time.monotonic()
    while job.is_active:
        if (line := _progress_line(job)) != shown:
            say(line)
            shown = line
        if job.state != Job.State.QUEUED:
            queued_since = time.monotonic()
        elif time.monotonic() - queued_since > PATIENCE_SECONDS:
            raise CommandError(
                f"No worker has taken {job} for {PATIENCE_SECONDS:.0f} s. It stays queued; start script/server."
            )
        time.sleep(POLL_SECONDS)
        job.refresh_from_db()
    if job.state != Job.State.SUCCEEDED:
        raise CommandError(f"{job}: {job.get_state_display().lower()}. {job.error} {job.hint}".strip())
    say(f"{job}: done.")


def _progress_line(job: Job) -> str:
    progress: dict[str, Any] = job.progress
    if "steps" in progress and progress.get("phase", "training") == "training":
        figures = f"loss {progress['loss']:.4f}, margin {progress['reward_margin']:.4f}"
        return f"{job}: step {progress['step']} of {progress['steps']}, {figures}"
    if progress.get("done") and progress.get("total"):
        return f"{job}: {progress.get('phase') or 'sampling'}, {progress['done']} of {progress['total']}"
    return f"{job}: {progress.get('phase') or job.get_state_display().lower()}"
