"""What is learned from real preferences: train on some prompts of a file, judge on the others, one line a recipe.

The split is by prompt. Every run is the engine's own, with the default recipe but for what ``--recipe`` changes; runs
share a cache, so that the reference is read once.

    python benchmarks/learning.py --data annotations.json --recipe mode=fast --recipe mode=fast,beta=0.5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # and not this folder, whose queue.py would hide Python's
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

from benchmarks.pairs import TextPair, cache_folder, default_model, read_pairs, training_run  # noqa: E402
from training.jobspec import PromptLine, TrainJob  # noqa: E402

PROBES = 24


def main() -> None:
    options = parse()
    model = options.model or default_model()
    train, held_out = split(read_pairs(options.data), options.held_out, options.train, options.seed)
    print(f"{len(train)} training pairs, {len(held_out)} held-out pairs", file=sys.stderr)
    cache = str(cache_folder() / "learning")
    results = []
    for text in options.recipe or [""]:
        results.append(run(model, train, held_out, text, cache, options.threads))
        print(table(results[-1:], head=len(results) == 1), flush=True)
    if options.json:
        print(json.dumps({"train": len(train), "held_out": len(held_out), "runs": results}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="pairs in AlpacaEval's layout or TRL's")
    parser.add_argument("--train", type=int, default=0, help="training pairs at most (default: all)")
    parser.add_argument("--held-out", type=float, default=0.25, help="share of prompts (default: %(default)s)")
    parser.add_argument("--recipe", action="append", help="such as mode=fast,beta=0.5; may be given again and again")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of training pairs (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a model directory (default: SmolLM2-135M-Instruct, from the index)")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


def split(pairs: list[TextPair], share: float, most: int, seed: int) -> tuple[list[TextPair], list[TextPair]]:
    """By a hash of the prompt, so that no prompt is on both sides."""
    held_out = [pair for pair in pairs if number_of(pair) < share]
    train = [pair for pair in pairs if number_of(pair) >= share]
    random.Random(seed).shuffle(train)
    return train[: most or None], held_out


def number_of(pair: TextPair) -> float:
    digest = hashlib.sha256(json.dumps(pair.messages, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def recipe_of(text: str) -> dict[str, Any]:
    known = get_type_hints(TrainJob)
    names = {field.name for field in fields(TrainJob)}
    recipe: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in names:
            raise SystemExit(f"There is no field {name!r} in a recipe.")
        recipe[name] = known[name](value) if known[name] in (int, float) else value
    return recipe


def run(
    model: Path, train: list[TextPair], held_out: list[TextPair], text: str, cache: str, threads: int
) -> dict[str, Any]:
    print(f"recipe {text or 'as it is'} ...", file=sys.stderr, flush=True)
    run_dir, _ = training_run(model, train, held_out, cache_dir=cache, threads=threads, **recipe_of(text))
    probes = sorted(held_out, key=number_of)[:PROBES]
    lines = [PromptLine(str(number), pair.messages).to_json() + "\n" for number, pair in enumerate(probes)]
    (run_dir / "probes.jsonl").write_text("".join(lines), encoding="utf-8")
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "training.engine.train_dpo", str(run_dir)]
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    shutil.rmtree(run_dir)
    details = result["details"]
    kept = ("held_out", "on_policy", "flags", "final", "seconds", "speed", "memory", "reference_logps", "triples")
    return {"recipe": text, "error": result["error"]} | {name: details.get(name) for name in kept}


def table(results: list[dict[str, Any]], *, head: bool) -> str:
    lines = []
    if head:
        lines.append(
            f"{'recipe':44} {'accuracy':>9} {'interval':>13} {'length rule':>12} {'margin':>7} {'shift/tok':>9} "
            f"{'KL':>6} {'tokens':>12} {'finished':>11} {'train acc':>9} {'s':>6}"
        )
    return "\n".join(lines + [line(item) for item in results])


def line(item: dict[str, Any]) -> str:
    name = item["recipe"] or "default"
    if item["error"]:
        return f"{name:44} {item['error']}"
    held, rule = item["held_out"], item["held_out"]["length_baseline"]
    low, high = held["accuracy_interval"]
    before, after = item["on_policy"]["before"], item["on_policy"]["after"]
    tokens = f"{before['mean_tokens']:.0f} to {after['mean_tokens']:.0f}"
    finished = f"{before['finish_rate']:.0%} to {after['finish_rate']:.0%}"
    return (
        f"{name:44} {held['after']['accuracy']:9.1%} {f'{low:.0%} to {high:.0%}':>13} "
        f"{rule['rule'] + ' ' + format(rule['accuracy'], '.0%'):>12} {held['after']['margin']:7.3f} "
        f"{held['chosen_shift']:9.3f} {after['kl_reference']:6.2f} {tokens:>12} {finished:>11} "
        f"{item['final']['reward_accuracy']:9.0%} {item['seconds']:6.0f}"
    )


if __name__ == "__main__":
    main()
