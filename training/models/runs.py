"""Frozen triples, and the runs that train on them."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models import Q
from django.urls import reverse

from labeling.models import Preference, Project
from training.jobspec import TrainJob
from training.models.checkpoints import Checkpoint
from training.models.jobs import Job, new_seed


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


class TrainingRun(Job):
    """One DPO run: a recipe on frozen inputs. Its checkpoint exists exactly when it succeeded."""

    again = "press Resume"
    reads = ("reference",)

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
    reference_reason = models.TextField(blank=True, help_text="In one sentence: why this reference.")
    forecast = models.JSONField(default=dict, blank=True, help_text="What was expected of it when it was asked for.")
    not_compared = models.TextField(blank=True, help_text="Why its checkpoint was refused a gate, if it was.")
    sweep = models.ForeignKey("training.Sweep", on_delete=models.PROTECT, null=True, blank=True, related_name="runs")
    rebuild_of = models.ForeignKey(
        "self",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="rebuilds",
        help_text="The run that is made again without the labels that were withdrawn since.",
    )

    class Meta(Job.Meta):
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="run_number_once"),
            models.UniqueConstraint(
                fields=["project"],
                condition=Q(state__in=["queued", "running", "publishing"], sweep__isnull=True),
                name="one_active_run",
            ),
        ]

    def __str__(self) -> str:
        return f"Run {self.number}"

    def get_absolute_url(self) -> str:
        return reverse("training:run", args=[self.project.slug, self.number])

    @property
    def is_behind(self) -> bool:
        """Whether another run of its sweep comes first. They go one after the other, however many workers there are:
        the first reads the reference for all of them.
        """
        others = type(self).objects.active().filter(sweep=self.sweep_id).exclude(pk=self.pk)
        before_it = others.filter(Q(number__lt=self.number) | Q(state__in=self.State.held()))
        return self.sweep_id is not None and before_it.exists()

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
