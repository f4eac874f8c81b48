"""``manage.py sample``"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training import services
from training.command_line import project_named, wait_for
from training.exceptions import Rejected
from training.recipe import Decoding


class Command(BaseCommand):
    help = (
        "Ask the project's policy for new pairs; a sampling worker writes them. "
        "Exit status 1 if it was refused or, with --wait, did not succeed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="The project's slug.")
        parser.add_argument("--pairs", type=int, default=24, help="How many (default: 24).")
        parser.add_argument("--temperature", type=float, default=Decoding.temperature)
        parser.add_argument("--top-p", type=float, default=Decoding.top_p)
        parser.add_argument("--max-new-tokens", type=int, default=Decoding.max_new_tokens)
        parser.add_argument("--seed", type=int, help="Seed of the batch (default: random, recorded).")
        parser.add_argument("--wait", action="store_true", help="Report progress and return when the batch has ended.")

    def handle(self, *args: Any, project: str, pairs: int, wait: bool, **options: Any) -> None:
        values = {name: options[name] for name in ("temperature", "top_p", "max_new_tokens")}
        try:
            batch = services.request_samples(
                project=project_named(project), pairs=pairs, decoding=Decoding.from_dict(values), seed=options["seed"]
            )
        except Rejected as refusal:
            raise CommandError(str(refusal)) from refusal
        self.stdout.write(f"{batch} is queued: {batch.wanted} prompts, policy {batch.policy}.")
        if wait:
            wait_for(batch, self.stdout.write)
            batch.refresh_from_db()
            self.stdout.write(f"{batch.pairs_made} pairs, {batch.prompts_refused} prompts refused.")
