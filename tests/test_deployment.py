"""Settings, keys and checks of an installation."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.management import CommandError
from django.urls import URLPattern, URLResolver, get_resolver

from config.management.commands import serve
from config.processes import commands, configuration_path, pid_path
from tests.installation import serving, wait_until
from tests.services import DATABASE_VARIABLE

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
    assert list(key.parent.glob(".secret_key*")) == []


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


def test_the_web_process_listens_on_loopback_unless_told_otherwise(environment):
    web = commands("127.0.0.1", 8000)["web"]
    assert web[web.index("--bind") + 1] == "127.0.0.1:8000"
    assert "default: this machine alone" in _manage(environment, "serve", "--help").stdout


def test_every_queue_has_a_worker_here_and_in_the_documentation():
    queues = {route["queue"] for route in settings.CELERY_TASK_ROUTES.values()} | {settings.CELERY_TASK_DEFAULT_QUEUE}
    workers = [line for line in commands("127.0.0.1", 8000).values() if "-Q" in line]
    assert Counter(line[line.index("-Q") + 1] for line in workers) == dict.fromkeys(queues, 1)
    documented = re.findall(r" -Q (\w+) ", (ROOT / "docs/deployment.md").read_text())
    assert set(documented) == queues


# What anybody may open without signing in, and send something to.
OPEN_TO_ALL = {
    "get": {"/livez", "/readyz", "/sign-in/", "/admin/login/"},
    "post": {"/sign-in/", "/admin/login/", "/language/"},
}


def _addresses(patterns: list[URLPattern | URLResolver], prefix: str = "/") -> Iterator[str]:
    """An address for every route, with something that fits in the place of each parameter."""
    for pattern in patterns:
        route = re.sub(r"<(slug|int|uuid|str|path):\w+>|<\w+>", _example, str(pattern.pattern))
        address = prefix + re.sub(r"\(\?P<\w+>([\w.]+)[^)]*\)", r"\1", route).strip("^$")
        if isinstance(pattern, URLResolver):
            yield from _addresses(pattern.url_patterns, address)
        else:
            yield address


def _example(parameter: re.Match[str]) -> str:
    return {"slug": "helpful", "int": "1", "uuid": str(uuid4())}.get(parameter[1], "1")


def _is_open(response: Any) -> bool:
    """Whether it did something other than send the visitor away, or to the place for signing in."""
    if response.status_code == 302:
        return not response["Location"].startswith(("/sign-in/", "/admin/"))
    return response.status_code not in (401, 403, 404, 405)


def test_signing_in_is_all_that_a_visitor_can_do(client, project):
    addresses = list(_addresses(get_resolver().url_patterns))
    assert {"/p/helpful/annotate/", "/admin/auth/user/add/", "/api/v1/projects/helpful/lease/"} <= set(addresses)
    for method, expected in OPEN_TO_ALL.items():
        assert {address for address in addresses if _is_open(getattr(client, method)(address))} == expected
    assert User.objects.count() == 0


def test_a_data_directory_made_by_others_still_gets_a_private_database(environment, tmp_path):
    (tmp_path / "var").mkdir(mode=0o755)
    assert _manage(environment, "migrate", "-v0").returncode == 0
    assert stat.S_IMODE((tmp_path / "var" / "tiebreak.sqlite3").stat().st_mode) == 0o600


def test_with_a_key_of_its_own_a_fresh_machine_still_migrates(environment):
    done = _manage(environment | {"TIEBREAK_SECRET_KEY": "x" * 60}, "migrate", "-v0")
    assert done.returncode == 0, done.stderr


def test_the_address_to_ask_is_one_that_can_be_reached():
    assert serve._address("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert serve._address("::", 80) == "http://[::1]:80"
    assert serve._address("127.0.0.1", 80) == "http://127.0.0.1:80"


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_is_told_to_any_name_and_over_plain_http(client, settings, db, path):
    settings.SECURE_SSL_REDIRECT = True
    answer = client.get(path, headers={"host": "10.0.0.7"})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert client.post(path).status_code == 405
    assert client.get("/sign-in/").status_code == 301
    settings.SECURE_SSL_REDIRECT = False
    assert client.get("/sign-in/", headers={"host": "10.0.0.7"}).status_code == 400


@pytest.mark.parametrize(
    ("host", "allowed", "advice"),
    [
        ("127.0.0.1", ["localhost", "127.0.0.1", "[::1]"], ""),
        ("::1", ["[::1]"], ""),
        ("10.0.0.7", ["*"], ""),
        ("10.0.0.7", ["tiebreak.example.org"], "Add 10.0.0.7"),
        ("0.0.0.0", ["tiebreak.example.org"], ""),
        ("0.0.0.0", ["localhost"], "Pages refuse other machines"),
    ],
)
def test_a_host_whose_pages_would_be_refused_is_said(settings, host, allowed, advice):
    settings.ALLOWED_HOSTS = allowed
    said = serve._advice_on_names(host)
    assert bool(said) == bool(advice)
    assert advice in said
    assert not said or "TIEBREAK_ALLOWED_HOSTS" in said


SHOW = (
    "import tests.settings as s; print(s.DATABASES['default']['NAME'], s.CELERY_BROKER_URL, [s.ENV_FILE], s.TIME_ZONE)"
)


def _settings_of_the_tests(environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", SHOW]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_nothing_that_is_set_on_this_machine_reaches_a_test(environment, tmp_path):
    (tmp_path / "env").write_text("TIEBREAK_TIME_ZONE=Europe/Zurich\n")
    real = {"DATABASE_URL": "postgresql://real.example/real", "CELERY_BROKER_URL": "redis://real.example"}
    here = environment | real | {"TIEBREAK_ENV_FILE": str(tmp_path / "env")}
    here.pop(DATABASE_VARIABLE, None)
    shown = _settings_of_the_tests(here)
    assert "tiebreak-test-" in shown
    assert shown.endswith("tiebreak.sqlite3 filesystem://localhost [''] UTC\n")
    assert _settings_of_the_tests(here | {DATABASE_VARIABLE: "postgresql://ours.example/ours"}).startswith("ours ")
    assert environment["TIEBREAK_ENV_FILE"] == ""
    assert not {"DATABASE_URL", "CELERY_BROKER_URL"} & set(environment)


def test_settings_are_read_from_the_file_that_is_named(environment, tmp_path):
    file = tmp_path / "env"
    here = environment | {"TIEBREAK_ENV_FILE": str(file)}
    show = ("shell", "--no-imports", "-c", "from django.conf import settings; print(settings.TIME_ZONE)")
    assert f"TIEBREAK_ENV_FILE names {file}, which does not exist" in _manage(here, *show).stderr
    file.write_text("TIEBREAK_TIME_ZONE=Europe/Zurich\n")
    assert _manage(here, *show).stdout == "Europe/Zurich\n"
    assert _manage(here | {"TIEBREAK_TIME_ZONE": "Asia/Tokyo"}, *show).stdout == "Asia/Tokyo\n"


@pytest.fixture
def terminal() -> Iterator[None]:
    """What is started hears SIGHUP, also where these tests run under nohup, which it would inherit."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
def test_closing_the_terminal_ends_every_process_wherever_the_data_lie(environment, tmp_path):
    data_dir = tmp_path / "a b #c?d%41;e"
    odd = {"TIEBREAK_DATA_DIR": str(data_dir), "TIEBREAK_ALLOWED_HOSTS": "tiebreak.example.org"}
    here = environment | odd | {"http_proxy": "http://127.0.0.1:1"}
    assert _manage(here, "migrate", "-v0").returncode == 0
    with serving(data_dir, here) as installation:
        assert "Pages refuse the name 127.0.0.1" in (data_dir / "serve.log").read_text()
        assert "is running already" in installation.manage("serve", "--port", "1", check=False)
        assert len(installation.processes()) > len(commands("", 0))
        os.killpg(installation.server.pid, signal.SIGHUP)
        assert installation.server.wait(60) == 0
        assert installation.processes() == []
    assert {path.name for path in tmp_path.iterdir()} == {"a b #c?d%41;e"}
    assert (data_dir / "tiebreak.sqlite3").exists()
    for name in commands("", 0):
        assert f"stopped: {name} " in (data_dir / "log/supervisord.log").read_text()


def test_processes_that_a_killed_server_left_behind_are_named(data_dir):
    serve._refuse_leftovers()
    stand_in = [sys.executable, "-c", "import time; time.sleep(60)", str(configuration_path())]
    left = subprocess.Popen(stand_in)
    try:
        pid_path().write_text(f"{left.pid}\n")
        wait_until(serve._living_supervisor, 10, "its command line")
        with pytest.raises(CommandError, match=f"kill {left.pid}"):
            serve._refuse_leftovers()
    finally:
        left.kill()
        left.wait()
    pid_path().write_text(f"{os.getpid()}\n")  # the number is another process's by now
    serve._refuse_leftovers()


PYTHON = """#!/bin/sh
# Stands in for a Python: `-m venv` makes an environment from a copy of itself, unless it is told to fail.
echo "$*" >> "$CALLS"
case "$*" in
  *"-m venv"*) [ -z "$FAIL" ] || exit 1; mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """What script/setup needs of a checkout, and a virtual environment without pip, as an interrupted one is."""
    shutil.copytree(ROOT / "script", tmp_path / "script")
    (tmp_path / "requirements.txt").touch()
    for path, text in ((".venv/bin/python", "#!/bin/sh\nexit 1\n"), ("python", PYTHON)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    return tmp_path


def _set_up(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHON": str(checkout / "python"), "CALLS": str(checkout / "calls"), "FAIL": ""} | environment
    command = ["bash", str(checkout / "script/setup")]
    return subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)


def test_a_half_made_virtual_environment_is_made_again(checkout):
    done = _set_up(checkout, FAIL="1")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert _set_up(checkout).returncode == 0
    calls = (checkout / "calls").read_text()
    assert calls.count("-m venv --clear .venv") == 2
    assert calls.count("-m pip install") == 1
    assert _set_up(checkout).stdout == "", "and then it is quick"
