"""What somebody passed on lately, a pair or a second look, and which of it they can have again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Exists, OuterRef, QuerySet

from labeling.models import Project, Skip, Slot

# A second look is skipped by its place, since the pair itself is judged already.
PassedOn = Skip | Slot


@dataclass(frozen=True)
class Lately:
    """The last thing that was passed on, and the last of those that can be had again."""

    last: PassedOn | None
    again: PassedOn | None

    @property
    def is_stepped_over(self) -> bool:
        return self.last != self.again


def passed_on_since(project: Project, annotator_id: int, moment: datetime | None) -> Lately:
    """What this person passed on after ``moment``, or ever; a pair may have gone to somebody else meanwhile."""
    skips = Skip.objects.filter(annotator_id=annotator_id, pair__project=project)
    looks = Slot.objects.filter(project=project, annotator_id=annotator_id, passed_on_at__isnull=False)
    if moment:
        skips, looks = skips.filter(created_at__gt=moment), looks.filter(passed_on_at__gt=moment)
    last = _last(skips, looks)
    return Lately(last, _last(_to_have_again(skips), looks.filter(pair__is_retired=False)) if last else None)


def asks_nobody(passed: PassedOn) -> bool:
    """Whether it cannot be had because its pair is over, and not because somebody else has it."""
    return passed.pair.is_retired or (isinstance(passed, Skip) and bool(passed.pair.adjudicated_choice))


def _last(skips: QuerySet[Skip], looks: QuerySet[Slot]) -> PassedOn | None:
    skip = skips.select_related("pair").order_by("-pk").first()
    look = looks.select_related("pair").order_by("-passed_on_at").first()
    if skip and look and look.passed_on_at:
        return skip if skip.created_at > look.passed_on_at else look
    return skip or look


def _to_have_again(skips: QuerySet[Skip]) -> QuerySet[Skip]:
    """Those whose pairs have a place left, open or this person's own."""
    places = Slot.objects.filter(pair=OuterRef("pair"))
    own = places.filter(annotator=OuterRef("annotator")).exclude(kind=Slot.Kind.REPEAT)
    is_left = Exists(places.filter(state=Slot.State.OPEN)) | Exists(own)
    return skips.filter(is_left, pair__is_retired=False, pair__adjudicated_choice="")
