"""A training run from its directory to a checkpoint: read, measure, train, score the held-out pairs, measure, write."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from training.engine import (
    checkpoint,
    comparison,
    dpo_trainer,
    evaluation,
    frozen_layers,
    guards,
    limits,
    loading,
    lora_products,
    losses,
    memory,
    process,
    ranks,
    reference,
    reference_logps,
    resume,
    scoring,
    step_plan,
)
from training.engine import compute as compute_module
from training.engine.arrangement import packed_tokens
from training.engine.cache import Cache
from training.engine.chat import context_length, turn_end_id
from training.engine.compute import Compute
from training.engine.dpo_trainer import Course, Example, PairTrainer
from training.engine.errors import EngineError
from training.engine.frozen_layers import FrozenLayers
from training.engine.guards import TrainingGuard
from training.engine.journal import MetricsJournal, say
from training.engine.losses import LossSettings
from training.engine.preference_data import TokenTriple, read_preferences
from training.engine.pulls import PullRecord
from training.engine.reference import Start
from training.engine.reference_logps import Pair, ReferenceLogps
from training.engine.scoring import Scorer
from training.engine.setting import Setting
from training.engine.step_record import StepRecorder
from training.jobspec import MEMORY_RAN_OUT, PairScore, TrainJob, write_atomically

TOLD_LEFT_OUT = 100  # left-out pairs named one by one in the result


def train(run_dir: Path, job: TrainJob) -> dict[str, Any]:
    """Do ``job``, going on from the newest whole state in ``trainer/``. Returns the details of the result.

    Raises ``EngineError``, and ``Interrupted`` once the state is saved.
    """
    check(job)
    metrics = ranks.journal(run_dir)
    metrics.phase("loading model")
    with closing(frozen_layers.open_cache(cache_dir(run_dir, job), job.cache_mb)) as states:
        return train_in(prepare(run_dir, job, metrics, states))


def train_in(setting: Setting) -> dict[str, Any]:
    job, data = setting.job, setting.data
    with ranks.first_goes_first():  # it removes what is torn
        state = resume.last_state(
            setting.run_dir / "trainer", resume.job_identity(setting.run_dir, setting.compute.name)
        )
    values, counts = read_reference(setting)
    before = compare_before(setting) if ranks.is_first() else {}
    process.give_back_freed_memory()  # of the phases before, which the heap keeps otherwise
    trainer, recorder = build_trainer(setting, values[: len(data.train)])
    done = resume.step_of(state) if state else 0
    recorder.go_on_from(setting.metrics.rewind(done))
    trainer.course.pulls.rewind(done)
    setting.metrics.phase("training", memory=setting.plan.describe())
    with process.stop.deferred():
        dpo_trainer.run(trainer, state)
    process.give_back_freed_memory()  # which the heap keeps otherwise, whatever is loaded beside the policy next
    policy = whole_model(setting, trainer)
    check_trained(policy)
    ranks.leave()
    if not ranks.is_first():
        return {}

    trainer.course.pulls.tell(data.train)
    scores = score_held_out(setting, policy, values[len(data.train) :])
    held_out = evaluation.summarise(scores, job.beta, train_lengths(data.train))
    on_policy = comparison.after(setting, policy, before)
    lower = setting.scorer.lower
    counts.damaged += lower.cache.damaged if lower else 0
    setting.metrics.phase("writing checkpoint")
    checkpoint.publish(setting.run_dir, lambda folder: write_policy(folder, policy, setting.tokenizer, job))
    return describe(setting, trainer, recorder) | {
        "held_out": held_out,
        "on_policy": on_policy,
        "flags": guards.flags(held_out, on_policy, recorder.last, recorder.guard.chosen_shift, job.kl_first_budget),
        "reference_logps": vars(counts),
        "lower_forwards": lower.computed if lower else 0,
    }


def check(job: TrainJob) -> None:
    if job.method not in {"lora", "full"} or job.mode not in {"exact", "fast"}:
        hint = "Choose lora or full, and exact or fast."
        raise EngineError("bad_job", f"There is no method {job.method!r} in the mode {job.mode!r}.", hint)
    limits.check_numbers(job)
    for directory in filter(None, (job.reference.base_dir, job.reference.adapter_dir)):
        if not Path(directory).is_dir():
            raise EngineError("bad_weights", f"There is no directory {directory}.", loading.IMPORT_AGAIN)
    if job.reference.adapter_dir and not job.reference.adapter_hash:
        raise EngineError("bad_job", "The adapter of the reference has no content hash.", "Publish it again.")
    losses.check_settings(LossSettings.of(job))


def prepare(run_dir: Path, job: TrainJob, metrics: MetricsJournal, states: Cache) -> Setting:
    compute = compute_module.choose(job.device, job.threads, precision_of(job))
    ranks.join(compute)
    tokenizer = loading.load_tokenizer(job.reference.base_dir)
    start = reference.prepare(job, compute)
    max_length = min(job.max_length, context_length(start.plain.config))
    name = reference_logps.policy_hash(job.reference)
    scorer = choose_scorer(job, start, compute, states)
    data = read_preferences(
        run_dir / "dataset.jsonl",
        tokenizer,
        max_length,
        name,
        turn_end=turn_end_id(tokenizer, start.plain.generation_config),
        read_length=memory.read_length(job, start.plain.config, compute, scorer),
    )
    triples = [*data.train, *data.held_out]
    labels = [[triple.weight for triple in triples], [triple.label_noise for triple in triples]]
    losses.check(LossSettings.of(job), *labels, [triple.pair_id for triple in triples])
    share = dataclasses.replace(job, pairs_per_step=-(-job.pairs_per_step // compute_module.processes()))
    plan = memory.plan(share, start.plain.config, triples, compute, scorer)
    return Setting(run_dir, job, compute, metrics, tokenizer, start, data, scorer, plan)


def precision_of(job: TrainJob) -> str:
    """What the job says; on a CPU "auto" is float32, but for a fast adapter bfloat16 where the CPU has it."""
    fast = (job.method, job.mode, job.precision) == ("lora", "fast", "auto")
    if fast and compute_module.has_bfloat16():
        return "bfloat16"
    return job.precision


def choose_scorer(job: TrainJob, start: Start, compute: Compute, states: Cache) -> Scorer:
    scorer = scoring.choose_scorer(start.model, compute)
    scorer = dataclasses.replace(scorer, packed=all(ranks.of_all(scorer.packed)))
    layers = len(frozen_layers.decoder_layers(start.plain)) if job.mode == "fast" else 0
    first = frozen_layers.first_trained(layers, job.fast_layers) if layers else 0
    if not first:
        return scorer
    name = f"{reference_logps.content_hash(job.reference)}, {reference_logps.form_of(job, compute)}"
    lower = FrozenLayers(start.plain, first, name, compute, states)
    return dataclasses.replace(scorer, lower=lower)


def cache_dir(run_dir: Path, job: TrainJob) -> str:
    """Without a cache of the machine a run keeps its own, for as long as its directory is there."""
    return job.cache_dir or str(run_dir / "cache")


def read_reference(setting: Setting) -> tuple[list[Pair], reference_logps.Counts]:
    """The reference's values of the training pairs, then of the held-out ones."""
    setting.metrics.phase("reading reference")
    job, model = setting.job, setting.start.model.eval()
    with closing(reference_logps.open_cache(cache_dir(setting.run_dir, job), job.cache_mb)) as cache:
        source = ReferenceLogps(
            job.reference,
            setting.compute,
            cache,
            reference_logps.scored_with(model, setting.scorer, setting.compute),
            seed=job.seed,
            form=reference_logps.form_of(job, setting.compute),
            lower=setting.scorer.lower,
        )
        triples = [*setting.data.train, *setting.data.held_out]
        values = source.of(ranks.share(triples), setting.metrics.tick("reading reference"))
        source.counts.damaged += cache.damaged
        return ranks.all_shares(values), over_all_processes(source.counts)


def compare_before(setting: Setting) -> dict[str, Any]:
    job = setting.job
    with closing(reference_logps.open_cache(cache_dir(setting.run_dir, job), job.cache_mb)) as cache:
        return comparison.before(setting, cache)


def over_all_processes(counts: reference_logps.Counts) -> reference_logps.Counts:
    everybody = [vars(item).values() for item in ranks.of_all(counts)]
    return reference_logps.Counts(*(sum(column) for column in zip(*everybody, strict=True)))


def build_trainer(setting: Setting, values: Sequence[Pair]) -> tuple[PairTrainer, StepRecorder]:
    job, train = setting.job, setting.data.train
    plan = step_plan.plan_steps(len(train), job.pairs_per_step, job.epochs, job.seed, compute_module.processes())
    examples = [Example(*row, place) for place, row in enumerate(zip(train, values, strict=True))]
    guard = TrainingGuard.of(setting.compute.dtype, job.loss)
    room = memory.remembered_room(setting.run_dir / "trainer") or setting.plan.room
    pulls = PullRecord(setting.run_dir)
    course = Course(examples, plan, setting.scorer, LossSettings.of(job), room, guard, pulls)
    an_epoch = step_plan.plan_steps(len(train), job.pairs_per_step, 1.0, job.seed, compute_module.processes())
    recorder = StepRecorder(setting.metrics, guard, steps_per_epoch=len(an_epoch))
    trainer = PairTrainer(
        course=course,
        model=setting.start.model,
        peft_config=setting.start.peft_config,
        args=dpo_trainer.configuration(
            job,
            setting.compute,
            len(plan),
            setting.run_dir / "trainer",
            checkpointing=room.checkpointing,
        ),
        processing_class=setting.tokenizer,
        callbacks=[pulls, recorder],  # in this order: a state is sealed when what belongs to it is on the disk
    )
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has it all
    make_lean(trainer, setting)
    if (setting.run_dir / MEMORY_RAN_OUT).exists() and not room.halved:
        say("Memory ran out in an earlier attempt, and the kernel ended it; going on with half the micro-batch.")
        trainer.make_room(range(len(examples)))
    return trainer, recorder


def make_lean(trainer: PairTrainer, setting: Setting) -> None:
    """Take away what only TRL's own step would need, and multiply once where adapter and weights allow it."""
    if not isinstance(trainer.model, PeftModel):
        return
    if "ref" in trainer.model.peft_config:  # a frozen copy of the adapter; the reference's values are known already
        trainer.model.delete_adapter("ref")
    if trainer.is_fsdp_enabled:
        return
    if setting.plan.merge:
        lora_products.merge_products(trainer.model)
    if not setting.compute.on_cuda:
        lora_products.add_products(trainer.model)


def whole_model(setting: Setting, trainer: PairTrainer) -> PreTrainedModel | PeftModel:
    """What was trained. Where FSDP has shared it out, the first process loads it once more and fills in the outcome."""
    if not trainer.is_fsdp_enabled:
        return trainer.model
    trained = {}
    for name, tensor in trainer.model.named_parameters():
        if tensor.requires_grad:
            whole = tensor.full_tensor()  # on every process, or none
            trained[name] = whole.cpu() if ranks.is_first() else whole.new_empty(0)
    if not ranks.is_first():
        return torch.nn.Module()
    start = reference.prepare(setting.job, setting.compute)
    model = start.model if start.peft_config is None else get_peft_model(start.model, start.peft_config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad:
                tensor.copy_(trained.pop(name))
    return model


def check_trained(model: torch.nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if tensor.requires_grad and not torch.isfinite(tensor).all():
            hint = "Lower the learning rate and start a new run."
            raise EngineError("diverged", f"After training the tensor {name} holds NaN or infinite values.", hint)


def score_held_out(setting: Setting, policy: PreTrainedModel | PeftModel, values: Sequence[Pair]) -> list[PairScore]:
    """Log-probabilities under reference and policy of every held-out triple, also written to ``held_out.jsonl``.

    Ties have no winner that a policy could find, so they are not among them.
    """
    known = [(triple, pair) for triple, pair in zip(setting.data.held_out, values, strict=True) if not triple.is_tie]
    score = reference_logps.scored_with(policy.eval(), setting.scorer, setting.compute)
    tick = setting.metrics.tick("scoring held-out pairs")
    scores = []
    for done, (triple, pair) in enumerate(known, start=1):
        scores.append(evaluation.pair_score(triple, pair, score(triple)))
        tick(done, len(known))
    write_atomically(setting.run_dir / "held_out.jsonl", "".join(item.to_json() + "\n" for item in scores))
    return scores


def train_lengths(triples: Sequence[TokenTriple]) -> list[tuple[int, int]]:
    return [(len(triple.chosen_ids), len(triple.rejected_ids)) for triple in triples if not triple.is_tie]


def write_policy(
    directory: Path, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, job: TrainJob
) -> None:
    if isinstance(model, PeftModel):
        checkpoint.write_adapter(directory, model, job.base_name)
        checkpoint.write_tokenizer(directory, tokenizer)
    else:
        reference.restore_dropout(model, job.reference.base_dir)
        checkpoint.write_full(directory, model, tokenizer)


def describe(setting: Setting, trainer: PairTrainer, recorder: StepRecorder) -> dict[str, Any]:
    job, data = setting.job, setting.data
    reasons = [dataclasses.asdict(item) for item in data.left_out[:TOLD_LEFT_OUT]]
    trainable = sum(tensor.numel() for tensor in trainer.model.parameters() if tensor.requires_grad)
    return setting.compute.describe() | {
        "method": job.method,
        "mode": job.mode,
        "loss": job.loss,
        "base_name": job.base_name,
        "seed": job.seed,
        "steps": trainer.state.global_step,
        "seconds": round(recorder.seconds, 3),
        "trainable_parameters": trainable,
        "triples": {"train": len(data.train), "held_out": len(data.held_out), "left_out": len(data.left_out)},
        "ties": sum(triple.is_tie for triple in data.train),
        "retokenised": len(data.retokenised),
        "cut": sum(triple.cut for triple in [*data.train, *data.held_out]),
        "left_out": reasons,
        "left_out_by_split": dict(Counter(item.split for item in data.left_out)),
        "final": recorder.last.to_dict() if recorder.last else {},
        "shared_prompt": setting.scorer.packed,
        "memory": setting.plan.describe() | vars(trainer.course.room),
        "speed": speed(trainer, recorder),
    }


def speed(trainer: PairTrainer, recorder: StepRecorder) -> dict[str, float]:
    """Of training alone: pairs, and positions with each prompt counted once, a second."""
    course = trainer.course
    places = [place for step in course.plan for place in step]
    seconds = max(recorder.seconds, 1e-9)
    tokens = sum(packed_tokens(course.examples[place].triple) for place in places)
    return {"pairs_per_s": round(len(places) / seconds, 4), "tokens_per_s": round(tokens / seconds, 1)}
