"""The memory of a run, against numbers worked out by hand for SmolLM2-135M."""

from __future__ import annotations

import pytest

from training import footprint
from training.footprint import Shape, ShapeError, choose, estimate

SMOL = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
SHAPE = Shape.from_config(SMOL)
GPT2 = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_inner": None, "vocab_size": 50257, "model_type": "gpt2"}
USUAL = {
    "method": "lora",
    "mode": "exact",
    "lora_rank": 16,
    "trained_layers": 30,
    "tokens": 384,
    "completion_tokens": 256,
    "bytes_per_weight": 4,
}
# One block of SmolLM2, one token of a row of 384, LoRA of rank 16:
# 4 x 576 norms + 2 + 4 x 576 attention + 9 + 384 mask + 4 x 1536 MLP + 7 x 16 LoRA
VALUES_384 = 2304 + 2 + 2304 + 9 + 384 + 6144 + 112
# 256 rows x 49152 x 3 logits, and 256 completion tokens x 576 x 2, in float32
HEAD_256 = (37_748_736 + 294_912) * 4
# 576 x (576 + 192 + 192 + 576) + 3 x 576 x 1536
LINEAR = 3_538_944


def _estimate(**values):
    return estimate(SHAPE, **(USUAL | {"pairs": 1, "checkpointing": False} | values))


def test_a_config_of_llama_gives_its_shape_and_its_parameters():
    assert Shape(30, 576, 1536, 9, 3, 64, 49152, True) == SHAPE
    assert footprint.parameters(SHAPE) == 134_515_008  # as the model's own card says
    assert footprint.adapter_parameters(SHAPE, 16, 30) == 4_884_480  # as peft counts


def test_fsdp_shares_the_training_of_a_model_that_each_process_can_hold():
    llama = Shape(32, 4096, 14336, 32, 8, 128, 128_256, False)  # 8 billion weights
    sizes = USUAL | {"method": "full", "trained_layers": 32, "bytes_per_weight": 2}
    limits = {"micro_batch": 0, "pairs_per_step": 8, "limit_bytes": 80 * 2**30, "device": "cuda"}
    assert footprint.plan(llama, **sizes, **limits) is None
    found = footprint.plan(llama, **sizes, **limits, shared_by=8)
    assert found.expected.training < 0.7 * 80 * 2**30
    whole = estimate(llama, **sizes, pairs=1, checkpointing=True)
    shared = estimate(llama, **sizes, pairs=1, checkpointing=True, shared_by=8)
    # Embeddings and head, two blocks of 218 million, and their gradients, are whole on each: 12 GB.
    assert shared.gathered == 8 * (2 * 128_256 * 4096 + 2 * (218_103_808 + 2 * 4096))
    saved = (whole.weights + whole.optimizer) * 7 / 8
    assert whole.training - shared.training == pytest.approx(saved - shared.gathered, abs=1)
    # Sharing does not help who cannot hold the model at all: 70 billion weights in bfloat16.
    larger = Shape(80, 8192, 28672, 64, 8, 128, 128_256, False)
    lora = USUAL | {"trained_layers": 80, "bytes_per_weight": 2}
    assert footprint.plan(larger, **lora, **limits, shared_by=8) is None


def test_untied_embeddings_count_twice():
    untied = Shape.from_config(SMOL | {"tie_word_embeddings": False})
    assert footprint.parameters(untied) - footprint.parameters(SHAPE) == 49152 * 576


def test_a_config_under_gpt2s_names():
    shape = Shape.from_config(GPT2)
    assert (shape.layers, shape.hidden, shape.intermediate, shape.head_dim, shape.gated) == (12, 768, 3072, 64, False)
    # Biases and learned positions are left out.
    assert footprint.parameters(shape) == pytest.approx(124_439_808, rel=0.01)


def test_a_nested_config_is_read():
    assert Shape.from_config({"model_type": "outer", "text_config": SMOL}) == SHAPE
    outer = {"tie_word_embeddings": False, "text_config": {k: v for k, v in SMOL.items() if not k.startswith("tie")}}
    assert not Shape.from_config(outer).tied


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "hidden_size or n_embd"),
        ({"num_hidden_layers": "30"}, "num_hidden_layers or n_layer"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_attention_heads": True}, "num_attention_heads or n_head"),
        ({"intermediate_size": None}, "intermediate_size or n_inner"),
    ],
)
def test_a_config_without_a_size_is_refused_by_name(change, named):
    with pytest.raises(ShapeError, match=named):
        Shape.from_config(SMOL | change)


def test_a_lora_step_is_counted_part_by_part():
    found = _estimate()
    assert footprint.values_kept(SHAPE, method="lora", lora_rank=16, tokens=384) == VALUES_384 == 11_259
    assert found.weights == 134_515_008 * 4
    assert found.optimizer == 4_884_480 * 16
    assert found.activations == round(footprint.ACTIVATION_FACTOR * 384 * 31 * VALUES_384 * 4)
    assert found.head == HEAD_256
    assert found.overhead == footprint.OVERHEAD
    assert found.total == sum((found.weights, found.optimizer, found.activations, found.head, found.overhead))


def test_full_fine_tuning_takes_sixteen_bytes_a_parameter():
    found = _estimate(method="full", bytes_per_weight=2)
    assert found.weights + found.optimizer == 134_515_008 * 16


def test_the_fast_mode_keeps_a_third_of_the_blocks():
    found = _estimate(mode="fast", trained_layers=10)
    assert found.activations == round(footprint.ACTIVATION_FACTOR * 384 * 11 * VALUES_384 * 4)
    assert found.optimizer == 4_884_480 // 3 * 16
    assert found.weights == _estimate().weights
    full = _estimate(method="full", mode="fast", trained_layers=3, bytes_per_weight=2)
    assert full.optimizer == 3 * 3_540_096 * 12
    assert full.weights == 134_515_008 * 4


@pytest.mark.parametrize(
    ("mode", "wanted", "layers"), [("exact", 4, 30), ("fast", 0, 10), ("fast", 4, 4), ("fast", 90, 30)]
)
def test_the_layers_that_are_trained(mode, wanted, layers):
    assert footprint.layers_trained(SHAPE, mode, wanted) == layers


def test_a_model_of_two_layers_trains_one_of_them_in_fast_mode():
    assert footprint.layers_trained(Shape.from_config(SMOL | {"num_hidden_layers": 2}), "fast") == 1


def test_checkpointing_keeps_one_input_a_block_and_the_values_of_one():
    found = _estimate(checkpointing=True, pairs=2)
    assert found.activations == round(footprint.ACTIVATION_FACTOR * 2 * 384 * (30 * 576 + 2 * VALUES_384) * 4)


def test_another_pair_adds_what_was_measured():
    """Peak resident memory of forward, backward and Adam at 1, 2 and 4 rows of 384 tokens: 1.97, 3.15 and 5.67 GB."""
    added = _estimate(pairs=2, completion_tokens=0).total - _estimate(completion_tokens=0).total
    assert added == pytest.approx((5.67e9 - 1.97e9) / 3, rel=0.1)


def _choose(limit: float, **values):
    return choose(SHAPE, limit_bytes=int(limit), **(USUAL | {"pairs_per_step": 8, "most_tokens": 16_384} | values))


def test_the_largest_micro_batch_that_fits_is_chosen():
    limit = _estimate(pairs=3).total / footprint.SHARE
    assert _choose(limit + 10) == (3, False)
    assert _choose(limit - 10**6) == (2, False)


def test_no_more_than_a_step_and_no_more_than_the_most_tokens():
    assert _choose(1e12) == (8, False)
    assert _choose(1e12, most_tokens=1000) == (2, False)
    assert _choose(1e12, most_tokens=100) == (1, False)


def test_one_pair_with_checkpointing_is_the_last_resort():
    assert _choose(_estimate().total / footprint.SHARE - 10**6) == (1, True)
    limit = _estimate(checkpointing=True).total / footprint.LAST_SHARE
    assert _choose(limit + 10) == (1, True)
    assert _choose(limit - 10) is None


def _plan(limit: float, **values):
    asked = {"micro_batch": 0, "pairs_per_step": 8, "device": "cpu"}
    return footprint.plan(SHAPE, limit_bytes=int(limit), **(USUAL | asked | values))


def test_a_plan_takes_as_many_tokens_as_gain_anything_unless_pairs_were_asked_for():
    found = _plan(1e12)
    assert (found.tokens, found.pairs, found.checkpointing) == (1024, 2, False)
    assert (_plan(1e12, micro_batch=6).tokens, _plan(1e12, micro_batch=6).pairs) == (6 * 384, 6)
    assert (_plan(1e12, tokens=1500).tokens, _plan(1e12, tokens=1500).pairs) == (1500, 1)
    assert _plan(1e12, device="cuda").pairs == 8
    assert _plan(1e9) is None


def test_the_products_of_weights_and_adapter_are_counted_where_they_are_held():
    found = _plan(1e12)
    assert found.merge
    assert found.expected.products == 30 * LINEAR * 4
    assert found.expected.total == _estimate(pairs=3).total + 30 * LINEAR * 4
    assert _plan(1e12, mode="fast", trained_layers=10).expected.products == 10 * LINEAR * 4
    for without in (
        _plan(1e12, device="cuda", bytes_per_weight=2),
        _plan(1e12, method="full"),
        _plan(_estimate().total / footprint.SHARE - 10**6),
    ):
        assert (without.merge, without.expected.products) == (False, 0)
    tight = _plan(_estimate().total / footprint.SHARE + 10)
    assert (tight.merge, tight.checkpointing, tight.expected.products) == (False, False, 0)


@pytest.mark.parametrize(
    ("method", "on_adapter", "has_first", "models"),
    [
        ("lora", False, False, 0),
        ("lora", True, False, 1),
        ("lora", False, True, 1),
        ("lora", True, True, 2),
        ("full", False, False, 1),
        ("full", True, True, 2),
    ],
)
def test_models_that_are_loaded_to_compare_with(method, on_adapter, has_first, models):
    assert footprint.models_compared(method, on_adapter=on_adapter, has_first=has_first) == models


def test_comparing_needs_its_models_after_training_and_not_beside_it():
    alone, beside = _estimate(), _estimate(models_beside=1)
    assert beside.training == alone.training == alone.total
    assert beside.comparing == 2 * alone.weights + alone.optimizer + alone.overhead
    assert beside.total == alone.total, "a step needs more"
    many = _estimate(models_beside=9)
    assert many.total == many.comparing == 10 * alone.weights + alone.optimizer + alone.overhead
    limit = alone.total / footprint.SHARE + 10
    assert _choose(limit) == (1, False)
    assert _choose(limit, models_beside=9) is None


MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\nHugePages_Total:       0\n"


def _write(root, files: dict[str, str]):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return footprint.machine_memory(root)


def test_memory_without_a_control_group(tmp_path):
    found = _write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/user\n"})
    assert found == 16_000_000 * 1024


@pytest.mark.parametrize(
    ("cgroup", "limit"),
    [
        ("0::/batch/job", "sys/fs/cgroup/batch/memory.max"),
        ("0::/elsewhere", "sys/fs/cgroup/memory.max"),
        ("5:cpu,memory:/docker/abc\n3:cpuset:/", "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes"),
    ],
)
def test_a_control_group_bounds_the_memory(tmp_path, cgroup, limit):
    """A group of version 2 may be bounded by the one that it is in."""
    files = {limit: "4000000\n", "proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup + "\n"}
    assert _write(tmp_path, files) == 4_000_000


def test_a_group_without_a_limit_is_none(tmp_path):
    files = {"sys/fs/cgroup/a/memory.max": "max\n"}
    found = _write(tmp_path, files | {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a\n"})
    assert found == 16_000_000 * 1024


def test_a_machine_without_proc_has_no_figure(tmp_path):
    assert footprint.machine_memory(tmp_path) is None


def test_this_machine_has_memory():
    found = footprint.machine_memory()
    assert found is None or found > 2**20
