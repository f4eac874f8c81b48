"""How much is in memory at once: as planned, as asked for, and what happens where it is still too much."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks

from tests.engine import architectures
from tests.engine.prepared import CPU, assert_same_step, move, ready_setting, ready_trainer, whole_step
from tests.engine.runs import adapter_bytes, do, steps, succeed, triple
from tests.engine.test_processes import stop_after
from training import footprint
from training.engine import lora_products, memory, packed_attention, resume, scoring
from training.engine.arrangement import Unlabelled
from training.engine.dpo_trainer import PairTrainer
from training.engine.memory import Room
from training.engine.scoring import Scorer
from training.footprint import Shape
from training.jobspec import MEMORY_RAN_OUT, Completion, ModelRef, Result, TripleLine

MakeRun = Callable[..., Path]
MIB = 2**20
# What torch says on a CPU, word for word.
NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


def unequal_pairs() -> list[TripleLine]:
    return [triple(number, chosen=Completion(" bird" * (5 * number + 1))) for number in range(6)]


def sizes(trainer: PairTrainer, places: Any = range(6)) -> list[list[int]]:
    """Positions of each pair in each micro-batch."""
    batches = trainer.micro_batches([trainer.course.examples[place] for place in places])
    return [[trainer.course.scorer.positions([example.triple]) for example in batch] for batch in batches]


def test_a_micro_batch_holds_what_there_is_room_for_from_long_to_short(train_run: MakeRun) -> None:
    trainer = ready_trainer(train_run(unequal_pairs(), pairs_per_step=6, micro_batch=0))
    lengths = [size for batch in sizes(trainer) for size in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) == 6
    for tokens, pairs in ((lengths[0], 6), (lengths[0] + lengths[1], 6), (10**6, 2), (1, 6), (150, 3)):
        trainer.course.room = Room(tokens, pairs)
        batches = sizes(trainer)
        assert sorted(size for batch in batches for size in batch) == sorted(lengths)
        assert all(sum(batch) <= max(tokens, batch[0]) and len(batch) <= pairs for batch in batches)
        for batch, after in itertools.pairwise(batches):  # none could have taken one more
            assert sum(batch) + after[0] > tokens or len(batch) == pairs


def test_rows_are_counted_with_their_padding(train_run: MakeRun) -> None:
    trainer = ready_trainer(train_run(unequal_pairs(), pairs_per_step=6, micro_batch=0))
    trainer.course.scorer = Scorer(packed=False)
    widest = max(size for batch in sizes(trainer) for size in batch)
    for pairs in (1, 2, 3, 6):
        trainer.course.room = Room(pairs * widest, 10**6)
        for batch in trainer.micro_batches(trainer.course.examples):
            assert trainer.arrange(batch).input_ids.numel() <= pairs * widest
        assert len(sizes(trainer)[0]) == pairs


@pytest.mark.parametrize(("micro_batch", "expected"), [(1, 1), (2, 2), (3, 3), (8, 4)])
def test_a_micro_batch_that_is_asked_for_is_made(train_run: MakeRun, micro_batch: int, expected: int) -> None:
    """Also where it is more than a step has."""
    run_dir = train_run([triple(0)] * 4, pairs_per_step=4, micro_batch=micro_batch)
    trainer = ready_trainer(run_dir)
    assert max(map(len, sizes(trainer, range(4)))) == expected


def test_as_many_as_gain_anything_are_planned(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(footprint.MOST_TOKENS, "cpu", 150)
    trainer = ready_trainer(train_run(unequal_pairs(), pairs_per_step=6, micro_batch=0))
    assert trainer.course.room == Room(150, 6)
    assert all(sum(batch) <= 150 for batch in sizes(trainer))


def limited(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda compute: int(limit))


def needed(run_dir: Path) -> float:
    """Bytes that ``run_dir`` is expected to take with one pair at once, without folded products."""
    setting = ready_setting(run_dir)
    expected = setting.plan.expected
    return expected.total - expected.products


def test_memory_decides_how_much_is_at_once(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less of it: fewer pairs, then no folded products, then one pair with checkpointing, then none."""
    run_dir = train_run([triple(0)] * 6, name="one", pairs_per_step=6, micro_batch=1)
    one = needed(run_dir)
    run_dir = train_run([triple(0)] * 6, name="six", pairs_per_step=6, micro_batch=6)
    six = ready_setting(run_dir).plan.expected.total
    found = []
    for limit in (10 * six, 1.0001 * one / footprint.SHARE, 0.999 * one / footprint.SHARE):
        limited(monkeypatch, limit)
        plan = ready_setting(run_dir).plan
        found.append((plan.room.pairs, plan.room.checkpointing, plan.merge))
        assert plan.expected.total <= footprint.LAST_SHARE * limit
    assert found == [(6, False, True), (1, False, False), (1, True, False)]


def test_a_pair_that_does_not_fit_is_refused_before_the_first_step(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 300 * MIB)
    run_dir = train_run(2)
    result = do("train_dpo", run_dir)
    assert result.error_code == "out_of_memory"
    assert "it has 0.3." in result.error
    assert "one pair of 3" in result.error  # tokens
    assert "shorter maximum length" in result.hint
    assert steps(run_dir) == []


def test_a_run_in_the_last_corner_of_memory_gives_the_same_policy(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpointing and PEFT's own products, where there would be folded ones: the same up to rounding."""
    roomy, tight = (train_run(unequal_pairs(), name=name, pairs_per_step=6, micro_batch=0) for name in ("a", "b"))
    succeed("train_dpo", roomy)
    expected = ready_setting(tight).plan.expected
    limited(monkeypatch, (expected.total - expected.products - expected.activations) / footprint.SHARE)
    details = succeed("train_dpo", tight)
    assert details["memory"]["checkpointing"]
    for one, other in zip(steps(roomy), steps(tight), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-5)


def test_what_was_planned_is_told(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 4096 * MIB)
    details = succeed("train_dpo", train_run(3, micro_batch=2))["memory"]
    assert details["limit_mb"] == 4096
    assert details["micro_batch"] == 2
    assert details["halved"] is False
    assert details["peak_rss_mb"] > 100
    assert 100 < details["estimate_mb"] < 4096


def test_the_plan_does_not_follow_what_else_runs_here(train_run: MakeRun) -> None:
    """Or the same job would give other bytes on another day."""
    assert ready_setting(train_run(2)).plan.limit == footprint.machine_memory()


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, times: set[int], *, backward: bool = False) -> list[int]:
    """Let the numbered micro-batches fail; returns how many positions each one had that was tried."""
    tried: list[int] = []
    genuine = Scorer.token_logps

    def token_logps(self: Scorer, model: Any, batch: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return genuine(self, model, batch)
        tried.append(batch.input_ids.numel())
        if len(tried) not in times:
            return genuine(self, model, batch)
        if not backward:
            raise error
        values = genuine(self, model, batch)
        values.register_hook(lambda grad: raise_it(error))
        return values

    monkeypatch.setattr(Scorer, "token_logps", token_logps)
    return tried


def raise_it(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("failed", [1, 2, 3])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(NO_MEMORY), torch.OutOfMemoryError("out of memory")])
def test_a_step_that_ran_out_of_memory_is_made_again_in_half_the_room(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, error: Exception, failed: int, backward: bool
) -> None:
    """Whichever micro-batch it was, and forward or backward: what was done before it counts once."""
    trainer = ready_trainer(train_run(unequal_pairs(), pairs_per_step=6, micro_batch=2))
    move(trainer.model)
    expected = whole_step(trainer, range(6))
    room = trainer.course.room
    half = max(map(sum, sizes(trainer))) // 2  # of what was at once, which may be less than there was room for
    with monkeypatch.context() as patched:
        tried = failing(patched, error, {failed}, backward=backward)
        outcome = whole_step(trainer, range(6))
    assert_same_step(outcome, expected)
    assert len(tried) == failed + 6
    assert max(tried[failed:]) == max(sizes(trainer))[0]  # one pair at once
    assert (room.tokens, room.pairs, room.checkpointing, room.halved) == (half, 1, False, True)
    assert trainer.totals.pairs == 6


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_single_pair_has_no_half_and_is_computed_with_checkpointing(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, method: str, mode: str
) -> None:
    trainer = ready_trainer(train_run(unequal_pairs(), pairs_per_step=6, micro_batch=1, method=method, mode=mode))
    move(trainer.model)
    expected = whole_step(trainer, range(6))
    with monkeypatch.context() as patched:
        tried = failing(patched, MemoryError(), {2})
        outcome = whole_step(trainer, range(6))
    assert_same_step(outcome, expected)
    assert len(tried) == 2 + 6
    assert (trainer.course.room.checkpointing, trainer.course.room.halved) == (True, True)
    assert all(module.gradient_checkpointing for module in trainer.model.modules() if hasattr(module, "gradient_checkpointing"))  # fmt: skip  # noqa: E501


def test_the_second_time_it_is_the_end(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = train_run(unequal_pairs(), pairs_per_step=6, micro_batch=2)
    tried = failing(monkeypatch, RuntimeError(NO_MEMORY), {1, 5})
    result = do("train_dpo", run_dir)
    assert result.error_code == "out_of_memory"
    assert "maximum length" in result.hint
    assert len(tried) == 5
    assert not (run_dir / "checkpoint").exists()


def test_other_errors_are_no_reason_to_try_again(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = train_run(2)
    tried = failing(monkeypatch, RuntimeError("the size of tensor a must match"), {1})
    result: Result = do("train_dpo", run_dir)
    assert result.error_code == "crashed"
    assert len(tried) == 1


def test_a_halved_run_says_so_and_goes_on_halved(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halved = (train_run(unequal_pairs(), name=name, pairs_per_step=3, micro_batch=2) for name in ("a", "b"))
    assert succeed("train_dpo", whole)["memory"]["halved"] is False
    with monkeypatch.context() as patched:
        tried = failing(patched, MemoryError(), {4})
        details = succeed("train_dpo", halved)["memory"]
    assert (details["halved"], details["pairs"]) == (True, 1)
    assert len(tried) == 2 + 1 + 1 + 3 + 2 * 3  # step 1; step 2 fails at its second micro-batch; then three a step
    assert [line["step"] for line in steps(halved)] == [1, 2, 3, 4]
    for one, other in zip(steps(whole), steps(halved), strict=True):
        for name in ("loss", "reward_margin", "grad_norm", "logp_chosen"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5)


def mark(run_dir: Path) -> None:
    """As the supervisor does when the kernel has ended an engine that has begun."""
    resume.last_state(run_dir / "trainer", resume.job_identity(run_dir, CPU.name))
    (run_dir / MEMORY_RAN_OUT).touch()


@pytest.mark.parametrize("long", [1, 2])
def test_the_peak_is_what_is_halved(train_run: MakeRun, long: int) -> None:
    """One long pair alone beside short ones together: its step is what memory ran out in, and it has no half."""
    pairs = [triple(number, chosen=Completion(" bird" * (80 if number < long else 2))) for number in range(6)]
    run_dir = train_run(pairs, pairs_per_step=6, micro_batch=0)
    trainer = ready_trainer(run_dir)
    longest = trainer.course.scorer.positions([trainer.course.examples[0].triple])
    trainer.course.room.tokens = longest * long
    assert len(sizes(trainer)[0]) == long
    assert len(sizes(trainer)[-1]) > 1
    trainer.make_room(range(6))
    assert trainer.course.room.checkpointing is (long == 1)
    assert max(sum(batch) for batch in sizes(trainer)) == longest
    assert (run_dir / MEMORY_RAN_OUT).exists()


def test_a_run_that_the_kernel_has_ended_goes_on_with_half_of_its_largest_micro_batch(train_run: MakeRun) -> None:
    plain, marked = (train_run(unequal_pairs(), name=name, pairs_per_step=3, micro_batch=2) for name in ("a", "b"))
    mark(marked)
    whole = succeed("train_dpo", plain)["memory"]
    details = succeed("train_dpo", marked)["memory"]
    assert (whole["halved"], details["halved"], details["pairs"]) == (False, True, 1)
    assert [line["step"] for line in steps(marked)] == [1, 2, 3, 4]
    for one, other in zip(steps(plain), steps(marked), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-5)


def test_it_is_halved_once(train_run: MakeRun) -> None:
    """However often the run is begun again: the room that it has made is kept with its states."""
    run_dir = train_run(unequal_pairs(), pairs_per_step=6, micro_batch=4)
    mark(run_dir)
    rooms = [vars(ready_trainer(run_dir).course.room) for _ in range(3)]
    assert rooms[0] == rooms[1] == rooms[2]
    assert (rooms[0]["pairs"], rooms[0]["halved"]) == (2, True)


def test_a_halved_run_that_is_stopped_goes_on_halved(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not run out of memory again, and the bytes are those of a halved run that was not stopped."""
    whole, cut = (train_run(6, name=name, pairs_per_step=3, micro_batch=3, epochs=3) for name in ("whole", "cut"))
    with monkeypatch.context() as patched:
        failing(patched, MemoryError(), {2})
        succeed("train_dpo", whole)
    with monkeypatch.context() as patched:
        failing(patched, MemoryError(), {2})
        stop_after(4, cut, monkeypatch)
    with monkeypatch.context() as patched:
        tried = failing(patched, MemoryError(), set())
        assert succeed("train_dpo", cut)["memory"]["halved"]
    assert len(tried) == 2 * 3
    assert adapter_bytes(whole) == adapter_bytes(cut)


def test_a_fast_run_recovers_too(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for the lower layers is put away when a step fails."""
    whole, halved = (train_run(4, name=name, mode="fast", pairs_per_step=4, micro_batch=2) for name in ("a", "b"))
    succeed("train_dpo", whole)
    with monkeypatch.context() as patched:
        failing(patched, MemoryError(), {2}, backward=True)
        assert succeed("train_dpo", halved)["memory"]["halved"]
    for one, other in zip(steps(whole), steps(halved), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-5)


def test_the_micro_batch_does_not_change_the_order_of_pairs_nor_their_weight(train_run: MakeRun) -> None:
    """The same bytes where the cuts are the same, whatever led to them."""
    asked = train_run(unequal_pairs(), name="asked", pairs_per_step=3, micro_batch=3)
    planned = train_run(unequal_pairs(), name="planned", pairs_per_step=3, micro_batch=0)
    for run_dir in (asked, planned):
        succeed("train_dpo", run_dir)
    assert adapter_bytes(asked) == adapter_bytes(planned)


def test_padded_rows_are_planned_for_where_they_are_used(train_run: MakeRun, tmp_path: Path) -> None:
    """Falcon's attention cannot be replaced, so a prompt is there twice."""
    directory = architectures.build("falcon", tmp_path / "model")
    setting = ready_setting(train_run(2, reference=ModelRef(str(directory), "h"), micro_batch=1))
    pair = max(setting.data.train, key=lambda item: setting.scorer.positions([item]))
    assert not setting.scorer.packed
    assert setting.plan.room.tokens == 2 * (len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)))


@pytest.mark.parametrize(("width", "native"), [(64, True), (64, False), (32, True), (16, True)])
def test_a_step_in_bfloat16_keeps_no_more_than_is_planned(
    monkeypatch: pytest.MonkeyPatch, width: int, native: bool
) -> None:
    """Attention weights and all, which ``bfloat16_attention`` keeps: of 1,024 keys the most for heads of 64."""
    monkeypatch.setattr(packed_attention, "has_bfloat16", lambda: native)
    layers, rank, pair = 2, 16, Unlabelled([1] * 512, [2] * 512, [3] * 512)
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 512 // width}
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    model = architectures.small_model("llama", **sizes, num_hidden_layers=layers).bfloat16()
    scoring.add_scoring_head(model)
    policy = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    lora_products.add_products(policy)
    scorer = Scorer(packed=True)
    weights = {tensor.untyped_storage().data_ptr() for tensor in policy.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = scorer.arrange([pair])
    with scorer.over(policy), torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(note, lambda tensor: tensor):
        values = scorer.token_logps(policy, batch)
        assert values.requires_grad
    shape = Shape.from_config(model.config.to_dict())
    a_token = footprint.values_kept(shape, method="lora", lora_rank=rank, tokens=1536)
    share = sum(kept.values()) / (layers * a_token * 1536 * footprint.FLOAT)
    assert 0.35 < share < 0.85


@pytest.mark.parametrize(
    ("fields", "packed", "lower", "limit", "expected"),
    [
        ({}, True, False, 2**40, 400),
        ({"max_length": 500}, True, False, 2**40, 500),
        ({"max_length": 5000}, True, False, 2**40, 512),  # all that the model reads
        ({}, False, False, 2**40, 128),
        ({"max_length": 5000}, False, False, 2**40, 512),
        ({}, True, True, 2**40, 128),
        ({}, True, False, 2**30 // 2, 128),  # less than a process needs before it has read a model
    ],
)
def test_the_reference_reads_more_than_training_where_it_costs_little(
    train_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    packed: bool,
    lower: bool,
    limit: int,
    expected: int,
) -> None:
    monkeypatch.setattr(memory, "READ_LENGTH", 400)
    setting = ready_setting(train_run(2, max_length=fields.get("max_length", 128)))
    monkeypatch.setattr(memory, "memory_of", lambda compute: limit)
    scorer = dataclasses.replace(setting.scorer, packed=packed, lower=object() if lower else None)  # type: ignore[arg-type]
    assert memory.read_length(setting.job, setting.start.plain.config, setting.compute, scorer) == expected
    monkeypatch.setattr(memory, "memory_of", lambda compute: 2**40)
    elsewhere = dataclasses.replace(setting.job, memory_bytes=limit)  # a job that is reproduced on another machine
    assert memory.read_length(elsewhere, setting.start.plain.config, setting.compute, scorer) == expected
