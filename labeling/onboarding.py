"""The qualification set: who has to take it, in which order, what counts as right, and when somebody has passed.

An answer is right if it is exactly the expected one. That holds for ties as well: where a side is expected, "equally
good" is wrong, and where "equally good" is expected, a side is; "both bad" is neither. Whoever writes an item for which
two answers would do should write another item: the set teaches, so it needs cases that are clear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone
from django.utils.translation import gettext

from labeling.claims import opposite
from labeling.exceptions import LabelingError
from labeling.models import (
    Choice,
    Membership,
    Project,
    QualificationAnswer,
    QualificationItem,
    QualificationResult,
    Seat,
    Slot,
)
from labeling.tokens import keyed_share


@dataclass(frozen=True)
class Standing:
    """Where somebody stands with a project's set. ``item`` comes next; ``last`` is how the newest ended try ended."""

    is_qualified: bool
    attempt: int
    tries: int
    items: int
    answered: int
    needed: int
    item: QualificationItem | None
    last: QualificationResult | None

    @property
    def tries_left(self) -> int:
        """The one that is under way included."""
        return max(0, self.tries - self.attempt + 1)

    @property
    def is_out(self) -> bool:
        return not self.is_qualified and self.tries_left == 0


@dataclass(frozen=True)
class PersonResult:
    """One member and their tries so far, for the page of the admins."""

    membership: Membership
    seat: Seat | None
    results: list[QualificationResult]
    is_out: bool


def set_of(project: Project) -> QuerySet[QualificationItem]:
    """The items that newcomers are asked, in their order."""
    return QualificationItem.objects.filter(project=project, is_active=True)


def needed_of(project: Project, items: int) -> int:
    """How many of ``items`` must be right to pass."""
    return math.ceil(items * project.qualification_pass_percent / 100)


def shown_left(item_id: int, annotator_id: int, attempt: int) -> str:
    """Which response of an item stands on the left for this person in this try: always the same, and not foreseeable.

    Of two items that follow each other in the table one shows A on the left and the other B, so that a set is balanced
    as far as its items were made one after another. The next try shows each the other way round.
    """
    is_first_of_two = item_id % 2 == 0
    coin = keyed_share("qualification", annotator_id, item_id // 2) < 0.5
    side = Slot.Side.A if is_first_of_two == coin else Slot.Side.B
    return side if attempt % 2 else opposite(side)


@transaction.atomic
def arrive(*, project: Project, annotator_id: int) -> Standing:
    """Where this person stands now.

    Lets in whom nothing keeps out, because there is no set (any more), and ends a try that is complete because what
    was missing has been taken out of the set.
    """
    seat = _locked_seat(project, annotator_id)
    standing = _standing(project, seat)
    if standing.is_qualified or standing.item:
        return standing
    if standing.answered:
        _end_try(project, seat)
    elif not standing.items:
        _let_in(seat)
    return _standing(project, seat)


@transaction.atomic
def answer(*, project: Project, annotator_id: int, item_id: int, attempt: int, choice: str) -> QualificationAnswer:
    """Record an answer in terms of response A and B; the last one of a try ends it.

    A second answer to one item in one try returns the first, which counts. Raises ``LabelingError`` for an item that is
    not asked (any more) and for a try that is over.
    """
    seat = _locked_seat(project, annotator_id)
    mine = QualificationAnswer.objects.filter(item__project=project, annotator_id=annotator_id, attempt=attempt)
    if given := mine.select_related("item").filter(item_id=item_id).first():
        return given
    item = set_of(project).select_for_update(no_key=True).filter(pk=item_id).first()
    _check_may_answer(project, seat, item, attempt, choice)
    assert item is not None
    given = QualificationAnswer.objects.create(
        item=item,
        annotator_id=annotator_id,
        attempt=attempt,
        choice=choice,
        shown_left=shown_left(item.pk, annotator_id, attempt),
        is_right=choice == item.choice,
    )
    if not _unanswered(project, seat).exists():
        _end_try(project, seat)
    return given


def answer_to(*, project: Project, annotator_id: int, item_id: int) -> QualificationAnswer | None:
    """This person's newest answer to an item, whether or not it is still part of the set."""
    mine = QualificationAnswer.objects.filter(item__project=project, item_id=item_id, annotator_id=annotator_id)
    return mine.select_related("item").order_by("-attempt").first()


@transaction.atomic
def admit(*, project: Project, annotator_id: int) -> None:
    """Let somebody judge who has not passed."""
    _let_in(_locked_seat(project, annotator_id))


@transaction.atomic
def grant_try(*, project: Project, annotator_id: int) -> int:
    """Allow one more try than there is now; returns how many are left. Whoever is in needs none."""
    seat = _locked_seat(project, annotator_id)
    if seat.qualified_at:
        raise LabelingError(gettext("This person may judge already and needs no further try."))
    # The rule may have become stricter since the last grant: one more is one more than they have used.
    used = seat.qualification_try - 1
    tries = max(_tries(project, seat), used) + 1
    seat.qualification_tries_granted = max(0, tries - project.qualification_tries)
    seat.save(update_fields=["qualification_tries_granted"])
    return tries - used


def results_of(project: Project, memberships: Sequence[Membership]) -> list[PersonResult]:
    """These members with their tries; three queries, however many they are."""
    users = [membership.user_id for membership in memberships]
    seats = {seat.annotator_id: seat for seat in Seat.objects.filter(project=project, annotator__in=users)}
    tries: dict[int, list[QualificationResult]] = {}
    for result in QualificationResult.objects.filter(project=project, annotator__in=users):
        tries.setdefault(result.annotator_id, []).append(result)
    return [
        _person_result(project, membership, seats.get(membership.user_id), tries.get(membership.user_id, []))
        for membership in memberships
    ]


def _person_result(
    project: Project, membership: Membership, seat: Seat | None, results: list[QualificationResult]
) -> PersonResult:
    is_out = bool(seat and not seat.qualified_at and seat.qualification_try > _tries(project, seat))
    return PersonResult(membership, seat, results, is_out)


def _locked_seat(project: Project, annotator_id: int) -> Seat:
    Seat.objects.get_or_create(project=project, annotator_id=annotator_id)
    return Seat.objects.select_for_update().get(project=project, annotator_id=annotator_id)


def _tries(project: Project, seat: Seat) -> int:
    return project.qualification_tries + seat.qualification_tries_granted


def _standing(project: Project, seat: Seat) -> Standing:
    items = set_of(project).count()
    missing = _unanswered(project, seat)
    results = QualificationResult.objects.filter(project=project, annotator_id=seat.annotator_id)
    return Standing(
        is_qualified=seat.qualified_at is not None,
        attempt=seat.qualification_try,
        tries=_tries(project, seat),
        items=items,
        answered=items - missing.count(),
        needed=needed_of(project, items),
        item=missing.first(),
        last=results.order_by("-attempt").first(),
    )


def _unanswered(project: Project, seat: Seat) -> QuerySet[QualificationItem]:
    """What this person has still to answer in the try that is under way."""
    given = QualificationAnswer.objects.filter(
        item=OuterRef("pk"), annotator_id=seat.annotator_id, attempt=seat.qualification_try
    )
    return set_of(project).filter(~Exists(given))


def _check_may_answer(project: Project, seat: Seat, item: QualificationItem | None, attempt: int, choice: str) -> None:
    if choice not in Choice.values:
        raise LabelingError(gettext("That is no answer this page knows. Please choose again."))
    if seat.qualified_at:
        raise LabelingError(gettext("You may judge already; this answer was not needed."))
    if attempt != seat.qualification_try or attempt > _tries(project, seat):
        raise LabelingError(gettext("This page is of a try that is over. Its answer was not counted."))
    if item is None:
        raise LabelingError(gettext("That comparison is no longer part of the set. Go on with the next one."))


def _end_try(project: Project, seat: Seat) -> None:
    """Write down how the try ended. What has left the set since it was answered does not count."""
    given = QualificationAnswer.objects.filter(
        item__project=project,
        item__is_active=True,
        annotator_id=seat.annotator_id,
        attempt=seat.qualification_try,
    )
    asked, right = given.count(), given.filter(is_right=True).count()
    is_passed = right >= needed_of(project, asked)
    QualificationResult.objects.create(
        project=project,
        annotator_id=seat.annotator_id,
        attempt=seat.qualification_try,
        right=right,
        asked=asked,
        is_passed=is_passed,
    )
    if is_passed:
        _let_in(seat)
    else:
        seat.qualification_try += 1
        seat.save(update_fields=["qualification_try"])


def _let_in(seat: Seat) -> None:
    if seat.qualified_at is None:
        seat.qualified_at = timezone.now()
        seat.save(update_fields=["qualified_at"])
