"""A database of a benchmark's own, under the product's settings: nothing of this machine's own reaches it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.services import POSTGRES, private_postgres

KINDS = ("sqlite", "postgres")
FOREIGN = ("TIEBREAK_", "DJANGO_", "DATABASE", "CELERY_")


def server_settings(connections: int, *, fsync: str, shared_buffers: str) -> list[str]:
    """Settings of a PostgreSQL server as a small installation would have it; the rest are PostgreSQL's defaults."""
    return [
        f"max_connections={connections + 20}",
        f"fsync={fsync}",
        f"shared_buffers={shared_buffers}",
        "max_wal_size=4GB",  # or the checkpoints that the seeding causes fall into the measurement
    ]


@contextlib.contextmanager
def private_database(kind: str, postgres: Sequence[str] = ()) -> Iterator[Path]:
    """Set Django up on an empty, migrated database in a fresh data directory, and yield that directory.

    Once in a process: Django reads its settings once. Processes started meanwhile inherit the environment.
    """
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tiebreak-benchmark-"))
        os.environ |= {"TIEBREAK_DATA_DIR": folder, "TIEBREAK_ENV_FILE": "", "TIEBREAK_LOG_LEVEL": "WARNING"}
        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        if kind == "postgres":
            if POSTGRES is None:
                raise SystemExit("PostgreSQL is not installed: apt-get install postgresql, or --database sqlite.")
            os.environ["DATABASE_URL"] = stack.enter_context(private_postgres(*postgres))
        import django
        from django.core.management import call_command
        from django.db import connections

        django.setup()
        call_command("migrate", verbosity=0)
        try:
            yield Path(folder)
        finally:
            connections.close_all()
