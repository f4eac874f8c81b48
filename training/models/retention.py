"""How long the weights of old checkpoints stay on the disk."""

from __future__ import annotations

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from labeling.models import Project


class RetentionRule(models.Model):
    """Which of a project's checkpoints may lose their files. What something still needs is kept whatever it says."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="retention_rule")
    is_on = models.BooleanField(default=False, help_text="Delete the weights of old checkpoints once a day.")
    keep_last = models.PositiveIntegerField(
        default=5,
        validators=[MinValueValidator(1), MaxValueValidator(10_000)],
        help_text="The newest checkpoints of the project that keep their weights in any case.",
    )
    keep_days = models.PositiveIntegerField(
        default=30,
        validators=[MinValueValidator(1), MaxValueValidator(3650)],
        help_text="Younger checkpoints keep theirs too.",
    )

    def __str__(self) -> str:
        return f"Retention rule of {self.project}"
