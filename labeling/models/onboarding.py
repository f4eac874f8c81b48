"""The qualification set: known comparisons with their explanation, what newcomers answered, and how each try ended."""

from __future__ import annotations

from django.conf import settings
from django.core.validators import MaxLengthValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from labeling.models.pairs import Choice
from labeling.models.projects import Project
from labeling.prompts import MAX_PROMPT_CHARACTERS


class QualificationItem(models.Model):
    """A comparison with the answer that is expected and why. Served to newcomers only; never trained on.

    Its content never changes once somebody has answered it: an edit is a new item, and the old one is active no more.
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="qualification_items")
    position = models.PositiveSmallIntegerField(default=1)
    messages = models.JSONField()
    response_a = models.TextField(validators=[MaxLengthValidator(MAX_PROMPT_CHARACTERS)])
    response_b = models.TextField(validators=[MaxLengthValidator(MAX_PROMPT_CHARACTERS)])
    choice = models.CharField(max_length=8, choices=Choice.choices)
    explanation = models.TextField(help_text=_("Shown after the answer: why it is this one."))
    is_active = models.BooleanField(default=True, help_text="Part of the set; the others are kept for their answers.")

    class Meta:
        ordering = ["position", "pk"]
        constraints = [
            models.CheckConstraint(condition=Q(choice__in=Choice.values), name="qualification_choice_is_known")
        ]

    def __str__(self) -> str:
        return f"Qualification item {self.position} of {self.project}"


class QualificationAnswer(models.Model):
    """What somebody answered to an item in one try. Never changes."""

    item = models.ForeignKey(QualificationItem, on_delete=models.CASCADE, related_name="answers")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    attempt = models.PositiveSmallIntegerField()
    choice = models.CharField(max_length=8, choices=Choice.choices)
    shown_left = models.CharField(max_length=1, choices=[("a", "Response A"), ("b", "Response B")])
    is_right = models.BooleanField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["item", "annotator", "attempt"], name="one_qualification_answer_a_try")
        ]

    def __str__(self) -> str:
        return f"{self.annotator}: {self.get_choice_display()}"


class QualificationResult(models.Model):
    """How one person's try ended, by the rule and the set of that day. Never changes."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="qualification_results")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    attempt = models.PositiveSmallIntegerField()
    right = models.PositiveSmallIntegerField()
    asked = models.PositiveSmallIntegerField()
    is_passed = models.BooleanField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["attempt"]
        constraints = [
            models.UniqueConstraint(fields=["project", "annotator", "attempt"], name="one_qualification_result_a_try"),
            models.CheckConstraint(condition=Q(right__lte=models.F("asked")), name="qualification_right_within_asked"),
        ]

    def __str__(self) -> str:
        return f"{self.annotator}: {self.right} of {self.asked}"
