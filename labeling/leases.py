"""Whose pair is whose, and until when: what one person holds in one project, leased on pull, renewed, made room for.

A slot is leased on pull and never assigned ahead, but for one: while somebody reads a pair, the next one may be theirs
already, so that no wait is seen. All of this runs with the person's turn taken (``take_turn``), in a transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.translation import gettext

from labeling import rows
from labeling.claims import Terms, claim
from labeling.exceptions import NotQualified
from labeling.models import Preference, Project, QualificationItem, Seat, Slot
from labeling.places import give_back, has_answer, reopen_expired
from labeling.tokens import make_token
from labeling.turns import take_turn

HELD = "project_id = %s AND annotator_id = %s AND state = 'leased' AND lease_until > %s ORDER BY leased_at DESC"
SEAT = "project_id = %s AND annotator_id = %s"


@dataclass(frozen=True)
class Lease:
    """A slot as its holder sees it. ``previous`` is the answer that an undo reopened, ``notice`` what is said of it."""

    slot: Slot
    token: str
    previous: Preference | None = None
    notice: str = ""


@dataclass
class Desk:
    """One person in one project: their seat, and the leases of theirs that have not run out, the pair on it first."""

    project: Project
    annotator_id: int
    now: datetime
    seat: Seat | None  # made with the first lease
    held: list[Slot]

    @property
    def current(self) -> Slot | None:
        """The pair that its holder looks at."""
        return next((slot for slot in self.held if not slot.is_ahead), None)

    @property
    def ahead(self) -> Slot | None:
        """The pair that comes after it, which its holder has not been shown."""
        return next((slot for slot in self.held if slot.is_ahead), None)

    @property
    def until(self) -> datetime:
        """The end of a lease that begins now."""
        return self.now + timedelta(minutes=self.project.lease_minutes)


def desk_of(project: Project, annotator_id: int) -> Desk:
    """The desk of somebody whose turn has been taken."""
    with rows.pipelined():
        desk = _ask_for_desk(project, annotator_id)
    return desk()


def sit_down(project: Project, annotator_id: int) -> Desk:
    """Take a person's turn for nothing but leases, and read their desk, in one way to the database and back."""
    with rows.pipelined():
        take_turn(annotator_id, is_forgettable=True)
        desk = _ask_for_desk(project, annotator_id)
    return desk()


def lease_now(desk: Desk) -> Lease | None:
    """The pair to look at: the one on the desk, renewed, or the one that was fetched ahead, or a new one."""
    if desk.current:
        return _renewed(desk, desk.current)
    if desk.project.is_paused:
        return None
    if desk.ahead:
        return _renewed(desk, desk.ahead)
    return _leased(desk, is_ahead=False)


def lease_after(desk: Desk) -> Lease | None:
    """The pair after the one on the desk: what was fetched ahead, or a new one."""
    if held := desk.ahead:
        return Lease(held, make_token(held))
    return None if desk.project.is_paused else _leased(desk, is_ahead=True)


def take(slot: Slot, annotator_id: int, shown_left: str, leased_at: datetime, until: datetime) -> None:
    """Lease a certain slot to its holder of before, shown as it was."""
    slot.state, slot.annotator_id, slot.is_ahead = Slot.State.LEASED, annotator_id, False
    slot.leased_at, slot.lease_until = leased_at, until
    slot.shown_left, slot.shown_to = shown_left, annotator_id
    slot.save()


def make_room(desk: Desk, *, besides: Slot) -> None:
    """Put the pair on the screen after the one that is reopened; what had been leased ahead goes back."""
    for slot in desk.held:
        if slot.pk == besides.pk:
            continue
        if slot.is_ahead or has_answer(slot):  # one that was reopened itself keeps its answer
            give_back(slot)
        else:
            Slot.objects.filter(pk=slot.pk).update(is_ahead=True)


def _ask_for_desk(project: Project, annotator_id: int) -> Callable[[], Desk]:
    """Send the queries of a desk; what is returned reads their answers."""
    now = timezone.now()
    # Locked, because a sweep on another host may be ending this very lease.
    held = rows.ask(Slot, HELD, [project.pk, annotator_id, rows.moment(now)], lock="FOR UPDATE")
    seat = rows.ask(Seat, SEAT, [project.pk, annotator_id])

    def read() -> Desk:
        slots = sorted(held(), key=lambda slot: slot.is_ahead)
        return Desk(project, annotator_id, now, rows.first(seat()), slots)

    return read


def _renewed(desk: Desk, slot: Slot) -> Lease:
    slot.lease_until = desk.until
    if slot.is_ahead:  # its turn has come
        slot.is_ahead, slot.leased_at = False, desk.now
    rows.update(slot, ("lease_until", "is_ahead", "leased_at"))
    previous = slot.preferences.filter(is_current=True).first() if slot.versions else None
    return Lease(slot, make_token(slot), previous)


def _leased(desk: Desk, *, is_ahead: bool) -> Lease | None:
    """A new pair for this desk; ``None`` if nothing is open for its person."""
    seat = desk.seat = desk.seat or Seat.objects.create(project=desk.project, annotator_id=desk.annotator_id)
    _check_qualified(seat, desk.now)
    terms = Terms(desk.project, seat, desk.now, desk.until, is_ahead)
    slot = claim(terms)
    if slot is None and reopen_expired(Slot.objects.filter(project=desk.project), desk.now):
        slot = claim(terms)  # what has run out since the last sweep is open too
    if slot is None:
        return None
    rows.update(seat, ("a_left", "queue_position"))
    desk.held.append(slot)
    return Lease(slot, make_token(slot))


def _check_qualified(seat: Seat, now: datetime) -> None:
    """Whoever comes while there is no qualification set has no need of the one that is made later."""
    if seat.qualified_at is None:
        if QualificationItem.objects.filter(project=seat.project_id, is_active=True).exists():
            raise NotQualified(gettext("Take the qualification set of this project first; the Label page leads there."))
        Seat.objects.filter(pk=seat.pk).update(qualified_at=now)
