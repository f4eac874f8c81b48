"""A DPO run: its directory, its progress, its checkpoint."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid5

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from labeling.models import Prompt
from training import provenance, reference_choice, registry, store, taints
from training.exceptions import JobFailed, LeaseLost, Rejected
from training.execution.decoding import decoding_in_use
from training.jobspec import (
    PromptLine,
    Result,
    TrainJob,
    read_job,
    write_atomically,
    write_job,
)
from training.models import (
    Checkpoint,
    Job,
    Promotion,
    TrainingRun,
)
from training.recipe import for_engine
from training.rundir import LineReader, RunDir
from training.supervision import Work

log = logging.getLogger(__name__)

PROBES = 24  # held-out prompts that a run's policies answer to be compared


class Training(Work[TrainingRun]):
    """DPO on a snapshot."""

    module = "train_dpo"

    def __init__(self, job: TrainingRun, run_dir: RunDir) -> None:
        super().__init__(job, run_dir)
        self.lines = LineReader(run_dir.metrics)
        self.progress: dict[str, Any] = {"phase": "starting"}

    def prepare(self) -> bool:
        self._discard_leftovers()
        if self.job.attempt == 1:  # also of a run that somebody has resumed
            self.run_dir.memory_ran_out.unlink(missing_ok=True)
        snapshot = store.snapshot_path(self.job.snapshot.sha256)
        if not snapshot.exists() or store.hash_file(snapshot) != self.job.snapshot.sha256:
            raise JobFailed(
                "snapshot_damaged",
                f"The snapshot {self.job.snapshot.short_hash} is missing or was changed on disk, so it is not used.",
                "Restore the file from a backup, or start a new run: it freezes a new snapshot.",
            )
        self.run_dir.dataset.unlink(missing_ok=True)
        shutil.copyfile(snapshot, self.run_dir.dataset)
        self._write_probes()
        write_job(self.run_dir.path, self._job())
        provenance.note_code(self.run_dir)
        return True

    def _job(self) -> TrainJob:
        reference = self.job.reference
        root = reference.base or reference
        verified: registry.Verified = {}
        return TrainJob(
            reference=registry.weights_of(reference, verified),
            **self._first(verified),
            kl_first_budget=reference_choice.budget_of(self.job.project),
            probe_tokens=self._probe_tokens(),
            seed=self.job.seed,
            base_name=root.public_name or root.name,
            cache_dir=str(settings.CACHE_DIR),
            cache_mb=settings.CACHE_MB,
            threads=settings.ENGINE_THREADS,
            device=settings.ENGINE_DEVICE,
            **for_engine(self.job.recipe),
        )

    def _probe_tokens(self) -> int:
        """As long as the project's pairs may be, and no longer than is worth the time; kept by a run that goes on."""
        with suppress(FileNotFoundError):
            return read_job(self.run_dir.path, TrainJob).probe_tokens
        return min(TrainJob.probe_tokens, decoding_in_use(self.job.project).max_new_tokens)

    def _first(self, verified: registry.Verified) -> dict[str, Any]:
        """The first policy, to measure the drift from. It only measures, so a run does without a damaged one."""
        first, reference = Promotion.first_checkpoint(self.job.project), self.job.reference
        if first is None or first.content_hash == reference.content_hash:
            return {"first": None, "first_is_reference": first is not None}
        behind = Promotion.first_behind(self.job.project, reference)
        try:
            found = registry.weights_of(behind, verified) if behind else None
        except (Rejected, OSError) as error:
            log.warning("%s does without the first policy: %s", self.job, error)
            found = None
        return {"first": found, "first_is_reference": False}

    def _write_probes(self) -> None:
        """The prompts that policies are compared on. A run that goes on keeps those that it has begun with."""
        if self.run_dir.probes.exists():
            return
        prompts = Prompt.objects.in_use().filter(project=self.job.project, is_held_out=True)
        held_out = prompts.order_by("content_hash")
        lines = [PromptLine(str(prompt.pk), prompt.messages).to_json() + "\n" for prompt in held_out[:PROBES]]
        write_atomically(self.run_dir.probes, "".join(lines))

    def _discard_leftovers(self) -> None:
        """A worker that died between publishing its checkpoint and committing the row left the directory behind."""
        for fence in range(1, self.job.fence):
            leftover = _checkpoint_uuid(self.job, fence)
            if not Checkpoint.objects.filter(uuid=leftover).exists():
                store.discard(leftover)

    def tick(self) -> dict[str, Any]:
        for line in self.lines.new_lines():
            if line.get("phase") != self.progress.get("phase") and "phase" in line:
                for counter in ("done", "total"):  # of the phase before
                    self.progress.pop(counter, None)
            self.progress |= line
        return dict(self.progress)

    def memory_ran_out(self) -> None:
        """In a step: the engine finds the mark and takes half of its micro-batch, once. Other phases have no half."""
        if self.progress.get("phase") != "training":
            return
        if self.run_dir.memory_ran_out.exists():
            raise JobFailed(
                "out_of_memory",
                "Memory ran out twice, the second time with half as much at once, and the kernel ended the engine.",
                "If something else held the memory, stop that and press Resume: the run goes on from its last saved "
                "step. Otherwise start a new run with the fast mode or a shorter maximum length, or use a machine with "
                "more memory.",
            )
        self.run_dir.memory_ran_out.touch()
        log.warning("%s: memory ran out; half the micro-batch from now on", self.job)

    def publish(self, result: Result) -> None:
        run = self.job
        if not run.renew():  # or the directory may be that of the worker who has the run now
            raise LeaseLost
        is_adapter = run.recipe["method"] == "lora"
        checkpoint = registry.register(
            staging_name=f"{run.uuid}-{run.fence}",
            source=self.run_dir.checkpoint,
            kind=Checkpoint.Kind.DPO,
            name=f"{run.project.slug}-dpo-{run.number}",
            project=run.project,
            base=(run.reference.base or run.reference) if is_adapter else None,
            parent=run.reference,
            public_name="" if is_adapter else f"{run.project.slug}-dpo-{run.number}",
            licence=run.reference.licence,
            lineage=_lineage(run, result) | provenance.of_run(self.run_dir, result),
            details=result.details,
            checkpoint_uuid=_checkpoint_uuid(run, run.fence),
        )
        try:
            if is_adapter:
                archive = store.archive_path(checkpoint.uuid, "adapter")
                store.write_archive(store.checkpoint_dir(checkpoint.uuid), archive, checkpoint.name)
            with transaction.atomic():
                checkpoint.save()
                taints.mark_published(checkpoint, run)
                if not run.update_held(checkpoint=checkpoint) or not run.finish(Job.State.SUCCEEDED):
                    raise LeaseLost
        except LeaseLost:
            # Only here is it sure that no row names the directory: a commit may succeed and still report an error.
            store.discard(checkpoint.uuid)
            raise
        self.run_dir.drop_inputs()


def _checkpoint_uuid(run: TrainingRun, fence: int) -> UUID:
    return uuid5(run.uuid, str(fence))


def _lineage(run: TrainingRun, result: Result) -> dict[str, Any]:
    snapshot = run.snapshot
    of_triples = ("train_triples", "held_out_triples", "tie_triples", "rewrite_triples")
    counted = ("sha256", *of_triples, "ties", "both_bad", "split_votes")
    reference = {"name": run.reference.name, "content_hash": run.reference.content_hash}
    return {
        "reference": reference | ({"reason": run.reference_reason} if run.reference_reason else {}),
        "snapshot": {name: getattr(snapshot, name) for name in counted},
        "recipe": run.recipe,
        "seed": run.seed,
        "versions": result.details.get("versions", {}),
        "created_at": timezone.now().isoformat(timespec="seconds"),
    }
