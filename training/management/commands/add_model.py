"""``manage.py add_model``"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training.exceptions import ModelRejected
from training.model_import import add_model


class Command(BaseCommand):
    help = (
        "Add a base model: a local directory under TIEBREAK_MODEL_DIRECTORIES or a Hub id in TIEBREAK_MODEL_HUB_IDS. "
        "Safetensors only, no code of its own; it is checked, copied and registered under its content hash. "
        "Promote it with manage.py promote."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("source", help="A directory, or a Hub id such as owner/name.")
        parser.add_argument("--name", default="", help="How Tiebreak calls it (default: the last part of the source).")
        parser.add_argument(
            "--public-name", default="", help="The Hub id under which others can load a directory's model."
        )
        parser.add_argument("--licence", default="", help="For example Apache-2.0.")

    def handle(self, *args: Any, source: str, **options: Any) -> None:
        try:
            checkpoint = add_model(
                source,
                name=options["name"],
                licence=options["licence"],
                public_name=options["public_name"],
                say=lambda line: self.stdout.write(f"  {line}"),
            )
        except ModelRejected as refusal:
            problems = "\n".join(f"  - {problem}" for problem in refusal.problems)
            raise CommandError(f"{source} was not added:\n{problems}") from refusal
        self.stdout.write(f"{checkpoint} is here: {checkpoint.content_hash}")
