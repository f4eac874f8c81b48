"""Pages for those who train: overview, runs, checkpoints, the loop's rule. All of a project, by role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import NON_FIELD_ERRORS
from django.core.paginator import Paginator
from django.http import FileResponse, Http404, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseStopPolling

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404, role_of
from labeling.models import Project, Slot
from training import services, store
from training.exceptions import Rejected
from training.forms import LoopRuleForm, PromoteForm, SampleForm, TrainForm
from training.models import Checkpoint, CheckpointExport, Job, Promotion, SampleBatch, TrainingRun
from training.ordering import order_report
from training.outcome import read_outcome
from training.preflight import look_ahead
from training.recipe import Recipe
from training.run_page import held_out_rows, read_status

RUNS_PER_PAGE = 25
CHECKPOINTS_PER_PAGE = 25


@require_GET
@login_required
def overview(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    rule = services.loop_rule(project)
    runs = TrainingRun.objects.filter(project=project).select_related("checkpoint", "snapshot")
    context = _frame(request, project) | {
        "rule": rule,
        "rule_form": LoopRuleForm(instance=rule),
        "sample_form": SampleForm(),
        "ordering": order_report(project),
        "page": Paginator(runs, RUNS_PER_PAGE).get_page(request.GET.get("page")),
        **_sampling(project),
    }
    return render(request, "training/overview.html", context)


@require_GET
@login_required
def sampling_status(request: SignedInRequest, slug: str) -> HttpResponse:
    """The part of the overview that moves while pairs are written; ends its own polling."""
    project = project_or_404(request.user, slug, REVIEWERS)
    context = _frame(request, project) | _sampling(project)
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
        _say(
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
    _say(request, lambda: services.cancel_job(job=batch), "Sampling stops. Pairs written so far stay.")
    return redirect("training:overview", slug=slug)


@require_POST
@login_required
def save_rule(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    form = LoopRuleForm(request.POST, instance=services.loop_rule(project))
    if form.is_valid():
        services.change_rule(project=project, **form.cleaned_data)
        messages.success(request, "Saved. The scheduler looks at it every ten seconds.")
    else:
        messages.error(
            request, "Not saved: " + " ".join(str(error) for errors in form.errors.values() for error in errors)
        )
    return redirect("training:overview", slug=slug)


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
            _tell_if_unheard(request, run)
            return redirect(run)
    context = _frame(request, project) | _preflight(project, form, reference)
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
    run = _run_or_404(project, number)
    context = _frame(request, project) | {"status": read_status(run), "run": run, "held_out_rows": held_out_rows(run)}
    return render(request, "training/run.html", context)


@require_GET
@login_required
def run_status(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    """The live part of the run's page; ends its own polling when the run has ended."""
    project = project_or_404(request.user, slug, REVIEWERS)
    run = _run_or_404(project, number)
    context = _frame(request, project) | {"status": read_status(run), "run": run, "held_out_rows": held_out_rows(run)}
    response = render(request, "training/run.html#status", context)
    return response if run.is_active else HttpResponseStopPolling(response.content)


@require_POST
@login_required
def cancel_run(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    run = _run_or_404(project, number)
    _say(
        request,
        lambda: services.cancel_job(job=run),
        "The run stops and keeps the steps it has done. It can be resumed.",
    )
    return redirect(run)


@require_POST
@login_required
def resume_run(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    run = _run_or_404(project, number)
    _say(request, lambda: services.resume_job(job=run), "Queued again. It goes on from its last saved step.")
    return redirect(run)


@require_GET
@login_required
def checkpoints(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    rows = services.usable_checkpoints(project).select_related("parent", "run")
    context = _frame(request, project) | {
        "page": Paginator(rows, CHECKPOINTS_PER_PAGE).get_page(request.GET.get("page")),
        "promotions": Promotion.objects.filter(project=project).select_related("checkpoint", "promoted_by")[:20],
    }
    return render(request, "training/checkpoints.html", context)


@require_GET
@login_required
def checkpoint(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = _checkpoint_or_404(project, uuid)
    context = _frame(request, project) | _export(checkpoint) | {
        "checkpoint": checkpoint,
        "run": TrainingRun.objects.filter(checkpoint=checkpoint).select_related("snapshot", "reference").first(),
        "manifest": _manifest(checkpoint),
        "outcome": read_outcome(checkpoint.details),
        "promotions": checkpoint.promotions.filter(project=project).select_related("promoted_by"),
    }  # fmt: skip
    return render(request, "training/checkpoint.html", context)


@require_GET
@login_required
def export_status(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    """The download part of the checkpoint's page while merged weights are made; ends its own polling."""
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = _checkpoint_or_404(project, uuid)
    context = _frame(request, project) | _export(checkpoint) | {"checkpoint": checkpoint}
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
        return store.read_manifest(checkpoint.uuid)
    except (OSError, ValueError):
        return {}


@require_POST
@login_required
def prepare_merged(request: SignedInRequest, slug: str, uuid: UUID) -> HttpResponse:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = _checkpoint_or_404(project, uuid)
    _say(request, lambda: services.request_export(checkpoint=checkpoint, by=request.user), "")
    return redirect("training:checkpoint", slug=slug, uuid=uuid)


@require_GET
@login_required
def download(request: SignedInRequest, slug: str, uuid: UUID, variant: str) -> HttpResponseBase:
    project = project_or_404(request.user, slug, REVIEWERS)
    checkpoint = _checkpoint_or_404(project, uuid)
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
    checkpoint = _checkpoint_or_404(project, uuid)
    form = PromoteForm(request.POST)
    reason = form.cleaned_data["reason"] if form.is_valid() else ""
    _say(
        request,
        lambda: services.promote_checkpoint(project=project, checkpoint=checkpoint, by=request.user, reason=reason),
        f"{checkpoint} is the policy now. It writes the next pairs.",
    )
    return redirect("training:checkpoint", slug=slug, uuid=uuid)


@require_POST
@login_required
def roll_back(request: SignedInRequest, slug: str) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    _say(
        request,
        lambda: services.roll_back(project=project, by=request.user),
        "Rolled back. The earlier policy writes the next pairs.",
    )
    return redirect("training:checkpoints", slug=slug)


def _frame(request: SignedInRequest, project: Project) -> dict[str, Any]:
    return {
        "project": project,
        "role": role_of(request.user, project),
        "policy": services.current_policy(project),
    }


def _run_or_404(project: Project, number: int) -> TrainingRun:
    runs = TrainingRun.objects.select_related("project", "snapshot", "reference", "checkpoint", "requested_by")
    found: TrainingRun = get_object_or_404(runs, project=project, number=number)
    return found


def _checkpoint_or_404(project: Project, uuid: UUID) -> Checkpoint:
    rows = services.usable_checkpoints(project).select_related("base", "parent")
    found: Checkpoint = get_object_or_404(rows, uuid=uuid)
    return found


def _say(request: SignedInRequest, act: Callable[[], Any], success: str) -> None:
    """Do it, and tell the person how it went."""
    try:
        outcome = act()
    except Rejected as refusal:
        messages.error(request, str(refusal))
        return
    if success:
        messages.success(request, success)
    if isinstance(outcome, Job):
        _tell_if_unheard(request, outcome)


def _tell_if_unheard(request: SignedInRequest, job: Job) -> None:
    if job.is_active and job.hinted_at is None:
        messages.error(
            request,
            f"{job} is kept, but the message broker cannot be reached, so no worker knows of it. "
            "It starts by itself once the broker is back.",
        )
