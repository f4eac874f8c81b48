"""Full weights of a checkpoint, packed for download."""

from __future__ import annotations

import logging
from typing import Any

from django.db import transaction

from training import registry, store
from training.exceptions import LeaseLost
from training.jobspec import (
    MergeJob,
    Result,
    write_job,
)
from training.model_card import render_card
from training.models import (
    Checkpoint,
    CheckpointExport,
    Job,
)
from training.rundir import RunDir
from training.supervision import Work

log = logging.getLogger(__name__)


class Export(Work[CheckpointExport]):
    """An archive of full weights: the adapter folded into its base, or the directory as it is."""

    module = "merge"

    def prepare(self) -> bool:
        checkpoint = self.job.checkpoint
        model = registry.weights_of(checkpoint)
        if not checkpoint.is_adapter:
            return False
        write_job(self.run_dir.path, MergeJob(model=model))
        return True

    def tick(self) -> dict[str, Any]:
        return {"phase": "merging the adapter into its base"}

    def publish(self, result: Result) -> None:
        checkpoint = self.job.checkpoint
        directory = store.checkpoint_dir(checkpoint.uuid)
        if checkpoint.is_adapter:
            directory = _merged_directory(checkpoint, self.run_dir)
        target = store.archive_path(checkpoint.uuid, "merged")
        sha256, size = store.write_archive(directory, target, f"{checkpoint.name}-merged")
        with transaction.atomic():
            if not self.job.update_held(sha256=sha256, size_bytes=size) or not self.job.finish(Job.State.SUCCEEDED):
                raise LeaseLost
        self.run_dir.remove()


def _merged_directory(checkpoint: Checkpoint, run_dir: RunDir) -> Any:
    """Describe the merged weights: the adapter's own manifest, with the files of the full model and no base."""
    files = store.list_files(run_dir.checkpoint)
    manifest = registry.manifest_of(checkpoint) | {
        "name": f"{checkpoint.name}-merged",
        "base": None,
        "merged_from": checkpoint.content_hash,
        "content_hash": store.content_hash(files),
        "files": [vars(file) for file in files],
    }
    store.write_manifest(run_dir.checkpoint, manifest, render_card(manifest))
    return run_dir.checkpoint
