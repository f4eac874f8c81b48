"""The benchmarks run, tell what they must tell, and compare what is equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.installation import ROOT

pytestmark = pytest.mark.slow
CHAT = [{"instruction": f"Name {number} birds.", "output_1": "a bird sings", "output_2": "rain", "preference": 1}
        for number in range(1, 11)]  # fmt: skip


def run(name: str, *arguments: str) -> dict[str, Any]:
    """The JSON object on the last line of a benchmark's output."""
    command = [sys.executable, f"benchmarks/{name}.py", "--threads", "1", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_a_step_equals_that_of_stock_trl(tiny_model: Path) -> None:
    report = run(
        *("dpo_step", "--model", str(tiny_model), "--pairs", "5"),
        *("--prompt-tokens", "30", "--completion-tokens", "12"),
    )
    variants = set(report["pairs_per_s"])
    assert variants == set(report["peak_rss_mb"])
    where_the_cpu_has_it = {"exact_bfloat16", "fast_float32"}
    assert variants - where_the_cpu_has_it == {"stock_default", "stock_tuned", "stock_precomputed", "exact", "fast"}
    assert report["precision"]["exact"] == "float32"
    assert report["default_batch"] == 8
    assert report["max_rel_diff"]["loss"] < 1e-5
    assert report["max_rel_diff"]["grad"] < 1e-4
    assert {"exact_vs_default", "exact_vs_tuned", "fast_vs_default"} <= set(report["ratio"])
    assert 0 < report["gemm_share"] < 1


def test_a_retrain_reads_new_pairs_only(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "annotations.json"
    data.write_text(json.dumps(CHAT), encoding="utf-8")
    report = run("retrain", "--model", str(tiny_model), "--sizes", "4,7,10", "--data", str(data))
    assert [(item["triples"], item["reference_forwards"]) for item in report["runs"]] == [(4, 4), (7, 3), (10, 3)]
    assert all(item["wall_s"] > 0 for item in report["runs"])


def test_sampling_is_measured_against_generate(tiny_model: Path) -> None:
    report = run("sampling", "--model", str(tiny_model), "--prompts", "4", "--max-new-tokens", "12")
    assert set(report["tokens_per_s"]) == {"pair_by_pair", "ours"}
    assert report["ratio"] > 0


def test_the_label_model_is_measured_against_majority() -> None:
    report = run("label_model", "--pairs", "300", "--annotators", "10", "--seeds", "3", "--votes", "2000")
    rows = {(row["crowd"], row["judgements"]): row for row in report["rows"]}
    assert {crowd for crowd, _ in rows} == {"careful", "mixed", "spam", "misread", "hard pairs"}
    once, thrice = rows["mixed", "1"], rows["misread", "3"]
    assert once["posterior"] == pytest.approx(once["majority"]), "one vote decides alone"
    assert thrice["difference"] + thrice["half_width"] < 0
    assert all(row["brier"] < row["majority_brier"] for row in rows.values())
    assert sum(line["pairs"] for line in report["calibration"]["mixed"]) == pytest.approx(3 * 300, abs=10)
    assert report["times"][0]["fit_s"] > 0
