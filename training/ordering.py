"""What serving uncertain pairs first has brought: the pairs in that order beside those of the control, in random order.

Without the control nobody could say: what is judged in the order of the margins are other pairs than the project has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.core.cache import cache
from django.db.models import Avg, Count, F, FloatField, OuterRef, Q, Subquery
from django.db.models.functions import Abs

from labeling.models import Choice, Preference, Project, Slot
from labeling.quality import Share, wilson
from training import tallies
from training.models import PairOrigin
from training.triples import LabelRule

# The page is looked at often, and the pairs of a large project take seconds to count.
LARGE = 20_000  # judged pairs
KEPT_SECONDS = 60
BY_VOTES = LabelRule(noise="none")  # what people chose is asked, not what a run would make of it


@dataclass(frozen=True)
class Arm:
    """The judged pairs of one order, but those with a known answer, which come in neither.

    ``scored`` are those with a margin, and ``mean_margin`` the mean of its size. ``agreement``: of the scored ones that
    have a better response, those where people chose the one that the policy's implicit reward chooses; a reviewer's
    verdict stands for the people. ``ties``: pairs that all votes call equally good. ``conflicts``: of the pairs with
    two votes or more, those with votes for both sides, whatever a reviewer made of them. Both-bad judgements are no
    votes.
    """

    judged: int
    scored: int
    mean_margin: float | None
    agreement: Share
    ties: Share
    conflicts: Share


@dataclass(frozen=True)
class OrderReport:
    ordered: Arm
    control: Arm

    @property
    def arms(self) -> tuple[Arm, Arm]:
        return self.ordered, self.control

    @property
    def judged(self) -> int:
        return self.ordered.judged + self.control.judged

    @property
    def has_order(self) -> bool:
        """Whether any judged pair had a margin to be ordered by."""
        return self.ordered.scored + self.control.scored > 0


def order_report(project: Project) -> OrderReport:
    """Both arms by two queries. Of a project with many pairs the figures may be as old as ``KEPT_SECONDS``."""
    key = f"ordering:{project.pk}"
    if (kept := cache.get(key)) is not None:
        report: OrderReport = kept
        return report
    report = OrderReport(_arm(project, is_control=False), _arm(project, is_control=True))
    if report.judged >= LARGE:
        cache.set(key, report, KEPT_SECONDS)
    return report


def _arm(project: Project, *, is_control: bool) -> Arm:
    counted = Preference.objects.counted().filter(project=project, pair__is_control=is_control, pair__gold_choice="")
    counted = counted.exclude(slot__kind=Slot.Kind.GOLD)
    margin = PairOrigin.objects.filter(pair=OuterRef("pair_id")).values("margin")
    said: dict[str, Any] = {f"for_{side.value}": Count("pk", filter=Q(choice=side)) for side in (Choice.A, Choice.B)}
    said["cast"] = Count("pk", filter=~Q(choice=Choice.BOTH_BAD))
    rows = tallies.by_pair(counted).annotate(
        **said, margin=Subquery(margin, output_field=FloatField()), size=Abs(F("margin"))
    )
    judged, decided, scored = tallies.is_judged(), tallies.is_decided(BY_VOTES), Q(margin__isnull=False)
    for_both = Q(for_a__gt=0, for_b__gt=0)
    found = rows.filter(judged).aggregate(
        judged=Count("pair_id"),
        scored=Count("pair_id", filter=scored),
        mean_margin=Avg("size"),
        comparable=Count("pair_id", filter=decided & scored & ~Q(margin=0)),
        agreed=Count("pair_id", filter=Q(lead__gt=0, margin__gt=0) | Q(lead__lt=0, margin__lt=0)),
        ties=Count("pair_id", filter=~decided & ~for_both),
        several=Count("pair_id", filter=Q(cast__gt=1)),
        conflicts=Count("pair_id", filter=for_both),
    )
    return Arm(
        judged=found["judged"],
        scored=found["scored"],
        mean_margin=found["mean_margin"],
        agreement=wilson(found["agreed"], found["comparable"]),
        ties=wilson(found["ties"], found["judged"]),
        conflicts=wilson(found["conflicts"], found["several"]),
    )
