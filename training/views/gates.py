"""Gates: candidate against policy, from the question to the decision, and the rule that asks by itself."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import HttpResponseClientRefresh, HttpResponseStopPolling

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.models import Project
from training import gates as services_of_gates
from training import services, withdrawn_votes
from training.exceptions import Rejected
from training.gate_page import read_gate
from training.models import Gate, Promotion, TrainingRun
from training.release_form import ReleaseRuleForm, VerdictForm
from training.views.frame import checkpoint_or_404, frame, say, tell_if_unheard

GATES_PER_PAGE = 25
LIVE = (Gate.Stage.MEASURING, Gate.Stage.ASKING)


@require_GET
@login_required
def gates(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    return render(request, "training/gates.html", _list(request, project))


def _list(request: SignedInRequest, project: Project, form: ReleaseRuleForm | None = None) -> dict[str, Any]:
    rule = services_of_gates.release_rule(project)
    return frame(request, project) | {
        "page": Paginator(_gates(project), GATES_PER_PAGE).get_page(request.GET.get("page")),
        "rule": rule,
        "form": form or _rule_form(project),
        "before": services.policy_before(project),
        "not_watched": _not_watched(project) if rule.watches else "",
        "too_few": services_of_gates.why_too_few(services_of_gates.held_out_prompts(project).count()),
    }


def _not_watched(project: Project) -> str:
    """Why the watch that the rule wants of the policy was refused."""
    newest = Promotion.objects.filter(project=project).first()
    return newest.not_watched if newest else ""


def _rule_form(project: Project, data: Any = None) -> ReleaseRuleForm:
    prompts = services_of_gates.held_out_prompts(project).count()
    return ReleaseRuleForm(data, instance=services_of_gates.release_rule(project), held_out_prompts=prompts)


def _gates(project: Project) -> QuerySet[Gate]:
    return Gate.objects.filter(project=project).select_related("project", "candidate", "current", "run", "requested_by")


@require_POST
@login_required
def save_release_rule(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    form = _rule_form(project, request.POST)
    if not form.is_valid():
        return render(request, "training/gates.html", _list(request, project, form), status=400)
    services_of_gates.change_release_rule(project=project, **form.cleaned_data)
    messages.success(request, "Saved. Comparisons that are open keep the rule that they began with.")
    return redirect("training:gates", slug=slug)


@require_GET
@login_required
def gate(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    return render(request, "training/gate.html", _page(request, project, _gate_or_404(project, number)))


@require_GET
@login_required
def gate_status(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    """The part of the page that moves; ends its own polling. What stands around it is of a stage, so that when the
    stage has changed the browser is told to load the page again."""
    project = project_or_404(request.user, slug, REVIEWERS)
    found = _gate_or_404(project, number)
    response = render(request, "training/gate.html#status", _page(request, project, found))
    if found.stage not in LIVE:
        return HttpResponseStopPolling(response.content)
    return HttpResponseClientRefresh() if request.GET.get("stage", found.stage) != found.stage else response


def _gate_or_404(project: Project, number: int) -> Gate:
    rows = _gates(project).select_related("decided_by", "promotion")
    found: Gate = get_object_or_404(rows, number=number)
    return found


def _page(request: SignedInRequest, project: Project, found: Gate) -> dict[str, Any]:
    context = frame(request, project)
    promotion = getattr(found, "promotion", None)
    is_policy = context["policy"] is not None and context["policy"].pk == found.candidate_id
    return context | {
        "gate": found,
        "status": read_gate(found, withheld=services_of_gates.is_withheld_from(found, request.user)),
        "loss": withdrawn_votes.of_gate(found),
        "is_live": found.stage in LIVE,
        "is_watch": found.kind == Gate.Kind.WATCH,
        "can_start_again": services_of_gates.can_start_again(found, context["policy"]),
        "promotion": promotion,
        "before": services.policy_before(project) if is_policy else None,
        "verdict_form": VerdictForm(),
    }


@require_POST
@login_required
def ask_gate(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    """Ask for a comparison of a checkpoint with the policy."""
    project = project_or_404(request.user, slug, ADMINS)
    candidate = checkpoint_or_404(project, uuid)
    run = TrainingRun.objects.filter(checkpoint=candidate, project=project).first()
    try:
        asked = services_of_gates.request_gate(project=project, candidate=candidate, run=run, by=request.user)
    except Rejected as refusal:
        messages.error(request, str(refusal))
        return redirect("training:checkpoint", slug=slug, uuid=uuid)
    tell_if_unheard(request, asked)
    return redirect(asked)


@require_POST
@login_required
def watch(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    try:
        asked = services_of_gates.request_watch(project=project, by=request.user)
    except Rejected as refusal:
        messages.error(request, str(refusal))
        return redirect("training:gates", slug=slug)
    tell_if_unheard(request, asked)
    return redirect(asked)


@require_POST
@login_required
def decide(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    found = _gate_or_404(project, number)
    form = VerdictForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Choose one of the verdicts; a reason has 300 characters at most.")
        return redirect(found)
    said = form.cleaned_data
    say(
        request,
        lambda: services_of_gates.admin_decides(
            gate=found, verdict=said["verdict"], by=request.user, reason=said["reason"]
        ),
        "Decided, and kept with your name.",
    )
    return redirect(found)


@require_POST
@login_required
def cancel(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    found = _gate_or_404(project, number)
    say(request, lambda: services.cancel_job(job=found), "The comparison stops. It can be started again.")
    return redirect(found)


@require_POST
@login_required
def start_again(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    found = _gate_or_404(project, number)
    say(request, lambda: services_of_gates.start_again(gate=found), "Queued again, with the same prompts and rule.")
    return redirect(found)
