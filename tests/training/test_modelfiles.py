"""What add_model refuses before it reads a weight, with every problem named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from training.exceptions import ModelRejected
from training.modelfiles import allowed_directory, allowed_hub_id, check_directory
from training.models import Checkpoint


@pytest.fixture
def model(tmp_path: Path, settings) -> Path:
    directory = tmp_path / "models" / "mine"
    directory.mkdir(parents=True)
    settings.MODEL_DIRECTORIES = [tmp_path / "models"]
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": "{{ x }}"}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"x")
    return directory


def test_a_good_directory_passes(model):
    check_directory(model)


@pytest.mark.parametrize("name", ["modeling_mine.py", "pytorch_model.bin", "training_args.pkl", "notes.exe"])
def test_files_that_do_not_belong_are_named(model, name):
    (model / name).write_bytes(b"x")
    with pytest.raises(ModelRejected, match=name):
        check_directory(model)


def test_every_problem_is_listed_at_once(model):
    (model / "config.json").write_text(json.dumps({"model_type": "mystery", "auto_map": {"AutoModel": "x.Y"}}))
    (model / "tokenizer_config.json").write_text("{}")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelRejected) as raised:
        check_directory(model)
    text = str(raised.value)
    for expected in ("safetensors weights", "asks for code (auto_map)", "“mystery”", "chat template", "EOS token"):
        assert expected in text


@pytest.mark.parametrize("broken", ["not json", "[]", '"text"'])
def test_a_config_that_is_none_is_named(model, broken):
    (model / "config.json").write_text(broken)
    with pytest.raises(ModelRejected, match=r"config\.json is missing or not a JSON object"):
        check_directory(model)


def test_a_link_out_of_the_directory_is_refused(model, tmp_path):
    (tmp_path / "secret").write_text("x")
    (model / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelRejected, match="leads out of the directory"):
        check_directory(model)


def test_only_what_the_operator_allows(model, tmp_path, settings):
    assert allowed_directory(str(model)) == model
    for outside in (str(tmp_path), str(model / ".." / ".."), "/etc"):
        with pytest.raises(ModelRejected, match="not under an allowed directory"):
            allowed_directory(outside)
    settings.MODEL_HUB_IDS = ["good/model"]
    assert allowed_hub_id("good/model") == "good/model"
    with pytest.raises(ModelRejected, match="does not allow"):
        allowed_hub_id("evil/model")
    with pytest.raises(ModelRejected, match="neither a directory nor a Hub id"):
        allowed_hub_id("../../etc/passwd")


@pytest.mark.slow
def test_a_real_model_is_added_once_and_loads(tiny_model, db, data_dir, settings, capsys):
    settings.MODEL_DIRECTORIES = [tiny_model.parent]
    for _ in range(2):
        call_command("add_model", str(tiny_model), "--name", "Tiny", "--licence", "MIT")
    checkpoint = Checkpoint.objects.get()
    assert (checkpoint.name, checkpoint.licence, checkpoint.kind) == ("Tiny", "MIT", "base")
    assert checkpoint.content_hash in capsys.readouterr().out
    assert len(list((data_dir / "checkpoints").iterdir())) == 1
    with pytest.raises(CommandError, match="not under an allowed directory"):
        call_command("add_model", "/etc")
