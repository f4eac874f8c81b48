"""Candidate against current policy: what was measured, what people said blind, what was decided."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.urls import reverse

from labeling.models import Pair, Project, Prompt
from training.models.checkpoints import Checkpoint
from training.models.jobs import Job, new_seed
from training.models.runs import TrainingRun


class ReleaseRule(models.Model):
    """What happens to a run's checkpoint by itself: what it must show, and who decides."""

    class Decides(models.TextChoices):
        ADMIN = "admin", "An admin, who is told the outcome"
        GATE = "gate", "The gate by itself"

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="release_rule")
    compares = models.BooleanField(default=True, help_text="Compare the checkpoint of each run with the policy.")
    decides = models.CharField(max_length=8, choices=Decides.choices, default=Decides.ADMIN)
    asks_people = models.BooleanField(
        default=False, help_text="Ask annotators too: blind pairs on held-out prompts, among the others."
    )
    most_votes = models.PositiveIntegerField(
        default=300,
        validators=[MinValueValidator(20), MaxValueValidator(5000)],
        help_text="Pairs that people are asked about at most.",
    )
    watches = models.BooleanField(
        default=False, help_text="Go on asking after a promotion, the new policy against the one before."
    )
    watch_votes = models.PositiveIntegerField(
        default=200, validators=[MinValueValidator(20), MaxValueValidator(5000)], help_text="Pairs of such a watch."
    )
    rolls_back = models.BooleanField(default=False, help_text="Roll back by itself when the watch shows a regression.")

    def __str__(self) -> str:
        return f"Release rule of {self.project}"


class Gate(Job):
    """One comparison of a candidate with the current policy, from its measurement to its decision.

    The job is the measurement by an engine. ``stage`` goes on from there: people are asked if the rule asks them, an
    admin if the gate does not decide itself. A watch is the same after a promotion, with what was promoted as the
    candidate, and can end in a rollback.
    """

    again = "start the comparison again"
    reads = ("candidate", "current")

    class Kind(models.TextChoices):
        RELEASE = "release", "Before a promotion"
        WATCH = "watch", "After a promotion"

    class Stage(models.TextChoices):
        MEASURING = "measuring", "Measuring"
        ASKING = "asking", "Asking people"
        WAITING = "waiting", "Waiting for an admin"
        DECIDED = "decided", "Decided"

    class Outcome(models.TextChoices):
        PROMOTE = "promote", "Promote"
        HOLD = "hold", "Hold"
        REJECT = "reject", "Reject"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="gates")
    number = models.PositiveIntegerField(help_text="Counts the gates of the project from 1.")
    kind = models.CharField(max_length=8, choices=Kind.choices, default=Kind.RELEASE)
    candidate = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="gates_as_candidate")
    current = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="gates_as_current")
    run = models.ForeignKey(TrainingRun, on_delete=models.PROTECT, null=True, blank=True, related_name="gates")
    rule = models.JSONField(help_text="The release rule and budgets, as they were when it was asked for.")
    prompt_ids = models.JSONField(default=list, help_text="The frozen held-out prompts, in order.")
    seed = models.PositiveIntegerField(default=new_seed)
    stage = models.CharField(max_length=10, choices=Stage.choices, default=Stage.MEASURING)
    report = models.JSONField(default=dict, blank=True, help_text="Figures of the measurement.")
    votes = models.JSONField(default=dict, blank=True, help_text="What people's votes come to so far.")
    checks = models.JSONField(default=list, blank=True, help_text="Each check: its name, outcome, and words.")
    outcome = models.CharField(max_length=8, choices=Outcome.choices, blank=True)
    advice = models.CharField(
        max_length=8,
        choices=Outcome.choices,
        blank=True,
        help_text="What figures and votes came to, whatever a person decided.",
    )
    reasons = models.JSONField(default=list, blank=True, help_text="Why, in sentences.")
    decided_at = models.DateTimeField(null=True, blank=True)
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta(Job.Meta):
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="gate_number_once"),
            models.UniqueConstraint(
                fields=["project", "candidate", "current", "kind"],
                condition=~Q(stage="decided"),
                name="one_open_gate_each",
            ),
        ]

    def __str__(self) -> str:
        return f"Gate {self.number}"

    def get_absolute_url(self) -> str:
        return reverse("training:gate", args=[self.project.slug, self.number])

    @property
    def is_open(self) -> bool:
        return self.stage != self.Stage.DECIDED

    def setting(self, name: str, default: Any = None) -> Any:
        return self.rule.get(name, default)


class GatePair(models.Model):
    """A blind pair of a gate: which side the candidate wrote. Lives here so that labeling cannot know it."""

    pair = models.OneToOneField(Pair, on_delete=models.CASCADE, related_name="+", primary_key=True)
    gate = models.ForeignKey(Gate, on_delete=models.CASCADE, related_name="pairs")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="+")
    candidate_side = models.CharField(max_length=1, choices=[("a", "Response A"), ("b", "Response B")])

    class Meta:
        constraints = [models.UniqueConstraint(fields=["gate", "prompt"], name="gate_pair_once_per_prompt")]

    def __str__(self) -> str:
        return f"Pair {self.pair_id} of {self.gate}"
