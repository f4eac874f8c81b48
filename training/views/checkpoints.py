"""Checkpoints: the list, each of them, promotion."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.models import Project
from training import lineage, reference_choice, registry, services, withdrawn_votes
from training.exceptions import CheckpointDamaged
from training.family import family_tree
from training.forms import PromoteForm, RollBackForm
from training.generations import read_generations
from training.models import Checkpoint, Gate, Promotion, TrainingRun
from training.outcome import read_outcome
from training.side_by_side import usual_opposite, usual_sides
from training.views.downloads import downloads_of
from training.views.frame import checkpoint_or_404, frame, say

ROWS_PER_PAGE = 30


@require_GET
@login_required
def checkpoints(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    left, right = usual_sides(project)
    context = frame(request, project) | {
        "page": Paginator(family_tree(project), ROWS_PER_PAGE).get_page(request.GET.get("page")),
        "generations": read_generations(project),
        "left": left,
        "right": right,
        "promotions": Promotion.objects.filter(project=project).select_related("checkpoint", "promoted_by")[:20],
        "before": services.policy_before(project),
    }
    return render(request, "training/checkpoints.html", context)


@require_GET
@login_required
def checkpoint(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    context = frame(request, project) | downloads_of(request, project, checkpoint) | _distance(project, checkpoint) | {
        "checkpoint": checkpoint,
        "compare_with": usual_opposite(project, checkpoint),
        "run": TrainingRun.objects.filter(checkpoint=checkpoint).select_related("snapshot", "reference").first(),
        "manifest": _manifest(checkpoint),
        "outcome": read_outcome(checkpoint.details),
        "gate": Gate.objects.filter(project=project, candidate=checkpoint).select_related("current").first(),
        "taints": lineage.taints_of(checkpoint),
        "losses": withdrawn_votes.behind(checkpoint, project),
        "promotions": checkpoint.promotions.filter(project=project).select_related("promoted_by"),
    }  # fmt: skip
    return render(request, "training/checkpoint.html", context)


def _distance(project: Project, checkpoint: Checkpoint) -> dict[str, Any]:
    distance, budget = reference_choice.kl_first(checkpoint), reference_choice.budget_of(project)
    holds = distance is not None and distance.is_within(budget)
    return {"kl_first": distance, "kl_first_budget": budget, "kl_first_holds": holds}


def _manifest(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return registry.manifest_of(checkpoint)
    except CheckpointDamaged:
        return {}


@require_POST
@login_required
def promote(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    checkpoint = checkpoint_or_404(project, uuid)
    form = PromoteForm(request.POST)
    reason = form.cleaned_data["reason"] if form.is_valid() else ""
    say(
        request,
        lambda: services.promote_checkpoint(project=project, checkpoint=checkpoint, by=request.user, reason=reason),
        f"{checkpoint} is the policy now. It writes the next pairs.",
    )
    return redirect("training:checkpoint", slug=slug, uuid=uuid)


@require_POST
@login_required
def roll_back(request: SignedInRequest, slug: str) -> HttpResponse:
    """The policy that the page has named, and to the one that it has named: no other, whatever happened meanwhile."""
    project = project_or_404(request.user, slug, ADMINS)
    form = RollBackForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Nothing was rolled back: it was not said from which policy to which. Use the button.")
        return redirect("training:checkpoints", slug=slug)
    leaves, to = (checkpoint_or_404(project, form.cleaned_data[name]) for name in ("leaves", "to"))
    say(
        request,
        lambda: services.roll_back(project=project, leaves=leaves, to=to, by=request.user),
        f"Rolled back. {to} is the policy again and writes the next pairs.",
    )
    return redirect("training:checkpoints", slug=slug)
