"""What policies answer when people ask to see it: two side by side, and an annotator's prompts before and after."""

from __future__ import annotations

from django.db import models
from django.urls import reverse

from labeling.models import Pair, Project
from training.models.checkpoints import Checkpoint, Promotion
from training.models.jobs import Job, new_seed


class SideBySide(Job):
    """Two checkpoints answer the same prompts at the same time."""

    again = "ask again"
    reads = ("left", "right")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="side_by_sides")
    left = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="+")
    right = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="+")
    prompts = models.JSONField(help_text="Chats, each a list of messages.")
    decoding = models.JSONField(help_text="Temperature, top-p and token limit.")
    seed = models.PositiveIntegerField(default=new_seed)
    answers = models.JSONField(default=list, blank=True, help_text="By prompt: the text of each side as it is so far.")

    def __str__(self) -> str:
        return f"Side by side {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("training:side-by-side", args=[self.project.slug, self.pk])


class LabelEffects(Job):
    """After a promotion: how the model's preference moved on pairs that annotators have judged."""

    again = "compute it again"
    reads = ("before", "promotion__checkpoint")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="label_effects")
    promotion = models.OneToOneField(Promotion, on_delete=models.CASCADE, related_name="label_effects")
    before = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="+")
    pair_ids = models.JSONField(help_text="The judged pairs that are looked at.")
    seed = models.PositiveIntegerField(default=new_seed)

    def __str__(self) -> str:
        return f"What labels changed, promotion {self.promotion_id}"


class LabelEffect(models.Model):
    """One judged pair before and after. Margins are of A over B, in nats a response: log pi less log pi of the first.

    The answers are what each policy writes to the pair's prompt with the same random numbers.
    """

    effects = models.ForeignKey(LabelEffects, on_delete=models.CASCADE, related_name="rows")
    pair = models.ForeignKey(Pair, on_delete=models.CASCADE, related_name="+")
    margin_before = models.FloatField()
    margin_after = models.FloatField()
    answer_before = models.TextField(blank=True)
    answer_after = models.TextField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["effects", "pair"], name="label_effect_once")]

    def __str__(self) -> str:
        return f"Pair {self.pair_id}"
