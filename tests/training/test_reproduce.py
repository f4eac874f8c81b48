"""A checkpoint made again from its manifest alone; what is missing, what differs, and a manifest that was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from tests.training.tiny_runs import DETAILS, RECIPE, EngineHere, begin, carry_out, end, tiny_policy
from training import exports, provenance, registry, reproducing, retention, services, store
from training.exceptions import CheckpointDamaged, Rejected
from training.jobspec import Result
from training.models import Checkpoint, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir


def _reproduce(*arguments: str, **options) -> str:
    said = StringIO()
    call_command("reproduce", *arguments, stdout=said, no_color=True, **options)
    return said.getvalue()


def _status(*arguments: str) -> int:
    try:
        assert "the same bytes" in _reproduce(*arguments)
    except CommandError as refusal:
        return refusal.returncode
    return 0


@pytest.fixture
def published(project, policy, label) -> Checkpoint:
    """A checkpoint whose manifest is whole, and whose engine never ran."""
    label(10)
    run = services.request_run(project=project, recipe=Recipe(), seed=5)
    return end(begin(run))


def _manifest(checkpoint: Checkpoint) -> Path:
    return store.checkpoint_dir(checkpoint.uuid) / store.MANIFEST


@pytest.mark.slow
def test_the_manifest_alone_gives_the_same_bytes(project, tiny_model, data_dir, label, settings, monkeypatch):
    """Of a run that was stopped on its way: in a fresh process without caches, and with those of the run."""
    settings.CACHE_DIR = data_dir / "cache"
    tiny_policy(project, tiny_model, data_dir)
    label(6)
    label(4, "b")
    label(2, held_out=True)
    run = services.request_run(project=project, recipe=RECIPE)
    made = carry_out(run, stop_at_step=13)
    assert (RunDir.of(run.uuid).path / "training_pairs.jsonl").exists()
    copy = data_dir / "elsewhere.json"
    shutil.copy(_manifest(made), copy)
    TrainingRun.objects.filter(pk=run.pk).update(seed=1, recipe={})  # the row has no part in it
    kept = data_dir / "kept"
    cold = _reproduce("--manifest", str(copy), keep=kept)
    assert f"the same bytes, content hash {made.short_hash}" in cold
    assert json.loads((kept / "result.json").read_text())["details"]["reference_logps"]["forwards"] == 12
    shutil.rmtree(kept)
    monkeypatch.setattr(reproducing, "EngineProcess", EngineHere)
    warm = _reproduce(made.name, keep=kept, with_caches=True)
    assert "adapter_model.safetensors  published" in warm
    assert "adapter_config.json" in warm
    assert "OTHER" not in warm
    assert json.loads((kept / "result.json").read_text())["details"]["reference_logps"]["forwards"] == 0
    assert not list((data_dir / "staging").iterdir()), "what is not kept is removed"


def test_the_manifest_says_all_that_the_bytes_follow_from(published, policy):
    manifest = registry.manifest_of(published)
    job = manifest["engine"]["job"]
    assert job["reference"] == {"base": policy.content_hash, "adapter": None}
    assert (job["seed"], job["threads"], job["device"], job["precision"]) == (5, 3, "cpu", "float32")
    assert (job["memory_bytes"], job["first"]) == (7 * 2**30, None)
    assert manifest["engine"]["code"] == [
        {"commit": provenance.commit(), "sources_sha256": provenance.sources_sha256()}
    ]
    assert manifest["engine"]["machine"]["cpu"] == "AVX2"
    assert str(store.checkpoint_dir(policy.uuid)) not in _manifest(published).read_text(), "nor a path of this machine"
    assert "cache_dir" not in job


def test_a_run_that_went_on_after_an_update_names_both_versions_of_the_code(data_dir, monkeypatch):
    run_dir = RunDir(data_dir)
    provenance.note_code(run_dir)
    provenance.note_code(run_dir)
    assert len(provenance.codes(run_dir)) == 1
    monkeypatch.setattr(provenance, "sources_sha256", lambda: "f" * 64)
    provenance.note_code(run_dir)
    assert [code["sources_sha256"][:2] for code in provenance.codes(run_dir)][1:] == ["ff"]
    engine = {"code": provenance.codes(run_dir), "machine": {}, "job": {}}
    assert list(reproducing.differences({"engine": engine})) == [
        "The run went on after an update: it was made by 2 versions of the code, one after the other."
    ]


def test_every_source_of_the_engine_counts(tmp_path, settings):
    real = Path(settings.BASE_DIR)
    for pattern in provenance.SOURCES:
        for path in real.glob(pattern):
            (tmp_path / path.relative_to(real)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / path.relative_to(real))
    settings.BASE_DIR = tmp_path
    whole = provenance.sources_sha256()
    for name in ("training/engine/losses.py", "training/jobspec.py", "training/footprint.py"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + "\n")
        assert provenance.sources_sha256() != whole, name
        (tmp_path / name).write_text(text)
    assert provenance.sources_sha256() == whole


# A manifest that was changed


def test_a_changed_manifest_of_a_checkpoint_is_refused_by_name(published):
    path = _manifest(published)
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(CheckpointDamaged, match=rf"manifest\.json of checkpoint {published.uuid} was changed on disk"):
        registry.manifest_of(published)
    with pytest.raises(CommandError, match="was changed on disk") as caught:
        _reproduce(published.name)
    assert caught.value.returncode == 2
    with pytest.raises(CheckpointDamaged):
        exports.adapter_archive(published)


def test_a_changed_file_is_not_taken_for_the_manifest_that_was_published(published, data_dir):
    copy = data_dir / "copy.json"
    shutil.copy(_manifest(published), copy)
    assert reproducing.manifest_of_file(copy)["name"] == published.name
    copy.write_text(copy.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(Rejected, match=f"not the manifest that {published.name} .* was published with"):
        reproducing.manifest_of_file(copy)
    with pytest.raises(CommandError, match="was changed"):
        _reproduce("--manifest", str(copy))


@pytest.mark.parametrize("change", ["a digest", "the hash", "no files", "no JSON"])
def test_a_manifest_that_contradicts_itself_is_refused_without_any_row(published, data_dir, change):
    said = json.loads(_manifest(published).read_text())
    if change == "a digest":
        said["files"][0]["sha256"] = "0" * 64
    elif change == "the hash":
        said["content_hash"] = "0" * 64
    elif change == "no files":
        del said["files"]
    copy = data_dir / "copy.json"
    copy.write_text("{" if change == "no JSON" else json.dumps(said))
    TrainingRun.objects.all().delete()
    Checkpoint.objects.filter(pk=published.pk).delete()
    with pytest.raises(Rejected, match=r"was changed|does not list its files|is no manifest"):
        reproducing.manifest_of_file(copy)


def _without_one_key(said: Any) -> Iterator[tuple[str, Any]]:
    """Every way to take one key out of it, however deep, with the way to that key."""
    if isinstance(said, dict):
        for name, value in said.items():
            yield name, {other: said[other] for other in said if other != name}
            yield from ((f"{name}.{way}", said | {name: less}) for way, less in _without_one_key(value))
    elif isinstance(said, list):
        for number, value in enumerate(said):
            others = (said[:number], said[number + 1 :])
            yield from ((f"{number}.{way}", [*others[0], less, *others[1]]) for way, less in _without_one_key(value))


@pytest.mark.parametrize("has_first", [False, True])
def test_a_manifest_without_any_one_of_its_keys_ends_in_a_sentence(published, engine, policy, data_dir, has_first):
    """Also where nothing says that it was changed: the row that knows its hash is of another machine."""
    said = json.loads(_manifest(published).read_text())
    if has_first:
        said["engine"]["job"]["first"] = {"base": policy.content_hash, "adapter": None}
    Checkpoint.objects.filter(pk=published.pk).update(manifest_sha256="")
    engine(Result(ok=True, details=DETAILS), **{"adapter_model.safetensors": f"adapter {published.run.uuid}"})
    refused, copy = set(), data_dir / "copy.json"
    for way, less in _without_one_key(said):
        copy.write_text(json.dumps(less))
        if status := _status("--manifest", str(copy)):
            assert status == 2, way
            refused.add(way)
    of_first = {"engine.job.first.base", "engine.job.first.adapter"} if has_first else set()
    assert refused == of_first | {
        *("name", "content_hash", "files", "files.0.path", "files.0.size", "files.0.sha256", "base"),
        *("base.content_hash", "recipe", "snapshot", "snapshot.sha256", "engine", "engine.code"),
        *("engine.code.0.commit", "engine.code.0.sources_sha256", "engine.machine", "engine.job", "engine.job.seed"),
        *("engine.job.reference", "engine.job.reference.base", "engine.job.reference.adapter", "engine.job.first"),
    }
    del said["engine"]["machine"], said["engine"]["code"]
    copy.write_text(json.dumps(said))
    with pytest.raises(CommandError, match=r"was changed: it lacks engine\.code, engine\.machine"):
        _reproduce("--manifest", str(copy))


def test_what_was_not_trained_here_and_what_an_earlier_version_wrote_are_refused(policy, published, data_dir):
    with pytest.raises(CommandError, match="added, not trained"):
        _reproduce(policy.name)
    said = json.loads(_manifest(published).read_text())
    del said["engine"]
    Checkpoint.objects.filter(pk=published.pk).update(manifest_sha256="")
    _manifest(published).write_text(json.dumps(said))
    with pytest.raises(CommandError, match="written by an earlier version"):
        _reproduce(published.content_hash[:12])


# What is missing, and what differs


def test_everything_that_is_missing_is_named_at_once(published, policy):
    manifest = registry.manifest_of(published)
    store.snapshot_path(manifest["snapshot"]["sha256"]).unlink()
    (store.checkpoint_dir(policy.uuid) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(Rejected) as caught:
        reproducing.find_inputs(manifest)
    assert "The snapshot of the triples is missing" in str(caught.value)
    assert f"The reference is not on this machine: {policy.short_hash}" in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_a_changed_snapshot_and_an_unknown_field_of_the_job_are_refused(published):
    manifest = registry.manifest_of(published)
    path = store.snapshot_path(manifest["snapshot"]["sha256"])
    path.chmod(0o600)
    path.write_text("{}\n")
    manifest["engine"]["job"]["rank_of_the_future"] = 3
    with pytest.raises(Rejected, match=r"changed on disk(.|\n)*knows no rank_of_the_future"):
        reproducing.find_inputs(manifest)


def test_an_adapter_that_was_trained_on_is_found_on_its_base(published, policy, make_checkpoint):
    manifest = registry.manifest_of(published)
    adapter = make_checkpoint("adapter", kind="dpo", base=policy, parent=policy)
    manifest["engine"]["job"]["reference"] = {"base": policy.content_hash, "adapter": adapter.content_hash}
    found = reproducing.find_inputs(manifest).job.reference
    assert found.adapter_dir == str(store.checkpoint_dir(adapter.uuid))
    manifest["engine"]["job"]["reference"] = {"base": "0" * 64, "adapter": adapter.content_hash}
    with pytest.raises(Rejected, match=f"adapter {adapter.short_hash} on base 000000000000"):
        reproducing.find_inputs(manifest)


def test_differences_are_told_in_sentences(published, monkeypatch):
    monkeypatch.setattr(reproducing, "cpu_flags", lambda: frozenset({"sse2"}))
    monkeypatch.setattr(reproducing.os, "cpu_count", lambda: 2)
    manifest = registry.manifest_of(published)
    manifest["engine"]["code"] = [{"commit": "c0ffee" * 6, "sources_sha256": "0" * 64}]
    manifest["engine"]["machine"]["arithmetic"] = "cpu bfloat16 native"
    told = "\n".join(reproducing.differences(manifest))
    assert "The code of the engine is another: commit c0ffeec0ffee then" in told
    assert "torch was 0.1 and is " in told
    assert "Python was 3.11.0 and is" in told
    assert "AVX2 instructions, and this CPU lacks avx2, fma" in told
    assert "multiplies in bfloat16 itself" in told
    assert "3 threads and this machine has 2 cores" in told
    manifest["engine"]["machine"] = {"device": "cuda", "device_name": "H200"}
    assert "on a GPU (H200), where the same bytes are not promised" in "\n".join(reproducing.differences(manifest))


def test_a_first_policy_that_is_not_here_is_told_for_it_has_a_part_in_the_memory_plan(published, policy):
    manifest = registry.manifest_of(published)
    said = "The first policy is not on this machine."
    manifest["engine"]["job"]["first"] = {"base": policy.content_hash, "adapter": None}
    assert said not in "\n".join(reproducing.differences(manifest))
    manifest["engine"]["job"]["first"] = {"base": "0" * 64, "adapter": None}
    assert said in "\n".join(reproducing.differences(manifest))
    assert reproducing.find_inputs(manifest).job.first is None


def test_flags_are_those_of_the_kernel(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu sse2 avx2\n\nprocessor : 1\nflags : fpu\n")
    assert reproducing.cpu_flags(cpuinfo) == {"fpu", "sse2", "avx2"}
    assert reproducing.cpu_flags(tmp_path / "none") == frozenset()


class _Engine:
    """In place of a process: it writes what it is told into the run directory and has ended."""

    writes: dict[str, str]

    def __init__(self, module: str, run_dir: RunDir) -> None:
        for name, text in self.writes.items():
            (run_dir.path / name).parent.mkdir(exist_ok=True)
            (run_dir.path / name).write_text(text)

    def wait(self, timeout: float) -> int:
        return 0

    def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch):
    def engine(result: Result, **files: str) -> None:
        _Engine.writes = {
            "result.json": result.to_json(),
            **{f"checkpoint/{name}": text for name, text in files.items()},
        }
        monkeypatch.setattr(reproducing, "EngineProcess", _Engine)

    return engine


def test_other_bytes_end_with_a_table_and_status_1(published, engine):
    engine(Result(ok=True, details=DETAILS | {"cpu": "AVX512"}), **{"extra.json": "{}"})
    said = StringIO()
    with pytest.raises(CommandError, match="not the same bytes") as caught:
        call_command("reproduce", published.name, stdout=said, no_color=True)
    assert caught.value.returncode == 1
    assert "cpu: AVX2 then, AVX512 now." in said.getvalue()
    rows = [line.split() for line in said.getvalue().splitlines() if "published" in line]
    assert [(row[0], row[-1]) for row in rows] == [("adapter_model.safetensors", "OTHER"), ("extra.json", "OTHER")]
    assert rows[1][2] == "none"


def test_the_same_bytes_end_with_status_0(published, engine):
    engine(Result(ok=True, details=DETAILS), **{"adapter_model.safetensors": f"adapter {published.run.uuid}"})
    assert "the same bytes" in _reproduce(published.name)


def test_an_engine_that_fails_is_told_with_its_reason(published, engine, data_dir):
    engine(Result(ok=False, error_code="disk_full", error="The disk is full.", hint="Free some."))
    with pytest.raises(CommandError, match=r"could not be trained again\. The disk is full\. Free some\.") as caught:
        _reproduce(published.name, keep=data_dir / "kept")
    assert caught.value.returncode == 2
    assert (data_dir / "kept/job.json").exists()
    with pytest.raises(CommandError, match="is there already"):
        _reproduce(published.name, keep=data_dir / "kept")


def test_one_thing_is_named(db):
    for arguments in ([], ["one", "--manifest", "two"]):
        with pytest.raises(CommandError, match="Name a checkpoint, or a manifest"):
            _reproduce(*arguments)
    with pytest.raises(CommandError, match="There is no checkpoint “nothing”"):
        _reproduce("nothing")


def test_deleted_weights_are_restored_from_the_same_bytes_and_from_no_others(published, engine, data_dir):
    with pytest.raises(CommandError, match="nothing to restore") as caught:
        _reproduce(published.name, restore=True)
    assert caught.value.returncode == 2
    Checkpoint.objects.filter(pk=published.pk).update(removed_at=timezone.now())
    published.refresh_from_db()
    retention.delete_files(published)
    weights = store.checkpoint_dir(published.uuid) / "adapter_model.safetensors"
    assert not weights.exists()
    engine(Result(ok=True, details=DETAILS), **{"adapter_model.safetensors": "others"})
    with pytest.raises(CommandError, match="not the same bytes"):
        _reproduce(published.name, restore=True)
    assert not weights.exists()
    engine(Result(ok=True, details=DETAILS), **{"adapter_model.safetensors": f"adapter {published.run.uuid}"})
    assert "are back" in _reproduce(published.name, restore=True, keep=data_dir / "kept")
    registry.weights_of(Checkpoint.objects.select_related("base").get(pk=published.pk))
    assert (data_dir / "kept/checkpoint/adapter_model.safetensors").exists(), "what is kept stays whole"
