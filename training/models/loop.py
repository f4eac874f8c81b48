"""What happens to a project by itself."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from labeling.models import Project


class LoopRule(models.Model):
    """What the scheduler does for a project by itself: keep pairs open, and retrain when enough is new."""

    class Reference(models.TextChoices):
        FIRST = "first", "The first policy, for ever"
        PROMOTED = "promoted", "The promoted policy, while it is within the budget"

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="loop_rule")
    open_pairs_wanted = models.PositiveIntegerField(
        default=24,
        validators=[MaxValueValidator(2000)],
        help_text="Sample more when fewer pairs are open. 0 turns it off.",
    )
    effects_per_person = models.PositiveSmallIntegerField(
        default=6,
        validators=[MaxValueValidator(50)],
        help_text="Judged pairs of each person that are looked at again after a promotion. 0 turns it off.",
    )
    retrains = models.BooleanField(default=False, help_text="Train by itself.")
    min_new_triples = models.PositiveIntegerField(
        default=50, validators=[MaxValueValidator(10**6)], help_text="… when at least this many triples are new"
    )
    min_minutes_between = models.PositiveIntegerField(
        default=60, validators=[MaxValueValidator(60 * 24 * 365)], help_text="… and at most once in this many minutes."
    )
    fixed_times = models.JSONField(
        default=list,
        blank=True,
        help_text="Times of day, as HH:MM in the server's time zone, at which alone a run may start; empty: at any.",
    )
    most_runs_a_day = models.PositiveSmallIntegerField(
        default=8, help_text="Runs that the rule may start from one midnight to the next; 0: as many as it likes."
    )
    paused_at = models.DateTimeField(null=True, blank=True, help_text="Since when the rule starts no run.")
    paused_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    paused_until = models.DateTimeField(null=True, blank=True, help_text="Empty: until somebody ends the pause.")
    recipe = models.JSONField(
        default=dict, blank=True, help_text="What differs from the usual recipe in runs of the rule."
    )
    recipe_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    reference = models.CharField(max_length=8, choices=Reference.choices, default=Reference.FIRST)
    kl_first_budget = models.FloatField(
        default=40.0,
        validators=[MinValueValidator(0.1), MaxValueValidator(10_000)],
        help_text="Nats a response that a policy may be away from the first one.",
    )
    # The watermark: preferences up to here have been trained on, or were looked at by a run that was asked for and has
    # not failed (``services.watermark``).
    trained_preference_id = models.BigIntegerField(default=0)
    trained_at = models.DateTimeField(null=True, blank=True)
    fixed_time_seen_at = models.DateTimeField(
        null=True, blank=True, help_text="The newest of the fixed times that was acted on, or let pass."
    )
    passed_by = models.TextField(blank=True, help_text="What became of that time, if no run started at it.")
    refused_at = models.DateTimeField(
        null=True, blank=True, help_text="When the rule asked for a run that was refused, if nothing has changed since."
    )
    refusal = models.TextField(blank=True, help_text="Why that run was refused.")
    # Written by the scheduler so that no page has to count.
    new_triples = models.PositiveIntegerField(default=0)
    verdict = models.TextField(blank=True)
    evaluated_at = models.DateTimeField(null=True, blank=True)

    # What decides whether a run starts, and which. Of two who have read the same values only one may act on them.
    DECISIVE: ClassVar[tuple[str, ...]] = (
        *("retrains", "min_new_triples", "min_minutes_between", "fixed_times", "most_runs_a_day", "paused_at"),
        *("paused_until", "recipe", "reference", "kl_first_budget"),
        *("trained_preference_id", "trained_at", "fixed_time_seen_at"),
    )

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(min_new_triples__gte=1), name="retrain_needs_new_triples")]

    def __str__(self) -> str:
        return f"Rule of {self.project}"
