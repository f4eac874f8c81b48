"""The card that goes with the weights: figures with intervals, what can be checked, and what the Hub reads of it."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess

import pytest
from huggingface_hub import ModelCard

from tests.training.test_outcome import DETAILS, HELD_OUT, ON_POLICY, _manifest
from training import store
from training.model_card import CONTENT_HASH, render_card


def _rows(card: str, title: str) -> dict[str, list[str]]:
    """The table under a heading, by the first column."""
    section = card.split(f"## {title}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {name: rest for name, *rest in cells}


def test_every_figure_that_has_an_interval_is_shown_with_it():
    on_policy = ON_POLICY | {
        "after": ON_POLICY["after"] | {"mean_tokens_interval": [60.0, 81.5], "finish_rate_interval": [0.5, 0.9375]},
        "change": {"prompts": 16, "mean_tokens": -19.75, "mean_tokens_interval": [-30.0, -9.5]},
    }
    card = render_card(_manifest(figures=DETAILS | {"on_policy": on_policy}))
    held_out = _rows(card, "Held-out preferences")
    assert held_out[""] == ["before", "after", "95 % interval after"]
    assert held_out["Preference accuracy (implicit reward)"] == ["0.500", "0.750", "0.250 to 1.000"]
    assert held_out["Reward margin"] == ["0.000", "+0.310", "-0.100 to +0.600"]
    assert held_out["Accuracy over that of always taking the shorter response"] == ["", "+0.050", "-0.125 to +0.225"]
    assert held_out["Chosen responses likelier by, nats a token"] == ["0.000", "-0.020", "-0.050 to +0.010"]
    own = _rows(card, "Its own responses")
    assert own["KL from the reference, nats a response"] == ["0.00", "1.23", "1.00 to 1.50"]
    assert own["KL from the first policy, nats a response"] == ["", "2.50", ""]
    assert own["Length, tokens"] == ["90.0", "70.2", "60.0 to 81.5"]
    assert own["Share that ended by themselves"] == ["0.500", "0.750", "0.500 to 0.938"]
    assert own["Change of Length, prompt by prompt"] == ["", "-19.750", "-30.000 to -9.500"]
    assert "One response to each of 16 held-out prompts, of at most 128 tokens" in card


@pytest.mark.parametrize("missing", sorted(HELD_OUT))
def test_any_figure_may_be_missing(missing):
    figures = {name: value for name, value in HELD_OUT.items() if name != missing}
    card = render_card(_manifest(figures={"held_out": figures, "on_policy": None}))
    told = card.split("## Held-out preferences\n\n")[1].split("\n## ")[0]
    assert told.startswith("None could be scored") == (missing == "pairs")
    assert "| None" not in told


def test_the_outcome_of_a_gate_is_told_with_its_reasons_and_nothing_where_there_was_none():
    reasons = ["People preferred it in 61 of 100 pairs.", "Responses did not become longer."]
    card = render_card(_manifest(gate={"outcome": "promote", "reasons": reasons}))
    assert "## Release gate\n\nCompared with the policy before it, the outcome was **promote**.\n\n- People" in card
    assert "## Release gate" not in render_card(_manifest())
    assert "## Release gate" not in render_card(_manifest(gate=None))


def test_limits_are_told_of_what_was_trained_and_not_of_a_base(base):
    card = render_card(_manifest(licence="Apache-2.0"))
    assert "Preferred is not the same as true, safe or fair." in card
    assert "Its licence is that of its base, Apache-2.0." in card
    assert "## Use and limits" not in (store.checkpoint_dir(base.uuid) / "README.md").read_text()


def test_what_the_card_says_to_check_by_finds_the_files_whole_and_a_changed_one_not(
    base, make_checkpoint, project, monkeypatch
):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=base, parent=base)
    directory = store.checkpoint_dir(adapter.uuid)
    script = re.search(r"```sh\n(.+?)```", (directory / "README.md").read_text(), re.DOTALL).group(1)
    assert CONTENT_HASH in (directory / "README.md").read_text()
    monkeypatch.chdir(directory)

    def check() -> tuple[int, str]:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(CONTENT_HASH, {})
        done = subprocess.run(["bash", "-c", script], cwd=directory, capture_output=True, text=True, check=False)
        return done.returncode, said.getvalue().strip()

    assert check() == (0, "True")
    (directory / "model.safetensors").write_bytes(b"changed")
    assert check()[0] == 1
    manifest = (directory / "manifest.json").read_text()
    (directory / "manifest.json").write_text(manifest.replace(base.content_hash, "0" * 64))
    assert check()[1] == "False"


def test_the_hub_reads_what_an_adapter_is():
    card = ModelCard(render_card(_manifest(licence="Apache-2.0", figures=DETAILS)))
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "somebody/base",
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "tags": ["tiebreak", "dpo", "human-preferences", "lora"],
    }
    assert card.data.eval_results is None, "no figure of ours is on a leaderboard's data set"
    assert card.text.strip().startswith("# helpful-dpo-1")


def test_the_hub_reads_what_merged_weights_were_made_of():
    merged = _manifest(base=None, merged_into={"name": "somebody/base", "content_hash": "b" * 64})
    data = ModelCard(render_card(merged)).data.to_dict()
    assert (data["library_name"], data["base_model"], data["base_model_relation"]) == (
        *("transformers", "somebody/base", "finetune"),
    )
    assert "lora" not in data["tags"]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("", {}),
        ("MIT", {"license": "mit"}),
        ("Savanna Licence 1.0", {"license": "other", "license_name": "savanna-licence-1.0"}),
        ('odd": ]\n- x', {"license": "other", "license_name": "odd-x"}),
    ],
)
def test_a_licence_is_said_as_the_hub_takes_it(licence, expected):
    data = ModelCard(render_card(_manifest(licence=licence))).data.to_dict()
    assert {name: value for name, value in data.items() if name.startswith("license")} == expected


def test_a_base_that_is_no_repository_is_named_in_the_text_alone():
    card = render_card(_manifest(base={"name": "our local base: v2", "content_hash": "b" * 64}))
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert 'from_pretrained("our local base: v2")' in card


def test_reasons_and_names_cannot_break_the_tables():
    card = render_card(_manifest(reference={"name": "a | b", "content_hash": "b" * 64}))
    assert "(a \\| b)" in card
