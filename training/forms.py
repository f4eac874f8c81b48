"""What admins type into training pages. Every field says what it does."""

from __future__ import annotations

from typing import Any

from django import forms

from training.exceptions import Rejected
from training.fixed_times import parse_times
from training.learning_rate import HIGHEST, LOWEST, REACH
from training.models import Checkpoint, HubPush, LoopRule, RetentionRule
from training.recipe import CHOICES, LABELS, AnswerDecoding, Decoding, Recipe
from training.side_by_side import MOST_PROMPT_CHARACTERS, MOST_PROMPTS


class ExplainedChoice(forms.ChoiceField):
    """A choice of the recipe with a sentence for each of its values."""

    def __init__(self, name: str, help_text: str, sentences: dict[str, str]) -> None:
        super().__init__(choices=list(CHOICES[name].items()), initial=getattr(Recipe, name), help_text=help_text)
        self.explained = [(label, sentences[value]) for value, label in CHOICES[name].items()]


class TrainForm(forms.Form):
    """The recipe of one DPO run."""

    method = forms.ChoiceField(
        choices=list(CHOICES["method"].items()),
        initial=Recipe.method,
        help_text="LoRA trains small matrices beside the frozen weights: little memory, a small download. "
        "Full fine-tuning moves every weight.",
    )
    mode = ExplainedChoice(
        "mode",
        "What of the model can change. An adapter that starts from another adapter keeps that one’s mode and layers.",
        {
            "exact": "every layer can change.",
            "fast": "a different hypothesis class: only the upper layers can change. Judged by the same held-out "
            "evaluation; several times faster.",
        },
    )
    reference = forms.ModelChoiceField(
        queryset=Checkpoint.objects.none(),
        empty_label=None,
        help_text="The frozen model that the policy starts from and is held close to. "
        "The first policy of the project is the safe choice: distances stay comparable from run to run.",
    )
    beta = forms.FloatField(
        initial=Recipe.beta,
        help_text="How strongly the policy is held to the reference. Smaller lets it move further "
        "(Rafailov et al. 2023, eq. 7).",
    )
    epochs = forms.FloatField(
        initial=Recipe.epochs,
        help_text="Passes over the triples. Few triples are memorised quickly; judge on the held-out ones.",
    )
    loss = ExplainedChoice(
        "loss",
        "What becomes of z, β times the difference between the log-ratios of a pair’s two responses.",
        {
            "dpo": "the logistic loss of z (Rafailov et al. 2023).",
            "ipo": "takes the log-ratios as averages per token here, and draws their difference to 1 / (2β) and back, "
            "so that sure labels are not fitted without end (Azar et al. 2023).",
            "hinge": "stops pulling once z has reached 1 (Liu et al. 2023, RSO, after SLiC of Zhao et al. 2023).",
            "robust": "corrects for labels that are wrong with a known probability, which it takes from the votes; it "
            "takes no ties (Chowdhury et al. 2024).",
            "apo_zero": "makes the chosen response likelier and the rejected one less likely; for chosen responses "
            "better than the model’s own. It takes no ties (D’Oosterlinck et al. 2024).",
            "apo_down": "makes both less likely, the rejected one more so; for a model that writes better than the "
            "chosen responses. It takes no ties (D’Oosterlinck et al. 2024).",
        },
    )
    sft_weight = forms.FloatField(
        initial=Recipe.sft_weight,
        help_text="Adds this much of the chosen response’s negative log-likelihood a token, so that it does not become "
        "less likely while the margin grows (Liu et al. 2024; Pang et al. 2024, who take 1). 0 adds none.",
    )
    ld_alpha = forms.FloatField(
        initial=Recipe.ld_alpha,
        help_text="Weight of the tokens by which the longer response is longer. Below 1 length alone counts for less "
        "(length-desensitised DPO, Liu et al. 2024, arXiv 2409.06411); 1 is plain.",
    )
    ties = forms.ChoiceField(
        choices=list(CHOICES["ties"].items()),
        initial=Recipe.ties,
        help_text="A tie, or a vote that is split, can train as a pair that may be labelled either way, which holds "
        "its two responses together. Never on held-out prompts.",
    )
    label_noise = forms.ChoiceField(
        choices=list(CHOICES["label_noise"].items()),
        initial=Recipe.label_noise,
        help_text="How likely a label is the wrong way round: with votes, the share of a pair’s judgements against its "
        "majority, ties being half a vote, and 0.45 at most. The loss is then the expected one (Mitchell 2023, the "
        "note on conservative DPO). A single judgement stays certain: with one a pair, votes change nothing. The "
        "posterior knows how reliable each annotator is, and which side they lean to, so that one judgement can be "
        "doubted too; a tie beside such votes is half a vote for either response, and a pair within 0.02 of one half "
        "is a tie. A pair judged a moment ago has none yet, and is doubted as if nothing were known of anybody, by "
        "0.22 after one judgement. A reviewer’s verdict is certain.",
    )
    pair_weight = forms.ChoiceField(
        choices=list(CHOICES["pair_weight"].items()),
        initial=Recipe.pair_weight,
        help_text="How much a pair counts in the loss. With every judgement the same, a pair that three people judged "
        "counts three times: with label noise from votes, DPO’s loss is then the likelihood of every judgement "
        "behind a triple (Bradley and Terry 1952), and starts at 0.69 for each. With one a pair it changes nothing. "
        "The posterior weighs by |2p − 1|: at the start of training each label pulls as hard as one with label noise "
        "from the posterior would. Not together with label noise, which would count the same doubt twice.",
    )
    learning_rate = forms.FloatField(
        required=False,
        help_text="Leave empty and it goes by the number of steps, for few steps must be longer to get anywhere: with "
        f"LoRA {HIGHEST:g} up to {(REACH / HIGHEST) ** 2:.0f} steps, then less the more there are, and {LOWEST:g} from "
        f"{(REACH / LOWEST) ** 2:,.0f} on; twice that in the fast mode, and a fiftieth with full fine-tuning. The loss "
        "of DPO starts at 0.69: if it stays there, raise the rate, and if it becomes unsteady, lower it.",
    )
    warmup_ratio = forms.FloatField(
        initial=Recipe.warmup_ratio,
        help_text="Share of the steps in which the learning rate rises to its full value.",
    )
    pairs_per_step = forms.IntegerField(
        initial=Recipe.pairs_per_step, help_text="Triples that one optimiser step averages over."
    )
    max_length = forms.IntegerField(
        initial=Recipe.max_length,
        help_text="Tokens of prompt and response together; what is longer is cut at the end.",
    )
    seed = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=2**31 - 1,
        help_text="Leave empty for a random one; it is recorded either way.",
    )
    lora_rank = forms.IntegerField(
        initial=Recipe.lora_rank,
        help_text="Width of the adapter. An adapter that starts from another adapter keeps that one’s rank, α, mode "
        "and layers.",
    )
    lora_alpha = forms.IntegerField(initial=Recipe.lora_alpha, help_text="The adapter’s effect is scaled by α / rank.")
    fast_layers = forms.IntegerField(
        initial=Recipe.fast_layers,
        help_text="Upper layers that the fast mode trains, no more than the model has; 0 is a third of them.",
    )
    micro_batch = forms.IntegerField(
        initial=Recipe.micro_batch,
        help_text="Triples in memory at once; 0 takes as many as fit. The result stays the same but for rounding.",
    )
    precision = ExplainedChoice(
        "precision",
        "Of frozen weights and of matrix products. What is trained, and every log-probability, is float32.",
        {
            "auto": "bfloat16 on a GPU, and for a fast adapter on a CPU that has it; float32 otherwise.",
            "float32": "seven digits. On a CPU, what the sampler computed of the reference is not computed again.",
            "bfloat16": "three digits, in three quarters of the time and memory on a CPU with AVX512-BF16 or AMX; on "
            "any other slower.",
        },
    )
    processes = forms.IntegerField(
        initial=Recipe.processes,
        help_text="Processes on one machine, one a GPU; 0 takes every GPU. Without a GPU leave it at 1.",
    )
    sharding = forms.ChoiceField(
        choices=list(CHOICES["sharding"].items()),
        initial=Recipe.sharding,
        help_text="How several GPUs share the work. FSDP is for models that one of them can hold, but not train: each "
        "loads the whole model once, before they share it out.",
    )

    ESSENTIAL: tuple[str, ...] = ("method", "mode", "reference", "beta", "epochs")
    FURTHER: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("Objective", ("loss", "sft_weight", "ld_alpha")),
        ("Labels", ("ties", "label_noise", "pair_weight")),
        ("Optimiser", ("learning_rate", "warmup_ratio", "pairs_per_step", "max_length", "seed")),
        ("What is trained", ("lora_rank", "lora_alpha", "fast_layers")),
        ("Memory and machines", ("precision", "micro_batch", "processes", "sharding")),
    )

    NOT_OF_THE_RECIPE: tuple[str, ...] = ("reference", "seed")

    def __init__(self, *args: Any, references: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, label in LABELS.items():
            if name in self.fields:
                self.fields[name].label = label
        field = self.fields["reference"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = references

    def essential_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in self.ESSENTIAL]

    def further_groups(self) -> list[tuple[str, list[forms.BoundField]]]:
        return [(title, [self[name] for name in names]) for title, names in self.FURTHER]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        values = {
            name: value for name, value in cleaned.items() if name not in self.NOT_OF_THE_RECIPE and value is not None
        }
        try:
            cleaned["recipe"] = Recipe.from_dict(values)
        except Rejected as error:
            raise forms.ValidationError(str(error)) from error
        return cleaned


class SampleForm(forms.Form):
    pairs = forms.IntegerField(min_value=1, max_value=2000, initial=24, label="Pairs")


class SideBySideForm(forms.Form):
    """Two checkpoints, and what they are asked."""

    left = forms.ModelChoiceField(queryset=Checkpoint.objects.none(), to_field_name="uuid", empty_label=None)
    right = forms.ModelChoiceField(queryset=Checkpoint.objects.none(), to_field_name="uuid", empty_label=None)
    prompt = forms.CharField(
        required=False,
        max_length=MOST_PROMPT_CHARACTERS,
        widget=forms.Textarea(attrs={"rows": 5, "dir": "auto"}),
        help_text="Leave it empty to ask held-out prompts of the project instead.",
    )
    held_out = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=MOST_PROMPTS,
        initial=3,
        label="Held-out prompts",
        help_text=f"By chance, {MOST_PROMPTS} at most; only where no prompt is typed. None that people are being asked "
        "about at a gate: whoever has seen both answers could tell them apart.",
    )
    temperature = forms.FloatField(
        initial=AnswerDecoding.temperature,
        help_text=f"0 takes the likeliest token every time. Pairs are written at {Decoding.temperature:g}.",
    )
    max_new_tokens = forms.IntegerField(
        initial=AnswerDecoding.max_new_tokens, label="Length", help_text="Tokens of an answer at most."
    )

    def __init__(self, *args: Any, checkpoints: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for side in ("left", "right"):
            field = self.fields[side]
            assert isinstance(field, forms.ModelChoiceField)
            field.queryset = checkpoints

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        cleaned["prompt"] = cleaned["prompt"].strip()
        if not cleaned["prompt"] and not cleaned["held_out"]:
            raise forms.ValidationError("Type a prompt, or say how many held-out ones to ask.")
        try:
            decoding = {name: cleaned[name] for name in ("temperature", "max_new_tokens")}
            cleaned["decoding"] = AnswerDecoding.from_dict(decoding)
        except Rejected as error:
            raise forms.ValidationError(str(error)) from error
        return cleaned


class PromoteForm(forms.Form):
    reason = forms.CharField(max_length=300, required=False)


class RollBackForm(forms.Form):
    """What the button that was pressed has named: the policy to leave, and the one that comes back."""

    leaves = forms.UUIDField()
    to = forms.UUIDField()


class LoopRuleForm(forms.ModelForm):  # type: ignore[type-arg]
    """What happens by itself. Times are typed in one field, as people write them down."""

    fixed_times = forms.CharField(
        required=False,
        label="only at",
        help_text="Times of day such as 03:00, 15:30. Empty: at any time. One that comes while too little is new, or "
        "while anything else stands in the way, passes by.",
    )

    class Meta:
        model = LoopRule
        fields = (
            *("open_pairs_wanted", "effects_per_person", "retrains", "min_new_triples", "min_minutes_between"),
            *("fixed_times", "most_runs_a_day", "reference", "kl_first_budget"),
        )
        help_texts = {
            "retrains": "",
            "min_new_triples": "",
            "min_minutes_between": "",
            "most_runs_a_day": "0: as many as it likes.",
            "reference": "The frozen model that runs start from and are held close to. It moves on only with a policy "
            "that a gate has passed and that is surely within the budget below.",
            "kl_first_budget": "Nats a response. Whatever the reference is, the distance to the first policy is "
            "measured, and a policy beyond the budget is flagged.",
        }
        labels = {
            "open_pairs_wanted": "Keep this many pairs open",
            "effects_per_person": "After a promotion, show each person what became of this many judgements",
            "retrains": "Train by itself",
            "min_new_triples": "when this many triples are new",
            "min_minutes_between": "at most once in minutes",
            "most_runs_a_day": "at most so many runs a day",
            "reference": "Reference",
            "kl_first_budget": "KL from the first policy, at most",
        }

    def __init__(self, data: Any = None, *, instance: LoopRule) -> None:
        super().__init__(data, instance=instance, initial={"fixed_times": ", ".join(instance.fixed_times)})

    def clean_fixed_times(self) -> list[str]:
        words: str = self.cleaned_data["fixed_times"]
        try:
            return parse_times(words.replace(",", " ").split())
        except Rejected as error:
            raise forms.ValidationError(str(error)) from error


class PushForm(forms.Form):
    """Where a checkpoint goes on the Hugging Face Hub, and who may see it there."""

    repo_id = forms.CharField(
        label="Repository", max_length=96, widget=forms.TextInput(attrs={"placeholder": "OWNER/NAME"})
    )
    variant = forms.ChoiceField(label="What", choices=HubPush.Variant.choices)
    visibility = forms.ChoiceField(
        label="Who may see it",
        choices=[("private", "Private"), ("public", "Everybody")],
        help_text="Of a repository that is made now. One that is there already keeps what it is.",
    )

    def __init__(self, *args: Any, checkpoint: Checkpoint, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not checkpoint.is_adapter:
            self.fields["variant"].choices = [(HubPush.Variant.MERGED.value, HubPush.Variant.MERGED.label)]  # type: ignore[attr-defined]


class RetentionForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = RetentionRule
        fields = ("is_on", "keep_last", "keep_days")
        labels = {
            "is_on": "Delete old weights once a day",
            "keep_last": "Keep the newest",
            "keep_days": "Keep for days",
        }
        help_texts = {"is_on": ""}
