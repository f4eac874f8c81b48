"""Labels in, policies out: snapshots of triples, jobs, checkpoints and promotions."""

from training.models.checkpoints import Checkpoint, CheckpointExport, Promotion
from training.models.jobs import Job, new_seed
from training.models.loop import LoopRule
from training.models.runs import DatasetSnapshot, TrainingRun
from training.models.sampling import PairOrigin, SampleBatch, SampleRefusal

__all__ = [
    "Checkpoint",
    "CheckpointExport",
    "DatasetSnapshot",
    "Job",
    "LoopRule",
    "PairOrigin",
    "Promotion",
    "SampleBatch",
    "SampleRefusal",
    "TrainingRun",
    "new_seed",
]
