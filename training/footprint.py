"""How much memory a training run needs, counted before it starts. Standard library only, because both sides import it.

What is counted is what autograd keeps for a decoder block in the way transformers writes it (RMSNorm, grouped-query
attention by scaled_dot_product_attention under a mask, gated MLP) with a LoRA adapter on every linear layer: the inputs
of the norms, of the linear layers and of the products between them. Counted with ``saved_tensors_hooks`` on
SmolLM2-135M, a block keeps exactly the number of values that ``values_kept`` gives. All sizes are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

Method = Literal["lora", "full"]
Mode = Literal["exact", "fast"]

FLOAT = 4
ADAM = 2 * FLOAT  # two moments of every trained value
OVERHEAD = 600 * 10**6  # Python, torch, transformers and their libraries
# Resident bytes over kept bytes, on a CPU with glibc: blocks freed in between stay in its heap. Measured 2.4 on
# SmolLM2-135M in float32, LoRA of rank 16, 1 to 4 pairs of 384 tokens; peaks of 2.8, 4.5 and 7.7 GB of an earlier
# trainer at 1, 2 and 4 pairs of 512 tokens agree.
ACTIVATION_FACTOR = 2.4
HEAD_ROWS = 256  # completion tokens whose logits are there at once; the product is at its fastest from here on
HEAD_COPIES = 3  # logits, and what a cap, a scale or another precision makes of them
SHARE = 0.7  # of the limit, that the planned micro-batch may take
LAST_SHARE = 0.9  # of the limit, that a single pair with checkpointing may take before the run is refused
# Tokens in memory at once from which a larger micro-batch gains nothing: the matrix products of a CPU are at their
# fastest from some hundreds of rows on, and what is in memory for longer leaves its caches.
MOST_TOKENS = {"cpu": 1024, "cuda": 16_384}
UNKNOWN = 2**40  # limit where nothing can be read, so that nothing is refused


# Model types whose MLP has an up and a down projection only.
UNGATED = {"gpt2", "gpt_neox", "phi", "starcoder2", "falcon"}


class ShapeError(ValueError):
    """A ``config.json`` that does not say how large its model is."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only transformer."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    gated: bool = True  # gate, up and down projections (Llama), rather than two (GPT-2)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read a model's ``config.json``, under Llama's names or GPT-2's; ``ShapeError`` names what is missing."""
        tied = config.get("tie_word_embeddings")
        text = config.get("text_config")
        config = text if isinstance(text, dict) else config
        # transformers ties where the config is silent, and writes the flag to the outer config of a nested one.
        tied = config.get("tie_word_embeddings", True if tied is None else tied)
        hidden = _size(config, "hidden_size", "n_embd")
        heads = _size(config, "num_attention_heads", "n_head")
        gated = config.get("model_type") not in UNGATED and "n_embd" not in config
        return cls(
            layers=_size(config, "num_hidden_layers", "n_layer"),
            hidden=hidden,
            intermediate=_size(
                config, "intermediate_size", "n_inner", "ffn_hidden_size", default=0 if gated else 4 * hidden
            ),
            heads=heads,
            kv_heads=_size(config, "num_key_value_heads", default=heads),
            head_dim=_size(config, "head_dim", default=hidden // heads),
            vocab=_size(config, "vocab_size"),
            tied=bool(tied),
            gated=gated,
        )

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim


def _size(config: dict[str, Any], *names: str, default: int = 0) -> int:
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShapeError(f"The model's config.json has no usable {' or '.join(names)}.")
    return value


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training run, by what needs them."""

    weights: int
    optimizer: int  # gradients and moments of what is trained, and the adapter itself
    activations: int
    head: int
    overhead: int
    products: int = 0  # W + s B A beside W
    beside: int = 0  # models that the policy is compared with, loaded when training is done
    shared_by: int = 1  # processes that FSDP shares the model out over while they train
    gathered: int = 0  # of what is shared out, the part that each process holds at one time

    @property
    def training(self) -> int:
        shared = self.weights + self.optimizer + self.products
        return -(-shared // self.shared_by) + self.gathered + self.activations + self.head + self.overhead

    @property
    def comparing(self) -> int:
        """Of the first process. What was shared out, it loads once more as a whole, as each did at the start."""
        again = self.weights if self.shared_by > 1 else 0
        return -(-(self.weights + self.optimizer) // self.shared_by) + again + self.beside + self.overhead

    @property
    def total(self) -> int:
        """The most at any time."""
        return max(self.training, self.comparing)


def parameters(shape: Shape) -> int:
    """Weights of the model without biases and learned positions, which are below one in a hundred."""
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    return embeddings + shape.layers * layer_parameters(shape) + shape.hidden


def layer_parameters(shape: Shape) -> int:
    """Weights of one block: its linear layers and two norms."""
    return linear_parameters(shape) + 2 * shape.hidden


def linear_parameters(shape: Shape) -> int:
    """Weights of the linear layers of one block."""
    return sum(inputs * outputs for inputs, outputs in _linears(shape))


def adapter_parameters(shape: Shape, rank: int, layers: int) -> int:
    """Weights of a LoRA adapter on every linear layer of ``layers`` blocks (Hu et al. 2022): r (inputs + outputs)."""
    return layers * rank * sum(inputs + outputs for inputs, outputs in _linears(shape))


def _linears(shape: Shape) -> list[tuple[int, int]]:
    hidden, query, key, inner = shape.hidden, shape.query_width, shape.key_width, shape.intermediate
    attention = [(hidden, query), (hidden, key), (hidden, key), (query, hidden)]
    mlp = [(hidden, inner)] * (2 if shape.gated else 1) + [(inner, hidden)]
    return attention + mlp


def layers_trained(shape: Shape, mode: Mode, fast_layers: int = 0) -> int:
    """Blocks that are trained: all, or in the fast mode the upper ``fast_layers``; 0 is a third of them."""
    if mode == "exact":
        return shape.layers
    return min(shape.layers, fast_layers or max(1, shape.layers // 3))


def values_kept(shape: Shape, *, method: Method, lora_rank: int, tokens: int) -> int:
    """Values that autograd keeps in one block for one token of a row of ``tokens``."""
    norms = 4 * shape.hidden  # inputs and outputs of both norms
    if method == "full":
        norms += 2 * shape.hidden  # a trained norm also needs what it scales
    attention = 4 * shape.query_width  # q, k and v (repeated to q's width under a mask), and the output
    attention += shape.heads + tokens  # its normalisers, and the token's row of the mask
    # Gate, silu(gate), up and their product; without a gate the steps of gelu.
    mlp = (4 if shape.gated else 5) * shape.intermediate
    lora = len(_linears(shape)) * lora_rank if method == "lora" else 0
    return norms + 2 + attention + mlp + lora  # 2: a root mean square for each norm


def estimate(
    shape: Shape,
    *,
    method: Method,
    mode: Mode,
    lora_rank: int,
    tokens: int,
    completion_tokens: int,
    pairs: int,
    checkpointing: bool,
    bytes_per_weight: int,
    trained_layers: int,
    models_beside: int = 0,
    shared_by: int = 1,
) -> Footprint:
    """The footprint of a training step on ``pairs`` pairs at once.

    ``tokens``: of the longest pair, packed: its prompt once, then both completions. ``completion_tokens``: of both its
    completions. ``bytes_per_weight``: of the weights below an adapter; full fine-tuning holds all in float32.
    ``trained_layers``: see ``layers_trained``. ``models_beside``: see ``models_compared``. ``shared_by``: processes
    that FSDP shares weights and optimiser state out over, 1 without. Activations are counted in float32, which is an
    upper bound under bfloat16 autocast.
    """
    weights, optimizer = _weights(shape, method, mode, lora_rank, trained_layers, bytes_per_weight)
    values = values_kept(shape, method=method, lora_rank=lora_rank, tokens=tokens)
    # Gradients are there for one block at a time. With checkpointing its values are too, and of the others the input.
    values = trained_layers * shape.hidden + 2 * values if checkpointing else (trained_layers + 1) * values
    logits = HEAD_ROWS * shape.vocab * HEAD_COPIES
    completions = pairs * completion_tokens * shape.hidden * 2  # the rows that the head reads, and their gradients
    return Footprint(
        weights=weights,
        optimizer=optimizer,
        activations=round(ACTIVATION_FACTOR * pairs * tokens * values * FLOAT),
        head=(logits + completions) * FLOAT,
        overhead=OVERHEAD,
        beside=models_beside * parameters(shape) * bytes_per_weight,
        shared_by=shared_by,
        gathered=_gathered(shape, method, weights) if shared_by > 1 else 0,
    )


def _gathered(shape: Shape, method: Method, weights: int) -> int:
    """One block and the next, the embeddings and the output head; with full fine-tuning their gradients as well."""
    held = shape.vocab * shape.hidden * (1 if shape.tied else 2) + 2 * layer_parameters(shape)
    bytes_each = weights // parameters(shape) + (FLOAT if method == "full" else 0)
    return held * bytes_each


def _weights(
    shape: Shape, method: Method, mode: Mode, lora_rank: int, layers: int, bytes_per_weight: int
) -> tuple[int, int]:
    """Bytes of the model's weights, and of gradients, moments and adapter.

    LoRA: frozen weights, and 16 bytes a value of the adapter (value, gradient, two moments). Full fine-tuning: 4 bytes
    a weight, and 12 a trained one. The fast mode trains the upper blocks only.
    """
    total = parameters(shape)
    if method == "lora":
        adapter = adapter_parameters(shape, lora_rank, layers)
        return total * bytes_per_weight, adapter * (2 * FLOAT + ADAM)
    trained = total if mode == "exact" else layers * layer_parameters(shape)
    return total * FLOAT, trained * (FLOAT + ADAM)


def choose(
    shape: Shape,
    *,
    method: Method,
    mode: Mode,
    lora_rank: int,
    tokens: int,
    completion_tokens: int,
    bytes_per_weight: int,
    trained_layers: int,
    pairs_per_step: int,
    limit_bytes: int,
    most_tokens: int,
    models_beside: int = 0,
    shared_by: int = 1,
) -> tuple[int, bool] | None:
    """(pairs at once, checkpointing): what ``SHARE`` of the limit holds; else one with checkpointing; else ``None``.

    Never more than a step's pairs, nor more than ``most_tokens`` tokens unless a single pair has more; ``MOST_TOKENS``
    has those of a device.
    """

    def needs(pairs: int, *, checkpointing: bool) -> Footprint:
        return estimate(
            shape,
            method=method,
            mode=mode,
            lora_rank=lora_rank,
            tokens=tokens,
            completion_tokens=completion_tokens,
            pairs=pairs,
            checkpointing=checkpointing,
            bytes_per_weight=bytes_per_weight,
            trained_layers=trained_layers,
            models_beside=models_beside,
            shared_by=shared_by,
        )

    least = needs(1, checkpointing=True)
    if least.total > LAST_SHARE * limit_bytes:
        return None
    most = max(1, min(pairs_per_step, most_tokens // tokens))
    none, one = needs(0, checkpointing=False).training, needs(1, checkpointing=False).training
    fitting = int((SHARE * limit_bytes - none) // (one - none))  # every pair adds the same
    return (min(most, fitting), False) if fitting >= 1 else (1, True)


def models_compared(method: Method, *, on_adapter: bool, has_first: bool) -> int:
    """Models beside the policy when what it writes is compared with what others would.

    A fresh adapter is switched off to have the reference; another one, or full weights, need the reference once more.
    The project's first policy is one more, where it is not the reference.
    """
    return int(method == "full" or on_adapter) + int(has_first)


@dataclass(frozen=True)
class Plan:
    """How much of a step is in memory at once. ``merge``: hold the products W + s B A beside W."""

    tokens: int
    pairs: int  # like the longest
    checkpointing: bool
    merge: bool
    expected: Footprint


def plan(
    shape: Shape, *, micro_batch: int, pairs_per_step: int, limit_bytes: int, device: str, **sizes: Any
) -> Plan | None:
    """What a run on ``device`` ("cpu" or "cuda") does; ``None`` where not one pair fits. ``sizes``: as of ``estimate``.

    ``micro_batch``: pairs at once, if somebody asked; 0 for as many as fit and gain anything.
    """
    at_once = micro_batch or pairs_per_step
    chosen = choose(shape, **sizes, pairs_per_step=at_once, limit_bytes=limit_bytes, most_tokens=UNKNOWN)
    if chosen is None:
        return None
    pairs, checkpointing = chosen
    longest = sizes["tokens"]
    tokens = pairs * longest
    if not micro_batch:
        tokens = max(longest, min(tokens, MOST_TOKENS[device]))
    expected = estimate(shape, **sizes, pairs=-(-tokens // longest), checkpointing=checkpointing)
    merge = False
    if sizes["method"] == "lora" and device == "cpu" and sizes["bytes_per_weight"] == FLOAT and not checkpointing:
        merged = replace(expected, products=sizes["trained_layers"] * linear_parameters(shape) * FLOAT)
        merge = merged.total <= SHARE * limit_bytes
        expected = merged if merge else expected
    return Plan(tokens, tokens // longest, checkpointing, merge, expected)


def machine_memory(root: Path = Path("/")) -> int | None:
    """Bytes of this machine, or of the container that this process runs in; ``None`` where there is no /proc."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        known = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        total = known["MemTotal"]
    except (OSError, KeyError, ValueError, IndexError):
        return None
    return min([total, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """Of every control group that this process is in and that has one."""
    found = []
    for path in _limit_files(root):
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return found


def _limit_files(root: Path) -> list[Path]:
    """Where version 2 of control groups, and version 1, keep limits; the group itself and those that it is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    found = []
    for line in [*lines, "0::/", "0:memory:/"]:  # inside a container its own group is often mounted as the root
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = mount / path.strip("/")
        found += [group / name for group in (own, *own.parents) if group == mount or mount in group.parents]
    return list(dict.fromkeys(found))
