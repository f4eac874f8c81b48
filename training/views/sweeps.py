"""A sweep: what it would take, the frontier that its runs draw, and the point that an admin picks."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import NON_FIELD_ERRORS
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseStopPolling

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.models import Project
from training import services, sweeps
from training.exceptions import Rejected
from training.frontier import read_frontier
from training.models import Checkpoint, Sweep, TrainingRun
from training.preflight import look_ahead
from training.recipe import Recipe
from training.run_page import shown_recipe
from training.sweep_form import SweepForm
from training.views.frame import frame, say, tell_if_unheard


@require_http_methods(["GET", "POST"])
@login_required
def new_sweep(request: SignedInRequest, slug: str) -> HttpResponse:
    """The values to try, what they would take, and the button. htmx asks again what other values take."""
    project = project_or_404(request.user, slug, ADMINS)
    reference = services.default_reference(project)
    asked = "HX-Request" in request.headers
    form = SweepForm(
        request.POST or (request.GET if asked else None),
        references=services.usable_checkpoints(project).order_by("pk"),
        initial={"reference": reference},
    )
    if request.method == "GET" and asked:
        return render(request, "training/sweep_new.html#takes", _takes(project, form, reference))
    if request.method == "POST" and form.is_valid() and (sweep := _start(request, project, form)):
        return redirect(sweep)
    context = frame(request, project) | _takes(project, form, reference)
    return render(request, "training/sweep_new.html", context, status=400 if form.errors else 200)


def _start(request: SignedInRequest, project: Project, form: SweepForm) -> Sweep | None:
    asked = form.cleaned_data
    try:
        sweep = sweeps.request_sweep(
            project=project,
            recipe=asked["recipe"],
            betas=asked["betas"],
            learning_rates=asked["learning_rates"],
            reference=asked["reference"],
            seed=asked["seed"],
            by=request.user,
        )
    except Rejected as refusal:
        form.add_error(None, str(refusal))
        return None
    first = sweep.runs.order_by("number").first()
    assert first is not None
    tell_if_unheard(request, first)
    return sweep


def _takes(project: Project, form: SweepForm, reference: Checkpoint | None) -> dict[str, Any]:
    """What the sweep in the form would take; the usual one before anything is chosen, none while it is wrong."""
    recipes: list[Recipe] | None = sweeps.grid(Recipe(), sweeps.USUAL_BETAS)
    if form.is_bound:
        form.is_valid()
        recipes = form.cleaned_data.get("recipes")
        reference = form.cleaned_data.get("reference", reference)
    preflight = look_ahead(project, recipes[0], reference) if recipes else None
    forecast = preflight.forecast if preflight else None
    points = len(recipes or [])
    errors = [] if recipes else [_named(form, name, error) for name, each in form.errors.items() for error in each]
    return {
        "project": project,
        "form": form,
        "recipes": recipes,
        "preflight": preflight,
        "seconds": forecast.seconds_of_sweep(points) if forecast else None,
        "training_seconds": points * forecast.training if forecast and forecast.training is not None else None,
        "errors": errors,
    }


def _named(form: SweepForm, name: str, error: Any) -> str:
    return str(error) if name == NON_FIELD_ERRORS else f"{form[name].label}: {error}"


@require_GET
@login_required
def sweep(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    return render(request, "training/sweep.html", _page(request, project, number))


@require_GET
@login_required
def sweep_status(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    """The live part of the page; ends its own polling when no run waits or runs any more."""
    project = project_or_404(request.user, slug, REVIEWERS)
    context = _page(request, project, number)
    response = render(request, "training/sweep.html#frontier", context)
    return response if context["frontier"].is_active else HttpResponseStopPolling(response.content)


def _page(request: SignedInRequest, project: Project, number: int) -> dict[str, Any]:
    sweep = sweep_or_404(project, number)
    first = sweep.runs.order_by("number").first()
    return frame(request, project) | {
        "sweep": sweep,
        "frontier": read_frontier(sweep),
        "recipe": shown_recipe(sweep.recipe),
        "seed": first.seed if first else None,
        "reference_reason": first.reference_reason if first else "",
    }


def sweep_or_404(project: Project, number: int) -> Sweep:
    rows = Sweep.objects.select_related("project", "snapshot", "reference", "picked__checkpoint", "picked_by")
    found: Sweep = get_object_or_404(rows.select_related("requested_by"), project=project, number=number)
    return found


@require_POST
@login_required
def cancel_sweep(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    sweep = sweep_or_404(project, number)
    say(request, lambda: sweeps.cancel_sweep(sweep=sweep), "The sweep stops. Points that are done stay.")
    return redirect(sweep)


@require_POST
@login_required
def resume_sweep(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    sweep = sweep_or_404(project, number)
    say(request, lambda: sweeps.resume_sweep(sweep=sweep), "Queued again. Each goes on from its last saved step.")
    return redirect(sweep)


@require_POST
@login_required
def pick(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    sweep = sweep_or_404(project, number)
    picked = request.POST.get("run", "")
    run = TrainingRun.objects.filter(sweep=sweep, number=int(picked) if picked.isdecimal() else 0).first()
    if run is None:
        messages.error(request, "Choose one of the points of the table.")
        return redirect(sweep)
    try:
        sweeps.pick(sweep=sweep, run=run, by=request.user)
    except Rejected as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, _picked(run))
    return redirect(sweep)


def _picked(run: TrainingRun) -> str:
    run.refresh_from_db()
    said = f"{run} is picked: runs that start by themselves have its recipe from now on. Nothing is promoted yet."
    if gate := run.gates.first():
        return f"{said} Its checkpoint is compared with the policy in {gate}."
    return f"{said} Its checkpoint is not compared with the policy. {run.not_compared}".strip()
