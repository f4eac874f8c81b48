"""What people are told of: in the app, and by e-mail if they wish."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q

from labeling.models import Project


class Notice(models.Model):
    """One thing that happened, for one person. ``key`` names the event, so that it is told once."""

    class Kind(models.TextChoices):
        RUN_FINISHED = "run_finished", "A run has finished"
        RUN_FAILED = "run_failed", "A run has failed"
        GATE_WAITING = "gate_waiting", "A gate waits for a decision"
        POLICY_CHANGED = "policy_changed", "Another policy was promoted, or rolled back to"
        QUEUE_EMPTY = "queue_empty", "Nobody has anything to label"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="notices")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="notices")
    kind = models.CharField(max_length=16, choices=Kind.choices)
    key = models.CharField(max_length=120)
    title = models.CharField(max_length=200)
    body = models.TextField(blank=True)
    url = models.CharField(max_length=300, help_text="The path of the page to look at.")
    created_at = models.DateTimeField(auto_now_add=True)
    read_at = models.DateTimeField(null=True, blank=True)
    email_due_at = models.DateTimeField(null=True, blank=True, help_text="Empty: no e-mail is to be sent any more.")
    email_tries = models.PositiveSmallIntegerField(default=0)
    emailed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-pk"]
        constraints = [models.UniqueConstraint(fields=["user", "key"], name="notice_once")]
        indexes = [
            models.Index(fields=["user"], name="notice_unread", condition=Q(read_at__isnull=True)),
            models.Index(fields=["email_due_at"], name="notice_to_send", condition=Q(email_due_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return self.title


class NoticeSetting(models.Model):
    """Of which kinds somebody wants no e-mail, in one project. The app shows all."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    not_by_email = models.JSONField(default=list, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "project"], name="notice_setting_once")]

    def __str__(self) -> str:
        return f"{self.user} in {self.project}"
