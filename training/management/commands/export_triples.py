"""``manage.py export_triples``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training import snapshots
from training.command_line import project_named
from training.exceptions import Rejected
from training.recipe import Recipe


class Command(BaseCommand):
    help = (
        "Write the project's triples (x, y_w, y_l) as JSONL, one a line with its weight, label noise, split and the "
        "preferences behind it, as a run by the same rule would train on them. The file appears when it is complete."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="The project's slug.")
        parser.add_argument("file", type=Path, help="Where to write; an existing file is replaced only with --force.")
        parser.add_argument("--force", action="store_true", help="Replace an existing file.")
        for name in Recipe.ABOUT_DATA:
            option, default = f"--{name.replace('_', '-')}", getattr(Recipe, name)
            parser.add_argument(
                option, choices=Recipe.VALUES[name], default=default, help=f"As in a recipe. Default: {default}."
            )

    def handle(self, *args: Any, project: str, file: Path, force: bool, **options: Any) -> None:
        target = project_named(project)
        try:
            rule = Recipe.from_dict({name: options[name] for name in Recipe.ABOUT_DATA}).label_rule
        except Rejected as refusal:
            raise CommandError(str(refusal)) from refusal
        if file.exists() and not force:
            raise CommandError(f"{file} exists. Choose another name, or add --force to replace it.")
        try:
            counts = snapshots.write_triples(project=target, path=file, rule=rule)
        except OSError as error:
            raise CommandError(f"Cannot write {file}: {error.strerror}.") from error
        self.stdout.write(
            f"{counts.triples:,} triples: {counts.train:,} train, {counts.held_out:,} held out. Without a triple: "
            f"{counts.ties:,} ties, {counts.both_bad:,} both bad, {counts.split_votes:,} split votes."
        )
