"""A gate's measurement: its directory, its progress, its report, and the pairs that people are asked about."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.db import transaction

from labeling.models import Project, Prompt
from labeling.services import NewResponse
from training import gate_pairs, registry
from training.canaries import canary_lines
from training.exceptions import LeaseLost, Rejected
from training.execution.decoding import decoding_in_use
from training.jobspec import (
    ComparedAnswers,
    CompareJob,
    Completion,
    JsonRecord,
    ModelRef,
    PromptLine,
    Result,
    TrainJob,
    write_job,
)
from training.models import Checkpoint, Gate, GatePair, Job, Promotion, TrainingRun
from training.rundir import LineReader, RunDir
from training.snapshots import judgements, write_lines
from training.supervision import Work
from training.triples import TripleCounts, as_line, derive_triples

log = logging.getLogger(__name__)


class Comparing(Work[Gate]):
    """Candidate and current policy on the same prompts and labels. The scheduler decides on what it finds."""

    module = "compare_policies"

    def __init__(self, job: Gate, run_dir: RunDir) -> None:
        super().__init__(job, run_dir)
        self.lines = LineReader(run_dir.metrics)
        self.progress: dict[str, Any] = {"phase": "starting"}

    def prepare(self) -> bool:
        job = self._job()
        _write(self.run_dir.probes, self._probes())
        if not job.answers_only:
            self._write_triples(job.first)
            _write(self.run_dir.canaries, canary_lines())
        write_job(self.run_dir.path, job)
        return True

    def _job(self) -> CompareJob:
        gate = self.job
        verified: registry.Verified = {}
        decoding = decoding_in_use(gate.project)
        candidate, current = (registry.weights_of(side, verified) for side in (gate.candidate, gate.current))
        return CompareJob(
            candidate=candidate,
            current=current,
            first=self._first(verified),
            seed=gate.seed,
            answers_only=gate.kind == Gate.Kind.WATCH,
            max_new_tokens=min(CompareJob.max_new_tokens, decoding.max_new_tokens),
            asks_people=bool(gate.setting("asks_people")),
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            asked_tokens=decoding.max_new_tokens,
            cache_dir=str(settings.CACHE_DIR),
            cache_mb=settings.CACHE_MB,
            threads=settings.ENGINE_THREADS,
            device=settings.ENGINE_DEVICE,
            **_as_trained(gate.candidate),
        )

    def _first(self, verified: registry.Verified) -> ModelRef | None:
        """The policy that both are measured from. A comparison does without a damaged one, and then says less."""
        first = Promotion.first_checkpoint(self.job.project)
        if first is None or not _is_or_descends(self.job.candidate, first):
            return None
        try:
            return registry.weights_of(first, verified)
        except (Rejected, OSError) as error:
            log.warning("%s does without the first policy: %s", self.job, error)
            return None

    def _probes(self) -> Iterable[PromptLine]:
        prompts = Prompt.objects.in_use().in_bulk(self.job.prompt_ids)
        for pk in self.job.prompt_ids:
            if pk in prompts:
                yield PromptLine(str(pk), prompts[pk].messages)

    def _write_triples(self, first: ModelRef | None) -> None:
        """Those of now, not those that the candidate was trained on: the judge may know more than it.

        Without the pairs of gates, this one's or another's. The two policies that are compared wrote them, and how many
        there are was decided by what they said; an interval that is meant for so many, whatever they say, does not hold
        on them. A candidate that is compared again would be measured twice by the same votes.
        """
        known = (first.adapter_hash or first.base_hash) if first else ""
        of_gates = set(GatePair.objects.filter(gate__project=self.job.project).values_list("pair_id", flat=True))
        found = judgements(self.job.project, reference_hash=known or None)
        rows = (row for row in found if row.pair_id not in of_gates)
        write_lines(self.run_dir.dataset, map(as_line, derive_triples(rows, TripleCounts())))

    def tick(self) -> dict[str, Any]:
        for line in self.lines.new_lines():
            if line.get("phase") != self.progress.get("phase"):
                self.progress = {}
            self.progress |= line
        return dict(self.progress)

    def publish(self, result: Result) -> None:
        """Keep the report, and ask people about the answers if the rule wants that. The scheduler goes on from here."""
        gate = self.job
        answers = [ComparedAnswers.from_dict(line) for line in LineReader(self.run_dir.responses).new_lines()]
        different = [item for item in answers if not item.are_identical]
        report = result.details | {"answers": {"different": len(different), "identical": len(answers) - len(different)}}
        with transaction.atomic():
            # The project before the gate, as whoever promotes locks them.
            Project.objects.select_for_update(no_key=True).get(pk=gate.project_id)
            if not gate.update_held(report=report):
                raise LeaseLost
            is_wanted = Gate.objects.filter(pk=gate.pk, stage=Gate.Stage.MEASURING).exists()
            if is_wanted and (gate.kind == Gate.Kind.WATCH or gate_pairs.wants_people(gate, report)):
                _ask_about(gate, different)
            if not gate.finish(Job.State.SUCCEEDED):
                raise LeaseLost
        self.run_dir.drop_inputs()


def _ask_about(gate: Gate, different: list[ComparedAnswers]) -> None:
    """What reads the same on both sides is nothing to ask about; the report counts it."""
    prompts = Prompt.objects.select_related("project").in_bulk([int(item.prompt_id) for item in different])
    for item in different:
        if prompt := prompts.get(int(item.prompt_id)):
            gate_pairs.add_gate_pair(gate, prompt, _response(item.candidate), _response(item.current))


def _response(completion: Completion) -> NewResponse:
    return NewResponse(completion.text, completion.token_ids, completion.finish_reason)


def _as_trained(candidate: Checkpoint) -> dict[str, Any]:
    """Beta and maximum length of the run that made it, so that held-out pairs are read as that run has read them."""
    run = TrainingRun.objects.filter(checkpoint=candidate).first()
    recipe = run.recipe if run else {}
    return {name: recipe.get(name, getattr(TrainJob, name)) for name in ("beta", "max_length")}


def _is_or_descends(checkpoint: Checkpoint, first: Checkpoint) -> bool:
    return checkpoint.content_hash == first.content_hash or checkpoint.descends_from(first)


def _write(path: Any, records: Iterable[JsonRecord]) -> None:
    write_lines(path, (json.dumps(record.to_dict(), ensure_ascii=False) for record in records))
