"""Who compares what: projects, prompts, responses, pairs, slots and preferences.

Which model wrote a response is not known here, so annotators are blind by construction.
"""

from __future__ import annotations

import random
from typing import Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.urls import reverse

from labeling.prompts import Message

MAX_JUDGEMENTS_PER_PAIR = 100
# An open page renews its lease every minute, so a shorter one would run out under its reader's eyes. A day is longer
# than any sitting; beyond it a closed laptop would keep a pair from everybody else.
MIN_LEASE_MINUTES, MAX_LEASE_MINUTES = 2, 24 * 60


def new_random_key() -> float:
    return random.random()  # noqa: S311  (an order, not a secret)


class ProjectQuerySet(models.QuerySet["Project"]):
    def visible_to(self, user: settings.AUTH_USER_MODEL) -> Self:  # type: ignore[name-defined]
        if user.is_superuser:
            return self
        return self.filter(memberships__user=user)


class Project(models.Model):
    """One labeling effort: its prompts, its guidelines and the people who may work on it."""

    name = models.CharField(max_length=120)
    slug = models.SlugField(max_length=60, unique=True)
    guidelines = models.TextField(blank=True, help_text="Markdown, shown beside the work.")
    judgements_per_pair = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(MAX_JUDGEMENTS_PER_PAIR)],
        help_text="People who judge each new pair.",
    )
    lease_minutes = models.PositiveSmallIntegerField(
        default=15,
        validators=[MinValueValidator(MIN_LEASE_MINUTES), MaxValueValidator(MAX_LEASE_MINUTES)],
        help_text="How long a pair stays with one person who does not have its page open.",
    )
    is_paused = models.BooleanField(default=False, help_text="While paused nobody is given a pair.")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=Q(judgements_per_pair__range=(1, MAX_JUDGEMENTS_PER_PAIR)),
                name="project_judgements_per_pair_in_range",
            ),
            models.CheckConstraint(
                condition=Q(lease_minutes__range=(MIN_LEASE_MINUTES, MAX_LEASE_MINUTES)),
                name="project_lease_minutes_in_range",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("labeling:project", args=[self.slug])


class Membership(models.Model):
    """What one person may do in one project."""

    class Role(models.TextChoices):
        ANNOTATOR = "annotator", "Annotator"
        REVIEWER = "reviewer", "Reviewer"
        ADMIN = "admin", "Admin"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.ANNOTATOR)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "user"], name="one_membership_per_project")]

    def __str__(self) -> str:
        return f"{self.user} in {self.project}: {self.get_role_display()}"


class Prompt(models.Model):
    """x: a chat that ends with the user's turn. Never changes; the hash of its normalised form decides its split."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="prompts")
    messages = models.JSONField()
    content_hash = models.CharField(max_length=64, editable=False)
    is_held_out = models.BooleanField(editable=False, help_text="Serves evaluation only; never trained on.")
    created_at = models.DateTimeField(auto_now_add=True)

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


class Pair(models.Model):
    """Two different responses to one prompt. Made by sampling or import; judged until all its slots are filled."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="pairs")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="pairs")
    response_a = models.ForeignKey(Response, on_delete=models.CASCADE, related_name="+")
    response_b = models.ForeignKey(Response, on_delete=models.CASCADE, related_name="+")
    judgements_wanted = models.PositiveSmallIntegerField()
    judgements_count = models.PositiveIntegerField(default=0, help_text="Current preferences, extra votes included.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=~Q(response_a=F("response_b")), name="pair_of_two_responses"),
            models.UniqueConstraint(fields=["response_a", "response_b"], name="pair_once"),
            models.CheckConstraint(condition=Q(judgements_wanted__gte=1), name="pair_wants_a_judgement"),
        ]

    def __str__(self) -> str:
        return f"Pair {self.pk}"


class SlotQuerySet(models.QuerySet["Slot"]):
    def new_to(self, annotator_id: int) -> Self:
        """Slots of pairs that this person neither holds, nor has judged or skipped."""
        held = Slot.objects.filter(pair=models.OuterRef("pair"), annotator_id=annotator_id)
        skipped = Skip.objects.filter(pair=models.OuterRef("pair"), annotator_id=annotator_id)
        return self.filter(~models.Exists(held), ~models.Exists(skipped))

    def open_for(self, annotator_id: int) -> Self:
        """Slots that this person may be given."""
        return self.new_to(annotator_id).filter(state=Slot.State.OPEN)


class Slot(models.Model):
    """One place for a judgement of a pair: open, leased to one annotator, or done. An extra vote adds one."""

    class State(models.TextChoices):
        OPEN = "open", "Open"
        LEASED = "leased", "Leased"
        DONE = "done", "Done"

    class Side(models.TextChoices):
        A = "a", "Response A"
        B = "b", "Response B"

    # The project is the pair's, kept here so that the partial index below finds the next open slot alone.
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="slots")
    pair = models.ForeignKey(Pair, on_delete=models.CASCADE, related_name="slots")
    place = models.PositiveSmallIntegerField()
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    priority = models.FloatField(default=0.0)
    random_key = models.FloatField(default=new_random_key, editable=False)
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="slots"
    )
    lease_number = models.PositiveIntegerField(
        default=0, help_text="Counts leases; a lease's token carries its number."
    )
    leased_at = models.DateTimeField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    shown_left = models.CharField(max_length=1, choices=Side.choices, blank=True)
    is_extra = models.BooleanField(default=False, help_text="Came after its lease had gone to somebody else.")

    objects = SlotQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["pair", "place"], name="slot_place_once"),
            models.CheckConstraint(condition=Q(place__gte=1), name="slot_places_count_from_one"),
            models.UniqueConstraint(
                fields=["pair", "annotator"],
                condition=Q(annotator__isnull=False),
                name="one_slot_per_pair_and_annotator",
            ),
            models.CheckConstraint(
                condition=Q(state="open", annotator__isnull=True) | Q(~Q(state="open"), annotator__isnull=False),
                name="slot_is_open_or_somebodys",
            ),
        ]
        indexes = [
            models.Index(
                F("project"), F("priority").desc(), F("random_key"), name="slot_next", condition=Q(state="open")
            ),
            # Leased slots are few, done ones many: what asks for the former must not read the project's slots.
            models.Index(fields=["lease_until"], name="slot_expiring", condition=Q(state="leased")),
            models.Index(fields=["project", "lease_until"], name="slot_expiring_here", condition=Q(state="leased")),
            models.Index(fields=["project", "annotator", "lease_until"], name="slot_held", condition=Q(state="leased")),
        ]

    def __str__(self) -> str:
        return f"Slot {self.place} of pair {self.pair_id}"


class Choice(models.TextChoices):
    A = "a", "A is better"
    B = "b", "B is better"
    TIE = "tie", "Equally good"
    BOTH_BAD = "both_bad", "Both bad"


class Preference(models.Model):
    """One annotator's judgement of one pair. A change of mind is a new version; the old one stays, not current."""

    pair = models.ForeignKey(Pair, on_delete=models.CASCADE, related_name="preferences")
    slot = models.ForeignKey(Slot, on_delete=models.CASCADE, related_name="preferences")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="preferences")
    choice = models.CharField(max_length=8, choices=Choice.choices)
    shown_left = models.CharField(max_length=1, choices=Slot.Side.choices)
    seconds = models.FloatField(help_text="From the lease to the judgement.")
    version = models.PositiveSmallIntegerField(default=1)
    lease_number = models.PositiveIntegerField()
    is_current = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["pair", "annotator"], condition=Q(is_current=True), name="one_current_preference_each"
            ),
            models.UniqueConstraint(fields=["slot", "version"], name="preference_version_once"),
            models.CheckConstraint(condition=Q(choice__in=Choice.values), name="preference_choice_is_known"),
            models.CheckConstraint(condition=Q(version__gte=1), name="preference_versions_count_from_one"),
            models.CheckConstraint(condition=Q(seconds__gte=0), name="preference_took_no_negative_time"),
        ]
        indexes = [models.Index(fields=["annotator", "created_at"], name="preference_by_day")]

    def __str__(self) -> str:
        return f"{self.get_choice_display()} (pair {self.pair_id})"


class Skip(models.Model):
    """Somebody passed on a pair and will not be given it again. Not a preference."""

    pair = models.ForeignKey(Pair, on_delete=models.CASCADE, related_name="skips")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="skips")
    reason = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["pair", "annotator"], name="skip_once")]

    def __str__(self) -> str:
        return f"Pair {self.pair_id} skipped"
