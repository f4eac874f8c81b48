"""From a checkpoint back to each label that made it, and from a label to what it went into. Pure reading."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import Count, Exists, OuterRef, Q

from labeling.models import Pair, Preference, Prompt
from training import store
from training.jobspec import TrainedPair
from training.models import Checkpoint, DatasetSnapshot, Taint, TrainingRun
from training.rundir import RunDir

TRIPLES_PER_PAGE = 25
PREVIEW = 200
BY_PULL, BY_LINE = "pull", "line"


# Taints


def taints_of(checkpoint: Checkpoint) -> list[Taint]:
    """The withdrawals that reach it, newest first: of labels in its own snapshot, or by what it descends from."""
    rows = Taint.objects.filter(checkpoint=checkpoint).select_related(
        "withdrawal__annotator", "withdrawal__prompt", "withdrawal__preference"
    )
    return list(rows.order_by("-withdrawal"))


def tainted(checkpoints: Iterable[Checkpoint]) -> set[int]:
    """Those of them that a withdrawal reaches, by primary key."""
    ids = [checkpoint.pk for checkpoint in checkpoints]
    return set(Taint.objects.filter(checkpoint__in=ids).order_by().values_list("checkpoint", flat=True))


# Back from a checkpoint


@dataclass(frozen=True)
class Ancestor:
    """One step back: what a checkpoint was trained from, or the base below it. ``run``: what made it, if one did."""

    checkpoint: Checkpoint
    run: TrainingRun | None
    is_base: bool


def ancestors(checkpoint: Checkpoint) -> list[Ancestor]:
    """The reference that it was trained against, that one's, and so on back to the first; its base last."""
    found: list[Ancestor] = []
    seen = {checkpoint.pk}
    here: Checkpoint | None = checkpoint
    while here is not None:
        earlier, is_base = (here.parent, False) if here.parent_id not in (None, *seen) else (here.base, True)
        if earlier is None or earlier.pk in seen:
            break
        seen.add(earlier.pk)
        found.append(Ancestor(earlier, run_of(earlier), is_base))
        here = earlier
    return found


def run_of(checkpoint: Checkpoint) -> TrainingRun | None:
    runs = TrainingRun.objects.filter(checkpoint=checkpoint)
    return runs.select_related("project", "snapshot", "reference", "rebuild_of").first()


@dataclass(frozen=True)
class Labeller:
    """How many judgements behind a snapshot somebody gave under one version of the guidelines."""

    name: str
    user_id: int
    guidelines_version: int
    judgements: int
    withdrawn: int


def labellers(snapshot: DatasetSnapshot) -> list[Labeller]:
    rows = snapshot.preferences.order_by("annotator__username", "guidelines_version")
    grouped = rows.values_list("annotator__username", "annotator", "guidelines_version")
    counted = grouped.annotate(judgements=Count("pk"), withdrawn=Count("pk", filter=Q(withdrawal__isnull=False)))
    return [Labeller(*row) for row in counted]


@dataclass(frozen=True)
class Label:
    """One judgement behind a triple."""

    name: str
    guidelines_version: int
    is_withdrawn: bool


@dataclass(frozen=True)
class TripleRow:
    """A line of a snapshot as people read it. ``pulled``: how hard the loss pulled at it; of held-out ones nothing.

    ``is_withheld``: its reader has still to judge the pair, so which response was chosen is not told.
    """

    line: int
    pair_id: int
    source: str
    split: str
    prompt: str
    chosen: str
    rejected: str
    weight: float
    label_noise: float
    labels: list[Label]
    pulled: TrainedPair | None
    share: float | None
    is_withheld: bool


@dataclass(frozen=True)
class TriplePage:
    """``page``: of line numbers, for the pagination; ``is_missing``: the file of the snapshot is not there."""

    page: Page[int]
    rows: list[TripleRow]
    order: str
    has_pulls: bool
    is_missing: bool


def trained_pairs(run: TrainingRun) -> dict[int, TrainedPair]:
    """What the engine recorded of each training triple, by its line; empty of earlier versions."""
    try:
        text = RunDir.of(run.uuid).training_pairs.read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (TrainedPair.from_dict(json.loads(line)) for line in text.splitlines())
    return {pair.line: pair for pair in pairs}


def triple_page(run: TrainingRun, number: str | None, order: str, withheld: Collection[int] = ()) -> TriplePage:
    """Triples of the run's snapshot: those that were pulled at hardest first, or as they stand in the file.

    Withheld pairs come last by pull, for their place would say how sure the policy is of them.
    """
    pulled = trained_pairs(run)
    order = order if pulled and order == BY_PULL else BY_LINE
    lines = range(1, run.snapshot.train_triples + run.snapshot.held_out_triples + 1)
    if order == BY_PULL:
        hidden = set(map(str, withheld))
        by_pull = sorted(pulled.values(), key=lambda pair: (pair.pair_id in hidden, -pair.pull, pair.line))
        lines = [pair.line for pair in by_pull]  # type: ignore[assignment]
    page = Paginator(lines, TRIPLES_PER_PAGE).get_page(number)
    try:
        found = _lines_of(run.snapshot, list(page.object_list))
    except OSError:
        return TriplePage(page, [], order, bool(pulled), is_missing=True)
    whole = sum(pair.pull for pair in pulled.values())
    return TriplePage(page, _rows(found, pulled, whole, withheld), order, bool(pulled), is_missing=False)


def _lines_of(snapshot: DatasetSnapshot, wanted: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    """The wanted lines of its file in the wanted order; the others are read past and not parsed."""
    found: dict[int, dict[str, Any]] = {}
    with store.snapshot_path(snapshot.sha256).open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if number in wanted:
                found[number] = json.loads(text)
            if len(found) == len(wanted):
                break
    return [(number, found[number]) for number in wanted if number in found]


def _rows(
    found: Sequence[tuple[int, dict[str, Any]]],
    pulled: dict[int, TrainedPair],
    whole: float,
    withheld: Collection[int],
) -> list[TripleRow]:
    ids = [pk for _, line in found for pk in line["preference_ids"]]
    labels = {
        pk: Label(name, version, withdrawal is not None)
        for pk, name, version, withdrawal in Preference.objects.filter(pk__in=ids).values_list(
            "pk", "annotator__username", "guidelines_version", "withdrawal"
        )
    }
    return [_row(number, line, labels, pulled.get(number), whole, withheld) for number, line in found]


def _row(
    number: int,
    line: dict[str, Any],
    labels: dict[int, Label],
    pulled: TrainedPair | None,
    whole: float,
    withheld: Collection[int],
) -> TripleRow:
    return TripleRow(
        line=number,
        pair_id=int(line["pair_id"]),
        source=line.get("source", "pair"),
        split=line["split"],
        prompt=str(Prompt(messages=line["messages"])),
        chosen=_preview(line["chosen"]["text"]),
        rejected=_preview(line["rejected"]["text"]),
        weight=line["weight"],
        label_noise=line["label_noise"],
        labels=[labels[pk] for pk in line["preference_ids"] if pk in labels],
        pulled=pulled,
        share=pulled.pull / whole if pulled and whole else None,
        is_withheld=int(line["pair_id"]) in withheld,
    )


def _preview(text: str) -> str:
    return text if len(text) <= PREVIEW else f"{text[: PREVIEW - 1]}…"


# On from a label


@dataclass(frozen=True)
class Use:
    """A judgement, and the runs whose snapshots have it, newest first."""

    preference: Preference
    runs: list[TrainingRun]


def uses_of(pair: Pair) -> list[Use]:
    """Each judgement of the pair that is of now or went into a dataset, with the runs that used it."""
    used = DatasetSnapshot.preferences.through.objects.filter(preference=OuterRef("pk"))
    rows = Preference.objects.filter(Q(is_current=True) | Exists(used), pair=pair)
    preferences = list(rows.select_related("annotator", "withdrawal").order_by("pk"))
    runs: dict[int, list[TrainingRun]] = {}
    through = DatasetSnapshot.preferences.through.objects.filter(preference__in=preferences)
    snapshots = list(through.values_list("preference", "datasetsnapshot"))
    found = TrainingRun.objects.filter(snapshot__in={snapshot for _, snapshot in snapshots})
    for run in found.select_related("project", "checkpoint", "snapshot"):
        runs.setdefault(run.snapshot_id, []).append(run)
    by_preference: dict[int, list[TrainingRun]] = {}
    for preference_id, snapshot_id in snapshots:
        by_preference.setdefault(preference_id, []).extend(runs.get(snapshot_id, []))
    return [Use(one, sorted(by_preference.get(one.pk, []), key=lambda run: -run.number)) for one in preferences]


def later_than(uses: Sequence[Use]) -> Iterator[Checkpoint]:
    """The checkpoints that runs made of these judgements, each once, newest first."""
    found = {run.checkpoint.pk: run.checkpoint for use in uses for run in use.runs if run.checkpoint}
    yield from sorted(found.values(), key=lambda checkpoint: -checkpoint.pk)
