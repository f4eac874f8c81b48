"""Process: measure a candidate against the current policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.engine import process
from training.jobspec import CompareJob


def main(run_dir: Path, job: CompareJob) -> dict[str, Any]:
    from training.engine import head_to_head  # torch comes after signals and the supervisor's pipe are watched

    return head_to_head.compare(run_dir, job)


if __name__ == "__main__":
    process.run(main, CompareJob, "Measure a candidate against the current policy.")
