"""Labels in, policies out: snapshots of triples, jobs, checkpoints, gates and promotions."""

from training.models.answers import LabelEffect, LabelEffects, SideBySide
from training.models.checkpoints import Checkpoint, CheckpointExport, Promotion
from training.models.gates import Gate, GatePair, ReleaseRule
from training.models.hub import HubPush
from training.models.jobs import Job, new_seed
from training.models.lineage import Taint
from training.models.loop import LoopRule
from training.models.notices import Notice, NoticeSetting
from training.models.retention import RetentionRule
from training.models.runs import DatasetSnapshot, TrainingRun
from training.models.sampling import PairOrigin, SampleBatch, SampleRefusal
from training.models.sweeps import Sweep

__all__ = [
    "Checkpoint",
    "CheckpointExport",
    "DatasetSnapshot",
    "Gate",
    "GatePair",
    "HubPush",
    "Job",
    "LabelEffect",
    "LabelEffects",
    "LoopRule",
    "Notice",
    "NoticeSetting",
    "PairOrigin",
    "Promotion",
    "ReleaseRule",
    "RetentionRule",
    "SampleBatch",
    "SampleRefusal",
    "SideBySide",
    "Sweep",
    "Taint",
    "TrainingRun",
    "new_seed",
]
