"""``manage.py import_prompts``"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.exceptions import ImportRejected
from labeling.importers import import_prompts
from labeling.models import Project


class Command(BaseCommand):
    help = (
        "Import prompts from JSONL: one prompt a line, as a text in quotes, a list of messages, or an object with "
        "“prompt” or “messages”. All lines or none; prompts that are there already are counted, not doubled. "
        "Exit status 1 if anything was wrong."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="The project's slug.")
        parser.add_argument("file", help="A JSONL file, or - for standard input.")

    def handle(self, *args: Any, project: str, file: str, **options: Any) -> None:
        target = Project.objects.filter(slug=project).first()
        if target is None:
            raise CommandError(f"There is no project “{project}”. Known: {_slugs()}.")
        try:
            with _standard_input() if file == "-" else Path(file).open("rb") as opened:
                report = import_prompts(project=target, file=opened)
        except OSError as error:
            raise CommandError(f"Cannot read {file}: {error.strerror}.") from error
        except ImportRejected as refusal:
            raise CommandError(str(refusal)) from refusal
        self.stdout.write(f"{report.added:,} prompts imported, {report.duplicates:,} were there already.")


def _standard_input() -> IO[bytes]:
    """Standard input as a file that can be read twice."""
    spooled = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
    shutil.copyfileobj(sys.stdin.buffer, spooled)
    spooled.seek(0)
    return spooled


def _slugs() -> str:
    return ", ".join(Project.objects.values_list("slug", flat=True)[:20]) or "none"
