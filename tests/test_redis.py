"""The production broker: the same loop with Redis, and a Redis that goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    import subprocess
    import sys

    from django.conf import settings

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
