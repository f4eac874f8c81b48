"""How far does a learning rate move the policy with so many labels, and does the taste behind the labels agree?

The SFT model writes pairs, and people whose taste is known vote once on each (`benchmarks/taste.py`; a quarter of what
they say is the wrong way round). For each number of labels, and each learning rate or the usual one by the number of
steps, the engine trains once from the SFT model. The policy then answers prompts on subjects that it was not trained
on, as in `benchmarks/loop.py`.

    python benchmarks/rates.py --labels 30,100 --rates usual,5e-5,1e-3 --recipe mode=fast
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # and not this folder, whose queue.py would hide Python's

from benchmarks.learning import recipe_of  # noqa: E402
from benchmarks.loop_answers import answers_of, engine, sampled  # noqa: E402
from benchmarks.loop_figures import Answers, compared, share  # noqa: E402
from benchmarks.loop_prompts import JUDGING_SUBJECTS, LABELLED_SUBJECTS, asked_about  # noqa: E402
from benchmarks.pairs import default_model, weights_hash  # noqa: E402
from benchmarks.taste import Annotator  # noqa: E402
from training import jobspec  # noqa: E402
from training.jobspec import Completion, ModelRef, PromptLine, SampledPair, TrainJob, TripleLine  # noqa: E402
from training.learning_rate import steps_of, usual_learning_rate  # noqa: E402

HELD_OUT_PROMPTS = 12  # whose answers the run compares with the reference's, for its KL
DOUBT = 0.22  # of a pair with one vote, where nothing is known of who gave it


def main() -> None:
    options = parse()
    folder = (options.model or default_model()).resolve()
    model = ModelRef(str(folder), weights_hash(folder))
    votes = voted(model, max(options.labels), options)
    judging = asked_about(JUDGING_SUBJECTS)[: options.judging]
    sft = answers_of(model, judging, options.tokens)
    rows = []
    print(HEAD, flush=True)
    for labels in options.labels:
        for rate in options.rates:
            rows.append(measured(model, votes[:labels], rate, sft, options))
            print(line(rows[-1]), flush=True)
    if options.json:
        kept = ("tokens", "judging", "label_noise", "doubt", "recipe", "seed")
        print(json.dumps({"rows": rows, "settings": {name: getattr(options, name) for name in kept}}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = {"type": lambda text: [int(word) for word in text.split(",")], "default": [30, 100, 300]}
    parser.add_argument("--labels", help="(default: 30,100,300)", **numbers)
    rates = {"type": lambda text: [None if word == "usual" else float(word) for word in text.split(",")]}
    parser.add_argument("--rates", help="(default: usual,5e-5)", default=[None, 5e-5], **rates)
    parser.add_argument("--recipe", type=recipe_of, default={}, help="as mode=fast,epochs=2 (default: the usual one)")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer at most (default: %(default)s)")
    parser.add_argument("--judging", type=int, default=96, help="prompts that judge (default: %(default)s)")
    parser.add_argument("--label-noise", type=float, default=0.25, help="(default: %(default)s)")
    parser.add_argument(
        "--doubt", type=float, default=DOUBT, help="label noise that the triples carry; 0: none (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a model directory (default: SmolLM2-135M-Instruct, from the index)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


def voted(model: ModelRef, count: int, options: argparse.Namespace) -> list[TripleLine]:
    """Triples of pairs of the SFT model, one vote each. Of more pairs than prompts a prompt has several."""
    prompts = asked_about(LABELLED_SUBJECTS)
    ids = {f"{number // len(prompts)} {prompts[number % len(prompts)]}": prompts[number % len(prompts)]
           for number in range(count + count // 10)}  # fmt: skip
    chance = random.Random(options.seed)
    person = Annotator("one", options.label_noise)
    pairs = sampled(model, ids, options.tokens, options.seed)
    chance.shuffle(pairs)
    return [
        triple(number, pair, ids[pair.prompt_id], person, options.doubt, chance) for number, pair in enumerate(pairs)
    ][:count]


def triple(
    number: int, pair: SampledPair, prompt: str, person: Annotator, doubt: float, chance: random.Random
) -> TripleLine:
    left, right = pair.responses
    chosen, rejected = (left, right) if person.vote(left.text, right.text, chance) == "left" else (right, left)
    return TripleLine(
        pair_id=str(number),
        prompt_id=prompt,
        split="train",
        messages=[{"role": "user", "content": prompt}],
        chosen=Completion(chosen.text, chosen.token_ids, chosen.finish_reason),
        rejected=Completion(rejected.text, rejected.token_ids, rejected.finish_reason),
        preference_ids=[number],
        label_noise=doubt,
        prompt_token_ids=pair.prompt_token_ids,
    )


def measured(
    model: ModelRef, triples: list[TripleLine], rate: float | None, sft: Answers, options: argparse.Namespace
) -> dict[str, Any]:
    usual = TrainJob(model, seed=options.seed, **options.recipe)
    steps = steps_of(len(triples), usual.epochs, usual.pairs_per_step)
    known_rate = usual_learning_rate(usual.method, usual.mode, steps) if rate is None else rate
    job = replace(usual, learning_rate=known_rate, probe_tokens=options.tokens)
    run_dir = Path(tempfile.mkdtemp(prefix="tiebreak-rates-"))
    (run_dir / "dataset.jsonl").write_text("".join(each.to_json() + "\n" for each in triples), encoding="utf-8")
    probes = [PromptLine(text, [{"role": "user", "content": text}]) for text in list(sft)[:HELD_OUT_PROMPTS]]
    (run_dir / "probes.jsonl").write_text("".join(each.to_json() + "\n" for each in probes), encoding="utf-8")
    jobspec.write_job(run_dir, job)
    details = engine("train_dpo", run_dir).details
    checkpoint = run_dir / "checkpoint"
    made = (
        ModelRef(model.base_dir, model.base_hash, str(checkpoint), "candidate")
        if job.method == "lora"
        else ModelRef(str(checkpoint), "candidate")
    )
    answers = answers_of(made, list(sft), options.tokens)
    shutil.rmtree(run_dir)
    known = {"labels": len(triples), "learning_rate": job.learning_rate, "is_usual": rate is None, "steps": steps}
    told = {"kl": details["on_policy"]["after"]["kl_reference"], "last_loss": details["final"]["loss"]}
    return known | compared(answers, sft) | told | {"flags": [flag["code"] for flag in details["flags"]]}


HEAD = (
    f"{'labels':>6} {'steps':>5} {'rate':>15} {'true win rate':>21} {'reward':>7} {'KL':>6} {'tokens':>6} {'loss':>6}"
)


def line(row: dict[str, Any]) -> str:
    rate = f"{row['learning_rate']:.2g}" + (" (usual)" if row["is_usual"] else "")
    return (
        f"{row['labels']:6} {row['steps']:5} {rate:>15} {share(row['true_win_rate'], row['ci']):>21} "
        f"{row['true_reward']:7.3f} {row['kl']:6.2f} {row['mean_length']:6.1f} {row['last_loss']:6.3f}  "
        + ", ".join(row["flags"])
    )


if __name__ == "__main__":
    main()
