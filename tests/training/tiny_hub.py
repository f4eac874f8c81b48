"""As much of the Hugging Face Hub as its client needs to create a repository and commit files to it, on this machine.

Paths, fields and statuses are those that huggingface_hub speaks: repos/create, models/ID, validate-yaml, preupload, the
batch of Git LFS with its upload, and commit. ``faults`` makes a path answer otherwise, once each.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = tuple[int, Any]
COMMIT = "c" * 40
KINDS = ("create", "validate-yaml", "preupload", "batch", "commit")  # of what is posted, as their paths name it


class TinyHub:
    """Use it as a context manager; ``url`` is what HF_ENDPOINT is set to."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}  # of Git LFS, by sha256
        self.files: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.commits: list[dict[str, Any]] = []
        self.cards: list[str] = []
        self.faults: dict[str, deque[Answer]] = defaultdict(deque)

    def __enter__(self) -> Self:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        return self

    def __exit__(self, *args: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # What it does

    def create(self, body: dict[str, Any]) -> Answer:
        repo_id = f"{body['organization']}/{body['name']}"
        if repo_id in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo_id}"}
        self.repos[repo_id] = {"private": body.get("visibility") == "private" or body.get("private") is True}
        return 200, {"url": f"{self.url}/{repo_id}"}

    def preupload(self, body: dict[str, Any]) -> Answer:
        modes = {True: "lfs", False: "regular"}
        files = [
            {"path": file["path"], "uploadMode": modes[file["path"].endswith(".safetensors")], "shouldIgnore": False}
            for file in body["files"]
        ]
        return 200, {"files": files}

    def batch(self, body: dict[str, Any]) -> Answer:
        objects = [
            each | {"actions": {"upload": {"href": f"{self.url}/upload/{each['oid']}", "header": {}}}}
            for each in body["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, repo_id: str, lines: list[dict[str, Any]]) -> Answer:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value)
            elif line["key"] == "file":
                self.files[repo_id][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repo_id][value["path"]] = self.objects[value["oid"]]
        url = f"{self.url}/{repo_id}/commit/{COMMIT}"
        return 200, {"commitUrl": url, "commitOid": COMMIT, "success": True}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> TinyHub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def do_GET(self) -> None:
        repo_id = self.path.removeprefix("/api/models/").split("/revision/")[0]
        repo = self.hub.repos.get(repo_id)
        self._say(*((200, {"id": repo_id, "sha": COMMIT} | repo) if repo else (404, {"error": "Repository not found"})))

    def do_POST(self) -> None:
        length = self.headers["Content-Length"]
        self._say(*self._answer(self.rfile.read(int(length)) if length else self._chunks()))

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rsplit("/", 1)[1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._say(200, {})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes) -> Answer:
        kind = next(name for name in KINDS if name in self.path)
        if self.hub.faults[kind]:
            return self.hub.faults[kind].popleft()
        if kind == "validate-yaml":
            self.hub.cards.append(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return 401, {"error": "Invalid username or password."}
        if kind == "commit":
            repo_id = re.findall(r"/api/models/(.+)/commit/", self.path)[0]
            return self.hub.commit(repo_id, [json.loads(line) for line in body.splitlines()])
        answers = {"create": self.hub.create, "preupload": self.hub.preupload, "batch": self.hub.batch}
        return answers[kind](json.loads(body))

    def _say(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass
