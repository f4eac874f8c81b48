"""``manage.py export_demonstrations``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training import demonstrations
from training.command_line import project_named


class Command(BaseCommand):
    help = (
        "Write the rewrites of the project's annotators as JSONL for supervised fine-tuning: one chat a line, as "
        "“messages” that end with the rewrite, with its split. The file appears when it is complete."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="The project's slug.")
        parser.add_argument("file", type=Path, help="Where to write; an existing file is replaced only with --force.")
        parser.add_argument("--force", action="store_true", help="Replace an existing file.")

    def handle(self, *args: Any, project: str, file: Path, force: bool, **options: Any) -> None:
        target = project_named(project)
        if file.exists() and not force:
            raise CommandError(f"{file} exists. Choose another name, or add --force to replace it.")
        try:
            counts = demonstrations.write(project=target, path=file)
        except OSError as error:
            raise CommandError(f"Cannot write {file}: {error.strerror}.") from error
        self.stdout.write(
            f"{sum(counts.values()):,} demonstrations: {counts['train']:,} train, {counts['held_out']:,} held out."
        )
