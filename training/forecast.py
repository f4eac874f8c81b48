"""How long a run will take and what it will compute, from earlier runs and from what they have kept. Reads only.

An earlier run tells the pace of a later one if it was computed in the same way. What it took beside its steps, loading
and comparing, is expected again as it was; reading the reference goes by the number of pairs whose values nobody has
kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from django.conf import settings
from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from labeling.models import Choice, Preference, Project, Rewrite
from training import tallies
from training.models import Checkpoint, DatasetSnapshot, Job, PairOrigin, TrainingRun
from training.recipe import Recipe
from training.rundir import LineReader, RunDir
from training.triples import LabelRule

RUNS_LOOKED_AT = 20
LOADING, READING, TRAINING = "loading model", "reading reference", "training"  # phases, as the engine names them


@dataclass(frozen=True)
class ReferenceValues:
    """Pairs of a run by where the reference's values of them will come from."""

    sampled: int = 0
    cached: int = 0
    forwards: int = 0


@dataclass(frozen=True)
class Forecast:
    """``training``, ``reading`` and ``others``: seconds; ``None`` where no earlier run tells. ``run``: which did."""

    reference: ReferenceValues
    training: float | None = None
    reading: float | None = None
    others: float | None = None
    run: int | None = None

    @property
    def seconds(self) -> float | None:
        """From beginning to end; ``None`` unless every part of it is known."""
        if self.training is None or self.reading is None or self.others is None:
            return None
        return self.training + self.reading + self.others

    def seconds_of_sweep(self, points: int) -> float | None:
        """Of as many runs on the same pairs: the reference is read by the first of them alone."""
        if self.seconds is None or self.reading is None:
            return None
        return self.reading + points * (self.seconds - self.reading)

    def after_another(self) -> Forecast:
        """Of a further run on the same pairs and reference: the first has left it the values, where any are kept."""
        if not settings.CACHE_MB:
            return self
        values = self.reference
        kept = ReferenceValues(values.sampled, values.cached + values.forwards)
        return replace(self, reference=kept, reading=None if self.training is None else 0.0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds}


@dataclass(frozen=True)
class Earlier:
    """A finished run that was computed as the next one will be."""

    run: TrainingRun

    @cached_property
    def details(self) -> dict[str, Any]:
        return self.run.checkpoint.details if self.run.checkpoint else {}

    @property
    def pairs_per_second(self) -> float | None:
        return (self.details.get("speed") or {}).get("pairs_per_s")

    @cached_property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase; empty of a run that was interrupted, or whose directory is gone."""
        return {} if self.run.attempt > 1 else _seconds_by_phase(self.run)

    @property
    def seconds_a_forward(self) -> float | None:
        forwards = (self.details.get("reference_logps") or {}).get("forwards")
        return self.phases[READING] / forwards if forwards and READING in self.phases else None

    @property
    def others(self) -> float | None:
        """What a run takes whatever its pairs are."""
        if not self.phases:
            return None
        return sum(seconds for phase, seconds in self.phases.items() if phase not in (READING, TRAINING))


def of_run(project: Project, recipe: Recipe, reference: Checkpoint, snapshot: DatasetSnapshot) -> Forecast:
    """What is to be expected of a run on a snapshot of this moment."""
    return expect(project, recipe, reference, snapshot.train_triples)


def of_rebuild(project: Project, recipe: Recipe, reference: Checkpoint, snapshot: DatasetSnapshot) -> Forecast:
    """The same of a snapshot that has nothing of what was judged since an earlier run."""
    return expect(project, recipe, reference, snapshot.train_triples, snapshot.preferences.order_by())


def expect(
    project: Project,
    recipe: Recipe,
    reference: Checkpoint,
    train_triples: int,
    preferences: QuerySet[Preference] | None = None,
) -> Forecast:
    """``preferences``: those behind the triples; by default all that count now."""
    earlier = list(runs_like(project, recipe, reference))
    if preferences is None:
        preferences = Preference.objects.counted().filter(project=project)
    values = reference_values(preferences, recipe, reference, earlier)
    newest = next((one for one in earlier if one.pairs_per_second), None)
    if newest is None or newest.pairs_per_second is None:
        return Forecast(values)
    forward = next(filter(None, (one.seconds_a_forward for one in earlier)), None)
    return Forecast(
        reference=values,
        training=train_triples * recipe.epochs / newest.pairs_per_second,
        reading=0.0 if not values.forwards else values.forwards * forward if forward else None,
        others=next((one.others for one in earlier if one.others is not None), None),
        run=newest.run.number,
    )


def runs_like(project: Project, recipe: Recipe, reference: Checkpoint) -> Iterator[Earlier]:
    """Finished runs of the project that were computed as one by ``recipe`` will be, on the same base; newest first."""
    root = reference.base or reference
    runs = TrainingRun.objects.filter(
        Q(reference=root) | Q(reference__base=root),
        project=project,
        state=Job.State.SUCCEEDED,
        checkpoint__isnull=False,
    ).select_related("checkpoint", "project", "reference")
    for run in runs.order_by("-pk")[:RUNS_LOOKED_AT]:
        if is_like(recipe, run):
            yield Earlier(run)


def time_taken(run: TrainingRun) -> float | None:
    """Seconds that the run took from beginning to end; ``None`` unless it is done and was not interrupted. Made again
    without some of its labels it has no more to do."""
    if run.state != Job.State.SUCCEEDED:
        return None
    return sum(Earlier(run).phases.values()) or None


def is_like(recipe: Recipe, run: TrainingRun) -> bool:
    """Whether ``run`` was computed as one by ``recipe`` will be. Runs of earlier versions were float32 on a CPU."""
    if (run.recipe.get("method"), run.recipe.get("mode", "exact")) != (recipe.method, recipe.mode):
        return False
    if recipe.precision != "auto":
        return run.checkpoint is not None and run.checkpoint.details.get("dtype") == recipe.precision
    return bool(run.recipe.get("precision", "auto" if recipe.mode == "exact" else "float32") == "auto")


def reference_values(
    preferences: QuerySet[Preference], recipe: Recipe, reference: Checkpoint, earlier: Sequence[Earlier]
) -> ReferenceValues:
    """Of the triples of ``preferences``, those whose values a sampler has kept, a run has read, and the rest."""
    same = [one.run.pk for one in earlier if one.run.reference.content_hash == reference.content_hash]
    read = Preference.snapshots.through.objects.filter(datasetsnapshot__runs__in=same if settings.CACHE_MB else [])
    sampled = _written_under(reference) if _takes_samples(recipe, earlier) else PairOrigin.objects.none()
    pairs = _pairs(preferences, recipe.label_rule).annotate(
        is_sampled=Exists(sampled.filter(pair=OuterRef("pair_id"))),
        is_read=Exists(read.filter(preference__pair=OuterRef("pair_id"))),
    )
    counts = pairs.aggregate(
        all=Count("pair_id"),
        sampled=Count("pair_id", filter=Q(is_sampled=True)),
        cached=Count("pair_id", filter=Q(is_sampled=False, is_read=True)),
    )
    rewrites = Rewrite.objects.filter(preference__in=preferences.filter(choice__in=[Choice.A, Choice.B]))
    written = rewrites.annotate(is_read=Exists(read.filter(preference=OuterRef("preference")))).aggregate(
        all=Count("pk"), cached=Count("pk", filter=Q(is_read=True))
    )
    total, cached = counts["all"] + written["all"], counts["cached"] + written["cached"]
    return ReferenceValues(counts["sampled"], cached, total - counts["sampled"] - cached)


def _pairs(preferences: QuerySet[Preference], rule: LabelRule) -> QuerySet[Any, Any]:
    """One row for each pair that gives a triple, to train on or held out."""
    rows = tallies.by_pair(preferences).filter(tallies.is_judged())
    gives = tallies.is_decided(rule)
    return rows.filter(gives | Q(is_held_out=False) if rule.ties == "half" else gives)


def _written_under(reference: Checkpoint) -> QuerySet[PairOrigin]:
    """Pairs whose log-probabilities under the reference go along with a snapshot."""
    itself = Q(policy__content_hash=reference.content_hash) & ~Q(logps_a=[]) & ~Q(logps_b=[])
    below = Q(policy__base__content_hash=reference.content_hash) & ~Q(reference_logps_a=[]) & ~Q(reference_logps_b=[])
    return PairOrigin.objects.filter(itself | below)


def _takes_samples(recipe: Recipe, earlier: Sequence[Earlier]) -> bool:
    """A sampler's values are of float32, and a run in another precision computes its own."""
    if earlier and (dtype := earlier[0].details.get("dtype")):
        return bool(dtype == "float32")
    if recipe.precision != "auto":
        return recipe.precision == "float32"
    return recipe.mode == "exact" and settings.ENGINE_DEVICE != "cuda"


def _seconds_by_phase(run: TrainingRun) -> dict[str, float]:
    """From the engine's first mark on: ``started_at`` is older where a run failed before it, and was resumed later."""
    marks = [line for line in LineReader(RunDir.of(run.uuid).metrics).new_lines() if "phase" in line and "at" in line]
    begun = [mark for mark in marks if mark["phase"] == LOADING]
    if len(begun) != 1 or run.finished_at is None:
        return {}
    starts = [*(mark["at"] for mark in marks), run.finished_at.timestamp()]
    seconds: dict[str, float] = {}
    for mark, (start, end) in zip(marks, pairwise(starts), strict=True):
        seconds[mark["phase"]] = seconds.get(mark["phase"], 0.0) + max(0.0, end - start)
    return seconds
