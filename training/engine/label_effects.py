"""Process: what a promotion changed on judged pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.engine import process
from training.jobspec import EffectsJob


def main(run_dir: Path, job: EffectsJob) -> dict[str, Any]:
    from training.engine import effects  # torch comes after signals and the supervisor's pipe are watched

    return effects.measure(run_dir, job)


if __name__ == "__main__":
    process.run(main, EffectsJob, "Compare two policies on the judged pairs of a run directory.")
