"""Process: have the operator's converter write the weights of a checkpoint as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.engine import process
from training.jobspec import GgufJob


def main(run_dir: Path, job: GgufJob) -> dict[str, Any]:
    from training.engine import converting  # torch comes after signals and the supervisor's pipe are watched

    return converting.convert(run_dir, job)


if __name__ == "__main__":
    process.run(main, GgufJob, "Convert the weights of a run directory's job to GGUF.")
