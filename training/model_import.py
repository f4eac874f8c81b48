"""Bringing a model in: pre-flight, conversion by the engine, registration under its content hash."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from training import registry, store
from training.exceptions import ModelRejected
from training.jobspec import ImportJob, read_result, write_job
from training.modelfiles import allowed_directory, allowed_hub_id, check_directory
from training.models import Checkpoint
from training.process import EngineProcess
from training.rundir import LineReader, RunDir, log_tail

SAY_EVERY_SECONDS = 1.0


def add_model(
    source: str,
    *,
    name: str = "",
    licence: str = "",
    public_name: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Add a Hub id or a local directory that the operator allows; raises ``ModelRejected`` with what is wrong.

    Adding the same weights again returns the checkpoint that is there.
    """
    path = Path(source)
    if path.is_dir() or path.is_absolute():
        directory = allowed_directory(source)
        check_directory(directory)
        job = ImportJob("directory", str(directory))
        default_name = directory.name
    else:
        job = ImportJob("hub", allowed_hub_id(source))
        default_name = source.rsplit("/", 1)[-1]
        public_name = public_name or source
    return import_weights(job, name=name or default_name, licence=licence, public_name=public_name, say=say)


def import_weights(
    job: ImportJob, *, name: str, licence: str, public_name: str, say: Callable[[str], None]
) -> Checkpoint:
    """Run the engine's import on a source that was checked, and register what came out as a base checkpoint."""
    run_dir = RunDir.of(uuid.uuid4())
    run_dir.make()
    try:
        details = _convert(job, run_dir, say)
        check_directory(run_dir.checkpoint)
        say("hashing the weights")
        checkpoint = registry.register(
            staging_name=f"import-{run_dir.path.name}",
            source=run_dir.checkpoint,
            kind=Checkpoint.Kind.BASE,
            name=name,
            public_name=public_name or name,
            licence=licence,
            details=details,
        )
    finally:
        shutil.rmtree(run_dir.path, ignore_errors=True)
    known = Checkpoint.objects.filter(content_hash=checkpoint.content_hash, base__isnull=True).first()
    if known:
        store.discard(checkpoint.uuid)
        return known
    checkpoint.save()
    return checkpoint


def _convert(job: ImportJob, run_dir: RunDir, say: Callable[[str], None]) -> dict[str, object]:
    write_job(run_dir.path, job)
    engine = EngineProcess("import_model", run_dir, online=job.source_kind == "hub")
    lines = LineReader(run_dir.metrics)
    try:
        while (status := engine.wait(SAY_EVERY_SECONDS)) is None:
            for line in lines.new_lines():
                if "phase" in line:
                    say(str(line["phase"]))
    finally:
        engine.close()
    result = read_result(run_dir.path)
    if status == 0 and result is not None and result.ok:
        return result.details
    if result is None:
        raise ModelRejected([f"The import ended with status {status}.", log_tail(run_dir, 2000)])
    raise ModelRejected([part for part in (result.error, result.hint) if part])
