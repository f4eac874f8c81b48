"""Checkpoints that labels have gone into which were withdrawn since."""

from __future__ import annotations

from django.db import models

from labeling.models import Withdrawal
from training.models.checkpoints import Checkpoint


class Taint(models.Model):
    """A withdrawal that reaches a checkpoint: labels of its own snapshot, or of one that it descends from."""

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.CASCADE, related_name="taints")
    withdrawal = models.ForeignKey(Withdrawal, on_delete=models.CASCADE, related_name="+")
    preferences = models.PositiveIntegerField(
        help_text="Withdrawn judgements in its own snapshot; 0: by descent alone."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["checkpoint", "withdrawal"], name="taint_once")]

    def __str__(self) -> str:
        return f"{self.checkpoint}: {self.withdrawal}"
