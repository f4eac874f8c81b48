"""A folder of weights as one commit on the Hub, by the Hub's own client."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.jobspec import PushJob

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105
CARD = "README.md"
QUOTED = 300  # characters of the Hub's own words that an error repeats
WRITE_HINT = (
    "Give the worker of exports a token with write access to this repository in HF_TOKEN, start it again, and push "
    "again."
)
LATER_HINT = "Nothing was published unless the Hub shows it. Push again later; what is there already is not sent twice."


def push(run_dir: Path, job: PushJob) -> dict[str, Any]:
    """Do ``job``. Returns the details of the result, ``commit_url`` among them. Raises ``EngineError``."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise EngineError("no_token", "The worker has no token for the Hugging Face Hub.", WRITE_HINT)
    metrics, started = MetricsJournal(run_dir), time.monotonic()
    folder = Path(job.folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        raise EngineError("bad_job", f"There is no file in {folder}.", "Prepare the weights again.")
    try:
        commit = _commit(HfApi(token=token), job, files, metrics)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx2.HTTPError, ValueError) as error:
        raise explain(error, job.repo_id, token) from None
    finally:
        if folder.is_relative_to(run_dir):  # unpacked for this push alone
            shutil.rmtree(folder, ignore_errors=True)
    return {
        "commit_url": commit.commit_url,
        "files": len(files),
        "seconds": round(time.monotonic() - started, 3),
    }


def _commit(api: HfApi, job: PushJob, files: list[Path], metrics: MetricsJournal) -> Any:
    """One commit, so that nobody loads a repository in which half of the files are those of before."""
    metrics.phase("opening the repository")
    api.create_repo(job.repo_id, repo_type="model", private=job.is_private, exist_ok=True)
    if job.is_private and not api.repo_info(job.repo_id, repo_type="model").private:
        raise EngineError(
            "repo_is_public",
            f"{job.repo_id} is there already and everybody can see it, but a private copy was asked for.",
            "Choose another name, make it private on the Hub, or say that it may be public.",
        )
    metrics.phase("uploading")
    contents = {path.name: path for path in files} | ({CARD: job.card.encode()} if job.card else {})
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()]
    return api.create_commit(job.repo_id, operations, commit_message=job.message, repo_type="model")


def explain(error: Exception, repo_id: str, token: str) -> EngineError:
    """The words for ``error``, without the token wherever a server may have repeated it."""
    words = " ".join(str(error).replace(token, "***").split())[:QUOTED]
    if isinstance(error, OfflineModeIsEnabled):
        return EngineError("hub_unreachable", "This worker is set to stay offline (HF_HUB_OFFLINE).", WRITE_HINT)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            message = f"The Hugging Face Hub refuses the worker's token for {repo_id} ({status})."
            return EngineError("hub_refused", message, WRITE_HINT)
        if status == 404:
            message = f"The Hugging Face Hub knows no {repo_id}, or the token may not see it."
            return EngineError("hub_refused", message, WRITE_HINT)
        return EngineError("hub_failed", f"The Hugging Face Hub answered {status}: {words}", LATER_HINT)
    if isinstance(error, httpx2.HTTPError):
        message = f"The Hugging Face Hub cannot be reached from this worker: {words}"
        return EngineError("hub_unreachable", message, LATER_HINT)
    return EngineError("hub_refused", f"The Hugging Face Hub does not take this: {words}", "See the log of the worker.")
