"""An ablation as a study: which runs its rows need, and their finished tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_catalog.tables.table import json_digest
from experiments.recipes import ConfigError, ExperimentConfig, differences, resolve
from experiments.run.run_data import RunTables
from experiments.run.run_folder import RunFolder
from experiments.studies.ablation.ablation_result import AblationResult, TableRow
from experiments.studies.ablation.ablation_table import EPOCHS, Measured, table_rows
from experiments.studies.ablation.rows import Ablation, Row
from experiments.studies.ablation.table_figure import draw
from experiments.studies.ablation.table_text import as_csv, as_markdown
from experiments.studies.published import published
from experiments.studies.study import (
    EpochProgress,
    Member,
    StudyFolder,
    StudyMirror,
    begin_study,
    other_code,
    warn_of_other_code,
    watched,
)
from experiments.studies.tuning import train_members
from experiments.tracking.mlflow_logger import MlflowRun

NO_TEXT = Row("no text", ("model.text=off",))


@dataclass(frozen=True)
class PlannedRow:
    """A row and its runs.

    Attributes:
        row: Which.
        configs: Seed to the config of its run.
        feature: What of the runs it shows; None for the feature that they report.
        against: Name of the row that it is compared with.
    """

    row: Row
    configs: Mapping[int, ExperimentConfig]
    feature: str | None
    against: str | None


@dataclass(frozen=True)
class Plan:
    """What a study of ablations trains and shows.

    Attributes:
        recipe: Name.
        settings: Changes of every row.
        seeds: In ascending order.
        rows: Ablation and its rows, those of the paper first.
    """

    recipe: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[tuple[Ablation, tuple[PlannedRow, ...]], ...]

    @property
    def configs(self) -> list[ExperimentConfig]:
        """Every config once: all rows with the first seed, then with the next."""
        by_text: dict[str, ExperimentConfig] = {}
        for seed in self.seeds:
            for _, rows in self.rows:
                for planned in rows:
                    config = planned.configs[seed]
                    by_text.setdefault(config.model_dump_json(), config)
        return list(by_text.values())

    def name(self, tables: RunTables) -> str:
        """Of the study: what is asked for, and the start of the digest of its configs and data."""
        mark = json_digest(
            {
                "configs": [config.model_dump(mode="json") for config in self.configs],
                "tables": tables.digests,
                "rows": [[ablation.key, *(p.row.name for p in rows)] for ablation, rows in self.rows],
            }
        )
        asked = "-".join(ablation.key for ablation, _ in self.rows)
        return f"{self.recipe}-{asked}-{len(self.seeds)}seeds-{mark[:8]}"

    def labels(self, config: ExperimentConfig) -> list[str]:
        """Where a config stands: `table3 A baseline`, and so on."""
        return [
            " ".join(filter(None, [ablation.key, planned.row.index, planned.row.name]))
            for ablation, rows in self.rows
            for planned in rows
            if planned.feature is None and config in planned.configs.values()
        ]


def plan_ablation(ablations: Sequence[Ablation], recipe: str, settings: Sequence[str], seeds: int) -> Plan:
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
    first = resolve(recipe, list(settings)).seed
    numbers = tuple(range(first, first + seeds))

    def planned(row: Row, feature: str | None, against: str | None) -> PlannedRow:
        configs = {n: resolve(recipe, [*settings, *row.settings, f"seed={n}"]) for n in numbers}
        return PlannedRow(row, configs, feature, against)

    rows = []
    for ablation in ablations:
        above = [None, *(row.name for row in ablation.rows)]
        of_paper = [planned(row, None, name) for row, name in zip(ablation.rows, above, strict=False)]
        rows.append((ablation, (*of_paper, *_beside(ablation, planned, recipe, settings))))
        _check_rows(ablation, rows[-1][1], numbers[0])
    return Plan(recipe, tuple(settings), numbers, tuple(rows))


def _check_settings(ablation: Ablation, settings: Sequence[str]) -> None:
    """Refuse to set for all rows what they differ in, or to switch off what it belongs to."""
    beside = () if ablation.key.startswith("figure") else (NO_TEXT,)
    for row in (*ablation.rows, *beside):
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


def _check_rows(ablation: Ablation, rows: Sequence[PlannedRow], seed: int) -> None:
    """Refuse rows that are one and the same: their difference would be nothing but the name."""
    known: dict[tuple[str, str | None], str] = {}
    for planned in rows:
        mark = planned.configs[seed].model_dump_json(), planned.feature
        if (same := known.setdefault(mark, planned.row.name)) != planned.row.name:
            raise ConfigError(
                f"rows {same!r} and {planned.row.name!r} of {ablation.key} have the same settings with what "
                "--recipe and --set give; leave out the --set that makes them so"
            )


def _beside(ablation: Ablation, planned: Any, recipe: str, settings: Sequence[str]) -> list[PlannedRow]:
    """Text alone, G alone and the full model without text: captions can make any gain of U."""
    full = ablation.rows[-1]
    if ablation.key.startswith("figure"):
        return []
    # What needs the text cannot be reported without it; of the vehicles' feature G remains.
    needs_text = resolve(recipe, list(settings)).report.feature in ("T", "GTTT")
    without = Row(NO_TEXT.name, (*NO_TEXT.settings, *(("report.feature=G",) if needs_text else ())))
    return [
        planned(Row("T alone", full.settings), "T", full.name),
        planned(Row("G alone", full.settings), "G", full.name),
        planned(without, None, full.name),
    ]


def run_ablation(
    plan: Plan,
    tables: RunTables,
    workspace: Path,
    tracking_uri: str,
    storage_uri: str | None,
    gpus_per_worker: float | None = None,
) -> AblationResult:
    """Train what is missing of a plan, and write its tables.

    Args:
        plan: Checked against its tables.
        tables: What the runs read.
        workspace: Folder of all runs.
        tracking_uri: MLflow's.
        storage_uri: Folder or URI of checkpoints; None for the runs' own folders.
        gpus_per_worker: None for one each where the cluster has GPUs; 0 trains on processors.

    Raises:
        RunError: Another process runs this study.
    """
    study = StudyFolder.of(workspace, plan.name(tables))
    with study.only_one():
        study.belong_to("ablation", study.name)
        members = [_member(plan, config, tables, workspace) for config in plan.configs]
        parameters = {"recipe": plan.recipe, "seeds": len(plan.seeds), "settings": " ".join(plan.settings)}
        parameters |= {"tables": " ".join(ablation.key for ablation, _ in plan.rows), "runs": len(members)}
        mirror = StudyMirror(
            tracking_uri, workspace, study, plan.recipe, parameters, {"stmi.kind": "ablation"}
        )
        if any(not member.folder.is_finished for member in members):
            mirror.reopen()
        warn_of_other_code(members)
        begin_study(study)
        epochs = sum(member.config.train.epochs for member in members)
        with watched(members, mirror, EpochProgress(members), epochs, "epoch"):
            wrong = train_members(members, tables, workspace, study, storage_uri, gpus_per_worker)
        result = _result(plan, study, members, wrong, mirror.parent.place)
        for row in result.rows:
            study.journal.append("row", **row.model_dump(mode="json"))
        # Before MLflow is told of it, which may take its time, or fail.
        study.write_result(result)
        mirror.sync(members)
        result = result.model_copy(update={"mlflow": mirror.parent.place})
        files = [study.write_result(result), *(Path(path) for path in result.files.values())]
        status = {m.folder.name: "FAILED" if m.folder.name in wrong else "FINISHED" for m in members}
        mirror.finish(members, status, files, complete=not wrong)
        return result


def _member(plan: Plan, config: ExperimentConfig, tables: RunTables, workspace: Path) -> Member:
    labels = plan.labels(config)
    return Member(
        RunFolder.of(workspace, config, tables),
        config,
        f"{labels[0]}, seed {config.seed}",
        {"stmi.arm": labels[0], "stmi.rows": "; ".join(labels), "stmi.seed": str(config.seed)},
    )


def _result(
    plan: Plan, study: StudyFolder, members: Sequence[Member], wrong: Mapping[str, str], mlflow: MlflowRun
) -> AblationResult:
    full = plan.rows[0][1][0].configs[plan.seeds[0]]
    runs = {member.config.model_dump_json(): member.folder for member in members}
    notes = [*_notes(full, plan), *other_code(members)]
    rows: list[TableRow] = []
    files: dict[str, str] = {}
    titles = {}
    for ablation, planned in plan.rows:
        measured = [_measured(one, runs) for one in planned]
        table = table_rows(ablation, measured, full.data.dataset)
        source = published("figure5" if ablation.key.startswith("figure5") else ablation.key).source
        titles[ablation.key] = title = f"{source} of the paper ({ablation.title}), {plan.recipe}"
        rows += table
        texts = {
            "md": as_markdown(title, table, notes),
            "csv": as_csv(table),
            "json": json.dumps([row.model_dump(mode="json") for row in table], indent=2, allow_nan=False)
            + "\n",
        }
        for kind, text in texts.items():
            files[f"{ablation.key}.{kind}"] = str(study.write(f"{ablation.key}.{kind}", text))
        files[f"{ablation.key}.png"] = str(draw(ablation, title, table, study.path / f"{ablation.key}.png"))
    return AblationResult(
        study=study.name,
        recipe=plan.recipe,
        settings=plan.settings,
        tables=tuple(ablation.key for ablation, _ in plan.rows),
        titles=titles,
        seeds=plan.seeds,
        feature=full.report.feature,
        epoch=full.report.epoch,
        rows=tuple(rows),
        notes=tuple(notes),
        table=files[f"{plan.rows[0][0].key}.md"],
        files=files,
        wrong=dict(wrong),
        mlflow=mlflow,
    )


def _measured(planned: PlannedRow, runs: Mapping[str, RunFolder]) -> Measured:
    first = next(iter(planned.configs.values()))
    changed = differences(resolve(first.recipe), first)
    finished = {
        seed: run
        for seed, config in planned.configs.items()
        if (run := runs[config.model_dump_json()]).is_finished
    }
    return Measured(
        planned.row,
        planned.feature or first.report.feature,
        finished,
        planned.against,
        {name: new for name, (_, new) in changed.items() if name != "seed"},
    )


def _notes(config: ExperimentConfig, plan: Plan) -> list[str]:
    return [
        f"Measured: {config.data.dataset}, feature {config.report.feature}, {EPOCHS[config.report.epoch]}, "
        f"{len(plan.seeds)} seeds of training ({', '.join(map(str, plan.seeds))}).",
        "The paper's numbers are those of RGBNT201, without a spread. Where the recipe is for another data "
        "set or starts from other weights, only the direction of their differences can be compared.",
        "T alone and G alone are features of the full model's runs; no text is it trained without T.",
        "Differences are to the row above, those of T alone, G alone and no text to the full model. Their "
        "intervals are over seeds (paired t) and over queries (bootstrap of identities). Real: both tests "
        "together below 0.05 after Holm's correction for the differences of the table.",
    ]
