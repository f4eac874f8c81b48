"""The store of immutable checkpoints: manifest, content hash, publishing by rename, verification, archive.

A checkpoint's directory holds its files, a model card (``README.md``) and ``manifest.json``. The content hash covers
the weights and tokenizer files, and the base for an adapter, so that the same policy has the same hash everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from training import digests
from training.exceptions import CheckpointDamaged

MANIFEST = "manifest.json"
MODEL_CARD = "README.md"
FORMAT = 1
PUBLISHABLE = (".json", ".safetensors", ".jinja", ".txt", ".model", ".md")
ZIP_DATE = (2000, 1, 1, 0, 0, 0)  # the same bytes give the same archive, whenever it is made
CHUNK = 2**20
VARIANTS = ("adapter", "merged", "gguf")  # of what is kept for download
HALF_ARCHIVE_PATIENCE_SECONDS = 24 * 3600
STAGING_PATIENCE_SECONDS = 6 * 3600  # a model that is being imported belongs to no job, and hashing takes a while


@dataclass(frozen=True)
class StoredFile:
    path: str
    size: int
    sha256: str


def checkpoint_dir(checkpoint_uuid: Any) -> Path:
    return Path(settings.DATA_DIR) / "checkpoints" / str(checkpoint_uuid)


def snapshot_path(sha256: str) -> Path:
    return Path(settings.DATA_DIR) / "snapshots" / f"{sha256}.jsonl"


def staging_dir(name: str) -> Path:
    return Path(settings.DATA_DIR) / "staging" / name


def archive_path(checkpoint_uuid: Any, variant: str) -> Path:
    """``variant``: ``adapter``, ``merged`` for full weights, or ``gguf``, which is a single file."""
    suffix = "gguf" if variant == "gguf" else "zip"
    return Path(settings.DATA_DIR) / "downloads" / f"{checkpoint_uuid}-{variant}.{suffix}"


def free_megabytes() -> int:
    return shutil.disk_usage(settings.DATA_DIR).free // 2**20


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def list_files(directory: Path) -> list[StoredFile]:
    """The content files of a directory, sorted; refuses links, folders and kinds of files that may carry code."""
    files = []
    for path in sorted(directory.iterdir()):
        if path.name in (MANIFEST, MODEL_CARD):
            continue
        if path.is_symlink() or not path.is_file() or path.suffix not in PUBLISHABLE:
            raise CheckpointDamaged(f"“{path.name}” does not belong in a checkpoint; only {', '.join(PUBLISHABLE)} do.")
        files.append(StoredFile(path.name, path.stat().st_size, hash_file(path)))
    return files


def content_hash(files: Sequence[StoredFile], base_hash: str | None = None) -> str:
    """sha256 (hex) over names, sizes and digests of the files, and over the base's hash for an adapter."""
    content = {"base": base_hash, "files": [asdict(file) for file in files]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def stage(source: Path, name: str) -> Path:
    """Move an engine's output into the staging area, where nothing looks for checkpoints."""
    staging = staging_dir(name)
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.move(source, staging)
    os.utime(staging)  # a rename keeps the old time, and staging is cleaned by age
    return staging


def write_manifest(directory: Path, manifest: dict[str, Any], card: str) -> None:
    (directory / MODEL_CARD).write_text(card, encoding="utf-8")
    text = json.dumps({"format": FORMAT} | manifest, indent=1, ensure_ascii=False, sort_keys=True)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for path in directory.iterdir():
        path.chmod(0o644)
        _sync(path)
    _sync(directory)


def read_manifest(checkpoint_uuid: Any, expected_sha256: str = "") -> dict[str, Any]:
    """``expected_sha256``: what it was when it was published, where that is known. Raises ``CheckpointDamaged``."""
    path = checkpoint_dir(checkpoint_uuid) / MANIFEST
    content = path.read_bytes()
    if expected_sha256 and hashlib.sha256(content).hexdigest() != expected_sha256:
        raise CheckpointDamaged(
            f"{MANIFEST} of checkpoint {checkpoint_uuid} was changed on disk, so nothing that it says is believed. "
            "Restore its directory from a backup."
        )
    manifest: dict[str, Any] = json.loads(content)
    return manifest


def publish(staging: Path, checkpoint_uuid: Any) -> Path:
    """Make a complete staged directory a checkpoint by one rename."""
    target = checkpoint_dir(checkpoint_uuid)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging.rename(target)
    _sync(target.parent)
    return target


def put_back(checkpoint_uuid: Any, source: Path, names: Sequence[str]) -> None:
    """Move files that were deleted from a checkpoint's directory into it again, each by one rename."""
    target = checkpoint_dir(checkpoint_uuid)
    for name in names:
        staging = target / f".{name}.{uuid.uuid4().hex}"
        shutil.move(source / name, staging)
        staging.chmod(0o644)
        _sync(staging)
        staging.replace(target / name)
    _sync(target)


def discard(checkpoint_uuid: Any) -> None:
    """Remove a published directory and its archives whose row was never written."""
    shutil.rmtree(checkpoint_dir(checkpoint_uuid), ignore_errors=True)
    remove_archives(checkpoint_uuid)


def remove_archives(checkpoint_uuid: Any) -> None:
    for variant in VARIANTS:
        path = archive_path(checkpoint_uuid, variant)
        path.unlink(missing_ok=True)
        digests.beside(path).unlink(missing_ok=True)


def verify(checkpoint_uuid: Any, expected_hash: str, base_hash: str | None = None) -> Path:
    """Return the directory if every file is still as published, else raise ``CheckpointDamaged`` naming the file."""
    directory = checkpoint_dir(checkpoint_uuid)
    if not directory.is_dir():
        raise CheckpointDamaged(
            f"The directory of checkpoint {expected_hash[:12]} is missing. Restore it from a backup."
        )
    files = list_files(directory)
    if content_hash(files, base_hash) != expected_hash:
        names = _changed(directory, files) or ["a file"]
        raise CheckpointDamaged(
            f"Checkpoint {expected_hash[:12]} was changed on disk ({', '.join(names)}), so it is not used. "
            "Restore its directory from a backup, or train it again."
        )
    return directory


def _changed(directory: Path, files: Sequence[StoredFile]) -> list[str]:
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        published = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return [MANIFEST]
    found = {file.path: file.sha256 for file in files}
    return sorted(name for name in published.keys() | found.keys() if published.get(name) != found.get(name))


def write_archive(directory: Path, target: Path, folder: str) -> tuple[str, int]:
    """Write ``directory`` as an uncompressed zip under ``folder/`` and return its (sha256, size).

    Weights do not compress, and stored entries can be read in place.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for path in sorted(directory.iterdir()):
                entry = zipfile.ZipInfo(f"{folder}/{path.name}", ZIP_DATE)
                entry.external_attr = 0o644 << 16
                entry.file_size = path.stat().st_size
                with path.open("rb") as source, archive.open(entry, "w") as sink:
                    shutil.copyfileobj(source, sink, CHUNK)
        return _publish_archive(staging, target)
    finally:
        staging.unlink(missing_ok=True)


def publish_file(source: Path, target: Path) -> tuple[str, int]:
    """Move a file that is whole to where it is downloaded from and return its (sha256, size)."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        shutil.move(source, staging)
        return _publish_archive(staging, target)
    finally:
        staging.unlink(missing_ok=True)


def _publish_archive(staging: Path, target: Path) -> tuple[str, int]:
    _sync(staging)
    sha256, status = hash_file(staging), staging.stat()
    digests.keep(target, sha256, status)
    staging.replace(target)
    return sha256, status.st_size


def remove_stale_staging(live_names: set[str]) -> int:
    """Delete staged directories that no live job owns and nobody has touched for a while; returns how many."""
    limit = time.time() - STAGING_PATIENCE_SECONDS
    stale = [path for path in _entries("staging") if path.name not in live_names and path.stat().st_mtime < limit]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return len(stale)


def remove_half_archives() -> int:
    """Delete archives whose writer died, once they are old; returns how many.

    Nothing under ``checkpoints/`` is ever deleted for being unknown: the database may be the one that is wrong.
    """
    limit = time.time() - HALF_ARCHIVE_PATIENCE_SECONDS
    halves = [p for p in _entries("downloads") if p.name.startswith(".") and p.stat().st_mtime < limit]
    for path in halves:
        path.unlink(missing_ok=True)
    return len(halves)


def _entries(folder: str) -> list[Path]:
    root = Path(settings.DATA_DIR) / folder
    return list(root.iterdir()) if root.is_dir() else []


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
