"""The reference's values: computed once, known by content, checked when used."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.prepared import CPU, move, ready_setting
from tests.engine.runs import adapter_bytes, do, steps, succeed, triple
from training.engine import cache as cache_module
from training.engine import decoding, dpo, memory, reference_logps
from training.engine.arrangement import Tokens
from training.engine.cache import Cache
from training.engine.chat import response_text
from training.engine.compute import Compute
from training.engine.decoding import Decoding, Request
from training.engine.preference_data import TokenTriple
from training.engine.reference_logps import (
    Pair,
    ReferenceLogps,
    content_hash,
    form_of,
    open_cache,
    policy_hash,
    to_bytes,
)
from training.jobspec import Completion, ModelRef, TrainJob, TripleLine

MakeRun = Callable[..., Path]
NEVER = {"forwards": 0, "cached": 0, "sampled": 0, "checked": 0, "damaged": 0}


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Any]:
    """Fields of a job that keeps what it computes where the others of a test find it."""
    return {"cache_dir": str(tmp_path / "kept"), "epochs": 1.0, "save_every_steps": 100}


def rows(count: int) -> list[TripleLine]:
    """The last of them is held out."""
    return [triple(number) for number in range(count - 1)] + [triple(100, split="held_out")]


def counts(run_dir: Path) -> dict[str, int]:
    return succeed("train_dpo", run_dir)["reference_logps"]


def test_a_retrain_reads_the_new_pairs_and_no_other(train_run: MakeRun, kept: dict[str, Any]) -> None:
    assert counts(train_run(rows(5), name="first", **kept)) == NEVER | {"forwards": 5}
    assert counts(train_run(rows(8), name="second", **kept)) == NEVER | {"forwards": 3, "cached": 5, "checked": 1}
    other = {"beta": 0.5, "seed": 9, "method": "full", "learning_rate": 1e-4, "pairs_per_step": 3, "loss": "ipo"}
    assert counts(train_run(rows(8), name="third", **other, **kept)) == NEVER | {"cached": 8, "checked": 1}


def test_a_forward_is_a_forward_of_the_model(
    train_run: MakeRun, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where the model is called, so that the count of the module itself is known to be true."""
    genuine = reference_logps.scored_with
    calls: list[Tokens] = []

    def counted(*args: Any) -> Callable[[Tokens], Pair]:
        compute = genuine(*args)

        def call(pair: Tokens) -> Pair:
            calls.append(pair)
            return compute(pair)

        return call

    monkeypatch.setattr(reference_logps, "scored_with", counted)
    succeed("train_dpo", train_run(3, name="first", **kept))
    assert len(calls) == 3
    succeed("train_dpo", train_run(5, name="second", **kept))
    assert len(calls) == 3 + 2 + 1  # two new ones, and one of three is computed again to compare


def test_other_weights_share_nothing(train_run: MakeRun, reference: ModelRef, kept: dict[str, Any]) -> None:
    first = train_run(3, name="first", **kept)
    succeed("train_dpo", first)
    other = dataclasses.replace(reference, base_hash="another-hash")
    assert counts(train_run(3, name="second", reference=other, **kept)) == NEVER | {"forwards": 3}
    adapter = {"adapter_dir": str(first / "checkpoint"), "adapter_hash": "hash-of-adapter"}
    adapted = dataclasses.replace(reference, **adapter)
    assert counts(train_run(3, name="third", reference=adapted, **kept)) == NEVER | {"forwards": 3}


def test_hashes_name_base_and_adapter() -> None:
    base, adapted = ModelRef("/b", "base"), ModelRef("/b", "base", "/a", "adapter")
    assert (content_hash(base), policy_hash(base)) == ("base", "base")
    assert (content_hash(adapted), policy_hash(adapted)) == ("base+adapter", "adapter")
    assert policy_hash(ModelRef("/b", "base", "/a", None)) == ""  # an adapter of unknown content is not the base


def test_a_pair_judged_the_other_way_needs_no_forward(train_run: MakeRun, kept: dict[str, Any]) -> None:
    first = train_run(3, name="first", **kept)
    succeed("train_dpo", first)
    turned = [dataclasses.replace(item, chosen=item.rejected, rejected=item.chosen) for item in map(triple, range(3))]
    warm, cold = train_run(turned, name="warm", **kept), train_run(turned, name="cold", **kept | {"cache_dir": ""})
    assert counts(warm) == NEVER | {"cached": 3, "checked": 1}
    assert counts(cold)["forwards"] == 3
    assert adapter_bytes(warm) == adapter_bytes(cold) != adapter_bytes(first)


def test_another_maximum_length_is_a_cut_of_the_same_values(train_run: MakeRun, kept: dict[str, Any]) -> None:
    """Whichever length came first: also the bytes of what is trained do not hang on it."""
    lines = [triple(0), triple(1, chosen=Completion(" bird" * 60))]
    long, short = (ready_setting(train_run(lines, name=str(length), max_length=length, **kept)) for length in (128, 70))
    whole, first = dpo.read_reference(long)
    cut, second = dpo.read_reference(short)
    assert (first.forwards, second.forwards, second.cached) == (2, 0, 2)
    assert [pair.cut for pair in short.data.train] == [False, True]
    for pair, values, part in zip(short.data.train, whole, cut, strict=True):
        assert [len(side) for side in part] == [len(pair.chosen_ids), len(pair.rejected_ids)]
        assert all(torch.equal(side[: len(some)], some) for side, some in zip(values, part, strict=True))
    cold = train_run(lines, name="cold", max_length=70, **kept | {"cache_dir": ""})
    succeed("train_dpo", cold)
    again = train_run(lines, name="again", max_length=70, **kept)
    assert counts(again) == NEVER | {"cached": 2, "checked": 1}
    assert adapter_bytes(cold) == adapter_bytes(again)


def test_what_lies_beyond_what_the_reference_reads_does_not_count(
    train_run: MakeRun, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "READ_LENGTH", 80)
    longer, longest = Completion(" bird" * 90), Completion(" bird" * 100)
    assert counts(train_run([triple(0, chosen=longer)], name="one", max_length=70, **kept))["forwards"] == 1
    assert counts(train_run([triple(0, chosen=longest)], name="two", max_length=60, **kept))["forwards"] == 0
    assert counts(train_run([triple(0, chosen=longest)], name="three", max_length=90, **kept))["forwards"] == 1


def test_a_cold_and_a_warm_cache_give_the_same_bytes(train_run: MakeRun, kept: dict[str, Any]) -> None:
    """Also where pairs share a prompt, or a prompt and a response, with pairs of the run that filled it."""
    one, two, three = Completion(" good bird"), Completion(" hard night and rain."), Completion(" a dog")

    def pair(name: str, chosen: Completion, rejected: Completion) -> TripleLine:
        return triple(0, pair_id=name, chosen=chosen, rejected=rejected)

    earlier = [pair("a", one, two), pair("b", three, two), triple(4)]
    later = [pair("c", one, three), pair("b", three, two), pair("a", two, one), triple(4), triple(5)]
    succeed("train_dpo", train_run(earlier, name="earlier", **kept))
    cold, warm = train_run(later, name="cold", **kept | {"cache_dir": ""}), train_run(later, name="warm", **kept)
    assert counts(cold) == NEVER | {"forwards": 5}
    assert counts(warm) == NEVER | {"forwards": 2, "cached": 3, "checked": 1}
    again = train_run(later, name="again", **kept)
    assert counts(again) == NEVER | {"cached": 5, "checked": 1}
    assert adapter_bytes(cold) == adapter_bytes(warm) == adapter_bytes(again)
    assert [line["loss"] for line in steps(cold)] == [line["loss"] for line in steps(warm)]


def test_values_survive_the_cache_to_the_bit(tmp_path: Path) -> None:
    values = torch.tensor([-0.0, -1e-38, -1.17549435e-38, -3.4e38, -0.1, -17.123457, float("-inf")])
    assert torch.equal(reference_logps.from_bytes(to_bytes(values)), values)
    source = source_of({}, tmp_path)
    pair = token_triple([5], [6, 7])
    computed = source.of([pair])[0]
    for place, ids in ((0, pair.chosen_ids), (1, pair.rejected_ids)):
        assert computed[place].dtype is torch.float32
        assert len(computed[place]) == len(ids)
    source.compute = refuse
    assert all(map(torch.equal, source.cached(pair) or (), computed))


def token_triple(chosen: list[int], rejected: list[int], **fields: Any) -> TokenTriple:
    return TokenTriple("pair", "prompt", [1, 2, 3], chosen, rejected, **fields)


def refuse(pair: Tokens) -> Pair:
    raise AssertionError("computed what was known")


def values_of(pair: Tokens) -> Pair:
    """Some numbers that follow from the ids and their order, as a model's do."""
    chosen, rejected = pair.chosen_ids, pair.rejected_ids
    return -torch.tensor(chosen).float() / 7 - len(rejected), -torch.tensor(rejected).float() / 7 - len(chosen)


def source_of(changes: dict[str, Any], directory: Path) -> ReferenceLogps:
    cache = changes.pop("cache", None) or open_cache(str(directory), 100)
    defaults: dict[str, Any] = {"precision": CPU, "compute": values_of, "reference": ModelRef("/b", "base")}
    return ReferenceLogps(cache=cache, **(defaults | changes))


def some_pairs(count: int) -> list[TokenTriple]:
    return [token_triple([number + 1], [number + 50, 3]) for number in range(count)]


@pytest.mark.parametrize(
    "changes", [{"precision": Compute(torch.device("cpu"), torch.bfloat16)}, {"form": "float32, adapter folded"}]
)
def test_precision_and_form_of_the_weights_are_parts_of_the_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    pairs = some_pairs(3)
    source_of({}, tmp_path).of(pairs)
    other = source_of(changes, tmp_path)
    other.of(pairs)
    assert other.counts.forwards == 3


def test_the_form_of_the_weights_is_named() -> None:
    """An adapter beside its base and one that is folded in round otherwise."""
    base, adapted = ModelRef("/b", "base"), ModelRef("/b", "base", "/a", "adapter")
    full, half = (Compute(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))

    def form(reference: ModelRef, method: Any, compute: Compute) -> str:
        return form_of(TrainJob(reference, 1, method), compute)

    assert form(base, "lora", full) == form(base, "full", full) == form(base, "full", half)
    beside, folded, rounded = form(adapted, "lora", full), form(adapted, "full", full), form(base, "lora", half)
    assert len({form(base, "lora", full), beside, folded, rounded, form(adapted, "lora", half)}) == 5


def test_values_of_a_sampler_in_float32_are_not_those_of_training_in_bfloat16(tmp_path: Path) -> None:
    pair = token_triple([5], [6, 7], chosen_logps=(-1.0,), rejected_logps=(-2.0, -3.0))
    source = source_of({"precision": Compute(torch.device("cpu"), torch.bfloat16)}, tmp_path)
    assert_values([pair], source.of([pair]))
    assert (source.counts.sampled, source.counts.forwards) == (0, 1)


def test_wrong_values_with_good_checksums_are_found_out_and_all_computed_anew(tmp_path: Path) -> None:
    """As from a machine with broken memory, or from other weights under the same hash."""
    pairs = some_pairs(150)

    def wrong(pair: Tokens) -> Pair:
        chosen, rejected = values_of(pair)
        return chosen + 0.01, rejected

    source_of({"compute": wrong}, tmp_path).of(pairs)
    source = source_of({}, tmp_path)
    found = source.of(pairs)
    assert (source.counts.forwards, source.counts.cached, source.counts.damaged) == (150, 0, 1)
    assert source.counts.checked == 2  # a hundredth of 150
    assert_values(pairs, found)
    again = source_of({}, tmp_path)
    assert_values(pairs, again.of(pairs))
    assert (again.counts.forwards, again.counts.cached) == (0, 150)


def assert_values(pairs: Sequence[TokenTriple], found: Sequence[Pair]) -> None:
    for pair, values in zip(pairs, found, strict=True):
        swapped = pair.rejected_ids < pair.chosen_ids
        chosen, rejected = pair.chosen_ids, pair.rejected_ids
        first, second = values_of(token_triple(rejected, chosen) if swapped else pair)
        expected = (second, first) if swapped else (first, second)
        assert all(map(torch.equal, values, expected))


def test_rounding_is_no_reason_to_compute_anew(tmp_path: Path) -> None:
    pairs = some_pairs(5)
    source_of({"compute": lambda pair: tuple(item + 2e-4 for item in values_of(pair))}, tmp_path).of(pairs)
    source = source_of({}, tmp_path)
    source.of(pairs)
    assert (source.counts.forwards, source.counts.cached, source.counts.damaged) == (0, 5, 0)


def test_not_a_number_is_not_near_enough(tmp_path: Path) -> None:
    pairs = some_pairs(1)
    source_of({"compute": lambda pair: tuple(item * float("nan") for item in values_of(pair))}, tmp_path).of(pairs)
    source = source_of({}, tmp_path)
    assert_values(pairs, source.of(pairs))
    assert source.counts.damaged == 1


def test_a_value_of_another_length_is_not_used(tmp_path: Path) -> None:
    source = source_of({}, tmp_path)
    pair = some_pairs(1)[0]
    source.cache.put([(source.key(pair), b"\x00" * 8)])
    assert_values([pair], source.of([pair]))
    assert source.counts.forwards == 1


def test_a_damaged_value_is_computed_anew_and_counted(train_run: MakeRun, kept: dict[str, Any]) -> None:
    first = train_run(4, name="first", **kept)
    succeed("train_dpo", first)
    path = Path(kept["cache_dir"]) / "reference-logps.sqlite3"
    cache = Cache(path, 10**9)
    assert cache.connection is not None
    cache.connection.execute("UPDATE content SET value = zeroblob(LENGTH(value)) WHERE id = 2")
    cache.close()
    again = train_run(4, name="again", **kept)
    assert counts(again) == NEVER | {"forwards": 1, "cached": 3, "checked": 1, "damaged": 1}
    assert adapter_bytes(again) == adapter_bytes(first)


def test_a_run_succeeds_where_nothing_can_be_kept(train_run: MakeRun) -> None:
    plain, without = train_run(3, name="plain"), train_run(3, name="without", cache_dir="/proc/nowhere")
    assert counts(without) == counts(plain) == NEVER | {"forwards": 3}
    assert adapter_bytes(without) == adapter_bytes(plain)


@pytest.mark.parametrize("trouble", ["garbage", "locked", "directory", "no room"])
def test_a_cache_in_trouble_costs_forwards_and_nothing_else(
    train_run: MakeRun, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Of both caches: a fast run uses the states of the lower layers as well."""
    first, second = (train_run(3, name=name, mode="fast", **kept) for name in ("first", "second"))
    succeed("train_dpo", first)
    holders = []
    for path in sorted(Path(kept["cache_dir"]).glob("*.sqlite3")):
        if trouble == "garbage":
            path.write_bytes(b"no database" * 1000)
        elif trouble == "locked":
            holders.append(sqlite3.connect(path, isolation_level=None))
            holders[-1].execute("BEGIN EXCLUSIVE")
        elif trouble == "directory":
            path.unlink()
            path.mkdir()
    if trouble == "no room":
        shutil.rmtree(kept["cache_dir"])
        monkeypatch.setattr(cache_module, "RESERVED_BYTES", 2**60)
    monkeypatch.setattr(cache_module, "WAIT_SECONDS", 0.05)
    details = succeed("train_dpo", second)
    for holder in holders:
        holder.close()
    # A file that another process holds for writing can still be read.
    assert details["reference_logps"]["forwards"] == (0 if trouble == "locked" else 3)
    assert details["reference_logps"]["damaged"] == (2 if trouble == "garbage" else 0)  # both files
    assert adapter_bytes(first) == adapter_bytes(second)


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_logps, "SAVED_TOGETHER", 4)
    pairs = some_pairs(10)

    def until_the_seventh(pair: Tokens) -> Pair:
        if pair.chosen_ids == [7]:
            raise KeyboardInterrupt
        return values_of(pair)

    source = source_of({"compute": until_the_seventh}, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        source.of(pairs)
    source.cache.close()
    again = source_of({}, tmp_path)
    assert_values(pairs, again.of(pairs))
    assert (again.counts.forwards, again.counts.cached) == (6, 4)


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    source = source_of({}, tmp_path)
    source.of(some_pairs(3), lambda done, total: told.append((done, total)))
    source.of(some_pairs(5), lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3), (1, 2), (2, 2)]


# What the sampler has told.


def sampled_line(run_dir: Path, reference: ModelRef, number: int = 0, **fields: Any) -> TripleLine:
    """A pair as the sampler writes it, with its log-probabilities, drawn from the model of ``run_dir``."""
    setting = ready_setting(run_dir)
    prompt_ids = setting.data.train[number].prompt_ids
    decode = Decoding(temperature=0.9, top_p=0.95, stop_ids=frozenset([setting.tokenizer.eos_token_id]), pad_id=0)
    request = Request(prompt_ids, [11 + number, 12 + number], 20)
    [(_, written)] = decoding.write_responses(setting.start.model.eval(), [request], decode, rows=2)
    completions = [
        Completion(
            response_text(setting.tokenizer, row.token_ids),
            row.token_ids,
            row.finish_reason,
            row.logps,
            policy_hash(reference),
        )
        for row in written
    ]
    line = triple(number, chosen=completions[0], rejected=completions[1], prompt_token_ids=prompt_ids)
    return dataclasses.replace(line, **fields)


@pytest.fixture
def sampled(train_run: MakeRun, reference: ModelRef) -> TripleLine:
    return sampled_line(train_run(1, name="sampled"), reference)


def test_the_samplers_own_values_are_used(train_run: MakeRun, sampled: TripleLine) -> None:
    with_values, without = train_run([sampled], name="with"), bare(sampled)
    assert counts(with_values) == NEVER | {"sampled": 1, "checked": 1}
    computed = train_run([without], name="without")
    assert counts(computed) == NEVER | {"forwards": 1}
    for one, other in zip(steps(with_values), steps(computed), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-5)
    assert abs(steps(with_values)[0]["reward_margin"]) < 1e-5
    assert abs(steps(with_values)[0]["reward_accuracy"] - 0.5) < 1e-6


def bare(line: TripleLine) -> TripleLine:
    sides = [dataclasses.replace(item, logps=[], policy_hash="") for item in (line.chosen, line.rejected)]
    return dataclasses.replace(line, chosen=sides[0], rejected=sides[1])


def changed(line: TripleLine, **fields: Any) -> TripleLine:
    return dataclasses.replace(line, chosen=dataclasses.replace(line.chosen, **fields))


def test_values_that_are_not_the_references_are_found_out(train_run: MakeRun, sampled: TripleLine) -> None:
    wrong = changed(sampled, logps=[value - 0.01 for value in sampled.chosen.logps])
    run_dir = train_run([wrong], name="wrong")
    assert counts(run_dir) == NEVER | {"forwards": 1, "checked": 1}
    assert steps(run_dir)[0]["reward_margin"] == 0.0


@pytest.mark.parametrize("why", ["policy", "no policy", "length", "prompt", "no prompt", "ids", "one side"])
def test_values_of_something_else_are_never_used(train_run: MakeRun, sampled: TripleLine, why: str) -> None:
    """Of another policy, prompt or tokenisation. A wrong value that was used would show in the count."""
    other = {
        "policy": changed(sampled, policy_hash="another-hash"),
        "no policy": changed(sampled, policy_hash=""),
        "length": changed(sampled, logps=sampled.chosen.logps[:-1]),
        "prompt": dataclasses.replace(sampled, messages=triple(1).messages),
        "no prompt": dataclasses.replace(sampled, prompt_token_ids=[]),
        "ids": changed(sampled, token_ids=[token + 1 for token in sampled.chosen.token_ids]),
        "one side": changed(sampled, logps=[]),
    }[why]
    assert counts(train_run([other], name="other")) == NEVER | {"forwards": 1}


def test_an_adapter_of_unknown_content_is_refused(train_run: MakeRun, reference: ModelRef, sampled: TripleLine) -> None:
    """Nothing could be kept under a name that other adapters have as well."""
    earlier = train_run(2, name="earlier")
    succeed("train_dpo", earlier)
    adapted = dataclasses.replace(reference, adapter_dir=str(earlier / "checkpoint"))
    result = do("train_dpo", train_run([sampled], name="adapted", reference=adapted))
    assert (result.error_code, "content hash" in result.error) == ("bad_job", True)


def test_sampled_values_are_cut_with_their_completion(train_run: MakeRun, sampled: TripleLine) -> None:
    room = min(len(sampled.chosen.token_ids), len(sampled.rejected.token_ids)) - 2
    run_dir = train_run([sampled], name="cut", max_length=len(sampled.prompt_token_ids) + room)
    assert counts(run_dir) == NEVER | {"sampled": 1, "checked": 1}


def test_held_out_pairs_have_reference_values_too(train_run: MakeRun, kept: dict[str, Any]) -> None:
    run_dir = train_run(rows(3), **kept)
    setting = ready_setting(run_dir)
    values, _ = dpo.read_reference(setting)
    assert len(values) == 3
    move(setting.start.model)  # what was read is no view of the model
    again, count = dpo.read_reference(ready_setting(run_dir))
    assert count.forwards == 0
    for one, other in zip(values, again, strict=True):
        assert all(map(torch.equal, one, other))
