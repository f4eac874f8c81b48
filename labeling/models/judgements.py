"""What becomes of a pair: slots, preferences and their versions, skips, rewrites, a reviewer's decisions."""

from __future__ import annotations

from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from labeling.models.pairs import Choice, Pair, Response, new_random_key
from labeling.models.projects import Project
from labeling.models.withdrawals import Withdrawal


class SlotQuerySet(models.QuerySet["Slot"]):
    def new_to(self, annotator_id: int) -> Self:
        """Slots of pairs that this person neither holds, nor has judged or skipped."""
        held = Slot.objects.filter(pair=models.OuterRef("pair"), annotator_id=annotator_id)
        skipped = Skip.objects.filter(pair=models.OuterRef("pair"), annotator_id=annotator_id)
        return self.filter(~models.Exists(held), ~models.Exists(skipped))

    def open_for(self, annotator_id: int) -> Self:
        """Slots that this person may be given."""
        return self.new_to(annotator_id).filter(state=Slot.State.OPEN)

    def being_read(self) -> Self:
        """Slots that somebody has before them, and not only holds for when their turn comes."""
        return self.filter(state=Slot.State.LEASED, is_ahead=False, lease_until__gt=timezone.now())


class Slot(models.Model):
    """One place for a judgement of a pair: open, leased to one annotator, done, or closed with its pair.

    Planned ones are the pair's wanted judgements. The others are made for one person and never opened to anybody else.
    """

    class State(models.TextChoices):
        OPEN = "open", "Open"
        LEASED = "leased", "Leased"
        DONE = "done", "Done"
        CLOSED = "closed", "Closed"

    class Kind(models.TextChoices):
        PLANNED = "planned", "Wanted of the pair"
        EXTRA = "extra", "Came after its lease had gone to somebody else"
        GOLD = "gold", "A pair with a known answer"
        REPEAT = "repeat", "A second look at a pair of one's own"

    class Side(models.TextChoices):
        A = "a", "Response A"
        B = "b", "Response B"

    # The project and the arm are the pair's, kept here so that the partial index below finds the next open slot alone.
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="slots")
    # Here as below: no index of its own where one that begins with the column stands in Meta. Every answer writes all.
    pair = models.ForeignKey(Pair, on_delete=models.CASCADE, related_name="slots", db_index=False)
    place = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=8, choices=Kind.choices, default=Kind.PLANNED)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    is_control = models.BooleanField(default=False)
    is_shared = models.BooleanField(default=False, help_text="One of several places of its pair.")
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
    is_ahead = models.BooleanField(default=False, help_text="Fetched ahead: its holder has not been shown it yet.")
    # Kept when a lease ends: whoever is given the pair again sees it the way it was.
    shown_left = models.CharField(max_length=1, choices=Side.choices, blank=True)
    shown_to = models.BigIntegerField(null=True, blank=True, help_text="To whom it was shown that way.")
    versions = models.PositiveSmallIntegerField(default=0, help_text="Preferences written for it so far.")
    passed_on_at = models.DateTimeField(null=True, blank=True, help_text="When its person skipped it, a second look.")

    objects = SlotQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["pair", "place"], name="slot_place_once"),
            models.CheckConstraint(condition=Q(place__gte=1), name="slot_places_count_from_one"),
            models.UniqueConstraint(
                fields=["pair", "annotator"],
                condition=Q(annotator__isnull=False) & ~Q(kind="repeat"),
                name="one_slot_per_pair_and_annotator",
            ),
            models.UniqueConstraint(
                fields=["pair", "annotator"], condition=Q(kind="repeat"), name="one_repeat_per_pair_and_annotator"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["open", "closed"], annotator__isnull=True)
                | Q(state__in=["leased", "done"], annotator__isnull=False),
                name="slot_is_open_or_somebodys",
            ),
            models.CheckConstraint(condition=Q(kind="planned") | ~Q(state="open"), name="only_planned_slots_are_open"),
        ]
        indexes = [
            models.Index(
                F("project"),
                F("is_control"),
                F("priority").desc(),
                F("random_key"),
                name="slot_next",
                condition=Q(state="open"),
            ),
            # Leased slots are few, done ones many: what asks for the former must not read the project's slots.
            models.Index(fields=["lease_until"], name="slot_expiring", condition=Q(state="leased")),
            models.Index(fields=["project", "lease_until"], name="slot_expiring_here", condition=Q(state="leased")),
            models.Index(fields=["project", "annotator", "lease_until"], name="slot_held", condition=Q(state="leased")),
            # Places of one's own that wait to be given; a slot that is done otherwise holds an answer.
            models.Index(
                fields=["project", "annotator", "kind"], name="slot_own", condition=Q(state="done", versions=0)
            ),
            models.Index(
                fields=["project", "annotator", "passed_on_at"],
                name="slot_passed_on",
                condition=Q(passed_on_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"Slot {self.place} of pair {self.pair_id}"


class PreferenceQuerySet(models.QuerySet["Preference"]):
    def counted(self) -> Self:
        """What everybody says now: current versions, without second looks and pairs that were taken out."""
        return self.filter(is_current=True, is_repeat=False, pair__is_retired=False)


class Preference(models.Model):
    """One annotator's judgement of one pair. A change of mind is a new version; the old one stays, not current.

    Once a dataset snapshot has used a version it is frozen: its author can change it no more.
    """

    # The project is the pair's, kept here so that lists by day and by person read an index.
    # With an index of its own all the same: SQLite reads the newest of a project by it.
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="preferences")
    pair = models.ForeignKey(Pair, on_delete=models.CASCADE, related_name="preferences")
    slot = models.ForeignKey(Slot, on_delete=models.CASCADE, related_name="preferences", db_index=False)
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="preferences")
    choice = models.CharField(max_length=8, choices=Choice.choices)
    is_strong = models.BooleanField(default=False, help_text="Much better, not only better.")
    criteria = models.JSONField(default=dict, blank=True, help_text="The choice by criterion: a, b or tie.")
    reasons = models.JSONField(default=list, blank=True)
    comment = models.TextField(blank=True)
    shown_left = models.CharField(max_length=1, choices=Slot.Side.choices)
    seconds = models.FloatField(help_text="From the pair's appearance to the judgement.")
    guidelines_version = models.PositiveSmallIntegerField(default=1)
    version = models.PositiveSmallIntegerField(default=1)
    lease_number = models.PositiveIntegerField()
    is_current = models.BooleanField(default=True)
    is_repeat = models.BooleanField(default=False, help_text="A second look; it measures, and is never trained on.")
    frozen_at = models.DateTimeField(null=True, blank=True, help_text="When a dataset first used it.")
    withdrawal = models.ForeignKey(
        Withdrawal,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="preferences",
        db_index=False,
        help_text="What took it back for good, if something did; it is not current then.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = PreferenceQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["pair", "annotator", "is_repeat"],
                condition=Q(is_current=True),
                name="one_current_preference_each",
            ),
            models.UniqueConstraint(fields=["slot", "version"], name="preference_version_once"),
            models.CheckConstraint(condition=Q(choice__in=Choice.values), name="preference_choice_is_known"),
            models.CheckConstraint(condition=Q(version__gte=1), name="preference_versions_count_from_one"),
            models.CheckConstraint(
                condition=Q(withdrawal__isnull=True) | Q(is_current=False), name="preference_withdrawn_counts_nowhere"
            ),
            models.CheckConstraint(condition=Q(seconds__gte=0), name="preference_took_no_negative_time"),
            models.CheckConstraint(
                condition=Q(is_strong=False) | Q(choice__in=["a", "b"]), name="preference_strong_for_a_side"
            ),
        ]
        indexes = [
            models.Index(fields=["project", "created_at"], name="preference_by_day"),
            models.Index(fields=["project", "annotator", "created_at"], name="preference_by_person"),
            models.Index(fields=["withdrawal"], name="preference_withdrawn", condition=Q(withdrawal__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.get_choice_display()} (pair {self.pair_id})"

    @property
    def rewritten(self) -> str:
        """What its author wrote in place of the chosen response; empty where they left it as it was."""
        rewrite: Rewrite | None = getattr(self, "rewrite", None)
        return rewrite.response.text if rewrite else ""


class Rewrite(models.Model):
    """A better response written by an annotator from the one they chose: a further triple, and a demonstration."""

    preference = models.OneToOneField(Preference, on_delete=models.CASCADE, related_name="rewrite")
    response = models.OneToOneField(Response, on_delete=models.CASCADE, related_name="rewrite")

    def __str__(self) -> str:
        return f"Rewrite of pair {self.preference.pair_id}"


class Skip(models.Model):
    """Somebody passed on a pair and will not be given it again. Not a preference."""

    class Reason(models.TextChoices):
        NONE = "", _("No reason given")
        UNSURE = "unsure", _("I cannot judge this")
        LONG = "long", _("Too long to read")
        LANGUAGE = "language", _("Not a language I know")
        BROKEN = "broken", _("Broken or empty text")
        HARMFUL = "harmful", _("Harmful or upsetting")
        PRIVATE = "private", _("Somebody's private data")

    FLAGS = (Reason.BROKEN, Reason.HARMFUL, Reason.PRIVATE)

    pair = models.ForeignKey(Pair, on_delete=models.CASCADE, related_name="skips")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="skips")
    reason = models.CharField(max_length=16, choices=Reason.choices, blank=True)
    note = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["pair", "annotator"], name="skip_once")]

    def __str__(self) -> str:
        return f"Pair {self.pair_id} skipped"


class Adjudication(models.Model):
    """A reviewer's decision on a pair: what it counts as from now on, or that it was taken out. Append-only."""

    class Verdict(models.TextChoices):
        A = "a", _("A is better")
        B = "b", _("B is better")
        TIE = "tie", _("Equally good")
        BOTH_BAD = "both_bad", _("Both bad")
        RETIRE = "retire", _("Taken out")
        LEAVE = "leave", _("Left as the annotators have it")

    pair = models.ForeignKey(Pair, on_delete=models.CASCADE, related_name="adjudications")
    reviewer = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="adjudications")
    verdict = models.CharField(max_length=8, choices=Verdict.choices)
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.get_verdict_display()} (pair {self.pair_id})"


class SentBack(models.Model):
    """A judgement that a reviewer asks its author to look at again. Settled by the author's next version."""

    preference = models.ForeignKey(Preference, on_delete=models.CASCADE, related_name="sent_back")
    reviewer = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    settled_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["preference"], condition=Q(settled_at__isnull=True), name="sent_back_once_at_a_time"
            )
        ]

    def __str__(self) -> str:
        return f"Sent back: {self.preference}"
