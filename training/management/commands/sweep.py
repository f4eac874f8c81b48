"""``manage.py sweep``"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training import sweeps
from training.command_line import checkpoint_named, project_named, wait_for
from training.exceptions import Rejected
from training.frontier import read_frontier
from training.models import Sweep, TrainingRun
from training.recipe import Recipe


class Command(BaseCommand):
    help = (
        "Freeze the triples of now once and queue a run for each beta and learning rate, one after the other. "
        "Exit status 1 if it was refused or, with --wait, a run did not succeed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="The project's slug.")
        usual = " ".join(f"{beta:g}" for beta in sweeps.USUAL_BETAS)
        parser.add_argument("--beta", type=float, nargs="+", default=sweeps.USUAL_BETAS, help=f"Default: {usual}.")
        parser.add_argument("--learning-rate", type=float, nargs="+", default=(), help="Default: by method and steps.")
        parser.add_argument("--wait", action="store_true", help="Report progress and return when all runs have ended.")
        parser.add_argument(
            "--reference",
            help="Name, uuid or hash of the frozen reference (default: the one that the project's rule names).",
        )
        parser.add_argument("--seed", type=int, help="Seed of every run (default: random, recorded).")
        for field in fields(Recipe):
            if field.name not in sweeps.SWEPT:
                option, choices = f"--{field.name.replace('_', '-')}", Recipe.VALUES.get(field.name)
                parser.add_argument(
                    option, type=type(field.default), choices=choices, help=f"Default: {field.default}."
                )

    def handle(self, *args: Any, project: str, wait: bool, reference: str | None, **options: Any) -> None:
        target = project_named(project)
        names = [field.name for field in fields(Recipe) if field.name not in sweeps.SWEPT]
        values = {name: options[name] for name in names if options[name] is not None}
        try:
            sweep = sweeps.request_sweep(
                project=target,
                recipe=Recipe.from_dict(values),
                betas=options["beta"],
                learning_rates=options["learning_rate"],
                reference=checkpoint_named(target, reference) if reference else None,
                seed=options["seed"],
            )
        except Rejected as refusal:
            raise CommandError(str(refusal)) from refusal
        runs = list(TrainingRun.objects.filter(sweep=sweep).order_by("number"))
        snapshot = sweep.snapshot
        self.stdout.write(
            f"{sweep} is queued: {len(runs)} runs on {snapshot.train_triples} triples, snapshot {snapshot.short_hash}."
        )
        if wait:
            self._wait(sweep, runs)

    def _wait(self, sweep: Sweep, runs: list[TrainingRun]) -> None:
        for run in runs:
            run.refresh_from_db()
            wait_for(run, self.stdout.write)
        for point in read_frontier(sweep).points:
            kl, accuracy, nats, _ = (cell.value for cell in point.cells)
            mark = " *" if point.is_best else ""
            figures = f"KL {kl} nats, accuracy {accuracy}, margin {nats} nats"
            self.stdout.write(f"{point.run}, beta {point.beta:g}, rate {point.learning_rate:g}: {figures}{mark}")
