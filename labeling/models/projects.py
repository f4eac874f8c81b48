"""Projects, who may do what in them, and what they ask of annotators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator, MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

MAX_JUDGEMENTS_PER_PAIR = 100
# An open page renews its lease every minute, so a shorter one would run out under its reader's eyes. A day is longer
# than any sitting; beyond it a closed laptop would keep a pair from everybody else.
MIN_LEASE_MINUTES, MAX_LEASE_MINUTES = 2, 24 * 60
MAX_GUIDELINES_CHARACTERS = 60_000  # what is still rendered as Markdown, with room for marks of invisible characters
MAX_CRITERIA, MAX_REASON_CHIPS, MAX_NAME_LENGTH = 5, 9, 60
DEFAULT_REASON_CHIPS = [
    "More correct",
    "More helpful",
    "Clearer",
    "Better length",
    "Follows the instructions",
    "Safer",
    "Better style",
]


def default_reason_chips() -> list[str]:
    return list(DEFAULT_REASON_CHIPS)


def check_names(value: Any, most: int) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise ValidationError(gettext("Give a list of names, each a text that is not empty."))
    if len(value) > most:
        raise ValidationError(
            gettext("%(count)d names; at most %(most)d fit on the page.") % {"count": len(value), "most": most}
        )
    if len({name.casefold() for name in value}) < len(value):
        raise ValidationError(gettext("Two names are the same."))
    if too_long := next((name for name in value if len(name) > MAX_NAME_LENGTH), None):
        told = {"name": too_long[:20], "count": len(too_long), "most": MAX_NAME_LENGTH}
        raise ValidationError(gettext("“%(name)s…” has %(count)d characters; at most %(most)d fit.") % told)


def check_criteria(value: Any) -> None:
    check_names(value, MAX_CRITERIA)


def check_reason_chips(value: Any) -> None:
    check_names(value, MAX_REASON_CHIPS)


def _percent(default: int, most: int, help_text: StrOrPromise) -> models.PositiveSmallIntegerField[int, int]:
    validators = [MinValueValidator(0), MaxValueValidator(most)]
    return models.PositiveSmallIntegerField(default=default, validators=validators, help_text=help_text)


class ProjectQuerySet(models.QuerySet["Project"]):
    def visible_to(self, user: settings.AUTH_USER_MODEL) -> Self:  # type: ignore[name-defined]
        if user.is_superuser:
            return self
        return self.filter(memberships__user=user)


class Project(models.Model):
    """One labeling effort: its prompts, its guidelines, what it asks of annotators and how often."""

    name = models.CharField(max_length=120)
    slug = models.SlugField(max_length=60, unique=True)
    guidelines = models.TextField(
        blank=True,
        validators=[MaxLengthValidator(MAX_GUIDELINES_CHARACTERS)],
        help_text=_("Markdown, shown beside the work."),
    )
    guidelines_version = models.PositiveSmallIntegerField(default=1, editable=False)
    is_paused = models.BooleanField(default=False, help_text=_("While paused nobody is given a pair."))
    created_at = models.DateTimeField(auto_now_add=True)
    arrivals = models.BigIntegerField(
        default=0,
        editable=False,
        help_text="Counts what came into the queue since it was made.",
    )

    # How often a pair is judged
    judgements_per_pair = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(MAX_JUDGEMENTS_PER_PAIR)],
        help_text=_("People who judge each new pair."),
    )
    most_judgements = models.PositiveSmallIntegerField(
        default=5,
        validators=[MinValueValidator(1), MaxValueValidator(MAX_JUDGEMENTS_PER_PAIR)],
        help_text=_("A pair whose judgements conflict is given to 3, then 5 people, but to no more than this."),
    )
    calibration_percent = _percent(
        15, 100, _("Share of new pairs that at least two people judge, so that agreement can be measured.")
    )
    control_percent = _percent(
        20,
        100,
        _("Share of new pairs that are served in random order, as an honest control of the order by uncertainty."),
    )
    repeat_percent = _percent(
        2, 20, _("Share of the work that is a second look at a pair of one's own, with the sides changed.")
    )
    gold_percent = _percent(
        5, 50, _("Share of the work that is a pair with a known answer, once there are such pairs.")
    )
    lease_minutes = models.PositiveSmallIntegerField(
        default=15,
        validators=[MinValueValidator(MIN_LEASE_MINUTES), MaxValueValidator(MAX_LEASE_MINUTES)],
        help_text=_("How long a pair stays with one person who does not have its page open."),
    )

    # What a judgement may carry
    asks_strength = models.BooleanField(default=True, help_text=_("Offer “much better” beside “better”."))
    criteria = models.JSONField(
        default=list,
        blank=True,
        validators=[check_criteria],
        help_text=_("Names of what is also compared one by one, as a JSON list."),
    )
    reason_chips = models.JSONField(
        default=default_reason_chips,
        blank=True,
        validators=[check_reason_chips],
        help_text=_("Reasons offered after a vote, as a JSON list."),
    )
    reasons_percent = _percent(0, 100, _("Share of the judgements that must name a reason before the next pair."))
    allows_rewrites = models.BooleanField(default=True, help_text=_("Let annotators improve the better response."))

    # Who may judge
    qualification_pass_percent = _percent(
        80, 100, _("Share of the qualification set to get right before the first pair, once there is such a set.")
    )
    qualification_tries = models.PositiveSmallIntegerField(
        default=2, validators=[MinValueValidator(1), MaxValueValidator(20)], help_text=_("How often it may be taken.")
    )

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


class Guidelines(models.Model):
    """One version of a project's guidelines; each judgement knows which one its annotator had. Never changes."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="guidelines_versions")
    version = models.PositiveSmallIntegerField()
    text = models.TextField(blank=True)
    note = models.CharField(max_length=200, blank=True, help_text="What is new in it, by its author.")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-version"]
        verbose_name_plural = "guidelines"
        constraints = [models.UniqueConstraint(fields=["project", "version"], name="guidelines_version_once")]

    def __str__(self) -> str:
        return f"Guidelines {self.version} of {self.project}"


class Membership(models.Model):
    """What one person may do in one project."""

    class Role(models.TextChoices):
        ANNOTATOR = "annotator", _("Annotator")
        REVIEWER = "reviewer", _("Reviewer")
        ADMIN = "admin", _("Admin")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.ANNOTATOR)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "user"], name="one_membership_per_project")]

    def __str__(self) -> str:
        return f"{self.user} in {self.project}: {self.get_role_display()}"


class Seat(models.Model):
    """One person's place at a project's desk, made with their first lease: what the queue keeps about them.

    The last fields are estimates of the background job; empty until there are enough judgements.
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="seats", db_index=False)
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="seats")
    a_left = models.IntegerField(default=0, help_text="Pairs shown with A on the left, less the others.")
    judged = models.PositiveIntegerField(default=0, help_text="Judgements given, second looks included.")
    queue_position = models.JSONField(default=dict, help_text="The last slot by arm; the arrivals seen.")
    qualified_at = models.DateTimeField(null=True, blank=True)
    qualification_try = models.PositiveSmallIntegerField(default=1, help_text="The one that is under way, or next.")
    qualification_tries_granted = models.PositiveSmallIntegerField(
        default=0, help_text="Tries beyond the project's, by an admin."
    )
    reliability = models.FloatField(null=True, help_text="Probability of a vote for the better response.")
    left_bias = models.FloatField(null=True, help_text="Probability of a vote for the left one of two equals.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "annotator"], name="one_seat_per_project")]

    def __str__(self) -> str:
        return f"{self.annotator}'s seat in {self.project}"


class KeyMap(models.Model):
    """The keys that one person chose for the annotate page, by action; what is missing keeps its usual key."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="key_map")
    keys = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"Keys of {self.user}"
