"""``manage.py quickstart``"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config.quickstart import choose_first_policy, credentials_path, make_project
from training.exceptions import Rejected


class Command(BaseCommand):
    help = (
        "Make the demo project “Helpful answers” with starter prompts, one admin, two annotators and the default "
        "model. It does so once: run again, it brings nothing back that was removed since."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        passwords = make_project(self._say)
        try:
            choose_first_policy(self._say)
        except Rejected as refusal:
            raise CommandError(str(refusal)) from refusal
        finally:  # whatever becomes of the model, they are said this once
            self._show(passwords)

    def _say(self, line: str) -> None:
        self.stdout.write(f"  {line}")

    def _show(self, passwords: dict[str, str]) -> None:
        if passwords:
            self.stdout.write(f"\n  People who can sign in (kept in {credentials_path()}, readable by you alone):")
            for name, password in passwords.items():
                self.stdout.write(f"    {name:<8}{password}")
