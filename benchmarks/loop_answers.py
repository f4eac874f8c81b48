"""What a policy answers to the prompts that judge it, which are in no project. Import it after Django is set up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.loop_figures import Answer, Answers
from training import jobspec, registry
from training.engine.jsonlines import read_lines
from training.jobspec import PromptLine, SampledPair, SampleJob
from training.models import Checkpoint

ROOT = Path(__file__).resolve().parents[1]
SEED = 20_260_000  # of no batch: the same for every policy, so that chance moves them all alike


def answers_of(checkpoint: Checkpoint, prompts: list[str], folder: Path, tokens: int) -> Answers:
    """Two answers to each prompt, by the engine that writes pairs and with the decoding that they were written with."""
    run_dir = folder / f"answers-{checkpoint.pk}"
    run_dir.mkdir()
    lines = [PromptLine(prompt, [{"role": "user", "content": prompt}]).to_json() + "\n" for prompt in prompts]
    (run_dir / "dataset.jsonl").write_text("".join(lines), encoding="utf-8")
    job = SampleJob(registry.weights_of(checkpoint), seed=SEED, max_new_tokens=tokens)
    jobspec.write_job(run_dir, job)
    command = [sys.executable, "-m", "training.engine.sample", str(run_dir)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    result = jobspec.read_result(run_dir)
    if result is None or not result.ok:
        raise SystemExit(f"{checkpoint} did not answer: {result.error if result else done.stderr[-2000:]}")
    pairs = list(read_lines(run_dir / "samples.jsonl", SampledPair))
    shutil.rmtree(run_dir)
    return {
        pair.prompt_id: [Answer(each.text, len(each.token_ids)) for each in pair.responses]
        for pair in pairs
        if pair.responses
    }
