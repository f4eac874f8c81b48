"""Mistakes of a deployment, found by ``manage.py check`` before a user finds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register


@register(Tags.files)
def check_data_directory(**kwargs: Any) -> list[CheckMessage]:
    path = Path(settings.DATA_DIR)
    if path.is_dir() and os.access(path, os.W_OK):
        return []
    return [
        Error(
            f"The data directory {path} cannot be written to.",
            hint="Set TIEBREAK_DATA_DIR to a directory that belongs to the user who runs Tiebreak.",
            id="training.E001",
        )
    ]


@register(Tags.files)
def check_model_directories(**kwargs: Any) -> list[CheckMessage]:
    return [
        checks.Warning(
            f"TIEBREAK_MODEL_DIRECTORIES names {path}, which is not a directory.",
            hint="Name directories under which models for manage.py add_model lie.",
            id="training.W002",
        )
        for path in settings.MODEL_DIRECTORIES
        if not path.is_dir()
    ]


@register(deploy=True)
def check_broker(**kwargs: Any) -> list[CheckMessage]:
    if not settings.CELERY_BROKER_URL.startswith("filesystem://"):
        return []
    if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3"):
        return []  # one machine by choice
    return [
        checks.Warning(
            "The queue is in the file system although the database is a server.",
            hint="Workers on other hosts cannot see it. Set CELERY_BROKER_URL to a Redis server.",
            id="training.W003",
        )
    ]
