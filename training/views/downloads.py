"""Taking a checkpoint away: what there is to download, what can be prepared, and the way to the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST, require_safe
from django_htmx.http import HttpResponseStopPolling

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.models import Project
from training import downloads, exports
from training.exceptions import Rejected
from training.forms import PushForm
from training.models import Checkpoint, CheckpointExport, HubPush
from training.views.frame import checkpoint_or_404, frame, say

PUSHES_SHOWN = 5


@dataclass(frozen=True)
class Row:
    """A file with the addresses that lead to it: for browsers, and with a token for programs."""

    file: downloads.Offered
    url: str
    curl: str


@require_GET
@login_required
def export_status(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    """The download part of the checkpoint's page while something is made or sent; ends its own polling."""
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    context = frame(request, project) | downloads_of(request, project, checkpoint) | {"checkpoint": checkpoint}
    response = render(request, "training/_downloads.html", context)
    return response if context["downloads_move"] else HttpResponseStopPolling(response.content)


def downloads_of(request: SignedInRequest, project: Project, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the download part of the page shows."""
    made = {export.variant: export for export in CheckpointExport.objects.filter(checkpoint=checkpoint)}
    pushes = list(HubPush.objects.filter(project=project, checkpoint=checkpoint)[:PUSHES_SHOWN])
    rows = {file.name: _row(request, project, checkpoint, file) for file in downloads.listing(checkpoint)}
    return {
        "adapter_file": rows.get("adapter.zip"),
        "merged_file": rows.get("merged.zip"),
        "gguf_file": rows.get("model.gguf"),
        "manifest_file": rows.get("manifest.json"),
        "card_file": rows.get("README.md"),
        "merged_export": made.get("merged"),
        "gguf_export": made.get("gguf"),
        "has_gguf_converter": bool(settings.GGUF_CONVERTER),
        "pushes": pushes,
        "push_form": PushForm(checkpoint=checkpoint),
        "downloads_move": any(job.is_active for job in [*made.values(), *pushes]),
    }


def _row(request: SignedInRequest, project: Project, checkpoint: Checkpoint, file: downloads.Offered) -> Row:
    route, where = downloads.ROUTES[file.name], [project.slug, checkpoint.uuid]
    with_token = reverse(f"api:{route}", args=where)
    return Row(
        file=file,
        url=reverse(f"training:{route}", args=where),
        curl=file.curl(request.build_absolute_uri(with_token)),
    )


@require_POST
@login_required
def prepare(request: SignedInRequest, slug: str, uuid: UUID, variant: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    say(request, lambda: exports.request_export(checkpoint=checkpoint, variant=variant, by=request.user), "")
    return redirect("training:checkpoint", slug=slug, uuid=uuid)


@require_safe
@login_required
def download(request: SignedInRequest, slug: str, uuid: UUID, name: str) -> HttpResponseBase:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = checkpoint_or_404(project, uuid)
    try:
        return downloads.serve(request, checkpoint, name)
    except downloads.NotThere as reason:
        raise Http404(str(reason)) from None
    except Rejected as refusal:
        messages.error(request, str(refusal))
        return redirect("training:checkpoint", slug=slug, uuid=uuid)


@require_POST
@login_required
def push(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    checkpoint = checkpoint_or_404(project, uuid)
    form = PushForm(request.POST, checkpoint=checkpoint)
    if not form.is_valid():
        messages.error(request, "Not pushed: write a repository as OWNER/NAME and choose what to send.")
    else:
        values = form.cleaned_data
        say(
            request,
            lambda: exports.request_push(
                project=project,
                checkpoint=checkpoint,
                repo_id=values["repo_id"],
                variant=values["variant"],
                is_private=values["visibility"] == "private",
                by=request.user,
            ),
            "",
        )
    return redirect("training:checkpoint", slug=slug, uuid=uuid)
