"""What happens to a project by itself."""

from __future__ import annotations

from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import Q

from labeling.models import Project


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
