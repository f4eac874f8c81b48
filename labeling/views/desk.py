"""The annotate page and what its keys do."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from labeling import queue
from labeling.access import SignedInRequest, project_or_404
from labeling.exceptions import LabelingError
from labeling.forms import TokenForm, VoteForm, choice_of, side_of
from labeling.models import Preference, Project
from labeling.rendering import render_text
from labeling.views.projects import done_today, project_context


@require_GET
@login_required
def annotate(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    lease = queue.lease_next(project, request.user.pk)
    return _desk(request, project, lease)


@require_POST
@login_required
def submit_preference(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    form = VoteForm(request.POST)
    if not form.is_valid():
        return _desk_with_error(request, project, "That was not a vote this page knows. Please choose again.")
    try:
        said = _submit(project, form, request.user.pk)
    except LabelingError as error:
        return _desk_with_error(request, project, str(error))
    return _desk(request, project, queue.lease_next(project, request.user.pk), notice=said)


def _submit(project: Project, form: VoteForm, annotator_id: int) -> str:
    token = form.cleaned_data["token"]
    shown_left = queue.shown_left_of(project, token, annotator_id)
    outcome = queue.submit(project, token, annotator_id, choice_of(form.cleaned_data["choice"], shown_left))
    if outcome.is_extra and not outcome.is_repeat:
        return "Somebody else had taken over that pair; your answer is saved as an extra vote."
    if outcome.is_repeat:
        return "That pair was answered already; it counts once. Use Undo to change your answer."
    return ""


@require_POST
@login_required
def skip_pair(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    form = TokenForm(request.POST)
    if not form.is_valid():
        return _desk_with_error(
            request, project, "Nothing was skipped: the page did not say which pair. Please try again."
        )
    try:
        queue.skip(project, form.cleaned_data["token"], request.user.pk, form.cleaned_data["reason"])
    except LabelingError as error:
        return _desk_with_error(request, project, str(error))
    return _desk(request, project, queue.lease_next(project, request.user.pk))


@require_POST
@login_required
def undo_preference(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    try:
        lease = queue.undo(project, request.user.pk)
    except LabelingError as error:
        return _desk_with_error(request, project, str(error))
    return _desk(request, project, lease)


@require_POST
@login_required
def renew_lease(request: SignedInRequest, slug: str) -> HttpResponse:
    """204 while the pair is this person's; else 409, or 410 for no pair at all, with a sentence for the page."""
    project = project_or_404(request.user, slug)
    try:
        standing = queue.renew(project, request.POST.get("token", ""), request.user.pk)
    except LabelingError as error:
        return HttpResponse(str(error), status=410, content_type="text/plain; charset=utf-8")
    if standing == queue.Standing.KEPT:
        return HttpResponse(status=204)
    return HttpResponse(standing.label, status=409, content_type="text/plain; charset=utf-8")


def _desk_with_error(request: SignedInRequest, project: Project, error: str) -> HttpResponse:
    return _desk(request, project, queue.lease_next(project, request.user.pk), error=error)


def _desk(
    request: SignedInRequest, project: Project, lease: queue.Lease | None, *, notice: str = "", error: str = ""
) -> HttpResponse:
    """The annotate page, or only its desk for a fragment request. A form without JavaScript comes back as a page."""
    is_fragment = bool(request.headers.get("HX-Request"))
    if request.method == "POST" and not is_fragment:
        if said := error or notice:
            messages.info(request, said)
        return redirect("labeling:annotate", slug=project.slug)
    context = project_context(request, project) | {
        "notice": notice,
        "error": error,
        "done_today": done_today(request, project),
        "can_undo": _has_judged(request, project),
        **(_pair_context(lease) if lease else {"waiting": _why_nothing(request, project)}),
    }
    template = "labeling/annotate.html#desk" if is_fragment else "labeling/annotate.html"
    return render(request, template, context)


def _pair_context(lease: queue.Lease) -> dict[str, Any]:
    pair, shown_left = lease.slot.pair, lease.slot.shown_left
    left, right = pair.response_a, pair.response_b
    if shown_left == lease.slot.Side.B:
        left, right = right, left
    turns = [{"role": message["role"], "html": render_text(message["content"])} for message in pair.prompt.messages]
    return {
        "token": lease.token,
        "earlier_turns": turns[:-1],
        "last_turn": turns[-1],
        "left": {"html": render_text(left.text), "cut": left.finish_reason == "length"},
        "right": {"html": render_text(right.text), "cut": right.finish_reason == "length"},
        "previous": side_of(lease.previous.choice, shown_left) if lease.previous else "",
    }


def _why_nothing(request: SignedInRequest, project: Project) -> dict[str, Any]:
    """Why there is no pair for this person, and when there may be one."""
    if project.is_paused:
        return {"title": "Paused", "text": "An admin has paused this project. Your judgements are safe."}
    if not project.prompts.exists():
        return {"title": "No prompts yet", "text": "Pairs appear here after an admin has imported prompts."}
    if not project.pairs.exists():
        return {
            "title": "No pairs yet",
            "text": "None has been written for this project's prompts so far. They appear here by themselves.",
        }
    if until := queue.waiting_for(project, request.user.pk)[1]:
        minutes = max(1, round((until - timezone.now()).total_seconds() / 60))
        text = f"The last open pairs are with other people. The first may come back in about {minutes} min."
        return {"title": "Nothing for you right now", "text": text}
    return {
        "title": "You have done every pair here",
        "text": "Thank you. New pairs appear here by themselves as soon as they are written.",
    }


def _has_judged(request: SignedInRequest, project: Project) -> bool:
    mine = Preference.objects.filter(annotator_id=request.user.pk, pair__project=project, is_current=True)
    return mine.exists()
