"""Lineage both ways: what a checkpoint was made of, and what a pair's judgements went into."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from labeling.access import REVIEWERS, SignedInRequest, project_or_404
from labeling.pair_page import pair_or_404
from labeling.withheld import withheld_from
from training import lineage, registry, withdrawn_votes
from training.exceptions import CheckpointDamaged
from training.models import Checkpoint
from training.outcome import read_outcome
from training.run_page import shown_recipe
from training.views.frame import checkpoint_or_404, frame


@require_GET
@login_required
def checkpoint_lineage(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    run = lineage.run_of(checkpoint)
    context = frame(request, project) | _manifest(checkpoint) | {
        "checkpoint": checkpoint,
        "run": run,
        "outcome": read_outcome(checkpoint.details),
        "taints": lineage.taints_of(checkpoint),
        "losses": withdrawn_votes.behind(checkpoint, project),
        "ancestors": lineage.ancestors(checkpoint),
    }  # fmt: skip
    if run and run.project_id == project.pk:
        withheld = withheld_from(project, request.user.pk)
        order = request.GET.get("order", lineage.BY_PULL)
        triples = lineage.triple_page(run, request.GET.get("page"), order, withheld)
        context |= {
            "recipe": shown_recipe(run.recipe),
            "labellers": lineage.labellers(run.snapshot),
            "triples": triples,
            "page": triples.page,
        }
    return render(request, "training/lineage.html", context)


def _manifest(checkpoint: Checkpoint) -> dict[str, Any]:
    """What it says, or why it is not believed."""
    try:
        return {"manifest": registry.manifest_of(checkpoint), "damage": ""}
    except CheckpointDamaged as damage:
        return {"manifest": {}, "damage": str(damage)}


@require_GET
@login_required
def pair_lineage(request: SignedInRequest, slug: str, pair_id: int) -> HttpResponse:
    """Not of a pair that its reader has still to judge: that a run has used it, and how, says what others said."""
    project = project_or_404(request.user, slug, REVIEWERS)
    pair = pair_or_404(project, pair_id)
    is_withheld = pair.pk in withheld_from(project, request.user.pk)
    uses = [] if is_withheld else lineage.uses_of(pair)
    context = frame(request, project) | {
        "pair": pair,
        "is_withheld": is_withheld,
        "uses": uses,
        "checkpoints": list(lineage.later_than(uses)),
    }
    return render(request, "training/pair_lineage.html", context)
