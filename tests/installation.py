"""A whole installation of its own: data directory, model, web, workers and scheduler, on a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

ROOT = Path(settings.BASE_DIR)
# As a shell script starts what runs in its background; SIGINT must end the server all the same.
DEAF_TO_CTRL_C = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]


@dataclass
class Installation:
    """A running Tiebreak on a free port of this machine."""

    url: str
    environment: dict[str, str]
    passwords: dict[str, str]
    data_dir: Path
    server: subprocess.Popen[bytes]

    def manage(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def query(self, sql: str, *values: object) -> Any:
        """The first column of the first row; ``None`` if there is none. Reads only, and costs no process."""
        with contextlib.closing(
            sqlite3.connect(f"{(self.data_dir / 'tiebreak.sqlite3').as_uri()}?mode=ro", uri=True)
        ) as connection:
            row = connection.execute(sql, values).fetchone()
        return row[0] if row else None

    def processes(self) -> list[int]:
        """Every living process that carries this installation's data directory in its environment."""
        mark = f"TIEBREAK_DATA_DIR={self.data_dir}".encode()
        return [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mark in _read(f"/proc/{pid}/environ")
        ]

    def engines(self) -> list[int]:
        """Living engine processes of this installation: they know their run directory and no setting."""
        mark = str(self.data_dir / "jobs").encode()
        lines = {pid: _read(f"/proc/{pid}/cmdline") for pid in _pids()}
        return [pid for pid, line in lines.items() if mark in line and b"training.engine" in line]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare_environment(data_dir: Path) -> dict[str, str]:
    """The environment of a process of its own: nothing that is set on this machine, and no ``.env``, reaches it."""
    settings_of_this_machine = ("TIEBREAK_", "DJANGO_", "DATABASE", "CELERY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings_of_this_machine)}
    own = {"TIEBREAK_DATA_DIR": str(data_dir), "TIEBREAK_ENV_FILE": "", "DJANGO_SETTINGS_MODULE": "config.settings"}
    return kept | own


@contextlib.contextmanager
def installed(data_dir: Path, **environment: str) -> Iterator[Installation]:
    env = bare_environment(data_dir) | environment
    for command in (["migrate", "-v0"], ["collectstatic", "--noinput", "-v0"], ["quickstart"]):
        subprocess.run([sys.executable, "manage.py", *command], cwd=ROOT, env=env, check=True)
    with serving(data_dir, env) as installation:
        lines = (data_dir / "credentials.txt").read_text().splitlines()
        installation.passwords.update(line.split("\t") for line in lines)
        yield installation


@contextlib.contextmanager
def serving(data_dir: Path, environment: dict[str, str]) -> Iterator[Installation]:
    """``serve`` with a database that is there; ended by Ctrl-C, unless it has ended by then."""
    port = free_port()  # as late as can be: until it is bound, any outgoing connection may take it
    with (data_dir / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*DEAF_TO_CTRL_C, sys.executable, "manage.py", "serve", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    installation = Installation(f"http://127.0.0.1:{port}", environment, {}, data_dir, server)
    try:
        wait_until(lambda: b"Ready: " in _read(str(data_dir / "serve.log")), 60, "the ready line")
        yield installation
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
        server.wait(90)
    assert installation.processes() == [], "it ends everything"
    assert installation.engines() == []
