"""Full weights of a checkpoint in one file, for download."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from training import current_card, registry, store
from training.exceptions import LeaseLost
from training.jobspec import GgufJob, MergeJob, Result, write_job
from training.model_card import render_card
from training.models import Checkpoint, CheckpointExport, Job
from training.rundir import RunDir
from training.supervision import Work

GGUF_OUTPUT = "model.gguf"


class Export(Work[CheckpointExport]):
    """An archive of full weights, the adapter folded into its base or the directory as it is; or one file of GGUF."""

    def __init__(self, job: CheckpointExport, run_dir: RunDir) -> None:
        super().__init__(job, run_dir)
        self.is_gguf = job.variant == CheckpointExport.Variant.GGUF
        self.module = "convert_gguf" if self.is_gguf else "merge"

    def prepare(self) -> bool:
        checkpoint = self.job.checkpoint
        model = registry.weights_of(checkpoint)
        if self.is_gguf:
            converter = converter_command(settings.GGUF_CONVERTER)
            write_job(self.run_dir.path, GgufJob(model, converter, settings.GGUF_CONVERTER_MINUTES))
            return True
        registry.manifest_of(checkpoint)  # goes along
        if not checkpoint.is_adapter:
            return False
        write_job(self.run_dir.path, MergeJob(model=model))
        return True

    def tick(self) -> dict[str, Any]:
        return {"phase": "converting" if self.is_gguf else "merging the adapter into its base"}

    def publish(self, result: Result) -> None:
        target = store.archive_path(self.job.checkpoint.uuid, self.job.variant)
        if self.is_gguf:
            sha256, size = store.publish_file(self.run_dir.path / GGUF_OUTPUT, target)
        else:
            sha256, size = self._pack(target)
        with transaction.atomic():
            if not self.job.update_held(sha256=sha256, size_bytes=size) or not self.job.finish(Job.State.SUCCEEDED):
                raise LeaseLost
        self.run_dir.remove()

    def _pack(self, target: Path) -> tuple[str, int]:
        checkpoint = self.job.checkpoint
        directory = store.checkpoint_dir(checkpoint.uuid)
        if checkpoint.is_adapter:
            directory = _merged_directory(checkpoint, self.run_dir)
        return store.write_archive(directory, target, f"{checkpoint.name}-merged")


def converter_command(setting: str) -> list[str]:
    """The words of ``TIEBREAK_GGUF_CONVERTER``. A Python script alone is run by the Python that Tiebreak runs in."""
    words = shlex.split(setting)
    return [sys.executable, *words] if words and words[0].endswith(".py") else words


def _merged_directory(checkpoint: Checkpoint, run_dir: RunDir) -> Path:
    """Describe the merged weights: the adapter's own manifest, with the files of the full model and no base."""
    files = store.list_files(run_dir.checkpoint)
    manifest = registry.manifest_of(checkpoint)
    manifest |= {
        "name": f"{checkpoint.name}-merged",
        "base": None,
        "merged_from": checkpoint.content_hash,
        "merged_into": manifest["base"],
        "content_hash": store.content_hash(files),
        "files": [vars(file) for file in files],
    }
    card = render_card(manifest | {"gate": current_card.gate_of(checkpoint)})
    store.write_manifest(run_dir.checkpoint, manifest, card)
    return run_dir.checkpoint
