"""What would happen by itself now and why, what the next run would cost, and the switches beside it."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.models import Project
from training import services
from training.preflight import look_ahead
from training.rule_changes import PAUSES, pause_end
from training.run_page import shown_difference
from training.views.frame import frame, say
from training.what_now import what_now


def retraining(project: Project) -> dict[str, Any]:
    """What the section of the overview shows."""
    now = what_now(project)
    preflight = look_ahead(project, now.recipe, now.reference.checkpoint) if now.recipe and now.reference else None
    return {
        "now": now,
        "rule": now.rule,
        "pauses": PAUSES,
        "next_run": preflight,
        "differs": shown_difference(now.rule.recipe),
    }


@require_GET
@login_required
def retraining_status(request: SignedInRequest, slug: str) -> HttpResponse:
    """The part of the overview that says what would happen now; asked for slowly, for as long as the page is open."""
    project = project_or_404(request.user, slug, REVIEWERS)
    return render(request, "training/overview.html#retraining", frame(request, project) | retraining(project))


@require_POST
@login_required
def pause(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    say(
        request,
        lambda: services.pause_rule(project=project, by=request.user, until=pause_end(request.POST.get("length", ""))),
        "Paused. No run starts by itself; what is running goes on.",
    )
    return redirect("training:overview", slug=slug)


@require_POST
@login_required
def end_pause(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    say(request, lambda: services.end_pause(project=project), "The pause is over.")
    return redirect("training:overview", slug=slug)


@require_POST
@login_required
def usual_recipe(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    say(
        request,
        lambda: services.use_recipe(project=project, recipe={}, by=request.user),
        "Runs that start by themselves have the usual recipe again.",
    )
    return redirect("training:overview", slug=slug)
