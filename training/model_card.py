"""The model card of a checkpoint, written from its manifest alone. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

# What was minimised, and who wrote of it.
OBJECTIVES = {
    "dpo": "Direct Preference Optimization (Rafailov et al. 2023)",
    "ipo": "Identity Preference Optimization (IPO; Azar et al. 2023), with log-ratios averaged over tokens,",
    "hinge": "the hinge loss on differences of log-ratios (Liu et al. 2023, RSO, after SLiC of Zhao et al. 2023)",
    "robust": "robust DPO (Chowdhury et al. 2024)",
    "apo_zero": "Anchored Preference Optimization (APO-zero; D’Oosterlinck et al. 2024)",
    "apo_down": "Anchored Preference Optimization (APO-down; D’Oosterlinck et al. 2024)",
}


def render_card(manifest: dict[str, Any]) -> str:
    """Return ``README.md``: front matter, what it is, how to load it, what it was made from, how it scored."""
    sections = [
        _front_matter(manifest),
        f"# {manifest['name']}\n\n{_summary(manifest)}",
        _loading(manifest),
        _lineage(manifest),
        _figures(manifest),
        _flags(manifest),
        _files(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(manifest: dict[str, Any]) -> str:
    lines = ["---", "library_name: peft" if manifest["base"] else "library_name: transformers"]
    if manifest["base"]:
        lines.append(f"base_model: {json.dumps(manifest['base']['name'])}")
    if manifest["licence"]:
        lines.append(f"license: {json.dumps(manifest['licence'].lower())}")
    tags = ["tiebreak"] + (["dpo", "human-preferences"] if manifest["kind"] == "dpo" else [])
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


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
    return "## What it was made from\n\n" + _table(("", ""), rows)


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


def _figures(manifest: dict[str, Any]) -> str:
    held_out = manifest.get("figures", {}).get("held_out") or {}
    if not held_out.get("pairs"):
        return _no_figures(manifest)
    before, after = held_out["before"], held_out["after"]
    rows = [
        ("Preference accuracy (implicit reward)", f"{before['accuracy']:.3f}", f"{after['accuracy']:.3f}"),
        ("Reward margin", f"{before['margin']:.3f}", f"{after['margin']:.3f}"),
        ("Accuracy by log-probability", f"{before['logp_accuracy']:.3f}", f"{after['logp_accuracy']:.3f}"),
    ]
    interval = held_out.get("accuracy_interval")
    note = f" 95% interval of the accuracy after: {interval[0]:.3f} to {interval[1]:.3f}." if interval else ""
    return (
        f"## Held-out preferences\n\n{held_out['pairs']} pairs on {held_out['prompts']} prompts that were never "
        f"trained on; a tie counts as half.{note}{_by_length(held_out)}\n\n" + _table(("", "before", "after"), rows)
    )


def _by_length(held_out: dict[str, Any]) -> str:
    length = held_out.get("length_baseline") or {}
    if length.get("accuracy") is None:
        return ""
    return f" Taking the {length['rule']} response, without reading it, is right in {length['accuracy']:.3f} of them."


def _flags(manifest: dict[str, Any]) -> str:
    flags = manifest.get("figures", {}).get("flags") or []
    lines = [f"- {flag['message']} {flag.get('hint', '')}".rstrip() for flag in flags]
    return "## To look at before using it\n\n" + "\n".join(lines) if lines else ""


def _no_figures(manifest: dict[str, Any]) -> str:
    if "recipe" not in manifest:
        return ""
    labelled = manifest["snapshot"]["held_out_triples"]
    why = "None could be scored within the maximum length." if labelled else "None were labelled before this run."
    return f"## Held-out preferences\n\n{why}"


def _files(manifest: dict[str, Any]) -> str:
    rows = [(f"`{file['path']}`", f"{file['size']:,}", f"`{file['sha256']}`") for file in manifest["files"]]
    return "## Files\n\n" + _table(("File", "Bytes", "sha256"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def lines() -> Iterator[str]:
        yield "| " + " | ".join(head) + " |"
        yield "|" + " --- |" * len(head)
        for row in rows:
            yield "| " + " | ".join(row) + " |"

    return "\n".join(lines())
