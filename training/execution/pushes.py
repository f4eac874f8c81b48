"""A checkpoint on its way to the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from django.db import transaction

from training import current_card, registry, store
from training.exceptions import JobFailed, LeaseLost, Rejected
from training.jobspec import PushJob, Result, write_job
from training.models import HubPush, Job
from training.rundir import LineReader, RunDir
from training.supervision import Work


class Push(Work[HubPush]):
    """Weights, tokenizer, manifest and card of a checkpoint as one commit. The token is in the environment alone."""

    module = "push_to_hub"

    def __init__(self, job: HubPush, run_dir: RunDir) -> None:
        super().__init__(job, run_dir)
        self.lines = LineReader(run_dir.metrics)
        self.phase = "preparing"

    def prepare(self) -> bool:
        refuse_without_token()
        registry.weights_of(self.job.checkpoint)  # what leaves is what the manifest says
        registry.manifest_of(self.job.checkpoint)
        job = PushJob(
            folder=str(self._folder()),
            repo_id=self.job.repo_id,
            is_private=self.job.is_private,
            message=f"{self.job.checkpoint.name}, content hash {self.job.checkpoint.short_hash}",
            card="" if self._is_merged else current_card.card_of(self.job.checkpoint).decode(),
        )
        write_job(self.run_dir.path, job)
        return True

    def _folder(self) -> Path:
        checkpoint = self.job.checkpoint
        if not self._is_merged:
            return store.checkpoint_dir(checkpoint.uuid)
        return unpack(store.archive_path(checkpoint.uuid, "merged"), self.run_dir.path / "upload")

    @property
    def _is_merged(self) -> bool:
        """Whether what is sent are weights of its own, whose archive has its own manifest and card."""
        return self.job.variant == HubPush.Variant.MERGED and self.job.checkpoint.is_adapter

    def tick(self) -> dict[str, Any]:
        for line in self.lines.new_lines():
            self.phase = line.get("phase", self.phase)
        return {"phase": self.phase}

    def publish(self, result: Result) -> None:
        url = str(result.details.get("commit_url", ""))[:300]
        with transaction.atomic():
            if not self.job.update_held(commit_url=url) or not self.job.finish(Job.State.SUCCEEDED):
                raise LeaseLost
        self.run_dir.remove()


def refuse_without_token() -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise JobFailed(
            "hub_offline",
            "The worker of exports is set to stay offline (HF_HUB_OFFLINE), so nothing was sent.",
            "Whoever runs this server can unset it for that worker.",
        )
    if not os.environ.get("HF_TOKEN", "").strip():
        raise JobFailed(
            "no_token",
            "The worker of exports has no token for the Hugging Face Hub, so nothing was sent.",
            "Whoever runs this server can put a token with write access into HF_TOKEN in that worker's environment.",
        )


def unpack(archive: Path, target: Path) -> Path:
    """The files of an archive of ours, without the folder that they lie in. Raises ``Rejected``."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                with opened.open(entry) as source, (target / Path(entry.filename).name).open("wb") as sink:
                    shutil.copyfileobj(source, sink, store.CHUNK)
    except FileNotFoundError:
        raise Rejected("The merged weights are not there any more. Prepare them again, then push them.") from None
    except zipfile.BadZipFile as error:
        raise Rejected(f"The archive of the merged weights is damaged ({error}). Prepare them again.") from None
    return target
