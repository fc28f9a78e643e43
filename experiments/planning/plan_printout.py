"""A plan for a terminal: one table for each of its parts, with units."""

from collections.abc import Sequence
from datetime import timedelta

from matplotlib.ticker import EngFormatter
from rich.console import Console
from rich.filesize import pick_unit_and_suffix

from experiments.planning.calibration import Calibration
from experiments.planning.cost import ParameterCount
from experiments.planning.expected_tables import ExpectedTable
from experiments.planning.memory_use import Memory
from experiments.planning.run_plan import RunPlan
from experiments.settings_list import as_typed
from experiments.terminal_tables import print_table, text_console, text_table

NO_SETTINGS = ("recipe", "data.synthetic")
"""What a config holds and `--set` does not take: the recipe's name, and a group that the recipe lacks."""
_PART_NAMES = {"str": "STR", "chi": "CHI", "heads": "identity heads"}
_MEMORY_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser state",
    "batch": "batch",
    "activations": "activations kept for the backward pass",
    "training_peak": "peak in training",
    "evaluation_peak": "peak in evaluation",
}


def print_plan(plan: RunPlan) -> None:
    """Print a plan for a terminal."""
    console = text_console()
    _print_settings(console, plan)
    _print_cost(console, plan)
    _print_memory(console, plan.memory, plan.config["train.workers"])
    print_tables(console, plan.tables)
    _print_time(console, plan)
    if plan.calibration is not None:
        _print_calibration(console, plan.calibration)
    print_findings(console, plan.errors, plan.warnings)


def print_findings(console: Console, errors: Sequence[str], warnings: Sequence[str]) -> None:
    """Print what would stop a run or a study, and what it would warn of."""
    for error in errors:
        console.print(f"error: {error}", style="red", soft_wrap=True)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def _print_settings(console: Console, plan: RunPlan) -> None:
    settings = text_table(f"{plan.recipe}: settings", "setting", "value", "changed from", left=3)
    for name, value in plan.config.items():
        if name in NO_SETTINGS:
            continue
        changed = plan.changed.get(name)
        settings.add_row(name, as_typed(value), as_typed(changed.recipe) if changed else "")
    print_table(console, settings)
    if plan.counterpart is None:
        return
    names = (plan.recipe, plan.counterpart)
    table = text_table(f"differences between {names[0]} and {names[1]}", "setting", *names, left=3)
    for name, different in plan.differences.items():
        table.add_row(name, as_typed(different.here), as_typed(different.there))
    print_table(console, table)


def _print_cost(console: Console, plan: RunPlan) -> None:
    parameters, forward, step = plan.parameters, plan.flops.forward, plan.flops.training_step
    title = "parameters, and FLOPs of one sample (three images)"
    table = text_table(title, "part", "parameters", "trained", "forward", "step")

    def add_row(label: str, count: ParameterCount | None, forward_flops: int, step_flops: int) -> None:
        counts = (0, 0) if count is None else (count.total, count.trained)
        flops = (as_short(forward_flops, "FLOP"), as_short(step_flops, "FLOP"))
        table.add_row(label, *map(as_short, counts), *flops)

    for part, flops in forward.by_part.items():
        add_row(
            _PART_NAMES.get(part, part.replace("_", " ")),
            parameters.by_part.get(part),
            flops,
            step.by_part[part],
        )
    add_row("total", parameters, forward.total, step.total)
    print_table(console, table)
    if parameters.by_part["text_tower"].trained == 0:
        caption = as_short(plan.flops.caption, "FLOP")
        console.print(f"The text tower is frozen and not part of training: {caption} per caption, once.")
    if plan.losses_without_gradient:
        names = ", ".join(plan.losses_without_gradient)
        console.print(f"Losses that train nothing: {names}.", soft_wrap=True)


def _print_memory(console: Console, memory: Memory, workers: int) -> None:
    table = text_table(
        f"memory of a worker ({memory.samples} samples of a batch, 1 of {workers})", "what", "bytes"
    )
    for name, label in _MEMORY_NAMES.items():
        table.add_row(label, as_bytes(getattr(memory, name)))
    print_table(console, table)
    console.print("Its process (about 1 GiB), and the waste of its allocator, are not included.")


def print_tables(console: Console, tables: Sequence[ExpectedTable]) -> None:
    """Print the tables that a run or a study reads, and the commands that make those that are missing."""
    shown = text_table("tables it reads", "table", "key", "digest", "rows", "size", left=3)
    for table in tables:
        if table.command is None:
            digest = (table.digest or "")[:12]
            shown.add_row(table.name, table.key, digest, str(table.rows), as_bytes(table.bytes or 0))
        else:
            shown.add_row(table.name, "missing")
    print_table(console, shown)
    for table in tables:
        if table.command is not None:
            console.print(f"missing {table.name}: {table.command}", soft_wrap=True)


def _print_time(console: Console, plan: RunPlan) -> None:
    extent = plan.extent
    console.print(
        f"{extent.steps} steps in {plan.config['train.epochs']} epochs of {extent.samples['train']} samples, "
        f"{extent.embedded} samples embedded for evaluation, according to {extent.source}"
    )
    peak = f"peak,\n{plan.config['train.precision']}"
    columns = ("hardware", peak, "assumed\nshare", "step", "run", "GPU-\nhours", "memory")
    table = text_table("expected time", *columns)
    for entry in plan.hardware:
        table.add_row(
            entry.name,
            as_short(entry.peak_flops, "FLOP/s"),
            f"{entry.utilisation:.0%}",
            as_short(entry.step_seconds, "s"),
            as_duration(entry.seconds).replace(", ", "\n"),
            f"{entry.gpu_hours:.2g}" if entry.kind == "gpu" else "-",
            f"{as_bytes(entry.needed_bytes)}\nof {as_bytes(entry.memory_bytes)}",
        )
    print_table(console, table)
    console.print(
        "The share of the peak is an assumption, not a measurement (experiments/planning/hardware.yaml); "
        "--calibrate measures this machine. The start of workers, the exchange of gradients, checkpoints and "
        "ranking are not included.",
        soft_wrap=True,
    )


def _print_calibration(console: Console, measured: Calibration) -> None:
    threads = f", {measured.threads} of its threads" if measured.threads else ""
    hours = f", {measured.gpu_hours:.2g} GPU-hours" if measured.gpu_hours else ""
    console.print(
        f"measured here ({measured.device}{threads}): {as_short(measured.step_seconds, 's')} for a step of "
        f"{measured.samples} samples (median of {measured.steps}), "
        f"{as_short(measured.achieved_flops, 'FLOP/s')} per worker; the run would take "
        f"{as_duration(measured.seconds)}{hours}. The time that workers wait for each other is not included.",
        soft_wrap=True,
    )


def as_short(value: float, unit: str = "") -> str:
    """About three digits, with a prefix of the unit."""
    return EngFormatter(unit, places=1)(value)


def as_bytes(count: int) -> str:
    """With a binary prefix."""
    unit, suffix = pick_unit_and_suffix(count, ["B", "KiB", "MiB", "GiB", "TiB"], 1024)
    return f"{count / unit:.1f} {suffix}"


def as_duration(seconds: float) -> str:
    """As hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))
