"""The whole loop on the real model, with annotators whose taste is known: does the policy get truly better?

An installation of its own (gunicorn, the Celery workers, the scheduler) is started as the product starts it. Two
projects in it begin at the same SFT model. In each round the policy writes pairs, three annotators judge some of them
over HTTP, a run trains on all labels so far, and its checkpoint becomes the policy. The annotators like plain words
(`benchmarks/taste.py`), a quarter of what they say is the wrong way round, and one of them votes left without reading
in a third of the pairs. One project is served in random order and trains on majorities; the other is served in the
order of the policy's doubt and trains on the posterior, by the loss that corrects for its noise. Both cast the same
number of labels.

Each policy answers prompts that are in no project, on subjects that no project has, two answers each. `true win
rate`: how often the taste itself prefers its answer to the SFT model's, on the same prompt; the interval is a
bootstrap over prompts.

    python benchmarks/loop.py --json
    python benchmarks/loop.py --rounds 1 --labels 40 --judging 24
    python benchmarks/loop.py --arms random-posterior active-majority
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # and not this folder, whose queue.py would hide Python's

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import secrets  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from benchmarks.database import private_database  # noqa: E402
from benchmarks.loop_figures import Answers, compared, difference, mean_length, reward, table  # noqa: E402
from benchmarks.loop_plot import write_plot  # noqa: E402
from benchmarks.loop_prompts import JUDGING_SUBJECTS, LABELLED_SUBJECTS, asked_about  # noqa: E402
from benchmarks.pairs import default_model  # noqa: E402
from benchmarks.taste import annotators  # noqa: E402
from benchmarks.timing import read_cores  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.loop_arm import Arm, Plan
    from training.models import Checkpoint

TITLE = "How often the known taste prefers a policy’s answer to the SFT model’s"
SLUGS = ("random-majority", "active-posterior", "random-posterior", "active-majority", "active-expected")
STARTED = time.monotonic()


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Told to end."))  # on the way that ends every process it started
    model = (options.model or default_model()).resolve()
    load, cores = os.getloadavg(), read_cores()
    with private_database("sqlite") as folder:
        report = go_round(folder, model, options)
    report |= {
        "wall_s": round(time.monotonic() - STARTED),
        "cpu_busy": read_cores().busy_since(cores),
        "load_before": load,
        "load_after": os.getloadavg(),
    }
    print(table(report["arms"]))
    print(f"SFT: reward {report['sft']['true_reward']:.3f}, {report['sft']['mean_length']:.1f} tokens")
    print("\n".join(f"round {row['round']}: the second arm beats the first in {row}" for row in report["difference"]))
    if options.plot:
        write_plot(options.plot, report["arms"], TITLE)
    if options.json:
        print(json.dumps(report))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--labels", type=int, default=72, help="cast in each round of each arm (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=88, help="written in each round (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer at most (default: %(default)s)")
    parser.add_argument("--judging", type=int, default=56, help="prompts that judge (default: %(default)s)")
    parser.add_argument("--label-noise", type=float, default=0.25, help="(default: %(default)s)")
    parser.add_argument(
        "--recipe",
        type=json.loads,
        default={"mode": "fast", "epochs": 2},
        help="what the recipes of both arms have in common, as JSON (default: %(default)s)",
    )
    parser.add_argument(
        "--arms",
        nargs=2,
        choices=SLUGS,
        default=SLUGS[:2],
        metavar="ARM",
        help=f"two of {', '.join(SLUGS)} (default: the first two)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of votes and runs (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a model directory (default: SmolLM2-135M-Instruct, from the index)")
    parser.add_argument("--plot", type=Path, help="write the plot, an SVG, to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


def go_round(folder: Path, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    from tests.installation import serving

    subprocess.run([sys.executable, "manage.py", "collectstatic", "--noinput", "-v0"], cwd=ROOT, check=True)
    base = add_model(model)
    plans = plans_of(options.arms)
    passwords = make_people(annotators(options.label_noise), plans)
    with serving(folder, dict(os.environ)) as installation:
        arms = enter(installation.url, passwords, plans, options)
        for arm in arms:
            arm.begin(asked_about(LABELLED_SUBJECTS), base)
        return Loop(arms, base, options).run()


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.0f} s  {text}", file=sys.stderr, flush=True)


def add_model(model: Path) -> Checkpoint:
    """By the command, whose process alone may read the model's directory."""
    from training.models import Checkpoint

    say(f"adding {model}")
    environment = os.environ | {"TIEBREAK_MODEL_DIRECTORIES": str(model.parent)}
    command = [sys.executable, "manage.py", "add_model", str(model)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
    return Checkpoint.objects.get()


def make_people(crowd: Any, plans: Sequence[Plan]) -> dict[str, str]:
    """Everybody's password, by name; the projects and who is what in them."""
    from django.contrib.auth.models import User

    from labeling.models import Membership
    from labeling.services import add_member, create_project

    roles = {"admin": Membership.Role.ADMIN} | {each.name: Membership.Role.ANNOTATOR for each in crowd}
    passwords = {name: secrets.token_urlsafe(12) for name in roles}
    users = {name: User.objects.create_user(name, password=password) for name, password in passwords.items()}
    for plan in plans:
        project = create_project(name=plan.name.capitalize(), slug=plan.slug)
        for name, user in users.items():
            add_member(project=project, user=user, role=roles[name])
    return passwords


def plans_of(slugs: Sequence[str]) -> list[Plan]:
    """Django must be set up."""
    from benchmarks.loop_arm import PLANS

    return [plan for slug in slugs for plan in PLANS if plan.slug == slug]


def enter(url: str, passwords: dict[str, str], plans: Sequence[Plan], options: argparse.Namespace) -> list[Arm]:
    """Sign everybody in; the arms with their people at the door."""
    from benchmarks.loop_arm import Arm, Sizes
    from benchmarks.visitors import Visitor

    visitors = {name: Visitor(url) for name in passwords}
    for name, visitor in visitors.items():
        visitor.sign_in(name, passwords[name])
    people = [(each, visitors[each.name]) for each in annotators(options.label_noise)]
    sizes = Sizes(options.labels, options.pairs, options.tokens)
    return [Arm(plan, visitors["admin"], people, sizes, options.recipe) for plan in plans]


class Loop:
    """The rounds of all arms. A round's policies answer while the next round's judgements wait to be measured."""

    def __init__(self, arms: list[Arm], base: Checkpoint, options: argparse.Namespace) -> None:
        self.arms, self.options = arms, options
        self.judging = asked_about(JUDGING_SUBJECTS)[: options.judging]
        self.base = base
        self.sft: Answers = {}
        self.rows: dict[str, list[dict[str, Any]]] = {arm.plan.name: [] for arm in arms}
        self.unjudged: dict[str, tuple[Checkpoint, dict[str, Any]]] = {}
        self.differences: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        for number in range(1, self.options.rounds + 1):
            for arm in self.arms:
                self.collect(arm, number)
            self.judge()
            for arm in self.arms:
                self.train(arm, number)
        self.judge()
        kept = ("arms", "rounds", "labels", "pairs", "tokens", "judging", "label_noise", "recipe", "seed")
        return {
            "arms": self.rows,
            "sft": {"true_reward": round(reward(self.sft), 4), "mean_length": round(mean_length(self.sft), 1)},
            "difference": self.differences,
            "settings": {name: getattr(self.options, name) for name in kept},
        }

    def collect(self, arm: Arm, number: int) -> None:
        say(f"round {number}, {arm.plan.name}: pairs")
        arm.write_pairs()
        say(f"round {number}, {arm.plan.name}: labels")
        arm.label(f"{self.options.seed} {number}")

    def judge(self) -> None:
        """The answers of the SFT model first, then those of each policy that has come since."""
        if not self.sft:
            self.sft = self.answers(self.base)
        answered = {name: self.answers(policy) for name, (policy, _) in self.unjudged.items()}
        for name, (_, row) in self.unjudged.items():
            self.rows[name].append(row | compared(answered[name], self.sft))
            say(table({name: self.rows[name][-1:]}).splitlines()[1])
        if answered:
            first, second = (answered[arm.plan.name] for arm in self.arms)
            self.differences.append({"round": len(self.differences) + 1} | difference(second, first))
        self.unjudged = {}

    def answers(self, checkpoint: Checkpoint) -> Answers:
        from benchmarks.loop_answers import answers_of
        from training import registry

        say(f"answers of {checkpoint}")
        return answers_of(registry.weights_of(checkpoint), self.judging, self.options.tokens)

    def train(self, arm: Arm, number: int) -> None:
        arm.wait_until_measured()
        row = {"round": number, "labels": arm.labels, "label_accuracy": arm.label_accuracy()}
        say(f"round {number}, {arm.plan.name}: training on labels of which {row['label_accuracy']:.0%} are right")
        policy = arm.train(self.options.seed + number)
        arm.promote(str(policy.uuid))
        self.unjudged[arm.plan.name] = policy, row | _by_the_run(policy.details)


def _by_the_run(details: dict[str, Any]) -> dict[str, Any]:
    held_out, after = details.get("held_out") or {}, (details.get("on_policy") or {}).get("after") or {}
    return {
        "kl": after.get("kl_first"),
        "heldout_accuracy": (held_out.get("after") or {}).get("accuracy"),
        "heldout_ci": held_out.get("accuracy_interval"),
        "train_seconds": details.get("seconds"),
    }


if __name__ == "__main__":
    sys.exit(main())
