"""What the next pair costs over HTTP: gunicorn as the product starts it, and many annotators at once.

Each annotator opens the annotate page once and then does what its script does, again and again, over a connection that
is kept open: send the form of the pair that was read, while the next one stands on the screen already, and take the one
after it. The time is that from the first byte sent to the last byte read of one answer, with that further pair on it.
The clients are one process of plain sockets; `client_cpu` says which share of a core it took. Without thought the
annotators are a closed loop, so the time is by Little's law mostly their queue before the cores: 50 of them wait 150 ms
each at 333 answers a second. So there is a second reading, `with_thought`, in which they think `--think-ms` before each
answer, in the mean and still faster than anybody reads; 0 leaves it out.

The exit status is 1 when an answer was no page with a next pair, or the database has not exactly the votes cast.

    python benchmarks/web.py --json
    python benchmarks/web.py --database postgres --annotators 50 --seconds 30
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # and not this folder, whose queue.py would hide Python's

import argparse  # noqa: E402
import asyncio  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
import urllib.request  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.database import KINDS, private_database, server_settings  # noqa: E402
from benchmarks.timing import percentiles, read_cores  # noqa: E402

READY_SECONDS = 60
SERVER_CONNECTIONS = 100


def main() -> int:
    options = parse()
    postgres = server_settings(SERVER_CONNECTIONS, fsync="on", shared_buffers="512MB")
    with private_database(options.database, postgres) as folder:
        report = measured(folder, options)
    print(table(report))
    for message in report["error_messages"]:
        print(message, file=sys.stderr)
    if options.json:
        print(json.dumps(report))
    return int(report["errors"] > 0 or report["lost_answers"] != 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=KINDS, default="sqlite", help="(default: %(default)s)")
    parser.add_argument("--annotators", type=int, default=50, help="people at once (default: %(default)s)")
    parser.add_argument("--open-pairs", type=int, default=50_000, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="of each reading (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=3, help="seconds before it (default: %(default)s)")
    parser.add_argument(
        "--think-ms", type=float, default=1000, help="mean thought of a second reading (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=0, help="gunicorn's workers (default: as the product has it)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.browsers import Sitting
    from benchmarks.seeding import Wanted, seed

    print(f"seeding {options.open_pairs:,} open pairs ...", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "manage.py", "collectstatic", "--noinput", "-v0"], cwd=ROOT, check=True)
    seeded = seed("web", Wanted(options.open_pairs, options.annotators))
    sessions = [session_of(annotator) for annotator in seeded.annotators]
    port = free_port()
    command = web_command(port, options.workers)
    thoughts = [0.0, options.think_ms / 1000] if options.think_ms else [0.0]
    with serving(command, port, folder / "web.log"):
        readings = [read(Sitting(port, "web", options.warm_up, options.seconds, each), sessions) for each in thoughts]
        memory_mb = web_process_mb(command)
    tallies = [tally for tally, _ in readings]
    errors = [error for tally in tallies for error in tally.errors]
    return {
        "database": options.database,
        "annotators": options.annotators,
        "workers": int(command[command.index("--workers") + 1]),
        "threads": int(command[command.index("--threads") + 1]),
        "open_pairs": options.open_pairs,
        "seconds": options.seconds,
        **readings[0][1],
        "with_thought": readings[-1][1] if options.think_ms else None,
        "page_bytes": tallies[0].page_bytes,
        "desk_bytes": tallies[0].desk_bytes,
        "web_mb": memory_mb,
        "reconnects": sum(tally.reconnects for tally in tallies),
        "errors": len(errors),
        "error_messages": sorted(set(errors))[:5],
        "lost_answers": lost_answers(
            seeded.project_id, sum(tally.answered for tally in tallies), sum(tally.unanswered for tally in tallies)
        ),
    }


def read(sitting: Any, sessions: list[str]) -> tuple[Any, dict[str, Any]]:
    """What the annotators of these sessions saw in one sitting, and its figures."""
    from benchmarks.browsers import sit

    print(f"measuring, thinking {sitting.think * 1000:g} ms ...", file=sys.stderr, flush=True)
    before, cpu = read_cores(), time.process_time()
    tally = asyncio.run(sit(sitting, sessions))
    cpu, busy = time.process_time() - cpu, read_cores().busy_since(before)
    return tally, {
        "think_ms": sitting.think * 1000,
        "requests_per_s": round(len(tally.ms) / sitting.seconds, 1),
        **{f"{name}_ms": value for name, value in percentiles(tally.ms).items()},
        "cpu_busy": busy,
        "client_cpu": round(cpu / (sitting.warm_up + sitting.seconds), 3),
    }


def session_of(user_id: int) -> str:
    """The key of a new session of this person, as signing in makes it; hashing the password is not measured here."""
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.db import SessionStore

    user = User.objects.get(pk=user_id)
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    assert session.session_key
    return session.session_key


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def web_command(port: int, workers: int) -> list[str]:
    """The product's own command line of the web process."""
    from config.processes import commands

    command = commands("127.0.0.1", port)["web"]
    if workers:
        command[command.index("--workers") + 1] = str(workers)
    return command


@contextlib.contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as opened, subprocess.Popen(command, cwd=ROOT, stdout=opened, stderr=opened) as server:
        try:
            wait_until_ready(port, server, log)
            yield
        finally:
            server.terminate()


def wait_until_ready(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        with contextlib.suppress(OSError), direct.open(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The web process did not come up:\n{log.read_text(encoding='utf-8')[-2000:]}")
        time.sleep(0.1)


def web_process_mb(command: list[str]) -> int | None:
    """The resident memory of the largest process with this command line; ``None`` where /proc does not say."""
    line = "\0".join(command).encode()
    sizes = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if line in (folder / "cmdline").read_bytes():
                status = (folder / "status").read_text(encoding="ascii", errors="replace")
                sizes += [int(row.split()[1]) for row in status.splitlines() if row.startswith("VmRSS:")]
    return max(sizes) // 1024 if sizes else None


def lost_answers(project_id: int, answered: int, unanswered: int) -> int:
    """Votes that a page confirmed and that are not there, or the other way about; a vote on its way may be either."""
    from labeling.models import Preference

    stored = Preference.objects.filter(pair__project=project_id).count()
    return max(answered - stored, stored - answered - unanswered, 0)


def table(report: dict[str, Any]) -> str:
    server = f"{report['workers']} × {report['threads']} threads on {report['database']}"
    lines = [
        f"{report['annotators']} annotators, {server}, {report['web_mb']} MB, {report['desk_bytes']} bytes an answer"
    ]
    for reading in filter(None, (report, report["with_thought"])):
        times = "  ".join(f"{name} {reading.get(f'{name}_ms', 0):.1f} ms" for name in ("p50", "p95", "p99"))
        lines.append(
            f"thinking {reading['think_ms']:>5g} ms: {reading['requests_per_s']:>6.1f} requests/s  {times}  "
            f"cores {reading['cpu_busy']}, client {reading['client_cpu']} of one"
        )
    return "\n".join([*lines, f"errors {report['errors']}, lost answers {report['lost_answers']}"])


if __name__ == "__main__":
    sys.exit(main())
