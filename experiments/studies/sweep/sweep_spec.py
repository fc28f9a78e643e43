"""The specification of a sweep: a recipe, the settings that are searched, and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data_catalog.tables.digests import json_digest
from experiments.experiment_config import ExperimentConfig, ReportConfig
from experiments.recipes import resolve
from experiments.run.run_tables import RunTables
from experiments.studies.sweep.search_space import Space, config_with


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep searches, and how.

    Attributes:
        recipe: Name.
        settings: Changes of every trial.
        space: What is searched.
        trials: How many; more may be asked for later.
        name: Name of the study; None for one made of the recipe and the fingerprint.
        two_objectives: Search for a low cost as well as for a high mAP.
        early_stopping: Stop weak trials.
    """

    recipe: str
    settings: tuple[str, ...]
    space: Space
    trials: int
    name: str | None = None
    two_objectives: bool = False
    early_stopping: bool = True

    @property
    def base(self) -> ExperimentConfig:
        """What all trials have in common."""
        return resolve(self.recipe, list(self.settings))

    def config(self, values: Mapping[str, Any]) -> ExperimentConfig:
        """The config of a trial with these values.

        Raises:
            ConfigError: They are impossible together.
        """
        return config_with(self.recipe, self.settings, values)

    def fingerprint(self, tables: RunTables) -> str:
        """Digest of all that decides which trials are sampled and how they end, except their number."""
        return json_digest(
            {
                "base": self.base.deciding(),
                "tables": tables.digests,
                "space": [dimension.stored_text for dimension in self.space.dimensions],
                "objectives": 2 if self.two_objectives else 1,
                "early_stopping": self.early_stopping,
            }
        )

    def study_name(self, tables: RunTables) -> str:
        """The study's name."""
        return self.name or f"{self.recipe}-sweep-{self.fingerprint(tables)[:8]}"


def chosen_by(report: ReportConfig) -> Literal["last", "validation"]:
    """Which epoch of a trial counts.

    Where a recipe reports the epoch that is best on test, the one best on validation counts: test identities
    choose nothing here.
    """
    return "last" if report.epoch == "last" else "validation"
