"""The benchmarks run, tell what they must tell, and compare what is equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.installation import ROOT
from tests.services import POSTGRES, REQUIRED

pytestmark = pytest.mark.slow
ENGINE = ("--threads", "1")
DATABASES = [
    "sqlite",
    pytest.param(
        "postgres", marks=pytest.mark.skipif(not POSTGRES and not REQUIRED, reason="PostgreSQL is not installed")
    ),
]
CHAT = [{"instruction": f"Name {number} birds.", "output_1": "a bird sings", "output_2": "rain", "preference": 1}
        for number in range(1, 11)]  # fmt: skip


def run(name: str, *arguments: str) -> dict[str, Any]:
    """The JSON object on the last line of a benchmark's output."""
    command = [sys.executable, f"benchmarks/{name}.py", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_a_step_equals_that_of_stock_trl(tiny_model: Path) -> None:
    report = run(
        *("dpo_step", *ENGINE, "--model", str(tiny_model), "--pairs", "5"),
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
    report = run("retrain", *ENGINE, "--model", str(tiny_model), "--sizes", "4,7,10", "--data", str(data))
    assert [(item["triples"], item["reference_forwards"]) for item in report["runs"]] == [(4, 4), (7, 3), (10, 3)]
    assert all(item["wall_s"] > 0 for item in report["runs"])


def test_sampling_is_measured_against_generate(tiny_model: Path) -> None:
    report = run("sampling", *ENGINE, "--model", str(tiny_model), "--prompts", "4", "--max-new-tokens", "12")
    assert set(report["tokens_per_s"]) == {"pair_by_pair", "ours"}
    assert report["ratio"] > 0


def test_learning_rates_are_compared_on_a_known_taste(tiny_model: Path) -> None:
    report = run(
        *("rates", "--model", str(tiny_model), "--labels", "8", "--rates", "usual,1e-5", "--recipe", "epochs=2"),
        *("--tokens", "8", "--judging", "4"),
    )
    usual, small = report["rows"]
    assert (usual["labels"], usual["steps"], usual["learning_rate"], usual["is_usual"]) == (8, 2, 5e-4, True)
    assert (small["learning_rate"], small["is_usual"]) == (1e-5, False)
    assert usual["kl"] > small["kl"] >= 0
    assert all(row["ci"][0] <= row["true_win_rate"] <= row["ci"][1] for row in report["rows"])


def test_the_whole_loop_goes_round_in_both_arms(tiny_model: Path) -> None:
    report = run(
        *("loop", "--model", str(tiny_model), "--rounds", "1", "--labels", "12", "--pairs", "16", "--judging", "4"),
        *("--tokens", "6"),
    )
    assert set(report["arms"]) == {"random order, majority", "active order, posterior"}
    for rows in report["arms"].values():
        (row,) = rows
        assert (row["round"], row["labels"]) == (1, 12)
        assert row["ci"][0] <= row["true_win_rate"] <= row["ci"][1]
        assert row["kl"] >= 0
        assert 0 < row["mean_length"] <= 6
        assert 0.5 <= row["label_accuracy"] <= 1
    assert [row["round"] for row in report["difference"]] == [1]


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


@pytest.mark.parametrize("database", DATABASES)
def test_the_queue_is_measured_and_counts_every_answer(database: str) -> None:
    report = run(
        *("queue", "--database", database, "--open-pairs", "3000", "--clients", "3", "--think-ms", "5"),
        *("--seconds", "1", "--warm-up", "0.2", "--judgements", "2", "--done", "5"),
    )
    assert (report["database"], report["open_pairs"], report["clients"]) == (database, 3000, 3)
    for reading in (report, report["closed_loop"]):
        assert reading["claims_per_s"] > 0
        for times in (reading["lease_ms"], reading["submit_ms"]):
            assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert (report["think_ms"], report["closed_loop"]["think_ms"]) == (5, 0)
    assert [report[name] for name in ("duplicates", "over_collections", "lost_answers", "errors")] == [0, 0, 0, 0]


@pytest.mark.parametrize("database", DATABASES)
def test_tabs_of_one_person_share_their_pairs(database: str) -> None:
    report = run(
        *("queue", "--database", database, "--open-pairs", "2000", "--clients", "3", "--tabs", "3", "--think-ms", "9"),
        *("--seconds", "1", "--warm-up", "0.2", "--judgements", "2"),
    )
    assert report["annotators"] == 1
    assert report["repeats"] > 0, "one pair was on several tabs"
    assert [report[name] for name in ("duplicates", "over_collections", "lost_answers", "errors")] == [0, 0, 0, 0]


def test_a_larger_queue_is_compared_with_a_small_one() -> None:
    report = run(
        *("queue", "--open-pairs", "12000", "--clients", "2", "--compare", "--think-ms", "5"),
        *("--seconds", "0.5", "--warm-up", "0.1"),
    )
    assert (report["open_pairs"], report["compared_with"]["open_pairs"]) == (12_000, 10_000)
    assert report["lease_p95_ratio"] > 0


@pytest.mark.parametrize("database", DATABASES)
def test_the_pages_are_measured_over_http(database: str) -> None:
    report = run(
        *("web", "--database", database, "--annotators", "3", "--open-pairs", "1000"),
        *("--seconds", "2", "--warm-up", "0.5", "--think-ms", "50"),
    )
    assert (report["database"], report["annotators"]) == (database, 3)
    for reading in (report, report["with_thought"]):
        assert reading["requests_per_s"] > 0
        assert 0 < reading["p50_ms"] <= reading["p95_ms"] <= reading["p99_ms"]
    assert (report["think_ms"], report["with_thought"]["think_ms"]) == (0, 50)
    assert (report["errors"], report["lost_answers"]) == (0, 0)
