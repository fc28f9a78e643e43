"""What a study would do, before it does anything: which runs are left, tables, memory, time and price."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data_catalog.progress import open_progress
from data_catalog.records import Record
from data_catalog.storage.folders import Folder
from experiments.experiment_config import ExperimentConfig
from experiments.planning.cost import measure_cost
from experiments.planning.expected_tables import (
    ExpectedTable,
    Extent,
    describe_tables,
    measure_extent,
    missing_tables,
)
from experiments.planning.expected_time import USABLE_MEMORY, expect_time
from experiments.planning.flop_counts import pass_flops
from experiments.planning.memory_use import Memory
from experiments.planning.plan_options import PlanChoices
from experiments.planning.run_plan import check_where_possible, clip_digest_of, workload_of
from experiments.planning.study_time import Assumptions, RunLeft, StudyTime, devices_of_run, expect_study_time
from experiments.run.made_tables import FoundTables, look_up_tables
from experiments.run.run_data import as_run_tables
from experiments.run.run_folder import RunFolder
from experiments.run.run_tables import RunTables
from experiments.tracking.journal_folder import JOURNAL

State = Literal["finished", "begun", "to do"]


class PlannedRun(Record):
    """A run of a study."""

    parts: list[str]
    """Parts of the study that it belongs to, such as rows of its tables."""
    seed: int
    run: str | None
    """Name of its folder; None where that is not known before its tables are made, or it is sampled."""
    state: State
    epochs: int
    """Epochs already trained."""
    of_epochs: int
    flops: int
    """FLOPs of all its training steps and evaluations."""


class StudyPlan(Record):
    """What a study would do."""

    recipe: str
    study: str | None
    """Its name; None where that is not known before its tables are made."""
    runs: list[PlannedRun]
    extent: Extent
    """Extent of the first run."""
    memory: Memory
    """Memory of a worker of the run with the most FLOPs."""
    tables: list[ExpectedTable]
    assumptions: Assumptions
    times: list[StudyTime]
    """Times of the runs that are left, by hardware and number of devices."""
    notes: list[str]
    """What the times leave out."""
    warnings: list[str]
    errors: tuple[str, ...] = ()
    """What would stop it, by the checks of its runs; not asked where data or CLIP are not there yet."""


@dataclass(frozen=True)
class RunToPlan:
    """A run of a study before it is planned.

    Attributes:
        config: Its settings.
        parts: As `PlannedRun`.
        run: As `PlannedRun`.
        state: As `PlannedRun`.
        epochs: As `PlannedRun`.
    """

    config: ExperimentConfig
    parts: Sequence[str]
    run: str | None = None
    state: State = "to do"
    epochs: int = 0


class StudyData:
    """The tables that all runs of a study read, found without making any.

    Args:
        first: One of the runs: the one that needs most tables.
        workspace: Folder of runs.
        catalog: Root of the catalog.
        maker: What makes all tables that are missing, before the runs; or None.

    Attributes:
        first: As given.
        run_tables: What the runs read; None where a table is missing.

    Raises:
        CatalogError: The catalog cannot be read.
    """

    def __init__(
        self, first: ExperimentConfig, workspace: Folder, catalog: str, maker: str | None = None
    ) -> None:
        self.first = first
        self.maker = maker
        self.workspace = workspace
        self.catalog = catalog
        self.clip_digest = clip_digest_of(first)
        self.tables: FoundTables = look_up_tables(first, self.clip_digest, catalog)
        self.run_tables = self._run_tables()

    def _run_tables(self) -> RunTables | None:
        found = {name: table for name, table in self.tables.items() if table is not None}
        digest = self.clip_digest
        if digest is None and "text_features" in found:
            digest = found["text_features"].manifest.inputs["clip"]
        if len(found) < len(self.tables) or digest is None:
            return None
        return as_run_tables(self.first, found, digest)

    def look_up(self, config: ExperimentConfig, parts: Sequence[str]) -> RunToPlan:
        """A run of the study with its state, found by what its folder would be called."""
        if self.run_tables is None:
            return RunToPlan(config, parts)
        folder = RunFolder.planned(self.workspace, config, self.run_tables)
        if folder.is_finished:
            return RunToPlan(config, parts, folder.name, "finished", config.train.epochs)
        if folder.has_file(JOURNAL):
            return RunToPlan(config, parts, folder.name, "begun", len(folder.journal.epochs()))
        return RunToPlan(config, parts, folder.name)


def make_study_plan(
    study: str | None,
    data: StudyData,
    runs: Sequence[RunToPlan],
    choices: PlanChoices,
    gpus_per_worker: float | None,
    notes: Sequence[str] = (),
    errors: Sequence[str] = (),
) -> StudyPlan:
    """All that can be known about a study without running it; needs neither tables nor weights.

    Args:
        study: As `StudyPlan`.
        data: What the runs read.
        runs: At least one, in the order in which they start.
        choices: Hardware, numbers of devices, and assumptions.
        gpus_per_worker: As `run_plan.make_plan` takes it.
        notes: As `StudyPlan`.
        errors: Known already.

    Raises:
        ConfigError: A config does not fit its CLIP or its data, or a run needs more devices than there are.
        CatalogError: Nothing is known about the data set, or the catalog cannot be read.
        ClipFileError: The architecture of the CLIP is unknown.
    """
    measured = _Measured(data)
    flops = measured.flops([run.config for run in runs])
    largest = runs[max(range(len(runs)), key=lambda index: sum(flops[index]))].config
    extent = measured.extent(data.first)
    memory = measure_cost(largest, extent.identities, extent.cameras).memory
    left: list[RunLeft] = []
    planned: list[PlannedRun] = []
    for run, (forward, backward) in zip(runs, flops, strict=True):
        counts = (forward, forward + backward)
        workload = workload_of(run.config, measured.extent(run.config), counts, memory.peak, gpus_per_worker)
        epochs = run.config.train.epochs
        left.append(RunLeft(workload, 1 - run.epochs / epochs))
        planned.append(
            PlannedRun(
                parts=list(run.parts),
                seed=run.config.seed,
                run=run.run,
                state=run.state,
                epochs=run.epochs,
                of_epochs=epochs,
                flops=workload.steps * workload.batch * workload.step_flops
                + workload.embedded * workload.forward_flops,
            )
        )
    times = [
        expect_study_time(left, name, devices, choices.assumed)
        for name in choices.hardware
        for devices in choices.devices(devices_of_run(left, name))
    ]
    tables = describe_tables(data.first, data.tables, data.catalog, data.maker)
    checked = [
        check_where_possible(config, data.tables, data.catalog, data.clip_digest)
        for config in _different([run.config for run in runs if run.state != "finished"])
    ]
    warnings = [finding.message for report in checked for finding in report.warnings]
    stopping = [finding.message for report in checked for finding in report.errors]
    return StudyPlan(
        recipe=data.first.recipe,
        study=study,
        runs=planned,
        extent=extent,
        memory=memory,
        tables=tables,
        assumptions=choices.assumed,
        times=times,
        notes=list(notes),
        warnings=list(dict.fromkeys([*_warnings(data, tables, left, choices.hardware), *warnings])),
        errors=tuple(dict.fromkeys([*errors, *stopping])),
    )


class _Measured:
    """Extent and FLOPs of runs, each measured once for all runs that have the same."""

    def __init__(self, data: StudyData) -> None:
        self.data = data
        self._extents: dict[str, Extent] = {}

    def extent(self, config: ExperimentConfig) -> Extent:
        parts = (config.data, config.batch, config.train)
        key = f"{config.seed} {' '.join(part.model_dump_json() for part in parts)}"
        if key not in self._extents:
            self._extents[key] = measure_extent(config, self.data.tables)
        return self._extents[key]

    def flops(self, configs: Sequence[ExperimentConfig]) -> list[tuple[int, int]]:
        """As `pass_flops`, of each; a published model takes seconds."""
        keys = [config.model.model_dump_json() + config.train.precision for config in configs]
        models = dict(zip(keys, configs, strict=True))
        counts: dict[str, tuple[int, int]] = {}
        with open_progress("counting FLOPs", "model", len(models)) as show:
            for key, config in models.items():
                extent = self.extent(config)
                counts[key] = pass_flops(config, extent.identities, extent.cameras)
                show(len(counts))
        return [counts[key] for key in keys]


def _different(configs: Sequence[ExperimentConfig]) -> list[ExperimentConfig]:
    """One of those configs that differ in nothing but the seed."""
    return list(
        {config.model_copy(update={"seed": 0}).model_dump_json(): config for config in configs}.values()
    )


def _warnings(
    data: StudyData, tables: Sequence[ExpectedTable], runs: Sequence[RunLeft], hardware: Sequence[str]
) -> list[str]:
    is_made = data.first.data.synthetic is not None or data.maker is not None
    warnings = [] if is_made else missing_tables(tables)
    for entry in (expect_time(runs[0].workload, name) for name in hardware):
        if not entry.fits:
            warnings.append(
                f"{entry.name}: the largest run needs {entry.needed_bytes / 2**30:.1f} GiB, and "
                f"{USABLE_MEMORY:.0%} of {entry.memory_bytes / 2**30:.0f} GiB can be used; `train.py --plan` "
                "says what would fit"
            )
    return warnings
