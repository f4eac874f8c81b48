"""What a promotion changed on judged pairs: both policies read them and answer their prompts."""

from __future__ import annotations

import math
from typing import Any

from django.conf import settings
from django.db import transaction

from labeling.models import Pair, Response
from training import registry
from training.exceptions import JobFailed, LeaseLost
from training.execution.decoding import decoding_in_use
from training.jobspec import Completion, EffectsJob, JudgedPair, PairEffect, Result, write_atomically, write_job
from training.models import Job, LabelEffect, LabelEffects, Promotion
from training.rundir import LineReader, RunDir
from training.supervision import Work


class Effects(Work[LabelEffects]):
    """The policy before a promotion and the one after it. Whatever becomes of this, the promotion stands."""

    module = "label_effects"

    def __init__(self, job: LabelEffects, run_dir: RunDir) -> None:
        super().__init__(job, run_dir)
        self.lines = LineReader(run_dir.metrics)
        self.progress: dict[str, Any] = {"phase": "starting", "total": len(job.pair_ids)}

    def prepare(self) -> bool:
        lines = [_line(pair) for pair in self._pairs()]
        write_atomically(self.run_dir.dataset, "".join(line.to_json() + "\n" for line in lines))
        if not lines:
            return False
        promotion = self.job.promotion
        first = Promotion.first_checkpoint(self.job.project)
        if first is None:
            raise JobFailed("no_policy", "The project has no first policy to measure from.")
        verified: registry.Verified = {}
        job = EffectsJob(
            before=registry.weights_of(self.job.before, verified),
            after=registry.weights_of(promotion.checkpoint, verified),
            first=registry.weights_of(first, verified),
            seed=self.job.seed,
            threads=settings.ENGINE_THREADS,
            device=settings.ENGINE_DEVICE,
            **decoding_in_use(self.job.project).to_dict(),
        )
        write_job(self.run_dir.path, job)
        return True

    def _pairs(self) -> list[Pair]:
        """Those that are still there: a pair may be taken out, and a prompt withdrawn, before a worker is free."""
        pairs = Pair.objects.filter(pk__in=self.job.pair_ids, is_retired=False, prompt__withdrawn_at=None)
        return list(pairs.select_related("prompt", "response_a", "response_b").order_by("pk"))

    def tick(self) -> dict[str, Any]:
        for line in self.lines.new_lines():
            self.progress |= line
        return dict(self.progress)

    def publish(self, result: Result) -> None:
        there = {pair.pk for pair in self._pairs()}
        found = [PairEffect.from_dict(line) for line in LineReader(self.run_dir.effects).new_lines()]
        rows = [_row(self.job, effect) for effect in found if int(effect.pair_id) in there and _is_finite(effect)]
        with transaction.atomic():
            LabelEffect.objects.filter(effects=self.job).delete()  # of an attempt before
            LabelEffect.objects.bulk_create(rows)
            if not self.job.finish(Job.State.SUCCEEDED):
                raise LeaseLost
        self.run_dir.remove()


def _line(pair: Pair) -> JudgedPair:
    return JudgedPair(
        pair_id=str(pair.pk),
        prompt_id=str(pair.prompt_id),
        messages=pair.prompt.messages,
        response_a=_completion(pair.response_a),
        response_b=_completion(pair.response_b),
    )


def _completion(response: Response) -> Completion:
    return Completion(response.text, response.token_ids, response.finish_reason)  # type: ignore[arg-type]


def _is_finite(effect: PairEffect) -> bool:
    return math.isfinite(effect.margin_before) and math.isfinite(effect.margin_after)


def _row(effects: LabelEffects, effect: PairEffect) -> LabelEffect:
    return LabelEffect(
        effects=effects,
        pair_id=int(effect.pair_id),
        margin_before=effect.margin_before,
        margin_after=effect.margin_after,
        answer_before=effect.answer_before,
        answer_after=effect.answer_after,
    )
