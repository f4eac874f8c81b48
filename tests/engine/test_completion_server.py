"""Sampling from a server that holds the weights, against one that really does."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.runs import do, question, read_lines, start, succeed
from tests.engine.tiny_completion_server import TinyCompletionServer, answers, breaks_off, busy, slow
from training.engine import chat, completion_server, loading
from training.engine.completion_server import CompletionServer, Sampling
from training.engine.errors import EngineError
from training.jobspec import EXIT_INTERRUPTED, ModelRef, PromptLine

MakeRun = Callable[..., Path]
KEY = "a-key-that-nobody-may-see"
OTHER_VOCABULARY = {"choices": [{"text": "x", "finish_reason": "stop", "token_ids": [99_999]}]}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_server, "FIRST_PAUSE", 0.005)
    monkeypatch.delenv(completion_server.KEY_VARIABLE, raising=False)


@pytest.fixture
def serve(tiny_model_dir: Path) -> Iterator[Callable[..., TinyCompletionServer]]:
    """Start servers that end with the test: ``serve(**knobs)``."""
    running: list[TinyCompletionServer] = []

    def begin(**knobs: Any) -> TinyCompletionServer:
        running.append(TinyCompletionServer(tiny_model_dir, **knobs).__enter__())
        return running[-1]

    yield begin
    for server in running:
        server.__exit__()


@pytest.fixture
def served_run(sample_run: MakeRun, copied_model: Path) -> MakeRun:
    """A run directory of a job that samples from ``server``. The model's directory here holds no weights."""
    for weights in copied_model.glob("*.safetensors"):
        weights.unlink()

    def make(server: TinyCompletionServer | str, prompts: int | list[PromptLine] = 4, **fields: Any) -> Path:
        url = server if isinstance(server, str) else server.url
        defaults = {
            "backend": "server",
            "server_url": url,
            "server_model": "tiny",
            "rows": 4,
            "model": ModelRef(str(copied_model), "hash-of-base"),
        }
        return sample_run(prompts, **(defaults | fields))

    return make


@pytest.fixture(scope="module")
def adapter_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    directory = tmp_path_factory.mktemp("adapter")
    model = loading.load_weights(tiny_model_dir, torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(directory)
    return directory


def pairs(run_dir: Path) -> dict[str, dict[str, Any]]:
    return {line["prompt_id"]: line for line in read_lines(run_dir, "samples.jsonl")}


def responses(run_dir: Path) -> list[dict[str, Any]]:
    """By prompt: which of them is written first is the server's."""
    return [response for _, line in sorted(pairs(run_dir).items()) for response in line["responses"]]


def test_pairs_come_from_the_server_with_the_ids_that_it_sampled(serve, served_run, tiny_model_dir) -> None:
    server = serve()
    run_dir = served_run(server, 6)
    details = succeed("sample", run_dir)

    assert (details["pairs"], details["refused"], details["retokenised"]) == (6, 0, 0)
    assert (details["backend"], details["server"], details["server_model"]) == ("server", server.url, "tiny")
    assert details["rows"] == 4
    assert details["tokens_per_s"] > 0
    assert details["tokens"] >= sum(len(response["token_ids"]) for response in responses(run_dir))
    tokenizer = loading.load_tokenizer(tiny_model_dir)
    sampled = {body["seed"]: body for body in server.bodies}
    for number in range(6):
        line = pairs(run_dir)[f"prompt-{number}"]
        assert line["prompt_token_ids"] == chat.prompt_token_ids(tokenizer, question(number).messages)
        assert line["responses"][0]["text"] != line["responses"][1]["text"]
        for response in line["responses"]:
            assert response["token_ids"] == server.generate(sampled[response["seed"]])
            assert response["text"] == chat.response_text(tokenizer, response["token_ids"])
            assert response["logps"] == []
            ended = response["token_ids"][-1] in details["stop_token_ids"]
            assert response["finish_reason"] == ("stop" if ended else "length")


def test_the_server_is_asked_for_nothing_but_temperature_and_nucleus(serve, served_run) -> None:
    server = serve()
    succeed("sample", served_run(server, 1, temperature=0.7, top_p=0.8, max_new_tokens=20))
    body = server.bodies[0]
    assert {key: body[key] for key in ("temperature", "top_p", "max_tokens", "n")} == {
        "temperature": 0.7,
        "top_p": 0.8,
        "max_tokens": 20,
        "n": 1,
    }
    neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert {key: body[key] for key in neutral} == neutral, "or the server takes the model's own defaults"


def test_the_same_seeds_write_the_same_and_a_restart_asks_for_the_rest_only(serve, served_run) -> None:
    server = serve()
    whole, cut = served_run(server, 5, name="whole"), served_run(server, 5, name="cut")
    succeed("sample", whole)
    lines = (whole / "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (cut / "samples.jsonl").write_text("".join(lines[:3]) + lines[3][:30], encoding="utf-8")
    before = len(server.bodies)
    details = succeed("sample", cut)
    assert details["from_earlier_attempts"] == 3
    assert {tuple(body["prompt"]) for body in server.bodies[before:]} == {
        tuple(pairs(whole)[key]["prompt_token_ids"]) for key in list(pairs(whole))[3:]
    }
    assert pairs(cut) == pairs(whole)


def test_no_more_responses_are_asked_for_at_once_than_the_job_says(serve, served_run) -> None:
    server = serve()
    succeed("sample", served_run(server, 12, rows=3))
    assert 2 <= server.most_at_once <= 3


def test_ids_are_found_where_older_servers_tell_them(serve, served_run) -> None:
    today, before = serve(), serve(ids="token_strings")
    new, old = served_run(today, name="new"), served_run(before, name="old")
    succeed("sample", new)
    assert succeed("sample", old)["retokenised"] == 0
    assert pairs(old) == pairs(new)


def test_a_server_that_tells_no_ids_has_its_texts_tokenised_and_the_result_says_so(
    serve, served_run, tiny_model_dir
) -> None:
    told, untold = serve(), serve(ids="none")
    with_ids, without = served_run(told, name="with"), served_run(untold, name="without")
    succeed("sample", with_ids)
    details = succeed("sample", without)
    assert details["retokenised"] == len(untold.bodies)
    assert [item["text"] for item in responses(without)] == [item["text"] for item in responses(with_ids)]
    # This tokenizer gives back the very ids for a text; what ended a response is in no text.
    assert [item["token_ids"] for item in responses(without)] == [item["token_ids"] for item in responses(with_ids)]
    assert any(item["finish_reason"] == "stop" for item in responses(without))


def test_an_adapter_is_loaded_under_its_hash_once_and_changes_what_is_written(
    serve, served_run, copied_model, adapter_dir
) -> None:
    server = serve()
    adapted = ModelRef(str(copied_model), "base", str(adapter_dir), "hash-of-adapter")
    plain = served_run(server, name="plain")
    changed, again = served_run(server, name="changed", model=adapted), served_run(server, name="again", model=adapted)
    succeed("sample", plain)
    assert succeed("sample", changed)["server_model"] == "hash-of-adapter"
    succeed("sample", again)
    assert server.adapters == {"hash-of-adapter": str(adapter_dir)}
    assert server.paths.count("/v1/load_lora_adapter") == 1
    assert pairs(again) == pairs(changed)
    assert pairs(plain) != pairs(changed)


def test_an_adapter_that_somebody_else_has_just_loaded_is_no_failure(
    serve, served_run, copied_model, adapter_dir
) -> None:
    server = serve(hides_adapters=True)
    adapted = ModelRef(str(copied_model), "base", str(adapter_dir), "hash-of-adapter")
    for name in ("first", "second"):
        succeed("sample", served_run(server, 1, name=name, model=adapted))
    assert server.paths.count("/v1/load_lora_adapter") == 2


def test_a_server_that_may_not_load_adapters_is_told_how(serve, served_run, copied_model, adapter_dir) -> None:
    adapted = ModelRef(str(copied_model), "base", str(adapter_dir), "hash-of-adapter")
    result = do("sample", served_run(serve(loads_adapters=False), model=adapted))
    assert result.error_code == "server_adapter"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in result.hint


def test_an_adapter_that_the_server_cannot_read_is_told_with_its_words(serve, served_run, copied_model) -> None:
    adapted = ModelRef(str(copied_model), "base", "/nowhere/adapter", "hash-of-adapter")
    result = do("sample", served_run(serve(), model=adapted))
    assert result.error_code == "server_adapter"
    assert "No adapter found for /nowhere/adapter" in result.error
    assert "same path" in result.hint


@pytest.mark.parametrize("fault", [answers(503, "overloaded"), busy, breaks_off])
def test_a_server_that_is_busy_or_breaks_off_is_asked_again(serve, served_run, fault) -> None:
    server = serve()
    server.faults.extend([fault] * 3)
    assert succeed("sample", served_run(server, 3))["pairs"] == 3


def test_a_server_that_stays_busy_is_given_up_after_so_many_tries(serve) -> None:
    server = serve()
    server.faults.extend([answers(503, {"error": {"message": "The engine is asleep"}})] * 50)
    with pytest.raises(EngineError) as told:
        ask(server.url)
    assert told.value.code == "server_unreachable"
    assert "The engine is asleep" in told.value.message
    assert len(server.bodies) == completion_server.TRIES


def test_a_failure_ends_the_job_and_keeps_the_pairs_that_are_there(serve, served_run) -> None:
    server = serve()
    run_dir = served_run(server, 5)
    for _ in range(2):
        server.faults.append(slow(0))
    server.faults.extend([answers(500, {"error": {"message": "CUDA error"}})] * 50)
    result = do("sample", run_dir)
    assert (result.error_code, "CUDA error" in result.error) == ("server_failed", True)
    assert len(pairs(run_dir)) <= 1
    server.faults.clear()
    succeed("sample", run_dir)
    assert len(pairs(run_dir)) == 5


def ask(url: str, **options: Any) -> Any:
    server = CompletionServer(url, connections=1, **options)
    try:
        return server.complete("tiny", [1, 5, 9], seed=3, max_new_tokens=8, sampling=Sampling(1.0, 1.0, (2,)))
    finally:
        server.close()


def test_an_answer_that_takes_too_long_is_told_and_not_asked_for_again(serve) -> None:
    server = serve()
    server.faults.append(slow(0.6))
    with pytest.raises(EngineError) as told:
        ask(server.url, answer_seconds=0.1)
    assert told.value.code == "server_timeout"
    assert len(server.bodies) == 1


def test_a_request_under_way_keeps_its_connection_when_the_server_is_left_and_no_other_is_begun(serve) -> None:
    tiny = serve()
    tiny.faults.append(slow(0.3))
    server = CompletionServer(tiny.url, connections=2)
    sampling = Sampling(1.0, 1.0, (2,))
    answer: Future[Any] = Future()
    asking = threading.Thread(
        target=lambda: answer.set_result(server.complete("tiny", [1, 5], seed=3, max_new_tokens=8, sampling=sampling))
    )
    asking.start()
    while not tiny.bodies:
        time.sleep(0.01)
    server.close()
    server.close()
    with pytest.raises(EngineError):
        server.models()
    assert answer.result(timeout=10).token_ids
    asking.join()
    gc.collect()  # a connection that nobody has closed is told here


def test_a_server_that_is_not_there_is_told(served_run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = do("sample", served_run(f"http://name:password@127.0.0.1:{port}/v1"))
    assert result.error_code == "server_unreachable"
    assert f"http://127.0.0.1:{port}/v1" in result.error
    assert "password" not in result.error


def test_a_missing_and_a_wrong_key_are_told_and_the_right_one_is_never_written(
    serve, served_run, monkeypatch, capfd
) -> None:
    server = serve(key=KEY)
    missing = do("sample", served_run(server, name="missing"))
    assert (missing.error_code, "wants a key" in missing.error) == ("server_refused", True)
    assert completion_server.KEY_VARIABLE in missing.hint

    monkeypatch.setenv(completion_server.KEY_VARIABLE, "wrong")
    wrong = do("sample", served_run(server, name="wrong"))
    assert (wrong.error_code, "does not accept the key" in wrong.error) == ("server_refused", True)

    monkeypatch.setenv(completion_server.KEY_VARIABLE, KEY)
    run_dir = served_run(server, name="right")
    succeed("sample", run_dir)
    server.faults.extend([answers(500, {"error": {"message": f"refused {KEY}"}})] * 9)
    echoed = served_run(server, name="echoed")
    assert "refused ***" in do("sample", echoed).error
    files = [path for folder in (run_dir, echoed) for path in folder.iterdir()]
    assert not any(KEY in path.read_text(encoding="utf-8") for path in files)
    assert KEY not in "".join(capfd.readouterr())


def test_a_model_that_the_server_does_not_know_is_told_with_those_that_it_does(serve, served_run) -> None:
    result = do("sample", served_run(serve(), server_model="huge"))
    assert result.error_code == "unknown_model"
    assert "'huge'. It knows tiny." in result.error


def test_an_address_without_the_routes_is_told(serve, served_run) -> None:
    result = do("sample", served_run(serve().url.removesuffix("/v1")))
    assert result.error_code == "server_failed"
    assert "/v1" in result.hint


@pytest.mark.parametrize(
    "content",
    [
        "<html>Welcome</html>",
        [],
        {"choices": []},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": [{"text": None, "finish_reason": "stop"}]},
        {"choices": [{"text": "x", "finish_reason": "abort", "token_ids": [1]}]},
        {"choices": [{"text": "x", "finish_reason": "stop", "token_ids": ["one"]}]},
        OTHER_VOCABULARY,
    ],
)
def test_an_answer_that_makes_no_sense_is_told(serve, served_run, content: Any) -> None:
    server = serve()
    server.faults.append(answers(200, content))
    result = do("sample", served_run(server))
    assert result.error_code == "server_answer"
    assert server.url in result.error or "vocabulary" in result.error


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_prompt_that_the_server_has_no_room_for_is_refused_and_the_others_are_written(
    serve, served_run, tells_length: bool
) -> None:
    server = serve(max_model_len=96, tells_length=tells_length)
    prompts = [question(0), question(1, "a bird " * 40), question(2)]
    run_dir = served_run(server, prompts, max_new_tokens=24)
    details = succeed("sample", run_dir)
    assert (details["pairs"], details["refused"]) == (2, 1)
    reason = pairs(run_dir)["prompt-1"]["refused"]
    assert ("reads at most 96" if tells_length else "maximum context length is 96") in reason


def test_the_weights_are_neither_here_nor_asked_for(serve, served_run, copied_model) -> None:
    run_dir = served_run(serve(), 1)
    assert not list(copied_model.glob("*.safetensors"))
    succeed("sample", run_dir)


def test_a_process_that_waits_for_the_server_stops_when_it_is_told_to(serve, served_run) -> None:
    server = serve()
    server.faults.extend([slow(30)] * 8)
    child = start("sample", served_run(server), stderr=subprocess.DEVNULL, env=os.environ.copy())
    try:
        deadline = time.monotonic() + 60
        while not server.bodies:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.terminate()
        assert child.wait(timeout=10) == EXIT_INTERRUPTED
    finally:
        child.kill()
        child.wait()
