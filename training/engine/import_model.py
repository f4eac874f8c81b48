"""Process: bring a model into safetensors and a tokenizer that are known to work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from training.engine import process
from training.jobspec import ImportJob


def main(run_dir: Path, job: ImportJob) -> dict[str, Any]:
    if job.source_kind == "hub":
        os.environ["HF_HUB_OFFLINE"] = "0"  # read once, when huggingface_hub is imported
    from training.engine import importing  # torch comes after signals and the supervisor's pipe are watched

    return importing.import_model(run_dir, job)


if __name__ == "__main__":
    process.run(main, ImportJob, "Import a model from GGUF, a directory or the Hugging Face Hub.")
