"""``manage.py serve``"""

from __future__ import annotations

import contextlib
import fcntl
import os
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
from django.db import DatabaseError, connection
from django.http.request import validate_host

from config.processes import STOP_SECONDS, configuration_path, pid_path, start
from config.quickstart import credentials_path, people_with_passwords

READY_SECONDS = 60
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (a comparison)
# A proxy in the environment must not be asked for an address of this machine.
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Command(BaseCommand):
    help = "Run web, workers and scheduler on this machine until Ctrl-C. For many machines see docs/deployment.md."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: this machine alone).")
        parser.add_argument("--port", type=int, default=8000, help="Port to listen on (default: 8000).")

    def handle(self, *args: Any, host: str, port: int, **options: Any) -> None:
        with _only_one():
            _refuse_leftovers()
            _refuse_used_port(host, port)
            processes = _Processes(host, port)
            try:
                if self._wait_until_ready(_address(host, port), processes):
                    self._say_ready(host, port)
                status = processes.wait()
            finally:
                processes.end()
        with contextlib.suppress(OSError):  # the terminal may be closed
            self.stdout.write("Tiebreak has stopped; every process has ended.")
        sys.exit(status)

    def _wait_until_ready(self, address: str, processes: _Processes) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while processes.run():
            try:
                with NO_PROXY.open(f"{address}/readyz", timeout=2) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            if time.monotonic() > deadline:
                self.stderr.write(
                    f"The web process does not answer; see {settings.DATA_DIR}/log/web.log. Still trying."
                )
                deadline = float("inf")
        return False

    def _say_ready(self, host: str, port: int) -> None:
        self.stdout.write(
            self.style.SUCCESS(f"\nReady: {_address(host, port)}")
            + f"\n  {_who_signs_in()}"
            + f"\n  Logs: {settings.DATA_DIR}/log/"
            + f"\n  Stop: Ctrl-C (a training run saves its state first; up to {STOP_SECONDS} s)\n"
        )
        self.stdout.flush()
        connection.close()  # from here on this process only waits
        if advice := _advice_on_names(host):
            self.stderr.write(self.style.WARNING(advice))


class _Processes:
    """supervisord and what it runs. They end when this process is told to end, by whatever signal."""

    def __init__(self, host: str, port: int) -> None:
        self._asked_to_stop = False
        self._supervisor: subprocess.Popen[bytes] | None = None
        # A shell script starts what runs in its background deaf to SIGINT, and somebody who sends it still means it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
            signal.signal(signal.SIGHUP, self._on_signal)
        self._supervisor = start(host, port)
        if self._asked_to_stop:  # between the two
            self._supervisor.terminate()

    def _on_signal(self, *_: object) -> None:
        self._asked_to_stop = True
        if self._supervisor:
            self._supervisor.terminate()

    def run(self) -> bool:
        """Whether they run and are meant to."""
        assert self._supervisor
        return not self._asked_to_stop and self._supervisor.poll() is None

    def wait(self) -> int:
        assert self._supervisor
        status = self._supervisor.wait()
        return 0 if self._asked_to_stop else status

    def end(self) -> None:
        """Leave nothing behind, whatever went wrong here."""
        assert self._supervisor
        self._supervisor.terminate()
        self._supervisor.wait()


def _address(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on ``host``, which may stand for all addresses."""
    return f"http://{_bracketed(EVERY_ADDRESS.get(host, host))}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _who_signs_in() -> str:
    names: list[str] = []
    with contextlib.suppress(DatabaseError):  # nobody has migrated it yet
        names = people_with_passwords()
    if names:
        return f"Sign in as {', '.join(names)}; the passwords are in {credentials_path()}"
    return "Sign in with an account of yours; manage.py createsuperuser makes one"


def _advice_on_names(host: str) -> str:
    """What to set when pages would refuse the address that people open; empty when they would not."""
    allowed = settings.ALLOWED_HOSTS
    names = ", ".join(allowed)
    if host not in EVERY_ADDRESS:
        opened = _bracketed(host)
        if validate_host(opened, allowed):
            return ""
        return f"Pages refuse the name {opened}: TIEBREAK_ALLOWED_HOSTS allows only {names}. Add {opened} to it."
    if {"localhost", "127.0.0.1", "[::1]"}.issuperset(allowed):
        return f"Pages refuse other machines: TIEBREAK_ALLOWED_HOSTS allows only {names}. Add this machine's name."
    return ""


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


def _refuse_leftovers() -> None:
    """A ``serve`` that was killed could not stop its processes, and its lock went with it."""
    if pid := _living_supervisor():
        raise CommandError(
            f"Processes of an earlier start still work with the data in {settings.DATA_DIR}, under process {pid}.\n"
            f"Stop them with: kill {pid}\nThat takes up to {STOP_SECONDS} s; then start again."
        )


def _living_supervisor() -> int | None:
    """The supervisor that the pid file names, if that process lives and is one of this data directory."""
    try:
        pid = int(pid_path().read_text(encoding="ascii"))
        command = _command_line(pid)
    except (OSError, ValueError):
        return None
    # The number may have been given to another process since.
    return pid if os.fsencode(configuration_path()) in command else None


def _command_line(pid: int) -> bytes:
    if Path("/proc/self/cmdline").exists():
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)],  # noqa: S607  (macOS has it in its path)
        capture_output=True,
        check=False,
    ).stdout


def _refuse_used_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"Cannot listen on {host}:{port} ({error.strerror}). Choose another: script/server --port 8001"
            ) from None
