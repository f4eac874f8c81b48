"""Two policies in one process. What they have in common is in memory once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel

from training.engine import loading
from training.engine.compute import Compute
from training.engine.on_policy import Opened, as_it_is, without_adapter
from training.jobspec import ModelRef

FIRST, SECOND = "default", "second"  # names of the two adapters; PEFT calls the one it begins with so


def open_both(one: ModelRef, two: ModelRef, compute: Compute) -> tuple[Opened, Opened]:
    """Both, each as the model it is while its context is open. No two contexts may be open at the same time.

    Adapters over the same base, or an adapter and its base, are one model in which adapters are switched.
    """
    adapters = [reference.adapter_dir for reference in (one, two)]
    if one.base_hash != two.base_hash or not any(adapters):
        return as_it_is(loading.load_policy(one, compute)), as_it_is(loading.load_policy(two, compute))
    base = loading.load_base(one, compute.dtype)
    first = next(directory for directory in adapters if directory is not None)
    model = loading.load_adapter(base, first, trainable=False)
    if all(adapters):
        loading.add_adapter(model, str(two.adapter_dir), SECOND)
    model = model.to(compute.device).eval().requires_grad_(False)
    if all(adapters):
        return with_adapter(model, FIRST), with_adapter(model, SECOND)
    opened = as_it_is(model), without_adapter(model)
    return opened if one.adapter_dir else (opened[1], opened[0])


def with_adapter(model: PeftModel, name: str) -> Opened:
    @contextmanager
    def switched_on() -> Iterator[PeftModel]:
        if model.active_adapter != name:
            model.set_adapter(name, inference_mode=True)
        yield model

    return switched_on
