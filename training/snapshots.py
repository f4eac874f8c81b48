"""The preferences of a project as triples: in a stream, by pages, as a file, and frozen for a run."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Case, JSONField, Max, Q, When

from labeling.models import Preference, Project, Slot, Withdrawal
from labeling.services import freeze_preferences
from labeling.withdrawals import without_unfinished
from training import store
from training.exceptions import Overtaken
from training.jobspec import Completion, TripleLine
from training.models import DatasetSnapshot, PairOrigin
from training.triples import AS_JSON, Judgement, LabelRule, TripleCounts, as_line, derive_triples, without_engine_fields

CHUNK = 1000  # preferences in memory at once


def judgements(
    project: Project, pair_ids: Sequence[int] | None = None, *, reference_hash: str | None = None
) -> Iterator[Judgement]:
    """The project's preferences that count, or those of some pairs, sorted by pair, in a stream.

    ``reference_hash``: also the tokens of the prompt as sampled, and the log-probabilities of their tokens under the
    policy of this content hash, of the pairs that it wrote itself or that an adapter over it wrote and scored.
    """
    current = without_unfinished(project, Preference.objects.counted().filter(project=project))
    rows = (
        (current if pair_ids is None else current.filter(pair_id__in=pair_ids))
        .select_related("pair__prompt", "pair__response_a", "pair__response_b", "rewrite__response")
        .annotate(as_gold=Q(slot__kind=Slot.Kind.GOLD))
        .order_by("pair_id", "pk")
    )
    stream = rows.iterator(chunk_size=CHUNK)
    while chunk := list(islice(stream, CHUNK)):
        known = {} if reference_hash is None else _origins(chunk, reference_hash)
        for preference in chunk:
            yield _judgement(preference, known.get(preference.pair_id, _Origin()))


@dataclass(frozen=True)
class _Origin:
    """What the sampler kept of a pair; nothing of one that came from elsewhere."""

    policy_hash: str = ""
    prompt_token_ids: list[int] = field(default_factory=list)
    logps_a: list[float] = field(default_factory=list)
    logps_b: list[float] = field(default_factory=list)


def _origins(preferences: Sequence[Preference], reference_hash: str) -> dict[int, _Origin]:
    pair_ids = {preference.pair_id for preference in preferences}
    itself, below = Q(policy__content_hash=reference_hash), Q(policy__base__content_hash=reference_hash)
    # Those of other policies, which are most of what is stored, are not read at all.
    kept = [
        Case(When(itself, then=name), When(below, then=f"reference_{name}"), output_field=JSONField())
        for name in ("logps_a", "logps_b")
    ]
    rows = PairOrigin.objects.filter(pair_id__in=pair_ids).values_list("pair_id", "prompt_token_ids", *kept)
    return {
        pair_id: _Origin(reference_hash, prompt_token_ids, logps_a or [], logps_b or [])
        for pair_id, prompt_token_ids, logps_a, logps_b in rows
    }


def _judgement(preference: Any, origin: _Origin) -> Judgement:
    pair, rewrite = preference.pair, getattr(preference, "rewrite", None)
    return Judgement(
        preference_id=preference.pk,
        pair_id=pair.pk,
        prompt_id=pair.prompt_id,
        choice=preference.choice,
        is_held_out=pair.prompt.is_held_out,
        messages=pair.prompt.messages,
        response_a=_completion(pair.response_a, origin.logps_a, origin.policy_hash),
        response_b=_completion(pair.response_b, origin.logps_b, origin.policy_hash),
        prompt_token_ids=origin.prompt_token_ids,
        verdict=pair.adjudicated_choice,
        known_answer=pair.gold_choice,
        p_a=pair.p_a,
        as_gold=preference.as_gold,
        rewrite=Completion(rewrite.response.text) if rewrite else None,
    )


def _completion(response: Any, logps: list[float], policy_hash: str) -> Completion:
    return Completion(response.text, response.token_ids, response.finish_reason, logps, policy_hash if logps else "")


def write_triples(*, project: Project, path: Path, rule: LabelRule | None = None) -> TripleCounts:
    """Write the project's triples as JSONL, one a line, for people: without what only the engine reads."""
    counts = TripleCounts()
    triples = derive_triples(judgements(project), counts, rule)
    write_lines(path, (json.dumps(without_engine_fields(triple), **AS_JSON) for triple in triples))
    return counts


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines through a neighbouring file and a rename, so that nobody sees half of them."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with staging.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


@dataclass(frozen=True)
class TriplePage:
    """Some triples, and the pair to go on after; ``None`` at the end."""

    triples: list[TripleLine]
    next_after: int | None


def triple_page(project: Project, after_pair_id: int, size: int, rule: LabelRule | None = None) -> TriplePage:
    """Triples of the next ``size`` judged pairs after a pair."""
    judged = project.pairs.filter(pk__gt=after_pair_id, judgements_count__gt=0, is_retired=False).order_by("pk")
    pair_ids = list(judged.values_list("pk", flat=True)[:size])
    triples = list(derive_triples(judgements(project, pair_ids), TripleCounts(), rule))
    return TriplePage(triples, pair_ids[-1] if len(pair_ids) == size else None)


def freeze_snapshot(
    *,
    project: Project,
    rule: LabelRule | None = None,
    reference_hash: str = "",
    check: Callable[[TripleCounts], None] | None = None,
) -> tuple[DatasetSnapshot, TripleCounts]:
    """Write the triples of now into an immutable file named by its sha256, and record the preferences behind it.

    The same triples give the same file, hence the same snapshot. ``rule``: how labels come of preferences.
    ``reference_hash``: of the policy whose log-probabilities go along where a sampler kept them. From the moment in
    which they are recorded, the preferences are frozen: their authors change them no more. What ``check`` raises comes
    before that, so that a run that is refused takes nobody's second thoughts away.
    """
    known, counts = count_withdrawals(project), TripleCounts()
    newest = Preference.objects.filter(project=project).aggregate(newest=Max("pk"))["newest"] or 0
    triples = derive_triples(judgements(project, reference_hash=reference_hash), counts, rule)
    snapshot = freeze_lines(
        project=project, lines=map(as_line, triples), counts=counts, newest=newest, known_withdrawals=known, check=check
    )
    return snapshot, counts


def count_withdrawals(project: Project) -> int:
    """Taken before labels are read, and again before they are recorded: a greater one says that some were withdrawn."""
    return Withdrawal.objects.filter(project=project).count()


def freeze_lines(
    *,
    project: Project,
    lines: Iterable[str],
    counts: TripleCounts,
    newest: int,
    known_withdrawals: int,
    check: Callable[[TripleCounts], None] | None = None,
) -> DatasetSnapshot:
    """Freeze triples as they are written, one a line. ``counts`` are complete when the last of ``lines`` is read.

    ``newest``: the newest preference that was looked at. ``known_withdrawals``: as many as there were before any label
    was read; ``Rejected`` where there are more by now.
    """
    draft = Path(settings.DATA_DIR) / "snapshots" / f"draft-{uuid.uuid4().hex}.jsonl"
    write_lines(draft, lines)
    try:
        if check:
            check(counts)
        sha256 = store.hash_file(draft)
        with transaction.atomic():
            _refuse_withdrawn(project, known_withdrawals)
            draft.replace(store.snapshot_path(sha256))
            return _record(project, sha256, counts, newest)
    finally:
        draft.unlink(missing_ok=True)


def _refuse_withdrawn(project: Project, known_withdrawals: int) -> None:
    """Whoever withdraws locks the project as well: one of the two comes second, and sees what the other has written."""
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    if count_withdrawals(project) != known_withdrawals:
        raise Overtaken("Labels were withdrawn while the snapshot was written. Ask for the run again.")


def _record(project: Project, sha256: str, counts: TripleCounts, newest: int) -> DatasetSnapshot:
    without_triple = {"ties": counts.ties, "both_bad": counts.both_bad, "split_votes": counts.split_votes}
    snapshot, created = DatasetSnapshot.objects.get_or_create(
        project=project,
        sha256=sha256,
        defaults={
            "train_triples": counts.train,
            "held_out_triples": counts.held_out,
            "tie_triples": counts.tie_triples,
            "rewrite_triples": counts.rewrites,
            "last_preference_id": newest,
            **without_triple,
        },
    )
    if created:
        snapshot.preferences.set(counts.preference_ids)
    elif snapshot.last_preference_id < newest:  # the same triples; only what gives no triple has become more
        for name, value in (without_triple | {"last_preference_id": newest}).items():
            setattr(snapshot, name, value)
        snapshot.save(update_fields=["last_preference_id", *without_triple])
    freeze_preferences(counts.preference_ids)
    return snapshot
