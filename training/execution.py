"""What each kind of job does: how its run directory is prepared, what its engine reports, what is published."""

from __future__ import annotations

import logging
import math
import shutil
from typing import Any
from uuid import UUID, uuid5

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from labeling.exceptions import LabelingError
from labeling.models import Prompt
from labeling.services import NewResponse, add_pair
from training import registry, store
from training.exceptions import JobFailed, LeaseLost, Rejected
from training.jobspec import (
    MergeJob,
    PromptLine,
    Result,
    SampledPair,
    SampledResponse,
    SampleJob,
    TrainJob,
    write_atomically,
    write_job,
)
from training.model_card import render_card
from training.models import (
    Checkpoint,
    CheckpointExport,
    Job,
    PairOrigin,
    Promotion,
    SampleBatch,
    SampleRefusal,
    TrainingRun,
)
from training.recipe import for_engine
from training.rundir import LineReader, RunDir
from training.supervision import Work

log = logging.getLogger(__name__)

PROBES = 24  # held-out prompts that a run's policies answer to be compared
MIN_HASH = 12  # characters of a content hash that name a checkpoint; pages show as many


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
        return True

    def _job(self) -> TrainJob:
        reference = self.job.reference
        root = reference.base or reference
        verified: registry.Verified = {}
        return TrainJob(
            reference=registry.weights_of(reference, verified),
            **self._first(verified),
            seed=self.job.seed,
            base_name=root.public_name or root.name,
            cache_dir=str(settings.CACHE_DIR),
            cache_mb=settings.CACHE_MB,
            threads=settings.ENGINE_THREADS,
            device=settings.ENGINE_DEVICE,
            **for_engine(self.job.recipe),
        )

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
        held_out = Prompt.objects.filter(project=self.job.project, is_held_out=True).order_by("content_hash")
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
            lineage=_lineage(run, result),
            details=result.details,
            checkpoint_uuid=_checkpoint_uuid(run, run.fence),
        )
        try:
            if is_adapter:
                archive = store.archive_path(checkpoint.uuid, "adapter")
                store.write_archive(store.checkpoint_dir(checkpoint.uuid), archive, checkpoint.name)
            with transaction.atomic():
                checkpoint.save()
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
    return {
        "reference": {"name": run.reference.name, "content_hash": run.reference.content_hash},
        "snapshot": {name: getattr(snapshot, name) for name in counted},
        "recipe": run.recipe,
        "seed": run.seed,
        "versions": result.details.get("versions", {}),
        "created_at": timezone.now().isoformat(timespec="seconds"),
    }


class Sampling(Work[SampleBatch]):
    """Two responses a prompt; each pair is published as soon as the engine has written it.

    Its place in the queue is -abs(margin): the less the policy knows which response is better, the sooner people are
    asked. What has no margin is as uncertain as can be, and among equals chance decides.
    """

    module = "sample"

    def __init__(self, job: SampleBatch, run_dir: RunDir) -> None:
        super().__init__(job, run_dir)
        self.pairs = LineReader(run_dir.samples)
        self.lines = LineReader(run_dir.metrics)
        self.progress: dict[str, Any] = {"phase": "starting", "total": job.wanted}
        self.prompts: dict[int, Prompt] = {}

    def prepare(self) -> bool:
        self.prompts = Prompt.objects.select_related("project").in_bulk(self.job.prompt_ids)
        wanted = [self.prompts[pk] for pk in self.job.prompt_ids if pk in self.prompts]
        lines = (PromptLine(str(prompt.pk), prompt.messages).to_json() + "\n" for prompt in wanted)
        with self.run_dir.dataset.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        job = SampleJob(
            model=registry.weights_of(self.job.policy),
            seed=self.job.seed,
            threads=settings.ENGINE_THREADS,
            device=settings.ENGINE_DEVICE,
            beta=_implicit_beta(self.job.policy),
            **_backend(self.job.policy),
            **self.job.decoding,
        )
        write_job(self.run_dir.path, job)
        return bool(wanted)

    def tick(self) -> dict[str, Any]:
        for line in self.lines.new_lines():
            self.progress |= line
        for line in self.pairs.new_lines():
            self._take(SampledPair.from_dict(line))
        self.progress["done"] = self.job.pairs_made + self.job.prompts_refused
        return dict(self.progress)

    def _take(self, sampled: SampledPair) -> None:
        """Publish one pair, once: an attempt that starts again reads the same lines again."""
        prompt = self.prompts[int(sampled.prompt_id)]
        key = {"batch": self.job, "prompt": prompt}
        if PairOrigin.objects.filter(**key).exists() or SampleRefusal.objects.filter(**key).exists():
            return
        with transaction.atomic():
            if not sampled.refused:
                sampled = self._add(prompt, sampled)
            if sampled.refused:
                SampleRefusal.objects.create(**key, reason=sampled.refused)
                counted = {"prompts_refused": F("prompts_refused") + 1}
            else:
                counted = {"pairs_made": F("pairs_made") + 1}
            if not self.job.update_held(**counted):
                raise LeaseLost
        self.job.refresh_from_db(fields=["pairs_made", "prompts_refused"])

    def _add(self, prompt: Prompt, sampled: SampledPair) -> SampledPair:
        first, second = sampled.responses
        margin = sampled.margin if sampled.margin is not None and math.isfinite(sampled.margin) else None
        try:
            pair = add_pair(
                prompt=prompt,
                responses=(_new_response(first), _new_response(second)),
                priority=self._round() + _uncertainty(margin),
            )
        except LabelingError as error:
            return SampledPair(sampled.prompt_id, refused=str(error))
        PairOrigin.objects.create(
            pair=pair,
            batch=self.job,
            policy=self.job.policy,
            prompt=prompt,
            seed_a=first.seed,
            seed_b=second.seed,
            attempts=sampled.attempts,
            prompt_token_ids=sampled.prompt_token_ids,
            logps_a=_usable_logps(first, first.logps),
            logps_b=_usable_logps(second, second.logps),
            reference_logps_a=_usable_logps(first, first.reference_logps),
            reference_logps_b=_usable_logps(second, second.reference_logps),
            margin=margin,
        )
        return sampled

    def _round(self) -> int:
        """How many policies there had been when this one was promoted last: what the newest writes is judged first."""
        promotions = Promotion.objects.filter(project=self.job.project)
        newest = promotions.filter(checkpoint=self.job.policy).order_by("-pk").values_list("pk", flat=True).first()
        return promotions.filter(pk__lte=newest or 0).count()

    def publish(self, result: Result) -> None:
        if not self.job.finish(Job.State.SUCCEEDED):
            raise LeaseLost
        self.run_dir.remove()  # all of it is in the database


def _uncertainty(margin: float | None) -> float:
    """From 1, excluded, for a margin of zero down to 0; what has no margin is in the middle."""
    return 0.5 if margin is None else 0.999 / (1.0 + abs(margin))


def _backend(policy: Checkpoint) -> dict[str, Any]:
    """Where responses are written: by the inference server if it holds the policy's weights, else by the engine."""
    if not settings.SAMPLING_SERVER_URL or not _is_on_server(policy.base or policy):
        return {}
    return {
        "backend": "server",
        "server_url": settings.SAMPLING_SERVER_URL,
        "server_model": settings.SAMPLING_SERVER_MODEL,
    }


def _is_on_server(root: Checkpoint) -> bool:
    named = settings.SAMPLING_SERVER_CHECKPOINT
    return named == root.name or (len(named) >= MIN_HASH and root.content_hash.startswith(named))


def _implicit_beta(policy: Checkpoint) -> float:
    """Beta of the run that made an adapter, the usual one where no run is known; 0 for full weights, which nothing here
    could measure from their reference. Within one policy only the order of margins matters, so any beta serves."""
    if not policy.is_adapter:
        return 0.0
    run = TrainingRun.objects.filter(checkpoint=policy).first()
    return run.beta if run else TrainJob.beta


def _usable_logps(sampled: SampledResponse, logps: list[float]) -> list[float]:
    """One finite value a token, or none: what cannot be a reference is better computed than trusted."""
    fits = len(logps) == len(sampled.token_ids) and all(map(math.isfinite, logps))
    return logps if fits else []


def _new_response(sampled: SampledResponse) -> NewResponse:
    return NewResponse(sampled.text, sampled.token_ids, sampled.finish_reason)


class Export(Work[CheckpointExport]):
    """An archive of full weights: the adapter folded into its base, or the directory as it is."""

    module = "merge"

    def prepare(self) -> bool:
        checkpoint = self.job.checkpoint
        model = registry.weights_of(checkpoint)
        if not checkpoint.is_adapter:
            return False
        write_job(self.run_dir.path, MergeJob(model=model))
        return True

    def tick(self) -> dict[str, Any]:
        return {"phase": "merging the adapter into its base"}

    def publish(self, result: Result) -> None:
        checkpoint = self.job.checkpoint
        directory = store.checkpoint_dir(checkpoint.uuid)
        if checkpoint.is_adapter:
            directory = _merged_directory(checkpoint, self.run_dir)
        target = store.archive_path(checkpoint.uuid, "merged")
        sha256, size = store.write_archive(directory, target, f"{checkpoint.name}-merged")
        with transaction.atomic():
            if not self.job.update_held(sha256=sha256, size_bytes=size) or not self.job.finish(Job.State.SUCCEEDED):
                raise LeaseLost
        self.run_dir.remove()


def _merged_directory(checkpoint: Checkpoint, run_dir: RunDir) -> Any:
    """Describe the merged weights: the adapter's own manifest, with the files of the full model and no base."""
    files = store.list_files(run_dir.checkpoint)
    manifest = store.read_manifest(checkpoint.uuid) | {
        "name": f"{checkpoint.name}-merged",
        "base": None,
        "merged_from": checkpoint.content_hash,
        "content_hash": store.content_hash(files),
        "files": [vars(file) for file in files],
    }
    store.write_manifest(run_dir.checkpoint, manifest, render_card(manifest))
    return run_dir.checkpoint
