"""Process: write two responses to each prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.engine import process
from training.jobspec import SampleJob


def main(run_dir: Path, job: SampleJob) -> dict[str, Any]:
    from training.engine import sampling  # torch comes after signals and the supervisor's pipe are watched

    return sampling.sample(run_dir, job)


if __name__ == "__main__":
    process.run(main, SampleJob, "Write two responses to each prompt of a run directory.")
