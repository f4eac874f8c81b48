"""Pairs a second of a DPO optimiser step: stock TRL with its defaults, stock TRL well set, and Tiebreak's two modes.

Each variant runs in a process of its own, one after the other, on the same pairs, with the same LoRA adapter on the
same weights, and makes the same optimiser step: forward, backward, update. The longest of its batches is computed once
before, untimed. Where TRL's own batch of 8 pairs needs more memory than there is, it is halved until it fits.
Loading, tokenising and, for Tiebreak, the reference's values (and in the fast mode the hidden states) are not in it,
because a pair pays for them once and not once an epoch; their time is printed beside. TRL can precompute its reference
as well, for a data set that does not change, so that is measured too. TRL's defaults compute in bfloat16; the exact
mode in float32, and in bfloat16 if asked to; the fast mode in bfloat16 where the CPU has it. Loss and gradients of the
exact mode are compared with those of TRL in float32, at weights where the policy has left the reference. Threads and
heap of TRL are as torch and glibc have them: what an engine sets for itself gained TRL nothing where it was tried.

    python benchmarks/dpo_step.py --data annotations.json --pairs 16
    python benchmarks/dpo_step.py --pairs 8 --json            # made-up pairs of 128 + 128 tokens
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # and not this folder, whose queue.py would hide Python's
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

from benchmarks.pairs import default_model, made_up_pairs, read_pairs, sized_model  # noqa: E402
from benchmarks.steps import PRECISIONS, OurStep, Setup, StockStep, update  # noqa: E402

VARIANTS = ("stock_default", "stock_tuned", "stock_precomputed", "exact", "exact_bfloat16", "fast", "fast_float32")
NAMES = {
    "stock_default": "stock TRL, its defaults",
    "stock_tuned": "stock TRL, float32, no checkpointing",
    "stock_precomputed": "the same, its reference precomputed",
    "exact": "Tiebreak, exact",
    "exact_bfloat16": "Tiebreak, exact, bfloat16 products",
    "fast": "Tiebreak, fast (upper third)",
    "fast_float32": "the same, float32 products",
}
OUT_OF_MEMORY = 9  # exit code of a variant
MEMORY_SHARE = 0.95  # of what is free, that a variant may take; so that it fails and nothing else is killed for it


def main() -> None:
    options = parse()
    if options.variant:
        print(json.dumps(measure_within_memory(options.variant, read_setup(options))))
        return
    wanted = options.only.split(",") if options.only else variants_of(options.device)
    if unknown := set(wanted) - set(VARIANTS):
        raise SystemExit(f"There is no variant {', '.join(sorted(unknown))}; choose from {', '.join(VARIANTS)}.")
    figures = {variant: found for variant in wanted if (found := run_variant(variant, options.default_batch))}
    if not figures:
        raise SystemExit("Nothing was measured; see above.")
    report = summary(figures)
    print(table(figures, report))
    if options.json:
        print(json.dumps(report))
    apart = report["max_rel_diff"]
    if failed := [NAMES[variant] for variant in wanted if variant not in figures]:
        raise SystemExit(f"Not measured: {', '.join(failed)}.")
    if options.device == "cpu" and apart["loss"] is not None and not (apart["loss"] < 1e-5 and apart["grad"] < 1e-4):
        raise SystemExit("Loss or gradients differ from stock TRL by more than rounding.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, help="pairs in AlpacaEval's layout (JSON) or TRL's (JSON or JSON lines)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of the optimiser step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="of made-up pairs (default: %(default)s)")
    parser.add_argument("--completion-tokens", type=int, default=128, help="of made-up pairs (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a model directory (default: SmolLM2-135M-Instruct, from the index)")
    parser.add_argument("--shape", choices=["1b"], help="random weights of this size in place of a model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--default-batch", type=int, default=8, help="pairs a batch of TRL's defaults (default: %(default)s, as TRL)"
    )
    parser.add_argument("--repeats", type=int, default=1, help="timed steps, of which the median counts")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--only", help=f"variants, with commas, of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def variants_of(device: str) -> list[str]:
    from training.engine.compute import has_bfloat16

    return [variant for variant in VARIANTS if variant not in PRECISIONS or (device == "cpu" and has_bfloat16())]


def read_setup(options: argparse.Namespace) -> Setup:
    directory = options.model or (sized_model(options.shape) if options.shape else default_model())
    if options.data:
        pairs = read_pairs(options.data)
        random.Random(options.seed).shuffle(pairs)
    else:
        pairs = made_up_pairs(directory, options.pairs, options.prompt_tokens, options.completion_tokens)
    return Setup(
        directory, pairs[: options.pairs], options.device, options.threads, options.repeats, options.default_batch
    )


def run_variant(variant: str, batch: int) -> dict[str, Any]:
    """Measure ``variant`` in a process of its own, so that its memory and its threads are its own.

    ``batch``: pairs at once of TRL's defaults, halved when memory runs out. Returns nothing of a variant that failed.
    """
    at_once = f", {batch} pairs a batch" if variant == "stock_default" else ""
    print(f"{NAMES[variant]}{at_once} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant, "--default-batch", str(batch)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return figures
    if variant == "stock_default" and batch > 1 and done.returncode in {OUT_OF_MEMORY, -signal.SIGKILL}:
        return run_variant(variant, batch // 2)
    print(f"{NAMES[variant]} failed; see above. The others go on.", file=sys.stderr)
    return {}


def measure_within_memory(variant: str, setup: Setup) -> dict[str, Any]:
    """``measure``, which ends with OUT_OF_MEMORY rather than with another process killed for it."""
    from training.engine import process

    limit_memory()
    try:
        return measure(variant, setup)
    except Exception as error:
        if not process.is_out_of_memory(error):
            raise
        print(f"out of memory: {error}".splitlines()[0], file=sys.stderr)
        raise SystemExit(OUT_OF_MEMORY) from None


def limit_memory() -> None:
    from training import footprint

    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return
    limit = int(MEMORY_SHARE * min(free, footprint.machine_memory() or free))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def measure(variant: str, setup: Setup) -> dict[str, Any]:
    from training.engine import process

    ours = not variant.startswith("stock")
    for name, value in process.ENVIRONMENT_DEFAULTS.items():  # before torch is imported, as in a run
        if ours or name == process.GPUS_VARIABLE:
            os.environ.setdefault(name, value)
    import torch

    from training.engine import loading  # keeps progress bars off the screen

    del loading
    warnings.filterwarnings("ignore", category=FutureWarning)
    if setup.threads:
        torch.set_num_threads(setup.threads)
    if ours:
        process.keep_freed_memory()
    step = OurStep(variant, setup) if ours else StockStep(variant, setup)
    step.warm_up()
    update(step.trainer)
    seconds = statistics.median(timed(step, setup.device) for _ in range(setup.repeats))
    figures = {
        "seconds": seconds,
        "pairs_per_s": len(setup.pairs) / seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "prepared_s": step.prepared_s,
        "threads": torch.get_num_threads(),
    }
    if variant == "stock_default":
        figures["batch"] = setup.default_batch
    if setup.device == "cuda":
        figures["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    if variant in {"stock_tuned", "exact"}:
        figures["parity"] = step.parity()
    figures["dtype"] = "bfloat16" if step.trainer.args.bf16 else "float32"
    if variant == "exact":
        figures["gflop_per_pair"] = step.gflop() / len(setup.pairs)
        figures["gemm_gflops"] = gemm_peak(setup.device)
    return figures


def timed(step: Any, device: str) -> float:
    import torch

    started = time.perf_counter()
    step.whole()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def gemm_peak(device: str) -> float:
    """GFLOP/s of the fastest of a few matrix products, the best of several tries."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (1536, 576, 1536), (1536, 1536, 576), (768, 576, 1536)):
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(columns, inner, device=device, dtype=dtype)
        for _ in range(20):
            started = time.perf_counter()
            torch.mm(left, right.t())
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2e-9 * rows * inner * columns / (time.perf_counter() - started))
    return best


def summary(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    speed = {variant: round(item["pairs_per_s"], 4) for variant, item in figures.items()}

    def ratio(one: str, other: str) -> float | None:
        return round(speed[one] / speed[other], 2) if one in speed and other in speed else None

    exact = figures.get("exact", {})
    share = exact["pairs_per_s"] * exact["gflop_per_pair"] / exact["gemm_gflops"] if exact else None
    return {
        "pairs_per_s": speed,
        "ratio": {
            "exact_vs_default": ratio("exact", "stock_default"),
            "exact_vs_tuned": ratio("exact", "stock_tuned"),
            "exact_vs_precomputed": ratio("exact", "stock_precomputed"),
            "exact_bfloat16_vs_default": ratio("exact_bfloat16", "stock_default"),
            "fast_vs_default": ratio("fast", "stock_default"),
            "fast_float32_vs_default": ratio("fast_float32", "stock_default"),
        },
        "max_rel_diff": differences(figures),
        "peak_rss_mb": {variant: item["peak_rss_mb"] for variant, item in figures.items()},
        "gemm_share": round(share, 3) if share else None,
        "prepared_s": {variant: round(item["prepared_s"], 2) for variant, item in figures.items()},
        "threads": next(iter(figures.values()))["threads"],
        "precision": {variant: item["dtype"] for variant, item in figures.items()},
        "default_batch": figures.get("stock_default", {}).get("batch"),
    }


def differences(figures: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """|ours - stock| / |stock| of the loss, and the largest over the adapter's tensors of that of their gradients."""
    import torch

    paths = [figures.get(name, {}).get("parity") for name in ("stock_tuned", "exact")]
    if not all(paths):
        return {"loss": None, "grad": None}
    stock, ours = (torch.load(str(path), weights_only=True) for path in paths)
    for path in paths:
        Path(str(path)).unlink()
    worst = max(
        float((ours["gradients"][name] - grad).norm() / grad.norm()) for name, grad in stock["gradients"].items()
    )
    return {"loss": abs(ours["loss"] - stock["loss"]) / abs(stock["loss"]), "grad": worst}


def table(figures: dict[str, dict[str, Any]], report: dict[str, Any]) -> str:
    slowest = min(item["pairs_per_s"] for item in figures.values())
    lines = [f"{'':38} {'s/pair':>8} {'pairs/s':>8} {'times':>6} {'peak MB':>8} {'before s':>9}"]
    for variant, item in figures.items():
        rate = item["pairs_per_s"]
        lines.append(
            f"{NAMES[variant]:38} {1 / rate:8.2f} {rate:8.3f} {rate / slowest:6.1f} {item['peak_rss_mb']:8,} "
            f"{item['prepared_s']:9.1f}"
        )
    lines.append("precision: " + ", ".join(f"{name} {dtype}" for name, dtype in report["precision"].items()))
    if report["default_batch"]:
        lines.append(f"stock TRL's defaults: {report['default_batch']} pairs a batch")
    apart = report["max_rel_diff"]
    if apart["loss"] is not None:
        lines.append(f"largest relative difference to stock: loss {apart['loss']:.1e}, gradients {apart['grad']:.1e}")
    if report["gemm_share"]:
        lines.append(f"share of this machine's matrix-product peak in the exact mode: {report['gemm_share']:.0%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
