"""An ablation as a study: its runs are the rows of its tables with every seed."""

import json
from collections.abc import Sequence
from typing import Any

from experiments.experiment_config import ExperimentConfig, differences
from experiments.recipes import resolve
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_tables import RunTables
from experiments.run.workers.ray_train import start_ray
from experiments.studies.ablation.ablation_result import EPOCHS, AblationResult, TableRow
from experiments.studies.ablation.ablation_spec import AblationSpec
from experiments.studies.ablation.ablation_table import (
    RowRuns,
    best_on_validation,
    degenerate_rows,
    table_rows,
)
from experiments.studies.ablation.rows import Ablation, Row
from experiments.studies.ablation.table_figure import draw
from experiments.studies.ablation.table_text import as_csv, as_markdown
from experiments.studies.published import published
from experiments.studies.study import Study, describe_other_code
from experiments.studies.study_logger import StudyRun
from experiments.studies.tuning import train_runs
from experiments.studies.verdicts import DEFINITION
from experiments.tracking.mlflow_store import MlflowRun


class AblationStudy(Study[AblationResult]):
    """A study of ablations.

    Args:
        spec: What it trains and shows; checked against the tables.
        tables: What the runs read.
        options: Where runs are kept and logged, and what their workers get.
    """

    kind = "ablation"
    unit = "epoch"
    result_form = AblationResult

    def __init__(self, spec: AblationSpec, tables: RunTables, options: RunOptions) -> None:
        super().__init__(spec.recipe, spec.name(tables), tables, options)
        self.spec = spec
        self.wrong: dict[str, str] = {}
        self._runs: list[StudyRun] = []
        self._epochs: dict[str, int] = {}

    def parameters(self) -> dict[str, Any]:
        """As in `Study`."""
        return {
            "recipe": self.spec.recipe,
            "seeds": len(self.spec.seeds),
            "settings": " ".join(self.spec.settings),
            "tables": " ".join(ablation.key for ablation, _ in self.spec.rows),
            "runs": len(self._runs),
            **({"added_rows": "; ".join(map(_describe, self.spec.added))} if self.spec.added else {}),
        }

    def open(self) -> None:
        """Make the folders of all runs."""
        self._runs = [self._study_run(config) for config in self.spec.configs]

    def runs(self) -> list[StudyRun]:
        """As in `Study`; all are known from the start."""
        return self._runs

    def has_all(self, result: AblationResult) -> bool:
        """As in `Study`; the study's name says which rows and seeds it has."""
        workspace = self.options.workspace
        return all(RunFolder.has_finished(workspace, config, self.tables) for config in self.spec.configs)

    def train(self) -> None:
        """As in `Study`."""
        start_ray(self.spec.configs[0].train.workers, self.options.gpus_per_worker)
        self.wrong = train_runs(self._runs, self.tables, self.options, self.folder)

    @property
    def total(self) -> int:
        """Epochs of all runs."""
        return sum(run.folder.config.train.epochs for run in self._runs)

    def progress(self) -> tuple[int, str]:
        """How many epochs are trained, and how many runs are finished."""
        for run in self._runs:
            if self._epochs.get(run.folder.name, 0) < run.folder.config.train.epochs:
                self._epochs[run.folder.name] = len(run.folder.journal.epochs())
        finished = sum(run.folder.is_finished for run in self._runs)
        return sum(self._epochs.values()), f"{finished}/{len(self._runs)} runs"

    def summarise(self, mlflow: MlflowRun) -> AblationResult:
        """The tables as they are measured so far, written as Markdown, CSV, JSON and a figure each."""
        spec = self.spec
        full = spec.configs[0]
        general = [*_notes(full, spec), *describe_other_code(self._runs)]
        notes, rules = list(general), list[RowRuns]()
        rows: list[TableRow] = []
        files: list[str] = []
        titles = {}
        for ablation, planned in spec.rows:
            measured = [self._row_runs(row) for row in planned]
            table, degenerate = table_rows(ablation, measured, full.data.dataset), degenerate_rows(measured)
            notes += [sentence for sentence in degenerate if sentence not in notes]
            if ablation.is_figure and not ablation.is_papers:
                rules += measured
            titles[ablation.key] = f"{_heading(ablation)}, {spec.recipe}"
            files += self._write(ablation, titles[ablation.key], table, [*general, *degenerate])
            rows += table
        if (best := best_on_validation(rules)) is not None:
            notes.append(best)
        for row in rows:
            self.folder.journal.append("row", **row.model_dump(mode="json"))
        return AblationResult(
            study=self.folder.name,
            recipe=spec.recipe,
            settings=spec.settings,
            tables=tuple(ablation.key for ablation, _ in spec.rows),
            titles=titles,
            seeds=spec.seeds,
            feature=full.report.feature,
            epoch=full.report.epoch,
            rows=tuple(rows),
            notes=tuple(notes),
            full={ablation.key: ablation.full for ablation, _ in spec.rows},
            added=tuple(row.name for row in spec.added),
            table=f"{spec.rows[0][0].key}.md",
            files={name: name for name in files},
            wrong=self.wrong,
            mlflow=mlflow,
        )

    def _study_run(self, config: ExperimentConfig) -> StudyRun:
        labels = self.spec.labels(config)
        return StudyRun(
            RunFolder.of(self.options.workspace, config, self.tables, self.options.storage),
            f"{labels[0]}, seed {config.seed}",
            # Keys that MLflow has from older versions.
            {"stmi.arm": labels[0], "stmi.rows": "; ".join(labels), "stmi.seed": str(config.seed)},
        )

    def _row_runs(self, row: Row) -> RowRuns:
        folders = {run.folder.config.model_dump_json(): run.folder for run in self._runs}
        configs = dict(zip(self.spec.seeds, self.spec.row_configs(row), strict=True))
        runs = {seed: folders[config.model_dump_json()] for seed, config in configs.items()}
        first = configs[self.spec.seeds[0]]
        changed = differences(resolve(first.recipe), first)
        return RowRuns(
            row,
            row.feature or first.report.feature,
            {seed: run for seed, run in runs.items() if run.is_finished},
            {name: new for name, (_, new) in changed.items() if name != "seed"},
        )

    def _write(
        self, ablation: Ablation, title: str, table: Sequence[TableRow], notes: Sequence[str]
    ) -> list[str]:
        """Write a table; returns the names of its files."""
        rows = [row.model_dump(mode="json") for row in table]
        contents: dict[str, str | bytes] = {
            "md": as_markdown(title, table, notes),
            "csv": as_csv(table),
            "json": json.dumps(rows, indent=2, allow_nan=False) + "\n",
            "png": draw(ablation, title, table),
        }
        for kind, content in contents.items():
            self.folder.write(f"{ablation.key}.{kind}", content)
        return [f"{ablation.key}.{kind}" for kind in contents]


def _heading(ablation: Ablation) -> str:
    if not ablation.is_papers:
        return ablation.title
    source = published("figure5" if ablation.is_figure else ablation.key).source
    return f"{source} of the paper ({ablation.title})"


def _describe(row: Row) -> str:
    return f"{row.name} ({' '.join(row.settings)})"


def _notes(config: ExperimentConfig, spec: AblationSpec) -> list[str]:
    notes = [
        f"Measured: {config.data.dataset}, feature {config.report.feature}, {EPOCHS[config.report.epoch]}, "
        f"{len(spec.seeds)} seeds of training ({', '.join(map(str, spec.seeds))}).",
    ]
    if any(ablation.is_papers for ablation, _ in spec.rows):
        notes.append(
            "The paper's numbers are those of RGBNT201, without a spread. Where the recipe is for another "
            "data set or starts from other weights, only the direction of their differences can be compared."
        )
    if any(ablation.text_rows for ablation, _ in spec.rows):
        notes.append(
            "T alone and G alone are features of the full model's runs; no text is the model trained without "
            "T."
        )
    if spec.added:
        notes.append(f"Added with --row: {'; '.join(map(_describe, spec.added))}.")
    return [
        *notes,
        "Intervals of differences are over seeds (paired t) and over queries (bootstrap of test identities).",
        f"Verdicts: {DEFINITION}",
    ]
