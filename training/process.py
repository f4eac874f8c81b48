"""An engine process under supervision: a death pipe, a bare environment, output within bounds."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from django.conf import settings

from training.jobspec import PARENT_FD_VARIABLE
from training.rundir import RunDir

# What an engine may know of its surroundings. No secret, no database, no broker is among it.
ALLOWED_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HOME", "SSL_CERT_FILE"),
)
# The Hub needs a way out and a token, to load some models and to push any. No other engine gets them.
ONLINE_VARIABLES = (
    *("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_DISABLE_XET", "REQUESTS_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
)
# An inference server that writes pairs may want a key. Only the engine that asks gets that, and no proxy: it is near.
SERVER_VARIABLES = ("TIEBREAK_SAMPLING_SERVER_KEY",)
SERVER_MODULE = "sample"
HUB_MODULE = "push_to_hub"  # always online; an import is only if the model is on the Hub
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
MAX_LOG_BYTES = 4 * 2**20
CHUNK_BYTES = 2**16
GRACE_SECONDS = 45.0
OOM_SECONDS = 60.0  # gigabytes take a while to be torn down between the kernel's decision and the end of a process

_live: set[EngineProcess] = set()
_lock = threading.Lock()
_stopping = threading.Event()


def oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has ended since it started because memory ran out; 0 where it does not say."""
    try:
        counters = dict(line.split() for line in vmstat.read_text(encoding="ascii").splitlines())
        return int(counters["oom_kill"])
    except (OSError, ValueError, KeyError):
        return 0


def stop_all() -> None:
    """Tell every engine of this worker to save and end, and remember that the worker is on its way out."""
    _stopping.set()
    with _lock:
        processes = list(_live)
    for process in processes:
        process.ask_to_stop()


def is_stopping() -> bool:
    return _stopping.is_set()


class EngineProcess:
    """A running ``python -m training.engine.NAME RUN_DIR``.

    The engine reads a pipe of which only this process holds the other end. When this process dies, however it dies, the
    engine sees end of file and exits, so no training goes on without a supervisor.
    """

    def __init__(self, module: str, run_dir: RunDir, *, online: bool = False) -> None:
        self._oom_kills = oom_kills()
        self._last_oom_kill = -math.inf
        self._killed_here = False
        read_end, self._write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"training.engine.{module}", str(run_dir.path)],
                cwd=settings.BASE_DIR,
                env=_environment(read_end, module, online=online or module == HUB_MODULE),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[read_end],
                start_new_session=True,
            )
        finally:
            os.close(read_end)
        self._asked_to_stop = False
        self._reader = threading.Thread(target=_keep_log, args=(self._process.stdout, run_dir.log), daemon=True)
        self._reader.start()
        with _lock:
            _live.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout: float) -> int | None:
        """Wait up to ``timeout`` seconds; the exit status if the engine has ended (negative: the signal)."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if (kills := oom_kills()) > self._oom_kills:
                self._oom_kills, self._last_oom_kill = kills, time.monotonic()

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether it seems that the kernel has ended the engine for want of memory, which on a CPU is how that ends.

        It does not tell whom it has ended, so a SIGKILL from somebody else within a minute of another process's end is
        taken for one of its. To be asked after ``wait`` has returned a status.
        """
        by_somebody_else = self._process.returncode == -signal.SIGKILL and not self._killed_here
        return by_somebody_else and time.monotonic() - self._last_oom_kill < OOM_SECONDS

    def ask_to_stop(self) -> None:
        """SIGTERM, once: the engine saves its state and exits with ``EXIT_INTERRUPTED``.

        A stopping worker and its supervising thread may both ask; a second signal would hit the engine on its way out.
        """
        with _lock:
            asked, self._asked_to_stop = self._asked_to_stop, True
        if not asked:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._killed_here |= self._process.returncode is None
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """End the engine and whatever it started, and release the pipe."""
        self.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        os.close(self._write_end)
        with _lock:
            _live.discard(self)

    def _signal(self, number: signal.Signals) -> None:
        # The group is the engine's own session, so this reaches its children and nobody else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _environment(parent_fd: int, module: str, *, online: bool) -> dict[str, str]:
    allowed = ALLOWED_VARIABLES + (ONLINE_VARIABLES if online else ())
    allowed += SERVER_VARIABLES if module == SERVER_MODULE else ()
    kept = {name: os.environ[name] for name in allowed if name in os.environ}
    # The write end must not leak into the engine, or the pipe would never close; close_fds sees to that.
    own = {PARENT_FD_VARIABLE: str(parent_fd), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    return kept | own | ({"HF_HUB_DISABLE_TELEMETRY": "1"} if online else OFFLINE)


def _keep_log(stream: IO[bytes], path: Path) -> None:
    """Copy output to the log until the engine ends.

    Where the log cannot be written, output is read and dropped: an engine whose pipe is full or closed would die before
    it could say that the disk is full.
    """
    with stream:
        while chunk := os.read(stream.fileno(), CHUNK_BYTES):
            with contextlib.suppress(OSError):
                _append(path, chunk)


def _append(path: Path, chunk: bytes) -> None:
    """Append to the log; when it has reached its bound, keep its second half and go on."""
    with path.open("ab") as log:
        if log.tell() + len(chunk) > MAX_LOG_BYTES:
            tail = path.read_bytes()[-MAX_LOG_BYTES // 2 :]
            log.truncate(0)
            log.write(b"[earlier output dropped]\n" + tail)
        log.write(chunk)
