"""What the background job found out about the judgements, day by day."""

from __future__ import annotations

from datetime import datetime

from django.db import models

from labeling.models.projects import Project


class QualityReport(models.Model):
    """Agreement, biases and signals of a project as they stood at the end of a day; today's is written anew."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="quality_reports")
    day = models.DateField()
    last_preference_id = models.BigIntegerField(default=0, help_text="The newest judgement it knows.")
    data = models.JSONField(default=dict)
    computed_at = models.DateTimeField(auto_now=True)  # of its last change; ``as_of`` is that of the figures

    class Meta:
        ordering = ["-day"]
        constraints = [models.UniqueConstraint(fields=["project", "day"], name="one_quality_report_a_day")]

    def __str__(self) -> str:
        return f"{self.project} on {self.day}"

    @property
    def as_of(self) -> datetime:
        """When its figures were found. Between two measurements of everything only probabilities are written anew."""
        found = self.data.get("reach", {}).get("whole", {}).get("at")
        return datetime.fromisoformat(found) if found else self.computed_at
