"""What a run would do, before it does anything: settings, size, tables, memory and time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.planning.calibration import calibrate
from experiments.planning.cost import Cost, Parameters, measure_cost
from experiments.planning.expected_tables import Extent, describe_tables, find_tables, measure_extent
from experiments.planning.hardware import SHOWN_BY_DEFAULT, USABLE_MEMORY, Work, expect, hardware_of
from experiments.recipes import RECIPES, ExperimentConfig, differences, resolve
from experiments.run import run_data
from stmi.clip.loading import WEIGHTS_FILE, load_clip


def plan(
    config: ExperimentConfig,
    workspace: Path,
    catalog: str,
    hardware: Sequence[str] = SHOWN_BY_DEFAULT,
    calibrates: bool = False,
    gpus_per_worker: float | None = None,
) -> dict[str, Any]:
    """All that can be told of a run without running it, as JSON values; needs neither tables nor weights.

    Args:
        config: The run.
        workspace: Folder of runs.
        catalog: Root of the catalog.
        hardware: Names in `hardware.yaml` to expect times for.
        calibrates: Take a few steps on this machine.
        gpus_per_worker: As a run is given it. On a GPU, None and 0 are taken for a whole one.

    Returns:
        `recipe`, `config` (by flat name), `changed` (from the recipe: name to `recipe` and `here`),
        `counterpart` (of a paper recipe the released one, and the other way round; None for others)
        and `differences` (to the counterpart: name to `here` and `there`);
        `parameters` (`total`, `trained`, `frozen`, and the same `by_part`);
        `flops` of one sample (`forward` and `training_step`, each `total` and `by_part`, and `caption`);
        `memory` in bytes of one worker (the fields of `Memory`, `peak`, and its `samples` of a batch);
        `extent` (the fields of `Extent`); `tables` (see `describe_tables`); `hardware` (see `expect`);
        `calibration` (see `calibrate`; None where it was not asked for) and `warnings`.

    Raises:
        ConfigError: The config does not fit its CLIP or its data, or a hardware is not known.
        CatalogError: Nothing is known of the data set, or the catalog cannot be read.
        ClipFileError: The CLIP's architecture is not known.
    """
    for name in hardware:
        hardware_of(name)
    tables = find_tables(config, _clip_digest(config), workspace, catalog)
    extent = measure_extent(config, tables)
    cost = measure_cost(config, extent.identities, extent.cameras)
    work = _work(config, extent, cost, gpus_per_worker or 1.0)
    described = describe_tables(config, tables, catalog)
    expected = [expect(work, name) for name in hardware]
    return {
        **_settings(config),
        "parameters": _parameters(cost.parameters),
        "flops": {
            "forward": _with_total(cost.flops.forward),
            "training_step": _with_total(cost.flops.step),
            "caption": cost.flops.caption,
        },
        "memory": asdict(cost.memory) | {"peak": cost.memory.peak, "samples": cost.share},
        "extent": asdict(extent),
        "tables": described,
        "hardware": expected,
        "calibration": calibrate(config, work, extent.identities, extent.cameras) if calibrates else None,
        "warnings": _warnings(config, described, expected),
    }


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    changed = differences(resolve(config.recipe), config)
    other = counterpart(config.recipe)
    apart = differences(config, resolve(other)) if other else {}
    return {
        "recipe": config.recipe,
        "config": config.flat(),
        "changed": {name: {"recipe": old, "here": new} for name, (old, new) in changed.items()},
        "counterpart": other,
        "differences": {name: {"here": here, "there": there} for name, (here, there) in apart.items()},
    }


def counterpart(recipe: str) -> str | None:
    """The other recipe of the same data set: the released code's for the paper's, and the other way round."""
    dataset, _, kind = recipe.rpartition("-")
    other = {"paper": f"{dataset}-released", "released": f"{dataset}-paper"}.get(kind)
    return other if other in RECIPES else None


def _clip_digest(config: ExperimentConfig) -> str | None:
    """Digest of a CLIP whose weights lie in a folder here; open_clip would download those of a name."""
    source = run_data.clip_source(config)
    return load_clip(source).digest if (Path(source) / WEIGHTS_FILE).is_file() else None


def _work(config: ExperimentConfig, extent: Extent, cost: Cost, gpus_per_worker: float) -> Work:
    return Work(
        steps=extent.steps,
        batch=config.batch.size,
        step_flops=sum(cost.flops.step.values()),
        embedded=extent.embedded,
        forward_flops=sum(cost.flops.forward.values()),
        workers=config.train.workers,
        precision=config.train.precision,
        peak_bytes=cost.memory.peak,
        gpus_per_worker=gpus_per_worker,
    )


def _parameters(parts: Mapping[str, Parameters]) -> dict[str, Any]:
    def counted(total: int, trained: int) -> dict[str, int]:
        return {"total": total, "trained": trained, "frozen": total - trained}

    totals = sum(part.total for part in parts.values()), sum(part.trained for part in parts.values())
    by_part = {name: counted(part.total, part.trained) for name, part in parts.items()}
    return {**counted(*totals), "by_part": by_part}


def _with_total(by_part: dict[str, int]) -> dict[str, Any]:
    return {"total": sum(by_part.values()), "by_part": by_part}


def _warnings(
    config: ExperimentConfig, tables: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]
) -> list[str]:
    warnings = []
    missing = [table["name"] for table in tables if table["command"] is not None]
    if missing and config.data.synthetic is None:
        warnings.append(f"{len(missing)} tables are missing ({', '.join(missing)}): no run can start yet")
    for entry in expected:
        if not entry["fits"]:
            warnings.append(
                f"{entry['name']}: {entry['needed_bytes'] / 2**30:.1f} GiB are needed, and "
                f"{USABLE_MEMORY:.0%} of its {entry['memory_bytes'] / 2**30:.0f} GiB can be used; take "
                f"{'more' if entry['kind'] == 'gpu' else 'fewer'} train.workers, or a smaller batch.size or "
                "train.evaluation_batch"
            )
    return warnings
