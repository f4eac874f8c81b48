"""A sweep: a handful of runs that differ in beta and learning rate alone, asked for and stopped at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from labeling.models import Project
from training import forecast, gates, registry, services
from training.exceptions import Rejected
from training.forecast import Forecast
from training.models import Checkpoint, Job, Sweep, TrainingRun, new_seed
from training.recipe import Recipe
from training.services import Requester
from training.tasks import hint_on_commit

log = logging.getLogger(__name__)

LEAST_POINTS, MOST_POINTS = 2, 12
USUAL_BETAS = (0.03, 0.1, 0.3, 1.0)
SWEPT = ("beta", "learning_rate")


def request_sweep(
    *,
    project: Project,
    recipe: Recipe,
    betas: Sequence[float] = USUAL_BETAS,
    learning_rates: Sequence[float] = (),
    reference: Checkpoint | None = None,
    seed: int | None = None,
    by: Requester = None,
) -> Sweep:
    """Freeze the triples of now once, and queue a run for each beta and learning rate; all of them or none.

    Snapshot, reference and seed are the same, so what differs between two points is what their recipes differ in. The
    first run reads the reference, and the others find its values in the cache.
    """
    recipes = grid(recipe, betas, learning_rates)
    services.refuse_second_run(project)
    reference, reason = services.reference_for(project, reference, by)
    recipes = [services.continued(one, reference) for one in recipes]
    services.refuse_impossible(recipes[0], reference)
    snapshot = services.freeze(project, recipes[0], reference)
    common = in_common(recipes[0])
    recipes = [one.settled(snapshot.train_triples) for one in recipes]
    expected = forecast.of_run(project, recipes[0], reference, snapshot)
    with transaction.atomic():
        services.lock(project)
        registry.refuse_removed(reference)
        services.refuse_second_run(project)
        sweep = Sweep.objects.create(
            project=project,
            number=_next_number(project),
            snapshot=snapshot,
            reference=reference,
            recipe=common,
            requested_by=by,
        )
        alike = {"seed": new_seed() if seed is None else seed, "reference_reason": reason, "requested_by": by}
        _queue(sweep, recipes, expected, alike)
        services.move_watermark(snapshot)
    return sweep


def grid(recipe: Recipe, betas: Sequence[float], learning_rates: Sequence[float] = ()) -> list[Recipe]:
    """``recipe`` with each beta at each learning rate, by default its own; ``Rejected`` if that is no sweep."""
    if not all(learning_rates):
        raise Rejected("The learning rate 0 would move nothing. Name none for the usual one.")
    learning_rates = learning_rates or [recipe.learning_rate]
    for name, values in (("β", betas), ("learning rate", learning_rates)):
        if twice := next((value for value in values if list(values).count(value) > 1), None):
            raise Rejected(f"The {name} {twice:g} is there twice, and would be trained twice. Name each once.")
    points = len(betas) * len(learning_rates)
    if not LEAST_POINTS <= points <= MOST_POINTS:
        raise Rejected(
            f"{len(betas)} β at {len(learning_rates)} learning rate{'' if len(learning_rates) == 1 else 's'} make "
            f"{points} run{'' if points == 1 else 's'}; a sweep has {LEAST_POINTS} to {MOST_POINTS}. "
            + ("Train that one by itself." if points == 1 else "Name fewer." if points else "Name some β.")
        )
    recipes = [replace(recipe, beta=beta, learning_rate=rate) for rate in learning_rates for beta in sorted(betas)]
    for one in recipes:
        one.check()
    return recipes


def in_common(recipe: Recipe) -> dict[str, Any]:
    """What of a point's recipe holds for all of them. A learning rate is among it only as 0: nobody has named any, and
    all have the usual one for their steps."""
    own = [name for name in SWEPT if name != "learning_rate" or recipe.learning_rate]
    return {name: value for name, value in recipe.to_dict().items() if name not in own}


def _next_number(project: Project) -> int:
    return int(Sweep.objects.filter(project=project).aggregate(last=Max("number"))["last"] or 0) + 1


def _queue(sweep: Sweep, recipes: Sequence[Recipe], expected: Forecast, alike: dict[str, Any]) -> None:
    """``expected`` of the first run. ``alike``: fields that are the same of all."""
    first = services.next_number(sweep.project)
    for number, recipe in enumerate(recipes, start=first):
        run = TrainingRun.objects.create(
            project=sweep.project,
            number=number,
            snapshot=sweep.snapshot,
            reference=sweep.reference,
            recipe=recipe.to_dict(),
            forecast=(expected if number == first else expected.after_another()).to_dict(),
            sweep=sweep,
            **alike,
        )
        hint_on_commit(run)


def cancel_sweep(*, sweep: Sweep) -> None:
    """Cancel what waits, then ask the worker of what runs to save and stop. Points that are done stay."""
    active = list(TrainingRun.objects.active().filter(sweep=sweep).order_by("-number"))
    if not active:
        raise Rejected(f"Nothing of {sweep} waits or runs, so there is nothing to cancel.")
    for run in active:
        with contextlib.suppress(Rejected):  # it has just ended
            services.cancel_job(job=run)


def resume_sweep(*, sweep: Sweep) -> list[TrainingRun]:
    """Queue its cancelled and failed runs again, each from its last saved step."""
    stopped = TrainingRun.objects.filter(sweep=sweep, state__in=[Job.State.CANCELLED, Job.State.FAILED])
    runs = list(stopped.select_related("sweep", "project").order_by("number"))
    if not runs:
        raise Rejected(f"No run of {sweep} was cancelled or has failed, so there is nothing to resume.")
    with transaction.atomic():
        for run in runs:
            services.resume_job(job=run)
    return runs


def pick(*, sweep: Sweep, run: TrainingRun, by: Requester = None) -> Sweep:
    """Say that this point is the one, and train by its recipe from now on where the retrain rule trains.

    Nothing is promoted here. Where the release rule compares what runs make, the gate looks at the point; it stays
    picked if that is refused.
    """
    if run.sweep_id != sweep.pk:
        raise Rejected(f"{run} is no run of {sweep}.")
    if run.state != Job.State.SUCCEEDED or run.checkpoint_id is None:
        raise Rejected(f"{run} is {run.get_state_display().lower()}; only a run that is done can be picked.")
    with transaction.atomic():
        services.lock(sweep.project)
        Sweep.objects.filter(pk=sweep.pk).update(picked=run, picked_by=by, picked_at=timezone.now())
        # A rate that nobody has named goes by the steps of each later run again; one that was named stays, though it be
        # the usual one of these steps.
        services.use_recipe(project=sweep.project, recipe=run.recipe | sweep.recipe, by=by)
    try:
        gates.compare_picked(run, by)
    except Rejected as refusal:
        log.info("%s of %s is picked and not compared: %s", run, sweep, refusal)
    sweep.refresh_from_db()
    return sweep
