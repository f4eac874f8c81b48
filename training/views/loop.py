"""The overview: what the loop does by itself, sampling, the list of runs."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import HttpResponseStopPolling

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.models import Project, Slot
from training import services
from training.forms import LoopRuleForm, SampleForm
from training.models import SampleBatch, TrainingRun
from training.ordering import order_report
from training.views.frame import frame, say
from training.views.retraining import retraining

RUNS_PER_PAGE = 25


@require_GET
@login_required
def overview(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    now = retraining(project)
    runs = TrainingRun.objects.filter(project=project).select_related("checkpoint", "snapshot", "sweep")
    context = frame(request, project) | now | {
        "rule_form": LoopRuleForm(instance=now["rule"]),
        "sample_form": SampleForm(),
        "ordering": order_report(project),
        "page": Paginator(runs, RUNS_PER_PAGE).get_page(request.GET.get("page")),
        **_sampling(project),
    }  # fmt: skip
    return render(request, "training/overview.html", context)


@require_GET
@login_required
def sampling_status(request: SignedInRequest, slug: str) -> HttpResponse:
    """The part of the overview that moves while pairs are written; ends its own polling."""
    project = project_or_404(request.user, slug, REVIEWERS)
    context = frame(request, project) | _sampling(project)
    response = render(request, "training/overview.html#sampling", context)
    return response if context["batch_is_active"] else HttpResponseStopPolling(response.content)


def _sampling(project: Project) -> dict[str, Any]:
    batch = SampleBatch.objects.filter(project=project).select_related("policy").first()
    done = batch.pairs_made + batch.prompts_refused if batch else 0
    return {
        "batch": batch,
        "batch_done": done,
        "batch_percent": round(100 * done / batch.wanted) if batch and batch.wanted else 0,
        "batch_is_active": bool(batch and batch.is_active),
        "refusals": list(batch.refusals.all()[:20]) if batch and batch.prompts_refused else [],
        "open_slots": Slot.objects.filter(project=project, state=Slot.State.OPEN)[:1000].count(),
    }


@require_POST
@login_required
def sample(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    form = SampleForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Ask for 1 to 2,000 pairs.")
    else:
        say(
            request,
            lambda: services.request_samples(project=project, pairs=form.cleaned_data["pairs"], by=request.user),
            "",
        )
    return redirect("training:overview", slug=slug)


@require_POST
@login_required
def cancel_batch(request: SignedInRequest, slug: str, pk: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    batch = get_object_or_404(SampleBatch, project=project, pk=pk)
    say(request, lambda: services.cancel_job(job=batch), "Sampling stops. Pairs written so far stay.")
    return redirect("training:overview", slug=slug)


@require_POST
@login_required
def save_rule(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    form = LoopRuleForm(request.POST, instance=services.loop_rule(project))
    if form.is_valid():
        say(
            request,
            lambda: services.change_rule(project=project, **form.cleaned_data),
            "Saved. The scheduler looks at it every ten seconds.",
        )
    else:
        messages.error(
            request, "Not saved: " + " ".join(str(error) for errors in form.errors.values() for error in errors)
        )
    return redirect("training:overview", slug=slug)
