"""What is different on a GPU: as much of it as a CPU can run, then what only a GPU can.

Tests marked ``needs_gpu`` are skipped where there is none, and no figure of them is known from such a machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from tests.engine import architectures
from tests.engine.prepared import move, ready_setting, ready_trainer, whole_step
from tests.engine.runs import ROOT, start, steps, succeed, triple
from training import jobspec
from training.engine import compute as compute_module
from training.engine import dpo, guards, launch, memory, packed_attention, scoring
from training.engine.arrangement import Span, Unlabelled
from training.engine.compute import Compute
from training.engine.packed_attention import PackedAttention, block_mask
from training.engine.scoring import AGREEMENT, Scorer, add_scoring_head
from training.jobspec import TrainJob

MakeRun = Callable[..., Path]
GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
needs_gpu = pytest.mark.skipif(GPUS < 1, reason="needs an NVIDIA GPU")
needs_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two NVIDIA GPUs")

HEADS, WIDTH = 4, 16
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BF16 = torch.bfloat16


def spans_of(*lengths: tuple[int, int, int]) -> list[Span]:
    found, start = [], 0
    for prompt, chosen, rejected in lengths:
        borders = (start, start + prompt, start + prompt + chosen, start + prompt + chosen + rejected)
        found.append(Span(*borders))
        start = borders[-1]
    return found


LAYOUTS = [
    spans_of((1, 1, 1)),
    spans_of((5, 3, 2)),
    spans_of((3, 17, 1), (9, 1, 9), (1, 8, 1)),
    spans_of((120, 30, 40), (60, 70, 1)),  # over the borders of the kernel's blocks
]


def tensors(columns: int, kv_heads: int, device: torch.device = CPU) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    shapes = [(1, heads, columns, WIDTH) for heads in (HEADS, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(device).requires_grad_(True) for shape in shapes]


def attention_over(spans: list[Span]) -> PackedAttention:
    attention = PackedAttention()
    attention.spans = spans
    return attention


# Attention in one call.


@pytest.mark.parametrize("spans", LAYOUTS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 6, 1000])
def test_one_call_gives_what_pair_by_pair_gives(
    monkeypatch: pytest.MonkeyPatch, spans: list[Span], kv_heads: int, window: int | None
) -> None:
    """By FlexAttention's own definition, which is not compiled here."""
    monkeypatch.setattr(packed_attention, "compiled_flex_attention", lambda: flex_attention)
    attention = attention_over(spans)
    inputs = [item.detach() for item in tensors(spans[-1].end, kv_heads)]
    expected = attention.pair_by_pair(*inputs, 0.3, window)
    torch.testing.assert_close(attention.in_one_call(*inputs, 0.3, window), expected, rtol=1e-4, atol=1e-5)
    blocks = attention.blocks[window]
    attention.in_one_call(*inputs, 0.3, window)  # of the next layer
    assert list(attention.blocks) == [window]
    assert attention.blocks[window] is blocks


@pytest.mark.parametrize("spans", LAYOUTS)
@pytest.mark.parametrize("window", [None, 6])
def test_its_mask_gives_the_gradients_of_pair_by_pair(spans: list[Span], window: int | None) -> None:
    """FlexAttention has no backward on a CPU; what its mask says is put to plain attention instead."""
    columns = spans[-1].end
    mask = dense(block_mask(spans, CPU, window), columns)
    upstream = torch.randn(1, HEADS, columns, WIDTH)
    found = []
    for masked in (True, False):
        inputs = tensors(columns, HEADS)
        if masked:
            output = F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3)
        else:
            output = attention_over(spans).pair_by_pair(*inputs, 0.3, window)
        output.backward(upstream)
        found.append([item.grad for item in inputs])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def dense(mask: Any, columns: int) -> torch.Tensor:
    """(columns, columns) bool of a block mask."""
    places = torch.arange(columns)
    return mask.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None, :])


def test_rows_of_any_length_are_compiled_a_few_times_and_no_more() -> None:
    """Beyond ``recompile_limit`` torch would go on without the kernel, and hold all scores in memory."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    dynamo.reset()
    counters.clear()
    compiled = torch.compile(flex_attention, dynamic=True, backend="eager")
    generator = torch.Generator().manual_seed(1)
    for number in range(24):
        lengths = torch.randint(1, 90, (number % 4 + 1, 3), generator=generator).tolist()
        spans = spans_of(*(tuple(item) for item in lengths))
        columns, window = spans[-1].end, None if number % 2 else 7
        inputs = [item.detach() for item in tensors(columns, 2)]
        mask = block_mask(spans, CPU, window)
        output = compiled(*inputs, block_mask=mask, scale=0.3, enable_gqa=True)
        expected = attention_over(spans).pair_by_pair(*inputs, 0.3, window)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= dynamo.config.recompile_limit // 2
    dynamo.reset()


# bfloat16.


PAIRS = [
    Unlabelled([5, 6, 7, 8], [300, 301, 302], [310, 311]),
    Unlabelled([9, 10], [320], [330, 331, 332, 333]),
]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("packed", [True, False])
def test_log_probabilities_of_a_bfloat16_model_are_float32(model_type: str, packed: bool) -> None:
    whole = architectures.small_model(model_type)
    half = architectures.small_model(model_type).to(BF16)
    found = []
    for model in (whole, half):
        add_scoring_head(model)
        scorer = Scorer(packed=packed)
        with torch.no_grad(), scorer.over(model), torch.autocast("cpu", dtype=BF16, enabled=model is half):
            found.append(scorer.token_logps(model, scorer.arrange(PAIRS)))
    assert found[1].dtype == torch.float32
    assert found[1].unique().numel() > 5  # not rounded to bfloat16 on their way
    assert 0 < (found[0] - found[1]).abs().max() < AGREEMENT[BF16]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_two_ways_in_bfloat16_agree_well_within_what_the_guard_allows(model_type: str) -> None:
    model = architectures.small_model(model_type).to(BF16)
    add_scoring_head(model)
    compute = Compute(CPU, BF16)
    assert scoring.choose_scorer(model, compute).packed
    found = []
    for packed in (True, False):
        scorer = Scorer(packed=packed)
        with torch.no_grad(), scorer.over(model), compute.autocast():
            found.append(scorer.token_logps(model, scorer.arrange(PAIRS)))
    difference = (found[0] - found[1]).square().mean().sqrt()
    assert difference < guards.REFERENCE_TOLERANCE["bfloat16"] / 2


@pytest.mark.parametrize("fields", [{}, {"mode": "fast", "fast_layers": 1}, {"method": "full", "learning_rate": 1e-3}])
def test_a_run_in_bfloat16_learns_what_one_in_float32_learns(train_run: MakeRun, fields: dict[str, Any]) -> None:
    rows = [triple(number) for number in range(6)] + [triple(9, split="held_out")]
    whole, half = (
        train_run(rows, name=precision, micro_batch=2, precision=precision, **fields)
        for precision in ("float32", "bfloat16")
    )
    succeed("train_dpo", whole)
    details = succeed("train_dpo", half)
    assert details["dtype"] == "bfloat16"
    for one, two in zip(steps(whole), steps(half), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=0.06), one["step"]
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.25), one["step"]
    assert steps(half)[0]["loss"] == pytest.approx(0.6931, abs=0.01)
    weights = next((half / "checkpoint").glob("*model.safetensors"))
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}


def test_what_is_trained_is_float32_below_bfloat16_weights(train_run: MakeRun) -> None:
    trainer = ready_trainer(train_run(2, precision="bfloat16"))
    trained = {tensor.dtype for tensor in trainer.model.parameters() if tensor.requires_grad}
    frozen = {tensor.dtype for tensor in trainer.model.parameters() if not tensor.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {BF16})
    loss, gradients = whole_step(trainer, [0, 1])
    assert loss == pytest.approx(0.6931, abs=0.01)
    assert {tensor.dtype for tensor in gradients.values()} == {torch.float32}


def test_weights_are_not_folded_in_bfloat16(train_run: MakeRun) -> None:
    """A small update would vanish in W + s B A; in x W^T + s (x A^T) B^T it is added before the sum is rounded."""
    trainer = ready_trainer(train_run(2, precision="bfloat16"))
    layer = next(module for module in trainer.model.modules() if hasattr(module, "lora_A"))
    signs = torch.tensor([1.0, -1.0], dtype=BF16).repeat(1, 1, layer.in_features // 2)
    with torch.no_grad():
        layer.base_layer.weight.fill_(1.0)  # so that W x is exactly zero, and W + s B A rounds to W
        layer.lora_B["default"].weight.fill_(1e-5)
        update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.equal((layer.base_layer.weight + update).to(BF16), layer.base_layer.weight)
        assert layer(signs).abs().max() > 0
        torch.testing.assert_close(layer(signs).float(), signs.float() @ update.t(), rtol=0.05, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "has", "expected"),
    [
        ({}, True, "auto"),
        ({"mode": "fast"}, True, "bfloat16"),
        ({"mode": "fast"}, False, "auto"),
        ({"mode": "fast", "precision": "float32"}, True, "float32"),
        ({"precision": "bfloat16"}, False, "bfloat16"),
    ],
)
def test_the_fast_mode_is_bfloat16_where_a_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], has: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": has})
    assert dpo.precision_of(TrainJob(jobspec.ModelRef("", ""), 0, **fields)) == expected


def test_a_run_computes_in_the_precision_of_its_job(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_module, "has_bfloat16", lambda: True)
    fast = {"mode": "fast", "fast_layers": 1}
    for number, (fields, dtype) in enumerate(
        [
            ({"precision": "auto"}, torch.float32),
            ({"precision": "auto"} | fast, BF16),
            ({"precision": "float32"} | fast, torch.float32),
            ({"precision": "auto", "method": "full"} | fast, torch.float32),
        ]
    ):
        assert ready_setting(train_run(2, name=str(number), **fields)).compute == Compute(CPU, dtype)


@pytest.mark.parametrize("native", [True, False])
def test_the_kernel_for_float32_serves_bfloat16_where_the_cpu_emulates_it(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    """In float32, to which autocast must not put an end: its kernel for bfloat16 is the slower one."""
    monkeypatch.setattr(packed_attention, "has_bfloat16", lambda: native)
    genuine, seen = F.scaled_dot_product_attention, []

    def watched(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return genuine(query, *args, **kwargs)

    monkeypatch.setattr(packed_attention.F, "scaled_dot_product_attention", watched)
    trainer = ready_trainer(train_run(2, precision="bfloat16"))
    seen.clear()
    whole_step(trainer, [0, 1])
    assert set(seen) == (set() if native else {(torch.float32, False)})


def test_precision_is_that_of_the_device_or_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, dtype in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", BF16)):
        assert compute_module.choose("cpu", 0, precision) == Compute(CPU, dtype)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for precision, dtype in (("auto", BF16), ("float32", torch.float32), ("bfloat16", BF16)):
        assert compute_module.choose("cuda", 0, precision) == Compute(torch.device("cuda", 0), dtype)


# Where it computes.


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compute_module.choose("auto", 0) == Compute(torch.device("cuda", 0), BF16)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert compute_module.choose("cuda", 0) == Compute(torch.device("cuda", 3), BF16)
    assert compute_module.choose("cpu", 0) == Compute(CPU, torch.float32)


def test_processes_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for processes, threads in (("1", 6), ("2", 6), ("8", 6), ("2", 0)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        compute_module.choose("cpu", threads)
    assert asked == [6, 3, 1]


def test_a_cpu_computes_in_float32() -> None:
    with Compute(CPU, torch.float32).autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_the_memory_that_counts_is_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def properties(device: torch.device) -> Any:
        asked.append(device)
        return SimpleNamespace(total_memory=24 * 2**30)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert memory.memory_of(Compute(torch.device("cuda", 2), BF16)) == 24 * 2**30
    assert asked == [torch.device("cuda", 2)]
    machine = memory.memory_of(Compute(CPU, torch.float32))
    assert 2**28 < machine < 2**44
    assert machine != 24 * 2**30


def test_a_larger_gpu_has_room_for_more(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = ready_setting(train_run(6, micro_batch=0, pairs_per_step=6))
    compute = Compute(torch.device("cuda", 0), BF16)
    args = (setting.job, setting.start.plain.config, setting.data.train, compute, setting.scorer)
    monkeypatch.setattr(memory, "memory_of", lambda compute: 80 * 2**30)
    plan = memory.plan(*args)
    assert (plan.room.checkpointing, plan.merge) == (False, False)
    assert plan.room.pairs == 6
    monkeypatch.setattr(memory, "memory_of", lambda compute: 2**20)
    with pytest.raises(Exception, match=r"it has 0\.0") as caught:
        memory.plan(*args)
    assert caught.value.code == "out_of_memory"  # type: ignore[attr-defined]


# A model shared out.

# accelerate shards on GPUs alone. In this process it takes two that talk by gloo for such.
SHARDED = """
import sys
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

def prepare_backend(self, cpu=False, sagemaker_dp=False, backend=None):
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return "gloo", DistributedType.MULTI_GPU

def set_device(self):
    self.device = torch.device("cpu")

PartialState._prepare_backend = prepare_backend
PartialState.set_device = set_device
from training.engine import process, train_dpo
from training.jobspec import TrainJob
process.run(train_dpo.main, TrainJob, "", may_launch=True)
"""


def shard(run_dir: Path) -> int:
    """Do the job of ``run_dir`` in two processes, in the environment that ``accelerate launch`` makes for FSDP."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    job = jobspec.read_job(run_dir, TrainJob)
    arguments = launch_command_parser().parse_args(launch.arguments(run_dir, job, 2))
    environment = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    script = run_dir / "sharded.py"
    script.write_text(SHARDED, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(arguments.main_process_port), str(script), str(run_dir)]
    with (run_dir / "train.log").open("wb") as log:
        environment |= {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_that_is_shared_out_trains_as_a_whole_one(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With three pairs in a step, of which one process has two, so that the other makes a forward for nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [triple(number) for number in range(5)] + [triple(9, split="held_out")]
    fields: dict[str, Any] = {"method": method, "pairs_per_step": 3, "learning_rate": 2e-3}
    alone, shared = (
        train_run(rows, name="alone", **fields),
        train_run(rows, name="shared", processes=2, sharding="fsdp", **fields),
    )
    details = succeed("train_dpo", alone)
    assert shard(shared) == 0, (shared / "train.log").read_text()
    result = jobspec.read_result(shared)
    assert result is not None
    assert result.ok
    for one, two in zip(steps(alone), steps(shared), strict=True):
        for name in ("loss", "reward_margin", "grad_norm"):
            assert two[name] == pytest.approx(one[name], abs=1e-5, rel=1e-5), (name, one["step"])
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    first, second = (load_file(path / "checkpoint" / name) for path in (alone, shared))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert (tensor - second[key]).abs().max() < 1e-5, key
    after = [item["held_out"]["after"]["margin"] for item in (details, result.details)]
    assert after[1] == pytest.approx(after[0], abs=1e-5)


# What only a GPU can run.


@needs_gpu
@pytest.mark.parametrize("spans", LAYOUTS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 6])
def test_the_kernel_gives_values_and_gradients_of_pair_by_pair(
    spans: list[Span], kv_heads: int, window: int | None
) -> None:
    upstream = torch.randn(1, HEADS, spans[-1].end, WIDTH, device=GPU)
    found = []
    for way in ("in_one_call", "pair_by_pair"):
        inputs = tensors(spans[-1].end, kv_heads, GPU)
        output = getattr(attention_over(spans), way)(*inputs, 0.3, window)
        output.backward(upstream)
        found.append([output.detach(), *(item.grad for item in inputs)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2)  # products in TF32


@needs_gpu
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_packed_is_chosen_on_a_gpu_and_agrees_with_rows(model_type: str) -> None:
    model = architectures.small_model(model_type).to(GPU, BF16)
    add_scoring_head(model)
    compute = Compute(GPU, BF16)
    assert scoring.choose_scorer(model, compute).packed
    found = []
    for packed in (True, False):
        scorer = Scorer(packed=packed)
        with torch.no_grad(), scorer.over(model), compute.autocast():
            found.append(scorer.token_logps(model, scorer.arrange(PAIRS, GPU)))
    assert found[0].device == GPU
    assert (found[0] - found[1]).square().mean().sqrt() < guards.REFERENCE_TOLERANCE["bfloat16"]


@needs_gpu
def test_a_step_on_a_gpu_is_that_of_a_cpu_but_for_rounding(train_run: MakeRun) -> None:
    """Frozen weights and products are bfloat16 there and float32 here."""
    found = []
    for device, name in (("cpu", "cpu"), ("cuda", "gpu")):
        trainer = ready_trainer(train_run(4, name=name, device=device, pairs_per_step=4, micro_batch=2))
        move(trainer.model)
        found.append(whole_step(trainer, range(4)))
    assert found[1][0] == pytest.approx(found[0][0], abs=0.05)
    for name, gradient in found[0][1].items():
        other = found[1][1][name].cpu()
        assert F.cosine_similarity(gradient.flatten(), other.flatten(), dim=0) > 0.98, name


@needs_gpu
def test_a_step_on_a_gpu_does_not_depend_on_how_it_is_cut(train_run: MakeRun) -> None:
    found = []
    for micro_batch in (1, 2, 4):
        run_dir = train_run(4, name=f"cut-{micro_batch}", device="cuda", pairs_per_step=4, micro_batch=micro_batch)
        trainer = ready_trainer(run_dir)
        move(trainer.model)
        found.append(whole_step(trainer, range(4)))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=0.02)
        for name, gradient in found[0][1].items():
            assert F.cosine_similarity(gradient.flatten(), gradients[name].flatten(), dim=0) > 0.99, name


@needs_gpu
def test_the_same_job_gives_the_same_bytes_on_a_gpu(train_run: MakeRun) -> None:
    runs = [train_run(6, name=name, device="cuda") for name in ("first", "second")]
    for run_dir in runs:
        details = succeed("train_dpo", run_dir)
        assert (details["device"], details["dtype"]) == ("cuda", "bfloat16")
    first, second = ((run_dir / "checkpoint" / "adapter_model.safetensors").read_bytes() for run_dir in runs)
    assert first == second


@needs_gpu
def test_a_run_that_is_stopped_on_a_gpu_goes_on(train_run: MakeRun) -> None:
    import time

    run_dir = train_run(6, device="cuda", epochs=200.0)
    child = start("train_dpo", run_dir, stderr=subprocess.DEVNULL)
    while not (run_dir / "metrics.jsonl").exists() or not steps(run_dir):
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == jobspec.EXIT_INTERRUPTED
    assert succeed("train_dpo", run_dir)["steps"] == 600


@needs_gpus
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_gpus_train_what_one_trains(train_run: MakeRun, sharding: str) -> None:
    rows = [triple(number) for number in range(7)]
    fields: dict[str, Any] = {"device": "cuda", "pairs_per_step": 4, "learning_rate": 2e-3}
    alone = train_run(rows, name="alone", **fields)
    shared = train_run(rows, name="shared", processes=2, sharding=sharding, **fields)
    succeed("train_dpo", alone)
    assert start("train_dpo", shared, env=os.environ | {"CUDA_VISIBLE_DEVICES": "0,1"}).wait(timeout=280) == 0
    for one, two in zip(steps(alone), steps(shared), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=0.05), one["step"]


@needs_gpu
def test_every_gpu_is_used_where_none_is_named() -> None:
    assert launch.processes_wanted(TrainJob(jobspec.ModelRef("", ""), 0, processes=0)) == GPUS
