"""How each test query ranks: read from a finished run, or computed from a file of anybody's embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_catalog.storage import filesystems
from experiments.experiment_config import ConfigError
from experiments.run.run_folder import RunFolder
from stmi.retrieval import metrics
from stmi.retrieval.metrics import JunkRule, RetrievalSet

SUFFIXES = (".parquet", ".npz")
LABELS = ("sample_id", "identity", "camera_id", "scene_id", "is_query", "is_gallery")
FORMAT = (
    "a row a sample with sample_id, identity, camera_id (or scene_id), optionally is_query and is_gallery "
    "(default: every sample is both), and features, each a list of numbers of one length"
)


@dataclass(frozen=True)
class QueryScores:
    """How each query with a match in the gallery ranks.

    Attributes:
        name: Of the run or the file.
        feature: The feature that was compared.
        sample_id: `(queries,)`, sorted.
        identity: `(queries,)`.
        average_precision: `(queries,)`, fractions.
        first_match_rank: `(queries,)`, from 1.
    """

    name: str
    feature: str
    sample_id: np.ndarray
    identity: np.ndarray
    average_precision: np.ndarray
    first_match_rank: np.ndarray


def read_scores(location: str, feature: str | None, junk: JunkRule) -> QueryScores:
    """The scores of a finished run at the epoch that it reports, or of a file of embeddings.

    Args:
        location: Folder or URI of a run, or file or URI of embeddings: Parquet, as `evaluate.py --embeddings`
            writes it, or a NumPy archive of the same columns.
        feature: Which; None for the one that the run reports, or for U or the only one of a file.
        junk: Which gallery samples of the query's identity do not count; a run has its own rule.

    Raises:
        ConfigError: The file, or the feature in it, is not what is expected.
        RunFolderError: There is no finished run.
        stmi.retrieval.metrics.RetrievalError: The embeddings cannot be scored.
    """
    if location.endswith(SUFFIXES):
        return _scores_of_embeddings(location, _read_columns(location), feature, junk)
    return _scores_of_run(RunFolder.open(location), feature)


def junk_rule(location: str) -> JunkRule | None:
    """The rule of a run; None for a file of embeddings."""
    return None if location.endswith(SUFFIXES) else RunFolder.open(location).config.data.junk


def _scores_of_run(folder: RunFolder, feature: str | None) -> QueryScores:
    result = folder.finished_result
    feature = feature or folder.config.report.feature
    if feature not in result.metrics:
        raise ConfigError(
            f"--feature={feature}: expected one that run {folder.name} has: {', '.join(result.metrics)}"
        )
    epoch = result.reported.epoch if result.reported else folder.config.train.epochs
    table = folder.read_queries().to_pandas()
    table = table[(table["feature"] == feature) & (table["epoch"] == epoch)].dropna()
    columns = ("sample_id", "identity", "average_precision", "first_match_rank")
    return _sorted(folder.name, feature, *(table[name].to_numpy() for name in columns))


def _scores_of_embeddings(
    location: str, columns: Mapping[str, np.ndarray], feature: str | None, junk: JunkRule
) -> QueryScores:
    needed = ("sample_id", "identity", *([] if junk == "none" else [f"{junk}_id"]))
    missing = [name for name in needed if name not in columns]
    features = [name for name in columns if name not in LABELS]
    if missing or not features:
        raise ConfigError(f"{location}: no {', '.join(missing) or 'feature'}; expected {FORMAT}")
    feature = feature or ("U" if "U" in features else features[0] if len(features) == 1 else None)
    if feature not in features:
        raise ConfigError(f"{location}: choose --feature from {', '.join(features)}")
    values, count = columns[feature], len(columns["sample_id"])
    for name, column in columns.items():
        if len(column) != count:
            raise ConfigError(
                f"{location}: {name} has {len(column)} rows and sample_id {count}; write one for each sample"
            )
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
        raise ConfigError(
            f"{location}: {feature} is {values.dtype} {values.shape}; expected real numbers ({count}, width)"
        )
    if len(np.unique(columns["sample_id"])) < count:
        raise ConfigError(f"{location}: a sample_id occurs twice; expected one row a sample")

    none = np.full(count, -1)
    group = metrics.junk_groups(junk, columns.get("camera_id", none), columns.get("scene_id", none))

    def chosen(flag: str) -> tuple[RetrievalSet, np.ndarray]:
        rows = columns.get(flag, np.ones(count, dtype=bool)).astype(bool)
        embedding = np.ascontiguousarray(values[rows], dtype=np.float32)
        return RetrievalSet(embedding, columns["identity"][rows], group[rows]), rows

    (query, rows), (gallery, _) = chosen("is_query"), chosen("is_gallery")
    if len(np.unique(gallery.identity)) == 1:
        raise ConfigError(
            f"{location}: the gallery holds one identity, {gallery.identity[0]}, so every ranking is right; "
            "add samples of other identities"
        )
    scored = metrics.evaluate(query, gallery)
    matched = scored.first_match_rank > 0
    return _sorted(
        Path(location).name,
        feature,
        columns["sample_id"][rows][matched],
        query.identity[matched],
        scored.average_precision[matched],
        scored.first_match_rank[matched],
    )


def _sorted(
    name: str,
    feature: str,
    sample_id: np.ndarray,
    identity: np.ndarray,
    precision: np.ndarray,
    rank: np.ndarray,
) -> QueryScores:
    order = np.argsort(sample_id.astype(str))
    return QueryScores(
        name,
        feature,
        sample_id.astype(str)[order],
        identity[order],
        precision.astype(float)[order],
        rank.astype(np.int64)[order],
    )


def _read_columns(location: str) -> dict[str, np.ndarray]:
    filesystem, path = filesystems.open_root(location)
    try:
        with filesystem.open_input_file(path) as file:
            if location.endswith(".parquet"):
                table = pq.read_table(file)
                return {name: _numbers(table[name].combine_chunks()) for name in table.column_names}
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, BadZipFile, pa.ArrowInvalid) as error:
        raise ConfigError(f"{location}: cannot be read ({error}); expected {FORMAT}") from None


def _numbers(column: pa.Array) -> np.ndarray:
    """A column as an array, lists of one length as `(rows, length)`."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
