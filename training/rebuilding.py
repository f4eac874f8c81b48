"""The triples of a run without the labels that were withdrawn since.

A line that none of them is behind keeps its bytes. One that has lost some is derived again from the judgements that
remain, by the rule of the run; one that has lost all goes. Nothing comes in: what was judged since, and a pair whose
votes were split before, are for the next run. So what was learnt for the other lines stays as it was then, such as how
far the others' votes were believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from django.db.models import Count

from labeling.models import Pair, Preference
from labeling.withdrawals import without_unfinished
from training import store
from training.exceptions import Rejected
from training.jobspec import TripleLine
from training.models import DatasetSnapshot, TrainingRun
from training.recipe import MEANT_EARLIER
from training.snapshots import count_withdrawals, freeze_lines, judgements
from training.triples import TIE_NOISE, Judgement, LabelRule, Noise, Ties, TripleCounts, Weight, as_line, derive_triples

CHUNK = 500  # pairs whose judgements are read together


@dataclass
class Rebuilt:
    """What became of the lines of the old snapshot."""

    kept: int = 0
    derived_again: int = 0
    gone: int = 0
    counts: TripleCounts = field(default_factory=TripleCounts)


def rebuild_snapshot(run: TrainingRun, reference_hash: str) -> tuple[DatasetSnapshot, Rebuilt]:
    """Freeze the run's triples without what was withdrawn. ``Rejected`` where the old file is not what it was.

    ``reference_hash``: of the reference that will be trained against.
    """
    path = store.snapshot_path(run.snapshot.sha256)
    if not path.exists() or store.hash_file(path) != run.snapshot.sha256:
        raise Rejected(
            f"The snapshot {run.snapshot.short_hash} is missing or was changed on disk, so nothing can be made from it "
            "again. Restore the file from a backup, or train on the labels of now."
        )
    known = count_withdrawals(run.project)
    remaining = set(_remaining(run.snapshot).values_list("pk", flat=True))
    again = _derived_again(run, _parts(path, remaining), reference_hash)
    rebuilt = Rebuilt()
    lines = _lines(path, remaining, again, rebuilt)
    snapshot = freeze_lines(
        project=run.project,
        lines=lines,
        counts=rebuilt.counts,
        newest=run.snapshot.last_preference_id,
        known_withdrawals=known,
    )
    return snapshot, rebuilt


def _remaining(snapshot: DatasetSnapshot) -> Any:
    return without_unfinished(snapshot.project, snapshot.preferences.filter(withdrawal=None).order_by())


def _parts(path: Path, remaining: set[int]) -> dict[int, set[int]]:
    """The judgements that are left, by pair, of the lines of pairs that have lost some and not all."""
    parts = {}
    for _, line in _read(path):
        left = remaining.intersection(line["preference_ids"])
        if left and len(left) < len(line["preference_ids"]):
            parts[int(line["pair_id"])] = left
    return parts


def _lines(path: Path, remaining: set[int], again: dict[int, TripleLine], rebuilt: Rebuilt) -> Iterator[str]:
    for text, line in _read(path):
        if remaining.issuperset(line["preference_ids"]):
            rebuilt.kept += 1
            triple: TripleLine | None = TripleLine.from_dict(line)
        else:
            triple = again.get(int(line["pair_id"])) if line.get("source", "pair") == "pair" else None
            rebuilt.derived_again += triple is not None
            rebuilt.gone += triple is None
            text = as_line(triple) if triple else ""
        if triple:
            rebuilt.counts.add(triple)
            rebuilt.counts.tie_triples += triple.label_noise == TIE_NOISE and triple.split == "train"
            rebuilt.counts.preference_ids.extend(triple.preference_ids)
            yield text


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            yield text.rstrip("\n"), json.loads(text)


def _derived_again(run: TrainingRun, parts: dict[int, set[int]], reference_hash: str) -> dict[int, TripleLine]:
    rule, pair_ids, found = _rule_of(run), sorted(parts), {}
    for start in range(0, len(pair_ids), CHUNK):
        chunk = pair_ids[start : start + CHUNK]
        alone = _without_others(chunk, parts)
        stream = judgements(run.project, chunk, reference_hash=reference_hash)
        for pair_id, group in groupby(stream, key=attrgetter("pair_id")):
            left = [_believed(one, pair_id in alone) for one in group if one.preference_id in parts[pair_id]]
            of_pair = (triple for triple in derive_triples(left, TripleCounts(), rule) if triple.source == "pair")
            if triple := next(of_pair, None):
                found[pair_id] = triple
    return found


def _without_others(pair_ids: list[int], parts: dict[int, set[int]]) -> set[int]:
    """Pairs on which nobody has said anything but what is left of the line: only of these does the posterior speak."""
    counted = Preference.objects.counted().filter(pair__in=pair_ids).order_by()
    numbers = dict(counted.values_list("pair").annotate(Count("pk")))
    measured = set(Pair.objects.filter(pk__in=pair_ids, p_a__isnull=False).values_list("pk", flat=True))
    return {pair_id for pair_id in measured if numbers.get(pair_id) == len(parts[pair_id])}


def _believed(judgement: Judgement, is_alone: bool) -> Judgement:
    return judgement if is_alone else replace(judgement, p_a=None)


def _rule_of(run: TrainingRun) -> LabelRule:
    said = MEANT_EARLIER | run.recipe
    return LabelRule(cast(Ties, said["ties"]), cast(Noise, said["label_noise"]), cast(Weight, said["pair_weight"]))
