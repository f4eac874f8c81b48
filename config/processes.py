"""The processes of one machine under supervisord: web, three workers and the scheduler, restarted when one dies."""

from __future__ import annotations

import sys
from pathlib import Path

from django.conf import settings

STOP_SECONDS = 60  # a training engine saves its state first

PROGRAM = """
[program:{name}]
command={command}
directory={directory}
stdout_logfile={log}
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


def write_configuration(host: str, port: int) -> Path:
    """Write supervisord's configuration and return its path."""
    run, logs = _folder("run"), _folder("log")
    head = (
        f"[supervisord]\nnodaemon=true\nsilent=true\nlogfile={logs}/supervisord.log\nlogfile_maxbytes=1MB\n"
        f"pidfile={run}/supervisord.pid\nchildlogdir={logs}\n"
    )
    # supervisord stops group after group, and the members of one group at once.
    group = f"\n[group:tiebreak]\nprograms={','.join(commands(host, port))}\n"
    programs = [
        PROGRAM.format(
            name=name, command=command, directory=settings.BASE_DIR, log=logs / f"{name}.log", stop=STOP_SECONDS
        )
        for name, command in commands(host, port).items()
    ]
    path = run / "supervisord.conf"
    # supervisord expands %(…)s, so a percent sign of ours is doubled.
    path.write_text((head + group + "".join(programs)).replace("%", "%%"), encoding="utf-8")
    return path


def commands(host: str, port: int) -> dict[str, str]:
    """The command line of each process. Engines are supervised by threads, so a worker never forks with one running."""
    python, run = sys.executable, _folder("run")
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    celery = f"{python} -m celery -A config"
    worker = f"{celery} worker -P threads --without-gossip --without-mingle --loglevel INFO"
    return {
        "web": f"{python} -m gunicorn config.wsgi --bind {bind} --workers 1 --threads 8 --no-control-socket "
        "--access-logfile - --graceful-timeout 5",
        "worker": f"{worker} -Q default -c 2 -n worker@tiebreak",
        "sampler": f"{worker} -Q sampling -c 1 -n sampler@tiebreak",
        "trainer": f"{worker} -Q training -c 1 -n trainer@tiebreak",
        "scheduler": f"{celery} beat --schedule {run}/schedule --pidfile= --loglevel INFO",
    }


def _folder(name: str) -> Path:
    path = Path(settings.DATA_DIR) / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
