"""Going on with a training run that was stopped: which saved states are whole, and whose they are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from training.engine.journal import say

LAYOUT = "states 2"  # to be counted up when states of an earlier version must not be gone on from
SEAL = "sealed.json"
PREFIX = "checkpoint-"


def seal(state_dir: Path) -> None:
    """Bring a saved state to the disk and list its files with their sha256. A state without the list is torn."""
    hashes = {}
    for path in sorted(state_dir.rglob("*")):
        if path.is_file():
            sync(path)
            hashes[str(path.relative_to(state_dir))] = sha256_of(path)
    staging = state_dir / f".{SEAL}"
    staging.write_text(json.dumps(hashes), encoding="utf-8")
    sync(staging)
    staging.replace(state_dir / SEAL)
    sync(state_dir)


def is_whole(state_dir: Path) -> bool:
    """Whether every file is there, byte for byte: a moment of the optimiser with another bit is a number as well."""
    try:
        hashes: dict[str, str] = json.loads((state_dir / SEAL).read_text(encoding="utf-8"))
        return all(sha256_of(state_dir / name) == known for name, known in hashes.items())
    except (OSError, ValueError):
        return False


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_state(trainer_dir: Path, identity: str) -> Path | None:
    """The newest whole state of the job ``identity``. Newer ones that are torn, and all of another job, are removed."""
    trainer_dir.mkdir(exist_ok=True)
    owner = trainer_dir / "job.sha256"
    if not owner.is_file() or owner.read_text(encoding="ascii") != identity:
        if any(trainer_dir.glob(f"{PREFIX}*")):
            say("The saved states are of another job or of an earlier version; training starts from the beginning.")
        shutil.rmtree(trainer_dir)
        trainer_dir.mkdir()
        owner.write_text(identity, encoding="ascii")
        return None
    states = sorted(trainer_dir.glob(f"{PREFIX}*"), key=step_of)
    while states and not is_whole(states[-1]):
        say(f"The state saved at step {step_of(states[-1])} is torn or was changed on disk, so it is not used.")
        shutil.rmtree(states.pop())
    return states[-1] if states else None


def step_of(state_dir: Path) -> int:
    return int(state_dir.name.removeprefix(PREFIX))


MEASURED_OR_PRIVATE = (
    *("threads", "cache_dir", "cache_mb", "base_name", "first", "first_is_reference", "kl_first_budget"),
    "probe_tokens",
)


def job_identity(run_dir: Path, arithmetic: str) -> str:
    """sha256 over the job, its data and ``arithmetic`` (``Compute.name``): a state is good for nothing else.

    Where the weights and the cache lie does not count, and neither do threads and what is only written or measured: a
    run goes on after its data directory has moved.
    """
    job = json.loads((run_dir / "job.json").read_text(encoding="utf-8"))
    for private in MEASURED_OR_PRIVATE:
        job.pop(private, None)
    if not job.get("memory_bytes"):  # jobs of earlier versions do not have it
        job.pop("memory_bytes", None)
    for place in ("base_dir", "adapter_dir"):
        job.get("reference", {}).pop(place, None)
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode())
    digest.update(f"{LAYOUT} {arithmetic}".encode())
    digest.update(hashlib.sha256((run_dir / "dataset.jsonl").read_bytes()).digest())
    return digest.hexdigest()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
