"""An ablation under several conditions: a study for each, and how the gain of its rows depends on them."""

import csv
import io
from collections.abc import Mapping, Sequence

from data_catalog.storage.folders import Folder
from data_catalog.tables.digests import json_digest
from experiments.studies.ablation.ablation_result import AblationResult, TableRow
from experiments.studies.ablation.conditions import AblationGrid, Condition, GridCell, describe
from experiments.studies.ablation.grid_figure import draw_grid
from experiments.studies.ablation.table_text import as_csv, shown_spread

GRIDS = "grids"
"""Folder of all grids in a workspace."""


def write_grid(
    workspace: Folder,
    over: Mapping[str, tuple[str, ...]],
    results: Sequence[tuple[Condition, AblationResult]],
) -> AblationGrid:
    """Write the tables and pictures of a grid into a folder of its own.

    Args:
        workspace: Workspace of the studies.
        over: Setting to values.
        results: Results of each condition, in the order of `list_conditions`.
    """
    first = results[0][1]
    digest = json_digest([result.study for _, result in results])[:8]
    name = f"{first.recipe}-{'-'.join(first.tables)}-over-{len(results)}conditions-{digest}"
    folder = workspace / GRIDS / name
    written: list[str] = []
    for key in first.tables:
        rows = [(condition, result.find_rows(key)) for condition, result in results]
        # Rows about the text are no modules.
        gains = [row.name for row in rows[0][1] if row.index or row.x is not None or row.name in first.added]
        contents: dict[str, str | bytes] = {
            "md": _as_markdown(first.titles[key], rows, results),
            "csv": _as_csv(rows),
            "png": draw_grid(first.titles[key], over, rows, gains),
        }
        for kind, content in contents.items():
            folder.write(f"{key}.{kind}", content)
            written.append(f"{key}.{kind}")
    return AblationGrid(
        name=name,
        over=dict(over),
        cells=tuple(GridCell(condition=dict(condition), result=result) for condition, result in results),
        files={name: folder.file(name) for name in written},
    )


def _as_markdown(
    title: str,
    tables: Sequence[tuple[Condition, Sequence[TableRow]]],
    results: Sequence[tuple[Condition, AblationResult]],
) -> str:
    """A line for each condition, a column for each row: its mAP, and its gain with interval and verdict."""
    names = [row.label for row in tables[0][1]]
    lines = [f"**{title}**", "", "| condition | " + " | ".join(names) + " |", "|" + "---|" * (1 + len(names))]
    lines += [
        f"| {describe(condition)} | " + " | ".join(_cell(row) for row in rows) + " |"
        for condition, rows in tables
    ]
    notes = [
        "mAP in percent, mean ± standard deviation over seeds; below it the gain over the row that it is "
        "compared with, its 95 % interval over seeds, and the verdict."
    ]
    notes += [f"{describe(condition)}: study {result.study}." for condition, result in results]
    # Those that all conditions have are said once.
    noted = dict.fromkeys(note for _, result in results for note in result.notes)
    notes += [
        note if len(where) == len(results) else f"{'; '.join(where)}: {note}"
        for note in noted
        if (where := [describe(condition) for condition, result in results if note in result.notes])
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _cell(row: TableRow) -> str:
    precision = row.mean_average_precision
    shown = shown_spread(precision)
    if precision.difference is None:
        return shown
    interval = precision.difference_interval
    ends = "" if interval is None else f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
    return f"{shown}<br>{100 * precision.difference:+.1f}{ends}, {precision.shown_verdict}"


def _as_csv(tables: Sequence[tuple[Condition, Sequence[TableRow]]]) -> str:
    """The tables of all conditions below each other, with a column for each setting."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for number, (condition, rows) in enumerate(tables):
        header, *lines = csv.reader(io.StringIO(as_csv(rows)))
        if number == 0:
            writer.writerow([*condition, *header])
        writer.writerows([[*condition.values(), *line] for line in lines])
    return out.getvalue()
