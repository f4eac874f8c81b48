"""How hard the loss pulls at each pair: what the number is, and that it survives whatever ends a run early."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.runs import JOB_TYPES, entry, read_lines, start, steps, succeed, triple
from training.engine import dpo_trainer, process
from training.engine.losses import LossSettings, PairLogps, pair_losses
from training.engine.pulls import KEPT, TOLD, PullRecord, pulls
from training.jobspec import EXIT_INTERRUPTED

MakeRun = Callable[..., Path]
NOISES, WEIGHTS = (0.0, 0.2, 0.5), (1.0, 0.5, 2.0)
LOSSES = ["dpo", "ipo", "hinge", "robust", "apo_zero", "apo_down"]


def _logps(seed: int = 0, tokens: int = 5, scale: float = 1.0) -> PairLogps:
    """Three pairs of different lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 3, 4]), torch.tensor([2, 5, 4])
    sides = []
    for number in range(4):
        values = -scale * torch.rand((3, tokens), generator=generator)
        sides.append(values * (torch.arange(tokens) < lengths[number % 2][:, None]))
    return PairLogps(*sides, *lengths)


def _labels(noises: tuple[float, ...] = NOISES) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(WEIGHTS), torch.tensor(noises)


def test_under_dpo_it_is_the_derivative_that_the_docstring_says():
    logps, (weight, noise), beta = _logps(scale=20), _labels(), 0.1
    chosen = (logps.policy_chosen - logps.reference_chosen).double().sum(dim=1)
    rejected = (logps.policy_rejected - logps.reference_rejected).double().sum(dim=1)
    z = beta * (chosen - rejected)
    expected = weight * beta * (noise * torch.sigmoid(z) - (1 - noise) * torch.sigmoid(-z)).abs()
    torch.testing.assert_close(pulls(logps, weight, noise, LossSettings("dpo", beta)), expected.double())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("sft_weight", "ld_alpha"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.4)])
def test_it_is_the_derivative_of_every_loss_by_finite_differences(name, sft_weight, ld_alpha):
    logps, labels = _logps(seed=3), _labels((0.0, 0.1, 0.3))
    settings = LossSettings(name, 0.3, sft_weight, ld_alpha)

    def moved(side: str, by: float) -> torch.Tensor:
        fields = {field: value.double() if value.is_floating_point() else value for field, value in vars(logps).items()}
        tokens = fields[f"{side}_tokens"]
        is_token = torch.arange(fields[f"policy_{side}"].shape[1]) < tokens[:, None]
        fields[f"policy_{side}"] = fields[f"policy_{side}"] + is_token * (by / tokens)[:, None]
        return pair_losses(PairLogps(**fields), *(label.double() for label in labels), settings)

    slopes = [(moved(side, 1e-5) - moved(side, -1e-5)) / 2e-5 for side in ("chosen", "rejected")]
    torch.testing.assert_close(
        pulls(logps, *labels, settings), sum(slope.abs() for slope in slopes) / 2, atol=1e-7, rtol=1e-5
    )


def test_a_tie_at_margin_zero_and_a_pair_of_no_weight_pull_at_nothing():
    logps = _logps()
    equal = PairLogps(logps.policy_chosen, logps.policy_rejected, logps.policy_chosen, logps.policy_rejected,
                      logps.chosen_tokens, logps.rejected_tokens)  # fmt: skip
    found = pulls(equal, torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 0.5, 0.0]), LossSettings("dpo", 0.1))
    assert found.tolist() == [0.05, 0.0, 0.0]


def _told(run_dir: Path) -> list[dict]:
    return read_lines(run_dir, TOLD)


def test_a_run_tells_of_each_line_that_it_trained_on(train_run: MakeRun):
    """Also where a line was left out before it: here the prompt of the second has more tokens than are read."""
    rows = [triple(number) for number in range(5)]
    rows[1] = triple(1, messages=[{"role": "user", "content": "word " * 200}])
    rows.insert(3, triple(9, split="held_out"))
    run_dir = train_run(rows, epochs=3.0)
    succeed("train_dpo", run_dir)
    told = _told(run_dir)
    assert [(line["line"], line["pair_id"], line["visits"]) for line in told] == [
        (1, "pair-0", 3), (3, "pair-2", 3), (5, "pair-3", 3), (6, "pair-4", 3),
    ]  # fmt: skip
    first = {place: pull for step in read_lines(run_dir, KEPT)[:2] for place, pull, _ in step["pairs"]}
    assert first[read_lines(run_dir, KEPT)[0]["pairs"][0][0]] == pytest.approx(0.05, abs=1e-6), "half of beta at z = 0"
    for line in told:
        assert 0 < line["pull"] < 3 * 0.1
        assert line["margin"] != 0
        # Per visit at most w beta: the derivative of the loss itself, at the margin that was logged.
        assert line["pull"] > 0.1 / (1 + math.exp(line["margin"])) * 0.9


def test_the_margins_are_those_that_the_steps_are_logged_with(train_run: MakeRun):
    run_dir = train_run(6, epochs=1.0)
    succeed("train_dpo", run_dir)
    by_step = [[margin for _, _, margin in step["pairs"]] for step in read_lines(run_dir, KEPT)]
    logged = [line["reward_margin"] for line in steps(run_dir)]
    assert [sum(margins) / len(margins) for margins in by_step] == pytest.approx(logged, abs=1e-9)


def _finish(run_dir: Path) -> None:
    process.stop.requested = False
    succeed("train_dpo", run_dir)


def test_a_run_that_was_stopped_in_the_middle_of_a_step_ends_with_the_same_bytes(train_run: MakeRun, monkeypatch):
    whole, cut = train_run(6, name="whole"), train_run(6, name="cut")
    succeed("train_dpo", whole)
    real, calls = dpo_trainer.PairTrainer.beside_reference, []

    def stops(self, inputs, values):
        calls.append(1)
        if len(calls) == 8:  # in the fourth step, with its first pair noted already
            process.stop.requested = True
        return real(self, inputs, values)

    monkeypatch.setattr(dpo_trainer.PairTrainer, "beside_reference", stops)
    assert process.execute(entry("train_dpo"), JOB_TYPES["train_dpo"], cut) == EXIT_INTERRUPTED
    assert not (cut / TOLD).exists()
    _finish(cut)
    assert (cut / TOLD).read_bytes() == (whole / TOLD).read_bytes()
    assert (cut / KEPT).read_bytes() == (whole / KEPT).read_bytes()


def test_a_run_that_was_killed_ends_with_the_same_bytes(train_run: MakeRun):
    """By a signal that nothing can catch, some steps after the last saved state."""
    fields = {"epochs": 12.0, "save_every_steps": 5}
    whole, cut = train_run(6, name="whole", **fields), train_run(6, name="cut", **fields)
    succeed("train_dpo", whole)
    engine = start("train_dpo", cut, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (cut / KEPT).exists() or (cut / KEPT).read_bytes().count(b"\n") < 13:
            assert engine.poll() is None
    finally:
        engine.send_signal(signal.SIGKILL)
        engine.wait(timeout=30)
    _finish(cut)
    assert (cut / TOLD).read_bytes() == (whole / TOLD).read_bytes()


@pytest.mark.parametrize("lines", ["torn", "short", "missing"])
def test_sums_over_a_part_of_the_steps_are_not_told(tmp_path: Path, lines: str):
    """A run that an earlier version began, or a record that somebody has cut: no number is better than a wrong one."""
    (tmp_path / "trainer").mkdir()
    step = [json.dumps({"step": number, "pairs": [[0, 0.05, 0.0]]}) + "\n" for number in (1, 2, 3)]
    text = {"torn": "".join(step)[:-9], "short": step[0] + step[2], "missing": ""}[lines]
    (tmp_path / KEPT).write_text(text)
    (tmp_path / TOLD).write_text("of an earlier attempt\n")
    record = PullRecord(tmp_path)
    record.rewind(3)
    assert not record.is_whole
    record.tell([])
    assert not (tmp_path / TOLD).exists()


def test_pairs_are_in_the_order_of_the_snapshot_however_they_were_visited(train_run: MakeRun):
    one, two = train_run(8, name="one", micro_batch=1), train_run(8, name="two", micro_batch=4)
    for run_dir in (one, two):
        succeed("train_dpo", run_dir)
    assert [line["line"] for line in _told(one)] == [line["line"] for line in _told(two)] == list(range(1, 9))
    for mine, other in zip(_told(one), _told(two), strict=True):
        assert mine["pull"] == pytest.approx(other["pull"], rel=1e-3), "the arithmetic differs, not the meaning"
