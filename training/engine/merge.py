"""Process: fold an adapter into its base weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.engine import process
from training.jobspec import MergeJob


def main(run_dir: Path, job: MergeJob) -> dict[str, Any]:
    from training.engine import merging  # torch comes after signals and the supervisor's pipe are watched

    return merging.merge(run_dir, job)


if __name__ == "__main__":
    process.run(main, MergeJob, "Fold the adapter of a run directory's job into its base weights.")
