"""What a study of ablations trains: every row of its tables with every seed, and no run twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from data_catalog.tables.digests import json_digest
from experiments.recipes import ConfigError, ExperimentConfig, resolve
from experiments.run.run_data import RunTables
from experiments.studies.ablation.rows import Ablation, Row


@dataclass(frozen=True)
class AblationPlan:
    """What a study of ablations trains and shows.

    Attributes:
        recipe: Name.
        settings: Changes of every row.
        seeds: In ascending order.
        rows: Ablation and its rows, those of the paper first.
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

    def name(self, tables: RunTables) -> str:
        """Of the study: what it shows, and the start of the digest of its configs and data."""
        digest = json_digest(
            {
                "configs": [config.model_dump(mode="json") for config in self.configs],
                "tables": tables.digests,
                "rows": [[ablation.key, *(row.name for row in rows)] for ablation, rows in self.rows],
            }
        )
        keys = "-".join(ablation.key for ablation, _ in self.rows)
        return f"{self.recipe}-{keys}-{len(self.seeds)}seeds-{digest[:8]}"

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


def plan_ablation(
    ablations: Sequence[Ablation], recipe: str, settings: Sequence[str], seeds: int
) -> AblationPlan:
    """The configs of every row and seed.

    Args:
        ablations: Tables and figures.
        recipe: Name in `RECIPES`.
        settings: Changes of every row, as `dotted.name=value`.
        seeds: How many, from the recipe's on.

    Raises:
        ConfigError: A name is unknown, or the rows' own; a value is impossible; two rows come out the same.
    """
    for ablation in ablations:
        _check_settings(ablation, settings)
    first = resolve(recipe, list(settings))
    numbers = tuple(range(first.seed, first.seed + seeds))
    # A model that reports T or GTTT cannot report them without text.
    reports_text = first.report.feature in ("T", "GTTT")
    rows = tuple((ablation, ablation.all_rows(reports_text)) for ablation in ablations)
    config_of = {
        (row, seed): resolve(recipe, [*settings, *row.settings, f"seed={seed}"])
        for row in (row for _, of_table in rows for row in of_table)
        for seed in numbers
    }
    plan = AblationPlan(recipe, tuple(settings), numbers, rows, config_of)
    _check_rows(plan)
    return plan


def _check_settings(ablation: Ablation, settings: Sequence[str]) -> None:
    """Refuse to set for all rows what they differ in, or to switch off what it belongs to."""
    for row in ablation.all_rows():
        for varied in map(_name, row.settings):
            for setting in settings:
                if f"{varied}.".startswith(f"{_name(setting)}."):
                    raise ConfigError(
                        f"--set {setting}: row {row.name!r} of {ablation.key} sets {varied} itself, and rows "
                        "would not be what they are called; leave it out, or train such a run with train.py"
                    )


def _name(setting: str) -> str:
    """Name of a setting; a switch has that of its group (`model.chi` for `model.chi.enabled=off`)."""
    return setting.partition("=")[0].strip().removesuffix(".enabled")


def _check_rows(plan: AblationPlan) -> None:
    """Refuse two rows with the same settings, which would differ in nothing but the name."""
    for ablation, rows in plan.rows:
        for one, other in combinations(rows, 2):
            if one.feature == other.feature and plan.row_configs(one) == plan.row_configs(other):
                raise ConfigError(
                    f"rows {one.name!r} and {other.name!r} of {ablation.key} have the same settings with "
                    "what --recipe and --set give; leave out the --set that makes them so"
                )
