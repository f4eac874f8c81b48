"""The annotate page and what its keys do.

Every answer brings a turn: the pair to look at now, unless the page says that it shows it already, and the one after
it, which waits unseen in the page. Without JavaScript the same forms lead back to the page.
"""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext
from django.views.decorators.http import require_GET, require_POST

from labeling import queue
from labeling.access import SignedInRequest, project_or_404
from labeling.desk import choice_of, show, texts_of, why_nothing
from labeling.difference import difference
from labeling.exceptions import LabelingError
from labeling.forms import ReasonsForm, SkipForm, TokenForm, VoteForm
from labeling.guidelines import version_read_by
from labeling.keys import keys_of
from labeling.models import Preference, Project, Skip
from labeling.tokens import lease_key, read_token
from labeling.views.projects import done_today, project_context

PLAIN = "text/plain; charset=utf-8"


@require_GET
@login_required
def annotate(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    return _answer(request, project, _turn(request, project))


@require_POST
@login_required
def submit_preference(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    form = VoteForm(request.POST, project=project)
    if not form.is_valid():
        return _refused(request, project, form.first_error())
    try:
        lease = read_token(form.cleaned_data["token"], request.user.pk)
        choice, details = choice_of(form.cleaned_data["choice"], lease.shown_left), form.details(lease.shown_left)
        turn = queue.turn(project, form.cleaned_data["token"], request.user.pk, choice, details)
    except LabelingError as error:
        return _refused(request, project, str(error))
    return _answer(request, project, turn, notice=_said_of(turn.submission))


def _said_of(submission: queue.Submission | None) -> str:
    if submission and submission.is_repeat:
        return gettext("That pair was answered already; it counts once. Use Undo to change your answer.")
    if submission and submission.is_extra:
        return gettext("Somebody else had taken over that pair; your answer is saved as an extra vote.")
    return ""


@require_POST
@login_required
def skip_pair(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    form = SkipForm(request.POST)
    if not form.is_valid():
        return _refused(request, project, form.first_error())
    said = form.cleaned_data
    try:
        queue.skip(project, said["token"], request.user.pk, said["reason"], said["note"])
    except LabelingError as error:
        return _refused(request, project, str(error))
    return _answer(request, project, _turn(request, project))


@require_POST
@login_required
def undo_preference(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    try:
        lease = queue.undo(project, request.user.pk)
    except LabelingError as error:
        return _refused(request, project, str(error))
    return _answer(request, project, _turn(request, project), notice=lease.notice)


@require_POST
@login_required
def add_reasons(request: SignedInRequest, slug: str) -> HttpResponse:
    """204, or 409 with a sentence: why somebody chose, said after the vote."""
    project = project_or_404(request.user, slug)
    form = ReasonsForm(request.POST)
    if not form.is_valid():
        return HttpResponse(form.first_error(), status=400, content_type=PLAIN)
    said = form.cleaned_data
    try:
        queue.add_reasons(project, said["token"], request.user.pk, tuple(said["reasons"]), said["comment"])
    except LabelingError as error:
        return HttpResponse(str(error), status=409, content_type=PLAIN)
    return HttpResponse(status=204)


@require_POST
@login_required
def renew_lease(request: SignedInRequest, slug: str) -> HttpResponse:
    """204 while the pair is this person's; else 409, or 410 for no pair at all, with a sentence for the page."""
    project = project_or_404(request.user, slug)
    try:
        standing = queue.renew(project, request.POST.get("token", ""), request.user.pk)
    except LabelingError as error:
        return HttpResponse(str(error), status=410, content_type=PLAIN)
    if standing == queue.Standing.KEPT:
        return HttpResponse(status=204)
    return HttpResponse(standing.label, status=409, content_type=PLAIN)


@require_POST
@login_required
def give_back(request: SignedInRequest, slug: str) -> HttpResponse:
    """What a page sends when it goes: the pair that it was given ahead is for the others again."""
    queue.give_back_ahead(project_or_404(request.user, slug), request.user.pk)
    return HttpResponse(status=204)


@require_GET
@login_required
def show_difference(request: SignedInRequest, slug: str) -> HttpResponse:
    """The two responses of a lease, as they stand on the page, with their words compared."""
    project = project_or_404(request.user, slug)
    form = TokenForm(request.GET)
    if not form.is_valid():
        return HttpResponse(form.first_error(), status=400, content_type=PLAIN)
    try:
        left, right = texts_of(project, form.cleaned_data["token"], request.user.pk)
    except LabelingError as error:
        return HttpResponse(str(error), status=410, content_type=PLAIN)
    found = difference(left, right)
    return JsonResponse({"left": found.left_html, "right": found.right_html})


def _turn(request: SignedInRequest, project: Project) -> queue.Turn:
    """The pair to look at; the one after it only for a page that can hold it unseen."""
    now = queue.lease_next(project, request.user.pk)
    ahead = queue.lease_ahead(project, request.user.pk) if now and _is_fragment(request) else None
    return queue.Turn(None, now, ahead)


def _is_fragment(request: SignedInRequest) -> bool:
    return bool(request.headers.get("HX-Request"))


def _refused(request: SignedInRequest, project: Project, error: str) -> HttpResponse:
    return _answer(request, project, _turn(request, project), error=error)


def _answer(
    request: SignedInRequest, project: Project, turn: queue.Turn, *, notice: str = "", error: str = ""
) -> HttpResponse:
    """The annotate page, or only its turn for a fragment request. A form without JavaScript comes back as a page."""
    if request.method == "POST" and not _is_fragment(request):
        if said := error or notice:
            messages.info(request, said)
        return redirect("labeling:annotate", slug=project.slug)
    context = {"notice": notice, "error": error, "project": project} | _desks(request, project, turn)
    if _is_fragment(request):
        return render(request, "labeling/annotate.html#turn", context, status=409 if error else 200)
    context |= project_context(request, project) | _frame(request, project)
    return render(request, "labeling/annotate.html", context)


def _desks(request: SignedInRequest, project: Project, turn: queue.Turn) -> dict[str, Any]:
    """What the turn shows. A pair that the page says it has on the screen is not rendered once more."""
    annotator_id = request.user.pk
    shown = request.POST.get("shown") or request.GET.get("shown")
    is_shown = turn.now is not None and shown == lease_key(turn.now.slot)
    return {
        "is_shown": is_shown,
        "desk": show(project, turn.now, annotator_id) if turn.now and not is_shown else None,
        "ahead": show(project, turn.ahead, annotator_id) if turn.ahead else None,
        "waiting": None if turn.now else why_nothing(project, annotator_id, timezone.now()),
        "done_today": done_today(request, project),
    }


def _frame(request: SignedInRequest, project: Project) -> dict[str, Any]:
    """What stands around the desk and stays when the pairs change."""
    return {
        "can_undo": Preference.objects.filter(project=project, annotator=request.user, is_current=True).exists()
        or Skip.objects.filter(pair__project=project, annotator=request.user).exists(),
        "keys": keys_of(request.user),
        "guidelines_read": version_read_by(project, request.user.pk),
        "skip_reasons": [(value, label) for value, label in Skip.Reason.choices if value],
    }
