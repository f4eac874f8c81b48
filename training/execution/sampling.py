"""A batch: its prompts, its pairs, where they are written."""

from __future__ import annotations

import logging
import math
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F

from labeling.exceptions import LabelingError
from labeling.models import Prompt
from labeling.services import NewResponse, add_pair
from training import registry
from training.exceptions import LeaseLost
from training.jobspec import (
    PromptLine,
    Result,
    SampledPair,
    SampledResponse,
    SampleJob,
    TrainJob,
    write_job,
)
from training.models import (
    Checkpoint,
    Job,
    PairOrigin,
    Promotion,
    SampleBatch,
    SampleRefusal,
    TrainingRun,
)
from training.rundir import LineReader, RunDir
from training.supervision import Work

log = logging.getLogger(__name__)

MIN_HASH = 12  # characters of a content hash that name a checkpoint; pages show as many


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
        self.prompts = Prompt.objects.in_use().select_related("project").in_bulk(self.job.prompt_ids)
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
        prompt = self.prompts.get(int(sampled.prompt_id))
        if prompt is None:  # withdrawn since an earlier attempt
            return
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
