"""Making a checkpoint again from its manifest alone, and comparing the bytes.

The manifest names base, reference and snapshot by their hashes; where they lie is looked up on this machine. On a CPU
of the same kind the same code gives the same bytes, with caches or without. What may not be the same is said before.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.conf import settings

from training import provenance, registry, store
from training.exceptions import Rejected
from training.jobspec import ModelRef, SpecError, TrainJob, read_result, write_job
from training.models import Checkpoint
from training.process import EngineProcess
from training.rundir import LineReader, RunDir

POLL_SECONDS = 0.5
# What torch calls the instructions that it uses, and the flags that the kernel has for them.
CPU_FLAGS = {"AVX2": ("avx2", "fma"), "AVX512": ("avx512f", "avx512bw", "avx512dq", "avx512vl")}
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16")
# What is read of the manifest of a trained checkpoint, of each model that it names by hashes, and of each code.
NEEDED = ("name", "snapshot.sha256", "engine.job.reference", "engine.job.first", "engine.code", "engine.machine")
NEEDED_OF_MODEL = ("base", "adapter")
NEEDED_OF_CODE = ("commit", "sources_sha256")


@dataclass(frozen=True)
class Inputs:
    """A job with the places of its models on this machine, and the file of its triples."""

    job: TrainJob
    snapshot: Path


@dataclass(frozen=True)
class FileMade:
    """A file of the checkpoint, with its sha256 as published and as made now; empty where there is none."""

    path: str
    published: str
    made: str

    @property
    def is_same(self) -> bool:
        return self.published == self.made


@dataclass(frozen=True)
class Outcome:
    files: list[FileMade]
    remarks: list[str]

    @property
    def is_same(self) -> bool:
        return all(file.is_same for file in self.files)


# What is asked for


def manifest_of_file(path: Path) -> dict[str, Any]:
    """A manifest that came from wherever. ``Rejected`` where it contradicts itself, or the one that was published."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        content_hash = manifest["content_hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Rejected(f"{path} is no manifest of a checkpoint: {error!r}.") from error
    _check_consistent(manifest, str(path))
    known = Checkpoint.objects.filter(content_hash=content_hash).exclude(manifest_sha256="")
    if known.exists() and not known.filter(manifest_sha256=store.hash_file(path)).exists():
        raise Rejected(
            f"{path} is not the manifest that {known[0]} ({content_hash[:12]}) was published with: it was changed. "
            "Take the one in the checkpoint's directory or in its download."
        )
    return dict(manifest)


def manifest_of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = registry.manifest_of(checkpoint)
    _check_consistent(manifest, f"The manifest of {checkpoint}")
    return manifest


def _check_consistent(manifest: dict[str, Any], what: str) -> None:
    try:
        files = [store.StoredFile(**file) for file in manifest["files"]]
        base_hash = manifest["base"]["content_hash"] if manifest["base"] else None
        named = manifest["content_hash"]
    except (KeyError, TypeError) as error:
        raise Rejected(f"{what} does not list its files: {error!r}.") from error
    if store.content_hash(files, base_hash) != named:
        raise Rejected(f"{what} was changed: its files are not those of the content hash that it names.")
    if "merged_from" in manifest:
        raise Rejected(f"{what} is of merged weights. Reproduce the adapter: {manifest['merged_from'][:12]}.")
    if manifest.get("recipe") is None:
        raise Rejected(f"{what} is of a model that was added, not trained, so there is nothing to reproduce.")
    if not manifest.get("engine"):
        raise Rejected(f"{what} was written by an earlier version, which did not say all that its bytes follow from.")
    if lacking := _lacking(manifest):
        raise Rejected(f"{what} was changed: it lacks {', '.join(lacking)}.")


def _lacking(manifest: dict[str, Any]) -> list[str]:
    if lacking := [name for name in NEEDED if not _has(manifest, name)]:
        return lacking
    engine = manifest["engine"]
    models = {name: engine["job"][name] for name in ("reference", "first") if engine["job"][name] is not None}
    of_models = [
        f"engine.job.{name}.{part}" for name in models for part in NEEDED_OF_MODEL if not _has(models[name], part)
    ]
    return of_models + [
        f"engine.code.{part}" for code in engine["code"] for part in NEEDED_OF_CODE if not _has(code, part)
    ]


def _has(said: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(said, dict) or part not in said:
            return False
        said = said[part]
    return True


# What is needed


def find_inputs(manifest: dict[str, Any]) -> Inputs:
    """``Rejected`` with everything that this machine lacks, or has in another form than the manifest says."""
    said = dict(manifest["engine"]["job"])
    missing: list[str] = []
    reference = _found(said.pop("reference"), "The reference", missing)
    first = said.pop("first")
    snapshot = store.snapshot_path(manifest["snapshot"]["sha256"])
    if not snapshot.exists():
        missing.append(f"The snapshot of the triples is missing: {snapshot}.")
    elif store.hash_file(snapshot) != manifest["snapshot"]["sha256"]:
        missing.append(f"The snapshot of the triples was changed on disk: {snapshot}.")
    if unknown := sorted(said.keys() - {field.name for field in fields(TrainJob)}):
        missing.append(f"This version knows no {', '.join(unknown)}, which the job names.")
    if missing or reference is None:
        raise Rejected("\n".join(missing))
    try:
        job = TrainJob(reference=reference, **said)
    except (SpecError, TypeError) as error:
        raise Rejected(f"The job of the manifest is not valid: {error}.") from error
    # It only measures, and it does so on prompts that are not here; that there is one has a part in the memory plan.
    return Inputs(replace(job, first=_found(first, "The first policy", []) if first else None), snapshot)


def _found(hashes: dict[str, str | None], what: str, missing: list[str]) -> ModelRef | None:
    """The weights on this machine, their files verified; whatever they are called here."""
    base, adapter = hashes["base"], hashes["adapter"]
    reasons = []
    for checkpoint in Checkpoint.objects.filter(content_hash=adapter or base).select_related("base"):
        if adapter and (checkpoint.base is None or checkpoint.base.content_hash != base):
            continue
        try:
            return registry.weights_of(checkpoint)
        except (Rejected, OSError) as refusal:
            reasons.append(str(refusal))
    name = f"adapter {adapter[:12]} on base {str(base)[:12]}" if adapter else f"{str(base)[:12]}"
    missing.append(f"{what} is not on this machine: {name}. {' '.join(reasons)}".rstrip())
    return None


def differences(manifest: dict[str, Any]) -> list[str]:
    """What is not as it was when the checkpoint was made, in sentences. Any of it may change the bytes."""
    engine = manifest["engine"]
    return [
        *_other_code(engine["code"]),
        *_other_versions(engine["machine"]),
        *_other_machine(engine["machine"]),
        *_not_of_the_job(engine),
    ]


def _other_code(codes: list[dict[str, str]]) -> Iterator[str]:
    if len(codes) > 1:
        yield f"The run went on after an update: it was made by {len(codes)} versions of the code, one after the other."
    if codes and codes[-1]["sources_sha256"] != provenance.sources_sha256():
        was, now = codes[-1]["commit"][:12] or "unknown", provenance.commit()[:12] or "unknown"
        yield f"The code of the engine is another: commit {was} then, {now} now."


def _other_versions(machine: dict[str, Any]) -> Iterator[str]:
    for library, was in machine.get("versions", {}).items():
        try:
            now = version(library)
        except PackageNotFoundError:
            now = "none"
        if now != was:
            yield f"{library} was {was} and is {now}."
    if (was := machine.get("python", "")) and was != platform.python_version():
        yield f"Python was {was} and is {platform.python_version()}."


def _other_machine(machine: dict[str, Any]) -> Iterator[str]:
    if machine.get("device") == "cuda":
        yield f"It was trained on a GPU ({machine.get('device_name')}), where the same bytes are not promised."
        return
    flags = cpu_flags()
    lacking = [flag for flag in CPU_FLAGS.get(machine.get("cpu", ""), ()) if flag not in flags]
    if flags and lacking:
        yield f"It was trained with {machine['cpu']} instructions, and this CPU lacks {', '.join(lacking)}."
    if flags and str(machine.get("arithmetic", "")).endswith("native") and not flags.intersection(NATIVE_BFLOAT16):
        yield "It was trained on a CPU that multiplies in bfloat16 itself, which this one does not."
    if (threads := machine.get("threads", 0)) > (os.cpu_count() or threads):
        yield f"It was trained with {threads} threads and this machine has {os.cpu_count()} cores; that takes longer."


def _not_of_the_job(engine: dict[str, Any]) -> Iterator[str]:
    if engine.get("memory_ran_out"):
        yield "Memory ran out in a step of the run, which went on with smaller micro-batches. That step is not known."
    if engine["job"].get("processes", 1) != 1:
        yield "It was trained by several processes, whose sums may be added up in another order."
    if (first := engine["job"].get("first")) and _found(first, "The first policy", []) is None:
        yield (
            "The first policy is not on this machine. It only measures, but it takes memory, so that micro-batches may "
            "be larger without it."
        )


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of this machine's CPU; none where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


# Doing it


def reproduce(
    manifest: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
    *,
    keep: Path | None = None,
    with_caches: bool = False,
    with_same: Callable[[Path], None] = lambda made: None,
) -> Outcome:
    """Train again in a directory of its own and compare every file. Nothing is published and no row is written.

    ``keep``: where the directory is to lie and stay. ``with_caches``: read what earlier runs have computed of the
    reference; by default everything is computed anew. ``with_same``: is given the directory of the files while it is
    there, if they are the same. Raises ``Rejected``.
    """
    inputs = find_inputs(manifest)
    with _run_dir(keep) as run_dir:
        shutil.copyfile(inputs.snapshot, run_dir.dataset)
        caches = (str(settings.CACHE_DIR), settings.CACHE_MB) if with_caches else ("", settings.CACHE_MB)
        write_job(run_dir.path, replace(inputs.job, cache_dir=caches[0], cache_mb=caches[1]))
        details = _train(run_dir, say)
        outcome = Outcome(_compare(manifest, run_dir), list(_came_out_otherwise(manifest, details)))
        if outcome.is_same:
            with_same(run_dir.checkpoint)
        return outcome


@contextlib.contextmanager
def _run_dir(keep: Path | None) -> Iterator[RunDir]:
    path = keep or store.staging_dir(f"reproduce-{uuid4()}")
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise Rejected(f"{path} is there already. Name a directory that is not.") from None
    try:
        yield RunDir(path)
    finally:
        if keep is None:
            shutil.rmtree(path, ignore_errors=True)


def _train(run_dir: RunDir, say: Callable[[str], None]) -> dict[str, Any]:
    engine = EngineProcess("train_dpo", run_dir)
    lines = LineReader(run_dir.metrics)
    try:
        while (status := engine.wait(POLL_SECONDS)) is None:
            os.utime(run_dir.path)  # staging is cleaned by age
            for line in lines.new_lines():
                say(_told(line))
    finally:
        engine.close()
    result = read_result(run_dir.path)
    if result is None or not result.ok:
        reason = f"{result.error} {result.hint}" if result else f"The engine ended with status {status}."
        raise Rejected(f"It could not be trained again. {reason}".rstrip())
    return result.details


def _told(line: dict[str, Any]) -> str:
    return f"step {line['step']} of {line['steps']}" if "step" in line else str(line.get("phase", ""))


def _compare(manifest: dict[str, Any], run_dir: RunDir) -> list[FileMade]:
    published = {file["path"]: file["sha256"] for file in manifest["files"]}
    made = {file.path: file.sha256 for file in store.list_files(run_dir.checkpoint)}
    return [
        FileMade(path, published.get(path, ""), made.get(path, "")) for path in sorted(published.keys() | made.keys())
    ]


def _came_out_otherwise(manifest: dict[str, Any], details: dict[str, Any]) -> Iterator[str]:
    """What only the engine can tell of this machine."""
    machine = manifest["engine"]["machine"]
    for name in ("arithmetic", "cpu"):
        if name in machine and details.get(name) != machine[name]:
            yield f"{name}: {machine[name]} then, {details.get(name)} now."
