"""Once round the loop as a newcomer: label, train, watch, promote, see new pairs, download, load."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import sign_in
from tests.installation import Installation, installed, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PROJECT = "/p/helpful-answers"
KEYS = "1234"

LOAD_ADAPTER = """
import sys
from pathlib import Path
from uuid import UUID
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
adapter, merged, base_dir = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapter)
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Say hello."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)["input_ids"]
base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
before = base(ids).logits
policy = PeftModel.from_pretrained(base, adapter)
with torch.no_grad():
    after = policy(ids).logits
    alone = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
assert (after - before).abs().max() > 1e-6, "the adapter changes nothing"
assert torch.allclose(after, alone, atol=1e-3), (after - alone).abs().max()
print("loaded")
"""


def label(page: Page, installation: Installation, count: int, seconds: float) -> None:
    """Judge pairs by keyboard as they appear. Shorter left answers win, so that there is something to learn."""
    page.goto(f"{installation.url}{PROJECT}/annotate/")
    for number in range(count):
        page.wait_for_selector("#desk[data-state=pair]", timeout=seconds * 1000)
        key = page.get_attribute("#desk", "data-key")
        page.wait_for_selector(f'html[data-ready="{key}"]')  # keys are deaf for a moment after a change
        lengths = page.eval_on_selector_all(".pane .reading", "panes => panes.map(pane => pane.innerText.length)")
        page.keyboard.press("3" if number == 5 else "1" if lengths[0] < lengths[1] else "2")
        page.wait_for_selector(f'#desk:not([data-key="{key}"])')


def keep_open(page: Page, installation: Installation, pairs: int) -> None:
    """Have few pairs sampled ahead, and no judgements looked at again: nobody would label or read them here."""
    page.goto(f"{installation.url}{PROJECT}/training/")
    if (stop := page.get_by_role("button", name="Stop sampling")).is_visible():
        stop.click()
        page.wait_for_load_state()
    wanted = page.get_by_label("Keep this many pairs open")
    wanted.fill(str(pairs))
    page.get_by_label("After a promotion, show each person").fill("0")
    page.locator("form", has=wanted).get_by_role("button").click()
    wait_until(lambda: installation.query("SELECT open_pairs_wanted FROM training_looprule") == pairs, 10, "the rule")


def train(page: Page, installation: Installation, epochs: str, seconds: float) -> None:
    page.goto(f"{installation.url}{PROJECT}/train/")
    page.locator("[name=epochs]").fill(epochs)
    page.locator("main form").get_by_role("button", name="Train").click()
    page.wait_for_url("**/runs/*/")
    expect(page.locator("#status svg").first).to_be_visible(timeout=seconds * 1000)
    expect(page.locator("#status .state-succeeded")).to_be_visible(timeout=seconds * 1000)


def promote(page: Page, installation: Installation, seconds: float) -> str:
    """Promote the newest checkpoint and return its uuid."""
    newest = installation.query("SELECT uuid FROM training_checkpoint WHERE kind = 'dpo' ORDER BY id DESC")
    uuid = str(UUID(newest))
    page.goto(f"{installation.url}{PROJECT}/checkpoints/{uuid}/")
    page.get_by_role("button", name="Promote").click()
    expect(page.get_by_text("is the policy now").first).to_be_visible(timeout=seconds * 1000)
    return uuid


def download(page: Page, installation: Installation, uuid: str, target: Path, seconds: float) -> tuple[Path, Path]:
    page.goto(f"{installation.url}{PROJECT}/checkpoints/{uuid}/")
    page.get_by_role("button", name="Prepare merged weights").click()
    expect(page.locator("a[href$='/download/merged.zip']")).to_be_visible(timeout=seconds * 1000)
    folders = []
    for variant in ("adapter", "merged"):
        with page.expect_download() as started:
            page.locator(f"a[href$='/download/{variant}.zip']").click()
        archive = target / f"{variant}.zip"
        started.value.save_as(archive)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(target)
            folders.append(target / opened.namelist()[0].split("/")[0])
    return folders[0], folders[1]


def check_download(installation: Installation, adapter: Path, merged: Path) -> None:
    """The files load with plain transformers and peft in a clean process, and carry nothing of the server."""
    for path in [*adapter.iterdir(), *merged.iterdir()]:
        assert path.suffix in (".json", ".safetensors", ".jinja", ".md", ".txt")
        assert str(installation.data_dir).encode() not in path.read_bytes()
    base = UUID(installation.query("SELECT uuid FROM training_checkpoint WHERE kind = 'base'"))
    base_dir = installation.data_dir / "checkpoints" / str(base)
    command = [sys.executable, "-c", LOAD_ADAPTER, str(adapter), str(merged), str(base_dir)]
    clean = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=adapter.parent, env=clean, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "loaded", done.stderr


def go_round(page: Page, installation: Installation, target: Path, *, pairs: int, epochs: str, seconds: float) -> None:
    sign_in(page, installation, "admin")
    label(page, installation, pairs, seconds)
    assert installation.query("SELECT count(*) FROM labeling_preference WHERE is_current") == pairs
    written = "SELECT count(*) FROM labeling_pair"
    wait_until(lambda: installation.query(written) >= pairs + 2, seconds, "a pair on the desk and one ahead")
    keep_open(page, installation, 5)
    train(page, installation, epochs, seconds)
    uuid = promote(page, installation, seconds)
    from_new = (
        "SELECT count(*) FROM training_pairorigin o JOIN training_checkpoint c ON c.id = o.policy_id WHERE c.uuid = ?"
    )
    # Pairs arrive one by one. The next label may use one up, so wait for more than it could.
    wait_until(lambda: installation.query(from_new, UUID(uuid).hex) > 2, seconds, "pairs from the new policy")
    label(page, installation, 2, seconds)  # pairs of the old policy, held since before the promotion: now and ahead
    # The next ones are of the new policy, but for those of the control, whose older ones may not be used up.
    held = "SELECT pair_id FROM labeling_slot WHERE state IN ('leased', 'done') AND NOT is_ahead"
    label(page, installation, 3, seconds)
    assert installation.query(f"{from_new} AND pair_id IN ({held})", UUID(uuid).hex) >= 1
    check_download(installation, *download(page, installation, uuid, target, seconds))


@pytest.mark.timeout(1500)
def test_on_the_real_model(page: Page, tmp_path: Path) -> None:
    with installed(tmp_path / "var") as installation:
        go_round(page, installation, tmp_path, pairs=14, epochs="1", seconds=500)
