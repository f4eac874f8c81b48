"""Work of engine processes: the row, who holds it, how it ended."""

from __future__ import annotations

import secrets
import uuid
from datetime import timedelta
from functools import reduce
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone


def new_seed() -> int:
    return secrets.randbelow(2**31)


class JobQuerySet(models.QuerySet[Any]):
    def active(self) -> Self:
        return self.filter(state__in=Job.State.active())

    def expired(self) -> Self:
        """Held by a worker that has not renewed its lease. A lease that was never written counts from the claim."""
        held = self.filter(state__in=Job.State.held())
        return held.annotate(until=Coalesce("lease_until", "started_at", "created_at")).filter(until__lt=timezone.now())

    def due(self) -> Self:
        now = timezone.now()
        return self.filter(Q(not_before__isnull=True) | Q(not_before__lte=now), state=Job.State.QUEUED)


class Job(models.Model):
    """Work of an engine process. This row is the truth about it; a Celery message is only a hint to look here.

    A worker claims the row by a conditional UPDATE that raises ``fence``, and every later UPDATE of that worker names
    its fence, so a worker that lost the row can change nothing any more.
    """

    class State(models.TextChoices):
        QUEUED = "queued", "Waiting"
        RUNNING = "running", "Running"
        PUBLISHING = "publishing", "Publishing"
        SUCCEEDED = "succeeded", "Done"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

        @classmethod
        def held(cls) -> list[str]:
            return [cls.RUNNING, cls.PUBLISHING]

        @classmethod
        def active(cls) -> list[str]:
            return [cls.QUEUED, *cls.held()]

        @classmethod
        def terminal(cls) -> list[str]:
            return [cls.SUCCEEDED, cls.FAILED, cls.CANCELLED]

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED)
    attempt = models.PositiveSmallIntegerField(
        default=0, help_text="Times a worker began this job without being told to stop."
    )
    fence = models.PositiveIntegerField(
        default=0, help_text="Raised by every claim; a worker with an old fence is out."
    )
    worker = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    not_before = models.DateTimeField(null=True, blank=True)
    hinted_at = models.DateTimeField(null=True, blank=True, help_text="When a message about this job was last sent.")
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    progress = models.JSONField(default=dict, blank=True, help_text="Step of steps, phase, newest figures.")
    error_code = models.CharField(max_length=40, blank=True)
    error = models.TextField(blank=True)
    hint = models.TextField(blank=True)
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = JobQuerySet.as_manager()
    again: ClassVar[str]  # what a person does to have it tried again, as the end of a sentence
    reads: ClassVar[tuple[str, ...]]  # the fields with the checkpoints whose weights it needs

    class Meta:
        abstract = True
        ordering = ["-pk"]

    @property
    def is_active(self) -> bool:
        return self.state in self.State.active()

    @property
    def checkpoints_read(self) -> list[Any]:
        return [reduce(getattr, field.split("__"), self) for field in self.reads]

    @property
    def is_cancelling(self) -> bool:
        return self.is_active and self.cancel_requested_at is not None

    @property
    def seconds(self) -> float | None:
        if self.started_at is None:
            return None
        return ((self.finished_at or timezone.now()) - self.started_at).total_seconds()

    def claim(self, worker: str) -> bool:
        """Take a queued job. ``False`` if another worker was faster or the job no longer waits."""
        now = timezone.now()
        claimed = (
            type(self)
            .objects.due()
            .filter(pk=self.pk, cancel_requested_at__isnull=True)
            .update(
                state=self.State.RUNNING,
                fence=F("fence") + 1,
                attempt=F("attempt") + 1,
                worker=worker,
                lease_until=now + timedelta(seconds=settings.JOB_LEASE_SECONDS),
                started_at=Coalesce("started_at", now),
                error_code="",
                error="",
                hint="",
            )
        )
        if claimed:
            self.refresh_from_db()
        return claimed == 1

    def update_held(self, **values: Any) -> bool:
        """Change the job if this worker still holds it; ``False`` means that it was fenced out."""
        held = type(self).objects.filter(pk=self.pk, fence=self.fence, state__in=self.State.held())
        return held.update(**values) == 1

    def renew(self, progress: dict[str, Any] | None = None) -> bool:
        values: dict[str, Any] = {"lease_until": timezone.now() + timedelta(seconds=settings.JOB_LEASE_SECONDS)}
        if progress is not None:
            values["progress"] = progress
        return self.update_held(**values) or self._take_back(**values)

    def _take_back(self, **values: Any) -> bool:
        """Hold a job again that was put back in line because its lease ran out, if nobody has claimed it since.

        A machine that slept wakes up with expired leases and healthy engines; nothing of their work is wrong.
        """
        waiting = type(self).objects.filter(
            pk=self.pk, fence=self.fence, state=self.State.QUEUED, cancel_requested_at__isnull=True
        )
        return waiting.update(state=self.State.RUNNING, not_before=None, **values) == 1

    def finish(self, state: State, *, code: str = "", error: str = "", hint: str = "") -> bool:
        return self.update_held(
            state=state, error_code=code, error=error, hint=hint, finished_at=timezone.now(), lease_until=None
        )

    def requeue(self, *, delay: timedelta = timedelta(0), free: bool = False) -> bool:
        """Put a held job back in line. ``free``: it was told to stop, so the attempt does not count."""
        now = timezone.now()
        values: dict[str, Any] = {"attempt": F("attempt") - 1} if free else {}
        # Somebody may have cancelled it this very moment; nobody could claim it then, or cancel it again.
        cancelled = Q(cancel_requested_at__isnull=False)
        return self.update_held(
            state=Case(When(cancelled, then=Value(self.State.CANCELLED)), default=Value(self.State.QUEUED)),
            finished_at=Case(When(cancelled, then=Value(now)), default=None),
            lease_until=None,
            hinted_at=None,
            not_before=now + delay,
            **values,
        )
