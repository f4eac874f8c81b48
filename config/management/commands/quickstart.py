"""``manage.py quickstart``"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config.quickstart import credentials_path, set_up
from training.exceptions import Rejected


class Command(BaseCommand):
    help = (
        "Make the demo project “Helpful answers” with starter prompts, one admin, two annotators and the default "
        "model. Makes only what is missing, so it can be run again at any time."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            passwords = set_up(lambda line: self.stdout.write(f"  {line}"))
        except Rejected as refusal:
            raise CommandError(str(refusal)) from refusal
        if passwords:
            self.stdout.write(f"\n  People who can sign in (kept in {credentials_path()}, readable by you alone):")
            for name, password in passwords.items():
                self.stdout.write(f"    {name:<8}{password}")
