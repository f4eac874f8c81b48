"""The secret key of an installation that was given none: made once, kept in a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def read_or_create_secret_key(data_dir: Path) -> str:
    """Return the key in ``data_dir/secret_key``, making directory (0700) and file (0600) where they are missing.

    The file gets its name only when its content is complete, and only if there is none of that name, so of several
    processes that start at once, on one machine or many, all end up with the same key.
    """
    path = data_dir / "secret_key"
    if not path.exists():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create_exclusively(path, secrets.token_urlsafe(64))
    return path.read_text(encoding="ascii").strip()


def _create_exclusively(path: Path, content: str) -> None:
    # A random name: in two containers on one volume the process ids are often the same.
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(content)
    try:
        os.link(staging, path)
    except FileExistsError:
        pass  # another process was first; its key counts
    finally:
        staging.unlink()
