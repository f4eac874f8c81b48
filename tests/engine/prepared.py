"""A trainer as a run prepares it, and one optimiser step of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training import jobspec
from training.engine import dpo, frozen_layers
from training.engine.compute import Compute
from training.engine.dpo_trainer import PairTrainer
from training.engine.journal import MetricsJournal
from training.engine.setting import Setting
from training.jobspec import TrainJob

CPU = Compute(torch.device("cpu"), torch.float32)
Gradients = dict[str, torch.Tensor]


def read_job(run_dir: Path) -> TrainJob:
    return jobspec.read_job(run_dir, TrainJob)


def ready_setting(run_dir: Path) -> Setting:
    job = read_job(run_dir)
    states = frozen_layers.open_cache(dpo.cache_dir(run_dir, job), job.cache_mb)
    return dpo.prepare(run_dir, job, MetricsJournal(run_dir), states)


def ready_trainer(run_dir: Path) -> PairTrainer:
    """With the reference's values read, before the first step."""
    setting = ready_setting(run_dir)
    values, _ = dpo.read_reference(setting)
    trainer, _ = dpo.build_trainer(setting, values[: len(setting.data.train)])
    trainer.accelerator.prepare_model(trainer.model)  # puts autocast around the model's forward, as ``train`` does
    return trainer


def move(policy: torch.nn.Module, size: float = 0.02, seed: int = 1) -> None:
    """Change everything that is trained, so that the policy is no longer the reference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in trained(policy):
            tensor += size * torch.randn(tensor.shape, generator=generator)


def trained(policy: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, tensor) for name, tensor in sorted(policy.named_parameters()) if tensor.requires_grad]


def whole_step(trainer: PairTrainer, places: Sequence[int]) -> tuple[float, Gradients]:
    """Loss and gradients of an optimiser step on the pairs at ``places``, wherever the policy stands."""
    trainer.course.plan.append(list(places))
    trainer.state.global_step = max(1, trainer.state.global_step)  # else the guard wants policy and reference alike
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, {"step": len(trainer.course.plan) - 1})
    return loss.item(), gradients(trainer.model)


def gradients(policy: torch.nn.Module) -> Gradients:
    return {name: tensor.grad.clone() for name, tensor in trained(policy) if tensor.grad is not None}


def assert_same_step(ours: tuple[float, Gradients], other: tuple[float, Gradients]) -> None:
    """Loss within 1e-5 and each tensor's gradient within 1e-4, both relative."""
    assert abs(ours[0] - other[0]) <= 1e-5 * abs(other[0])
    assert ours[1].keys() == other[1].keys()
    for name, expected in other[1].items():
        assert (ours[1][name] - expected).norm() <= 1e-4 * expected.norm(), name


def examples_of(trainer: PairTrainer) -> list[Any]:
    return [example.triple for example in trainer.course.examples]
