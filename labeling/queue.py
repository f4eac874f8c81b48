"""The queue: who gets which pair next, and what becomes of the answer. Every write of a slot happens here.

A slot is leased on pull, never assigned ahead, and one person holds one slot of a pair at most. The database holds
these truths as constraints; the advisory lock per annotator (PostgreSQL) and IMMEDIATE transactions (SQLite) keep the
flow free of errors. A lease's token is signed and names slot, lease number and person: a late answer is recognised.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core import signing
from django.db import connection, models, transaction
from django.db.models import Exists, F, Max, OuterRef
from django.utils import timezone

from labeling.exceptions import AlreadyAnswered, LabelingError, LeaseGone, NothingToUndo
from labeling.models import Choice, Pair, Preference, Project, Skip, Slot

TOKEN_SALT = "labeling.lease"  # noqa: S105  (a namespace, not a secret)
ADVISORY_LOCK_NAMESPACE = 0x7B1E  # any constant of our own; the second key is the annotator's id
SWEEP_LIMIT = 500
MAX_COUNTED = 1000


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


class Standing(models.TextChoices):
    """How a pair stands with the person whose page shows it; the label is what the page says."""

    KEPT = "kept", ""
    OPEN = (
        "open",
        "Another tab of yours holds another pair, so this one may go to somebody else. An answer will still be saved.",
    )
    TAKEN = "taken", "Somebody else has this pair now. An answer will still be saved, as an extra vote."
    ANSWERED = "answered", "You have answered this pair in another tab; that answer counts. Reload the page to go on."
    SKIPPED = "skipped", "You have skipped this pair in another tab. Reload the page to go on, or answer it after all."


def lease_next(project: Project, annotator_id: int) -> Lease | None:
    """Return the pair this person works on, or lease the next one; ``None`` if nothing is open for them.

    Asking twice, from two tabs for example, returns the same lease, renewed.
    """
    now = timezone.now()
    with transaction.atomic():
        _lock_annotator(annotator_id)
        if held := _held_slot(project, annotator_id, now):
            return _renewed(held, project, now)
        if project.is_paused:
            return None
        _reopen_expired(Slot.objects.filter(project=project), now)
        slot = _next_open_slot(project, annotator_id)
        if slot is None:
            return None
        _take(slot, annotator_id, project, now)
    return Lease(slot, make_token(slot))


@transaction.atomic
def renew(project: Project, token: str, annotator_id: int) -> Standing:
    """Keep a lease alive while its page is looked at, and say how the pair stands with this person.

    A lease that ran out is taken back if nobody has the slot, unless this person has moved on to another pair: nobody
    holds two by leaving pages open. Raises ``LeaseGone`` for a foreign or damaged token.
    """
    _lock_annotator(annotator_id)
    slot, lease = _slot_of_token(project, token, annotator_id)
    if _answer_after(lease, _current(slot, annotator_id)):
        return Standing.ANSWERED
    if Skip.objects.filter(pair_id=slot.pair_id, annotator_id=annotator_id).exists():
        return Standing.SKIPPED
    until = timezone.now() + timedelta(minutes=project.lease_minutes)
    if mine := _own_slot(slot, annotator_id):
        # One that an undo had reopened may be done again by now; it is nobody else's, so it needs no lease.
        Slot.objects.filter(pk=mine.pk, state=Slot.State.LEASED).update(lease_until=until)
        return Standing.KEPT
    if slot.state != Slot.State.OPEN:
        return Standing.TAKEN
    if _held_slot(project, annotator_id, timezone.now()):
        return Standing.OPEN
    _take_back(slot, lease, annotator_id, until)
    return Standing.KEPT


@transaction.atomic
def submit(project: Project, token: str, annotator_id: int, choice: str) -> Submission:
    """Record an answer in terms of response A and B. Labour is never thrown away.

    A lease that ran out is honoured; if the slot has gone to somebody else, the answer becomes an extra vote. The
    second answer of one lease counts as a repeat of the first. Raises ``LeaseGone`` for a foreign or damaged token.
    """
    if choice not in Choice.values:
        raise LabelingError(f"“{choice[:40]}” is not a choice; use one of {', '.join(Choice.values)}.")
    _lock_annotator(annotator_id)
    slot, lease = _slot_of_token(project, token, annotator_id)
    current = _current(slot, annotator_id)
    if repeated := _answer_after(lease, current):
        return Submission(repeated, is_extra=repeated.slot.is_extra, is_repeat=True)
    slot = _slot_to_fill(slot, annotator_id)
    slot.lease_number = max(slot.lease_number, lease.number)
    slot.leased_at = lease.began  # the slot may have been somebody else's meanwhile
    preference = _new_version(slot, annotator_id, choice, current)
    return Submission(preference, is_extra=slot.is_extra)


@transaction.atomic
def skip(project: Project, token: str, annotator_id: int, reason: str = "") -> None:
    """Give a pair back for good. A judgement that was reopened by undo is withdrawn.

    A page that is older than the answer withdraws nothing: ``AlreadyAnswered``.
    """
    _lock_annotator(annotator_id)
    slot, lease = _slot_of_token(project, token, annotator_id)
    current = _current(slot, annotator_id)
    if _answer_after(lease, current):
        raise AlreadyAnswered(
            "You have answered that pair already, so it is not skipped. Use Undo to change the answer."
        )
    Skip.objects.get_or_create(pair_id=slot.pair_id, annotator_id=annotator_id, defaults={"reason": reason[:200]})
    if current:
        Preference.objects.filter(pk=current.pk).update(is_current=False)
        Pair.objects.filter(pk=slot.pair_id).update(judgements_count=F("judgements_count") - 1)
    if mine := _own_slot(slot, annotator_id):
        _give_back(mine)


@transaction.atomic
def undo(project: Project, annotator_id: int) -> Lease:
    """Reopen this person's latest judgement in the project. It stays valid until a new version replaces it."""
    _lock_annotator(annotator_id)
    latest = (
        Preference.objects.filter(annotator_id=annotator_id, pair__project=project, is_current=True)
        .select_related("slot")
        .order_by("-pk")
        .first()
    )
    if latest is None:
        raise NothingToUndo("You have no judgement here that could be undone.")
    slot = latest.slot
    slot.lease_number = max(slot.lease_number, latest.lease_number)
    _take(slot, annotator_id, project, timezone.now())
    return Lease(slot, make_token(slot), previous=latest)


def sweep_expired(limit: int = SWEEP_LIMIT) -> int:
    """End leases that ran out, oldest first; returns how many. Run now and then: no slot should wait for a visitor."""
    with transaction.atomic():
        return _reopen_expired(Slot.objects.all(), timezone.now(), limit)


def open_slots_for(project: Project, annotator_id: int) -> int:
    """How many slots this person could take, counted no further than ``MAX_COUNTED``."""
    return Slot.objects.filter(project=project).open_for(annotator_id)[:MAX_COUNTED].count()


def next_lease_to_expire(project: Project, annotator_id: int) -> datetime | None:
    """When the first pair that is with somebody else may come to this person."""
    leased = Slot.objects.filter(project=project, state=Slot.State.LEASED).new_to(annotator_id)
    until: datetime | None = leased.order_by("lease_until").values_list("lease_until", flat=True).first()
    return until


def make_token(slot: Slot) -> str:
    began = slot.leased_at.timestamp() if slot.leased_at else 0.0
    return signing.dumps([slot.pk, slot.lease_number, slot.annotator_id, began], salt=TOKEN_SALT)


@dataclass(frozen=True)
class TokenContent:
    """What a lease's token says: which slot, the how-manieth lease of it, and since when."""

    slot_id: int
    number: int
    began: datetime


def read_token(token: str, annotator_id: int) -> TokenContent:
    """Return what this person's token says, or raise ``LeaseGone``."""
    try:
        slot_id, number, holder_id, began = signing.loads(token, salt=TOKEN_SALT)
    except (signing.BadSignature, ValueError, TypeError):
        raise LeaseGone("This pair could not be recognised. Reload the page to go on.") from None
    if holder_id != annotator_id:
        raise LeaseGone("This pair was given to another account. Reload the page to go on.")
    return TokenContent(slot_id, number, datetime.fromtimestamp(began, tz=UTC))


def shown_left_of(project: Project, token: str, annotator_id: int) -> str:
    """Which response stood on the left of the page that carried this token."""
    lease = read_token(token, annotator_id)
    pair_id = Slot.objects.filter(project=project, pk=lease.slot_id).values_list("pair_id", flat=True).first()
    if pair_id is None:
        raise LeaseGone("This pair is no longer part of the project. Reload the page to go on.")
    return side_shown_left(annotator_id, pair_id)


def side_shown_left(annotator_id: int, pair_id: int) -> str:
    """A fair coin for each annotator and pair that always falls the same way: a second look shows the same order."""
    digest = hashlib.sha256(f"{annotator_id}:{pair_id}".encode()).digest()
    return Slot.Side.A if digest[0] % 2 == 0 else Slot.Side.B


def _lock_annotator(annotator_id: int) -> None:
    # SKIP LOCKED with NOT EXISTS lets one person in two tabs claim two slots of one pair: neither claim sees the other.
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [ADVISORY_LOCK_NAMESPACE, annotator_id])


def _held_slot(project: Project, annotator_id: int, now: datetime) -> Slot | None:
    held = Slot.objects.filter(project=project, annotator_id=annotator_id, state=Slot.State.LEASED, lease_until__gt=now)
    held = held.select_for_update(of=("self",))  # a sweep on another host may be ending this very lease
    return held.select_related("pair__prompt", "pair__response_a", "pair__response_b").order_by("-leased_at").first()


def _renewed(slot: Slot, project: Project, now: datetime) -> Lease:
    slot.lease_until = now + timedelta(minutes=project.lease_minutes)
    slot.save(update_fields=["lease_until"])
    return Lease(slot, make_token(slot), previous=slot.preferences.filter(is_current=True).first())


def _next_open_slot(project: Project, annotator_id: int) -> Slot | None:
    slots = Slot.objects.filter(project=project).open_for(annotator_id).order_by("-priority", "random_key")
    if connection.features.has_select_for_update_skip_locked:
        slots = slots.select_for_update(skip_locked=True, of=("self",))
    return slots.select_related("pair__prompt", "pair__response_a", "pair__response_b").first()


def _take(slot: Slot, annotator_id: int, project: Project, now: datetime) -> None:
    slot.state = Slot.State.LEASED
    slot.annotator_id = annotator_id
    slot.lease_number += 1
    slot.leased_at = now
    slot.lease_until = now + timedelta(minutes=project.lease_minutes)
    slot.shown_left = side_shown_left(annotator_id, slot.pair_id)
    slot.save()


def _take_back(slot: Slot, lease: TokenContent, annotator_id: int, until: datetime) -> None:
    """Lease a slot again under the token its holder still has: the time counts from when the page was opened."""
    slot.state = Slot.State.LEASED
    slot.annotator_id = annotator_id
    slot.lease_number = max(slot.lease_number, lease.number)
    slot.leased_at, slot.lease_until = lease.began, until
    slot.shown_left = side_shown_left(annotator_id, slot.pair_id)
    slot.save()


def _slot_of_token(project: Project, token: str, annotator_id: int) -> tuple[Slot, TokenContent]:
    """The slot and the token's content, with the pair locked first: two people's slots of it may have changed hands."""
    lease = read_token(token, annotator_id)
    pairs = Pair.objects.filter(project=project, slots=lease.slot_id).order_by()
    pair = pairs.select_for_update(no_key=True, of=("self",)).first()
    slot = Slot.objects.select_for_update().filter(pair=pair, pk=lease.slot_id).first() if pair else None
    if slot is None:
        raise LeaseGone("This pair is no longer part of the project. Reload the page to go on.")
    return slot, lease


def _current(slot: Slot, annotator_id: int) -> Preference | None:
    mine = Preference.objects.filter(pair_id=slot.pair_id, annotator_id=annotator_id, is_current=True)
    return mine.select_related("slot").first()


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
    return Slot.objects.select_for_update().filter(pair_id=slot.pair_id, annotator_id=annotator_id).first()


def _slot_to_fill(slot: Slot, annotator_id: int) -> Slot:
    """The slot an answer goes to: its own, this person's other slot of the pair, the reopened one, or an extra one."""
    if mine := _own_slot(slot, annotator_id):
        return mine
    if slot.state == Slot.State.OPEN:
        return slot
    last = Slot.objects.filter(pair_id=slot.pair_id).aggregate(last=Max("place"))["last"]
    return Slot(
        project_id=slot.project_id, pair_id=slot.pair_id, place=last + 1, leased_at=slot.leased_at, is_extra=True
    )


def _new_version(slot: Slot, annotator_id: int, choice: str, current: Preference | None) -> Preference:
    now = timezone.now()
    slot.state = Slot.State.DONE
    slot.annotator_id = annotator_id
    slot.lease_until = None
    slot.shown_left = side_shown_left(annotator_id, slot.pair_id)
    slot.save()
    Skip.objects.filter(pair_id=slot.pair_id, annotator_id=annotator_id).delete()
    if current is None:
        Pair.objects.filter(pk=slot.pair_id).update(judgements_count=F("judgements_count") + 1)
    else:
        Preference.objects.filter(pk=current.pk).update(is_current=False)
    versions: dict[str, Any] = slot.preferences.aggregate(last=Max("version"))
    return Preference.objects.create(
        pair_id=slot.pair_id,
        slot=slot,
        annotator_id=annotator_id,
        choice=choice,
        shown_left=slot.shown_left,
        # Two hosts' clocks may disagree about which came first.
        seconds=max(0.0, (now - slot.leased_at).total_seconds()) if slot.leased_at else 0.0,
        version=(versions["last"] or 0) + 1,
        lease_number=slot.lease_number,
    )


def _reopen_expired(slots: Any, now: datetime, limit: int = SWEEP_LIMIT) -> int:
    answered = Exists(Preference.objects.filter(slot=OuterRef("pk"), is_current=True))
    expired = list(
        slots.filter(state=Slot.State.LEASED, lease_until__lte=now)
        .annotate(answered=answered)
        .select_for_update(skip_locked=connection.features.has_select_for_update_skip_locked, of=("self",))
        .order_by("lease_until")[:limit]
    )
    reopened = [slot.pk for slot in expired if not slot.answered]
    kept = [slot.pk for slot in expired if slot.answered]
    Slot.objects.filter(pk__in=reopened).update(state=Slot.State.OPEN, annotator=None, lease_until=None, shown_left="")
    Slot.objects.filter(pk__in=kept).update(state=Slot.State.DONE, lease_until=None)
    return len(expired)


def _give_back(slot: Slot) -> None:
    """Open a slot for the others. An extra one was never asked for, so nobody else has to fill it."""
    if slot.is_extra:
        Slot.objects.filter(pk=slot.pk).update(state=Slot.State.DONE, lease_until=None)
    else:
        Slot.objects.filter(pk=slot.pk).update(state=Slot.State.OPEN, annotator=None, lease_until=None, shown_left="")
