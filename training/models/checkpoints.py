"""Checkpoints, and which of them was a project's policy when."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models

from labeling.models import Project
from training.models.jobs import Job


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
    manifest_sha256 = models.CharField(
        max_length=64, blank=True, help_text="Of manifest.json as published; empty of earlier versions."
    )
    removed_at = models.DateTimeField(
        null=True, blank=True, help_text="When the retention rule deleted its files; the row stays."
    )
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


class Promotion(models.Model):
    """From now on this checkpoint is the project's policy. Append-only: a roll-back is a new row."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="promotions")
    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="promotions")
    promoted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    reason = models.CharField(max_length=300, blank=True)
    is_rollback = models.BooleanField(default=False)
    gate = models.OneToOneField(
        "training.Gate", on_delete=models.PROTECT, null=True, blank=True, related_name="promotion"
    )
    not_watched = models.TextField(blank=True, help_text="Why the watch that the rule wants has not begun, if so.")
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


class CheckpointExport(Job):
    """Full weights of a checkpoint in one file, made on demand and kept for download."""

    again = "prepare the weights again"
    reads = ("checkpoint",)

    class Variant(models.TextChoices):
        MERGED = "merged", "Full weights"
        GGUF = "gguf", "GGUF"

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.CASCADE, related_name="exports")
    variant = models.CharField(max_length=8, choices=Variant.choices, default=Variant.MERGED)
    sha256 = models.CharField(max_length=64, blank=True)
    size_bytes = models.BigIntegerField(default=0)

    class Meta(Job.Meta):
        constraints = [models.UniqueConstraint(fields=["checkpoint", "variant"], name="export_once_per_variant")]

    def __str__(self) -> str:
        return f"{self.get_variant_display()} of {self.checkpoint}"
