"""Process: let two policies answer the same prompts at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.engine import process
from training.jobspec import SideBySideJob


def main(run_dir: Path, job: SideBySideJob) -> dict[str, Any]:
    from training.engine import answering  # torch comes after signals and the supervisor's pipe are watched

    return answering.answer(run_dir, job)


if __name__ == "__main__":
    process.run(main, SideBySideJob, "Let two policies answer each prompt of a run directory at once.")
