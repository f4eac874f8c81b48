"""The front matter of a model card: what the Hugging Face Hub reads of it. Pure.

The Hub refuses a licence that is not on its list, and a base model that is no repository, so what is neither is said in
the way that it takes, or in the text of the card alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# https://huggingface.co/docs/hub/repositories-licenses
HUB_LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openrail++
    osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 gemma unknown
    """.split()  # noqa: SIM905
)
REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


def front_matter(manifest: dict[str, Any]) -> str:
    return "\n".join(["---", *_lines(manifest), "---"])


def _lines(manifest: dict[str, Any]) -> Iterator[str]:
    base, into = manifest["base"], manifest.get("merged_into")
    yield f"library_name: {'peft' if base else 'transformers'}"
    yield "pipeline_tag: text-generation"
    yield from _base_model(base or into, "adapter" if base else "finetune")
    yield from _licence(manifest["licence"])
    yield "tags:"
    trained = ["dpo", "human-preferences"] if manifest["kind"] == "dpo" else []
    yield from (f"- {tag}" for tag in ["tiebreak", *trained, *(["lora"] if base else [])])


def _base_model(base: dict[str, Any] | None, relation: str) -> Iterator[str]:
    if base and REPOSITORY.fullmatch(base["name"]):
        yield f"base_model: {json.dumps(base['name'])}"
        yield f"base_model_relation: {relation}"


def _licence(licence: str) -> Iterator[str]:
    if not licence:
        return
    known = licence.lower()
    if known in HUB_LICENCES:
        yield f"license: {json.dumps(known)}"
        return
    yield 'license: "other"'
    if name := re.sub(r"[^a-z0-9.]+", "-", known).strip("-"):
        yield f"license_name: {json.dumps(name)}"
