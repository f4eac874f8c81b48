"""``manage.py promote``"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training import services
from training.command_line import checkpoint_named, project_named
from training.exceptions import Rejected


class Command(BaseCommand):
    help = "Make a checkpoint the project's policy, or roll back to the one before. Exit status 1 if it was refused."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="The project's slug.")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("checkpoint", nargs="?", help="Name, uuid or the beginning of the content hash.")
        which.add_argument("--roll-back", action="store_true", help="Promote the policy before the current one.")
        parser.add_argument("--reason", default="", help="Kept with the promotion.")

    def handle(
        self, *args: Any, project: str, checkpoint: str | None, roll_back: bool, reason: str, **options: Any
    ) -> None:
        target = project_named(project)
        try:
            if roll_back or checkpoint is None:
                promotion = services.roll_back(project=target, reason=reason)
            else:
                found = checkpoint_named(target, checkpoint)
                promotion = services.promote_checkpoint(project=target, checkpoint=found, reason=reason)
        except Rejected as refusal:
            raise CommandError(str(refusal)) from refusal
        self.stdout.write(f"{promotion.checkpoint} is the policy of {target}. It writes the next pairs.")
