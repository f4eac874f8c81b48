"""How a checkpoint was made, as far as its bytes follow from it: the resolved job, the code, the machine.

Part of the manifest, under ``engine``. With the reference, the base and the snapshot, which it names by their hashes,
the same code makes the same bytes again on a CPU of the same kind (``reproducing``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from django.conf import settings

from training.jobspec import ModelRef, Result, TrainJob, read_job, write_atomically
from training.rundir import RunDir

# What the engine is made of: its package, and the two modules that both sides read.
SOURCES = ("training/engine/*.py", "training/jobspec.py", "training/footprint.py")
# Of a job: where things lie on this machine. No byte of a checkpoint follows from it.
PRIVATE = ("cache_dir", "cache_mb")
MACHINE = ("device", "device_name", "arithmetic", "cpu", "threads", "python", "versions")


def sources_sha256() -> str:
    """Over the names and bytes of all that the engine consists of."""
    root = Path(settings.BASE_DIR)
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def commit() -> str:
    """The commit that is checked out here; empty where git or its directory is missing."""
    git = shutil.which("git")
    if git is None or not (Path(settings.BASE_DIR) / ".git").exists():
        return ""
    command = [git, "-C", str(settings.BASE_DIR), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def note_code(run_dir: RunDir) -> None:
    """Write down which code an attempt is made with. A run that went on after an update was made by two."""
    code = {"commit": commit(), "sources_sha256": sources_sha256()}
    known = codes(run_dir)
    if not known or known[-1] != code:
        write_atomically(run_dir.code, json.dumps([*known, code]))


def codes(run_dir: RunDir) -> list[dict[str, str]]:
    """The code of each attempt, one after the other, without repetitions; none of earlier versions."""
    try:
        found: list[dict[str, str]] = json.loads(run_dir.code.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found


def of_run(run_dir: RunDir, result: Result) -> dict[str, Any]:
    """What the manifest of a run's checkpoint says of its making."""
    details = result.details
    return {
        "engine": {
            "job": resolved_job(read_job(run_dir.path, TrainJob), details),
            "code": codes(run_dir),
            "machine": {name: details[name] for name in MACHINE if name in details},
            "memory_ran_out": bool(details.get("memory", {}).get("halved", False)),
        }
    }


def resolved_job(job: TrainJob, details: dict[str, Any]) -> dict[str, Any]:
    """The job with models by their hashes, and what was left to the machine as it came out there."""
    plain = {name: value for name, value in vars(job).items() if name not in PRIVATE}
    return plain | {
        "reference": hashes(job.reference),
        "first": hashes(job.first) if job.first else None,
        "device": details.get("device", job.device),
        "precision": details.get("dtype", job.precision),
        "threads": details.get("threads", job.threads),
        "memory_bytes": details.get("memory", {}).get("limit_bytes", job.memory_bytes),
    }


def hashes(model: ModelRef) -> dict[str, str | None]:
    return {"base": model.base_hash, "adapter": model.adapter_hash}
