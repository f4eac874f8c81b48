"""The secret key of an installation that was given none: made once, kept in a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def read_or_create_secret_key(data_dir: Path) -> str:
    """Return the key in ``data_dir/secret_key``, making directory (0700) and file (0600) where they are missing.

    The file is created with ``O_EXCL`` after its content is complete, so that of several processes that start at once
    all end up with the same key.
    """
    path = data_dir / "secret_key"
    if not path.exists():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create_exclusively(path, secrets.token_urlsafe(64))
    return path.read_text(encoding="ascii").strip()


def _create_exclusively(path: Path, content: str) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(content)
    try:
        os.link(staging, path)
    except FileExistsError:
        pass  # another process was first; its key counts
    finally:
        staging.unlink()
