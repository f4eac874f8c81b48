"""What is known of each annotator, for reviewers; and of oneself, for everybody. Nobody is ranked by volume."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from labeling.access import REVIEWERS, SignedInRequest, project_or_404
from labeling.charts import bar_chart
from labeling.figures import BANDS, SIDES, Figure, Note, figure, newest_report, notes
from labeling.models import Preference, Seat
from labeling.progress import labels_per_day, since_first
from labeling.sent_back import waiting_for
from labeling.templatetags.formatting import count, short_day
from labeling.views.projects import project_context
from labeling.withheld import withheld_from

PEOPLE_PER_PAGE = 50
SENT_BACK_SHOWN = 50


@dataclass(frozen=True)
class PersonFigures:
    """One person's part of a report."""

    judgements: int
    median_seconds: float | None
    reliability: Figure
    agreement: Figure
    band: str
    left: Figure
    left_word: str
    pull: Figure
    ties: Figure
    gold: Figure
    self_agreement: Figure
    followed_side: Figure
    notes: list[Note]


def person_figures(stored: dict[str, Any] | None) -> PersonFigures:
    own = stored or {}
    again = own.get("self_agreement") or {}
    return PersonFigures(
        judgements=own.get("judgements", 0),
        median_seconds=own.get("median_seconds"),
        reliability=figure(own.get("reliability")),
        agreement=figure(own.get("agreement")),
        band=str(BANDS[own.get("band", "too few")]),
        left=figure(own.get("left")),
        left_word=str(SIDES[own.get("left_verdict", "too few")]),
        pull=figure(own.get("pull")),
        ties=figure(own.get("ties")),
        gold=figure(own.get("gold")),
        self_agreement=figure(again.get("overall")),
        followed_side=figure(again.get("followed_side")),
        notes=notes(own.get("signals", [])),
    )


@require_GET
@login_required
def people(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    seats = Seat.objects.filter(project=project).select_related("annotator").order_by("annotator__username")
    page = Paginator(seats, PEOPLE_PER_PAGE).get_page(request.GET.get("page"))
    report = newest_report(project)
    stored = report.data.get("annotators", {}) if report else {}
    rows = [(seat.annotator, person_figures(stored.get(str(seat.annotator_id)))) for seat in page]
    context = project_context(request, project) | {"page": page, "rows": rows, "report": report}
    return render(request, "labeling/people.html", context)


@require_GET
@login_required
def person(request: SignedInRequest, slug: str, user_id: int) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    seat = get_object_or_404(Seat.objects.select_related("annotator"), project=project, annotator=user_id)
    report = newest_report(project)
    stored = report.data.get("annotators", {}).get(str(user_id)) if report else None
    withheld = withheld_from(project, request.user.pk)
    waiting = waiting_for(project, seat.annotator_id, SENT_BACK_SHOWN)
    context = project_context(request, project) | {
        "annotator": seat.annotator,
        "figures": person_figures(stored),
        "report": report,
        "chart": _days_chart(Preference.objects.filter(project=project, annotator=seat.annotator)),
        "sent_back": [back for back in waiting if back.preference.pair_id not in withheld],
    }
    return render(request, "labeling/person.html", context)


def _days_chart(judgements: Any) -> Any:
    bars = [(short_day(day), number) for day, number in since_first(labels_per_day(judgements))]
    total = sum(number for _label, number in bars)
    title = _("Judgements a day")
    return bar_chart(title, bars, summary=f"{title}: {count(total)}")


@require_GET
@login_required
def me(request: SignedInRequest, slug: str) -> HttpResponse:
    """One's own figures and what was sent back. No number of anybody else."""
    project = project_or_404(request.user, slug)
    report = newest_report(project)
    stored = report.data.get("annotators", {}).get(str(request.user.pk)) if report else None
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    today = Preference.objects.filter(
        project=project, annotator=request.user, created_at__gte=midnight, is_current=True
    ).values_list("seconds", flat=True)
    seconds = list(today[:5000])
    context = project_context(request, project) | {
        "today": len(seconds),
        "seconds_today": median(seconds) if seconds else None,
        "figures": person_figures(stored),
        "report": report,
        "sent_back": waiting_for(project, request.user.pk, SENT_BACK_SHOWN),
    }
    return render(request, "labeling/me.html", context)
