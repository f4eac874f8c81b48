"""What each kind of job does: how its run directory is prepared, what its engine reports, what is published."""

from training.execution.exports import Export
from training.execution.gates import Comparing
from training.execution.label_effects import Effects
from training.execution.pushes import Push
from training.execution.runs import PROBES, Training
from training.execution.sampling import Sampling
from training.execution.side_by_side import Answering

__all__ = ["PROBES", "Answering", "Comparing", "Effects", "Export", "Push", "Sampling", "Training"]
