"""Reading what an engine writes while it writes it."""

from __future__ import annotations

import json

from training.jobspec import StepMetrics
from training.rundir import MAX_CHART_POINTS, LineReader, RunDir, log_tail, read_steps


def _line(**values: object) -> str:
    return json.dumps(values) + "\n"


def test_only_complete_lines_are_read_and_each_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader = LineReader(path)
    assert list(reader.new_lines()) == []
    path.write_text(_line(step=1) + '{"step":')
    assert list(reader.new_lines()) == [{"step": 1}]
    with path.open("a") as file:
        file.write(" 2}\n")
    assert list(reader.new_lines()) == [{"step": 2}]
    assert list(reader.new_lines()) == []


def test_a_line_that_its_reader_failed_on_is_given_again(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(_line(step=1) + _line(step=2))
    reader = LineReader(path)
    for line in reader.new_lines():
        assert line["step"] == 1
        break
    assert [line["step"] for line in reader.new_lines()] == [1, 2]


def test_a_file_that_was_replaced_by_a_shorter_one_is_read_from_its_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(_line(step=step, loss=0.6931471824645996) for step in range(20)))
    reader = LineReader(path)
    assert len(list(reader.new_lines())) == 20
    staging = tmp_path / "staging"
    staging.write_text("".join(_line(step=step) for step in range(10)))
    staging.replace(path)
    assert [line["step"] for line in reader.new_lines()] == list(range(10))


def test_a_chart_of_a_long_run_is_thinned_and_keeps_its_last_step(tmp_path):
    names = [field for field in StepMetrics.__dataclass_fields__ if field not in ("step", "steps")]
    values = dict.fromkeys(names, 0.5)
    run_dir = RunDir(tmp_path)
    run_dir.metrics.write_text(
        _line(phase="training") + "".join(_line(step=step, steps=3001, **values) for step in range(1, 3002))
    )
    steps = read_steps(run_dir)
    assert len(steps) <= MAX_CHART_POINTS + 1
    assert (steps[0].step, steps[-1].step) == (1, 3001)


def test_the_tail_of_a_log_starts_at_a_line(tmp_path):
    run_dir = RunDir(tmp_path)
    assert log_tail(run_dir) == ""
    run_dir.log.write_bytes(b"first line \xff\n" * 1000)
    assert log_tail(run_dir, 100).startswith("first line")
