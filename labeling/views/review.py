"""The reviewer's desk: pairs that somebody should look at, oldest first, and what may be done with a pair."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST

from labeling.access import REVIEWERS, SignedInRequest, project_or_404
from labeling.exceptions import LabelingError
from labeling.models import Adjudication, Choice, Pair, Preference
from labeling.pair_page import pair_or_404, read_pair
from labeling.qualification_items import MAX_EXPLANATION_CHARACTERS
from labeling.review import adjudicate, end_gold, make_gold, send_back
from labeling.views.projects import project_context
from labeling.withheld import withheld_from


@require_GET
@login_required
def desk(request: SignedInRequest, slug: str) -> HttpResponse:
    """The oldest pair to review, or the next one after that of ``?after=``.

    Without those that its reader has still to judge: that they wait here says what others have done.
    """
    project = project_or_404(request.user, slug, REVIEWERS)
    waiting = Pair.objects.filter(project=project).exclude(review="").order_by("pk")
    if withheld := withheld_from(project, request.user.pk):
        waiting = waiting.exclude(pk__in=withheld)
    after = request.GET.get("after", "")
    rest = waiting.filter(pk__gt=int(after)) if after.isdecimal() and len(after) < 18 else waiting
    pair = rest.select_related("project", "prompt", "response_a", "response_b").first()
    context = project_context(request, project) | {
        "page": read_pair(pair, request.user.pk) if pair else None,
        "waiting": waiting.count(),
        "was_last": pair is None and after,
        "choices": Choice.choices,
    }
    return render(request, "labeling/review.html", context)


@require_GET
@login_required
def pair(request: SignedInRequest, slug: str, pair_id: int) -> HttpResponse:
    """One pair with everything about it."""
    project = project_or_404(request.user, slug, REVIEWERS)
    page = read_pair(pair_or_404(project, pair_id), request.user.pk)
    context = project_context(request, project) | {
        "page": page,
        "back": request.path,
        "choices": Choice.choices,
        "most_explained": MAX_EXPLANATION_CHARACTERS,
    }
    return render(request, "labeling/pair.html", context)


@require_POST
@login_required
def decide(request: SignedInRequest, slug: str, pair_id: int) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    pair = pair_or_404(project, pair_id)
    verdict = request.POST.get("verdict", "")
    try:
        adjudicate(pair=pair, reviewer=request.user, verdict=verdict, note=request.POST.get("note", ""))
    except LabelingError as error:
        messages.error(request, str(error))
    else:
        there = reverse("labeling:pair", args=[slug, pair.pk])
        link = _("Pair %(pair)d") % {"pair": pair.pk}
        messages.success(request, format_html('{} <a href="{}">{}</a>', _said(pair, verdict), there, link))
    return _back(request, slug)


def _said(pair: Pair, verdict: str) -> str:
    """What the decision has done, and where it can be changed."""
    count = pair.judgements_count
    if verdict == Adjudication.Verdict.RETIRE:
        effect = ngettext(
            "Pair %(pair)d was taken out; its judgement counts no more. “Bring back” undoes it.",
            "Pair %(pair)d was taken out; its %(count)d judgements count no more. “Bring back” undoes it.",
            count,
        )
    elif verdict == Adjudication.Verdict.LEAVE and pair.is_retired:
        effect = ngettext(
            "Pair %(pair)d is back; its judgement counts again.",
            "Pair %(pair)d is back; its %(count)d judgements count again.",
            count,
        )
    elif verdict == Adjudication.Verdict.LEAVE and pair.adjudicated_choice:
        effect = ngettext(
            "The decision on pair %(pair)d is taken back; its judgement counts again.",
            "The decision on pair %(pair)d is taken back; its %(count)d judgements count again.",
            count,
        )
    elif verdict == Adjudication.Verdict.LEAVE:
        effect = ngettext(
            "Pair %(pair)d stays as its judgement has it.",
            "Pair %(pair)d stays as its %(count)d judgements have it.",
            count,
        )
    else:
        effect = _("Pair %(pair)d counts as “%(verdict)s” from now on. The newest decision holds.")
    label = Adjudication.Verdict(verdict).label
    return str(effect % {"pair": pair.pk, "count": count, "verdict": label})


@require_POST
@login_required
def return_judgement(request: SignedInRequest, slug: str, preference_id: int) -> HttpResponse:
    """Send one judgement back to its author."""
    project = project_or_404(request.user, slug, REVIEWERS)
    preference = get_object_or_404(Preference.objects.select_related("annotator"), project=project, pk=preference_id)
    try:
        send_back(preference=preference, reviewer=request.user, note=request.POST.get("note", ""))
    except LabelingError as error:
        messages.error(request, str(error))
    else:
        name = preference.annotator.get_username()
        messages.success(
            request, _("%(name)s sees this pair again with your note, on their own page.") % {"name": name}
        )
    return _back(request, slug)


@require_POST
@login_required
def gold(request: SignedInRequest, slug: str, pair_id: int) -> HttpResponse:
    """Make a pair gold, or end it with an empty choice."""
    project = project_or_404(request.user, slug, REVIEWERS)
    pair = pair_or_404(project, pair_id)
    choice = request.POST.get("choice", "")
    try:
        if choice:
            make_gold(pair=pair, choice=choice)
        else:
            end_gold(pair=pair)
    except LabelingError as error:
        messages.error(request, str(error))
    else:
        said = _("Pair %(pair)d is gold now.") if choice else _("Pair %(pair)d is a pair like the others again.")
        messages.success(request, said % {"pair": pair.pk})
    return _back(request, slug)


def _back(request: SignedInRequest, slug: str) -> HttpResponseRedirect:
    """Where the form stood; the desk by default."""
    wanted = request.POST.get("back", "")
    if wanted and url_has_allowed_host_and_scheme(wanted, allowed_hosts=None):
        return redirect(wanted)
    return redirect(reverse("labeling:review", args=[slug]))
