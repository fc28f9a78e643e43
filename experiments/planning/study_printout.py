"""A plan of a study for a terminal."""

from collections import Counter

from rich.console import Console

from experiments.planning.plan_printout import as_bytes, as_duration, as_short, print_findings, print_tables
from experiments.planning.study_plan import StudyPlan
from experiments.terminal_tables import print_table, text_console, text_table

SHARES = {
    "training": "training_hours",
    "evaluation": "evaluation_hours",
    "start of\nruns": "run_start_hours",
    "start of\nmachines": "machine_start_hours",
    "idle": "idle_hours",
}


def print_study_plan(plan: StudyPlan) -> None:
    """Print a plan for a terminal."""
    console = text_console()
    _print_runs(console, plan)
    print_tables(console, plan.tables)
    console.print(
        f"Memory of a worker of the run with the most FLOPs: {as_bytes(plan.memory.peak)}; its process "
        "(about 1 GiB), and the waste of its allocator, are not included.",
        soft_wrap=True,
    )
    _print_times(console, plan)
    for note in plan.notes:
        console.print(f"Also assumed: {note}.", soft_wrap=True)
    print_findings(console, plan.errors, plan.warnings)


def _print_runs(console: Console, plan: StudyPlan) -> None:
    states = Counter(run.state for run in plan.runs)
    counts = ", ".join(f"{states[state]} {state}" for state in ("finished", "begun", "to do"))
    name = plan.recipe if plan.study is None else plan.study
    table = text_table(
        f"{name}: {len(plan.runs)} runs, {counts}", "runs", "finished", "begun", "to do", "FLOP"
    )
    for part in dict.fromkeys(part for run in plan.runs for part in run.parts):
        runs = [run for run in plan.runs if part in run.parts]
        of_part = Counter(run.state for run in runs)
        table.add_row(
            part,
            *(str(of_part[state]) for state in ("finished", "begun", "to do")),
            as_short(sum(run.flops for run in runs)),
        )
    print_table(console, table)
    if plan.study is None:
        console.print("Which runs are finished is not known before their tables are made.")


def _print_times(console: Console, plan: StudyPlan) -> None:
    assumed = plan.assumptions
    priced = assumed.price is not None
    title = "what the runs that are left take, and where the hours of the devices go"
    columns = [
        "hardware",
        "devices",
        "runs\nat once",
        "time",
        "device-\nhours",
        *SHARES,
        *(["price"] if priced else []),
    ]
    table = text_table(title, *columns)
    for entry in plan.times:
        shares = [
            getattr(entry, field) / entry.device_hours if entry.device_hours else 0.0
            for field in SHARES.values()
        ]
        table.add_row(
            entry.hardware,
            *(
                str(entry.devices),
                str(entry.at_once),
                as_duration(entry.seconds),
                f"{entry.device_hours:.1f}",
            ),
            *(f"{share:.0%}" for share in shares),
            *([f"{entry.price:.2f}"] if entry.price is not None else []),
        )
    print_table(console, table)
    utilisation = ", ".join(
        dict.fromkeys(f"{entry.utilisation:.0%} of {entry.hardware}" for entry in plan.times)
    )
    price = f", {assumed.price:g} for a device in an hour" if priced else ""
    console.print(
        f"Assumed, not measured: {utilisation} (peaks in experiments/planning/hardware.yaml), "
        f"{assumed.start_seconds:g} s from the start of a run to its first step, "
        f"{assumed.machine_seconds:g} s until a machine takes work{price}. All devices are paid until the "
        "last run ends. Not included: the exchange of gradients, checkpoints, ranking, and what a spot "
        "machine takes with it.",
        soft_wrap=True,
    )
