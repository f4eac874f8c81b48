"""The processes of one machine under supervisord: web, four workers and the scheduler, restarted when one dies."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from django.conf import settings

STOP_SECONDS = 60  # a training engine saves its state first

PYTHON = [sys.executable, "-m"]
CELERY = [*PYTHON, "celery", "-A", "config"]

# Paths may hold what means something to supervisord (a percent sign, or `#` after a space) and cannot be quoted there.
# So the data directory is a variable, and the working directory is that of supervisord itself: see `start`. The name of
# a program's log is the one value that supervisord expands twice.
HEAD = """[supervisord]
nodaemon=true
silent=true
logfile=%(ENV_TIEBREAK_DATA_DIR)s/log/supervisord.log
logfile_maxbytes=1MB
pidfile=%(ENV_TIEBREAK_DATA_DIR)s/run/supervisord.pid
childlogdir=%(ENV_TIEBREAK_DATA_DIR)s/log
"""

PROGRAM = """
[program:{name}]
command={command}
stdout_logfile=%%(ENV_TIEBREAK_DATA_DIR)s/log/{name}.log
stdout_logfile_maxbytes=5MB
stdout_logfile_backups=2
redirect_stderr=true
autorestart=true
startretries=10
startsecs=2
stopsignal=TERM
stopwaitsecs={stop}
killasgroup=true
"""


def configuration_path() -> Path:
    return _folder("run") / "supervisord.conf"


def pid_path() -> Path:
    return _folder("run") / "supervisord.pid"


def start(host: str, port: int) -> subprocess.Popen[bytes]:
    """Start supervisord, and with it every process, in a session of its own.

    In the session of a terminal it would hear that too: Ctrl-C before it is listening, or SIGHUP when the terminal
    closes, which it takes for "start everything again".
    """
    return subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(write_configuration(host, port))],
        cwd=settings.BASE_DIR,
        env=os.environ | {"TIEBREAK_DATA_DIR": str(settings.DATA_DIR)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def write_configuration(host: str, port: int) -> Path:
    """Write supervisord's configuration and return its path."""
    _folder("log")
    every = commands(host, port)
    # supervisord stops group after group, and the members of one group at once.
    group = f"\n[group:tiebreak]\nprograms={','.join(every)}\n"
    programs = [
        PROGRAM.format(name=name, command=_escape(shlex.join(command)), stop=STOP_SECONDS)
        for name, command in every.items()
    ]
    path = configuration_path()
    path.write_text(HEAD + group + "".join(programs), encoding="utf-8")
    return path


def commands(host: str, port: int) -> dict[str, list[str]]:
    """The command line of each process. Engines are supervised by threads, so a worker never forks with one running."""
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    web = f"gunicorn config.wsgi --bind {bind} --workers 2 --threads 4 --no-control-socket --access-logfile -"
    schedule = ["--schedule", str(_folder("run") / "schedule"), "--pidfile=", "--loglevel", "INFO"]
    return {
        "web": [*PYTHON, *web.split(), "--graceful-timeout", "5"],
        "worker": _worker("worker", "default", threads=2),
        "sampler": _worker("sampler", "sampling"),
        "trainer": _worker("trainer", "training"),
        "exporter": _worker("exporter", "exports"),
        "scheduler": [*CELERY, "beat", *schedule],
    }


def _worker(name: str, queue: str, threads: int = 1) -> list[str]:
    options = f"-P threads -c {threads} -Q {queue} -n {name}@tiebreak --without-gossip --without-mingle --loglevel INFO"
    return [*CELERY, "worker", *options.split()]


def _escape(command: str) -> str:
    """Keep from supervisord's reader what it takes for the start of a comment or of a name to expand.

    The space before `#` or `;` stands between single quotes, as ``shlex`` has quoted it, so closing and opening them
    again there changes nothing for the command.
    """
    return re.sub(r"(\s)([#;])", r"\1''\2", command).replace("%", "%%")


def _folder(name: str) -> Path:
    path = Path(settings.DATA_DIR) / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
