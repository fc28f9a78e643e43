"""What a run would do, before it does anything: settings, size, tables, memory and time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_catalog.checks.findings import CheckReport
from data_catalog.records import Record
from experiments.experiment_config import ConfigError, ExperimentConfig, SettingName, differences
from experiments.planning.calibration import Calibration, calibrate
from experiments.planning.cost import ModelParameters, measure_cost, measure_micro_batches
from experiments.planning.expected_tables import (
    ExpectedTable,
    Extent,
    describe_tables,
    measure_extent,
    missing_tables,
)
from experiments.planning.expected_time import (
    SHOWN_BY_DEFAULT,
    USABLE_MEMORY,
    ExpectedTime,
    Workload,
    expect_time,
    find_hardware,
)
from experiments.planning.flop_counts import Flops
from experiments.planning.memory_use import Memory
from experiments.planning.run_checks import check_run
from experiments.recipes import RECIPES, resolve
from experiments.run.elastic_workers import with_worker_count
from experiments.run.made_tables import FoundTables, look_up_tables
from stmi.clip.clip_files import WEIGHTS_FILE
from stmi.clip.loading import load_clip
from stmi.model import trained_features
from stmi.training.losses import losses_without_gradient


class ChangedSetting(Record):
    """A setting that differs from the recipe."""

    recipe: Any
    here: Any


class DifferentSetting(Record):
    """A setting that differs from the counterpart of the recipe."""

    here: Any
    there: Any


class RunPlan(Record):
    """What a run would do."""

    recipe: str
    config: dict[SettingName, Any]
    """All settings by full name."""
    changed: dict[SettingName, ChangedSetting]
    """Settings that differ from the recipe."""
    counterpart: str | None
    """The released recipe of a paper recipe, and the other way round; None for others."""
    differences: dict[SettingName, DifferentSetting]
    """Settings that differ from the counterpart."""
    parameters: ModelParameters
    flops: Flops
    memory: Memory
    """Memory of a worker; of an elastic run, where there are the fewest."""
    extent: Extent
    tables: list[ExpectedTable]
    hardware: list[ExpectedTime]
    calibration: Calibration | None
    """Times measured on this machine, where `--calibrate` asked for them."""
    losses_without_gradient: tuple[str, ...] = ()
    """Losses that train nothing: of no weight, or of a feature that depends on no weight."""
    warnings: list[str]
    errors: tuple[str, ...] = ()
    """What would stop the run, by its own checks; not asked where data or CLIP are not there yet."""


def make_plan(
    config: ExperimentConfig,
    catalog: str,
    hardware: Sequence[str] = SHOWN_BY_DEFAULT,
    calibrates: bool = False,
    gpus_per_worker: float | None = None,
    must_fit: bool = False,
    fewest_workers: int | None = None,
) -> RunPlan:
    """All that can be known about a run without running it; needs neither tables nor weights.

    Args:
        config: The run.
        catalog: Root of the catalog.
        hardware: Names in `hardware.yaml` for which times are computed.
        calibrates: Take a few steps on this machine.
        gpus_per_worker: As in a run. For a GPU, None and 0 stand for a whole one.
        must_fit: Refuse a run that fits on none of the hardware.
        fewest_workers: With how many an elastic run still goes on: then each needs the most memory.

    Raises:
        ConfigError: The config does not fit its CLIP or its data, a hardware is not known, or none has the
            memory.
        CatalogError: Nothing is known about the data set, or the catalog cannot be read.
        ClipFileError: The architecture of the CLIP is unknown.
    """
    for name in hardware:
        find_hardware(name)
    digest = clip_digest_of(config)
    tables = look_up_tables(config, digest, catalog)
    extent = measure_extent(config, tables)
    cost = measure_cost(config, extent.identities, extent.cameras)
    forward, step = cost.flops.forward.total, cost.flops.training_step.total
    memory, fewest = cost.memory, config
    if fewest_workers is not None:
        fewest = with_worker_count(config, fewest_workers)
        number = config.train.micro_batches
        memory = measure_micro_batches(fewest, extent.identities, extent.cameras, number)
    workload = workload_of(config, extent, (forward, step), memory.peak, gpus_per_worker)
    checked = check_where_possible(config, tables, catalog, digest)
    described = describe_tables(config, tables, catalog)
    expected = [expect_time(workload, name) for name in hardware]
    other = find_counterpart(config.recipe)
    changed = differences(resolve(config.recipe), config)
    different = differences(config, resolve(other)) if other else {}
    smaller = _fitting_micro_batches(fewest, extent, workload, hardware)
    too_small = [_too_small(entry, smaller.get(entry.name)) for entry in expected if not entry.fits]
    if must_fit and len(too_small) == len(expected):
        raise ConfigError(f"the run fits on none of the named hardware: {'; '.join(too_small)}")
    return RunPlan(
        recipe=config.recipe,
        config=config.flat(),
        changed={name: ChangedSetting(recipe=old, here=new) for name, (old, new) in changed.items()},
        counterpart=other,
        differences={
            name: DifferentSetting(here=here, there=there) for name, (here, there) in different.items()
        },
        parameters=cost.parameters,
        flops=cost.flops,
        memory=memory,
        extent=extent,
        tables=described,
        hardware=expected,
        losses_without_gradient=losses_without_gradient(
            config.loss, trained_features(config.model), trains_text=config.model.text.fine_tune
        ),
        calibration=calibrate(config, workload, extent.identities, extent.cameras) if calibrates else None,
        warnings=[
            *([] if config.data.synthetic else missing_tables(described)),
            *too_small,
            *(finding.message for finding in checked.warnings),
        ],
        errors=tuple(finding.message for finding in checked.errors),
    )


def check_where_possible(
    config: ExperimentConfig, tables: FoundTables, catalog: str, clip_digest: str | None
) -> CheckReport:
    """The run's own checks, without images; no finding where its data or its CLIP are not there yet.

    Args:
        config: The run.
        tables: What it would find.
        catalog: Root of the catalog.
        clip_digest: Digest of its CLIP; None where the weights are not available.
    """
    needed = [table for name, table in tables.items() if name.startswith(("samples", "view/"))]
    if clip_digest is None or None in needed:
        return CheckReport(errors=(), warnings=())
    return check_run(config, catalog, with_images=False)


def find_counterpart(recipe: str) -> str | None:
    """The other recipe of the same data set: the released code's for the paper's, and the other way round."""
    dataset, _, kind = recipe.rpartition("-")
    other = {"paper": f"{dataset}-released", "released": f"{dataset}-paper"}.get(kind)
    return other if other in RECIPES else None


def clip_digest_of(config: ExperimentConfig) -> str | None:
    """Digest of a CLIP whose weights are in a local folder; open_clip would download those of a name."""
    source = config.clip_source
    return load_clip(source).digest if (Path(source) / WEIGHTS_FILE).is_file() else None


def workload_of(
    config: ExperimentConfig,
    extent: Extent,
    flops: tuple[int, int],
    peak_bytes: int,
    gpus_per_worker: float | None,
) -> Workload:
    """What a run computes.

    Args:
        config: The run.
        extent: How many samples it processes.
        flops: FLOPs of one sample in the forward pass, and in a training step without micro-batches.
        peak_bytes: Peak memory of a worker.
        gpus_per_worker: As `make_plan` takes it.
    """
    forward, step = flops
    # Each of the two computes the forward pass once more.
    again = (config.train.micro_batches > 1) + config.train.checkpoint_activations
    return Workload(
        steps=extent.steps,
        batch=config.batch.size,
        step_flops=step + again * forward,
        embedded=extent.embedded,
        forward_flops=forward,
        workers=config.train.workers,
        precision=config.train.precision,
        peak_bytes=peak_bytes,
        gpus_per_worker=gpus_per_worker or 1.0,
    )


def _fitting_micro_batches(
    config: ExperimentConfig, extent: Extent, workload: Workload, hardware: Sequence[str]
) -> dict[str, int]:
    """The fewest micro-batches that fit, by the name of hardware that is too small without them."""
    left = [name for name in hardware if not expect_time(workload, name).fits]
    found: dict[str, int] = {}
    share = config.batch.size // config.train.workers
    for number in range(config.train.micro_batches + 1, share + 1):
        if left and share % number == 0:
            memory = measure_micro_batches(config, extent.identities, extent.cameras, number)
            fits = {name: expect_time(replace(workload, peak_bytes=memory.peak), name).fits for name in left}
            found |= {name: number for name in left if fits[name]}
            # Where all but activations is too much, no number of micro-batches fits.
            rest = max(memory.evaluation_peak, memory.training_peak - memory.activations)
            least = replace(workload, peak_bytes=rest)
            left = [name for name in left if not fits[name] and expect_time(least, name).fits]
    return found


def _too_small(entry: ExpectedTime, micro_batches: int | None) -> str:
    fitting = "" if micro_batches is None else f"train.micro_batches={micro_batches}, "
    return (
        f"{entry.name}: {entry.needed_bytes / 2**30:.1f} GiB are needed, and {USABLE_MEMORY:.0%} of "
        f"its {entry.memory_bytes / 2**30:.0f} GiB can be used; take {fitting}"
        f"{'more' if entry.kind == 'gpu' else 'fewer'} train.workers, or a smaller batch.size or "
        "train.evaluation_batch"
    )
