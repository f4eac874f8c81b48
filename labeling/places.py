"""How the places of pairs open and end: for whom there are any, what ran out, what a reviewer's decision closes.

Callers that hold a lease or an answer in their hands have locked its pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

from django.db import connection, transaction
from django.db.models import Case, Exists, F, Max, OuterRef, Q, QuerySet, Value, When
from django.utils import timezone

from labeling.models import Pair, Preference, Project, Slot

SWEEP_LIMIT = 500
MAX_COUNTED = 1000
# An exact number would fall by one at an ordinary pair, by two at a shared one and not at all at one whose answer is
# known, so people are told no more than these.
OPEN_STEPS = (1000, 500, 100, 50, 10, 1, 0)
IS_OVER = ~Q(adjudicated_choice="") | Q(is_retired=True)
UNSEEN_SECOND_LOOK = {"kind": Slot.Kind.REPEAT, "state": Slot.State.DONE, "lease_number": 0}


def open_at_least(project: Project, annotator_id: int) -> int:
    """How many pairs this person could be given, roughly: the highest of ``OPEN_STEPS`` that is reached."""
    count = Slot.objects.filter(project=project).open_for(annotator_id)[:MAX_COUNTED].count()
    return next(step for step in OPEN_STEPS if count >= step)


def waiting_for(project: Project, annotator_id: int) -> tuple[int, datetime | None]:
    """How many pairs that are with somebody else could come to this person, and when the first may."""
    leased = Slot.objects.filter(project=project, state=Slot.State.LEASED, kind=Slot.Kind.PLANNED).new_to(annotator_id)
    until = leased.order_by("lease_until").values_list("lease_until", flat=True).first()
    return leased[:MAX_COUNTED].count(), until


def sweep_expired(limit: int = SWEEP_LIMIT) -> int:
    """End leases that ran out, oldest first; returns how many. Run now and then: no slot should wait for a visitor."""
    with transaction.atomic():
        return reopen_expired(Slot.objects.all(), timezone.now(), limit)


def close_places(pair_id: int) -> int:
    """Ask nobody else about a pair; whoever reads it may finish. Returns how many places closed. Harmless twice.

    Who was to read it next, and has not seen it yet, is given another one instead.
    """
    with _of_pair(pair_id) as slots:
        for slot in slots:
            if slot.state == Slot.State.LEASED and slot.is_ahead:
                give_back(slot)
        return Slot.objects.filter(pair_id=pair_id, state=Slot.State.OPEN).update(state=Slot.State.CLOSED)


def retire(pair_id: int) -> int:
    """Take a pair out: its places close, and a late answer is kept, and counted nowhere. Returns how many closed."""
    with transaction.atomic():
        Pair.objects.filter(pk=pair_id).update(is_retired=True)
        return close_places(pair_id)


def bring_back(pair_id: int) -> int:
    """Undo ``retire`` and ``close_places``: as many places open as the pair still wants. Returns how many opened."""
    with _of_pair(pair_id) as slots:
        Pair.objects.filter(pk=pair_id).update(is_retired=False)
        return _open_wanted(pair_id, slots)


def ask_again(pair_id: int) -> int:
    """Open a place for each judgement that a pair wants again since some of its own were withdrawn; returns how many.

    Of one that was decided or taken out nobody is asked. A reviewer who was called for a conflict waits for what comes.
    """
    with _of_pair(pair_id) as slots:
        empty = [slot for slot in slots if slot.state == Slot.State.DONE and slot.versions and not has_answer(slot)]
        for slot in empty:
            if slot.kind == Slot.Kind.PLANNED:
                slot.state, slot.annotator = Slot.State.CLOSED, None
                slot.save(update_fields=["state", "annotator"])
        if Pair.objects.filter(IS_OVER, pk=pair_id).exists():
            return 0
        opened = _open_wanted(pair_id, slots)
        undecided = Pair.objects.filter(pk=pair_id, review=Pair.Review.CONFLICT)
        undecided.filter(judgements_count__lt=F("judgements_wanted")).update(review="")
        return opened


def end(pair_id: int) -> None:
    """Take a pair out for good: as ``retire``, and whoever has it before them is given another one."""
    with _of_pair(pair_id) as slots:
        retire(pair_id)
        for slot in slots:
            if slot.state == Slot.State.LEASED:
                give_back(slot)


def _open_wanted(pair_id: int, slots: list[Slot]) -> int:
    """Open as many of a pair's closed places as it still wants judgements."""
    pair = Pair.objects.get(pk=pair_id)
    planned = [slot for slot in slots if slot.kind == Slot.Kind.PLANNED]
    # Whoever looks at an answer again still gives it, so it is counted already.
    coming = sum(
        slot.state == Slot.State.OPEN or (slot.state == Slot.State.LEASED and not has_answer(slot)) for slot in planned
    )
    closed = [slot.pk for slot in planned if slot.state == Slot.State.CLOSED]
    wanted = max(0, pair.judgements_wanted - pair.judgements_count - coming)
    return Slot.objects.filter(pk__in=closed[:wanted]).update(state=Slot.State.OPEN)


@contextmanager
def _of_pair(pair_id: int) -> Iterator[list[Slot]]:
    """A transaction with a pair and all its slots locked, in the order of every other lock of them."""
    with transaction.atomic():
        Pair.objects.select_for_update(no_key=True).get(pk=pair_id)
        yield list(Slot.objects.filter(pair_id=pair_id).select_for_update().order_by("place"))


def next_place(pair_id: int) -> int:
    """The first free place of a pair; its row is locked by the caller."""
    return int(Slot.objects.filter(pair_id=pair_id).aggregate(last=Max("place"))["last"] or 0) + 1


def reopen_expired(slots: QuerySet[Slot], now: datetime, limit: int = SWEEP_LIMIT) -> int:
    """End those of these leases that ran out, oldest first; returns how many. The caller holds a transaction."""
    answered = Exists(Preference.objects.filter(slot=OuterRef("pk"), is_current=True))
    expired = list(
        slots.filter(state=Slot.State.LEASED, lease_until__lte=now)
        .annotate(answered=answered)
        .select_for_update(skip_locked=connection.features.has_select_for_update_skip_locked, of=("self",))
        .order_by("lease_until")[:limit]
    )
    stays = {slot.pk for slot in expired if slot.answered or slot.kind != Slot.Kind.PLANNED}
    _open([slot.pk for slot in expired if slot.pk not in stays])
    _close_lease(stays)
    return len(expired)


def give_back(slot: Slot) -> None:
    """End a lease. A planned slot is open to the others again, unless it holds an answer."""
    if slot.kind != Slot.Kind.PLANNED or has_answer(slot):
        _close_lease([slot.pk])
    else:
        _open([slot.pk])


def has_answer(slot: Slot) -> bool:
    """Whether a judgement that counts stands in it. Former versions may have been withdrawn."""
    return slot.versions > 0 and Preference.objects.filter(slot=slot, is_current=True).exists()


def _open(slot_ids: Iterable[int]) -> None:
    """What a pair wants is open to everybody again; one that was decided or taken out meanwhile wants nothing."""
    over = Exists(Pair.objects.filter(IS_OVER, pk=OuterRef("pair_id")))
    state = Case(When(over, then=Value(Slot.State.CLOSED)), default=Value(Slot.State.OPEN))
    Slot.objects.filter(pk__in=slot_ids).update(state=state, annotator=None, lease_until=None, is_ahead=False)


def _close_lease(slot_ids: Iterable[int]) -> None:
    """What was made for one person is nobody else's: without an answer it waits to be given to them again."""
    Slot.objects.filter(pk__in=slot_ids).update(state=Slot.State.DONE, lease_until=None, is_ahead=False)
