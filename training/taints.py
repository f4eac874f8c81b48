"""Which checkpoints a withdrawal reaches: those of a snapshot with its labels, and all that were made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from django.db.models import Count, Q

from labeling.models import Preference, Project, Withdrawal
from labeling.withdrawals import covered_by
from training.models import Checkpoint, DatasetSnapshot, Taint, TrainingRun


def reached(withdrawal: Withdrawal) -> Q:
    """The judgements that it has taken, or will take while it is being carried out. It need not be saved."""
    coming = covered_by(withdrawal) & Q(withdrawal=None, project=withdrawal.project_id)
    return coming | Q(withdrawal=withdrawal.pk) if withdrawal.pk else coming


def by_snapshot(withdrawal: Withdrawal) -> dict[int, int]:
    """How many of its judgements each snapshot has; those that have none are left out."""
    rows = DatasetSnapshot.preferences.through.objects.filter(
        preference__in=Preference.objects.filter(reached(withdrawal)).order_by().values("pk")
    )
    return dict(rows.order_by().values_list("datasetsnapshot").annotate(Count("pk")))


def direct(withdrawal: Withdrawal) -> dict[int, int]:
    """Checkpoints whose own snapshot has some of its judgements, and how many."""
    used = by_snapshot(withdrawal)
    runs = TrainingRun.objects.filter(snapshot__in=used, checkpoint__isnull=False)
    return {checkpoint: used[snapshot] for checkpoint, snapshot in runs.values_list("checkpoint", "snapshot")}


def descendants(checkpoint_ids: Iterable[int]) -> set[int]:
    """Everything that was made from these: on them as a base, from them as a parent, or against them as a reference."""
    found: set[int] = set()
    newest = set(checkpoint_ids)
    while newest:
        made_from = Q(base__in=newest) | Q(parent__in=newest) | Q(run__reference__in=newest)
        newest = set(Checkpoint.objects.filter(made_from).order_by().values_list("pk", flat=True)) - found
        found |= newest
    return found


def mark(withdrawal: Withdrawal) -> int:
    """Write a taint for each checkpoint that it reaches; returns how many. In the transaction that writes it down."""
    own = direct(withdrawal)
    return _write({(checkpoint, withdrawal.pk): own.get(checkpoint, 0) for checkpoint in {*own, *descendants(own)}})


def mark_published(checkpoint: Checkpoint, run: TrainingRun) -> int:
    """The same for a checkpoint that is published after withdrawals. In the transaction that writes its row.

    Its project is locked, as it is where a withdrawal is written down: one of the two comes second and sees the other.
    """
    Project.objects.select_for_update(no_key=True).get(pk=run.project_id)
    return _write({(checkpoint.pk, withdrawal): count for withdrawal, count in reaching(run).items()})


def reaching(run: TrainingRun) -> dict[int, int]:
    """The withdrawals that reach what a run is made of, and how many judgements of its own snapshot each has taken.

    Zero: by descent alone, of its reference or of the base below that.
    """
    reference = run.reference
    above = [pk for pk in (reference.pk, reference.base_id) if pk]
    inherited = Taint.objects.filter(checkpoint__in=above).values_list("withdrawal", flat=True)
    return dict.fromkeys(inherited, 0) | own_withdrawn(run)


def own_withdrawn(run: TrainingRun) -> dict[int, int]:
    """How many judgements of the run's snapshot each withdrawal has taken, or is about to take."""
    rows = run.snapshot.preferences.filter(withdrawal__isnull=False).order_by()
    counts = Counter(dict(rows.values_list("withdrawal").annotate(Count("pk"))))
    for withdrawal in Withdrawal.objects.filter(project=run.project_id, finished_at=None).select_related("preference"):
        coming = run.snapshot.preferences.filter(covered_by(withdrawal), withdrawal=None).count()
        counts += Counter({withdrawal.pk: coming})  # which drops what is zero
    return counts


def _write(preferences: dict[tuple[int, int], int]) -> int:
    taints = [
        Taint(checkpoint_id=checkpoint, withdrawal_id=withdrawal, preferences=count)
        for (checkpoint, withdrawal), count in sorted(preferences.items())
    ]
    Taint.objects.bulk_create(taints, ignore_conflicts=True)
    return len(taints)
