"""A handful of runs on one snapshot that differ in beta and learning rate alone."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.urls import reverse

from labeling.models import Project
from training.models.checkpoints import Checkpoint
from training.models.runs import DatasetSnapshot


class Sweep(models.Model):
    """Its runs draw the frontier of reward against KL; an admin picks one of its points."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="sweeps")
    number = models.PositiveIntegerField(help_text="Counts the sweeps of the project from 1.")
    snapshot = models.ForeignKey(DatasetSnapshot, on_delete=models.PROTECT, related_name="sweeps")
    reference = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="sweeps_as_reference")
    recipe = models.JSONField(help_text="What all of its runs have in common.")
    picked = models.ForeignKey(
        "training.TrainingRun", on_delete=models.PROTECT, null=True, blank=True, related_name="picked_by_sweeps"
    )
    picked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    picked_at = models.DateTimeField(null=True, blank=True)
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["project", "number"], name="sweep_number_once")]

    def __str__(self) -> str:
        return f"Sweep {self.number}"

    def get_absolute_url(self) -> str:
        return reverse("training:sweep", args=[self.project.slug, self.number])
