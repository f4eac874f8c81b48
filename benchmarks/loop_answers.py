"""What a policy answers to the prompts that judge it, which are in no project. Without Django."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.loop_figures import Answer, Answers
from training import jobspec
from training.engine.jsonlines import read_lines
from training.jobspec import ModelRef, PromptLine, SampledPair, SampleJob

ROOT = Path(__file__).resolve().parents[1]
SEED = 20_260_000  # of no batch: the same for every policy, so that chance moves them all alike


def answers_of(model: ModelRef, prompts: list[str], tokens: int) -> Answers:
    """Two answers to each prompt."""
    pairs = sampled(model, {prompt: prompt for prompt in prompts}, tokens)
    return {pair.prompt_id: [Answer(each.text, len(each.token_ids)) for each in pair.responses] for pair in pairs}


def sampled(model: ModelRef, prompts: dict[str, str], tokens: int, seed: int = SEED) -> list[SampledPair]:
    """A pair for each prompt, by its id, from the engine that writes pairs, decoded as it decodes; refused ones are
    left out."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        (run_dir / "dataset.jsonl").write_text("".join(_lines(prompts)), encoding="utf-8")
        jobspec.write_job(run_dir, SampleJob(model, seed=seed, max_new_tokens=tokens))
        engine("sample", run_dir)
        return [pair for pair in read_lines(run_dir / "samples.jsonl", SampledPair) if pair.responses]


def _lines(prompts: dict[str, str]) -> Iterable[str]:
    return (PromptLine(name, [{"role": "user", "content": text}]).to_json() + "\n" for name, text in prompts.items())


def engine(name: str, run_dir: Path) -> jobspec.Result:
    """Run the engine ``name`` on a run directory, in a process of its own; SystemExit with its words if it fails."""
    command = [sys.executable, "-m", f"training.engine.{name}", str(run_dir)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    result = jobspec.read_result(run_dir)
    if result is None or not result.ok:
        shutil.copytree(run_dir, kept := Path(tempfile.mkdtemp()), dirs_exist_ok=True)
        raise SystemExit(f"{name} failed, see {kept}: {result.error if result else done.stderr[-2000:]}")
    return result
