"""A training run from its directory to a checkpoint: load, train, score the held-out pairs, write."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl.trainer.utils import use_adapter

from training.engine import checkpoint, dpo_trainer, evaluation, loading, process, reference, resume
from training.engine import compute as compute_module
from training.engine.chat import context_length
from training.engine.compute import Compute
from training.engine.dpo_trainer import StepRecorder, TokenDPOTrainer
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.engine.preference_data import PreferenceData, TokenTriple, read_preferences
from training.jobspec import PairScore, TrainJob, write_atomically

TOLD_LEFT_OUT = 100  # left-out pairs named one by one in the result
TICK = 16  # held-out pairs between two lines of progress


def train(run_dir: Path, job: TrainJob) -> dict[str, Any]:
    """Do ``job``, going on from the newest whole state in ``trainer/``. Returns the details of the result.

    Raises ``EngineError``, and ``Interrupted`` once the state is saved.
    """
    check(job)
    metrics = MetricsJournal(run_dir)
    metrics.phase("loading model")
    compute = compute_module.choose(job.device, job.threads)
    tokenizer = loading.load_tokenizer(job.reference.base_dir)
    start = reference.prepare(job, compute)
    max_length = min(job.max_length, context_length(start.model.config))
    data = read_preferences(run_dir / "dataset.jsonl", tokenizer, max_length)

    state = resume.last_state(run_dir / "trainer", resume.job_identity(run_dir))
    recorder = StepRecorder(metrics, metrics.rewind(resume.step_of(state) if state else 0))
    trainer = build_trainer(job, compute, start, tokenizer, data.train, run_dir / "trainer", recorder)
    metrics.phase("training")
    with process.stop.deferred():
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    check_trained(trainer.model)

    scores = score_held_out(run_dir, trainer, data.held_out, compute, metrics)
    metrics.phase("writing checkpoint")
    checkpoint.publish(run_dir, lambda directory: write_policy(directory, trainer.model, tokenizer, job))
    return describe(job, compute, trainer, recorder, data) | {"held_out": evaluation.summarise(scores, job.beta)}


def check(job: TrainJob) -> None:
    if job.method not in {"lora", "full"}:
        raise EngineError("bad_job", f"There is no method {job.method!r}.", "Choose lora or full.")
    if min(job.micro_batch, job.pairs_per_step, job.lora_rank, job.save_every_steps) < 1 or job.epochs <= 0:
        raise EngineError("bad_job", "Batch sizes, rank, epochs and the saving interval must be above zero.")
    if job.pairs_per_step % job.micro_batch:
        message = f"{job.pairs_per_step} pairs a step cannot be made of micro batches of {job.micro_batch}."
        raise EngineError("bad_job", message, "Choose a micro batch that divides the pairs a step.")
    if job.beta <= 0 or job.learning_rate <= 0:
        raise EngineError("bad_job", "beta and the learning rate must be above zero.")


def build_trainer(
    job: TrainJob,
    compute: Compute,
    start: reference.Start,
    tokenizer: PreTrainedTokenizerBase,
    triples: list[TokenTriple],
    trainer_dir: Path,
    recorder: StepRecorder,
) -> TokenDPOTrainer:
    dpo_trainer.score_completions_only()
    trainer = TokenDPOTrainer(
        model=start.model,
        ref_model=start.ref_model,
        peft_config=start.peft_config,
        args=dpo_trainer.configuration(job, compute, len(triples), trainer_dir),
        train_dataset=dpo_trainer.to_dataset(triples),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has it all
    trainer.reference_tolerance = dpo_trainer.REFERENCE_TOLERANCE[torch.bfloat16 if compute.on_cuda else torch.float32]
    return trainer


def check_trained(model: torch.nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if tensor.requires_grad and not torch.isfinite(tensor).all():
            hint = "Lower the learning rate and start a new run."
            raise EngineError("diverged", f"After training the tensor {name} holds NaN or infinite values.", hint)


def score_held_out(
    run_dir: Path, trainer: TokenDPOTrainer, triples: list[TokenTriple], compute: Compute, metrics: MetricsJournal
) -> list[PairScore]:
    """Log-probabilities under reference and policy of every held-out triple, also written to ``held_out.jsonl``."""
    total = 2 * len(triples)

    def tick(done: int) -> None:
        if done % TICK == 0 or done == total:
            metrics.phase("scoring held-out pairs", done=done, total=total)

    policy = trainer.model.eval()
    before = score_reference(trainer, triples, compute, tick)
    after = evaluation.score(policy, triples, compute, lambda done: tick(len(triples) + done))
    scores = evaluation.pair_scores(triples, before, after)
    write_atomically(run_dir / "held_out.jsonl", "".join(item.to_json() + "\n" for item in scores))
    return scores


def score_reference(
    trainer: TokenDPOTrainer, triples: list[TokenTriple], compute: Compute, tick: Any
) -> list[evaluation.Logps]:
    if trainer.ref_model is not None:
        return evaluation.score(trainer.ref_model, triples, compute, tick)
    with use_adapter(trainer.model, adapter_name="ref" if "ref" in trainer.model.peft_config else None):
        return evaluation.score(trainer.model, triples, compute, tick)


def write_policy(
    directory: Path, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, job: TrainJob
) -> None:
    if isinstance(model, PeftModel):
        checkpoint.write_adapter(directory, model, job.base_name)
        checkpoint.write_tokenizer(directory, tokenizer)
    else:
        checkpoint.write_full(directory, model, tokenizer)


def describe(
    job: TrainJob, compute: Compute, trainer: TokenDPOTrainer, recorder: StepRecorder, data: PreferenceData
) -> dict[str, Any]:
    reasons = [dataclasses.asdict(item) for item in data.left_out[:TOLD_LEFT_OUT]]
    trainable = sum(tensor.numel() for tensor in trainer.model.parameters() if tensor.requires_grad)
    return compute.describe() | {
        "method": job.method,
        "base_name": job.base_name,
        "seed": job.seed,
        "steps": trainer.state.global_step,
        "seconds": round(recorder.seconds, 3),
        "trainable_parameters": trainable,
        "triples": {"train": len(data.train), "held_out": len(data.held_out), "left_out": len(data.left_out)},
        "retokenised": len(data.retokenised),
        "left_out": reasons,
        "left_out_by_split": dict(Counter(item.split for item in data.left_out)),
        "final": recorder.last.to_dict() if recorder.last else {},
    }
