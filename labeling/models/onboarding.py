"""The qualification set: known comparisons with their explanation, and what newcomers answered."""

from __future__ import annotations

from django.conf import settings
from django.core.validators import MaxLengthValidator
from django.db import models
from django.db.models import Q

from labeling.models.pairs import Choice
from labeling.models.projects import Project
from labeling.prompts import MAX_PROMPT_CHARACTERS


class QualificationItem(models.Model):
    """A comparison with the answer that is expected and why. Served to newcomers only; never trained on."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="qualification_items")
    position = models.PositiveSmallIntegerField(default=1)
    messages = models.JSONField()
    response_a = models.TextField(validators=[MaxLengthValidator(MAX_PROMPT_CHARACTERS)])
    response_b = models.TextField(validators=[MaxLengthValidator(MAX_PROMPT_CHARACTERS)])
    choice = models.CharField(max_length=8, choices=Choice.choices)
    explanation = models.TextField(help_text="Shown after the answer: why it is this one.")

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
