"""Full weights as GGUF, by a converter that belongs to whoever runs this machine.

How the tensors of each architecture are named and laid out in GGUF is llama.cpp's own knowledge. It is in
``convert_hf_to_gguf.py`` of its repository and in no package of its own, and a copy of it here would soon be wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from training.engine import process
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.jobspec import GgufJob, MergeJob

OUTPUT = "model.gguf"
PARTIAL = ".model.gguf.partial"
MAGIC = b"GGUF"
LAST_LINES = 12  # of the converter's own words, that an error repeats
LONGEST_LINE = 300
PR_SET_PDEATHSIG = 1


def convert(run_dir: Path, job: GgufJob) -> dict[str, Any]:
    """Do ``job``. Returns the details of the result. Raises ``EngineError``."""
    metrics, started = MetricsJournal(run_dir), time.monotonic()
    program = find_program(job.converter)
    model_dir = full_weights(run_dir, job)
    metrics.phase("converting to GGUF")
    output = run_dir / PARTIAL
    output.unlink(missing_ok=True)
    try:
        run_converter([program, *job.converter[1:], str(model_dir), "--outfile", str(output)], job.minutes * 60)
        facts = check(output)
        output.replace(run_dir / OUTPUT)
    finally:
        output.unlink(missing_ok=True)
        shutil.rmtree(run_dir / "checkpoint", ignore_errors=True)
    return facts | {"seconds": round(time.monotonic() - started, 3)}


def find_program(converter: list[str]) -> str:
    """The first word of the command, where it can be started. Told before an hour of merging."""
    hint = "Set TIEBREAK_GGUF_CONVERTER to llama.cpp's convert_hf_to_gguf.py, or to a command that takes its arguments."
    if not converter:
        raise EngineError("no_converter", "No GGUF converter is set up.", hint)
    found = shutil.which(converter[0])
    if found is None:
        raise EngineError("no_converter", f"The GGUF converter {converter[0]} cannot be started here.", hint)
    scripts = [word for word in converter[1:] if word.endswith(".py")][:1]
    if scripts and not Path(scripts[0]).is_file():
        raise EngineError("no_converter", f"The GGUF converter {scripts[0]} is not on this machine.", hint)
    return found


def full_weights(run_dir: Path, job: GgufJob) -> Path:
    """A directory of full weights: the base as it is, or the adapter folded into it, in ``checkpoint/``."""
    if job.model.adapter_dir is None:
        return Path(job.model.base_dir)
    from training.engine import merging  # and torch with it, which a conversion alone does without

    merging.merge(run_dir, MergeJob(model=job.model))
    process.give_back_freed_memory()  # the converter reads the same weights again
    return run_dir / "checkpoint"


def run_converter(command: list[str], seconds: float) -> None:
    """Run it to its end, its output in this process's own. Raises ``EngineError`` with its last words."""
    try:
        converter = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
    except OSError as error:
        raise EngineError("no_converter", f"The GGUF converter cannot be started: {error}") from error
    last: deque[str] = deque(maxlen=LAST_LINES)
    assert converter.stdout is not None
    reader = threading.Thread(target=pass_on, args=(converter.stdout, last), daemon=True)
    reader.start()
    with ended(converter):
        try:
            status = converter.wait(seconds)
        except subprocess.TimeoutExpired:
            hint = "Raise TIEBREAK_GGUF_CONVERTER_MINUTES if it was still at work; the log has what it said."
            message = f"The GGUF converter had not finished after {seconds / 60:g} minutes, so it was ended."
            raise EngineError("converter_timeout", message, hint) from None
    reader.join(timeout=5)
    if status != 0:
        said = " / ".join(last) or "it said nothing"
        raise EngineError(
            "converter_failed",
            f"The GGUF converter ended with exit status {status}: {said}",
            "It may not know this architecture, or need packages that are not installed. The log has all it said.",
        )


def die_with_parent() -> None:
    """Between fork and exec: a converter does not outlive an engine whose supervisor has died."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def ended(converter: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever happens in the body, also when somebody asks this process to stop, the converter is gone after it."""
    try:
        yield
    finally:
        if converter.poll() is None:
            converter.kill()
            converter.wait()


def pass_on(stream: IO[str], last: deque[str]) -> None:
    with stream:
        for line in stream:
            sys.stdout.write(line)
            sys.stdout.flush()
            if words := line.strip():
                last.append(words[:LONGEST_LINE])


def check(path: Path) -> dict[str, Any]:
    """What the file says about itself, if it is GGUF with tensors in it. Raises ``EngineError``."""
    from gguf import GGUFReader

    hint = "Run the converter by hand on the merged weights, and look at what it says."
    if not path.is_file() or path.stat().st_size == 0:
        raise EngineError("converter_failed", "The GGUF converter ended well, but it has written no file.", hint)
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise EngineError("converter_failed", "What the GGUF converter has written is not GGUF.", hint)
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise EngineError("converter_failed", f"What the converter has written cannot be read: {error}", hint) from None
    if not reader.tensors:
        raise EngineError("converter_failed", "The GGUF file that was written has no weights in it.", hint)
    return {"tensors": len(reader.tensors), "stored_types": sorted({each.tensor_type.name for each in reader.tensors})}
