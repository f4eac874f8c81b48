"""The recipe, and a run."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import NON_FIELD_ERRORS
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseStopPolling

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.models import Project
from training import services
from training.exceptions import Rejected
from training.forms import TrainForm
from training.models import Checkpoint
from training.preflight import look_ahead
from training.recipe import Recipe
from training.run_page import held_out_rows, read_status
from training.views.frame import frame, run_or_404, say, tell_if_unheard
from training.views.withdrawals import withdrawn_from


@require_http_methods(["GET", "POST"])
@login_required
def train(request: SignedInRequest, slug: str) -> HttpResponse:
    """The recipe, what it would take, and the button that starts a run. htmx asks again what other values take."""
    project = project_or_404(request.user, slug, ADMINS)
    reference = services.default_reference(project)
    asked = "HX-Request" in request.headers
    form = TrainForm(
        request.POST or (request.GET if asked else None),
        references=services.usable_checkpoints(project).order_by("pk"),
        initial={"reference": reference},
    )
    if request.method == "GET" and asked:
        context = _preflight(project, form, reference) | {"errors": _named_errors(form)}
        return render(request, "training/train.html#preflight", context)
    if request.method == "POST" and form.is_valid():
        try:
            run = services.request_run(
                project=project,
                recipe=form.cleaned_data["recipe"],
                reference=form.cleaned_data["reference"],
                seed=form.cleaned_data["seed"],
                by=request.user,
            )
        except Rejected as refusal:
            form.add_error(None, str(refusal))
        else:
            tell_if_unheard(request, run)
            return redirect(run)
    context = frame(request, project) | _preflight(project, form, reference)
    context["rule"] = services.loop_rule(project)
    return render(request, "training/train.html", context, status=400 if form.errors else 200)


def _preflight(project: Project, form: TrainForm, reference: Checkpoint | None) -> dict[str, Any]:
    """What the recipe in the form would take; the default one before anything is chosen, none while it is wrong."""
    recipe: Recipe | None = Recipe()
    if form.is_bound:
        form.is_valid()
        recipe = form.cleaned_data.get("recipe")
        reference = form.cleaned_data.get("reference", reference)
    preflight = look_ahead(project, recipe, reference) if recipe else None
    return {"project": project, "form": form, "preflight": preflight}


def _named_errors(form: TrainForm) -> list[str]:
    """Each with the field that it is of, for a place where the fields are not."""
    return [
        str(error) if name == NON_FIELD_ERRORS else f"{form[name].label}: {error}"
        for name, errors in form.errors.items()
        for error in errors
    ]


@require_GET
@login_required
def run(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    run = run_or_404(project, number)
    context = frame(request, project) | {"status": read_status(run), "run": run, "held_out_rows": held_out_rows(run)}
    return render(request, "training/run.html", context | withdrawn_from(run))


@require_GET
@login_required
def run_status(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    """The live part of the run's page; ends its own polling when the run has ended."""
    project = project_or_404(request.user, slug, REVIEWERS)
    run = run_or_404(project, number)
    context = frame(request, project) | {"status": read_status(run), "run": run, "held_out_rows": held_out_rows(run)}
    response = render(request, "training/run.html#status", context)
    return response if run.is_active else HttpResponseStopPolling(response.content)


@require_POST
@login_required
def cancel_run(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    run = run_or_404(project, number)
    say(
        request,
        lambda: services.cancel_job(job=run),
        "The run stops and keeps the steps it has done. It can be resumed.",
    )
    return redirect(run)


@require_POST
@login_required
def resume_run(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    run = run_or_404(project, number)
    say(request, lambda: services.resume_job(job=run), "Queued again. It goes on from its last saved step.")
    return redirect(run)
