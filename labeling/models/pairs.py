"""What is compared: prompts, responses and pairs of them."""

from __future__ import annotations

import random
from typing import Self

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from labeling.models.projects import Project
from labeling.prompts import Message


def new_random_key() -> float:
    return random.random()  # noqa: S311  (an order, not a secret)


class PromptQuerySet(models.QuerySet["Prompt"]):
    def in_use(self) -> Self:
        """Those that people and policies may be asked about: not withdrawn."""
        return self.filter(withdrawn_at__isnull=True)


class Prompt(models.Model):
    """x: a chat that ends with the user's turn. Never changes; the hash of its normalised form decides its split."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="prompts")
    messages = models.JSONField()
    content_hash = models.CharField(max_length=64, editable=False)
    is_held_out = models.BooleanField(editable=False, help_text="Serves evaluation only; never trained on.")
    withdrawn_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Since when nobody is asked about it, and no policy either."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = PromptQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "content_hash"], name="prompt_once_per_project")]

    def __str__(self) -> str:
        text = self.last_message["content"]
        return text if len(text) <= 80 else f"{text[:79]}…"

    @property
    def last_message(self) -> Message:
        message: Message = self.messages[-1]
        return message


class Response(models.Model):
    """y: one answer to a prompt, with its tokens as sampled. Text that came from elsewhere has no tokens."""

    class FinishReason(models.TextChoices):
        STOP = "stop", "ended by itself"
        LENGTH = "length", "cut at the token limit"

    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="responses")
    text = models.TextField()
    token_ids = models.JSONField(default=list, blank=True)
    finish_reason = models.CharField(max_length=8, choices=FinishReason.choices, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.text if len(self.text) <= 80 else f"{self.text[:79]}…"


class Choice(models.TextChoices):
    A = "a", _("A is better")
    B = "b", _("B is better")
    TIE = "tie", _("Equally good")
    BOTH_BAD = "both_bad", _("Both bad")


class PairQuerySet(models.QuerySet["Pair"]):
    def to_measure(self) -> Self:
        """Judged pairs without a probability: as the partial index has it."""
        return self.filter(p_a__isnull=True, judgements_count__gt=0, is_retired=False)


class Pair(models.Model):
    """Two different responses to one prompt. Made by sampling or import; judged until all its slots are filled.

    ``gold_choice`` makes it a pair with a known answer, served to everybody now and then and marked in no way.
    """

    class Review(models.TextChoices):
        CONFLICT = "conflict", _("Judgements conflict")
        FLAG = "flag", _("Flagged by an annotator")
        SKIPS = "skips", _("Skipped by several people")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="pairs")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="pairs")
    # ``pair_once`` begins with it, so it needs no index of its own.
    response_a = models.ForeignKey(Response, on_delete=models.CASCADE, related_name="+", db_index=False)
    response_b = models.ForeignKey(Response, on_delete=models.CASCADE, related_name="+")
    judgements_asked = models.PositiveSmallIntegerField(
        null=True, editable=False, help_text="Judgements wanted when it was made, before any conflict."
    )
    judgements_wanted = models.PositiveSmallIntegerField()
    judgements_count = models.PositiveIntegerField(default=0, help_text="Current preferences, extra votes included.")
    skips_count = models.PositiveIntegerField(default=0)
    is_calibration = models.BooleanField(default=False, help_text="Shared by several people to measure agreement.")
    is_control = models.BooleanField(default=False, help_text="Served in random order.")
    gold_choice = models.CharField(max_length=8, choices=Choice.choices, blank=True)
    adjudicated_choice = models.CharField(max_length=8, choices=Choice.choices, blank=True)
    review = models.CharField(max_length=8, choices=Review.choices, blank=True, help_text="Why a reviewer should look.")
    is_retired = models.BooleanField(default=False, help_text="Taken out: neither served nor trained on.")
    p_a = models.FloatField(
        null=True,
        editable=False,
        help_text="Probability, given the votes of now, that A is better; empty from each change of them until the "
        "background job has been there.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = PairQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=~Q(response_a=F("response_b")), name="pair_of_two_responses"),
            models.UniqueConstraint(fields=["response_a", "response_b"], name="pair_once"),
            models.CheckConstraint(condition=Q(judgements_wanted__gte=1), name="pair_wants_a_judgement"),
            models.CheckConstraint(condition=Q(gold_choice__in=["", *Choice.values]), name="pair_gold_choice_is_known"),
            models.CheckConstraint(
                condition=Q(adjudicated_choice__in=["", *Choice.values]), name="pair_adjudicated_choice_is_known"
            ),
        ]
        indexes = [
            models.Index(fields=["project", "id"], name="pair_gold", condition=~Q(gold_choice="")),
            models.Index(fields=["project", "id"], name="pair_to_review", condition=~Q(review="")),
            models.Index(
                fields=["project", "id"],
                name="pair_to_measure",
                condition=Q(p_a__isnull=True, judgements_count__gt=0, is_retired=False),
            ),
        ]

    def __str__(self) -> str:
        return f"Pair {self.pk}"
