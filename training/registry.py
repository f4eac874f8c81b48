"""Checkpoints as rows and as directories held together: registering, and handing weights to an engine, verified."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from labeling.models import Project
from training import store
from training.exceptions import CheckpointDamaged, CheckpointRemoved
from training.footprint import Shape
from training.jobspec import ModelRef
from training.model_card import render_card
from training.models import Checkpoint


def register(
    *,
    staging_name: str,
    source: Any,
    kind: Checkpoint.Kind,
    name: str,
    project: Project | None = None,
    base: Checkpoint | None = None,
    parent: Checkpoint | None = None,
    public_name: str = "",
    licence: str = "",
    lineage: dict[str, Any] | None = None,
    details: dict[str, Any] | None = None,
    checkpoint_uuid: uuid.UUID | None = None,
) -> Checkpoint:
    """Hash, describe and move an engine's output into the store, and return the unsaved row for it.

    The caller saves the row in the transaction that also checks that it still owns the job; until then the directory is
    visible to nobody.
    """
    staging = store.stage(source, staging_name)
    files = store.list_files(staging)
    checkpoint = Checkpoint(
        uuid=checkpoint_uuid or uuid.uuid4(),
        project=project,
        kind=kind,
        name=name,
        public_name=public_name or (base.public_name if base else ""),
        licence=licence or (base.licence if base else ""),
        base=base,
        parent=parent,
        content_hash=store.content_hash(files, base.content_hash if base else None),
        size_bytes=sum(file.size for file in files),
        details=details or {},
    )
    manifest = _manifest(checkpoint, files, lineage or {})
    store.write_manifest(staging, manifest, render_card(manifest))
    checkpoint.manifest_sha256 = store.hash_file(staging / store.MANIFEST)
    store.publish(staging, checkpoint.uuid)
    return checkpoint


def _manifest(checkpoint: Checkpoint, files: list[store.StoredFile], lineage: dict[str, Any]) -> dict[str, Any]:
    base = checkpoint.base
    return {
        "name": checkpoint.name,
        "kind": checkpoint.kind,
        "content_hash": checkpoint.content_hash,
        "files": [vars(file) for file in files],
        "base": {"name": base.public_name or base.name, "content_hash": base.content_hash} if base else None,
        "parent": checkpoint.parent.content_hash if checkpoint.parent else None,
        "public_name": checkpoint.public_name,
        "licence": checkpoint.licence,
        "figures": checkpoint.details,
    } | lineage


def manifest_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was published with it. Raises ``CheckpointDamaged`` where the file is another, or cannot be read."""
    try:
        return store.read_manifest(checkpoint.uuid, checkpoint.manifest_sha256)
    except (OSError, ValueError) as error:
        raise CheckpointDamaged(
            f"The manifest of {checkpoint} ({checkpoint.short_hash}) cannot be read: {error}. Restore its directory "
            "from a backup."
        ) from error


Verified = dict[uuid.UUID, Path]


def weights_of(checkpoint: Checkpoint, verified: Verified | None = None) -> ModelRef:
    """Verify the checkpoint's files, and its base's, against their hashes and say where they lie.

    ``verified`` has the directories that the caller has had verified already, and is added to: each is read once.
    Raises ``CheckpointRemoved`` and ``CheckpointDamaged``.
    """
    verified = {} if verified is None else verified
    base = checkpoint.base
    for needed in filter(None, (checkpoint, base)):
        if needed.removed_at is not None:
            raise _removed(needed)
    if base is None:
        return ModelRef(base_dir=str(_verify(checkpoint, verified)), base_hash=checkpoint.content_hash)
    return ModelRef(
        base_dir=str(_verify(base, verified)),
        base_hash=base.content_hash,
        adapter_dir=str(_verify(checkpoint, verified)),
        adapter_hash=checkpoint.content_hash,
    )


def refuse_removed(*checkpoints: Checkpoint) -> None:
    """Ask the database once more, in the transaction that makes something need them. Raises ``CheckpointRemoved``.

    The retention rule marks what it removes under the lock of the project. Whoever holds that lock and has asked here
    is ahead of it: the rule sees what is needed then.
    """
    removed = Checkpoint.objects.filter(pk__in=[each.pk for each in checkpoints], removed_at__isnull=False).first()
    if removed:
        raise _removed(removed)


def _removed(checkpoint: Checkpoint) -> CheckpointRemoved:
    return CheckpointRemoved(
        f"The weights of {checkpoint} were deleted by the project's retention rule on "
        f"{checkpoint.removed_at:%-d %B %Y}, so it can be neither used nor downloaded. Its manifest says what it was "
        "made of, and from that it can be made again."
    )


def _verify(checkpoint: Checkpoint, verified: Verified) -> Path:
    if checkpoint.uuid not in verified:
        base_hash = checkpoint.base.content_hash if checkpoint.base else None
        verified[checkpoint.uuid] = store.verify(checkpoint.uuid, checkpoint.content_hash, base_hash)
    return verified[checkpoint.uuid]


def shape_of(checkpoint: Checkpoint) -> Shape | None:
    """The sizes of the model, of an adapter those of its base; ``None`` where no ``config.json`` says them."""
    root = checkpoint.base or checkpoint
    try:
        config = (store.checkpoint_dir(root.uuid) / "config.json").read_text(encoding="utf-8")
        return Shape.from_config(json.loads(config))
    except (OSError, ValueError, TypeError, AttributeError):  # a ShapeError is a ValueError
        return None
