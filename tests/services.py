"""Optional services for tests: what is installed, and private servers on a free socket that end with their test.

``python -m tests.services`` says what is there. ``python -m tests.services postgres COMMAND …`` runs a command whose
tests use a private PostgreSQL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REDIS = shutil.which("redis-server")
# The only way to give tests a database: what DATABASE_URL names may be a real one.
DATABASE_VARIABLE = "TESTS_DATABASE_URL"
REQUIRED = os.environ.get("REQUIRE_SERVICES") == "1"


def _find_postgres() -> Path | None:
    candidates = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/opt/homebrew/opt").glob("postgresql*/bin")]
    if found := shutil.which("initdb"):
        candidates.append(Path(found).parent)
    return max((path for path in candidates if (path / "initdb").exists()), default=None)


POSTGRES = _find_postgres()
WHAT_FOR = {
    "chromium": (CHROMIUM, "the tests in a browser"),
    "postgresql": (POSTGRES, "the database tests on PostgreSQL"),
    "redis-server": (REDIS, "the broker test on Redis"),
}


def report() -> int:
    """Say what is there and what is skipped without it; with REQUIRE_SERVICES=1 anything missing is an error."""
    missing = [name for name, (found, _) in WHAT_FOR.items() if not found]
    for name, (found, use) in WHAT_FOR.items():
        print(f"  {name:<14}{found or f'not found: {use} are skipped'}")
    if missing and REQUIRED:
        print(f"REQUIRE_SERVICES=1, but these are missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def private_postgres(*server_settings: str) -> Iterator[str]:
    """A PostgreSQL of our own on a Unix socket; yields its URL.

    ``server_settings`` are like ``shared_buffers=1GB``; without any it is a quick one that a crash would damage.
    """
    assert POSTGRES is not None
    folder = Path(tempfile.mkdtemp(prefix="tiebreak-postgres-"))
    # PostgreSQL refuses to run as root, so root hands its folder to the account that Debian's package made.
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if prefix:
        shutil.chown(folder, "postgres")
    run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    chosen = server_settings or ("fsync=off", "full_page_writes=off")
    options = " -c ".join([f"-k {folder}", "listen_addresses=", *chosen])
    control = [*prefix, str(POSTGRES / "pg_ctl"), "-D", f"{folder}/data", "-w"]
    try:
        subprocess.run([*prefix, str(POSTGRES / "initdb"), "-A", "trust", "-U", "tiebreak", f"{folder}/data"], **run)
        subprocess.run([*control, "-o", options, "-l", f"{folder}/log", "start"], **run)
        try:
            yield f"postgresql://tiebreak@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def private_redis() -> Iterator[str]:
    """A Redis of our own on a Unix socket; yields its URL."""
    assert REDIS is not None
    with tempfile.TemporaryDirectory(prefix="tiebreak-redis-") as folder:
        socket = Path(folder) / "redis.sock"
        command = [REDIS, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{REDIS} did not come up (exit status {server.poll()})")
                time.sleep(0.05)
            yield f"redis+socket://{socket}"
        finally:
            server.terminate()
            server.wait()


def main(arguments: list[str]) -> int:
    if not arguments:
        return report()
    assert arguments[0] == "postgres"
    if POSTGRES is None:
        print("PostgreSQL is not installed; its tests are skipped.")
        return 1 if REQUIRED else 0
    with private_postgres() as url:
        return subprocess.run(arguments[1:], env=os.environ | {DATABASE_VARIABLE: url}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
