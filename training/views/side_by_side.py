"""Two policies side by side: the form, and both answers while they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseStopPolling

from labeling.access import REVIEWERS, Role, SignedInRequest, project_or_404, role_of
from labeling.difference import Difference, difference
from labeling.models import Project
from labeling.rendering import render_text
from training import services
from training.exceptions import Rejected
from training.forms import SideBySideForm
from training.jobspec import SideAnswer, SideBySideAnswer
from training.models import Checkpoint, Job, SampleBatch, SideBySide
from training.side_by_side import (
    comparable_checkpoints,
    held_out_prompts,
    request_side_by_side,
    usual_sides,
)
from training.views.frame import frame, say, tell_if_unheard

EARLIER = 10  # comparisons that the form's page lists


@require_http_methods(["GET", "POST"])
@login_required
def compare(request: SignedInRequest, slug: str) -> HttpResponse:
    """Choose two checkpoints and a prompt. The tree's page leads here with both sides in the address."""
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoints = comparable_checkpoints(project)
    form = SideBySideForm(request.POST or None, checkpoints=checkpoints, initial=_initial(request, project))
    if request.method == "POST" and form.is_valid():
        try:
            asked = _ask(request, project, form.cleaned_data)
        except Rejected as refusal:
            form.add_error(None, str(refusal))
        else:
            tell_if_unheard(request, asked)
            return redirect(asked)
    context = frame(request, project) | {
        "form": form,
        "are_there_two": checkpoints.count() > 1,
        "earlier": SideBySide.objects.filter(project=project).select_related("left", "right", "requested_by")[:EARLIER],
    }
    return render(request, "training/compare.html", context, status=400 if form.errors else 200)


def _initial(request: SignedInRequest, project: Project) -> dict[str, Any]:
    usual = usual_sides(project)
    asked = (request.GET.get("left"), request.GET.get("right"))
    return {
        side: chosen or (one.uuid if one else None)
        for side, chosen, one in zip(("left", "right"), asked, usual, strict=True)
    }


def _ask(request: SignedInRequest, project: Project, asked: dict[str, Any]) -> SideBySide:
    prompts = [asked["prompt"]] if asked["prompt"] else held_out_prompts(project, asked["held_out"])
    return request_side_by_side(
        project=project,
        left=asked["left"],
        right=asked["right"],
        prompts=prompts,
        decoding=asked["decoding"],
        by=request.user,
    )


@require_GET
@login_required
def side_by_side(request: SignedInRequest, slug: str, side_by_side_id: int) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    asked = _asked_or_404(project, side_by_side_id)
    return render(request, "training/side_by_side.html", _context(request, project, asked))


@require_GET
@login_required
def side_by_side_status(request: SignedInRequest, slug: str, side_by_side_id: int) -> HttpResponse:
    """The answers while they are written; ends its own polling."""
    project = project_or_404(request.user, slug, REVIEWERS)
    asked = _asked_or_404(project, side_by_side_id)
    response = render(request, "training/side_by_side.html#answers", _context(request, project, asked))
    return response if asked.is_active else HttpResponseStopPolling(response.content)


@require_POST
@login_required
def cancel_side_by_side(request: SignedInRequest, slug: str, side_by_side_id: int) -> HttpResponse:
    """By who has asked, or by an admin."""
    project = project_or_404(request.user, slug, REVIEWERS)
    asked = _asked_or_404(project, side_by_side_id)
    if asked.requested_by_id != request.user.pk and role_of(request.user, project) != Role.ADMIN:
        raise PermissionDenied("Only who has asked, and admins, may cancel this comparison.")
    say(request, lambda: services.cancel_job(job=asked), "")
    return redirect(asked)


def _asked_or_404(project: Project, pk: int) -> SideBySide:
    rows = SideBySide.objects.select_related("project", "left", "right", "requested_by")
    found: SideBySide = get_object_or_404(rows, project=project, pk=pk)
    return found


# What is shown


@dataclass(frozen=True)
class Pane:
    """One side of one prompt, as people read it."""

    name: str  # "left" or "right"
    checkpoint: Checkpoint
    answer: SideAnswer
    is_writing: bool

    @property
    def html(self) -> str:
        return render_text(self.answer.text)


@dataclass(frozen=True)
class Exchange:
    """A prompt with both answers. ``compared``: what differs between them, where that was asked for."""

    number: int
    turns: list[dict[str, str]]
    panes: list[Pane]
    refused: str
    compared: Difference | None

    @property
    def is_same(self) -> bool:
        """Whether both have ended, with one and the same text."""
        left, right = (pane.answer for pane in self.panes)
        return bool(left.finish_reason and right.finish_reason) and left.text == right.text


def _context(request: SignedInRequest, project: Project, asked: SideBySide) -> dict[str, Any]:
    shows_difference = "difference" in request.GET and not asked.is_active
    return frame(request, project) | {
        "asked": asked,
        "exchanges": _exchanges(asked, shows_difference),
        "shows_difference": shows_difference,
        "waits_for_pairs": asked.state == Job.State.QUEUED and _is_writing_pairs(),
        "may_cancel": asked.requested_by_id == request.user.pk or role_of(request.user, project) == Role.ADMIN,
    }


def _is_writing_pairs() -> bool:
    """Whether the worker that answers has a batch in its hands, of whatever project: it does one thing at a time."""
    return SampleBatch.objects.filter(state__in=Job.State.held()).exists()


def _exchanges(asked: SideBySide, shows_difference: bool) -> list[Exchange]:
    answers = {line["prompt_id"]: SideBySideAnswer.from_dict(line) for line in asked.answers}
    found = []
    for number, chat in enumerate(asked.prompts):
        answer = answers.get(str(number), SideBySideAnswer(str(number)))
        sides = (("left", asked.left, answer.left), ("right", asked.right, answer.right))
        found.append(
            Exchange(
                number=number + 1,
                turns=[{"role": turn["role"], "html": render_text(turn["content"])} for turn in chat],
                panes=[
                    Pane(name, checkpoint, side, asked.is_active and not side.finish_reason)
                    for name, checkpoint, side in sides
                ],
                refused=answer.refused,
                compared=difference(answer.left.text, answer.right.text) if shows_difference else None,
            )
        )
    return found
