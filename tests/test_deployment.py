"""Settings, keys and checks of an installation."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

from django.conf import settings
from django.core.checks import run_checks
from django.urls import get_resolver

ROOT = Path(settings.BASE_DIR)


def _manage(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_production_settings_pass_the_deployment_checks(environment):
    production = environment | {"TIEBREAK_HTTPS": "1", "TIEBREAK_ALLOWED_HOSTS": "tiebreak.example.org"}
    done = _manage(production, "check", "--deploy", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stderr


def test_the_secret_key_is_made_once_for_its_owner_alone(environment, tmp_path):
    key = tmp_path / "var" / "secret_key"
    for _ in range(2):
        assert _manage(environment, "check").returncode == 0
        seen = key.read_text()
    assert len(seen) > 60
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert key.read_text() == seen


def test_a_data_directory_that_cannot_be_written_is_named(settings, tmp_path):
    settings.DATA_DIR = tmp_path / "nowhere"
    assert [message.id for message in run_checks(tags=["files"])] == ["training.E001"]


def test_every_setting_is_described_and_every_description_is_a_setting():
    source = (ROOT / "config/settings.py").read_text()
    read = set(re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', source))
    described = set(re.findall(r"^\| `([A-Z_]+)`", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
    assert read == described
    example = set(re.findall(r"^#? ?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert example <= read


def test_the_readme_shows_the_real_tree():
    tree = (ROOT / "README.md").read_text().split("```text")[1].split("```")[0]
    for name in re.findall(r"^(\S+)", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_web_process_listens_on_loopback_unless_told_otherwise():
    from config.processes import commands

    assert "--bind 127.0.0.1:8000 " in commands("127.0.0.1", 8000)["web"]
    help_text = _manage({"PATH": "/usr/bin", "TIEBREAK_DATA_DIR": str(settings.DATA_DIR)}, "serve", "--help").stdout
    assert "default: this machine alone" in help_text


def test_sign_up_is_closed():
    names = str(get_resolver().reverse_dict.keys()) + str(get_resolver().namespace_dict)
    assert "register" not in names
    assert "signup" not in names


def test_a_data_directory_made_by_others_still_gets_a_private_database(environment, tmp_path):
    (tmp_path / "var").mkdir(mode=0o755)
    assert _manage(environment, "migrate", "-v0").returncode == 0
    assert stat.S_IMODE((tmp_path / "var" / "tiebreak.sqlite3").stat().st_mode) == 0o600


def test_with_a_key_of_its_own_a_fresh_machine_still_migrates(environment):
    done = _manage(environment | {"TIEBREAK_SECRET_KEY": "x" * 60}, "migrate", "-v0")
    assert done.returncode == 0, done.stderr


def test_the_address_to_ask_is_one_that_can_be_reached():
    from config.management.commands.serve import _address

    assert _address("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert _address("::", 80) == "http://[::1]:80"
    assert _address("127.0.0.1", 80) == "http://127.0.0.1:80"


def test_readiness_is_told_over_plain_http_on_a_machine_that_serves_https(client, settings, db):
    settings.SECURE_SSL_REDIRECT = True
    assert client.get("/readyz").status_code == 200
    assert client.get("/sign-in/").status_code == 301
