"""Withdrawing labels: the effect before the act, what was withdrawn, and making runs again without it."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.db.models import Exists, OuterRef
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.access import ADMINS, REVIEWERS, SignedInRequest, project_or_404
from labeling.models import Preference, Project, Prompt, Seat, Withdrawal
from training import forecast, taints, withdrawing, withdrawn_votes
from training.exceptions import Rejected
from training.models import Taint, TrainingRun
from training.views.frame import frame, run_or_404, tell_if_unheard
from training.withdrawing import Target

WITHDRAWALS_PER_PAGE = 20
RUNS_LISTED = 20


@require_GET
@login_required
def withdrawn(request: SignedInRequest, slug: str) -> HttpResponse:
    """Everything that was withdrawn, newest first, with what it reaches, and the runs to make again."""
    project = project_or_404(request.user, slug, REVIEWERS)
    rows = Withdrawal.objects.filter(project=project)
    rows = rows.select_related("annotator", "by", "prompt", "preference__annotator")
    page = Paginator(rows, WITHDRAWALS_PER_PAGE).get_page(request.GET.get("page"))
    taints = Taint.objects.filter(withdrawal__in=list(page.object_list)).select_related("checkpoint")
    by_withdrawal: dict[int, list[Taint]] = {}
    for taint in taints.order_by("checkpoint"):
        by_withdrawal.setdefault(taint.withdrawal_id, []).append(taint)
    losses = withdrawn_votes.by_withdrawal(list(page.object_list))
    runs = withdrawing.runs_to_rebuild(project)
    context = frame(request, project) | {
        "page": page,
        "rows": [(one, by_withdrawal.get(one.pk, []), losses.get(one.pk, [])) for one in page],
        "runs": [(run, forecast.time_taken(run)) for run in runs[:RUNS_LISTED]],
        "more_runs": max(0, len(runs) - RUNS_LISTED),
    }
    return render(request, "training/withdrawals.html", context)


def withdrawn_from(run: TrainingRun) -> dict[str, Any]:
    """What a run's page says of labels that were withdrawn since it was asked for."""
    reached = taints.reaching(run)
    can_rebuild = bool(reached) and withdrawing.can_rebuild(run)
    return {
        "withdrawn": bool(reached),
        "withdrawn_judgements": sum(reached.values()),
        "can_rebuild": can_rebuild,
        "time_taken": forecast.time_taken(run) if can_rebuild else None,
    }


@require_http_methods(["GET", "POST"])
@login_required
def annotator(request: SignedInRequest, slug: str, user_id: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    judged = Exists(Preference.objects.filter(annotator=OuterRef("pk"), project=project))
    people = User.objects.filter(judged | Exists(Seat.objects.filter(annotator=OuterRef("pk"), project=project)))
    return _confirm(request, project, get_object_or_404(people, pk=user_id))


@require_http_methods(["GET", "POST"])
@login_required
def prompt(request: SignedInRequest, slug: str, prompt_id: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    return _confirm(request, project, get_object_or_404(Prompt, pk=prompt_id, project=project))


@require_http_methods(["GET", "POST"])
@login_required
def judgement(request: SignedInRequest, slug: str, preference_id: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    rows = Preference.objects.select_related("annotator", "pair__prompt")
    return _confirm(request, project, get_object_or_404(rows, pk=preference_id, project=project))


def _confirm(request: SignedInRequest, project: Project, target: Target) -> HttpResponse:
    """What would change, and a button; a POST does it."""
    if request.method == "POST":
        try:
            done = withdrawing.withdraw(
                project=project, target=target, by=request.user, reason=request.POST.get("reason", "")
            )
        except Rejected as refusal:
            messages.error(request, str(refusal))
        else:
            messages.success(request, _done(done))
        return redirect("training:withdrawals", slug=project.slug)
    context = frame(request, project) | {
        "target": target,
        "kind": withdrawing.KINDS[type(target)][0],
        "effect": withdrawing.preview(project, target),
        "most_characters": Withdrawal.REASON_LENGTH,
    }
    return render(request, "training/withdraw.html", context)


def _done(withdrawal: Withdrawal) -> str:
    if withdrawal.finished_at:
        return f"{withdrawal.judgements:,} judgements are withdrawn and count nowhere any more."
    return (
        f"{withdrawal.judgements:,} judgements are withdrawn so far; the others are being taken out, and no dataset "
        "takes them."
    )


@require_POST
@login_required
def rebuild(request: SignedInRequest, slug: str, number: int) -> HttpResponse:
    project = project_or_404(request.user, slug, ADMINS)
    run = run_or_404(project, number)
    try:
        again = withdrawing.request_rebuild(run=run, by=request.user)
    except Rejected as refusal:
        messages.error(request, str(refusal))
        return redirect("training:withdrawals", slug=slug)
    messages.success(
        request,
        f"{again} makes {run} again on {again.snapshot.train_triples:,} triples in place of "
        f"{run.snapshot.train_triples:,}.",
    )
    tell_if_unheard(request, again)
    return redirect(again)
