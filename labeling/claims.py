"""Which pair somebody is given next, and which response of it stands on the left.

Mostly the next open slot of the project's order. Now and then a pair with a known answer, or a second look at a pair
of their own, in a slot made for this person before (``own_places``), by one statement as well: nobody can tell it by
the time it takes. Callers hold the annotator's lock and a transaction.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from django.db import connection

from labeling import rows
from labeling.models import Project, Seat, Slot

# How far a person's sides may be apart before the coin is no coin any more (Efron 1971, biased coin designs).
MOST_APART = 3
TOWARDS_BALANCE = 2 / 3
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
# The same for a place of one's own. A known answer comes among others only: what came after "you have done every pair"
# would be known for what it is.
CLAIM_OWN = """
UPDATE labeling_slot
SET state = 'leased', lease_number = lease_number + 1, leased_at = %(now)s, lease_until = %(until)s,
    is_ahead = %(ahead)s
WHERE id = (
    SELECT slot.id FROM labeling_slot slot JOIN labeling_pair pair ON pair.id = slot.pair_id
    WHERE slot.project_id = %(project)s AND slot.annotator_id = %(annotator)s AND slot.kind = '{kind}'
      AND slot.state = 'done' AND slot.versions = 0 AND slot.passed_on_at IS NULL AND NOT pair.is_retired {condition}
    ORDER BY slot.random_key
    LIMIT 1 {lock}
)
RETURNING {columns}
"""
IS_GOLD_AMONG_OTHERS = """AND pair.gold_choice <> ''
      AND EXISTS (SELECT 1 FROM labeling_slot other
                  WHERE other.project_id = %(project)s AND other.state = 'open'
                    AND NOT EXISTS (SELECT 1 FROM labeling_slot mine
                                    WHERE mine.pair_id = other.pair_id AND mine.annotator_id = %(annotator)s)
                    AND NOT EXISTS (SELECT 1 FROM labeling_skip skip
                                    WHERE skip.pair_id = other.pair_id AND skip.annotator_id = %(annotator)s))"""
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

    @property
    def values(self) -> dict[str, Any]:
        """The terms as both statements name them."""
        return {
            "annotator": self.seat.annotator_id,
            "project": self.project.pk,
            "now": rows.moment(self.now),
            "until": rows.moment(self.until),
            "ahead": self.is_ahead,
        }


def claim(terms: Terms) -> Slot | None:
    """Lease the next slot to this person, with the sides decided; ``None`` if nothing is open for them.

    What it notes on the seat is the caller's to save.
    """
    slot = None
    if _falls(terms.project.gold_percent):
        slot = _claim_own(terms, Slot.Kind.GOLD)
    elif _falls(terms.project.repeat_percent):
        slot = _claim_own(terms, Slot.Kind.REPEAT)
    return slot or _claim_planned(terms)


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
            _decide_sides(slot, terms.seat)
            return slot
    return None


def _arm(is_control: bool) -> str:
    return "control" if is_control else "ordered"


def _claim_in_arm(terms: Terms, is_control: bool, after: list[float] | None) -> Slot | None:
    values = terms.values | {"side": by_coin(terms.seat)}
    if after:
        values |= {"priority": after[0], "random_key": after[1]}
    return _claimed(_claim_statement(connection.vendor, is_control, bool(after)), values)


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


def _claim_own(terms: Terms, kind: str) -> Slot | None:
    """A place that was made for this person, its sides decided."""
    slot = _claimed(_claim_own_statement(connection.vendor, kind), terms.values)
    if slot:
        terms.seat.a_left += 1 if slot.shown_left == Slot.Side.A else -1
    return slot


@cache
def _claim_own_statement(vendor: str, kind: str) -> str:
    return CLAIM_OWN.format(
        kind=kind,
        condition=IS_GOLD_AMONG_OTHERS if kind == Slot.Kind.GOLD else "",
        lock="FOR UPDATE OF slot SKIP LOCKED" if vendor == "postgresql" else "",
        columns=rows.columns(Slot),
    )


def _claimed(statement: str, values: dict[str, Any]) -> Slot | None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        row = cursor.fetchone()
    return rows.build(Slot, row) if row else None


def _decide_sides(slot: Slot, seat: Seat) -> None:
    """Show it as this person has seen it before; else against the others; else as the coin fell at the claim."""
    shown = [] if slot.place == 1 and not slot.is_shared else shown_elsewhere(slot)  # most pairs have one slot
    seen = next((side for side, to in shown if to == seat.annotator_id), "")
    side = seen or against([side for side, _ in shown]) or slot.shown_left or by_coin(seat)
    if (slot.shown_left, slot.shown_to) != (side, seat.annotator_id):
        slot.shown_left, slot.shown_to = side, seat.annotator_id
        rows.update(slot, ("shown_left", "shown_to"))
    seat.a_left += 1 if side == Slot.Side.A else -1


def shown_elsewhere(slot: Slot) -> list[tuple[str, int | None]]:
    """How the pair's other slots were shown, and to whom."""
    others = Slot.objects.filter(pair_id=slot.pair_id).exclude(pk=slot.pk).exclude(shown_left="").order_by("place")
    return list(others.values_list("shown_left", "shown_to"))


def against(others: list[str]) -> str:
    """The side that the pair's other annotators saw on the left more rarely; empty while that is even."""
    lead = sum(1 if side == Slot.Side.A else -1 for side in others)
    return "" if lead == 0 else Slot.Side.B if lead > 0 else Slot.Side.A


def by_coin(seat: Seat) -> str:
    """A coin that leans towards the side which this person has seen on the left more rarely."""
    leaning = 0.5 if seat.a_left == 0 else TOWARDS_BALANCE
    if abs(seat.a_left) >= MOST_APART:
        leaning = 1.0
    rarer = Slot.Side.B if seat.a_left > 0 else Slot.Side.A
    return rarer if random.random() < leaning else opposite(rarer)  # noqa: S311  (an order, not a secret)


def opposite(side: str) -> str:
    return Slot.Side.B if side == Slot.Side.A else Slot.Side.A
