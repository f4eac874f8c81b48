"""What a retrain costs: three runs on growing snapshots that share a cache, each in a process of its own.

A reference forward is made for a pair that no earlier run has seen, and for no other. Wall time is that of the whole
run, from the start of the process to the written checkpoint.

    python benchmarks/retrain.py --json
    python benchmarks/retrain.py --data annotations.json --sizes 100,120,140 --mode fast
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # and not this folder, whose queue.py would hide Python's
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

from benchmarks.pairs import TextPair, default_model, made_up_pairs, read_pairs, training_run  # noqa: E402


def main() -> None:
    options = parse()
    model = options.model or default_model()
    sizes = [int(size) for size in options.sizes.split(",")]
    pairs = read_pairs(options.data) if options.data else made_up_pairs(model, max(sizes), 48, 48)
    if len(pairs) < max(sizes):
        raise SystemExit(f"{options.data} has {len(pairs)} pairs and {max(sizes)} are asked for.")
    cache = tempfile.mkdtemp(prefix="tiebreak-cache-")
    try:
        runs = [run(model, pairs[:size], cache, options) for size in sizes]
        for item, size in zip(runs, sizes, strict=True) if options.cold else ():
            with tempfile.TemporaryDirectory(prefix="tiebreak-cache-") as empty:
                item["cold_wall_s"] = run(model, pairs[:size], empty, options)["wall_s"]
    finally:
        shutil.rmtree(cache)
    print(table(runs))
    if options.json:
        print(json.dumps({"runs": runs}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, help="pairs in AlpacaEval's layout or TRL's (default: made-up ones)")
    parser.add_argument("--sizes", default="100,120,140", help="triples of each run (default: %(default)s)")
    parser.add_argument("--mode", choices=["exact", "fast"], default="exact")
    parser.add_argument("--epochs", type=float, default=1.0, help="(default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a model directory (default: SmolLM2-135M-Instruct, from the index)")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--cold", action="store_true", help="run each size with an empty cache as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


def run(model: Path, pairs: list[TextPair], cache: str, options: argparse.Namespace) -> dict[str, Any]:
    print(f"{len(pairs)} triples ...", file=sys.stderr, flush=True)
    run_dir, job = training_run(
        model, pairs, mode=options.mode, epochs=options.epochs, cache_dir=cache, threads=options.threads
    )
    command = [sys.executable, "-m", "training.engine.train_dpo", str(run_dir)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    wall = time.perf_counter() - started
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    if done.returncode:
        raise SystemExit(f"The run failed: {result['error']}")
    shutil.rmtree(run_dir)
    counts = result["details"]["reference_logps"]
    return {
        "triples": len(pairs),
        "reference_forwards": counts["forwards"],
        "wall_s": round(wall, 1),
        "training_s": round(result["details"]["seconds"], 1),
        "checked": counts["checked"],
        "mode": dataclasses.asdict(job)["mode"],
    }


def table(runs: list[dict[str, Any]]) -> str:
    first = runs[0]["wall_s"]
    lines = [
        f"{'triples':>8} {'forwards':>9} {'checked':>8} {'wall s':>7} {'training s':>11} {'of the first':>13} "
        f"{'without cache s':>16}"
    ]
    for item in runs:
        share = item["wall_s"] / first
        cold = item.get("cold_wall_s", "")
        lines.append(
            f"{item['triples']:8} {item['reference_forwards']:9} {item['checked']:8} {item['wall_s']:7.1f} "
            f"{item['training_s']:11.1f} {share:13.0%} {cold:>16}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
