"""Jobs that write pairs, and where each pair came from."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from labeling.models import Pair, Project, Prompt
from training.models.checkpoints import Checkpoint
from training.models.jobs import Job, new_seed


class SampleBatch(Job):
    """A job that writes pairs: which policy, which prompts, which seed and decoding."""

    again = "ask for pairs again"
    reads = ("policy",)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="batches")
    policy = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="batches")
    prompt_ids = models.JSONField(help_text="The prompts to answer, in order.")
    decoding = models.JSONField(help_text="Temperature, top-p and token limits, resolved when the batch was asked for.")
    seed = models.PositiveIntegerField(default=new_seed)
    pairs_made = models.PositiveIntegerField(default=0)
    prompts_refused = models.PositiveIntegerField(default=0)

    class Meta(Job.Meta):
        verbose_name_plural = "sample batches"
        constraints = [
            models.UniqueConstraint(
                fields=["project", "policy"],
                condition=Q(state__in=["queued", "running", "publishing"]),
                name="one_active_batch_per_policy",
            ),
        ]

    def __str__(self) -> str:
        return f"Batch {self.pk}"

    @property
    def wanted(self) -> int:
        return len(self.prompt_ids)


class PairOrigin(models.Model):
    """Which batch, policy and seeds wrote a pair. Lives here so that labeling cannot know it."""

    pair = models.OneToOneField(Pair, on_delete=models.CASCADE, related_name="+", primary_key=True)
    batch = models.ForeignKey(SampleBatch, on_delete=models.PROTECT, related_name="origins")
    policy = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="+")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="+")
    seed_a = models.PositiveBigIntegerField()
    seed_b = models.PositiveBigIntegerField()
    attempts = models.PositiveSmallIntegerField(default=1, help_text="Tries until the two responses differed.")
    prompt_token_ids = models.JSONField(default=list, blank=True, help_text="The prompt as the policy read it.")
    logps_a = models.JSONField(
        default=list, blank=True, help_text="The policy's log-probability of each token, in nats; empty if not known."
    )
    logps_b = models.JSONField(default=list, blank=True, help_text="The same of the second response.")
    reference_logps_a = models.JSONField(
        default=list, blank=True, help_text="Those of the policy's base, where the policy is an adapter."
    )
    reference_logps_b = models.JSONField(default=list, blank=True, help_text="The same of the second response.")
    margin = models.FloatField(
        null=True, blank=True, help_text="The policy's implicit reward of A less that of B; empty if not known."
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["batch", "prompt"], name="pair_once_per_batch_and_prompt")]

    def __str__(self) -> str:
        return f"Pair {self.pair_id} from batch {self.batch_id}"


class SampleRefusal(models.Model):
    """A prompt of a batch that got no pair, with the reason. It is not asked for again."""

    batch = models.ForeignKey(SampleBatch, on_delete=models.CASCADE, related_name="refusals")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="+")
    reason = models.TextField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["batch", "prompt"], name="refusal_once")]

    def __str__(self) -> str:
        return self.reason
