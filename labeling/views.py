"""Pages for labeling: projects, the annotate page, prompts."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling import queue
from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404, role_of
from labeling.exceptions import ImportRejected, LabelingError
from labeling.forms import PromptImportForm, TokenForm, VoteForm, choice_of, side_of
from labeling.importers import import_prompts
from labeling.models import Preference, Project, Prompt
from labeling.rendering import render_text

PROMPTS_PER_PAGE = 50


class SignIn(LoginView):
    """The door. Whoever is in already goes where they wanted to go, and not back to the door."""

    template_name = "sign_in.html"
    redirect_authenticated_user = True

    def get_redirect_url(self) -> str:  # type: ignore[override]  # the stubs are of a later Django
        wanted: str = super().get_redirect_url()
        return "" if wanted.startswith(self.request.path) else wanted


@require_GET
@login_required
def home(request: SignedInRequest) -> HttpResponse:
    projects = list(Project.objects.visible_to(request.user)[:200])
    if len(projects) == 1:
        return redirect(projects[0])
    return render(request, "labeling/home.html", {"projects": projects})


@require_GET
@login_required
def project(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug)
    context = project_context(request, project) | {
        "guidelines_html": render_text(project.guidelines),
        "done_today": _done_today(request, project),
        "open_pairs": queue.open_slots_for(project, request.user.pk),
    }
    return render(request, "labeling/project.html", context)


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


@require_http_methods(["GET", "POST"])
@login_required
def prompts(request: SignedInRequest, slug: str) -> HttpResponse:
    roles = REVIEWERS if request.method == "GET" else ADMINS
    project = project_or_404(request.user, slug, roles)
    form = PromptImportForm(request.POST or None, request.FILES or None)
    problems: list[str] = []
    if request.method == "POST" and form.is_valid():
        try:
            report = import_prompts(project=project, file=form.cleaned_data["file"])
        except ImportRejected as error:
            problems = [str(problem) for problem in error.problems]
        else:
            messages.success(request, f"{report.added:,} prompts imported, {report.duplicates:,} were here already.")
            return redirect("labeling:prompts", slug=slug)
    page = Paginator(Prompt.objects.filter(project=project).order_by("-pk"), PROMPTS_PER_PAGE).get_page(
        request.GET.get("page")
    )
    context = project_context(request, project) | {"form": form, "problems": problems, "page": page}
    status = 400 if problems or form.errors else 200
    return render(request, "labeling/prompts.html", context, status=status)


def project_context(request: SignedInRequest, project: Project) -> dict[str, Any]:
    """What the frame of every page of a project needs."""
    return {"project": project, "role": role_of(request.user, project)}


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
        "done_today": _done_today(request, project),
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
    if until := queue.next_lease_to_expire(project, request.user.pk):
        minutes = max(1, round((until - timezone.now()).total_seconds() / 60))
        text = f"The last open pairs are with other people. The first may come back in about {minutes} min."
        return {"title": "Nothing for you right now", "text": text}
    return {
        "title": "You have done every pair here",
        "text": "Thank you. New pairs appear here by themselves as soon as they are written.",
    }


def _done_today(request: SignedInRequest, project: Project) -> int:
    midnight = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    mine = Preference.objects.filter(annotator_id=request.user.pk, created_at__gte=midnight, is_current=True)
    return mine.filter(pair__project=project).count()


def _has_judged(request: SignedInRequest, project: Project) -> bool:
    mine = Preference.objects.filter(annotator_id=request.user.pk, pair__project=project, is_current=True)
    return mine.exists()
