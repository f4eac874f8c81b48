"""What the background job found out about the judgements, day by day."""

from __future__ import annotations

from django.db import models

from labeling.models.projects import Project


class QualityReport(models.Model):
    """Agreement, biases and signals of a project as they stood at the end of a day; today's is written anew."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="quality_reports")
    day = models.DateField()
    last_preference_id = models.BigIntegerField(default=0, help_text="The newest judgement it knows.")
    data = models.JSONField(default=dict)
    computed_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-day"]
        constraints = [models.UniqueConstraint(fields=["project", "day"], name="one_quality_report_a_day")]

    def __str__(self) -> str:
        return f"{self.project} on {self.day}"
