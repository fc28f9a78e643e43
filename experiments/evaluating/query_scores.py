"""How each test query ranks: read from a finished run, or computed from a file of anybody's embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_catalog.storage import filesystems
from data_catalog.views.view_reader import open_view
from experiments.evaluating.parquet_files import LABELS, view_labels
from experiments.evaluating.split_labels import SplitLabels, make_labels
from experiments.experiment_config import ConfigError
from experiments.run.run_folder import RunFolder
from experiments.run.run_tables import junk_rule
from stmi.retrieval import metrics
from stmi.retrieval.metrics import JunkRule, RetrievalSet

SUFFIXES = (".parquet", ".npz")
FORMAT = (
    "a row a sample with sample_id, identity, camera_id (or scene_id), optionally is_query and is_gallery "
    "(default: every sample is both), and features, each a list of real numbers of one length"
)


@dataclass(frozen=True)
class QueryScores:
    """How each query with a match in the gallery ranks.

    Attributes:
        name: Name of the run or the file.
        feature: The feature that was compared.
        read_labels: Reads what the test split says of its samples; of a run, from its view.
        tables: Digests of what a run reads, by name; empty for a file.
        sample_id: `(queries,)`, sorted.
        identity: `(queries,)`.
        average_precision: `(queries,)`, fractions.
        first_match_rank: `(queries,)`, from 1.
    """

    name: str
    feature: str
    read_labels: Callable[[], SplitLabels]
    tables: Mapping[str, str]
    sample_id: np.ndarray
    identity: np.ndarray
    average_precision: np.ndarray
    first_match_rank: np.ndarray


def is_file(location: str) -> bool:
    """Whether it names a file of embeddings, and no run."""
    return location.endswith(SUFFIXES)


def scores_of_run(folder: RunFolder, feature: str | None = None) -> QueryScores:
    """The scores of a finished run at the epoch that it reports.

    Args:
        folder: Folder of the run.
        feature: Which; None for the one that the run reports.

    Raises:
        ConfigError: The run has no such feature.
        RunFolderError: It is not finished.
    """
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

    def labels() -> SplitLabels:
        view = folder.view("test")
        return make_labels(view_labels(open_view(view)), junk_rule(folder.config.data, view), folder.name)

    ranked = (table[name].to_numpy() for name in columns)
    return _sorted(folder.name, feature, labels, folder.digests, *ranked)


def scores_of_file(location: str, feature: str | None, junk: JunkRule) -> QueryScores:
    """The scores of a file of embeddings.

    Args:
        location: File or URI: Parquet, as `evaluate.py --embeddings` writes it, or a NumPy archive of the
            same columns.
        feature: Which; None for U, or the only one.
        junk: Which gallery samples of the query's identity do not count.

    Raises:
        ConfigError: The file, or the feature in it, is not what is expected.
        stmi.retrieval.metrics.RetrievalError: The embeddings cannot be scored.
    """
    columns = _read_columns(location)
    labels = make_labels(columns, junk, location)
    feature = _choose_feature(location, columns, feature)
    values = columns[feature]

    def chosen(rows: np.ndarray) -> RetrievalSet:
        embedding = np.ascontiguousarray(values[rows], dtype=np.float32)
        return RetrievalSet(embedding, labels.identity[rows], labels.group[rows])

    scored = metrics.evaluate(chosen(labels.is_query), chosen(labels.is_gallery))
    matched = scored.first_match_rank > 0
    queries = [values[labels.is_query][matched] for values in (labels.sample_id, labels.identity)]
    ranked = (*queries, scored.average_precision[matched], scored.first_match_rank[matched])
    return _sorted(Path(location).name, feature, lambda: labels, {}, *ranked)


def _choose_feature(location: str, columns: Mapping[str, np.ndarray], feature: str | None) -> str:
    """The name of a column of embeddings; labels, and what else stands in the file, are none."""
    others = [name for name in columns if name not in LABELS]
    rows = len(columns["sample_id"])
    features = [name for name in others if _is_embedding(columns[name], rows)]
    feature = feature or ("U" if "U" in others else features[0] if len(features) == 1 else None)
    if feature in others and feature not in features:
        raise ConfigError(
            f"{location}: {feature} is {columns[feature].dtype} {columns[feature].shape}; "
            f"expected real numbers ({rows}, width)"
        )
    if not features:
        raise ConfigError(f"{location}: no feature; expected {FORMAT}")
    if feature not in features:
        raise ConfigError(f"{location}: choose --feature from {', '.join(features)}")
    return feature


def _is_embedding(column: np.ndarray, rows: int) -> bool:
    return column.ndim == 2 and len(column) == rows and np.issubdtype(column.dtype, np.floating)


def _sorted(
    name: str,
    feature: str,
    read_labels: Callable[[], SplitLabels],
    tables: Mapping[str, str],
    sample_id: np.ndarray,
    identity: np.ndarray,
    precision: np.ndarray,
    rank: np.ndarray,
) -> QueryScores:
    order = np.argsort(sample_id.astype(str))
    return QueryScores(
        name,
        feature,
        read_labels,
        tables,
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
                return {name: _numbers(table[name].combine_chunks(), name) for name in table.column_names}
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, BadZipFile, pa.ArrowInvalid) as error:
        raise ConfigError(f"{location}: cannot be read ({error}); expected {FORMAT}") from None


def _numbers(column: pa.Array, name: str) -> np.ndarray:
    """A column as an array, lists of one length as `(rows, length)`."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return column.to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    other = np.flatnonzero(lengths != lengths[:1])
    if len(other):
        raise ValueError(
            f"{name} has {lengths[0]} numbers in row 0 and {lengths[other[0]]} in row {other[0]}"
        )
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
