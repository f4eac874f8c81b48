"""Places made for one person alone: pairs whose answer is known, and second looks at pairs of their own.

A background job makes them ahead of need, with their sides decided, so that giving one out is one statement, as it is
for any other pair. A place that was given back, or whose lease ran out, waits to be given again.
"""

from __future__ import annotations

import math
import random

from django.db import transaction
from django.db.models import Exists, OuterRef

from labeling.claims import against, by_coin, opposite, shown_elsewhere
from labeling.models import Pair, Preference, Project, Seat, Skip, Slot
from labeling.places import UNSEEN_SECOND_LOOK, next_place
from labeling.turns import take_turn

# A second look comes when the first is no longer fresh, and at judgements of not too long ago.
REPEAT_AFTER, REPEAT_WITHIN = 20, 200
# For as many pairs as hardly anybody judges between two rounds of the job.
RESERVED_FOR = 40
LOOKED_AT = 200


def reserve_all() -> int:
    """Make places for everybody who works at this moment; returns how many."""
    at_work = Slot.objects.filter(state=Slot.State.LEASED).order_by().values_list("project", "annotator").distinct()
    projects = Project.objects.in_bulk({project_id for project_id, _ in at_work})
    return sum(reserve(projects[project_id], annotator_id) for project_id, annotator_id in at_work)


def reserve(project: Project, annotator_id: int) -> int:
    """Make what one person lacks of both kinds; returns how many places were made."""
    with transaction.atomic():
        take_turn(annotator_id)  # they may be taking their seat at this moment
        seat, _ = Seat.objects.get_or_create(project=project, annotator_id=annotator_id)
    shares = {Slot.Kind.GOLD: project.gold_percent, Slot.Kind.REPEAT: project.repeat_percent}
    return sum(_make(seat, kind, pair_id) for kind, share in shares.items() for pair_id in _lacking(seat, kind, share))


def forget_unseen(pair_id: int) -> None:
    """Take the places of a pair away that nobody has been given, when it is a pair like any other again."""
    Slot.objects.filter(pair_id=pair_id, kind=Slot.Kind.GOLD, state=Slot.State.DONE, lease_number=0).delete()


def forget_second_looks(pair_id: int) -> None:
    """Take the second looks at a pair away that nobody has been given."""
    Slot.objects.filter(pair_id=pair_id, **UNSEEN_SECOND_LOOK).delete()


def _lacking(seat: Seat, kind: str, percent: float) -> list[int]:
    """Pairs for as many places as this person lacks, in an order by chance."""
    wanted = math.ceil(RESERVED_FOR * percent / 100)
    mine = Slot.objects.filter(project_id=seat.project_id, annotator_id=seat.annotator_id, kind=kind)
    wanted -= mine.filter(state=Slot.State.DONE, versions=0, passed_on_at=None).count() if wanted else 0
    if wanted <= 0:
        return []
    found = _golden(seat) if kind == Slot.Kind.GOLD else _judged(seat)
    return random.sample(found, min(wanted, len(found)))


def _golden(seat: Seat) -> list[int]:
    """Pairs with a known answer of which this person has had no place."""
    mine = Slot.objects.filter(pair=OuterRef("pk"), annotator_id=seat.annotator_id)
    skipped = Skip.objects.filter(pair=OuterRef("pk"), annotator_id=seat.annotator_id)
    golden = Pair.objects.filter(project_id=seat.project_id, is_retired=False).exclude(gold_choice="")
    return list(golden.filter(~Exists(mine), ~Exists(skipped)).values_list("pk", flat=True)[:LOOKED_AT])


def _judged(seat: Seat) -> list[int]:
    """Pairs that this person judged some time ago, and once, and on which no reviewer has decided since."""
    again = Slot.objects.filter(pair=OuterRef("pair"), annotator_id=seat.annotator_id, kind=Slot.Kind.REPEAT)
    own = Preference.objects.counted().filter(
        project_id=seat.project_id, annotator_id=seat.annotator_id, pair__adjudicated_choice=""
    )
    lately = own.annotate(again=Exists(again)).order_by("-pk").values_list("pair_id", "again")
    return [pair_id for pair_id, again in lately[REPEAT_AFTER : REPEAT_AFTER + REPEAT_WITHIN] if not again]


def _make(seat: Seat, kind: str, pair_id: int) -> bool:
    """Make a place, unless its person has come by one of the pair since it was chosen."""
    with transaction.atomic():
        take_turn(seat.annotator_id)
        pair = Pair.objects.select_for_update(no_key=True).filter(pk=pair_id).first()
        mine = Slot.objects.filter(pair_id=pair_id, annotator_id=seat.annotator_id)
        same = mine.filter(kind=kind) if kind == Slot.Kind.REPEAT else mine
        if pair is None or same.exists():
            return False
        slot = Slot(project_id=seat.project_id, pair=pair, kind=kind, state=Slot.State.DONE, place=next_place(pair_id))
        slot.annotator_id = slot.shown_to = seat.annotator_id
        slot.shown_left = _side(slot, seat)
        slot.save()
    return True


def _side(slot: Slot, seat: Seat) -> str:
    """A second look has its sides changed; a known answer is shown as any pair would be."""
    shown = shown_elsewhere(slot)
    seen = next((side for side, to in shown if to == seat.annotator_id), "")
    if slot.kind == Slot.Kind.REPEAT and seen:
        return opposite(seen)
    return seen or against([side for side, _ in shown]) or by_coin(seat)
