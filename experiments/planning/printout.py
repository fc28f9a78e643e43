"""A plan for a terminal: one table for each of its parts, with units."""

from datetime import timedelta
from typing import Any

from matplotlib.ticker import EngFormatter
from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.table import Table as RichTable

_PART_NAMES = {
    "image_tower": "image tower",
    "text_tower": "text tower",
    "str": "STR",
    "chi": "CHI",
    "fusion": "fusion",
    "heads": "identity heads",
    "losses": "losses",
    "total": "total",
}


def print_plan(planned: dict[str, Any], console: Console | None = None) -> None:
    """Print a plan for a terminal."""
    console = console or Console()
    _print_settings(console, planned)
    _print_cost(console, planned)
    _print_memory(console, planned["memory"], planned["config"]["train.workers"])
    _print_tables(console, planned["tables"])
    _print_time(console, planned)
    if planned["calibration"] is not None:
        _print_calibration(console, planned["calibration"])
    for warning in planned["warnings"]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def _table(title: str, *columns: str, left: int = 1) -> RichTable:
    """An empty table whose first columns are text, and the others numbers."""
    table = RichTable(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", overflow="fold")
    return table


def _print_settings(console: Console, planned: dict[str, Any]) -> None:
    settings = _table(f"{planned['recipe']}: settings", "setting", "value", "changed from", left=3)
    for name, value in planned["config"].items():
        changed = planned["changed"].get(name)
        settings.add_row(name, str(value), str(changed["recipe"]) if changed else "")
    console.print(settings)
    if planned["counterpart"] is None:
        return
    names = (planned["recipe"], planned["counterpart"])
    apart = _table(f"where {names[0]} and {names[1]} differ", "setting", *names, left=3)
    for name, values in planned["differences"].items():
        apart.add_row(name, str(values["here"]), str(values["there"]))
    console.print(apart)


def _print_cost(console: Console, planned: dict[str, Any]) -> None:
    parameters, flops = planned["parameters"], planned["flops"]
    forward, step = flops["forward"], flops["training_step"]
    table = _table(
        "parameters, and FLOPs of one sample (three images)",
        "part",
        "parameters",
        "trained",
        "forward",
        "step",
    )
    for part in (*forward["by_part"], "total"):
        of_part = (
            parameters if part == "total" else parameters["by_part"].get(part, {"total": 0, "trained": 0})
        )
        counts = [
            counted["total"] if part == "total" else counted["by_part"][part] for counted in (forward, step)
        ]
        table.add_row(
            _PART_NAMES[part],
            _short(of_part["total"]),
            _short(of_part["trained"]),
            *(_short(count, "FLOP") for count in counts),
        )
    console.print(table)
    if parameters["by_part"]["text_tower"]["trained"] == 0:
        caption = _short(flops["caption"], "FLOP")
        console.print(f"The text tower is frozen and no part of training: {caption} a caption, once.")


def _print_memory(console: Console, memory: dict[str, int], workers: int) -> None:
    table = _table(
        f"memory of a worker ({memory['samples']} samples of a batch, 1 of {workers})", "what", "bytes"
    )
    for name, label in {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "optimiser state",
        "batch": "batch",
        "activations": "activations kept for the backward pass",
        "training_peak": "most at one time in training",
        "evaluation_peak": "most at one time in evaluation",
    }.items():
        table.add_row(label, _bytes(memory[name]))
    console.print(table)
    console.print("Its process (about 1 GiB), and what its allocator wastes, come on top.")


def _print_tables(console: Console, tables: list[dict[str, Any]]) -> None:
    table = _table("tables it reads", "table", "key", "digest", "rows", "size", left=3)
    missing = [entry for entry in tables if entry["command"] is not None]
    for entry in tables:
        if entry["command"] is None:
            table.add_row(
                *(entry["name"], entry["key"], entry["digest"][:12]),
                str(entry["rows"]),
                _bytes(entry["bytes"]),
            )
        else:
            table.add_row(entry["name"], "missing")
    console.print(table)
    for entry in missing:
        console.print(f"missing {entry['name']}: {entry['command']}", highlight=False, soft_wrap=True)


def _print_time(console: Console, planned: dict[str, Any]) -> None:
    extent, epochs = planned["extent"], planned["config"]["train.epochs"]
    precision = planned["config"]["train.precision"]
    console.print(
        f"{extent['steps']} steps in {epochs} epochs of {extent['samples']['train']} samples, "
        f"{extent['embedded']} samples embedded to look at it, by {extent['source']}"
    )
    columns = ("hardware", f"peak, {precision}", "assumed share", "step", "run", "GPU-hours", "memory")
    table = _table("time to expect", *columns)
    for entry in planned["hardware"]:
        table.add_row(
            entry["name"],
            _short(entry["peak_flops"], "FLOP/s"),
            f"{entry['utilisation']:.0%}",
            _short(entry["step_seconds"], "s"),
            _duration(entry["seconds"]),
            f"{entry['gpu_hours']:.2g}" if entry["kind"] == "gpu" else "-",
            f"{_bytes(entry['needed_bytes'])} of {_bytes(entry['memory_bytes'])}",
        )
    console.print(table)
    console.print(
        "The share of the peak is an assumption, not a measurement (experiments/planning/hardware.yaml); "
        "--calibrate measures this machine. Starting workers, exchanging gradients, checkpoints and ranking "
        "are not counted.",
        soft_wrap=True,
    )


def _print_calibration(console: Console, measured: dict[str, Any]) -> None:
    threads = f", {measured['threads']} of its threads" if measured["threads"] else ""
    console.print(
        f"measured here ({measured['device']}{threads}): {_short(measured['step_seconds'], 's')} a step of "
        f"{measured['samples']} samples (median of {measured['steps']}), "
        f"{_short(measured['achieved_flops'], 'FLOP/s')} a worker; "
        f"the run would take {_duration(measured['seconds'])}"
        + (f", {measured['gpu_hours']:.2g} GPU-hours" if measured["gpu_hours"] else "")
        + ". What workers wait for each other is not in it.",
        highlight=False,
        soft_wrap=True,
    )


def _short(value: float, unit: str = "") -> str:
    """Three digits or so, with a prefix of the unit."""
    return EngFormatter(unit, places=1)(value)


def _bytes(count: int) -> str:
    unit, suffix = pick_unit_and_suffix(count, ["B", "KiB", "MiB", "GiB", "TiB"], 1024)
    return f"{count / unit:.1f} {suffix}"


def _duration(seconds: float) -> str:
    """As hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))
