"""One arm of the loop: a project, and what its admin and its annotators do in a round. All writes go over HTTP.

Import it after Django is set up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.taste import Annotator, plainness
from benchmarks.visitors import Refused, Visitor, reading
from labeling.models import Pair
from training.models import Checkpoint

POLL_SECONDS = 1.0
JOB_SECONDS = 3600
MEASURE_SECONDS = 300
ACTIVE = ("queued", "running", "publishing")


@dataclass(frozen=True)
class Plan:
    """What an arm does differently: settings of its project and fields of its recipe."""

    name: str
    slug: str
    settings: dict[str, Any]
    recipe: dict[str, Any]


# The posterior says how much of the labels is noise. The usual loss expects that much, so its optimum is near (Mitchell
# 2023); the robust one corrects for it, so that a label pulls as far as one that is believed.
ROBUST = {"loss": "robust"}
PLANS = (
    Plan("random order, majority", "random-majority", {"control_percent": 100}, {"label_noise": "none"}),
    Plan("active order, posterior", "active-posterior", {}, ROBUST),
    # What of a difference between these two is the order's, and what the weights'.
    Plan("random order, posterior", "random-posterior", {"control_percent": 100}, ROBUST),
    Plan("active order, majority", "active-majority", {}, {"label_noise": "none"}),
    Plan("active order, posterior, usual loss", "active-expected", {}, {}),
)


@dataclass(frozen=True)
class Sizes:
    """Of one round. ``pairs`` are written and ``labels`` cast; what stays over is what the order did not choose."""

    labels: int
    pairs: int
    tokens: int


@dataclass
class Arm:
    plan: Plan
    admin: Visitor
    people: list[tuple[Annotator, Visitor]]
    sizes: Sizes
    recipe: dict[str, Any]
    labels: int = 0

    def begin(self, prompts: list[str], base: Checkpoint) -> None:
        slug = self.plan.slug
        if self.plan.settings:
            self.admin.api("PATCH", f"{slug}/", self.plan.settings)
        self.admin.api("POST", f"{slug}/prompts/", {"prompts": prompts})
        # Pairs are asked for by the round here, so that both arms have as many to choose from; and nobody is there to
        # read what became of their judgements, which would be measured beside the next pairs.
        self.admin.api("PATCH", f"{slug}/retraining/", {"open_pairs_wanted": 0, "effects_per_person": 0})
        # Each checkpoint is promoted, whatever a gate would say, so that none measures in vain.
        self.admin.post(f"/p/{slug}/gates/rule/", {"decides": "admin", "most_votes": "300", "watch_votes": "200"})
        self.promote(str(base.uuid))

    def promote(self, uuid: str) -> None:
        self.admin.api("POST", f"{self.plan.slug}/promotions/", {"checkpoint": uuid})

    def write_pairs(self) -> None:
        """Have the policy write the pairs of this round, and wait for all: an order needs something to order."""
        path = f"{self.plan.slug}/batches/"
        asked = {"pairs": self.sizes.pairs, "decoding": {"max_new_tokens": self.sizes.tokens}}
        uuid = self.admin.api("POST", path, asked)["uuid"]
        self._ended(lambda: next(row for row in self.admin.api("GET", path)["results"] if row["uuid"] == uuid))

    def label(self, seed: str) -> None:
        """Have the annotators judge in turn, a page each, until the round's labels are cast or nothing is open."""
        chance = {annotator.name: random.Random(f"{seed} {annotator.name}") for annotator, _ in self.people}
        wanted = self.labels + self.sizes.labels
        waiting = 0
        while self.labels < wanted and waiting < len(self.people):
            waiting = 0
            for annotator, visitor in self.people:
                if self.labels < wanted:
                    waiting += not self._judge(annotator, visitor, chance[annotator.name])

    def _judge(self, annotator: Annotator, visitor: Visitor, chance: random.Random) -> bool:
        """Whether there was a pair. A second look measures people and is no label."""
        pair = reading(visitor.get(f"/p/{self.plan.slug}/annotate/"))
        if pair is None:
            return False
        side = annotator.vote(pair.left, pair.right, chance)
        visitor.post(f"/p/{self.plan.slug}/annotate/submit/", {"token": pair.form["token"], "choice": side})
        self.labels += not pair.is_second_look
        return True

    def wait_until_measured(self) -> None:
        """Until the background job has the posterior of every judged pair; it comes by once a minute."""
        unmeasured = Pair.objects.filter(
            project__slug=self.plan.slug, p_a__isnull=True, judgements_count__gt=0, is_retired=False
        )
        deadline = time.monotonic() + MEASURE_SECONDS
        while unmeasured.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"The judgements of {self.plan.slug} were not measured in {MEASURE_SECONDS} s.")
            time.sleep(POLL_SECONDS)

    def train(self, seed: int) -> Checkpoint:
        """A run on all labels so far, from the first policy, as the training page has it by default."""
        path = f"{self.plan.slug}/runs/"
        run = self.admin.api("POST", path, {"recipe": self.recipe | self.plan.recipe, "seed": seed})
        ended = self._ended(lambda: self.admin.api("GET", f"{path}{run['number']}/"))
        return Checkpoint.objects.select_related("base").get(uuid=ended["checkpoint"])

    def label_accuracy(self) -> float:
        """The share of the triples trained on in which the response called better is so by the taste itself."""
        rule = {"label_noise": "posterior"} | self.plan.recipe
        right, after = [], 0
        while after is not None:
            query = f"after={after}&label_noise={rule['label_noise']}"
            page = self.admin.api("GET", f"{self.plan.slug}/triples/?{query}")
            right += [_is_right(triple) for triple in page["results"] if triple["split"] == "train"]
            after = page["next_after"]
        return round(sum(right) / max(1, len(right)), 4)

    def _ended(self, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        deadline = time.monotonic() + JOB_SECONDS
        while (job := look())["state"] in ACTIVE:
            if time.monotonic() > deadline:
                raise Refused(f"{self.plan.slug}: a job has not ended in {JOB_SECONDS} s: {job}")
            time.sleep(POLL_SECONDS)
        if job["state"] != "succeeded":
            raise Refused(f"{self.plan.slug}: {job['state']}: {job['error']}")
        return job


def _is_right(triple: dict[str, Any]) -> bool:
    return plainness(triple["chosen"]["text"]) > plainness(triple["rejected"]["text"])
