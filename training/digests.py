"""The sha256 of a large file, computed once and kept beside it, so that no request reads gigabytes to name them.

``X.zip.sha256`` says size and time of the very file that was hashed. One that says something else is about a file that
was replaced since, and counts as missing: at worst a file is hashed once more, and never named by another's hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path
from typing import IO, Any


def of(path: Path, file: IO[bytes]) -> str:
    """The sha256 (hex) of ``file``, which was opened at ``path``; its position is where it was."""
    status = os.fstat(file.fileno())
    known = _read(path, status)
    if known is None:
        known = read(file)
        with contextlib.suppress(OSError):  # on a full disk it is computed again
            keep(path, known, status)
    return known


def read(file: Any) -> str:
    """The sha256 (hex) of an open binary file; its position is where it was."""
    position = file.tell()
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(position)
    return sha256


def kept(path: Path) -> str:
    """What is known of the file at ``path`` without reading it; empty if nothing is."""
    try:
        return _read(path, path.stat()) or ""
    except OSError:
        return ""


def keep(path: Path, sha256: str, status: os.stat_result) -> None:
    """Write down that the file with this ``status``, which is at ``path`` or about to be, has this hash."""
    target = beside(path)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        staging.write_text(f"{sha256} {_mark(status)}\n", encoding="ascii")
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _read(path: Path, status: os.stat_result) -> str | None:
    try:
        sha256, mark = beside(path).read_text(encoding="ascii").strip().split(" ", 1)
    except (OSError, ValueError):
        return None
    return sha256 if mark == _mark(status) and len(sha256) == 64 else None


def _mark(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"
