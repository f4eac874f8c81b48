"""What the policy writes by itself before and after training, on the fixed prompts of ``probes.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from training.engine import loading, on_policy, reference_logps
from training.engine.cache import Cache, key_of
from training.engine.chat import accepted_token_ids
from training.engine.compute import VERSIONS
from training.engine.jsonlines import read_lines
from training.engine.on_policy import OnPolicyResponse, OnPolicySettings, Opened
from training.engine.setting import Setting
from training.jobspec import PromptLine, write_atomically

PHASE = "comparing responses"
LAYOUT = "before 1"  # to be counted up when the same inputs give other figures
RESPONSES = "responses"  # of before.json: what ``after`` is compared with, prompt by prompt


def before(setting: Setting, cache: Cache) -> dict[str, Any]:
    """Figures of the reference, which the policy still is. A resumed run keeps those of its first start, and a later
    run finds them in ``cache``, under a key of all that they follow from."""
    path = setting.run_dir / "trainer" / "before.json"
    if path.is_file():
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return figures
    prompts = probes(setting)
    key = name_of(setting, prompts)
    kept = cache.get(key)
    text = kept.decode() if kept else json.dumps(figures_before(setting, prompts))
    if not kept:
        cache.put([(key, text.encode())])
    write_atomically(path, text)
    return dict(json.loads(text))


def name_of(setting: Setting, prompts: list[list[int]]) -> bytes:
    job = setting.job
    policies = (
        reference_logps.content_hash(job.reference),
        reference_logps.content_hash(job.first) if job.first else "",
    )
    as_which = "first" if reference_is_first(setting) else "other"
    settings = settings_of(setting)
    numbers = [settings.seed, settings.max_new_tokens, settings.rows]
    return key_of(LAYOUT, *VERSIONS, setting.compute.name, *policies, as_which, numbers, *prompts)


def figures_before(setting: Setting, prompts: list[list[int]]) -> dict[str, Any]:
    others = {"first": first_of(setting)} if setting.job.first else {}
    figures, responses = measure(setting, prompts, on_policy.as_it_is(setting.start.model.eval()), others)
    if responses:
        figures |= {"kl_reference": 0.0, "kl_reference_interval": [0.0, 0.0]}
        if reference_is_first(setting):
            figures["kl_first"] = 0.0
        figures[RESPONSES] = on_policy.outlines(responses)
    return figures


def after(setting: Setting, policy: PreTrainedModel | PeftModel, earlier: dict[str, Any]) -> dict[str, Any]:
    """{"prompts", "max_new_tokens", "before", "after", "change"}; empty without prompts."""
    if not earlier.get("prompts"):
        return {}
    outlines = earlier.pop(RESPONSES, {})  # which an earlier version did not keep
    others = {"reference": reference_of(setting, policy)}
    if setting.job.first:
        others["first"] = first_of(setting)
    figures, responses = measure(setting, probes(setting), on_policy.as_it_is(policy.eval()), others)
    if reference_is_first(setting):
        figures |= {name.replace("reference", "first"): figures[name] for name in list(figures) if "reference" in name}
    return {
        "prompts": figures["prompts"],
        "max_new_tokens": setting.job.probe_tokens,
        "before": earlier,
        "after": figures,
        "change": on_policy.change(outlines, on_policy.outlines(responses)),
    }


def reference_is_first(setting: Setting) -> bool:
    return setting.job.first is None and setting.job.first_is_reference


def measure(
    setting: Setting, prompts: list[list[int]], policy: Opened, others: dict[str, Opened]
) -> tuple[dict[str, Any], list[OnPolicyResponse]]:
    if not prompts:
        return {"prompts": 0}, []
    setting.metrics.phase(PHASE)
    tick = setting.metrics.tick(PHASE)
    return on_policy.measure(policy, others, setting.tokenizer, prompts, settings_of(setting), setting.compute, tick)


def settings_of(setting: Setting) -> OnPolicySettings:
    return OnPolicySettings(max_new_tokens=setting.job.probe_tokens)


def probes(setting: Setting) -> list[list[int]]:
    """Token ids of the prompts that the chat template accepts."""
    path = setting.run_dir / "probes.jsonl"
    lines = read_lines(path, PromptLine) if path.is_file() else []
    return list(accepted_token_ids(setting.tokenizer, [line.messages for line in lines]).values())


def reference_of(setting: Setting, policy: PreTrainedModel | PeftModel) -> Opened:
    """The reference beside the trained policy: the adapter switched off where it was fresh, else loaded once more."""
    if isinstance(policy, PeftModel) and setting.job.reference.adapter_dir is None:
        return on_policy.without_adapter(policy)
    return on_policy.as_it_is(loading.load_policy(setting.job.reference, setting.compute))


def first_of(setting: Setting) -> Opened:
    """The project's first SFT snapshot, loaded when it is first needed."""
    loaded: list[PreTrainedModel | PeftModel] = []

    @contextmanager
    def opened() -> Iterator[PreTrainedModel | PeftModel]:
        if not loaded:
            assert setting.job.first is not None
            loaded.append(loading.load_policy(setting.job.first, setting.compute))
        yield loaded[0]

    return opened
