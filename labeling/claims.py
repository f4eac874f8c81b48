"""Which pair somebody is given next, and which response of it stands on the left.

Mostly the next open slot of the project's order. Now and then a pair with a known answer, or a second look at a pair
of their own, each in a slot made for this person, which takes a few queries more; pairs are claimed while the one
before is read, so nobody can time it. Callers hold the annotator's lock and a transaction.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from django.db import connection, transaction
from django.db.models import Exists, OuterRef

from labeling import rows
from labeling.models import Pair, Preference, Project, Seat, Skip, Slot
from labeling.places import next_place

# How far a person's sides may be apart before the coin is no coin any more (Efron 1971, biased coin designs).
MOST_APART = 3
TOWARDS_BALANCE = 2 / 3
# A second look comes when the first is no longer fresh, and at judgements of not too long ago.
REPEAT_AFTER, REPEAT_WITHIN = 20, 200
GOLD_SEEN_AT_ONCE = 200
# How often somebody looks at the whole order again, from its head, and not after what they were given last. Who has
# judged ten thousand pairs that others have still to judge would read all of these first, at every pair. What has come
# into the queue since is looked for at once.
FROM_HEAD = 1 / 16
# One statement: whoever comes second finds the row leased, or locked and skipped. The literals let both databases use
# the partial index. OFFSET 0 keeps PostgreSQL from reading a person's whole history where statistics are old.
CLAIM = """
UPDATE labeling_slot
SET state = 'leased', annotator_id = %(annotator)s, lease_number = lease_number + 1, leased_at = %(now)s,
    lease_until = %(until)s, is_ahead = %(ahead)s,
    shown_left = CASE WHEN shown_to = %(annotator)s THEN shown_left ELSE %(side)s END, shown_to = %(annotator)s
WHERE id = (
    SELECT slot.id FROM labeling_slot slot
    WHERE slot.project_id = %(project)s AND slot.is_control = {control} AND slot.state = 'open' {after}
      AND NOT EXISTS (SELECT 1 FROM labeling_slot mine
                      WHERE mine.pair_id = slot.pair_id AND mine.annotator_id = %(annotator)s {here})
      AND NOT EXISTS (SELECT 1 FROM labeling_skip skip
                      WHERE skip.pair_id = slot.pair_id AND skip.annotator_id = %(annotator)s {here})
    ORDER BY slot.priority DESC, slot.random_key
    LIMIT 1 {lock}
)
RETURNING {columns}
"""
AFTER = """AND slot.priority <= %(priority)s
      AND (slot.priority < %(priority)s OR slot.random_key > %(random_key)s)"""


@dataclass(frozen=True)
class Terms:
    """For whom a slot is claimed, from when until when, and whether ahead of its turn."""

    project: Project
    seat: Seat
    now: datetime
    until: datetime
    is_ahead: bool


def claim(terms: Terms) -> Slot | None:
    """Lease the next slot to this person, with the sides decided; ``None`` if nothing is open for them.

    What it notes on the seat is the caller's to save.
    """
    project = terms.project
    slot = None
    if _falls(project.gold_percent):
        # Not in an empty queue: what comes after "you have done every pair" would be known for what it is.
        is_among_others = Slot.objects.filter(project=project).open_for(terms.seat.annotator_id).exists()
        slot = _claim_gold(terms) if is_among_others else None
    elif _falls(project.repeat_percent):
        slot = _claim_repeat(terms)
    slot = slot or _claim_planned(terms)
    if slot:
        _decide_sides(slot, terms.seat)
    return slot


def _falls(percent: float) -> bool:
    return percent > 0 and random.random() * 100 < percent  # noqa: S311  (an order, not a secret)


def _claim_planned(terms: Terms) -> Slot | None:
    """From the arm that the coin names, else from the other."""
    is_control = _falls(terms.project.control_percent)
    if terms.seat.queue_position.get("arrivals") != terms.project.arrivals:
        terms.seat.queue_position = {"arrivals": terms.project.arrivals}
    for arm in (is_control, not is_control):
        after = terms.seat.queue_position.get(_arm(arm))
        slot = None
        if after and not _falls(100 * FROM_HEAD):
            slot = _claim_in_arm(terms, arm, after)
        if slot := slot or _claim_in_arm(terms, arm, None):
            terms.seat.queue_position[_arm(arm)] = [slot.priority, slot.random_key]
            return slot
    return None


def _arm(is_control: bool) -> str:
    return "control" if is_control else "ordered"


def _claim_in_arm(terms: Terms, is_control: bool, after: list[float] | None) -> Slot | None:
    values = {
        "annotator": terms.seat.annotator_id,
        "project": terms.project.pk,
        "now": rows.moment(terms.now),
        "until": rows.moment(terms.until),
        "ahead": terms.is_ahead,
        "side": _by_coin(terms.seat),
    }
    if after:
        values |= {"priority": after[0], "random_key": after[1]}
    with connection.cursor() as cursor:
        cursor.execute(_claim_statement(connection.vendor, is_control, bool(after)), values)
        row = cursor.fetchone()
    return rows.build(Slot, row) if row else None


@cache
def _claim_statement(vendor: str, is_control: bool, is_after: bool) -> str:
    is_postgresql = vendor == "postgresql"
    return CLAIM.format(
        control=str(is_control).upper() if is_postgresql else int(is_control),
        after=AFTER if is_after else "",
        here="OFFSET 0" if is_postgresql else "",
        lock="FOR UPDATE SKIP LOCKED" if is_postgresql else "",
        columns=rows.columns(Slot),
    )


def _claim_gold(terms: Terms) -> Slot | None:
    mine = Slot.objects.filter(pair=OuterRef("pk"), annotator_id=terms.seat.annotator_id)
    golden = Pair.objects.filter(project=terms.project, is_retired=False).exclude(gold_choice="")
    skipped = Skip.objects.filter(pair=OuterRef("pk"), annotator_id=terms.seat.annotator_id)
    unseen = golden.filter(~Exists(mine), ~Exists(skipped)).values_list("pk", flat=True)[:GOLD_SEEN_AT_ONCE]
    return _own_place(terms, Slot.Kind.GOLD, list(unseen))


def _claim_repeat(terms: Terms) -> Slot | None:
    looked_twice = Slot.objects.filter(
        pair=OuterRef("pair"), annotator_id=terms.seat.annotator_id, kind=Slot.Kind.REPEAT
    )
    own = Preference.objects.counted().filter(project=terms.project, annotator_id=terms.seat.annotator_id)
    lately = own.annotate(again=Exists(looked_twice)).order_by("-pk").values_list("pair_id", "again")
    rows = lately[REPEAT_AFTER : REPEAT_AFTER + REPEAT_WITHIN]
    return _own_place(terms, Slot.Kind.REPEAT, [pair_id for pair_id, again in rows if not again])


def _own_place(terms: Terms, kind: str, pair_ids: list[int]) -> Slot | None:
    """A slot made for this person on one of the pairs, leased."""
    if not pair_ids:
        return None
    pair_id = random.choice(pair_ids)  # noqa: S311  (an order, not a secret)
    with transaction.atomic():
        _remember()
        Pair.objects.select_for_update(no_key=True).get(pk=pair_id)
        return Slot.objects.create(
            project=terms.project,
            pair_id=pair_id,
            place=next_place(pair_id),
            kind=kind,
            state=Slot.State.LEASED,
            annotator_id=terms.seat.annotator_id,
            lease_number=1,
            leased_at=terms.now,
            lease_until=terms.until,
            is_ahead=terms.is_ahead,
        )


def _remember() -> None:
    """Have the commit wait for the disk after all: a new slot's number is in a token, and must never be another's."""
    if connection.vendor == "postgresql":
        rows.execute("SET LOCAL synchronous_commit TO DEFAULT", [])


def _decide_sides(slot: Slot, seat: Seat) -> None:
    """Show it as this person has seen it before; else against the others; else as the coin fell at the claim."""
    shown = _shown_elsewhere(slot)
    seen = next((side for side, to in shown if to == seat.annotator_id), "")
    if slot.kind == Slot.Kind.REPEAT:
        side = opposite(seen) if seen else _by_coin(seat)
    else:
        side = seen or _against([side for side, _ in shown]) or slot.shown_left or _by_coin(seat)
    if (slot.shown_left, slot.shown_to) != (side, seat.annotator_id):
        slot.shown_left, slot.shown_to = side, seat.annotator_id
        rows.update(slot, ("shown_left", "shown_to"))
    seat.a_left += 1 if side == Slot.Side.A else -1


def _shown_elsewhere(slot: Slot) -> list[tuple[str, int | None]]:
    """How the pair's other slots were shown, and to whom. Most pairs have one slot, which needs no query."""
    if slot.place == 1 and slot.kind == Slot.Kind.PLANNED and not slot.is_shared:
        return []
    others = Slot.objects.filter(pair_id=slot.pair_id).exclude(pk=slot.pk).exclude(shown_left="").order_by("place")
    return list(others.values_list("shown_left", "shown_to"))


def _against(others: list[str]) -> str:
    """The side that the pair's other annotators saw on the left more rarely; empty while that is even."""
    lead = sum(1 if side == Slot.Side.A else -1 for side in others)
    return "" if lead == 0 else Slot.Side.B if lead > 0 else Slot.Side.A


def _by_coin(seat: Seat) -> str:
    """A coin that leans towards the side which this person has seen on the left more rarely."""
    leaning = 0.5 if seat.a_left == 0 else TOWARDS_BALANCE
    if abs(seat.a_left) >= MOST_APART:
        leaning = 1.0
    rarer = Slot.Side.B if seat.a_left > 0 else Slot.Side.A
    return rarer if random.random() < leaning else opposite(rarer)  # noqa: S311  (an order, not a secret)


def opposite(side: str) -> str:
    return Slot.Side.B if side == Slot.Side.A else Slot.Side.A
