"""What a study of ablations trains: every row of its tables with every seed, and no run twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from data_catalog.tables.digests import json_digest
from experiments.experiment_config import ConfigError, ExperimentConfig, full_name
from experiments.recipes import resolve
from experiments.run.run_tables import RunTables
from experiments.studies.ablation.added_rows import ADDED_TABLE
from experiments.studies.ablation.rows import Ablation, Row

TEXT = "model.text"
"""The switch of the text. Where it is set for all rows, the rows about the text are left out."""


@dataclass(frozen=True)
class AblationSpec:
    """What a study of ablations trains and shows.

    Attributes:
        recipe: Name.
        settings: Changes of every row.
        seeds: In ascending order.
        rows: Ablation and its rows, in the order in which they are shown.
        config_of: Row and seed to the config of the run.
    """

    recipe: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[tuple[Ablation, tuple[Row, ...]], ...]
    config_of: Mapping[tuple[Row, int], ExperimentConfig]

    @property
    def configs(self) -> list[ExperimentConfig]:
        """Every config once: all rows with the first seed, then with the next."""
        ordered = (self.config_of[row, seed] for seed in self.seeds for _, rows in self.rows for row in rows)
        return list({config.model_dump_json(): config for config in ordered}.values())

    @property
    def added(self) -> list[Row]:
        """The rows from the command line, each once."""
        return list({row.name: row for ablation, _ in self.rows for row in ablation.added}.values())

    def name(self, tables: RunTables) -> str:
        """Name of the study: what it shows, and the start of the digest of its configs and data."""
        content: dict[str, Any] = {
            "configs": [config.deciding() for config in self.configs],
            "tables": tables.digests,
            "rows": [[ablation.key, *(row.name for row in rows)] for ablation, rows in self.rows],
        }
        keys = [ablation.key for ablation, _ in self.rows]
        if self.added:
            # Studies without such rows keep the names that they always had.
            content["against"] = [[row.against for row in ablation.added] for ablation, _ in self.rows]
            keys = list(dict.fromkeys([*keys, ADDED_TABLE]))
        return f"{self.recipe}-{'-'.join(keys)}-{len(self.seeds)}seeds-{json_digest(content)[:8]}"

    def labels(self, config: ExperimentConfig) -> list[str]:
        """The rows that a config belongs to: `table3 A baseline`, and so on."""
        return [
            " ".join(filter(None, [ablation.key, row.index, row.name]))
            for ablation, rows in self.rows
            for row in rows
            if row.feature is None and config in self.row_configs(row)
        ]

    def row_configs(self, row: Row) -> list[ExperimentConfig]:
        """The configs of a row, by seed."""
        return [self.config_of[row, seed] for seed in self.seeds]


def specify_ablation(
    ablations: Sequence[Ablation], recipe: str, settings: Sequence[str], seeds: int
) -> AblationSpec:
    """The configs of every row and seed.

    Args:
        ablations: Tables and figures.
        recipe: Name in `RECIPES`.
        settings: Changes of every row, as `dotted.name=value`.
        seeds: How many, from the recipe's on.

    Raises:
        ConfigError: A name is unknown, taken, or the rows' own; a value is impossible; two rows come out the
            same.
    """
    if TEXT in map(_name, settings):
        # Whether there is a text is decided for all rows: none is left to say what it brings.
        ablations = [replace(ablation, text_rows=False) for ablation in ablations]
    first = resolve(recipe, list(settings))
    ablations = [_without_superfluous(ablation, first, settings) for ablation in ablations]
    for ablation in ablations:
        _check_names(ablation)
        _check_settings(ablation, settings)
    numbers = tuple(range(first.seed, first.seed + seeds))
    # A model that reports T or GTTT cannot report them without text.
    reports_text = first.report.feature in ("T", "GTTT")
    rows = tuple((ablation, ablation.all_rows(reports_text)) for ablation in ablations)
    config_of = {
        (row, seed): _row_config(ablation, row, recipe, [*settings, *row.settings, f"seed={seed}"])
        for ablation, of_table in rows
        for row in of_table
        for seed in numbers
    }
    spec = AblationSpec(recipe, tuple(settings), numbers, rows, config_of)
    _check_rows(spec)
    return spec


def _without_superfluous(ablation: Ablation, first: ExperimentConfig, settings: Sequence[str]) -> Ablation:
    """The ablation without the optional rows that are the recipe itself, or set what all rows are given."""

    def is_needed(row: Row) -> bool:
        given = any(_covers(setting, varied) for setting in settings for varied in row.settings)
        return not given and resolve(first.recipe, [*settings, *row.settings]) != first

    return replace(ablation, rows=tuple(row for row in ablation.rows if not row.optional or is_needed(row)))


def _row_config(ablation: Ablation, row: Row, recipe: str, settings: list[str]) -> ExperimentConfig:
    try:
        return resolve(recipe, settings)
    except ConfigError as error:
        if row not in ablation.added:
            raise
        raise ConfigError(f"--row {row.name!r}: {error}") from None


def _check_names(ablation: Ablation) -> None:
    """Refuse two rows of the same name, and a comparison with a row that the table does not have."""
    names = [row.name for row in ablation.all_rows()]
    for row in ablation.all_rows():
        others = [name for name in names if name != row.name]
        if len(others) < len(names) - 1:
            raise ConfigError(f"two rows of {ablation.key} have the name {row.name!r}; choose another one")
        if row.against is not None and row.against not in others:
            raise ConfigError(
                f"row {row.name!r} of {ablation.key} is compared with {row.against!r}, but the other rows "
                f"there are {', '.join(others)}"
            )


def _check_settings(ablation: Ablation, settings: Sequence[str]) -> None:
    """Refuse to set for all rows what they differ in, or to switch off what it belongs to.

    Rows of the command line are named by their user, who may change in them what `--set` gives the others.
    """
    for row in replace(ablation, added=()).all_rows():
        for varied in row.settings:
            for setting in settings:
                if _covers(setting, varied):
                    raise ConfigError(
                        f"{setting}: row {row.name!r} of {ablation.key} sets {_name(varied)} itself, and "
                        "rows would not be what they are called; leave it out of --set and --over, or train "
                        "such a run with train.py"
                    )


def _covers(setting: str, varied: str) -> bool:
    """Whether one setting is of the same name as the other, or of its group."""
    return f"{_name(varied)}.".startswith(f"{_name(setting)}.")


def _name(setting: str) -> str:
    """Name of a setting; a switch has that of its group (`model.chi` for `model.chi.enabled=off`)."""
    return full_name(setting).partition("=")[0].strip().removesuffix(".enabled")


def _check_rows(spec: AblationSpec) -> None:
    """Refuse two rows with the same settings, which would differ in nothing but the name."""
    for ablation, rows in spec.rows:
        for one, other in combinations(rows, 2):
            if one.feature == other.feature and spec.row_configs(one) == spec.row_configs(other):
                remedy = "leave out the --set that makes them so"
                if other in ablation.added:
                    remedy = f"change the settings of --row {other.name!r}, or leave it out"
                raise ConfigError(
                    f"rows {one.name!r} and {other.name!r} of {ablation.key} have the same settings with "
                    f"what --recipe and --set give; {remedy}"
                )
