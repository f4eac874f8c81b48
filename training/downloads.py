"""Files of a checkpoint to take away: whole, in ranges, and resumed where an earlier download broke off (RFC 9110).

The entity tag is the file's sha256, which is what the page shows to check a download by. It is a strong validator, so
that a client that resumes with ``If-Range`` gets the rest of the very file that it has begun with, or the whole of the
one that has taken its place.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path

from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header

from training import current_card, digests, exports, registry, store
from training.byte_ranges import Span, Unsatisfiable, single_range
from training.exceptions import CheckpointDamaged, Rejected
from training.models import Checkpoint

BLOCK = 2**18
ZIP, BINARY = "application/zip", "application/octet-stream"
TYPES = {
    "adapter.zip": ZIP,
    "merged.zip": ZIP,
    "model.gguf": BINARY,
    store.MANIFEST: "application/json",
    store.MODEL_CARD: "text/markdown; charset=utf-8",
}
ROUTES = {  # the names of their addresses, among the pages and in the API
    "adapter.zip": "download-adapter",
    "merged.zip": "download-merged",
    "model.gguf": "download-gguf",
    store.MANIFEST: "download-manifest",
    store.MODEL_CARD: "download-card",
}
Opened = FileIO | BytesIO
VARIANT_OF = {"adapter.zip": "adapter", "merged.zip": "merged", "model.gguf": "gguf"}


class NotThere(Rejected):
    """A file that has not been made yet."""


@dataclass(frozen=True)
class Offered:
    """A file that can be downloaded; ``sha256`` is empty where nobody has read the whole of it yet."""

    name: str
    filename: str
    path: Path
    size: int
    sha256: str

    def curl(self, url: str) -> str:
        """A command that downloads it, and that goes on where it broke off when it is run again.

        Without ``If-Range`` curl would append the end of another archive to the start of this one.
        """
        headers = ['-H "Authorization: Token $TIEBREAK_TOKEN"']
        if self.sha256:
            headers.append(f"-H 'If-Range: \"{self.sha256}\"'")
        return " \\\n  ".join([f"curl --fail -C - -o {shlex.quote(self.filename)}", *headers, shlex.quote(url)])

    @property
    def check(self) -> str:
        return f"echo {shlex.quote(f'{self.sha256}  {self.filename}')} | sha256sum -c" if self.sha256 else ""


def listing(checkpoint: Checkpoint) -> Iterator[Offered]:
    """What is there to be downloaded at this moment. Reads no weights."""
    for name in TYPES:
        path = _path(checkpoint, name)
        try:
            if name in VARIANT_OF:
                size, known = path.stat().st_size, digests.kept(path)
            else:
                content = _small(checkpoint, name)
                size, known = len(content), hashlib.sha256(content).hexdigest()
        except (OSError, CheckpointDamaged):
            continue
        yield Offered(name, _filename(checkpoint, name), path, size, known)


def serve(request: HttpRequest, checkpoint: Checkpoint, name: str) -> HttpResponseBase:
    """Answer a GET or HEAD for one of ``TYPES``. Raises ``Rejected`` if there is none or it can't be made again."""
    if name == "adapter.zip" and checkpoint.is_adapter:
        path = exports.adapter_archive(checkpoint)
    else:
        path = _path(checkpoint, name)
    try:
        # Nothing may lie beside manifest and card, so their hash is not kept; they are small.
        file: Opened = FileIO(path) if name in VARIANT_OF else BytesIO(_small(checkpoint, name))
    except FileNotFoundError:
        raise NotThere(f"There is no {name} of {checkpoint} yet. Prepare it on the checkpoint's page.") from None
    try:
        sha256 = digests.of(path, file) if isinstance(file, FileIO) else digests.read(file)
        response = _answer(request, file, f'"{sha256}"')
    except BaseException:
        file.close()
        raise
    if not isinstance(response, FileResponse):
        file.close()
    if response.status_code in (200, 206):
        response.headers["Content-Type"] = TYPES[name]
        response.headers["Content-Disposition"] = content_disposition_header(True, _filename(checkpoint, name))
    return response


def _small(checkpoint: Checkpoint, name: str) -> bytes:
    """Manifest or card. Raises ``CheckpointDamaged`` for a manifest that is not the one that was published."""
    if name == store.MODEL_CARD:
        return current_card.card_of(checkpoint)
    content = _path(checkpoint, name).read_bytes()
    registry.manifest_of(checkpoint)
    return content


def _answer(request: HttpRequest, file: Opened, etag: str) -> HttpResponseBase:
    """Conditions come before ranges, as section 13.2.2 has it; a range is part of a GET alone (14.2)."""
    size = file.seek(0, os.SEEK_END)
    if (refusal := get_conditional_response(request, etag=etag)) is not None:
        refusal.headers["ETag"] = etag
        return refusal
    whole = Span(0, size, size)
    try:
        span = (single_range(request.headers.get("Range", ""), size) if _may_be_part(request, etag) else None) or whole
    except Unsatisfiable:
        headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes", "ETag": etag}
        return HttpResponse(status=416, headers=headers)
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(span.length)}
    if span is not whole:
        headers["Content-Range"] = span.content_range
    if request.method == "HEAD":
        return HttpResponse(headers=headers)
    return _stream(file, span, 200 if span is whole else 206, headers)


def _stream(file: Opened, span: Span, status: int, headers: dict[str, str]) -> HttpResponseBase:
    file.seek(span.start)
    response = FileResponse(_Part(file, span.length), status=status, headers=headers)
    response.block_size = BLOCK  # where no server takes the descriptor
    return response


def _may_be_part(request: HttpRequest, etag: str) -> bool:
    """Whether the client still has the start of this very file. Dates never say so, for none is ever sent."""
    condition = request.headers.get("If-Range")
    return request.method == "GET" and (condition is None or condition.strip() == etag)


class _Part:
    """An open file that ends after ``length`` bytes.

    It has a descriptor, so that gunicorn has the kernel send the bytes: from where the file stands, and as many as
    Content-Length says.
    """

    def __init__(self, file: Opened, length: int) -> None:
        self._file = file
        self._left = length

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted) if wanted else b""
        self._left -= len(data)
        return data

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


def _path(checkpoint: Checkpoint, name: str) -> Path:
    if variant := VARIANT_OF.get(name):
        return store.archive_path(checkpoint.uuid, variant)
    return store.checkpoint_dir(checkpoint.uuid) / name


def _filename(checkpoint: Checkpoint, name: str) -> str:
    """Manifest and card keep the names that they have in the archives."""
    title = checkpoint.name.replace("/", "_")
    if name == "model.gguf":
        return f"{title}.gguf"
    return f"{title}-{name}" if name in VARIANT_OF else name
