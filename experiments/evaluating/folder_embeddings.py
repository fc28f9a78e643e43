"""Features of the samples of a folder of images, as `stmi.load(...).embed` makes them."""

import warnings
from collections.abc import Sequence

import numpy as np

import stmi
from data_catalog.progress import progress_bar
from experiments.evaluating.evaluation_target import use_processors
from experiments.evaluating.image_folder import FolderEmbeddings, ImageFolder, effects_of_missing
from experiments.evaluating.parquet_files import embedding_parts, write_parquet
from experiments.experiment_config import ConfigError
from stmi.errors import TrainedRunError
from stmi.retrieval.ranking import Embeddings
from stmi.stored_run import EpochChoice
from stmi.trained_run import TrainedRun


def write_folder_embeddings(
    location: str, epoch: EpochChoice, folder: ImageFolder, embeddings: str
) -> FolderEmbeddings:
    """Write every feature of the samples of a folder, one row a sample.

    Args:
        location: Folder or URI of the run.
        epoch: Whose weights are used.
        folder: The samples.
        embeddings: Parquet file or URI.

    Raises:
        ConfigError: No sample can be used.
    """
    use_processors()
    run = stmi.load(location, epoch=epoch)
    used, embedded, left_out = embed_folder(run, folder, range(len(folder)))
    if embedded is None:
        raise none_usable(folder, left_out)
    names = np.array([folder.names[row] for row in used], dtype=np.str_)
    write_parquet(embeddings, embedding_parts({"sample_id": names}, embedded.features))
    effects = effects_of_missing(run.config.model)
    return FolderEmbeddings(
        run=run.name,
        epoch=run.epoch,
        images=str(folder.root),
        embeddings=embeddings,
        samples=len(used),
        features={name: values.shape[1] for name, values in embedded.features.items()},
        left_out=left_out,
        notes=tuple(
            f"{count} of {len(folder)} samples have no {effects[name]}"
            for name, count in folder.lacks.items()
            if name in effects
        ),
    )


def none_usable(folder: ImageFolder, left_out: dict[str, str]) -> ConfigError:
    """The error of a folder of which each sample was left out."""
    name, reason = next(iter(left_out.items()))
    return ConfigError(f"{folder.root}: no sample can be used, such as {name}: {reason}")


def embed_folder(
    run: TrainedRun, folder: ImageFolder, rows: Sequence[int]
) -> tuple[list[int], Embeddings | None, dict[str, str]]:
    """Features of some samples of a folder; those that cannot be used are left out.

    Args:
        run: The trained run.
        folder: The samples.
        rows: Numbers of the rows.

    Returns:
        The samples that were embedded, their features (None for no sample), and of the others the name and
        why they cannot be used.
    """
    size = run.config.train.evaluation_batch
    used: list[int] = []
    parts: list[Embeddings] = []
    left_out: dict[str, str] = {}

    def embed(batch: Sequence[int]) -> None:
        parts.append(run.embed(**folder.arguments(batch)))
        used.extend(batch)

    with progress_bar("embedding", "sample") as report, warnings.catch_warnings():
        # Who calls this says of the whole folder what its samples lack.
        warnings.filterwarnings("ignore", message="no sample has a")
        for start in range(0, len(rows), size):
            report(start, len(rows))
            batch = rows[start : start + size]
            try:
                embed(batch)
            except TrainedRunError:
                raise
            except ValueError:
                # One of them cannot be used; each says so for itself.
                for row in batch:
                    try:
                        embed([row])
                    except ValueError as error:
                        left_out[folder.names[row]] = str(error)
        report(len(rows), len(rows))
    return used, Embeddings.concatenate(parts) if parts else None, left_out
