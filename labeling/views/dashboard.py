"""The dashboard: how far, how fast, how far people agree, and what pulls at them."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from labeling.access import REVIEWERS, SignedInRequest, project_or_404
from labeling.charts import BarChart, Chart, Series, bar_chart, line_chart
from labeling.figures import SIDES, Figure, figure, newest_report, notes
from labeling.models import Project, QualityReport
from labeling.progress import Day, Progress, agreement_by_day, progress, since_first
from labeling.templatetags.formatting import count, in_the_language, short_day
from labeling.views.projects import project_context

FARTHEST = timedelta(days=3650)  # a date beyond says nothing


@require_GET
@login_required
def dashboard(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    now, report = progress(project), newest_report(project)
    context = project_context(request, project) | {
        "progress": now,
        "ready": _ready(now),
        "days_chart": _days_chart(now.per_day),
        "agreement_chart": _agreement_chart(project),
        "report": report,
        "quality": _quality(report) if report else None,
    }
    return render(request, "labeling/dashboard.html", context)


def _quality(report: QualityReport) -> dict[str, Any]:
    data = report.data
    shares = {name: figure(data[name]) for name in ("ties", "left", "longer_won", "gold", "self_agreement")}
    return shares | {
        "judgements": data["judgements"],
        "median_seconds": data["median_seconds"],
        "left_word": SIDES[data["left_verdict"]],
        "alpha": figure(data["agreement"]["alpha"]),
        "equal": figure(data["agreement"]["equal"]),
        "agreement": _agreement(data["agreement"]),
        "notes": notes(data["signals"]),
        "pulls": _pulls(data),
        "arms": [(_("Ordered"), _arm(data["arms"]["ordered"])), (_("At random"), _arm(data["arms"]["control"]))],
        "criteria": [
            {"name": one["name"], "judged": one["judged"], "agrees": figure(one["agrees"]), "ties": figure(one["ties"])}
            for one in data["criteria"]
        ],
    }


def _agreement(readings: dict[str, Any]) -> list[tuple[str, str, list[tuple[str, Figure]]]]:
    """The share and the coefficient, each with a tie as an answer like any other and as one between two."""
    share = [
        (_("Chose the same"), figure(readings["equal"])),
        (_("“Equally good” agrees by half with a choice"), figure(readings["half"])),
    ]
    alpha = [
        (_("Four answers, all equally far apart"), figure(readings["alpha"])),
        (_("“Equally good” halfway between the two"), figure(readings["alpha_interval"])),
    ]
    return [(_("Two people on one pair"), "percent", share), (_("Krippendorff’s alpha"), "decimals", alpha)]


def _pulls(data: dict[str, Any]) -> list[tuple[str, list[tuple[str, Figure]]]]:
    """What pulls at the choices, in two groups of figures that stand beside a half. A report may be older than they."""
    found = data.get("pulls", {})
    steps = [
        _("… by a quarter at most"),
        _("… up to twice as long"),
        _("… up to four times as long"),
        _("… more than that"),
    ]
    by_length = found.get("by_length", [None] * len(steps))
    side = [
        (_("Left wins, as counted"), figure(data["left"])),
        (_("Left wins, lengths taken out"), figure(found.get("side"))),
    ]
    length = [
        (_("Longer wins, as counted"), figure(data["longer_won"])),
        (_("Longer wins, sides taken out"), figure(found.get("longer"))),
        *((step, figure(one)) for step, one in zip(steps, by_length, strict=True)),
        (_("Twice as long wins, sides taken out"), figure(found.get("length"))),
    ]
    return [(_("The side"), side), (_("The length"), length)]


def _arm(stored: dict[str, Any]) -> dict[str, Any]:
    return stored | {"ties": figure(stored["ties"]), "conflicts": figure(stored["conflicts"])}


def _ready(now: Progress) -> dict[str, date | None] | None:
    """The day on which everything is judged at the pace of the last days, the earliest and the latest."""
    if now.eta is None or not now.open + now.leased:
        return None
    return {"day": _in_days(now.eta.days), "earliest": _in_days(now.eta.earliest), "latest": _in_days(now.eta.latest)}


def _in_days(days: float | None) -> date | None:
    if days is None or timedelta(days=min(days, 1e6)) > FARTHEST:
        return None
    return timezone.localdate() + timedelta(days=days)


def _days_chart(days: list[Day]) -> BarChart | None:
    days = since_first(days)
    total = sum(number for _day, number in days)
    summary = _("Judgements a day: %(total)s in %(days)d days, %(today)s today")
    said = str(summary % {"total": count(total), "days": len(days), "today": count(days[-1][1])})
    return bar_chart(_("Judgements a day"), [(short_day(day), number) for day, number in days], summary=said)


def _agreement_chart(project: Project) -> Chart | None:
    """In percent; the interval in the muted colour. One day is a figure and no line."""
    rows = agreement_by_day(project)
    if len(rows) < 2:
        return None
    first, last = rows[0].day, rows[-1].day

    def line(label: str, role: str, name: str) -> Series:
        return Series(label, role, [((row.day - first).days, 100 * getattr(row, name)) for row in rows])

    lines = [
        line(_("at most"), "muted", "high"),
        line(_("agree"), "main", "value"),
        line(_("at least"), "muted", "low"),
    ]
    title = _("Agreement in percent of pairs of judgements")
    return line_chart(
        title,
        lines,
        x_max=(last - first).days,
        x_name=_("on"),
        x_label=lambda x: short_day(first + timedelta(days=int(x))),
        y_label=lambda y: in_the_language(f"{y:.3g}"),
        summary=_("%(title)s on %(day)s") % {"title": title, "day": short_day(last)},
    )
