"""``manage.py create_api_token``"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from knox.models import AuthToken


class Command(BaseCommand):
    help = "Make a token for the API and print it once; only its hash is kept. Revoke it in the Django admin."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")

    def handle(self, *args: Any, username: str, **options: Any) -> None:
        user = get_user_model().objects.filter(username=username).first()
        if user is None:
            raise CommandError(f"There is nobody called “{username}”.")
        _, token = AuthToken.objects.create(user)
        self.stdout.write(f"Authorization: Token {token}")
