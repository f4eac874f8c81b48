"""One's own judgements: what was said of which pair, open to change until a dataset has used it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import F, Q
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from labeling import queue
from labeling.access import SignedInRequest, project_or_404
from labeling.desk import side_of
from labeling.exceptions import LabelingError
from labeling.models import Preference, Project, SentBack
from labeling.paginator import EstimatingPaginator
from labeling.views.projects import project_context

JUDGEMENTS_PER_PAGE = 25
SNIPPET = 240


@require_GET
@login_required
def history(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    page = EstimatingPaginator(_own(request, project), JUDGEMENTS_PER_PAGE).get_page(request.GET.get("page"))
    context = project_context(request, project) | {"page": page, "rows": _rows(list(page.object_list))}
    return render(request, "labeling/history.html", context)


def _own(request: SignedInRequest, project: Project) -> Any:
    """What counts, and what an admin has withdrawn: its author is told so. Of each its newest version."""
    newest = Q(is_current=True) | Q(withdrawal__isnull=False, version=F("slot__versions"))
    mine = Preference.objects.filter(newest, project=project, annotator=request.user)
    shown = ("pair__prompt", "pair__response_a", "pair__response_b", "rewrite__response")
    return mine.select_related(*shown).order_by("-created_at", "-pk")


def _rows(preferences: Sequence[Preference]) -> list[dict[str, Any]]:
    waiting = SentBack.objects.filter(preference__in=preferences, settled_at=None)
    notes = dict(waiting.values_list("preference_id", "note"))
    return [_row(preference, notes.get(preference.pk, "")) for preference in preferences]


def _row(preference: Preference, note: str) -> dict[str, Any]:
    """By side, as its author saw it. ``note``: of a reviewer who asks them to look again."""
    pair = preference.pair
    texts = {"a": pair.response_a.text, "b": pair.response_b.text}
    left = texts.pop(preference.shown_left)
    return {
        "preference": preference,
        "side": side_of(preference.choice, preference.shown_left),
        "prompt": str(pair.prompt),
        "left": left[:SNIPPET],
        "right": texts.popitem()[1][:SNIPPET],
        "criteria": [(name, side_of(said, preference.shown_left)) for name, said in preference.criteria.items()],
        "note": note if preference.frozen_at is None else "",
    }


@require_POST
@login_required
def reopen(request: SignedInRequest, slug: str, preference_id: int) -> HttpResponse:
    """Put one of one's own judgements back on the desk, with the answer that was given."""
    project = project_or_404(request.user, slug)
    try:
        queue.reopen(project, request.user.pk, preference_id)
    except LabelingError as error:
        messages.error(request, str(error))
        return redirect("labeling:history", slug=slug)
    return redirect("labeling:annotate", slug=slug)
