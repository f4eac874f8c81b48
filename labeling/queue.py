"""The queue: who gets which pair next, and what becomes of the answer. Every write of a slot starts here.

A slot is leased on pull and never assigned ahead, but for one: while somebody reads a pair, the next one may be theirs
already, so that no wait is seen. One person holds one slot of a pair at most. The database holds these truths as
constraints; the advisory lock per annotator (PostgreSQL) and IMMEDIATE transactions (SQLite) keep the flow free of
errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, models, transaction
from django.db.models import Case, Exists, OuterRef, Q, Value, When
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling import rows
from labeling.answers import NOTHING_MORE, Details, check_answer, check_reasons, clean_comment
from labeling.claims import Terms, claim, next_place
from labeling.exceptions import AlreadyAnswered, Frozen, LabelingError, LeaseGone, NothingToUndo, NotQualified
from labeling.models import Pair, Preference, Project, QualificationItem, Seat, Skip, Slot
from labeling.records import (
    Judged,
    current_preference,
    forget_skip,
    record_preference,
    record_skip,
    reinstate,
    withdraw,
)
from labeling.tokens import TokenContent, keyed_share, make_token, read_token

ADVISORY_LOCK_NAMESPACE = 0x7B1E  # any constant of our own; the second key is the annotator's id
SWEEP_LIMIT = 500
HELD = "project_id = %s AND annotator_id = %s AND state = 'leased' AND lease_until > %s ORDER BY leased_at DESC"
PAIR_OF_SLOT = "id = (SELECT pair_id FROM labeling_slot WHERE id = %s) AND project_id = %s"
MAX_COUNTED = 1000
# An exact number would fall by one at an ordinary pair, by two at a shared one and not at all at one whose answer is
# known, so people are told no more than these.
OPEN_STEPS = (1000, 500, 100, 50, 10, 1, 0)


@dataclass(frozen=True)
class Lease:
    """A slot as its holder sees it. ``previous`` is the answer that an undo reopened."""

    slot: Slot
    token: str
    previous: Preference | None = None


@dataclass(frozen=True)
class Submission:
    """What became of an answer. ``is_extra``: the slot had gone to somebody else; ``is_repeat``: counted before."""

    preference: Preference
    is_extra: bool = False
    is_repeat: bool = False


@dataclass(frozen=True)
class Turn:
    """What an answer leads to: what became of it, the pair that is looked at now, and the one after that."""

    submission: Submission | None
    now: Lease | None
    ahead: Lease | None


class Standing(models.TextChoices):
    """How a pair stands with the person whose page shows it; the label is what the page says."""

    KEPT = "kept", ""
    OPEN = (
        "open",
        _(
            "Another tab of yours holds another pair, so this one may go to somebody else. An answer will still be "
            "saved."
        ),
    )
    TAKEN = "taken", _("Somebody else has this pair now. An answer will still be saved, as an extra vote.")
    ANSWERED = (
        "answered",
        _("You have answered this pair in another tab; that answer counts. Reload the page to go on."),
    )
    SKIPPED = (
        "skipped",
        _("You have skipped this pair in another tab. Reload the page to go on, or answer it after all."),
    )


@contextmanager
def _at_desk(annotator_id: int) -> Iterator[None]:
    """A transaction in which this person's other tabs wait."""
    with transaction.atomic():
        # SKIP LOCKED with NOT EXISTS lets one person in two tabs claim two slots of a pair: neither claim sees the
        # other.
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [ADVISORY_LOCK_NAMESPACE, annotator_id])
        yield


def lease_next(project: Project, annotator_id: int) -> Lease | None:
    """Return the pair this person works on, or lease the next one; ``None`` if nothing is open for them.

    Asking twice, from two tabs for example, returns the same lease, renewed. Raises ``NotQualified`` for whoever has
    still to pass the project's qualification set.
    """
    with _at_desk(annotator_id):
        return _lease_next(project, annotator_id)[0]


def lease_ahead(project: Project, annotator_id: int) -> Lease | None:
    """Return the pair that comes after the one this person works on, leased ahead: one, however often it is asked for.

    ``None`` where nothing more is open for them, or nothing is held that it could come after.
    """
    with _at_desk(annotator_id):
        held = _held(project, annotator_id, timezone.now())
        ahead = next((slot for slot in held if slot.is_ahead), None)
        return _lease_ahead(project, annotator_id, ahead) if held else None


def turn(project: Project, token: str, annotator_id: int, choice: str, details: Details = NOTHING_MORE) -> Turn:
    """Submit an answer, go on to the next pair and lease the one after it, in one transaction."""
    with _at_desk(annotator_id):
        submission = _submit(project, token, annotator_id, choice, details)
        now, ahead = _lease_next(project, annotator_id)
        return Turn(submission, now, _lease_ahead(project, annotator_id, ahead) if now else None)


def submit(project: Project, token: str, annotator_id: int, choice: str, details: Details = NOTHING_MORE) -> Submission:
    """Record an answer in terms of response A and B. Labour is never thrown away.

    A lease that ran out is honoured; if the slot has gone to somebody else, the answer becomes an extra vote. The
    second answer of one lease counts as a repeat of the first. Raises ``LeaseGone`` for a foreign or damaged token,
    ``AnswerRejected`` for an answer that cannot be stored, ``Frozen`` for one that a dataset has used.
    """
    with _at_desk(annotator_id):
        return _submit(project, token, annotator_id, choice, details)


def give_back_ahead(project: Project, annotator_id: int) -> None:
    """Open the pair that was leased ahead for the others; harmless where there is none."""
    with _at_desk(annotator_id):
        for slot in _held(project, annotator_id, timezone.now()):
            if slot.is_ahead:
                _give_back(slot)


def renew(project: Project, token: str, annotator_id: int) -> Standing:
    """Keep a lease alive while its page is looked at, and say how the pair stands with this person.

    A lease that ran out is taken back if nobody has the slot, unless this person has moved on to another pair: nobody
    holds two by leaving pages open. Raises ``LeaseGone`` for a foreign or damaged token.
    """
    with _at_desk(annotator_id):
        slot, lease = _slot_of_token(project, token, annotator_id)
        if _answer_after(lease, current_preference(slot, annotator_id)):
            return Standing.ANSWERED
        if Skip.objects.filter(pair_id=slot.pair_id, annotator_id=annotator_id).exists():
            return Standing.SKIPPED
        return _renew(project, slot, lease, annotator_id)


def skip(project: Project, token: str, annotator_id: int, reason: str = "", note: str = "") -> None:
    """Give a pair back for good. A judgement that was reopened by undo is withdrawn.

    A page that is older than the answer withdraws nothing: ``AlreadyAnswered``.
    """
    with _at_desk(annotator_id):
        slot, lease = _slot_of_token(project, token, annotator_id)
        current = current_preference(slot, annotator_id)
        if _answer_after(lease, current):
            raise AlreadyAnswered(
                gettext("You have answered that pair already, so it is not skipped. Use Undo to change the answer.")
            )
        if current:
            _check_not_frozen(current)
            withdraw(project, current)
        if slot.kind != Slot.Kind.REPEAT:  # the pair is judged already; only the second look is passed on
            known = reason if reason in Skip.Reason.values else ""
            record_skip(slot.pair_id, annotator_id, known, (note if known == reason else reason)[:500])
        if mine := _own_slot(slot, annotator_id):
            _give_back(mine)


def undo(project: Project, annotator_id: int) -> Lease:
    """Reopen what this person did last in the project, a judgement or a skip.

    A judgement stays valid until a new version replaces it; a skip is forgotten, and what it withdrew counts again. The
    pair that was on the screen comes after it. Raises ``NothingToUndo``, and ``Frozen`` for a judgement that a dataset
    has used.
    """
    with _at_desk(annotator_id):
        mine = Preference.objects.filter(annotator_id=annotator_id, project=project, is_current=True)
        judged = mine.select_related("slot").order_by("-pk").first()
        skipped = Skip.objects.filter(annotator_id=annotator_id, pair__project=project).order_by("-pk").first()
        if skipped and (judged is None or skipped.created_at > judged.created_at):
            return _reopen_skipped(project, skipped)
        if judged is None:
            raise NothingToUndo(gettext("You have no judgement here that could be undone."))
        return _reopen(project, judged)


def reopen(project: Project, annotator_id: int, preference_id: int) -> Lease:
    """Reopen one of this person's judgements, as ``undo`` does with the last one."""
    with _at_desk(annotator_id):
        mine = Preference.objects.filter(annotator_id=annotator_id, project=project, is_current=True)
        preference = mine.select_related("slot").filter(pk=preference_id).first()
        if preference is None:
            said = gettext("That judgement has a newer version, or is not yours. Reload the page to see it.")
            raise NothingToUndo(said)
        return _reopen(project, preference)


def add_reasons(project: Project, token: str, annotator_id: int, reasons: tuple[str, ...], comment: str) -> Preference:
    """Say, after the vote, why: onto the judgement that was given under this lease, while no dataset has used it."""
    with _at_desk(annotator_id):
        check_reasons(project, reasons)
        slot, lease = _slot_of_token(project, token, annotator_id)
        current = _answer_after(lease, current_preference(slot, annotator_id))
        if current is None:
            raise LeaseGone(gettext("That judgement is no longer the one that counts, so nothing was added to it."))
        _check_not_frozen(current)
        current.reasons, current.comment = list(reasons), clean_comment(comment) or current.comment
        current.save(update_fields=["reasons", "comment"])
        return current


def asks_for_reason(project: Project, slot: Slot, annotator_id: int) -> bool:
    """Whether this is one of the judgements that must name a reason: a fixed share, that nobody can foresee."""
    if not project.reason_chips or not project.reasons_percent or slot.kind == Slot.Kind.REPEAT:
        return False
    return keyed_share("reason", annotator_id, slot.pair_id) * 100 < project.reasons_percent


def sweep_expired(limit: int = SWEEP_LIMIT) -> int:
    """End leases that ran out, oldest first; returns how many. Run now and then: no slot should wait for a visitor."""
    with transaction.atomic():
        return _reopen_expired(Slot.objects.all(), timezone.now(), limit)


def close_places(pair_id: int) -> int:
    """Ask nobody else about a pair; whoever reads it may finish. Returns how many places closed. Harmless twice."""
    with _of_pair(pair_id) as slots:
        opened = [slot.pk for slot in slots if slot.state == Slot.State.OPEN]
        return Slot.objects.filter(pk__in=opened).update(state=Slot.State.CLOSED)


def retire(pair_id: int) -> int:
    """Take a pair out: its places close, and a late answer is kept, and counted nowhere. Returns how many closed."""
    with transaction.atomic():
        Pair.objects.filter(pk=pair_id).update(is_retired=True)
        return close_places(pair_id)


def bring_back(pair_id: int) -> int:
    """Undo ``retire`` and ``close_places``: as many places open as the pair still wants. Returns how many opened."""
    with _of_pair(pair_id) as slots:
        Pair.objects.filter(pk=pair_id).update(is_retired=False)
        pair = Pair.objects.get(pk=pair_id)
        planned = [slot for slot in slots if slot.kind == Slot.Kind.PLANNED]
        coming = sum(slot.state in (Slot.State.OPEN, Slot.State.LEASED) for slot in planned)
        closed = [slot.pk for slot in planned if slot.state == Slot.State.CLOSED]
        wanted = max(0, pair.judgements_wanted - pair.judgements_count - coming)
        return Slot.objects.filter(pk__in=closed[:wanted]).update(state=Slot.State.OPEN)


@contextmanager
def _of_pair(pair_id: int) -> Iterator[list[Slot]]:
    """A transaction with a pair and all its slots locked, in the order of every other lock of them."""
    with transaction.atomic():
        Pair.objects.select_for_update(no_key=True).get(pk=pair_id)
        yield list(Slot.objects.filter(pair_id=pair_id).select_for_update().order_by("place"))


def open_at_least(project: Project, annotator_id: int) -> int:
    """How many pairs this person could be given, roughly: the highest of ``OPEN_STEPS`` that is reached."""
    count = Slot.objects.filter(project=project).open_for(annotator_id)[:MAX_COUNTED].count()
    return next(step for step in OPEN_STEPS if count >= step)


def waiting_for(project: Project, annotator_id: int) -> tuple[int, datetime | None]:
    """How many pairs that are with somebody else could come to this person, and when the first may."""
    leased = Slot.objects.filter(project=project, state=Slot.State.LEASED, kind=Slot.Kind.PLANNED).new_to(annotator_id)
    until = leased.order_by("lease_until").values_list("lease_until", flat=True).first()
    return leased[:MAX_COUNTED].count(), until


def read_lease(project: Project, token: str, annotator_id: int) -> TokenContent:
    """What the token of one of this project's pages says, such as which response stood on the left."""
    lease = read_token(token, annotator_id)
    if not Slot.objects.filter(project=project, pk=lease.slot_id).exists():
        raise LeaseGone(gettext("This pair is no longer part of the project. Reload the page to go on."))
    return lease


def texts_of(project: Project, token: str, annotator_id: int) -> tuple[str, str]:
    """The texts of the left and of the right response, as the page with this token shows them."""
    lease = read_lease(project, token, annotator_id)
    pair = Pair.objects.select_related("response_a", "response_b").get(slots=lease.slot_id)
    texts = pair.response_a.text, pair.response_b.text
    return texts if lease.shown_left == Slot.Side.A else (texts[1], texts[0])


# Leases: the steps. All of them are called with the annotator's lock held.


def _lease_next(project: Project, annotator_id: int) -> tuple[Lease | None, Slot | None]:
    """The pair to look at now, and what is held ahead of its turn beside it."""
    now = timezone.now()
    held = _held(project, annotator_id, now)
    ahead = next((slot for slot in held if slot.is_ahead), None)
    if current := next((slot for slot in held if not slot.is_ahead), None):
        return _renewed(current, project, now), ahead
    if project.is_paused:
        return None, None
    if ahead:
        return _renewed(ahead, project, now), None
    slot = _claim(project, annotator_id, now, is_ahead=False)
    return (Lease(slot, make_token(slot)) if slot else None), None


def _lease_ahead(project: Project, annotator_id: int, held: Slot | None) -> Lease | None:
    if held:
        return Lease(held, make_token(held))
    if project.is_paused:
        return None
    slot = _claim(project, annotator_id, timezone.now(), is_ahead=True)
    return Lease(slot, make_token(slot)) if slot else None


def _claim(project: Project, annotator_id: int, now: datetime, *, is_ahead: bool) -> Slot | None:
    seat = _seat(project, annotator_id)
    _check_qualified(project, seat, now)
    terms = Terms(project, seat, now, _until(project, now), is_ahead)
    slot = claim(terms)
    if slot is None and _reopen_expired(Slot.objects.filter(project=project), now):
        slot = claim(terms)  # what has run out since the last sweep is open too
    if slot:
        rows.update(seat, ("a_left", "queue_position"))
    return slot


def _seat(project: Project, annotator_id: int) -> Seat:
    here = rows.fetch(Seat, "project_id = %s AND annotator_id = %s", [project.pk, annotator_id])
    return here[0] if here else Seat.objects.create(project=project, annotator_id=annotator_id)


def _check_qualified(project: Project, seat: Seat, now: datetime) -> None:
    """Whoever comes while there is no qualification set has no need of the one that is made later."""
    if seat.qualified_at is None:
        if QualificationItem.objects.filter(project=project, is_active=True).exists():
            raise NotQualified(gettext("Take the qualification set of this project first; the Label page leads there."))
        Seat.objects.filter(pk=seat.pk).update(qualified_at=now)


def _held(project: Project, annotator_id: int, now: datetime) -> list[Slot]:
    """This person's leases that have not run out: at most the pair they look at, and the one after it."""
    # Locked, because a sweep on another host may be ending this very lease.
    held = rows.fetch(Slot, HELD, [project.pk, annotator_id, rows.moment(now)], lock="FOR UPDATE")
    return sorted(held, key=lambda slot: slot.is_ahead)


def _until(project: Project, now: datetime) -> datetime:
    return now + timedelta(minutes=project.lease_minutes)


def _renewed(slot: Slot, project: Project, now: datetime) -> Lease:
    slot.lease_until = _until(project, now)
    if slot.is_ahead:  # its turn has come
        slot.is_ahead, slot.leased_at = False, now
    rows.update(slot, ("lease_until", "is_ahead", "leased_at"))
    previous = slot.preferences.filter(is_current=True).first() if slot.versions else None
    return Lease(slot, make_token(slot), previous)


def _renew(project: Project, slot: Slot, lease: TokenContent, annotator_id: int) -> Standing:
    now = timezone.now()
    until = _until(project, now)
    others = [held for held in _held(project, annotator_id, now) if not held.is_ahead and held.pair_id != slot.pair_id]
    if mine := _own_slot(slot, annotator_id):
        if others and mine.lease_until and mine.lease_until <= now:
            return Standing.OPEN  # it ran out, and the next sweep opens it for the others
        # One that an undo had reopened may be done again by now; it is nobody else's, so it needs no lease.
        Slot.objects.filter(pk=mine.pk, state=Slot.State.LEASED).update(lease_until=until)
        held = Slot.objects.filter(project=project, annotator_id=annotator_id, state=Slot.State.LEASED, is_ahead=True)
        held.filter(lease_until__gt=now).update(lease_until=until)  # what ran out meanwhile may have a successor
        return Standing.KEPT
    if slot.state != Slot.State.OPEN:
        return Standing.TAKEN
    if others:
        return Standing.OPEN
    slot.lease_number = max(slot.lease_number, lease.number)
    _take(slot, annotator_id, lease.shown_left, lease.began, until)
    return Standing.KEPT


def _take(slot: Slot, annotator_id: int, shown_left: str, leased_at: datetime, until: datetime) -> None:
    """Lease a certain slot to its holder of before, shown as it was."""
    slot.state, slot.annotator_id, slot.is_ahead = Slot.State.LEASED, annotator_id, False
    slot.leased_at, slot.lease_until = leased_at, until
    slot.shown_left, slot.shown_to = shown_left, annotator_id
    slot.save()


def _reopen(project: Project, preference: Preference) -> Lease:
    _check_not_frozen(preference)
    slot, now = preference.slot, timezone.now()
    _make_room(project, preference.annotator_id, now, besides=slot)
    slot.lease_number = max(slot.lease_number, preference.lease_number) + 1
    _take(slot, preference.annotator_id, preference.shown_left, now, _until(project, now))
    return Lease(slot, make_token(slot), previous=preference)


def _reopen_skipped(project: Project, skipped: Skip) -> Lease:
    """Lease the pair of a skip again: its open slot, or one that another person's lease does not need."""
    now, annotator_id = timezone.now(), skipped.annotator_id
    pair = Pair.objects.select_for_update(no_key=True).get(pk=skipped.pair_id)
    slots = list(Slot.objects.filter(pair=pair).select_for_update().order_by("place"))
    withdrawn = _withdrawn_by(skipped)
    own = next((slot for slot in slots if slot.annotator_id == annotator_id and slot.kind != Slot.Kind.REPEAT), None)
    free = [slot for slot in slots if slot.state == Slot.State.OPEN]
    free.sort(key=lambda slot: withdrawn is None or slot.pk != withdrawn.slot_id)
    slot = own or next(iter(free), None)
    if slot is None:
        said = gettext("That pair has gone to somebody else since you skipped it, so it needs you no more.")
        raise NothingToUndo(said)
    _make_room(project, annotator_id, now, besides=slot)
    forget_skip(pair, annotator_id)
    side = next((other.shown_left for other in slots if other.shown_to == annotator_id), "") or Slot.Side.A
    slot.lease_number += 1
    _take(slot, annotator_id, side, now, _until(project, now))
    if withdrawn is None or withdrawn.slot_id != slot.pk:  # its place is somebody else's: this one is judged anew
        return Lease(slot, make_token(slot))
    reinstate(project, withdrawn)
    return Lease(slot, make_token(slot), previous=withdrawn)


def _withdrawn_by(skipped: Skip) -> Preference | None:
    """The judgement that a skip has withdrawn: had there been one since, the skip would be forgotten."""
    mine = Preference.objects.filter(pair_id=skipped.pair_id, annotator_id=skipped.annotator_id, is_repeat=False)
    return mine.order_by("-pk").first()


def _make_room(project: Project, annotator_id: int, now: datetime, *, besides: Slot) -> None:
    """Put the pair on the screen after the one that is reopened; what had been leased ahead goes back."""
    held = [slot for slot in _held(project, annotator_id, now) if slot.pk != besides.pk]
    for slot in held:
        if slot.is_ahead or slot.versions:  # one that was reopened itself keeps its answer
            _give_back(slot)
        else:
            Slot.objects.filter(pk=slot.pk).update(is_ahead=True)


def _check_not_frozen(preference: Preference) -> None:
    if preference.frozen_at:
        day = date_format(timezone.localtime(preference.frozen_at))
        raise Frozen(gettext("That judgement went into a dataset on %(day)s, so it stays as it is.") % {"day": day})


# Answers: the steps.


def _submit(project: Project, token: str, annotator_id: int, choice: str, details: Details) -> Submission:
    details = check_answer(project, choice, details)
    slot, lease = _slot_of_token(project, token, annotator_id)
    current = current_preference(slot, annotator_id)
    if repeated := _answer_after(lease, current):
        return Submission(repeated, is_extra=repeated.slot.kind == Slot.Kind.EXTRA, is_repeat=True)
    if current:
        _check_not_frozen(current)
    if asks_for_reason(project, slot, annotator_id) and not (details.reasons or details.comment):
        raise LabelingError(gettext("This judgement needs a reason: choose at least one, or write a comment."))
    slot = _slot_to_fill(slot, annotator_id)
    if slot.lease_number != lease.number or slot.leased_at is None:
        slot.leased_at = lease.began  # the slot may have been somebody else's meanwhile
    slot.lease_number = max(slot.lease_number, lease.number)
    preference = record_preference(slot, Judged(project, annotator_id, lease, choice, details, current))
    return Submission(preference, is_extra=slot.kind == Slot.Kind.EXTRA)


def _slot_of_token(project: Project, token: str, annotator_id: int) -> tuple[Slot, TokenContent]:
    """The slot and the token's content, with the pair locked first: two people's slots of it may have changed hands."""
    lease = read_token(token, annotator_id)
    pairs = rows.fetch(Pair, PAIR_OF_SLOT, [lease.slot_id, project.pk], lock="FOR NO KEY UPDATE")
    slots = rows.fetch(Slot, "id = %s", [lease.slot_id], lock="FOR UPDATE") if pairs else []
    if not slots:
        raise LeaseGone(gettext("This pair is no longer part of the project. Reload the page to go on."))
    slots[0].pair = pairs[0]
    return slots[0], lease


def _answer_after(lease: TokenContent, current: Preference | None) -> Preference | None:
    """The current answer, if it was given under this lease or a later one; an undo gives a lease later than its answer.

    Nobody is given a second slot of a pair they have answered, so an answer in another slot is later than this lease.
    """
    if current and (current.slot_id != lease.slot_id or current.lease_number >= lease.number):
        return current
    return None


def _own_slot(slot: Slot, annotator_id: int) -> Slot | None:
    """This person's slot of the pair: the one given or another one, for instance leased in another tab since."""
    if slot.annotator_id == annotator_id:
        return slot
    own = Slot.objects.select_for_update().filter(pair_id=slot.pair_id, annotator_id=annotator_id)
    mine = own.exclude(kind=Slot.Kind.REPEAT).first()
    if mine:
        mine.pair = slot.pair
    return mine


def _slot_to_fill(slot: Slot, annotator_id: int) -> Slot:
    """The slot an answer goes to: its own, this person's other slot of the pair, the reopened one, or an extra one."""
    if mine := _own_slot(slot, annotator_id):
        return mine
    if slot.state == Slot.State.OPEN:
        return slot
    return Slot(
        project_id=slot.project_id,
        pair=slot.pair,
        place=next_place(slot.pair_id),
        kind=Slot.Kind.EXTRA,
        leased_at=slot.leased_at,
    )


# Ends of leases


def _reopen_expired(slots: Any, now: datetime, limit: int = SWEEP_LIMIT) -> int:
    answered = Exists(Preference.objects.filter(slot=OuterRef("pk"), is_current=True))
    expired = list(
        slots.filter(state=Slot.State.LEASED, lease_until__lte=now)
        .annotate(answered=answered)
        .select_for_update(skip_locked=connection.features.has_select_for_update_skip_locked, of=("self",))
        .order_by("lease_until")[:limit]
    )
    stays = {slot.pk for slot in expired if slot.answered or slot.kind != Slot.Kind.PLANNED}
    _open([slot.pk for slot in expired if slot.pk not in stays])
    _close_lease(list(stays))
    return len(expired)


def _give_back(slot: Slot) -> None:
    """End a lease. A planned slot is open to the others again, unless it holds an answer."""
    is_answered = Preference.objects.filter(slot=slot, is_current=True).exists() if slot.versions else False
    if slot.kind != Slot.Kind.PLANNED or is_answered:
        _close_lease([slot.pk])
    else:
        _open([slot.pk])


def _open(slot_ids: list[int]) -> None:
    """What a pair wants is open to everybody again; one that was decided or taken out meanwhile wants nothing."""
    is_over = ~Q(adjudicated_choice="") | Q(is_retired=True)
    over = Exists(Pair.objects.filter(is_over, pk=OuterRef("pair_id")))
    state = Case(When(over, then=Value(Slot.State.CLOSED)), default=Value(Slot.State.OPEN))
    Slot.objects.filter(pk__in=slot_ids).update(state=state, annotator=None, lease_until=None, is_ahead=False)


def _close_lease(slot_ids: list[int]) -> None:
    """What was made for one person is nobody else's: without an answer it stays empty."""
    Slot.objects.filter(pk__in=slot_ids).update(state=Slot.State.DONE, lease_until=None, is_ahead=False)
