"""The production broker: the same loop with Redis, and a Redis that goes away."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from tests.installation import installed, wait_until
from tests.services import REDIS, REQUIRED, private_redis


@pytest.mark.slow
def test_pairs_are_sampled_through_redis(tiny_model: Path, tmp_path: Path) -> None:
    if REDIS is None:
        assert not REQUIRED, "REQUIRE_SERVICES=1, but there is no redis-server"
        pytest.skip("redis-server is not installed")
    model = {"TIEBREAK_DEFAULT_MODEL": str(tiny_model), "TIEBREAK_MODEL_DIRECTORIES": str(tiny_model.parent)}
    with private_redis() as url, installed(tmp_path / "var", CELERY_BROKER_URL=url, **model) as installation:
        succeeded = "SELECT count(*) FROM training_samplebatch WHERE state = 'succeeded'"
        wait_until(lambda: installation.query(succeeded), 90, "pairs")
        assert not (tmp_path / "var" / "queue").exists(), "no silent fall-back to the file system"


def test_a_redis_that_is_not_there_is_an_error_that_people_see(environment: dict[str, str]) -> None:
    code = (
        "import django; django.setup()\n"
        "from config.celery import app\n"
        "app.connection_for_write().ensure_connection(max_retries=1, timeout=2)"
    )
    away = environment | {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=settings.BASE_DIR, env=away, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Connection refused" in done.stderr


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that answers nothing, like that of a host that is switched off: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_redis_that_does_not_answer_costs_two_seconds(environment: dict[str, str]) -> None:
    code = (
        "import django; django.setup()\n"
        "import time; from kombu.exceptions import OperationalError; from config.celery import app\n"
        "start = time.monotonic()\n"
        "try: app.send_task('training.tasks.reconcile')\n"
        "except OperationalError: print(time.monotonic() - start)"
    )
    with silent_port() as port:
        away = environment | {"CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=settings.BASE_DIR, env=away, capture_output=True, text=True, check=False)
    assert 1.5 < float(done.stdout) < 3.5, done.stderr
