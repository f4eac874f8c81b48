"""Labels that were taken back for good: somebody's, those on a prompt, or a single one."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from labeling.models.projects import Project


class Withdrawal(models.Model):
    """Who took what back, when and why. The judgements stay as rows, point here, and count nowhere. Append-only."""

    REASON_LENGTH = 500

    class Kind(models.TextChoices):
        ANNOTATOR = "annotator", "All of one annotator's judgements"
        PROMPT = "prompt", "A prompt, with everything judged on it"
        PREFERENCE = "preference", "One judgement"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="withdrawals")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    prompt = models.ForeignKey("labeling.Prompt", on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    preference = models.ForeignKey(
        "labeling.Preference", on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    reason = models.CharField(max_length=REASON_LENGTH, blank=True)
    judgements = models.PositiveIntegerField(default=0, help_text="How many judgements it took out.")
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, blank=True, help_text="When the last judgement was taken out.")

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Withdrawal {self.pk}"
