"""What every part of a training run stands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from training.engine.compute import Compute
from training.engine.journal import MetricsJournal
from training.engine.memory import Plan
from training.engine.preference_data import PreferenceData
from training.engine.reference import Start
from training.engine.scoring import Scorer
from training.jobspec import TrainJob

TICK = 8  # pairs or responses between two lines of progress


@dataclass
class Setting:
    """A job, read and loaded: where it runs, on what, with what data."""

    run_dir: Path
    job: TrainJob
    compute: Compute
    metrics: MetricsJournal
    tokenizer: PreTrainedTokenizerBase
    start: Start
    data: PreferenceData
    scorer: Scorer
    plan: Plan

    def tick(self, phase: str) -> Callable[[int, int], None]:
        """Tells how far ``phase`` has come, now and then."""

        def told(done: int, total: int) -> None:
            if done % TICK == 0 or done == total:
                self.metrics.phase(phase, done=done, total=total)

        return told
