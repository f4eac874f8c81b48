"""Labels in, policies out: snapshots of triples, jobs, checkpoints and promotions."""

from __future__ import annotations

import secrets
import uuid
from datetime import timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils import timezone

from labeling.models import Pair, Preference, Project, Prompt
from training.jobspec import TrainJob


def new_seed() -> int:
    return secrets.randbelow(2**31)


class Checkpoint(models.Model):
    """An immutable directory of weights with a manifest. Full weights, or an adapter on the weights of ``base``."""

    class Kind(models.TextChoices):
        BASE = "base", "Base"
        SFT = "sft", "SFT"
        DPO = "dpo", "DPO"
        REWARD = "reward", "Reward model"
        RLHF = "rlhf", "RLHF"

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    project = models.ForeignKey(
        Project,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="checkpoints",
        help_text="Empty: for all.",
    )
    kind = models.CharField(max_length=8, choices=Kind.choices)
    name = models.CharField(max_length=120)
    public_name = models.CharField(
        max_length=200, blank=True, help_text="The name under which others can load the base."
    )
    licence = models.CharField(max_length=120, blank=True)
    content_hash = models.CharField(max_length=64, db_index=True, help_text="sha256 over the files, and the base.")
    size_bytes = models.BigIntegerField()
    base = models.ForeignKey("self", on_delete=models.PROTECT, null=True, blank=True, related_name="adapters")
    parent = models.ForeignKey("self", on_delete=models.PROTECT, null=True, blank=True, related_name="children")
    details = models.JSONField(default=dict, blank=True, help_text="Figures from the engine.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_adapter(self) -> bool:
        return self.base_id is not None

    @property
    def short_hash(self) -> str:
        return self.content_hash[:12]

    def descends_from(self, other: Checkpoint) -> bool:
        """Whether its weights were made from those of ``other``: a base or a parent, however far back."""
        seen: set[int] = set()
        waiting = [self]
        while waiting:
            checkpoint = waiting.pop()
            for earlier in (checkpoint.base, checkpoint.parent):
                if earlier is None or earlier.pk in seen:
                    continue
                if earlier.content_hash == other.content_hash:
                    return True
                seen.add(earlier.pk)
                waiting.append(earlier)
        return False


class DatasetSnapshot(models.Model):
    """An immutable, sha256-named file of triples and the exact preferences behind it."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="snapshots")
    sha256 = models.CharField(max_length=64)
    train_triples = models.PositiveIntegerField()
    held_out_triples = models.PositiveIntegerField()
    tie_triples = models.PositiveIntegerField(
        default=0, help_text="Of those to train on: pairs without a better response, with label noise 1/2."
    )
    rewrite_triples = models.PositiveIntegerField(
        default=0, help_text="Of either split: a rewrite and the response that it improves."
    )
    ties = models.PositiveIntegerField(help_text="Kept and counted, but no triple.")
    both_bad = models.PositiveIntegerField(help_text="Kept and counted, but no triple.")
    split_votes = models.PositiveIntegerField(
        default=0, help_text="Pairs with votes for both sides and no majority: no triple."
    )
    last_preference_id = models.BigIntegerField(help_text="The newest preference that was looked at.")
    preferences = models.ManyToManyField(Preference, related_name="snapshots")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "sha256"], name="snapshot_once_per_project")]

    def __str__(self) -> str:
        return f"Snapshot {self.short_hash}"

    @property
    def short_hash(self) -> str:
        return self.sha256[:12]


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

    class Meta:
        abstract = True
        ordering = ["-pk"]

    @property
    def is_active(self) -> bool:
        return self.state in self.State.active()

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


class TrainingRun(Job):
    """One DPO run: a recipe on frozen inputs. Its checkpoint exists exactly when it succeeded."""

    again = "press Resume"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="runs")
    number = models.PositiveIntegerField(help_text="Counts the runs of the project from 1.")
    snapshot = models.ForeignKey(DatasetSnapshot, on_delete=models.PROTECT, related_name="runs")
    reference = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="runs_as_reference")
    checkpoint = models.OneToOneField(
        Checkpoint, on_delete=models.PROTECT, null=True, blank=True, related_name="run", editable=False
    )
    recipe = models.JSONField(help_text="Every hyperparameter, resolved when the run was asked for.")
    seed = models.PositiveIntegerField(default=new_seed)
    is_automatic = models.BooleanField(default=False, help_text="Asked for by the retrain rule.")

    class Meta(Job.Meta):
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="run_number_once"),
            models.UniqueConstraint(
                fields=["project"], condition=Q(state__in=["queued", "running", "publishing"]), name="one_active_run"
            ),
        ]

    def __str__(self) -> str:
        return f"Run {self.number}"

    def get_absolute_url(self) -> str:
        return reverse("training:run", args=[self.project.slug, self.number])

    @property
    def method(self) -> str:
        return "Full fine-tuning" if self.recipe.get("method") == "full" else "LoRA"

    @property
    def is_fast(self) -> bool:
        return bool(self.recipe.get("mode") == "fast")

    @property
    def adapter(self) -> dict[str, Any]:
        """What of the recipe says which matrices its adapter has. Earlier versions had the exact mode alone."""
        plain = {"mode": TrainJob.mode, "fast_layers": TrainJob.fast_layers}
        plain |= {"lora_rank": TrainJob.lora_rank, "lora_alpha": TrainJob.lora_alpha}
        return {name: self.recipe.get(name, value) for name, value in plain.items()}

    @property
    def beta(self) -> float:
        return float(self.recipe.get("beta", TrainJob.beta))


class SampleBatch(Job):
    """A job that writes pairs: which policy, which prompts, which seed and decoding."""

    again = "ask for pairs again"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="batches")
    policy = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="batches")
    prompt_ids = models.JSONField(help_text="The prompts to answer, in order.")
    decoding = models.JSONField(help_text="Temperature, top-p and token limits, resolved when the batch was asked for.")
    seed = models.PositiveIntegerField(default=new_seed)
    pairs_made = models.PositiveIntegerField(default=0)
    prompts_refused = models.PositiveIntegerField(default=0)

    class Meta(Job.Meta):
        verbose_name_plural = "sample batches"
        constraints = [
            models.UniqueConstraint(
                fields=["project", "policy"],
                condition=Q(state__in=["queued", "running", "publishing"]),
                name="one_active_batch_per_policy",
            ),
        ]

    def __str__(self) -> str:
        return f"Batch {self.pk}"

    @property
    def wanted(self) -> int:
        return len(self.prompt_ids)


class PairOrigin(models.Model):
    """Which batch, policy and seeds wrote a pair. Lives here so that labeling cannot know it."""

    pair = models.OneToOneField(Pair, on_delete=models.CASCADE, related_name="+", primary_key=True)
    batch = models.ForeignKey(SampleBatch, on_delete=models.PROTECT, related_name="origins")
    policy = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="+")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="+")
    seed_a = models.PositiveBigIntegerField()
    seed_b = models.PositiveBigIntegerField()
    attempts = models.PositiveSmallIntegerField(default=1, help_text="Tries until the two responses differed.")
    prompt_token_ids = models.JSONField(default=list, blank=True, help_text="The prompt as the policy read it.")
    logps_a = models.JSONField(
        default=list, blank=True, help_text="The policy's log-probability of each token, in nats; empty if not known."
    )
    logps_b = models.JSONField(default=list, blank=True, help_text="The same of the second response.")
    reference_logps_a = models.JSONField(
        default=list, blank=True, help_text="Those of the policy's base, where the policy is an adapter."
    )
    reference_logps_b = models.JSONField(default=list, blank=True, help_text="The same of the second response.")
    margin = models.FloatField(
        null=True, blank=True, help_text="The policy's implicit reward of A less that of B; empty if not known."
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["batch", "prompt"], name="pair_once_per_batch_and_prompt")]

    def __str__(self) -> str:
        return f"Pair {self.pair_id} from batch {self.batch_id}"


class SampleRefusal(models.Model):
    """A prompt of a batch that got no pair, with the reason. It is not asked for again."""

    batch = models.ForeignKey(SampleBatch, on_delete=models.CASCADE, related_name="refusals")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="+")
    reason = models.TextField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["batch", "prompt"], name="refusal_once")]

    def __str__(self) -> str:
        return self.reason


class Promotion(models.Model):
    """From now on this checkpoint is the project's policy. Append-only: a roll-back is a new row."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="promotions")
    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="promotions")
    promoted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    reason = models.CharField(max_length=300, blank=True)
    is_rollback = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.checkpoint} for {self.project}"

    @classmethod
    def first_checkpoint(cls, project: Project) -> Checkpoint | None:
        """The project's first policy: the SFT snapshot that everything is measured against."""
        first = cls.objects.filter(project=project).select_related("checkpoint__base").order_by("pk").first()
        return first.checkpoint if first else None

    @classmethod
    def first_behind(cls, project: Project, reference: Checkpoint) -> Checkpoint | None:
        """The project's first policy where ``reference`` is another model that was made from it, else ``None``.

        A project may have begun with a model of another family, which has other tokens: nothing can be measured
        between the two.
        """
        first = cls.first_checkpoint(project)
        if first is None or first.content_hash == reference.content_hash:
            return None
        return first if reference.descends_from(first) else None


class LoopRule(models.Model):
    """What the scheduler does for a project by itself: keep pairs open, and retrain when enough is new."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="loop_rule")
    open_pairs_wanted = models.PositiveIntegerField(
        default=24,
        validators=[MaxValueValidator(2000)],
        help_text="Sample more when fewer pairs are open. 0 turns it off.",
    )
    retrains = models.BooleanField(default=False, help_text="Train by itself.")
    min_new_triples = models.PositiveIntegerField(
        default=50, validators=[MaxValueValidator(10**6)], help_text="… when at least this many triples are new"
    )
    min_minutes_between = models.PositiveIntegerField(
        default=60, validators=[MaxValueValidator(60 * 24 * 365)], help_text="… and at most once in this many minutes."
    )
    # The watermark: preferences up to here have been trained on, or were looked at by a run that was asked for.
    trained_preference_id = models.BigIntegerField(default=0)
    trained_at = models.DateTimeField(null=True, blank=True)
    # Written by the scheduler so that no page has to count.
    new_triples = models.PositiveIntegerField(default=0)
    verdict = models.CharField(max_length=300, blank=True)
    evaluated_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(min_new_triples__gte=1), name="retrain_needs_new_triples")]

    def __str__(self) -> str:
        return f"Rule of {self.project}"


class CheckpointExport(Job):
    """Merged weights of an adapter checkpoint, made on demand and kept for download."""

    again = "prepare the weights again"

    checkpoint = models.OneToOneField(Checkpoint, on_delete=models.CASCADE, related_name="merged_export")
    sha256 = models.CharField(max_length=64, blank=True)
    size_bytes = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"Merged weights of {self.checkpoint}"
