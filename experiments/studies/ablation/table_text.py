"""An ablation's rows as text: Markdown for a README, CSV for a spreadsheet."""

import csv
import io
from collections.abc import Sequence

from experiments.run.run_result import METRICS
from experiments.studies.ablation.ablation_result import EPOCHS, SeedSpread, TableRow

HEADER = (
    "row",
    "mAP, mean ± std",
    "95 % over seeds",
    "paper's mAP",
    "difference",
    "95 % over seeds",
    "95 % over queries",
    "p, corrected",
    "verdict",
    "paper's difference",
    "mAP, last epoch",
    "mAP, epoch by validation",
    "mAP, epoch best on test (flatters)",
    "rank 1",
    "hyperedge size",
)
SHORT_HEADER = ("row", "mAP, %", "difference", "95 % interval over", "verdict")
"""For a terminal of 80 columns."""


def as_markdown(title: str, rows: Sequence[TableRow], notes: Sequence[str]) -> str:
    """The table for a README; numbers in percent."""
    lines = [f"**{title}**", "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    below = [comparisons(rows), *undecided(rows), *notes]
    return "\n".join([*lines, "", *(f"- {note}" for note in below)]) + "\n"


def comparisons(rows: Sequence[TableRow]) -> str:
    """Which row each row of a table is compared with."""
    compared: dict[str, list[str]] = {}
    for row in rows:
        if (against := row.mean_average_precision.against) is not None:
            compared.setdefault(against, []).append(row.name)
    pairs = "; ".join(f"{', '.join(names)} with {against}" for against, names in compared.items())
    return f"Compared: {pairs}."


def undecided(rows: Sequence[TableRow]) -> list[str]:
    """What would decide each undecided difference; differences with the same advice together."""
    advised: dict[str, list[str]] = {}
    for row in rows:
        precision = row.mean_average_precision
        if precision.advice:
            advised.setdefault(precision.advice, []).append(f"{row.name} minus {precision.against}")
    return [f"{'; '.join(names)}: undecided; {advice}" for advice, names in advised.items()]


def as_csv(rows: Sequence[TableRow]) -> str:
    """The table for a spreadsheet: fractions, one column a number, empty where there is none."""
    out = io.StringIO()
    columns = [
        *("table", "index", "name", "feature", "seeds", "mAP", "mAP_std", "mAP_low", "mAP_high", "paper_mAP"),
        *("against", "difference", "difference_low", "difference_high", "query_low", "query_high"),
        *("p_value", "p_adjusted", "real", "verdict", "seeds_needed", "paper_difference"),
        *(f"mAP_{choice}{part}" for choice in EPOCHS for part in ("", "_std")),
        *METRICS[1:],
        *("hyperedge_size", "hyperedge_size_std"),
    ]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        precision = row.mean_average_precision
        epochs = [(row.epochs or {}).get(choice, SeedSpread()) for choice in EPOCHS]
        writer.writerow(
            [
                *(row.table, row.index, row.name, row.feature, len(row.seeds)),
                *(precision.mean, precision.std, *_ends(precision.interval), precision.paper),
                *(precision.against, precision.difference, *_ends(precision.difference_interval)),
                *(*_ends(precision.query_interval), precision.p_value, precision.p_adjusted),
                *(precision.real, precision.verdict, precision.seeds_needed, precision.paper_difference),
                *(number for spread in epochs for number in (spread.mean, spread.std)),
                *(row.metric(metric).mean for metric in METRICS[1:]),
                *((None, None) if (size := row.hyperedge_size) is None else (size.mean, size.std)),
            ]
        )
    return out.getvalue()


def _ends(interval: Sequence[float] | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval[0], interval[1])


def cells(row: TableRow) -> list[str]:
    """A row's cells as text, in percent, in the order of `HEADER`."""
    precision = row.mean_average_precision
    return [
        row.label,
        shown_spread(precision),
        _interval(precision.interval),
        _percent(precision.paper),
        _signed(precision.difference),
        _interval(precision.difference_interval, signed=True),
        _interval(precision.query_interval, signed=True),
        "" if precision.p_adjusted is None else f"{precision.p_adjusted:.3f}",
        precision.shown_verdict,
        _signed(precision.paper_difference),
        # Studies that older versions recorded have the reported epoch only.
        *("" if row.epochs is None else shown_spread(row.epochs[choice], missing="") for choice in EPOCHS),
        shown_spread(row.rank1),
        "" if row.hyperedge_size is None else shown_spread(row.hyperedge_size, scale=1),
    ]


def short_cells(row: TableRow, table: Sequence[TableRow]) -> list[str]:
    """A row's cells in percent, in the order of `SHORT_HEADER`, with two lines where it is compared."""
    precision = row.mean_average_precision
    names = {one.name: one.index or one.name for one in table}
    intervals = {"seeds  ": precision.difference_interval, "queries": precision.query_interval}
    shown = [f"{kind} {_interval(ends, signed=True)}" for kind, ends in intervals.items() if ends is not None]
    difference = ""
    if precision.difference is not None and precision.against is not None:
        difference = f"{_signed(precision.difference)}\nvs {names[precision.against]}"
    size = "" if row.hyperedge_size is None else f"\nsize {row.hyperedge_size.mean:.1f}"
    return [row.label, shown_spread(precision) + size, difference, "\n".join(shown), precision.shown_verdict]


def explain_size(rows: Sequence[TableRow]) -> list[str]:
    """What `size` in `short_cells` means, where a row has it."""
    has_sizes = any(row.hyperedge_size is not None for row in rows)
    return ["size: nodes in a hyperedge, the mean on the test identities; 1.0 joins nothing"] * has_sizes


def shown_spread(spread: SeedSpread, missing: str = "not finished", scale: float = 100) -> str:
    """Mean and standard deviation as text; metrics are in percent."""
    if spread.mean is None:
        return missing
    deviation = "" if spread.std is None else f" ± {scale * spread.std:.1f}"
    return f"{scale * spread.mean:.1f}{deviation}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def _interval(interval: Sequence[float] | None, signed: bool = False) -> str:
    if interval is None:
        return ""
    low, high = (100 * end for end in interval)
    return f"{low:+.1f} to {high:+.1f}" if signed else f"{low:.1f} to {high:.1f}"
