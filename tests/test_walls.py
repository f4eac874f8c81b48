"""The walls between the rooms, held by running code; the import contracts hold them by reading it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings

ROOT = Path(settings.BASE_DIR)

LOAD_EVERYTHING = """
import sys
import django
django.setup()
import config.urls, config.celery, config.wsgi, config.tasks, labeling.tasks, training.tasks
from django.core.management import get_commands, load_command_class
from django.urls import get_resolver
get_resolver().reverse_dict
for name, app in get_commands().items():
    if app in ("config", "labeling", "training"):
        load_command_class(app, name)
heavy = {"torch", "transformers", "trl", "peft", "datasets", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""


def test_web_and_workers_never_load_torch(environment):
    subprocess.run([sys.executable, "-c", LOAD_EVERYTHING], cwd=ROOT, env=environment, check=True)


def test_the_web_loads_no_numpy_either_and_nothing_but_a_task_reaches_it(environment):
    code = LOAD_EVERYTHING.replace('"torch", ', '"numpy", "torch", ') + "import labeling.measure\n"
    code += "assert 'numpy' in sys.modules, 'what is looked for is there to be found'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_the_engine_never_loads_django(environment):
    names = sorted(path.stem for path in (ROOT / "training/engine").glob("*.py") if path.stem != "__init__")
    code = "import importlib, sys\n" + "\n".join(f"importlib.import_module('training.engine.{name}')" for name in names)
    code += "\nassert not {'django', 'celery'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_what_both_sides_import_needs_nothing_but_the_standard_library(environment):
    code = (
        "import sys, training.footprint, training.jobspec\n"
        "foreign = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__'}\n"
        "assert not {'django', 'torch', 'numpy'} & foreign, foreign\n"
        "assert {name for name in sys.modules if name.startswith('training.')} == "
        "{'training.footprint', 'training.jobspec'}\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_no_field_of_labeling_points_at_training():
    for model in apps.get_app_config("labeling").get_models():
        for field in model._meta.get_fields():
            if field.concrete and field.related_model:
                assert field.related_model._meta.app_label != "training"


def test_annotators_cannot_reach_an_origin_through_the_rows_of_labeling():
    from labeling.models import Pair, Response

    names = {field.name for model in (Pair, Response) for field in model._meta.get_fields()}
    assert not {"origin", "policy", "batch", "pairorigin"} & names


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("labeling/queue.py", "import training.jobspec", "never back"),
        ("training/services.py", "def f() -> None:\n    import torch", "Only the engine imports torch"),
        ("training/engine/errors.py", "import django", "The engine knows no Django"),
        ("training/engine/errors.py", "import training.recipe", "The engine knows no Django"),
        ("training/footprint.py", "import training.jobspec", "Inside training"),
        ("training/execution/runs.py", "import training.engine.errors", "Nobody imports the engine"),
        ("training/triples.py", "import training.services", "Inside training"),
    ],
)
def test_each_contract_breaks_when_it_is_violated(tmp_path, file, line, contract):
    for name in ("config", "labeling", "training"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{line}\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    broken = done.stdout.split("Broken contracts")[1].replace("\n", " ")
    assert contract in broken


def test_there_are_no_signal_receivers_and_no_bare_delay_in_the_apps():
    for path in [*(ROOT / "labeling").rglob("*.py"), *(ROOT / "training").rglob("*.py")]:
        text = path.read_text()
        assert "@receiver" not in text, path
        assert ".delay(" not in text, path
