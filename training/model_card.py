"""The model card of a checkpoint, written from its manifest alone. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.card_figures import gate_section, held_out_section, on_policy_section, table
from training.card_metadata import front_matter

# What was minimised, and who wrote of it.
OBJECTIVES = {
    "dpo": "Direct Preference Optimization (Rafailov et al. 2023)",
    "ipo": "Identity Preference Optimization (IPO; Azar et al. 2023), with log-ratios averaged over tokens,",
    "hinge": "the hinge loss on differences of log-ratios (Liu et al. 2023, RSO, after SLiC of Zhao et al. 2023)",
    "robust": "robust DPO (Chowdhury et al. 2024)",
    "apo_zero": "Anchored Preference Optimization (APO-zero; D’Oosterlinck et al. 2024)",
    "apo_down": "Anchored Preference Optimization (APO-down; D’Oosterlinck et al. 2024)",
}

CONTENT_HASH = """\
import hashlib, json, pathlib
manifest = json.loads(pathlib.Path("manifest.json").read_text(encoding="utf-8"))
content = {"base": (manifest["base"] or {}).get("content_hash"), "files": manifest["files"]}
print(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() == manifest["content_hash"])"""


def render_card(manifest: dict[str, Any]) -> str:
    """Return ``README.md``: front matter, what it is, how to load and check it, what it was made from, how it did."""
    sections = [
        front_matter(manifest),
        f"# {manifest['name']}\n\n{_summary(manifest)}",
        _loading(manifest),
        _use(manifest),
        held_out_section(manifest),
        on_policy_section(manifest),
        gate_section(manifest),
        _flags(manifest),
        _lineage(manifest),
        _files(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(manifest: dict[str, Any]) -> str:
    if manifest["kind"] != "dpo":
        return f"Weights that preference training started from. Content hash `{manifest['content_hash']}`."
    kind = "A LoRA adapter" if manifest["base"] else "Full weights"
    loss = manifest.get("recipe", {}).get("loss", "dpo")
    return (
        f"{kind}, trained with {OBJECTIVES.get(loss, loss)} on human judgements of pairs, "
        f"collected with Tiebreak. {_mode(manifest)}Content hash `{manifest['content_hash']}`."
    )


def _mode(manifest: dict[str, Any]) -> str:
    if manifest.get("recipe", {}).get("mode") != "fast":
        return ""
    return (
        "Trained in the fast mode: only the upper layers could change, which is a different hypothesis class than "
        "training all of them. "
    )


def _loading(manifest: dict[str, Any]) -> str:
    if manifest["base"]:
        base = manifest["base"]
        code = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base["name"]}")  # the weights it was trained on\n'
            'model = PeftModel.from_pretrained(base, ".")\ntokenizer = AutoTokenizer.from_pretrained(".")'
        )
        note = (
            f"\n\nThe base it was trained on has the content hash `{base['content_hash']}`. Other copies of "
            f"`{base['name']}` may differ in precision; the merged weights of this checkpoint depend on no base."
        )
    else:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")'
        )
        note = ""
    return f"## Load it\n\nIn this directory:\n\n```python\n{code}\n```{note}"


def _lineage(manifest: dict[str, Any]) -> str:
    if "recipe" not in manifest:
        return ""
    snapshot = manifest["snapshot"]
    rows = [
        ("Reference (frozen)", f"`{manifest['reference']['content_hash']}` ({manifest['reference']['name']})"),
        ("Snapshot of triples", f"`{snapshot['sha256']}`"),
        ("Triples", f"{snapshot['train_triples']} for training, {snapshot['held_out_triples']} held out"),
        *_ties(manifest),
        *_rewrites(manifest),
        *_unused(manifest),
        ("Left out", f"{snapshot['ties']} ties and {snapshot['both_bad']} both-bad judgements gave no triple"),
        ("Seed", str(manifest["seed"])),
        *((name.replace("_", " "), str(value)) for name, value in manifest["recipe"].items()),
        ("Versions", ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())),
    ]
    return "## What it was made from\n\n" + table(("", ""), rows)


def _ties(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if ties := manifest["snapshot"].get("tie_triples"):
        yield "Of those for training, ties", f"{ties}, with label noise 1/2"


def _rewrites(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if rewrites := manifest["snapshot"].get("rewrite_triples"):
        yield "Of all triples, rewrites", f"{rewrites}: a person's better version and the response that it improves"


def _unused(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    unused = manifest.get("figures", {}).get("left_out_by_split") or {}
    if unused:
        train, held_out = unused.get("train", 0), unused.get("held_out", 0)
        yield "Of these not used", f"{train} for training, {held_out} held out: too long, or the same when cut"


def _flags(manifest: dict[str, Any]) -> str:
    flags = manifest.get("figures", {}).get("flags") or []
    lines = [f"- {flag['message']} {flag.get('hint', '')}".rstrip() for flag in flags]
    return "## To look at before using it\n\n" + "\n".join(lines) if lines else ""


def _use(manifest: dict[str, Any]) -> str:
    """What it is for and what nobody knows about it, without a claim that nothing here has measured."""
    if manifest["kind"] != "dpo":
        return ""
    licence = f" Its licence is that of its base, {manifest['licence']}." if manifest["licence"] else ""
    return (
        "## Use and limits\n\n"
        "It was trained to write what the people who labelled for this project prefer, on prompts like theirs. The "
        f"figures below say how far that went on further prompts of the same project.{licence}\n\n"
        "- Preferred is not the same as true, safe or fair. None of these was measured, nor was any other language, "
        "domain or group of people.\n"
        "- What the weights it started from get wrong, it may still get wrong: preferences choose among responses, "
        "and bring no knowledge.\n"
        "- Figures with a wide interval, or with none, are little evidence. Compare it on your own prompts before you "
        "rely on it.\n"
        "- Prompts and judgements are not in these files, but a model can repeat what it was trained on."
    )


def _files(manifest: dict[str, Any]) -> str:
    rows = [(f"`{file['path']}`", f"{file['size']:,}", f"`{file['sha256']}`") for file in manifest["files"]]
    sums = "\n".join(f"{file['sha256']}  {file['path']}" for file in manifest["files"])
    return (
        f"## Files, and how to check them\n\n{table(('File', 'Bytes', 'sha256'), rows)}\n\nIn this directory:\n\n"
        f"```sh\nsha256sum -c <<'END'\n{sums}\nEND\n```\n\n"
        "The content hash is the sha256 over their names, sizes and hashes, and over the content hash of the base:\n\n"
        f"```python\n{CONTENT_HASH}\n```"
    )
