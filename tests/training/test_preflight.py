"""What a run would take: counted as the run itself would, and bounded by this machine."""

from __future__ import annotations

import json

import pytest
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling.models import Pair
from labeling.services import NewResponse, add_pair
from training import footprint, preflight, services, snapshots, store
from training.learning_rate import usual_learning_rate
from training.models import Job, PairOrigin, TrainingRun
from training.preflight import Longest, count_triples, longest_pair, look_ahead
from training.recipe import Recipe

CONFIG = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def no_counts_kept():
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def sized(policy):
    """The policy, with a config that says how large it is."""
    (store.checkpoint_dir(policy.uuid) / "config.json").write_text(json.dumps(CONFIG))
    return policy


@pytest.fixture
def machine(monkeypatch):
    def has(total: float) -> None:
        monkeypatch.setattr(preflight.footprint, "machine_memory", lambda: int(total))

    return has


@pytest.mark.parametrize("ties", ["drop", "half"])
def test_triples_are_counted_as_a_run_would_derive_them(
    project, data_dir, label, judge, make_pair, annotator, other_annotator, ties
):
    label(3)
    label(2, held_out=True)
    label(4, "tie")
    label(1, "tie", held_out=True)
    label(1, "both_bad")
    project.judgements_per_pair = 2
    project.save()
    for first, second in (("a", "b"), ("a", "tie"), ("tie", "both_bad"), ("b", "b")):
        pair = make_pair(held_out=False)
        pair.project.judgements_per_pair = 2
        judge(pair, annotator, first)
        judge(pair, other_annotator, second)
    recipe = Recipe(ties=ties)
    snapshot, counts = snapshots.freeze_snapshot(project=project, rule=recipe.label_rule)
    found = count_triples(project, recipe)
    assert (found.train, found.held_out, found.ties) == (counts.train, counts.held_out, counts.tie_triples)
    assert (found.train, found.ties) == ((5, 0) if ties == "drop" else (11, 6))
    assert (found.train_prompts, found.pairs) == (len(counts.train_prompts), 14)
    assert snapshot.train_triples == found.train


def test_the_longest_pair_counts_tokens_where_a_sampler_did_and_characters_elsewhere(
    project, policy, make_prompt, judge, annotator
):
    assert longest_pair(project, 1024) is None
    prompt = make_prompt("Hm?")
    imported = add_pair(prompt=prompt, responses=(NewResponse("a" * 300), NewResponse("b" * 30)))
    assert longest_pair(project, 1024) is None, "only judged pairs are trained on"
    judge(imported, annotator, "a")
    guessed = longest_pair(project, 1024)
    assert guessed.completion_tokens == 101 + 11
    assert guessed.tokens - guessed.completion_tokens == len(json.dumps(prompt.messages)) // 3 + 1
    responses = (NewResponse("one", list(range(400))), NewResponse("two", list(range(50))))
    sampled = add_pair(prompt=prompt, responses=responses)
    batch = services.request_samples(project=project, pairs=1)
    PairOrigin.objects.create(
        pair=sampled, batch=batch, policy=policy, prompt=prompt, seed_a=1, seed_b=2, prompt_token_ids=[1] * 20
    )
    judge(sampled, annotator, "b")
    assert longest_pair(project, 1024) == Longest(470, 450)
    assert longest_pair(project, 200) == Longest(20 + 180 + 50, 230), "cut as training cuts it"


def test_it_says_how_many_steps_at_which_learning_rate(project, sized, label):
    empty = look_ahead(project, Recipe(), sized)
    assert empty.steps == 0
    label(9)
    found = look_ahead(project, Recipe(epochs=2.0), sized)
    assert (found.steps, found.learning_rate) == (4, usual_learning_rate("lora", "exact", 4))
    assert look_ahead(project, Recipe(learning_rate=3e-6), sized).learning_rate == 3e-6


def test_memory_is_that_of_the_micro_batch_that_this_machine_holds(project, sized, label, machine):
    label(8)
    machine(64e9)
    memory = look_ahead(project, Recipe(pairs_per_step=4), sized).memory
    assert (memory.pairs, memory.checkpointing, memory.fits) == (4, False, True)
    one = look_ahead(project, Recipe(micro_batch=1), sized).memory
    assert one.pairs == 1
    assert one.footprint.total < memory.footprint.total
    fast = look_ahead(project, Recipe(micro_batch=1, mode="fast"), sized).memory
    assert fast.footprint.activations < one.footprint.activations / 2
    machine(1e9)
    small = look_ahead(project, Recipe(), sized).memory
    assert (small.pairs, small.checkpointing, small.fits) == (1, True, False)


def test_more_tokens_at_once_than_gain_anything_are_in_memory_only_when_asked_for(
    project, sized, machine, make_prompt, judge, annotator
):
    responses = (NewResponse("one", list(range(300))), NewResponse("two", list(range(290))))
    judge(add_pair(prompt=make_prompt("Hm?"), responses=responses), annotator, "a")
    machine(640e9)
    assert longest_pair(project, 1024).tokens * 3 > footprint.MOST_TOKENS["cpu"]
    longest = longest_pair(project, 1024).tokens
    found = look_ahead(project, Recipe(pairs_per_step=8), sized).memory
    assert found.pairs == footprint.MOST_TOKENS["cpu"] // longest == 1
    assert found.footprint.products > 0, "what the engine holds beside the weights is counted"
    assert look_ahead(project, Recipe(pairs_per_step=8, micro_batch=6), sized).memory.pairs == 6


def test_an_adapter_is_as_large_as_its_base(project, sized, label, make_checkpoint, machine):
    label(8)
    machine(64e9)
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=sized, parent=sized)
    found, plain = (look_ahead(project, Recipe(), it).memory.footprint for it in (adapter, sized))
    assert found.weights == plain.weights
    assert found.beside == 2 * plain.weights, "its reference and the first policy are loaded once more to compare"
    assert plain.beside == 0


def test_a_gpu_has_memory_of_its_own_that_is_not_known_here(project, sized, label, settings, machine):
    label(8)
    machine(1e9)
    settings.ENGINE_DEVICE = "cuda"
    memory = look_ahead(project, Recipe(), sized).memory
    assert (memory.machine, memory.fits, memory.checkpointing) == (None, True, False)
    assert memory.footprint.weights == footprint.parameters(footprint.Shape.from_config(CONFIG)) * 2
    assert (memory.pairs, memory.as_many_as_fit) == (1, True)
    asked = look_ahead(project, Recipe(micro_batch=4), sized).memory
    assert (asked.pairs, asked.as_many_as_fit) == (4, False)
    assert asked.footprint.activations == pytest.approx(4 * memory.footprint.activations)


def test_the_last_run_tells_what_an_automatic_device_is(project, sized, label, machine, make_checkpoint, settings):
    label(10)
    machine(64e9)
    before = look_ahead(project, Recipe(), sized).memory
    assert (before.machine, before.is_guess) == (64_000_000_000, True)
    _finish(project, sized, make_checkpoint, "on a CPU", Recipe(), {"device": "cpu"})
    known = look_ahead(project, Recipe(), sized).memory
    assert (known.machine, known.is_guess) == (64_000_000_000, False)
    _finish(project, sized, make_checkpoint, "on a GPU", Recipe(), {"device": "cuda"})
    gpu = look_ahead(project, Recipe(), sized).memory
    assert (gpu.machine, gpu.as_many_as_fit) == (None, True)
    settings.ENGINE_DEVICE = "cpu"
    assert look_ahead(project, Recipe(), sized).memory.is_guess is False


def test_an_adapter_is_trained_on_in_its_own_mode_and_the_estimate_knows(project, sized, label, make_checkpoint):
    label(10)
    run = _finish(project, sized, make_checkpoint, "adapter", Recipe(mode="fast", fast_layers=3), {})
    again = look_ahead(project, Recipe(), run.checkpoint)
    fresh = look_ahead(project, Recipe(mode="fast", fast_layers=3), sized)
    assert again.memory.footprint.optimizer == fresh.memory.footprint.optimizer
    assert look_ahead(project, Recipe(), sized).memory.footprint.optimizer == 10 * fresh.memory.footprint.optimizer


def test_what_would_be_refused_is_said_before(project, sized, settings):
    assert look_ahead(project, Recipe(mode="fast", fast_layers=30), sized).refusal == ""
    assert "the model has 30" in look_ahead(project, Recipe(mode="fast", fast_layers=31), sized).refusal
    settings.ENGINE_DEVICE = "cpu"
    assert "Leave GPUs at 1" in look_ahead(project, Recipe(processes=2), sized).refusal


def test_votes_that_change_nothing_are_told(project, sized):
    assert look_ahead(project, Recipe(label_noise="none"), sized).note == ""
    assert "votes change nothing" in look_ahead(project, Recipe(label_noise="votes"), sized).note
    assert "votes change nothing" in look_ahead(project, Recipe(label_noise="votes", pair_weight="votes"), sized).note
    project.calibration_percent = 15
    assert look_ahead(project, Recipe(label_noise="votes"), sized).note == "", "some pairs are judged twice"
    project.judgements_per_pair, project.calibration_percent = 3, 0
    assert look_ahead(project, Recipe(label_noise="votes"), sized).note == ""


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(label_noise="none", pair_weight="posterior")])
def test_a_posterior_that_no_pair_has_yet_is_told(project, sized, label, recipe):
    pair, *_ = label(2)
    assert "No pair has a posterior probability yet" in look_ahead(project, recipe, sized).note
    pair.p_a = 0.7
    pair.save()
    assert look_ahead(project, recipe, sized).note == ""


def test_counts_by_votes_are_not_taken_for_those_by_the_posterior(project, sized, label, monkeypatch):
    monkeypatch.setattr(preflight, "LARGE", 1)
    pair, *_ = label(3)
    pair.p_a = 0.5
    pair.save()
    assert look_ahead(project, Recipe(label_noise="votes"), sized).triples.train == 3
    assert look_ahead(project, Recipe(), sized).triples.train == 2


def test_whose_judgements_give_no_label_or_the_other_one_is_told(
    project, sized, make_pair, judge, annotator, other_annotator, reviewer, client, project_admin
):
    def judged(choice, p_a, who=annotator, **values) -> None:
        pair = make_pair(held_out=False)
        judge(pair, who, choice)
        Pair.objects.filter(pk=pair.pk).update(p_a=p_a, **values)

    for choice, p_a in (
        ("a", 0.5),
        ("a", 0.52),
        ("b", 0.6),
        ("a", 0.3),
        ("a", 0.6),
        ("b", 0.4),
        ("tie", 0.5),
        ("a", None),
    ):
        judged(choice, p_a)
    judged("a", 0.3, adjudicated_choice="a")
    judged("a", 0.3, judgements_count=2)
    judged("a", 0.3, is_retired=True)
    judged("a", 0.7, other_annotator)
    (one,) = look_ahead(project, Recipe(), sized).overruled
    assert (one.name, one.judgements, one.dropped, one.turned) == (annotator.username, 6, 2, 2)
    assert look_ahead(project, Recipe(label_noise="votes"), sized).overruled == []
    client.force_login(project_admin)
    page = " ".join(client.get(reverse("training:train", args=[project.slug])).content.decode().split())
    assert "of 6 pairs that nobody else judged, 2 give no label and 2 the other one" in page


def test_one_prompt_is_too_little_however_many_pairs_it_has(project, data_dir, label, make_prompt):
    label(10, prompt=make_prompt(held_out=False))
    found = count_triples(project, Recipe())
    assert (found.train, found.train_prompts, found.is_enough) == (10, 1, False)
    label(1)
    assert count_triples(project, Recipe()).is_enough


def test_a_large_project_is_counted_once_a_minute_and_each_rule_for_itself(project, sized, label, monkeypatch):
    def queries(recipe: Recipe) -> int:
        with CaptureQueriesContext(connection) as captured:
            look_ahead(project, recipe, sized)
        return len(captured)

    label(4)
    label(2, "tie")
    first = queries(Recipe())
    assert queries(Recipe()) == first, "a small project is counted anew"
    monkeypatch.setattr(preflight, "LARGE", 6)
    assert queries(Recipe()) == first
    assert queries(Recipe(beta=0.2)) == first - 6
    label(1)
    assert look_ahead(project, Recipe(), sized).triples.train == 4
    assert look_ahead(project, Recipe(ties="half"), sized).triples.train == 7
    cache.clear()
    assert look_ahead(project, Recipe(), sized).triples.train == 5


@pytest.mark.parametrize("config", ["{}", "not json", None])
def test_a_model_of_unknown_size_has_no_estimate_and_the_rest_is_there(project, policy, label, config):
    label(8)
    path = store.checkpoint_dir(policy.uuid) / "config.json"
    path.unlink()
    if config is not None:
        path.write_text(config)
    found = look_ahead(project, Recipe(), policy)
    assert found.memory is None
    assert found.triples.train == 8


def test_a_project_without_anything(project):
    found = look_ahead(project, Recipe(), None)
    assert (found.triples.train, found.longest, found.memory, found.forecast) == (0, None, None, None)
    assert not found.triples.is_enough


def _finish(project, policy, make_checkpoint, name: str, recipe: Recipe, details: dict) -> TrainingRun:
    run = services.request_run(project=project, recipe=recipe)
    checkpoint = make_checkpoint(name, project=project, kind="dpo", base=policy, parent=policy, details=details)
    TrainingRun.objects.filter(pk=run.pk).update(state=Job.State.SUCCEEDED, checkpoint=checkpoint)
    run.refresh_from_db()
    return run


def test_time_is_told_at_the_pace_of_the_newest_run_of_its_kind_and_else_not_at_all(
    project, policy, label, make_checkpoint
):
    label(10)
    assert look_ahead(project, Recipe(), policy).forecast.training is None
    _finish(project, policy, make_checkpoint, "older", Recipe(), {"speed": {"pairs_per_s": 9.0}})
    run = _finish(project, policy, make_checkpoint, "newer", Recipe(), {"speed": {"pairs_per_s": 0.5}})
    _finish(project, policy, make_checkpoint, "silent", Recipe(), {})
    expected = look_ahead(project, Recipe(epochs=2), policy).forecast
    assert (expected.training, expected.run) == (10 * 2 / 0.5, run.number)
    assert expected.seconds is None, "nobody has written down what the other phases took"
    for different in (Recipe(mode="fast"), Recipe(method="full"), Recipe(precision="bfloat16")):
        assert look_ahead(project, different, policy).forecast.training is None
    other = make_checkpoint("other model")
    assert look_ahead(project, Recipe(), other).forecast.training is None


def test_looking_costs_as_many_queries_for_many_pairs_as_for_few(project, sized, label):
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            look_ahead(project, Recipe(), sized)
        return len(captured)

    label(2)
    few = queries()
    label(10)
    assert queries() == few <= 9
