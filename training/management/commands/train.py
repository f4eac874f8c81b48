"""``manage.py train``"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training import services
from training.command_line import checkpoint_named, project_named, wait_for
from training.exceptions import Rejected
from training.recipe import Recipe


class Command(BaseCommand):
    help = (
        "Freeze the triples of now and queue a DPO run on them; a training worker carries it out. "
        "Exit status 1 if it was refused or, with --wait, did not succeed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="The project's slug.")
        parser.add_argument("--wait", action="store_true", help="Report progress and return when the run has ended.")
        parser.add_argument(
            "--reference",
            help="Name, uuid or hash of the frozen reference (default: the one that the project's rule names).",
        )
        parser.add_argument("--seed", type=int, help="Seed of the run (default: random, recorded).")
        for field in fields(Recipe):
            option = f"--{field.name.replace('_', '-')}"
            default = "by method and steps" if field.name == "learning_rate" else field.default
            parser.add_argument(
                option, type=type(field.default), choices=Recipe.VALUES.get(field.name), help=f"Default: {default}."
            )

    def handle(self, *args: Any, project: str, wait: bool, reference: str | None, **options: Any) -> None:
        target = project_named(project)
        values = {field.name: options[field.name] for field in fields(Recipe) if options[field.name] is not None}
        try:
            run = services.request_run(
                project=target,
                recipe=Recipe.from_dict(values),
                reference=checkpoint_named(target, reference) if reference else None,
                seed=options["seed"],
            )
        except Rejected as refusal:
            raise CommandError(str(refusal)) from refusal
        self.stdout.write(f"{run} is queued: {run.snapshot.train_triples} triples, snapshot {run.snapshot.short_hash}.")
        if wait:
            wait_for(run, self.stdout.write)
            run.refresh_from_db()
            self.stdout.write(f"Checkpoint {run.checkpoint}")
