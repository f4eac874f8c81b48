"""What a run says of the policy's own responses, and of itself: measured in the run, told in its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.runs import do, question, read_lines, succeed, triple
from training.engine import comparison, guards, tiny_model
from training.jobspec import ModelRef

MakeRun = Callable[..., Path]
PROMPTS = 3


@pytest.fixture
def first(tmp_path: Path) -> ModelRef:
    """Another model with the same tokens."""
    tiny_model.build(tmp_path / "first", seed=11)
    return ModelRef(str(tmp_path / "first"), "hash-of-first")


@pytest.fixture
def compared_run(train_run: MakeRun) -> MakeRun:
    """A training job with held-out pairs and prompts to compare policies on."""

    def make(**fields: Any) -> Path:
        run_dir = train_run([*map(triple, range(6)), triple(6, "held_out")], **{"probe_tokens": 12} | fields)
        lines = [question(number, f"Probe {number}?").to_json() + "\n" for number in range(PROMPTS)]
        (run_dir / "probes.jsonl").write_text("".join(lines))
        return run_dir

    return make


def test_where_the_reference_is_the_first_policy_both_distances_are_one(compared_run: MakeRun) -> None:
    figures = succeed("train_dpo", compared_run())["on_policy"]
    before, after = figures["before"], figures["after"]
    assert (figures["prompts"], figures["max_new_tokens"], after["prompts"]) == (PROMPTS, 12, PROMPTS)
    assert before["kl_reference"] == before["kl_first"] == 0
    assert after["kl_first"] == after["kl_reference"] > 0.01
    assert after["kl_first_interval"] == after["kl_reference_interval"]
    assert after["kl_first_per_token"] == after["kl_reference_per_token"]


def test_the_first_policy_is_measured_before_and_after(compared_run: MakeRun, first: ModelRef) -> None:
    figures = succeed("train_dpo", compared_run(first=first, first_is_reference=False))["on_policy"]
    assert figures["before"]["kl_reference"] == 0
    assert figures["before"]["kl_first"] > 0.01
    after = figures["after"]
    assert after["kl_first"] > 0.01
    assert abs(after["kl_first"] - after["kl_reference"]) > 0.01


def test_a_first_policy_that_cannot_be_measured_has_no_figures(compared_run: MakeRun) -> None:
    figures = succeed("train_dpo", compared_run(first_is_reference=False))["on_policy"]
    assert figures["after"]["kl_reference"] > 0.01
    assert not [name for part in ("before", "after") for name in figures[part] if "first" in name]


def test_the_change_is_that_of_each_prompt(compared_run: MakeRun) -> None:
    figures = succeed("train_dpo", compared_run())["on_policy"]
    change = figures["change"]
    assert change["prompts"] == PROMPTS
    for name in ("mean_tokens", "finish_rate"):
        assert change[name] == pytest.approx(figures["after"][name] - figures["before"][name])
    assert "responses" not in json.dumps(figures)  # they are in the run's directory, for a run that goes on


def test_the_next_run_finds_the_figures_of_the_reference(
    compared_run: MakeRun, tmp_path: Path, first: ModelRef
) -> None:
    def run(name: str, **fields: Any) -> tuple[dict[str, Any], int]:
        """Figures before, and how often responses were compared."""
        run_dir = compared_run(name=name, cache_dir=str(tmp_path / "cache"), **fields)
        figures = succeed("train_dpo", run_dir)["on_policy"]["before"]
        lines = read_lines(run_dir, "metrics.jsonl")
        return figures, sum(line.get("phase") == comparison.PHASE and "done" not in line for line in lines)

    assert [run(name, epochs=epochs)[1] for name, epochs in (("one", 1.0), ("two", 2.0))] == [2, 1]
    assert run("three")[0] == run("four")[0]
    assert run("another seed", seed=9)[1] == 1
    beside_first, compared = run("beside the first", first=first, first_is_reference=False)
    assert (beside_first["kl_first"] > 0.01, compared) == (True, 2)
    assert run("in halves", precision="bfloat16")[1] == 2


def test_figures_of_an_earlier_version_are_gone_on_from(compared_run: MakeRun) -> None:
    """It kept no single responses."""
    run_dir = compared_run()
    succeed("train_dpo", run_dir)
    kept = run_dir / "trainer" / "before.json"
    figures = json.loads(kept.read_text())
    assert len(figures.pop("responses")) == PROMPTS
    kept.write_text(json.dumps(figures))
    assert succeed("train_dpo", run_dir)["on_policy"]["change"] == {}


def test_the_result_has_the_flags_of_its_figures(compared_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "KL_BUDGET", 0.0)
    monkeypatch.setattr(guards, "DISPLACED", -1e9)
    codes = [flag["code"] for flag in succeed("train_dpo", compared_run())["flags"]]
    assert codes[:2] == ["few_held_out", "displaced_chosen"]
    assert codes[-1] == "far_from_reference"


def test_a_run_that_unlearns_what_people_chose_is_stopped(
    compared_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "DISPLACED_STOP", -1e9)  # nothing is likely enough
    result = do("train_dpo", compared_run(epochs=4.0))
    assert result.error_code == "displaced"
    assert f"step {guards.DISPLACED_STEPS} " in result.error
