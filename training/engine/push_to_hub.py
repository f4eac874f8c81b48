"""Process: copy a checkpoint to a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from training.engine import process
from training.jobspec import PushJob


def main(run_dir: Path, job: PushJob) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "0"  # read once, when huggingface_hub is imported
    from training.engine import pushing  # libraries come after signals and the supervisor's pipe are watched

    return pushing.push(run_dir, job)


if __name__ == "__main__":
    process.run(main, PushJob, "Copy the folder of a run directory's job to the Hugging Face Hub.")
