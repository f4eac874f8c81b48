"""The tables of judgements and pairs, and the export of what a filter finds."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, QueryDict, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.http import require_GET

from labeling.access import REVIEWERS, SignedInRequest, project_or_404
from labeling.desk import side_of
from labeling.filters import (
    SEARCHED,
    TEXTS_SEARCHED,
    Found,
    JudgementFilter,
    PairFilter,
    judgements_search,
    pairs_search,
)
from labeling.judgement_export import csv_lines, jsonl_lines
from labeling.models import Pair, Preference
from labeling.views.projects import project_context
from labeling.withheld import withheld_from

FORMATS = {"csv": (csv_lines, "text/csv"), "jsonl": (jsonl_lines, "application/jsonl")}


@require_GET
@login_required
def judgements(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    form = JudgementFilter(project, request.GET)
    found: Found[Preference] = Found([], None, is_bounded=False)
    withheld = withheld_from(project, request.user.pk)
    if form.is_valid():
        found = judgements_search(project, form.cleaned_data, withheld).page(_before(request))
    rows = [(judgement, side_of(judgement.choice, judgement.shown_left)) for judgement in found.rows]
    context = project_context(request, project) | _table(request, form, found)
    context |= {"rows": rows, "withheld": withheld}
    return render(request, "labeling/judgements.html", context, status=200 if form.is_valid() else 400)


@require_GET
@login_required
def export(request: SignedInRequest, slug: str, suffix: str) -> HttpResponseBase:
    """Everything that the filter of the address finds, in a stream.

    Whole, unlike the table: rows that come or not by what its reader holds would make files that nobody can trust.
    """
    project = project_or_404(request.user, slug, REVIEWERS)
    form = JudgementFilter(project, request.GET)
    if not form.is_valid():
        return HttpResponse(form.errors.as_text(), status=400, content_type="text/plain; charset=utf-8")
    lines, content_type = FORMATS[suffix]
    rows = judgements_search(project, form.cleaned_data).everything()
    response = StreamingHttpResponse(lines(rows), content_type=f"{content_type}; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="judgements-{project.slug}.{suffix}"'
    return response


@require_GET
@login_required
def pairs(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    form = PairFilter(request.GET)
    withheld = withheld_from(project, request.user.pk)
    found: Found[Pair] = Found([], None, is_bounded=False)
    if form.is_valid():
        found = pairs_search(project, form.cleaned_data, withheld).page(_before(request))
    context = project_context(request, project) | _table(request, form, found) | {"withheld": withheld}
    return render(request, "labeling/pairs.html", context, status=200 if form.is_valid() else 400)


def _table(request: SignedInRequest, form: forms.Form, found: Found[Any]) -> dict[str, Any]:
    asked = _asked(request.GET)
    return {
        "form": form,
        "found": found,
        "searched": TEXTS_SEARCHED if request.GET.get("text") else SEARCHED,
        "is_filtered": bool(asked),
        "is_first": _before(request) is None,
        "query": urlencode(asked),
        "older": urlencode([*asked, ("before", str(found.older))]),
    }


def _asked(given: QueryDict) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in given.items() if value and name != "before"]


def _before(request: SignedInRequest) -> int | None:
    before = request.GET.get("before", "")
    return int(before) if before.isascii() and before.isdecimal() and len(before) < 18 else None
