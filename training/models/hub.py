"""Checkpoints that people have sent to the Hugging Face Hub."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from labeling.models import Project
from training.models.checkpoints import Checkpoint
from training.models.jobs import Job


class HubPush(Job):
    """One upload to a repository of the Hub. The token for it is the worker's, and is in no row and no file."""

    again = "push again"
    reads = ("checkpoint",)

    class Variant(models.TextChoices):
        ADAPTER = "adapter", "Adapter"
        MERGED = "merged", "Full weights"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="hub_pushes")
    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.CASCADE, related_name="hub_pushes")
    variant = models.CharField(max_length=8, choices=Variant.choices)
    repo_id = models.CharField(max_length=96, help_text="OWNER/NAME on the Hub.")
    is_private = models.BooleanField(default=True)
    commit_url = models.CharField(max_length=300, blank=True)

    class Meta(Job.Meta):
        verbose_name_plural = "hub pushes"
        constraints = [
            models.UniqueConstraint(
                fields=["repo_id"],
                condition=Q(state__in=["queued", "running", "publishing"]),
                name="one_active_push_per_repo",
            ),
        ]

    def __str__(self) -> str:
        return f"Push of {self.checkpoint} to {self.repo_id}"
