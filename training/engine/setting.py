"""What every part of a training run stands on."""

from __future__ import annotations

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
