"""What people ask for to take a checkpoint away: archives, other forms, a copy on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from django.conf import settings
from django.db import IntegrityError, transaction

from labeling.models import Project
from training import registry, services, store
from training.exceptions import Rejected
from training.models import Checkpoint, CheckpointExport, HubPush, Job
from training.services import Requester
from training.tasks import hint_on_commit

Variant = CheckpointExport.Variant
# What huggingface_hub takes for owner and name of a repository; its own check is in a library of the engine's.
REPO_ID = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?/[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?", re.ASCII
)
MOST_CHARACTERS = 96


def request_export(*, checkpoint: Checkpoint, variant: str = Variant.MERGED, by: Requester = None) -> CheckpointExport:
    """Ask for a file of full weights, once; asking again after a failure tries again."""
    if variant == Variant.GGUF and not settings.GGUF_CONVERTER:
        raise Rejected(
            "No GGUF converter is set up here. Whoever runs this server can name llama.cpp's convert_hf_to_gguf.py in "
            "TIEBREAK_GGUF_CONVERTER; the merged weights can be converted elsewhere as well."
        )
    with transaction.atomic():
        _hold(checkpoint)
        export, created = CheckpointExport.objects.get_or_create(
            checkpoint=checkpoint, variant=variant, defaults={"requested_by": by}
        )
        if not created and export.state == Job.State.SUCCEEDED and not is_there(checkpoint, variant):
            export.delete()  # the downloads were lost or cleared; they can be made again
            export = CheckpointExport.objects.create(checkpoint=checkpoint, variant=variant, requested_by=by)
            created = True
        if created:
            hint_on_commit(export)
        elif export.state in (Job.State.FAILED, Job.State.CANCELLED):
            services.resume_job(job=export)
            export.refresh_from_db()
    return export


def is_there(checkpoint: Checkpoint, variant: str) -> bool:
    return store.archive_path(checkpoint.uuid, variant).exists()


def _hold(checkpoint: Checkpoint) -> None:
    """Be ahead of the retention rule, which marks what it removes under the same lock."""
    if checkpoint.project is not None:
        services.lock(checkpoint.project)
    registry.refuse_removed(checkpoint, *filter(None, [checkpoint.base]))


def adapter_archive(checkpoint: Checkpoint) -> Path:
    """The archive of an adapter, made again from verified files where it was lost."""
    path = store.archive_path(checkpoint.uuid, "adapter")
    registry.manifest_of(checkpoint)  # goes along
    if not path.exists():
        registry.weights_of(checkpoint)
        store.write_archive(store.checkpoint_dir(checkpoint.uuid), path, checkpoint.name)
        try:
            registry.refuse_removed(checkpoint)
        except Rejected:  # its files went while they were packed
            store.remove_archives(checkpoint.uuid)
            raise
    return path


def request_push(
    *,
    project: Project,
    checkpoint: Checkpoint,
    repo_id: str,
    variant: str,
    is_private: bool = True,
    by: Requester = None,
) -> HubPush:
    """Ask the worker of exports to copy a checkpoint to ``repo_id``; ``Rejected`` for what cannot be right."""
    repo_id = repo_id.strip()
    if len(repo_id) > MOST_CHARACTERS or not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise Rejected(
            f"“{repo_id}” is no repository of the Hub. Write OWNER/NAME, of letters, digits, “-”, “_” and “.”."
        )
    if variant == HubPush.Variant.ADAPTER and not checkpoint.is_adapter:
        raise Rejected(f"{checkpoint} has full weights and no adapter. Push the full weights.")
    if variant == HubPush.Variant.MERGED and checkpoint.is_adapter and not is_there(checkpoint, Variant.MERGED):
        raise Rejected("The merged weights have not been prepared yet. Prepare them for download, then push them.")
    try:
        with transaction.atomic():
            _hold(checkpoint)
            push = HubPush.objects.create(
                project=project,
                checkpoint=checkpoint,
                variant=variant,
                repo_id=repo_id,
                is_private=is_private,
                requested_by=by,
            )
            hint_on_commit(push)
    except IntegrityError:
        raise Rejected(f"Something is being pushed to {repo_id} already. Wait until that is done.") from None
    return push
