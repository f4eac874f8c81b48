"""Checkpoints: the list, each of them, downloads, promotion."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import FileResponse, Http404, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import HttpResponseStopPolling

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from training import lineage, registry, services, store
from training.exceptions import CheckpointDamaged, Rejected
from training.forms import PromoteForm
from training.models import Checkpoint, CheckpointExport, Promotion, TrainingRun
from training.outcome import read_outcome
from training.views.frame import checkpoint_or_404, frame, say

CHECKPOINTS_PER_PAGE = 25


@require_GET
@login_required
def checkpoints(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    rows = services.usable_checkpoints(project).select_related("parent", "run")
    context = frame(request, project) | {
        "page": Paginator(rows, CHECKPOINTS_PER_PAGE).get_page(request.GET.get("page")),
        "promotions": Promotion.objects.filter(project=project).select_related("checkpoint", "promoted_by")[:20],
    }
    context["tainted"] = lineage.tainted(context["page"])
    return render(request, "training/checkpoints.html", context)


@require_GET
@login_required
def checkpoint(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    context = frame(request, project) | _export(checkpoint) | {
        "checkpoint": checkpoint,
        "run": TrainingRun.objects.filter(checkpoint=checkpoint).select_related("snapshot", "reference").first(),
        "manifest": _manifest(checkpoint),
        "outcome": read_outcome(checkpoint.details),
        "taints": lineage.taints_of(checkpoint),
        "promotions": checkpoint.promotions.filter(project=project).select_related("promoted_by"),
    }  # fmt: skip
    return render(request, "training/checkpoint.html", context)


@require_GET
@login_required
def export_status(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    """The download part of the checkpoint's page while merged weights are made; ends its own polling."""
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    context = frame(request, project) | _export(checkpoint) | {"checkpoint": checkpoint}
    response = render(request, "training/checkpoint.html#downloads", context)
    export = context["export"]
    return response if export and export.is_active else HttpResponseStopPolling(response.content)


def _export(checkpoint: Checkpoint) -> dict[str, Any]:
    export = CheckpointExport.objects.filter(checkpoint=checkpoint).first()
    is_gone = export and not export.is_active and not store.archive_path(checkpoint.uuid, "merged").exists()
    return {
        "export": None if is_gone and export and not export.error else export,
        "adapter_size": checkpoint.size_bytes if checkpoint.is_adapter else 0,
    }


def _manifest(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return registry.manifest_of(checkpoint)
    except CheckpointDamaged:
        return {}


@require_POST
@login_required
def prepare_merged(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    say(request, lambda: services.request_export(checkpoint=checkpoint, by=request.user), "")
    return redirect("training:checkpoint", slug=slug, uuid=uuid)


@require_GET
@login_required
def download(request: SignedInRequest, slug: str, uuid: UUID, variant: str) -> HttpResponseBase:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    try:
        if variant == "adapter" and checkpoint.is_adapter:
            path = services.adapter_archive(checkpoint)
        else:
            path = store.archive_path(checkpoint.uuid, variant)
        file = path.open("rb")
    except Rejected as refusal:
        messages.error(request, str(refusal))
        return redirect("training:checkpoint", slug=slug, uuid=uuid)
    except FileNotFoundError:
        raise Http404("This archive has not been made yet.") from None
    response = FileResponse(file, as_attachment=True, filename=f"{checkpoint.name}-{variant}.zip")
    response["Content-Type"] = "application/zip"
    return response


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
    project = project_or_404(request.user, slug, ADMINS)
    say(
        request,
        lambda: services.roll_back(project=project, by=request.user),
        "Rolled back. The earlier policy writes the next pairs.",
    )
    return redirect("training:checkpoints", slug=slug)
