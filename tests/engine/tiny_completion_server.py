"""A completion server that works: the tiny model behind the routes of vLLM, on a free port of this machine.

It speaks vLLM's dialect (field names, error bodies, statuses), samples with transformers' ``generate`` and loads LoRA
adapters with PEFT. ``faults`` makes it fail in the ways that servers fail.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

import torch
from peft import PeftModel
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from training.engine import loading

Answer = tuple[int, Any]
Fault = Callable[["Handler", dict[str, Any]], Answer | None]


class TinyCompletionServer:
    """Serves the weights of ``model_dir`` as ``tiny``. Use it as a context manager; ``url`` is what a job is given.

    ``ids`` is how sampled ids are told: as today's vLLM does, as vLLM did before 0.10.2, or not at all. ``faults`` are
    taken one a request to ``/completions``, from the left; a fault that returns None lets the request through.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        key: str = "",
        ids: Literal["token_ids", "token_strings", "none"] = "token_ids",
        max_model_len: int = 512,
        tells_length: bool = True,
        loads_adapters: bool = True,
        hides_adapters: bool = False,
    ) -> None:
        self.key = key
        self.ids = ids
        self.max_model_len = max_model_len
        self.tells_length = tells_length
        self.loads_adapters = loads_adapters
        self.hides_adapters = hides_adapters
        self.faults: deque[Fault] = deque()
        self.bodies: list[dict[str, Any]] = []  # of requests for completions, also of those that failed
        self.paths: list[str] = []
        self.most_at_once = 0
        self.tokenizer = loading.load_tokenizer(model_dir)
        self.model: Any = loading.load_weights(model_dir, torch.float32).eval()
        self.adapters: dict[str, str] = {}
        self._at_once = 0
        self._counting = threading.Lock()
        self._generating = threading.Lock()

    def __enter__(self) -> Self:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._http.tiny = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def models(self) -> Answer:
        length = {"max_model_len": self.max_model_len} if self.tells_length else {}
        cards = [{"id": "tiny", "object": "model", "parent": None} | length]
        names = [] if self.hides_adapters else self.adapters
        cards += [{"id": name, "object": "model", "parent": "tiny"} for name in names]
        return 200, {"object": "list", "data": cards}

    def load_adapter(self, body: dict[str, Any]) -> Answer:
        name, path = body["lora_name"], body["lora_path"]
        if not self.loads_adapters:
            return 404, {"detail": "Not Found"}
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded. ", "InvalidUserInput")
        if not (Path(path) / "adapter_model.safetensors").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        with self._generating:
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(path, adapter_name=name)
            else:
                self.model = PeftModel.from_pretrained(self.model, path, adapter_name=name)
            self.model.eval()
        self.adapters[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def complete(self, handler: Handler, body: dict[str, Any]) -> Answer:
        self.bodies.append(body)
        fault = self.faults.popleft() if self.faults else None
        if fault and (answer := fault(handler, body)):
            return answer
        with self._counting:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.answer(body)
        finally:
            with self._counting:
                self._at_once -= 1

    def answer(self, body: dict[str, Any]) -> Answer:
        if body["model"] not in {"tiny", *self.adapters}:
            return error(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        prompt, wanted = body["prompt"], body["max_tokens"]
        if len(prompt) + wanted > self.max_model_len:
            words = f"This model's maximum context length is {self.max_model_len} tokens. However, you requested more."
            return error(400, words, "BadRequestError")
        token_ids = self.generate(body)
        stopped = token_ids[-1] in body["stop_token_ids"]
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(token_ids, skip_special_tokens=True),
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": token_ids[-1] if stopped else None,
            **self.told_ids(token_ids),
        }
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(token_ids)}
        return 200, {"object": "text_completion", "model": body["model"], "choices": [choice], "usage": usage}

    def told_ids(self, token_ids: list[int]) -> dict[str, Any]:
        if self.ids == "token_ids":
            return {"token_ids": token_ids}
        if self.ids == "token_strings":
            return {"logprobs": {"tokens": [f"token_id:{token}" for token in token_ids]}}
        return {"logprobs": {"tokens": self.tokenizer.convert_ids_to_tokens(token_ids)}}

    @torch.inference_mode()
    def generate(self, body: dict[str, Any]) -> list[int]:
        ids = torch.tensor([body["prompt"]])
        drawn = LogitsProcessorList(
            [TemperatureLogitsWarper(body["temperature"]), TopPLogitsWarper(body["top_p"]), Draw(body["seed"])]
        )
        with self._generating, self.policy(body["model"]):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                logits_processor=drawn,
                max_new_tokens=body["max_tokens"],
                eos_token_id=body["stop_token_ids"],
            )
        tokens: list[int] = output[0, ids.shape[1] :].tolist()
        return tokens

    def policy(self, name: str) -> AbstractContextManager[None]:
        """The model writes as ``name`` in this context."""
        if name in self.adapters:
            self.model.set_adapter(name)
            return contextlib.nullcontext()
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else contextlib.nullcontext()


class Draw(LogitsProcessor):
    """Makes the greatest score a sample (the Gumbel-max trick), from a generator that no other thread draws from."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores - torch.empty_like(scores).exponential_(generator=self.generator).log()


class Handler(BaseHTTPRequestHandler):
    """One connection. The routes and what they answer are the server's."""

    protocol_version = "HTTP/1.1"

    @property
    def tiny(self) -> TinyCompletionServer:
        return self.server.tiny  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        self.reply(self.tiny.models if self.path == "/v1/models" else lambda: (404, {"detail": "Not Found"}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        routes: dict[str, Callable[[], Answer]] = {
            "/v1/completions": lambda: self.tiny.complete(self, body),
            "/v1/load_lora_adapter": lambda: self.tiny.load_adapter(body),
        }
        self.reply(routes.get(self.path, lambda: (404, {"detail": "Not Found"})))

    def reply(self, route: Callable[[], Answer]) -> None:
        self.tiny.paths.append(self.path)
        if self.tiny.key and self.headers.get("Authorization") != f"Bearer {self.tiny.key}":
            sent = self.headers.get("Authorization", "nothing")
            return self.send(401, {"error": f"Unauthorized: {sent}"})
        status, content = route()
        if status:
            self.send(status, content)
        return None

    def send(self, status: int, content: Any, **headers: str) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the client has stopped waiting

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Tests read ``paths`` and ``bodies`` instead."""


def error(status: int, message: str, kind: str) -> Answer:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


def answers(status: int, content: Any) -> Fault:
    """The next request is answered with this."""
    return lambda handler, body: (status, content)


def busy(handler: Handler, body: dict[str, Any]) -> Answer:
    handler.send(429, {"error": {"message": "Too many requests"}}, Retry_After="0")
    return 0, None


def breaks_off(handler: Handler, body: dict[str, Any]) -> Answer:
    """The connection ends without an answer."""
    handler.close_connection = True
    return 0, None


def slow(seconds: float) -> Fault:
    def wait(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)

    return wait
