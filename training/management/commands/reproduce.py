"""``manage.py reproduce``"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q

from training import reproducing, retention
from training.exceptions import Rejected
from training.models import Checkpoint
from training.reproducing import Outcome

MIN_HASH = 6


class Command(BaseCommand):
    help = (
        "Train a checkpoint again from its manifest alone and compare the sha256 of every file. Exit status 0: the "
        "same bytes; 1: other bytes; 2: it could not be done, because something is missing, for example."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("checkpoint", nargs="?", help="Name, uuid or the beginning of the content hash.")
        parser.add_argument("--manifest", type=Path, help="A manifest.json, in place of a checkpoint's own.")
        parser.add_argument("--keep", type=Path, metavar="DIR", help="Keep the run directory there.")
        parser.add_argument(
            "--with-caches", action="store_true", help="Read the reference's values from earlier runs' caches."
        )
        parser.add_argument(
            "--restore", action="store_true", help="Put the same bytes back where the retention rule has deleted them."
        )

    def handle(
        self,
        *args: Any,
        checkpoint: str | None,
        manifest: Path | None,
        keep: Path | None,
        with_caches: bool,
        restore: bool,
        **options: Any,
    ) -> None:
        if (checkpoint is None) == (manifest is None):
            raise CommandError("Name a checkpoint, or a manifest with --manifest.", returncode=2)
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engine ends with its directory
        try:
            found = reproducing.manifest_of_file(manifest) if manifest else _manifest_named(str(checkpoint))
            for difference in reproducing.differences(found):
                self.stdout.write(self.style.WARNING(difference))
            removed = _removed(found) if restore else []
            outcome = reproducing.reproduce(
                found,
                self.stdout.write,
                keep=keep,
                with_caches=with_caches,
                with_same=lambda made: self._restore(removed, made),
            )
        except Rejected as refusal:
            raise CommandError(str(refusal), returncode=2) from refusal
        finally:
            signal.signal(signal.SIGTERM, previous)
        self._tell(outcome, found)

    def _restore(self, removed: list[Checkpoint], made: Path) -> None:
        for checkpoint in removed:
            copy = shutil.copytree(made, made.with_name(f"restored-{checkpoint.uuid}"))  # ``made`` may be kept
            try:
                retention.bring_back(checkpoint, copy)
            finally:
                shutil.rmtree(copy)
            self.stdout.write(
                f"The weights of {checkpoint} are back. The retention rule deletes them again unless something needs "
                "them by its next turn."
            )

    def _tell(self, outcome: Outcome, manifest: dict[str, Any]) -> None:
        for remark in outcome.remarks:
            self.stdout.write(self.style.WARNING(remark))
        width = max(len(file.path) for file in outcome.files)
        for file in outcome.files:
            same = "same" if file.is_same else "OTHER"
            published, made = file.published[:16] or "none", file.made[:16] or "none"
            self.stdout.write(f"{file.path:{width}}  published {published:16}  now {made:16}  {same}")
        if not outcome.is_same:
            raise CommandError(f"{manifest['name']}: not the same bytes.", returncode=1)
        self.stdout.write(f"{manifest['name']}: the same bytes, content hash {manifest['content_hash'][:12]}.")


def _removed(manifest: dict[str, Any]) -> list[Checkpoint]:
    rows = Checkpoint.objects.filter(content_hash=manifest["content_hash"], removed_at__isnull=False)
    removed = list(rows.select_related("project", "base"))
    if not removed:
        raise Rejected(f"No weights of {manifest['name']} were deleted here, so there is nothing to restore.")
    return removed


def _manifest_named(word: str) -> dict[str, Any]:
    named = Q(name=word)
    if len(word) >= MIN_HASH:
        named |= Q(content_hash__startswith=word)
    with contextlib.suppress(ValueError):
        named |= Q(uuid=UUID(word))
    found = list(Checkpoint.objects.filter(named))
    if not found:
        raise Rejected(f"There is no checkpoint “{word}”.")
    if len({row.content_hash for row in found}) > 1:
        names = ", ".join(f"{row.name} {row.uuid}" for row in found)
        raise Rejected(f"“{word}” names {len(found)} checkpoints; use the uuid: {names}.")
    return reproducing.manifest_of_checkpoint(found[0])
