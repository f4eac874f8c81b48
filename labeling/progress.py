"""How far a project is and how fast it goes: counts that an index or a kept number answers. Pure reading."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import NamedTuple

from django.db.models import Count, IntegerField, QuerySet, Sum, Value
from django.utils import timezone

from labeling.models import Preference, Project, QualityReport, Seat, Slot
from labeling.quality import Eta, eta

DAYS_SHOWN, LEAST_DAYS_SHOWN = 60, 14
PACE_DAYS = 7

Day = tuple[date, int]


class DayAgreement(NamedTuple):
    """Agreement, 0 to 1, with its interval as it stood at the end of a day."""

    day: date
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Progress:
    """``judged``: judgements given, second looks and extra votes included; ``open`` and ``leased``: places to fill.

    ``reading``: those of the leased that somebody has before them. The others are held, unseen, for who comes next.
    """

    judged: int
    open: int
    leased: int
    reading: int
    per_day: list[Day]
    eta: Eta | None

    @property
    def is_done(self) -> bool:
        return bool(self.judged) and not self.open + self.leased

    @property
    def wanted(self) -> int:
        return self.judged + self.open + self.leased

    @property
    def percent(self) -> int:
        return 100 * self.judged // self.wanted if self.wanted else 0


def progress(project: Project) -> Progress:
    judged = Seat.objects.filter(project=project).aggregate(total=Sum("judged"))["total"] or 0
    slots = Slot.objects.filter(project=project)
    open_, leased = (slots.filter(state=state).count() for state in (Slot.State.OPEN, Slot.State.LEASED))
    days = labels_per_day(Preference.objects.filter(project=project))
    return Progress(judged, open_, leased, slots.being_read().count(), days, eta(open_ + leased, pace_days(days)))


def labels_per_day(judgements: QuerySet[Preference], days: int = DAYS_SHOWN) -> list[Day]:
    """How many judgements came on each of the last ``days`` days, today last; versions count each on their day.

    One query of a count a day, each of which reads its part of the index by day and nothing else.
    """
    today = timezone.localdate()
    shown = [today - timedelta(days=ago) for ago in range(days - 1, -1, -1)]
    counts = [_on(judgements, day) for day in shown]
    found = {int(place): count for place, count in counts[0].union(*counts[1:], all=True)}
    return [(day, found.get(day.toordinal(), 0)) for day in shown]


def _on(judgements: QuerySet[Preference], day: date) -> QuerySet[Preference, tuple[int, int]]:
    start, end = _midnight(day), _midnight(day + timedelta(days=1))
    that_day = judgements.filter(created_at__gte=start, created_at__lt=end).order_by()
    place = Value(day.toordinal(), output_field=IntegerField())
    return that_day.annotate(place=place).values("place").annotate(count=Count("*")).values_list("place", "count")


def since_first(days: list[Day], least: int = LEAST_DAYS_SHOWN) -> list[Day]:
    """Without the days before the first judgement, but a fortnight at least: a chart of nothing says nothing."""
    first = next((place for place, (_, count) in enumerate(days) if count), len(days))
    return days[min(first, max(0, len(days) - least)) :]


def pace_days(days: list[Day]) -> list[int]:
    """The last days that tell the pace: full ones since the first judgement; today alone where there is no other."""
    full = [count for _, count in days[:-1]]
    while full and full[0] == 0:
        full.pop(0)
    return full[-PACE_DAYS:] or [days[-1][1]]


def agreement_by_day(project: Project) -> list[DayAgreement]:
    """The last days that have a figure, oldest first."""
    since = timezone.localdate() - timedelta(days=DAYS_SHOWN)
    fields = [f"data__agreement__equal__{name}" for name in ("value", "low", "high")]
    reports = QualityReport.objects.filter(project=project, day__gt=since).order_by("day")
    rows = reports.values_list("day", *fields)
    return [DayAgreement(*row) for row in rows if row[1] is not None]


def _midnight(day: date) -> datetime:
    return timezone.make_aware(datetime.combine(day, time()))
