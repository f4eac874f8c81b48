"""What the next pair costs: many labelers on one queue, each a process, on a database of the benchmark's own.

Every client takes the next pair and answers it at random. The time of both is measured in the client, around the call
of the service, in two readings. With a mean thought of `--think-ms` before each answer the clients are many people,
each still faster than anybody reads: this is the wait that one of them feels. Without it, the clients are a closed loop
that asks as fast as the machine answers: this is its capacity, and the time of a call is then, by Little's law, mostly
the queue of the clients before the cores. `--think-ms 0` takes the second reading alone.

A duplicate is a pair that one annotator was given twice, counted from what the clients saw and from the database; an
over-collection is a pair with more judgements than wanted that no late answer explains. Either, an error or a lost
answer makes the exit status 1.

PostgreSQL: a private server on a Unix socket with fsync on (`--fsync`), shared_buffers 512MB (`--shared-buffers`),
max_wal_size 4GB, max_connections to fit and its defaults otherwise; VACUUM ANALYZE and a checkpoint after seeding.
SQLite: a file in a temporary directory with the product's settings (WAL, synchronous=NORMAL, IMMEDIATE).

    python benchmarks/queue.py --database postgres --open-pairs 1000000 --clients 32 --compare --json
    python benchmarks/queue.py --database sqlite --open-pairs 100000 --clients 8
    python benchmarks/queue.py --database postgres --open-pairs 10000 --clients 8 --tabs 8
    python benchmarks/queue.py --database postgres --open-pairs 1000 --clients 1 --judgements 3 --done 10000
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # and not this folder, whose queue.py would hide Python's

import argparse  # noqa: E402
import json  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.database import KINDS, private_database, server_settings  # noqa: E402

SMALL = 10_000
FAULTS = ("duplicates", "over_collections", "lost_answers")


def main() -> int:
    options = parse()
    postgres = server_settings(options.clients, fsync=options.fsync, shared_buffers=options.shared_buffers)
    with private_database(options.database, postgres):
        sizes = [SMALL, options.open_pairs] if options.compare else [options.open_pairs]
        reports = [measured(size, options) for size in sizes]
    report = reports[-1]
    if options.compare:
        report |= compared(reports[0], report)
    print(table(reports))
    for message in report["error_messages"]:
        print(message, file=sys.stderr)
    if options.json:
        print(json.dumps(report))
    return int(any(each["errors"] or any(each[fault] for fault in FAULTS) for each in reports))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--database", choices=KINDS, default="sqlite", help="(default: %(default)s)")
    parser.add_argument("--open-pairs", default=SMALL, help="open pairs (default: %(default)s)", **number)
    parser.add_argument("--clients", default=8, help="processes (default: %(default)s)", **number)
    parser.add_argument("--seconds", type=float, default=20, help="of each reading (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=3, help="seconds before it (default: %(default)s)")
    parser.add_argument("--think-ms", type=float, default=200, help="mean thought (default: %(default)s); 0: none")
    parser.add_argument(
        "--annotators", default=0, help="people; a client takes turns as several (default: one)", **number
    )
    parser.add_argument("--tabs", default=1, help="clients that are the same person (default: %(default)s)", **number)
    parser.add_argument("--judgements", default=1, help="judgements a pair wants (default: %(default)s)", **number)
    parser.add_argument("--done", default=0, help="pairs at the head that all here have judged, still open", **number)
    parser.add_argument("--compare", action="store_true", help=f"measure {SMALL:,} open pairs first, and the ratio")
    parser.add_argument("--fsync", choices=["on", "off"], default="on", help="of PostgreSQL (default: %(default)s)")
    parser.add_argument("--shared-buffers", default="512MB", help="of PostgreSQL (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


def measured(open_pairs: int, options: argparse.Namespace) -> dict[str, Any]:
    """The report of both readings over a project with so many open pairs; the thoughtful one is on top."""
    from benchmarks.labelers import Shift, outcomes, run_shift, served_twice, told
    from benchmarks.seeding import Wanted, seed

    people = -(-options.clients // options.tabs)
    annotators = max(people, options.annotators)
    print(f"seeding {open_pairs:,} open pairs ...", file=sys.stderr, flush=True)
    seeded = seed(f"pairs-{open_pairs}", Wanted(open_pairs, annotators, options.judgements, options.done))
    groups = [seeded.annotators[client // options.tabs :: people] for client in range(options.clients)]
    readings, everything, before = [], [], options.done * annotators
    for think_ms in sorted({options.think_ms, 0.0}, reverse=True):
        print(f"measuring, thinking {think_ms:g} ms ...", file=sys.stderr, flush=True)
        shift = Shift(options.clients, options.warm_up, options.seconds, think_ms / 1000)
        tallies, busy = run_shift(seeded, groups, shift)
        readings.append(told(tallies, shift, busy))
        everything += tallies
    errors = [error for tally in everything for error in tally.errors]
    truth = database_truth(seeded.project_id)
    became = outcomes(everything)
    return {
        "database": options.database,
        "fsync": options.fsync if options.database == "postgres" else None,
        "open_pairs": open_pairs,
        "clients": options.clients,
        "annotators": annotators,
        "tabs": options.tabs,
        "judgements": options.judgements,
        "done": options.done,
        "seconds": options.seconds,
        **readings[0],
        "closed_loop": readings[-1],
        "repeats": became["repeated"],
        "late_answers": became["extra"],
        "nothing_open": became["nothing_open"],
        "duplicates": served_twice(everything) + truth["duplicates"],
        "over_collections": truth["over_collections"],
        # An answer that failed may have been saved all the same, so errors hide no loss and make none.
        "lost_answers": 0 if errors else became["saved"] + became["extra"] + before - truth["judgements"],
        "errors": len(errors),
        "error_messages": sorted(set(errors))[:5],
    }


def database_truth(project_id: int) -> dict[str, int]:
    """What the rows say: people with two slots or two answers of a pair, pairs with too many, and judgements in all."""
    from django.db.models import Count, F, Q

    from labeling.models import Preference, Project, Slot

    lease_seconds = Project.objects.values_list("lease_minutes", flat=True).get(pk=project_id) * 60
    mine = Preference.objects.filter(project=project_id)
    slots = Slot.objects.filter(project=project_id, annotator__isnull=False)
    is_late = Q(slot__kind=Slot.Kind.EXTRA, seconds__gte=lease_seconds)
    timely = mine.filter(~is_late, is_current=True)
    collected = timely.values("pair").annotate(count=Count("pk"), wanted=F("pair__judgements_wanted"))
    return {
        "duplicates": sum(
            rows.values("pair", "annotator").annotate(count=Count("pk")).filter(count__gt=1).count()
            for rows in (mine, slots)
        ),
        "over_collections": collected.filter(count__gt=F("wanted")).count(),
        "judgements": mine.filter(is_current=True).count(),
    }


def compared(small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    return {
        "compared_with": small,
        "lease_p95_ratio": round(large["lease_ms"]["p95"] / small["lease_ms"]["p95"], 2),
        "closed_loop_lease_p95_ratio": round(
            large["closed_loop"]["lease_ms"]["p95"] / small["closed_loop"]["lease_ms"]["p95"], 2
        ),
    }


def table(reports: list[dict[str, Any]]) -> str:
    head = f"{'open pairs':>10}  {'think':>6}  {'claims/s':>8}  {'lease p50':>9}  {'p95':>7}  {'p99':>7}"
    lines = [f"{head}  {'submit p50':>10}  {'p95':>7}  {'p99':>7}  {'cores':>5}  statements"]
    for report in reports:
        for reading in [report] if report["think_ms"] == 0 else [report, report["closed_loop"]]:
            lines.append(_line(report["open_pairs"], reading))
        counts = "  ".join(f"{name.replace('_', ' ')} {report[name]}" for name in (*FAULTS, "errors", "repeats"))
        lines.append(f"{'':>10}  {counts}")
    if "lease_p95_ratio" in reports[-1]:
        ratios = reports[-1]["lease_p95_ratio"], reports[-1]["closed_loop_lease_p95_ratio"]
        lines.append(f"{'':>10}  lease p95 against {SMALL:,} open pairs: {ratios[0]}×, without thought {ratios[1]}×")
    return "\n".join(lines)


def _line(open_pairs: int, reading: dict[str, Any]) -> str:
    columns = [f"{open_pairs:>10,}", f"{reading['think_ms']:>6g}", f"{reading['claims_per_s']:>8.1f}"]
    for name, width in (("lease_ms", 9), ("submit_ms", 10)):
        p50, p95, p99 = (reading[name].get(percentile, 0.0) for percentile in ("p50", "p95", "p99"))
        columns += [f"{p50:>{width}.2f}", f"{p95:>7.2f}", f"{p99:>7.2f}"]
    columns.append("    ?" if reading["cpu_busy"] is None else f"{reading['cpu_busy']:>5.0%}")
    return "  ".join([*columns, f"{reading['lease_statements']} + {reading['submit_statements']}"])


if __name__ == "__main__":
    sys.exit(main())
