"""Two policies that answer at once: their prompts, and what they have written so far."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.db import transaction

from training import registry
from training.exceptions import LeaseLost
from training.jobspec import PromptLine, Result, SideBySideAnswer, SideBySideJob, write_job
from training.models import Job, SideBySide
from training.rundir import LineReader, RunDir
from training.supervision import Work


class Answering(Work[SideBySide]):
    """The row always has a whole state of the answers, at most as old as the supervisor's turn."""

    module = "side_by_side"

    def __init__(self, job: SideBySide, run_dir: RunDir) -> None:
        super().__init__(job, run_dir)
        self.lines = LineReader(run_dir.metrics)
        self.progress: dict[str, Any] = {"phase": "starting"}
        self.kept = ""

    def prepare(self) -> bool:
        lines = (PromptLine(str(number), chat).to_json() + "\n" for number, chat in enumerate(self.job.prompts))
        with self.run_dir.dataset.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        self.run_dir.answers.unlink(missing_ok=True)
        verified: registry.Verified = {}
        job = SideBySideJob(
            left=registry.weights_of(self.job.left, verified),
            right=registry.weights_of(self.job.right, verified),
            seed=self.job.seed,
            threads=settings.ENGINE_THREADS,
            device=settings.ENGINE_DEVICE,
            **self.job.decoding,
        )
        write_job(self.run_dir.path, job)
        return True

    def tick(self) -> dict[str, Any]:
        for line in self.lines.new_lines():
            self.progress |= line
        self._keep()
        return dict(self.progress)

    def _keep(self) -> None:
        """Copy a new state of the answers to the row."""
        try:
            text = self.run_dir.answers.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        if text == self.kept:
            return
        answers = [SideBySideAnswer.from_dict(line).to_dict() for line in json.loads(text)]
        if not self.job.update_held(answers=answers):
            raise LeaseLost
        self.kept = text

    def publish(self, result: Result) -> None:
        with transaction.atomic():
            self._keep()
            if not self.job.finish(Job.State.SUCCEEDED):
                raise LeaseLost
        self.run_dir.remove()  # all of it is in the database
