"""What a run is expected to compute and to take, and what is said of it afterwards."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from labeling.models import Preference
from training import forecast, services
from training.forecast import ReferenceValues
from training.models import Checkpoint, Job, PairOrigin, TrainingRun
from training.recipe import Recipe
from training.run_page import forecast_facts
from training.rundir import RunDir

START = timezone.now().replace(microsecond=0) - timedelta(hours=1)
DETAILS = {"speed": {"pairs_per_s": 0.5}, "reference_logps": {"forwards": 20}, "dtype": "float32"}


@pytest.fixture
def finish(project, policy, make_checkpoint):
    """Let a run succeed after 30 s of loading, 10 of reading, 60 of training and 20 of comparing."""

    def finish(run: TrainingRun, *, starts: int = 1, **values) -> TrainingRun:
        checkpoint = make_checkpoint(f"c{run.number}", project=project, kind="dpo", base=policy, details=DETAILS)
        at = START.timestamp()
        phases = [("loading model", 0), ("reading reference", 30), ("training", 40), ("comparing responses", 100)]
        lines = [{"phase": phase, "at": at + seconds} for phase, seconds in phases]
        run_dir = RunDir.of(run.uuid)
        run_dir.make()
        run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:1] * (starts - 1), *lines]))
        values = {"attempt": 1, "started_at": START, "finished_at": START + timedelta(seconds=120)} | values
        TrainingRun.objects.filter(pk=run.pk).update(state=Job.State.SUCCEEDED, checkpoint=checkpoint, **values)
        run.refresh_from_db()
        return run

    return finish


def _request(project, **values) -> TrainingRun:
    return services.request_run(project=project, recipe=Recipe(**values))


def _values(project, reference: Checkpoint, **values) -> ReferenceValues:
    recipe = Recipe(**values)
    earlier = list(forecast.runs_like(project, recipe, reference))
    return forecast.reference_values(Preference.objects.counted().filter(project=project), recipe, reference, earlier)


def _origin(pair, policy, **logps) -> None:
    batch = services.request_samples(project=pair.project, pairs=1)
    PairOrigin.objects.create(
        pair=pair, batch=batch, policy=policy, prompt=pair.prompt, seed_a=1, seed_b=2, prompt_token_ids=[1], **logps
    )
    services.cancel_job(job=batch)


def test_every_triple_is_a_forward_before_the_first_run_and_only_new_ones_are_after_it(
    project, policy, label, finish, make_checkpoint
):
    label(8)
    label(2, held_out=True)
    label(3, "tie")
    label(1, "both_bad")
    assert _values(project, policy) == ReferenceValues(forwards=10)
    assert _values(project, policy, ties="half") == ReferenceValues(forwards=13)
    run = finish(_request(project))
    assert run.forecast["reference"] == {"sampled": 0, "cached": 0, "forwards": 10}
    assert _values(project, policy) == ReferenceValues(cached=10)
    assert _values(project, policy, ties="half") == ReferenceValues(cached=10, forwards=3)
    label(4)
    assert _values(project, policy) == ReferenceValues(cached=10, forwards=4)
    assert _values(project, policy, mode="fast").cached == 0, "another kind of run keeps other values"
    other = make_checkpoint("other", project=project, kind="dpo", base=policy)
    assert _values(project, other) == ReferenceValues(forwards=14), "another reference has other values"


def test_nothing_is_expected_of_a_cache_that_keeps_nothing(project, policy, label, finish, settings):
    label(8)
    finish(_request(project))
    settings.CACHE_MB = 0
    assert _values(project, policy) == ReferenceValues(forwards=8)


def test_what_a_sampler_kept_is_no_forward(project, policy, label, make_checkpoint, settings):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy)
    itself, below, without, of_another, *_ = label(8)
    _origin(itself, policy, logps_a=[-1.0], logps_b=[-1.0])
    _origin(below, adapter, logps_a=[-3.0], logps_b=[-3.0], reference_logps_a=[-1.0], reference_logps_b=[-1.0])
    _origin(without, policy)
    _origin(of_another, adapter, logps_a=[-3.0], logps_b=[-3.0])
    assert _values(project, policy) == ReferenceValues(sampled=2, forwards=6)
    assert _values(project, adapter) == ReferenceValues(sampled=2, forwards=6), "those that it wrote itself"
    for other in ({"precision": "bfloat16"}, {"mode": "fast"}):
        assert _values(project, policy, **other) == ReferenceValues(forwards=8), "the sampler’s are float32"
    settings.ENGINE_DEVICE = "cuda"
    assert _values(project, policy) == ReferenceValues(forwards=8)


def test_time_is_training_by_triples_reading_by_forwards_and_the_rest_as_it_was(project, policy, label, finish):
    label(8)
    first = finish(_request(project))
    assert forecast.expect(project, Recipe(), policy, 8).seconds == pytest.approx(8 * 3 / 0.5 + 30 + 20)
    label(4)
    expected = forecast.expect(project, Recipe(epochs=2), policy, 12)
    assert (expected.training, expected.reading, expected.others) == (12 * 2 / 0.5, 4 * 10 / 20, 50)
    assert (expected.seconds, expected.run) == (48 + 2 + 50, first.number)


def test_the_day_that_a_run_waited_to_be_resumed_is_no_loading(project, policy, label, finish):
    """It had failed before its engine began, so that there is one beginning to be read, and an old ``started_at``."""
    label(8)
    finish(_request(project), started_at=START - timedelta(days=1))
    assert forecast.expect(project, Recipe(), policy, 8).others == 50


@pytest.mark.parametrize("interrupted", [{"attempt": 2}, {"starts": 2}])
def test_a_run_that_was_interrupted_says_nothing_of_its_phases(project, policy, label, finish, interrupted):
    label(8)
    finish(_request(project), **interrupted)
    expected = forecast.expect(project, Recipe(), policy, 8)
    assert (expected.training, expected.others, expected.seconds) == (48, None, None)


def test_a_run_remembers_what_was_expected_and_its_page_says_how_it_held(project, policy, label, finish):
    label(8)
    assert forecast_facts(finish(_request(project))) == [
        ("Forwards expected", "8 of the reference; 20 were computed"),
    ]
    label(2)
    second = _request(project)
    said = "1 min 51 s, as Run 1 went"
    assert forecast_facts(second) == [("Time expected", said), ("Forwards expected", "2 of the reference")]
    assert forecast_facts(finish(second))[0] == ("Time expected", f"{said}; it took 2 min")
    assert forecast_facts(TrainingRun(forecast={})) == []


def test_what_a_rebuild_takes_is_told_by_the_run_itself_unless_it_was_interrupted(project, policy, label, finish):
    label(10)
    run = _request(project)
    assert forecast.time_taken(run) is None
    assert forecast.time_taken(finish(run)) == 120
    label(1)
    assert forecast.time_taken(finish(_request(project), attempt=2)) is None
