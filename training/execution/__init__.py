"""What each kind of job does: how its run directory is prepared, what its engine reports, what is published."""

from training.execution.exports import Export
from training.execution.pushes import Push
from training.execution.runs import PROBES, Training
from training.execution.sampling import Sampling

__all__ = ["PROBES", "Export", "Push", "Sampling", "Training"]
