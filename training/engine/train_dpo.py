"""Process: train a policy on preferences with Direct Preference Optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.engine import launch, process
from training.jobspec import TrainJob


def main(run_dir: Path, job: TrainJob) -> dict[str, Any]:
    if (processes := launch.processes_wanted(job)) > 1:
        return launch.run(run_dir, job, processes)
    if process.rank() is None:
        process.keep_to_one_gpu()
    from training.engine import dpo  # torch comes after signals and the supervisor's pipe are watched

    return dpo.train(run_dir, job)


if __name__ == "__main__":
    process.run(main, TrainJob, "Train on the preferences of a run directory.", may_launch=True)
