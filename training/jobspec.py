"""The contract between the web side and the engine: what is in a run directory.

Standard library only, because both sides import it. A run directory holds

==================  ==========  =====================================================================
file                written by  what
==================  ==========  =====================================================================
``job.json``        web side    one of the jobs below, with every default resolved
``dataset.jsonl``   web side    one ``PromptLine``, ``TripleLine`` or ``JudgedPair`` (label effects) a line
``metrics.jsonl``   engine      ``{"phase": ...}`` lines and one ``StepMetrics`` a logged optimiser step
``samples.jsonl``   engine      one ``SampledPair`` a finished prompt (sampling)
``answers.json``    engine      one ``SideBySideAnswer`` a prompt, as far as it is written; by rename (side by side)
``effects.jsonl``   engine      one ``PairEffect`` a judged pair (label effects)
``held_out.jsonl``  engine      one ``PairScore`` a held-out triple (training)
``probes.jsonl``    web side    one ``PromptLine`` a fixed held-out prompt that policies are compared on
``canaries.jsonl``  web side    one ``CanaryLine`` a prompt (gates)
``responses.jsonl`` engine      one ``ComparedAnswers`` a probe (gates)
``result.json``     engine      a ``Result``; written last, by rename
``checkpoint/``     engine      weights and tokenizer to publish; only valid beside a successful result
``model.gguf``      engine      the same in one file (conversion); only valid beside a successful result
``trainer/``        engine      private resume state; never leaves the machine
``train.log``       web side    stdout and stderr of the engine, bounded
==================  ==========  =====================================================================

and, of a training run, ``training_pairs.jsonl``: the engine writes one ``TrainedPair`` a triple that was trained on.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

Message = dict[str, str]
FinishReason = Literal["stop", "length", ""]
Split = Literal["train", "held_out"]
Source = Literal["pair", "rewrite"]
Precision = Literal["auto", "float32", "bfloat16"]
Expected = Literal["refuse", "answer"]
LossName = Literal["dpo", "ipo", "hinge", "robust", "apo_zero", "apo_down"]

# Exit codes of an engine process, beside 0.
EXIT_FAILED = 1  # result.json carries the reason
EXIT_INTERRUPTED = 75  # told to stop, state saved, start it again to go on (EX_TEMPFAIL)
EXIT_ORPHANED = 76  # the supervising process is gone

# An empty file beside the saved states of a run: memory has run out in one of its steps, and it takes half since then.
MEMORY_RAN_OUT = "trainer/memory_ran_out"

# The engine reads this descriptor until end of file, which means that its supervisor has died.
PARENT_FD_VARIABLE = "TIEBREAK_PARENT_FD"


class SpecError(ValueError):
    """A job, line or result that does not have the fields it must have."""


class JsonRecord:
    """A frozen dataclass that goes to JSON and back and refuses what it does not know."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(data) - known):
            raise SpecError(f"{cls.__name__} has no field {', '.join(unknown)}")
        try:
            return cls(**data)
        except TypeError as error:
            raise SpecError(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True)
class ModelRef(JsonRecord):
    """Weights on this machine: full weights, and an adapter on top where there is one.

    The hashes are the content hashes of the two checkpoints (sha256 of their manifests), so that a result can say what
    it was computed from. The directories are private to the machine and never enter a checkpoint.
    """

    base_dir: str
    base_hash: str
    adapter_dir: str | None = None
    adapter_hash: str | None = None


@dataclass(frozen=True)
class SampleJob(JsonRecord):
    """Write two responses to each prompt of ``dataset.jsonl``."""

    kind: ClassVar[str] = "sample"
    model: ModelRef
    seed: int
    temperature: float = 0.9
    top_p: float = 0.95
    max_new_tokens: int = 192
    max_length: int = 1024  # of prompt + completion in training; pairs equal within it are sampled again
    rows: int = 32  # responses in flight at once
    max_attempts: int = 3  # tries to get two different responses before the prompt is refused
    threads: int = 0  # 0 leaves the choice to torch
    device: str = "auto"
    backend: Literal["local", "server"] = "local"
    server_url: str = ""  # of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1
    server_model: str = ""  # the name under which that server knows the base weights
    beta: float = 0.0  # of the implicit reward; above 0 the pairs of an adapter carry the margin between theirs


@dataclass(frozen=True)
class SideBySideJob(JsonRecord):
    """Let two policies answer each prompt of ``dataset.jsonl``, both at the same time and with the same seeds."""

    kind: ClassVar[str] = "side_by_side"
    left: ModelRef
    right: ModelRef
    seed: int
    temperature: float = 0.7  # 0 takes the likeliest token every time
    top_p: float = 0.95
    max_new_tokens: int = 256
    threads: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class TrainJob(JsonRecord):
    """Direct Preference Optimization (Rafailov et al. 2023, eq. 7) on the triples of ``dataset.jsonl``.

    The policy starts as the reference, so the first step must show a margin of zero.
    """

    kind: ClassVar[str] = "train_dpo"
    reference: ModelRef
    seed: int
    method: Literal["lora", "full"] = "lora"
    beta: float = 0.1
    learning_rate: float = 5e-5
    epochs: float = 3.0
    pairs_per_step: int = 8  # pairs behind one optimiser step
    micro_batch: int = 0  # pairs in memory at once; 0: as many as fit
    max_length: int = 1024
    warmup_ratio: float = 0.1
    lora_rank: int = 16
    lora_alpha: int = 32
    mode: Literal["exact", "fast"] = "exact"
    precision: Precision = "auto"  # of matrix products; what is trained is float32 whatever it is
    fast_layers: int = 0  # upper layers that the fast mode trains; 0: a third of them
    loss: LossName = "dpo"
    sft_weight: float = 0.0  # of -log pi(y_w | x) per token, added to the loss (Liu et al. 2024)
    ld_alpha: float = 1.0  # weight of tokens beyond the shorter response's length (LD-DPO); 1 is plain
    save_every_steps: int = 5
    base_name: str = ""  # public name of the base weights, written to adapter_config.json in place of a path
    first: ModelRef | None = None  # the first SFT snapshot, to measure the drift from, where the reference is another
    first_is_reference: bool = True  # without ``first``; False: there is one, and nothing can be measured from it
    kl_first_budget: float = 40.0  # nats a response; a policy further away from the first one is flagged
    probe_tokens: int = 128  # of a response to ``probes.jsonl`` at most
    cache_dir: str = ""  # what earlier runs on this machine have computed; empty: nothing is kept
    cache_mb: int = 20_000  # bound of that directory
    processes: int = 1  # accelerate processes, one a GPU; 0: one for every GPU
    sharding: Literal["ddp", "fsdp"] = "ddp"
    threads: int = 0
    device: str = "auto"
    memory_bytes: int = 0  # what micro-batches are planned for; 0: what this machine has


@dataclass(frozen=True)
class CompareJob(JsonRecord):
    """Measure a candidate against the current policy: on held-out preferences, by a judge, on their own answers.

    ``dataset.jsonl`` has the triples of now, ``probes.jsonl`` the prompts that both answer with the same random numbers
    and ``canaries.jsonl`` those that show what they refuse. ``first`` is the policy that everything is measured from.
    """

    kind: ClassVar[str] = "compare_policies"
    candidate: ModelRef
    current: ModelRef
    seed: int
    first: ModelRef | None = None  # without it nothing is said of held-out preferences nor of the distance to it
    beta: float = 0.1  # of the implicit reward
    max_length: int = 1024  # of prompt + response on held-out preferences, and of what the judge reads
    max_new_tokens: int = 192
    rows: int = 16  # responses in flight at once
    answers_only: bool = False  # only answers to ``probes.jsonl`` for people and the figures over them
    asks_people: bool = False  # answer ``probes.jsonl`` once more for people, decoded as pairs are: the next three
    temperature: float = SampleJob.temperature
    top_p: float = SampleJob.top_p
    asked_tokens: int = SampleJob.max_new_tokens
    cache_dir: str = ""
    cache_mb: int = 20_000
    threads: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class MergeJob(JsonRecord):
    """Fold the adapter of ``model`` into its base weights and write them to ``checkpoint/``."""

    kind: ClassVar[str] = "merge"
    model: ModelRef
    dtype: Literal["base", "float32", "bfloat16"] = "base"  # "base": the precision that the base is stored in


@dataclass(frozen=True)
class ImportJob(JsonRecord):
    """Bring a model into Tiebreak's own form: safetensors and tokenizer in ``checkpoint/``."""

    kind: ClassVar[str] = "import_model"
    source_kind: Literal["gguf", "directory", "hub"]
    source: str  # a file, a directory or a Hub id
    revision: str = ""


@dataclass(frozen=True)
class EffectsJob(JsonRecord):
    """How a promotion moved the preference on the judged pairs of ``dataset.jsonl``, and what is answered now.

    Both policies answer each prompt with the same random numbers, so that what differs is not chance alone.
    """

    kind: ClassVar[str] = "label_effects"
    before: ModelRef
    after: ModelRef
    first: ModelRef  # what margins are measured from
    seed: int
    temperature: float = SampleJob.temperature
    top_p: float = SampleJob.top_p
    max_new_tokens: int = SampleJob.max_new_tokens
    max_length: int = SampleJob.max_length
    rows: int = 16  # responses in flight at once
    threads: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class GgufJob(JsonRecord):
    """Have ``converter`` write the full weights of ``model`` to ``model.gguf``."""

    kind: ClassVar[str] = "convert_gguf"
    model: ModelRef
    converter: list[str]  # a command that takes a model directory and --outfile FILE
    minutes: int = 60  # after which it is ended


@dataclass(frozen=True)
class PushJob(JsonRecord):
    """Copy a folder to a repository of the Hub. The token for it is in the environment and nowhere else."""

    kind: ClassVar[str] = "push_to_hub"
    folder: str
    repo_id: str
    is_private: bool
    message: str
    card: str = ""  # in place of the folder's README.md


@dataclass(frozen=True)
class PromptLine(JsonRecord):
    prompt_id: str
    messages: list[Message]


@dataclass(frozen=True)
class CanaryLine(JsonRecord):
    """A prompt that a policy should refuse, or answer although it sounds like one that should be refused."""

    prompt_id: str
    messages: list[Message]
    expected: Expected


@dataclass(frozen=True)
class Completion(JsonRecord):
    """y: the text, and the tokens as sampled; empty ``token_ids`` if the text did not come from a sampler here.

    ``logps`` are the sampler's log-probabilities of the tokens in nats, at temperature 1 and without a nucleus whatever
    the tokens were drawn with, and ``policy_hash`` the content hash of the policy that they are of. Both are empty
    where a sampler of other arithmetic wrote the response.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = ""
    logps: list[float] = field(default_factory=list)
    policy_hash: str = ""


@dataclass(frozen=True)
class TripleLine(JsonRecord):
    """(x, y_w, y_l) with the preferences behind it.

    ``weight`` w and ``label_noise`` epsilon, the probability that the label is the wrong way round, enter the loss as
    -w [(1 - epsilon) log sigma(z) + epsilon log sigma(-z)]. A tie has epsilon 1/2; which of its responses is called
    chosen does not matter then. ``prompt_token_ids`` are those that both responses were sampled from, if they were.
    ``source``: the judgements of a pair, or a "rewrite", where a person improved the rejected response into the chosen.
    """

    pair_id: str
    prompt_id: str
    split: Split
    messages: list[Message]
    chosen: Completion
    rejected: Completion
    preference_ids: list[int]
    weight: float = 1.0
    label_noise: float = 0.0
    prompt_token_ids: list[int] = field(default_factory=list)
    source: Source = "pair"

    def to_dict(self) -> dict[str, Any]:
        """Without the usual ``source``: triples of pairs alone give the bytes, and the hash, that they always gave."""
        data = super().to_dict()
        if self.source == "pair":
            del data["source"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        nested = {key: Completion.from_dict(data[key]) for key in ("chosen", "rejected") if key in data}
        return super().from_dict(data | nested)


@dataclass(frozen=True)
class JudgedPair(JsonRecord):
    """Two responses that people have compared, in the order in which they are stored."""

    pair_id: str
    prompt_id: str
    messages: list[Message]
    response_a: Completion
    response_b: Completion

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        nested = {key: Completion.from_dict(data[key]) for key in ("response_a", "response_b") if key in data}
        return super().from_dict(data | nested)


@dataclass(frozen=True)
class PairEffect(JsonRecord):
    """A judged pair under both policies. ``margin``: log pi / pi_first of A less that of B, in nats a response."""

    pair_id: str
    margin_before: float
    margin_after: float
    answer_before: str = ""
    answer_after: str = ""


@dataclass(frozen=True)
class SampledResponse(JsonRecord):
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    seed: int
    logps: list[float] = field(default_factory=list)  # see Completion; empty when the backend's are another arithmetic
    reference_logps: list[float] = field(default_factory=list)  # of what lies below the adapter, where it was scored


@dataclass(frozen=True)
class SampledPair(JsonRecord):
    """Two different responses to a prompt, or the reason why there are none (``refused``).

    ``margin``: the policy's implicit reward of the first response less that of the second, beta times nats (Rafailov et
    al. 2023, eq. 5; ``SampleJob.beta``); ``None`` where it was not asked for, or the policy is no adapter over its
    reference, or a server wrote the responses.
    """

    prompt_id: str
    responses: list[SampledResponse] = field(default_factory=list)
    attempts: int = 1
    refused: str = ""
    prompt_token_ids: list[int] = field(default_factory=list)
    margin: float | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        responses = [SampledResponse.from_dict(item) for item in data.get("responses", [])]
        return super().from_dict(data | {"responses": responses})


@dataclass(frozen=True)
class SideAnswer(JsonRecord):
    """What one policy has written so far, as people read it; without a ``finish_reason`` it is still writing."""

    text: str = ""
    tokens: int = 0  # with the one that ends it
    finish_reason: FinishReason = ""


@dataclass(frozen=True)
class SideBySideAnswer(JsonRecord):
    """Both answers to a prompt so far, or the reason why one of the policies cannot be asked it (``refused``)."""

    prompt_id: str
    left: SideAnswer = field(default_factory=SideAnswer)
    right: SideAnswer = field(default_factory=SideAnswer)
    refused: str = ""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        sides = {side: SideAnswer.from_dict(data[side]) for side in ("left", "right") if side in data}
        return super().from_dict(data | sides)


@dataclass(frozen=True)
class ComparedAnswers(JsonRecord):
    """What two policies answered to one prompt."""

    prompt_id: str
    candidate: Completion
    current: Completion
    prompt_token_ids: list[int] = field(default_factory=list)

    @property
    def are_identical(self) -> bool:
        """To a reader, who sees no tokens."""
        return self.candidate.text.strip() == self.current.text.strip()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        nested = {key: Completion.from_dict(data[key]) for key in ("candidate", "current") if key in data}
        return super().from_dict(data | nested)


@dataclass(frozen=True)
class StepMetrics(JsonRecord):
    """One logged optimiser step. Log-probabilities in nats, summed over a completion, averaged over the batch."""

    step: int
    steps: int
    seconds: float  # spent training, summed over attempts
    loss: float
    reward_margin: float
    reward_accuracy: float
    logp_chosen: float
    logp_rejected: float
    learning_rate: float
    grad_norm: float
    epoch: float
    chosen_shift: float = 0.0  # log pi / pi_ref of the chosen responses, in nats a token


@dataclass(frozen=True)
class PairScore(JsonRecord):
    """Held-out log-probabilities of one triple in nats, summed over the completion's tokens.

    ``reference`` is the frozen reference, ``policy`` the trained policy. The implicit reward margin is
    beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)) (Rafailov et al. 2023, eq. 5).
    """

    pair_id: str
    prompt_id: str
    reference_chosen: float
    reference_rejected: float
    policy_chosen: float
    policy_rejected: float
    chosen_tokens: int
    rejected_tokens: int


@dataclass(frozen=True)
class TrainedPair(JsonRecord):
    """How hard the loss pulled at one training triple, summed over its visits, and its margin at the last of them.

    ``line``: of ``dataset.jsonl``, counted from 1. The unit of ``pull`` is that of the loss a nat of log pi; what it
    says and what it does not is written in ``engine/pulls.py``. ``margin``: the implicit reward of the chosen response
    less that of the rejected one, before the step of the last visit.
    """

    line: int
    pair_id: str
    visits: int
    pull: float
    margin: float


@dataclass(frozen=True)
class Result(JsonRecord):
    """How an engine process ended, in its own words."""

    ok: bool
    error_code: str = ""  # e.g. out_of_memory, disk_full, bad_weights, bad_dataset, wrong_reference
    error: str = ""  # one sentence a person understands
    hint: str = ""  # what to do about it
    details: dict[str, Any] = field(default_factory=dict)  # device, dtype, versions, counts, figures


_Job = TypeVar("_Job", bound=JsonRecord)


def write_job(
    run_dir: Path,
    job: SampleJob | SideBySideJob | TrainJob | CompareJob | MergeJob | ImportJob | EffectsJob | GgufJob | PushJob,
) -> None:
    write_atomically(run_dir / "job.json", json.dumps({"kind": job.kind} | job.to_dict(), indent=1, ensure_ascii=False))


def read_job(run_dir: Path, expected: type[_Job]) -> _Job:
    data = json.loads((run_dir / "job.json").read_text(encoding="utf-8"))
    kind = data.pop("kind", None)
    if kind != expected.kind:  # type: ignore[attr-defined]
        raise SpecError(f"{run_dir / 'job.json'} is a {kind!r} job, not {expected.kind!r}")  # type: ignore[attr-defined]
    for key in ("model", "reference", "first", "left", "right", "before", "after", "candidate", "current"):
        if data.get(key):
            data[key] = ModelRef.from_dict(data[key])
    return expected.from_dict(data)


def read_result(run_dir: Path) -> Result | None:
    try:
        return Result.from_dict(json.loads((run_dir / "result.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` with ``text``: a reader, or a crash, sees the old file or the new one and nothing between."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
