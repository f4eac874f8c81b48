"""``manage.py serve``"""

from __future__ import annotations

import fcntl
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from config.processes import STOP_SECONDS, write_configuration
from config.quickstart import PEOPLE, credentials_path

READY_SECONDS = 60


class Command(BaseCommand):
    help = "Run web, workers and scheduler on this machine until Ctrl-C. For many machines see docs/deployment.md."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: this machine alone).")
        parser.add_argument("--port", type=int, default=8000, help="Port to listen on (default: 8000).")

    def handle(self, *args: Any, host: str, port: int, **options: Any) -> None:
        with _only_one(), _refuse_used_port(host, port):
            pass
        lock = _only_one()
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(write_configuration(host, port))]
        supervisor = subprocess.Popen(command)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: supervisor.terminate())
        if self._wait_until_ready(_address(host, port), supervisor):
            self._say_ready(_address(host, port))
        status = supervisor.wait()
        lock.close()
        self.stdout.write("Tiebreak has stopped; every process has ended.")
        sys.exit(status)

    def _wait_until_ready(self, address: str, supervisor: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while supervisor.poll() is None:
            try:
                with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:  # noqa: S310
                    return bool(answer.status == 200)
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            if time.monotonic() > deadline:
                self.stderr.write(
                    f"The web process does not answer; see {settings.DATA_DIR}/log/web.log. Still trying."
                )
                deadline = float("inf")
        return False

    def _say_ready(self, address: str) -> None:
        names = ", ".join(PEOPLE)
        self.stdout.write(
            self.style.SUCCESS(f"\nReady: {address}")
            + f"\n  Sign in as {names}; the passwords are in {credentials_path()}"
            + f"\n  Logs: {settings.DATA_DIR}/log/"
            + f"\n  Stop: Ctrl-C (a training run saves its state first; up to {STOP_SECONDS} s)\n"
        )
        self.stdout.flush()


def _address(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on ``host``, which may stand for all addresses."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (a comparison)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def _only_one() -> IO[str]:
    """Hold the lock of this data directory; two sets of processes on one SQLite file and queue would be a mistake."""
    path = Path(settings.DATA_DIR) / "serve.lock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CommandError(f"Tiebreak is running already with the data in {settings.DATA_DIR}.") from None
    return lock


def _refuse_used_port(host: str, port: int) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError as error:
        probe.close()
        raise CommandError(
            f"Cannot listen on {host}:{port} ({error.strerror}). Choose another: script/server --port 8001"
        ) from None
    return probe
