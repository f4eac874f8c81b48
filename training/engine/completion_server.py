"""A server that holds the weights and completes prompts, such as vLLM: the client's side.

The routes are those of OpenAI (``/models``, ``/completions``) and vLLM's additions to them: prompts as token ids,
sampling parameters that OpenAI does not have, ``return_token_ids``, and ``/load_lora_adapter``. Source: the pages
"OpenAI-Compatible Server" and "LoRA Adapters" of https://docs.vllm.ai, and vllm/entrypoints/openai.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

from training.engine.errors import EngineError

KEY_VARIABLE = "TIEBREAK_SAMPLING_SERVER_KEY"

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0  # a request may wait on the server for others before it is begun
TRIES = 6
FIRST_PAUSE = 0.5  # seconds; doubled after each try
LONGEST_PAUSE = 30.0
BUSY = {429, 502, 503, 504}
QUOTED = 300  # characters of a server's own words that an error repeats

TOO_LONG = ("maximum context length", "context_length_exceeded", "longer than the maximum model length")
FINISHES: dict[str, Literal["stop", "length"]] = {"stop": "stop", "eos_token": "stop", "length": "length"}
ID_PREFIX = "token_id:"


class PromptTooLong(EngineError):
    """One prompt has no room on the server. The others may have."""

    def __init__(self, words: str) -> None:
        hint = "Start the server with a greater --max-model-len, or leave the prompt out."
        super().__init__("prompt_too_long", f"The sampling server says that the prompt is too long: {words}", hint)


class _Left(Exception):
    """Nobody wants an answer any more."""


@dataclass(frozen=True)
class Sampling:
    """How every response of a job is drawn."""

    temperature: float
    top_p: float
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Completed:
    """``token_ids`` as sampled, or None if the server does not tell them. ``stop_id`` is the token that it stopped at,
    if it says so.
    """

    text: str
    token_ids: list[int] | None
    finish_reason: Literal["stop", "length"]
    stop_id: int | None = None


class CompletionServer:
    """The server at ``url``, which ends in ``/v1`` as a rule. Threads may share one.

    Every method raises ``EngineError``: server_unreachable, server_timeout, server_refused (no or a wrong key),
    unknown_model, server_adapter, prompt_too_long (``PromptTooLong``), server_answer (it makes no sense) or
    server_failed. A busy server and a broken connection are tried again, with growing pauses and ``TRIES`` times in
    all; an answer that takes longer than ``answer_seconds`` is not, because the server may still work on it.
    """

    def __init__(self, url: str, *, connections: int, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        self._closed = threading.Event()
        self._users = 1  # whoever closes this, and the threads in a request; 0 for ever once it was 0
        self._counting = threading.Lock()
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(answer_seconds, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=ssl.create_default_context(),
            trust_env=False,  # no proxy: the server is near
        )
        self.name = shown(url)

    def close(self) -> None:
        """No further request is begun or tried again. Those under way are not waited for."""
        with self._counting:
            was_closed = self._closed.is_set()
            self._closed.set()
        if not was_closed:
            self._leave()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """Raises ``_Left`` where the server has been left meanwhile."""
        with self._counting:
            if self._closed.is_set():
                raise _Left
            self._users += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        """The last one out closes the connections: a pool that is closed loses one that is just being made."""
        with self._counting:
            self._users -= 1
            last = self._users == 0
        if last:
            self._http.close()

    def models(self) -> dict[str, int | None]:
        """The names that can be asked for, each with the tokens it reads at most, where the server says so."""
        data = self._json(self._send("GET", "/models"))
        try:
            return {str(card["id"]): card.get("max_model_len") for card in data["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise self._nonsense("its list of models") from error

    def context_of(self, model: str) -> int | None:
        """Tokens that ``model`` reads at most, if the server tells. Raises ``EngineError`` unknown_model."""
        models = self.models()
        if model not in models:
            raise unknown_model(self.name, model, list(models))
        context = models[model]
        return context if isinstance(context, int) else None

    def load_adapter(self, name: str, directory: str) -> None:
        """Have the LoRA adapter in ``directory`` served as ``name``. One that is there already is left as it is."""
        if name in self.models():
            return
        body = {"lora_name": name, "lora_path": directory}
        response = self._send("POST", "/load_lora_adapter", body)
        words = self._words(response)
        if response.is_success or "already been loaded" in words:
            return
        if response.status_code in {404, 405} and not self._is_own_error(response):
            hint = "Start vLLM with --enable-lora and with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment."
            raise EngineError("server_adapter", f"The sampling server {self.name} does not load LoRA adapters.", hint)
        self._raise_for_key(response)
        hint = (
            f"The server must read the directory {directory} under the same path, hold the base weights that the "
            "adapter was trained on, and allow its rank (--enable-lora, --max-lora-rank)."
        )
        raise EngineError("server_adapter", f"The sampling server could not load the LoRA adapter: {words}", hint)

    def complete(
        self, model: str, prompt_ids: list[int], *, seed: int, max_new_tokens: int, sampling: Sampling
    ) -> Completed:
        """One response of ``model`` to ``prompt_ids``."""
        body = {
            "model": model,
            "prompt": prompt_ids,
            "n": 1,
            "seed": seed,
            "max_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": list(sampling.stop_ids),
            # vLLM takes what is not given from the model's generation_config.json.
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # Since 0.10.2 vLLM tells the ids; before, it wrote them in place of the tokens' texts.
            "return_token_ids": True,
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
        }
        response = self._send("POST", "/completions", body)
        if not response.is_success:
            raise self._refusal(response, model)
        return self._completed(self._json(response))

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        problem = ""
        for pause in pauses():
            if self._closed.wait(pause):
                break
            try:
                with self._used():
                    response = self._http.request(method, path, json=body)
            except _Left:
                break
            except (httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout) as error:
                hint = "Look at the server's load, or let fewer responses be written at once."
                message = f"The sampling server {self.name} did not answer in time."
                raise EngineError("server_timeout", message, hint) from error
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                problem = str(error) or type(error).__name__
                continue
            if response.status_code not in BUSY:
                return response
            problem = f"{response.status_code} {self._words(response)}"
            if self._closed.wait(asked_pause(response)):
                break
        hint = "Check that the server runs, and that this machine reaches it under the URL in the settings."
        raise EngineError("server_unreachable", f"The sampling server {self.name} cannot be used: {problem}", hint)

    def _refusal(self, response: httpx2.Response, model: str) -> EngineError:
        words = self._words(response)
        self._raise_for_key(response)
        if response.status_code in {400, 413, 422} and any(mark in words for mark in TOO_LONG):
            return PromptTooLong(words)
        if response.status_code == 404 and self._is_own_error(response):
            return unknown_model(self.name, model, [])
        if response.status_code == 404:
            hint = "The URL of such a server ends in /v1 as a rule."
            return EngineError("server_failed", f"The sampling server {self.name} has no /completions.", hint)
        message = f"The sampling server did not do a request ({response.status_code}): {words}"
        return EngineError("server_failed", message, "Look into the server's log.")

    def _raise_for_key(self, response: httpx2.Response) -> None:
        if response.status_code not in {401, 403}:
            return
        state = "does not accept the key" if self._key else "wants a key"
        hint = f"Put the key of the server into {KEY_VARIABLE} in the environment of the worker that samples."
        raise EngineError("server_refused", f"The sampling server {self.name} {state} ({response.status_code}).", hint)

    def _json(self, response: httpx2.Response) -> Any:
        self._raise_for_key(response)
        if not response.is_success:
            words, hint = self._words(response), "The URL of such a server ends in /v1 as a rule."
            message = f"The sampling server {self.name} answered {response.status_code}: {words}"
            raise EngineError("server_failed", message, hint)
        try:
            return response.json()
        except ValueError as error:
            raise self._nonsense("something that is not JSON") from error

    def _completed(self, data: Any) -> Completed:
        try:
            choice = data["choices"][0]
            text, finish = choice["text"], choice["finish_reason"]
            stop_id = choice.get("stop_reason")
            token_ids = returned_ids(choice)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._nonsense("a completion without text, finish_reason or proper token ids") from error
        if not isinstance(text, str):
            raise self._nonsense("a completion whose text is no text")
        if finish not in FINISHES:
            raise self._nonsense(f"the finish_reason {finish!r}")
        return Completed(text, token_ids, FINISHES[finish], stop_id if isinstance(stop_id, int) else None)

    def _nonsense(self, what: str) -> EngineError:
        hint = "Tiebreak speaks to OpenAI-compatible completion servers; vLLM is the one it is made for."
        return EngineError("server_answer", f"The sampling server {self.name} answered with {what}.", hint)

    def _words(self, response: httpx2.Response) -> str:
        """What the server says about its error, in at most ``QUOTED`` characters and without the key."""
        try:
            found = error_message(json.loads(response.text))
        except ValueError:
            found = response.text
        words = " ".join(found.split())
        return (words.replace(self._key, "***") if self._key else words)[:QUOTED] or response.reason_phrase

    def _is_own_error(self, response: httpx2.Response) -> bool:
        """Whether vLLM itself writes this, and not the web server because there is no such route."""
        try:
            data = json.loads(response.text)
        except ValueError:
            return False
        return isinstance(data, dict) and ("error" in data or data.get("object") == "error")


def pauses() -> Iterator[float]:
    """Seconds before each try."""
    yield 0.0
    for number in range(TRIES - 1):
        yield min(FIRST_PAUSE * 2**number, LONGEST_PAUSE)


def asked_pause(response: httpx2.Response) -> float:
    """What a busy server asks for beyond the pauses there are anyway; 0 if it asks for nothing that is understood."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_PAUSE) if value.isdecimal() else 0.0


def returned_ids(choice: dict[str, Any]) -> list[int] | None:
    """The sampled ids from ``token_ids``, or from ``logprobs.tokens`` where they are written ``token_id:42``."""
    if (ids := choice.get("token_ids")) is not None:
        return [int(token) for token in ids]
    tokens = (choice.get("logprobs") or {}).get("tokens") or []
    if tokens and all(str(token).startswith(ID_PREFIX) for token in tokens):
        return [int(token.removeprefix(ID_PREFIX)) for token in tokens]
    return None


def error_message(data: Any) -> str:
    """The sentence in an error of vLLM ({"error": {"message": …}} or {"message": …}) or of its web framework."""
    if not isinstance(data, dict):
        return str(data)
    error = data.get("error", data)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error)


def unknown_model(server: str, model: str, models: list[str]) -> EngineError:
    known = f" It knows {', '.join(models[:5])}." if models else ""
    hint = "Set the server's model to the name that it serves the base weights under (--served-model-name)."
    return EngineError("unknown_model", f"The sampling server {server} does not know the model {model!r}.{known}", hint)


def shown(url: str) -> str:
    """``url`` as an error may show it: without user name, password and query."""
    parsed = httpx2.URL(url)
    return str(parsed.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")
