"""The tables that a run would read, with the commands of those that are missing, and its samples."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_catalog.cards import card_names, load_card
from data_catalog.errors import CatalogError
from data_catalog.formats import SPLITS
from data_catalog.records import Record
from data_catalog.storage import filesystems
from experiments.experiment_config import ConfigError, ExperimentConfig
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.made_tables import FoundTables
from experiments.run.run_tables import split_name, split_names
from stmi.training import batch_plan
from stmi.training.batch_plan import BatchPlanError


class Extent(Record):
    """The size of a data set, and how many samples of it a run processes."""

    source: str
    """Where the numbers come from."""
    identities: int
    """Identities of the training split; like the next two, of all data sets together."""
    cameras: int
    """Number of cameras of the data set."""
    samples: dict[str, int]
    """Number of samples of each split."""
    steps: int
    """Optimisation steps of the whole run."""
    embedded: int
    """Samples that evaluation embeds in the whole run."""


class ExpectedTable(Record):
    """A table that a run would read."""

    name: str
    key: str | None = None
    """None where the table is missing, as are the next three."""
    digest: str | None = None
    rows: int | None = None
    bytes: int | None = None
    command: str | None = None
    """The command that makes the table; None where it exists."""


def missing_tables(tables: Sequence[ExpectedTable]) -> list[str]:
    """One sentence that names the tables that are missing; empty where none is."""
    missing = [table.name for table in tables if table.command is not None]
    if not missing:
        return []
    return [f"{len(missing)} tables are missing ({', '.join(missing)}): no run can start yet"]


def describe_tables(
    config: ExperimentConfig, tables: FoundTables, catalog: str, maker: str | None = None
) -> list[ExpectedTable]:
    """A description of each table, with the command that makes it where it is missing.

    Args:
        config: Config of a run that reads them.
        tables: As they were found.
        catalog: Root of the catalog.
        maker: What makes all that are missing; None where each has a command of its own.
    """
    described = []
    for name, table in tables.items():
        if table is None:
            own, dataset = split_name(name)
            one = config.by_dataset()[dataset or config.data.dataset]
            command = maker or _command(one, own, catalog)
            described.append(ExpectedTable(name=name, command=command))
            continue
        filesystem, folder = filesystems.open_root(table.path)
        paths = [f"{folder}/{shard.file}" for shard in table.manifest.shards]
        described.append(
            ExpectedTable(
                name=name,
                key=table.manifest.key,
                digest=table.digest,
                rows=len(table),
                bytes=sum(info.size or 0 for info in filesystem.get_file_info(paths)),
            )
        )
    return described


def _command(config: ExperimentConfig, name: str, catalog: str) -> str:
    """The command that makes a missing table."""
    if config.data.synthetic is not None:
        return "the run itself makes it"
    dataset, size = config.data.dataset, config.model.image
    without = [] if config.model.sfm.enabled else ["--no-masks"]
    without += [] if config.model.text.enabled else ["--no-text"]
    view = ["view", "--split", name.partition("/")[2], "--size", f"{size.height}x{size.width}", *without]
    step = {
        "samples": ["ingest", "--format", dataset, "--source", "DIR"],
        "masks": ["masks", "--segmenter", "sam2", "--checkpoint", "FILE"],
        "captions": ["captions", "--captioner", "llm", "--endpoint", "URL", "--model", "NAME"],
        "text_features": ["text-features", "--clip", config.model.clip.source],
    }.get(name, view)
    return shlex.join(["python", "-m", "data_catalog", *step, "--catalog", catalog, "--dataset", dataset])


def measure_extent(config: ExperimentConfig, tables: FoundTables) -> Extent:
    """How much a run processes: from its training views, else from the best known facts of the data sets.

    Without a view and a samples table, all identities are assumed to have equally many samples.

    Raises:
        CatalogError: Nothing is known of a data set.
        ConfigError: They cannot fill the batches.
    """
    parts = split_names(tables, config.data.names)
    sizes = {name: _measure_size(one, parts[name]) for name, one in config.by_dataset().items()}
    training = [own["view/train"] for own in parts.values()]
    views = [view for view in training if view is not None]
    labels = {name: size.identity for name, size in sizes.items()}
    try:
        if len(views) == len(training):
            schedule = BatchSchedule(views, config)
            steps = sum(len(schedule.rows(0, epoch)) for epoch in range(config.train.epochs))
        else:
            steps = sum(
                len(batch_plan.plan_together(labels, config.data.shares, config.batch, config.seed, epoch))
                for epoch in range(config.train.epochs)
            )
    except BatchPlanError as error:
        raise ConfigError(str(error)) from None
    counts: dict[str, int] = {}
    for size in sizes.values():
        for split, count in size.samples.items():
            counts[split] = counts.get(split, 0) + count
    return Extent(
        source=" and ".join(dict.fromkeys(size.source for size in sizes.values())),
        identities=sum(len(np.unique(identity)) for identity in labels.values()),
        cameras=sum(size.cameras for size in sizes.values()),
        samples=counts,
        steps=steps,
        embedded=_count_embedded(config, counts),
    )


@dataclass(frozen=True)
class _Size:
    """How large a data set is.

    Attributes:
        source: Where the numbers come from.
        samples: Number of samples of each split.
        cameras: Number of cameras.
        identity: Identity of each training sample, int64.
    """

    source: str
    samples: dict[str, int]
    cameras: int
    identity: npt.NDArray[np.int64]


def _measure_size(config: ExperimentConfig, tables: FoundTables) -> _Size:
    """The size of the data set of a run on one."""
    samples, train, settings = tables["samples"], tables["view/train"], config.data.synthetic
    if samples is not None:
        source = "the training view" if train is not None else "the samples table"
        counts = {split: found["samples"] for split, found in samples.statistics["splits"].items()}
        cameras = max(samples.statistics["cameras"]) + 1
        rows = samples.read(["split", "identity"])
        identity = rows["identity"].to_numpy()[np.array(rows["split"].to_pylist()) == "train"]
    elif settings is not None:
        source = "the benchmark's settings"
        cameras, each = settings.cameras, settings.cameras * settings.shots
        counts = {str(split): each * len(settings.identities(split)) for split in SPLITS}
        identity = np.arange(counts["train"]) % len(settings.identities("train"))
    elif config.data.dataset in card_names():
        source, card = f"the card of {config.data.dataset}", load_card(config.data.dataset)
        counts, cameras = {split: found.samples for split, found in card.counts.items()}, card.cameras or 1
        identity = np.arange(counts["train"]) % card.counts["train"].identities
    else:
        raise CatalogError(
            f"data set {config.data.dataset!r} has neither a samples table nor a card, so its size is "
            f"unknown; make the table first: {_command(config, 'samples', 'CATALOG')}"
        )
    return _Size(source, counts, cameras, identity)


def _count_embedded(config: ExperimentConfig, samples: dict[str, int]) -> int:
    """Samples embedded in a whole run: test before the first epoch, both splits at every evaluation."""
    epochs, every = config.train.epochs, config.train.validate_every
    evaluations = epochs // every + (epochs % every > 0)
    return samples.get("val", 0) * evaluations + samples["test"] * (evaluations + 1)
