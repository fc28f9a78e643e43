"""Labels of a test split: read from a view, or from a file of anybody's embeddings, and compared."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.experiment_config import ConfigError
from stmi.retrieval.metrics import JunkRule, junk_groups

_FLAGS = ("is_query", "is_gallery")


@dataclass(frozen=True)
class SplitLabels:
    """What a test split says of its samples, in any order.

    Attributes:
        sample_id: str `(samples,)`, each once.
        identity: `(samples,)`, integers.
        group: As in `RetrievalSet`, `(samples,)`, integers.
        is_query: `(samples,)`.
        is_gallery: `(samples,)`.
    """

    sample_id: np.ndarray
    identity: np.ndarray
    group: np.ndarray
    is_query: np.ndarray
    is_gallery: np.ndarray


def make_labels(columns: Mapping[str, np.ndarray], junk: JunkRule, source: str) -> SplitLabels:
    """Labels from columns of numbers or of names.

    Args:
        columns: `(samples,)` by name, with `sample_id`, `identity`, and the camera or scene where the rule
            is about it; a camera of -1 is none. Without `is_query` or `is_gallery` every sample is one.
        junk: Which gallery samples of the query's identity do not count.
        source: For messages.

    Raises:
        ConfigError: A column is missing, or holds what is no label, or a split that nothing can be ranked in.
    """
    needed = ("sample_id", "identity", *([] if junk == "none" else [f"{junk}_id"]))
    if missing := [name for name in needed if name not in columns]:
        raise ConfigError(f"{source}: no {', '.join(missing)}; expected {', '.join(needed)} of each sample")
    count = len(columns["sample_id"])
    for name in (*needed, *_FLAGS):
        if name in columns:
            _check_column(columns[name], name, columns["sample_id"], source)
    sample_id = columns["sample_id"].astype(str)
    if len(np.unique(sample_id)) < count:
        raise ConfigError(f"{source}: a sample_id occurs twice; expected one row a sample")
    none = np.full(count, -1)
    camera, scene = (
        _numbers(columns[name]) if name in needed else none for name in ("camera_id", "scene_id")
    )
    labels = SplitLabels(
        sample_id,
        _numbers(columns["identity"]),
        junk_groups(junk, camera, scene),
        *(columns.get(flag, np.ones(count, dtype=bool)).astype(bool) for flag in _FLAGS),
    )
    for flag in _FLAGS:
        if not getattr(labels, flag).any():
            raise ConfigError(f"{source}: {flag} is true of no sample; expected some of both")
    shown = np.unique(columns["identity"][labels.is_gallery])
    if len(shown) == 1:
        raise ConfigError(
            f"{source}: the gallery holds one identity, {shown[0]}, so every ranking is right; "
            "add samples of other identities"
        )
    return labels


def _check_column(column: np.ndarray, name: str, sample_id: np.ndarray, source: str) -> None:
    if column.shape != sample_id.shape[:1]:
        raise ConfigError(
            f"{source}: {name} has the shape {column.shape} and sample_id {sample_id.shape}; "
            "write one for each sample"
        )
    empty = [row for row, value in enumerate(column.tolist()) if value is None or _is_nan(value)]
    if empty:
        none = "; -1 is a sample without a camera" if name == "camera_id" else ""
        raise ConfigError(f"{source}: {name} of sample {sample_id[empty[0]]} is missing{none}")
    if name in _FLAGS and not np.isin(column, (False, True)).all():
        raise ConfigError(f"{source}: {name} is {column.dtype}; expected true and false, or 1 and 0")


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _numbers(column: np.ndarray) -> np.ndarray:
    """Integers as they are; names, and other numbers, by their place among all."""
    if np.issubdtype(column.dtype, np.number) and (column == column.astype(np.int64)).all():
        return column.astype(np.int64)
    return np.unique(column.astype(str), return_inverse=True)[1]


def check_same_split(first: SplitLabels, second: SplitLabels, names: tuple[str, str]) -> None:
    """Refuse two splits in which the same embeddings could rank differently.

    The numbers of identities and cameras may differ from code to code, but not which samples share one.

    Args:
        first: Labels of one side.
        second: Labels of the other.
        names: Names of both, for messages.

    Raises:
        ConfigError: Says in what they differ.
    """
    for flag, what in (("is_query", "queries"), ("is_gallery", "gallery samples")):
        ours, theirs = (set(labels.sample_id[getattr(labels, flag)].tolist()) for labels in (first, second))
        if ours != theirs:
            alone = [
                f"{len(only)} are in {name} alone, such as {min(only)}"
                for name, only in zip(names, (ours - theirs, theirs - ours), strict=True)
                if only
            ]
            raise ConfigError(
                f"{names[0]} has {len(ours)} {what} and {names[1]} {len(theirs)}; {'; '.join(alone)}; "
                "two models are compared on the same test split, with the same sample_ids"
            )
    rows = [_used(labels) for labels in (first, second)]
    compared = (
        ("identity", "show one identity", "identities"),
        ("group", "are junk for each other", "cameras or scenes"),
    )
    for column, what, expected in compared:
        ours, theirs = (
            getattr(labels, column)[used] for labels, used in zip((first, second), rows, strict=True)
        )
        pairs = len(np.unique(np.stack([ours, theirs]), axis=1).T)
        if not pairs == len(np.unique(ours)) == len(np.unique(theirs)):
            raise ConfigError(
                f"{names[0]} and {names[1]} do not agree on which samples {what}; "
                f"expected the {expected} of the same test split"
            )


def _used(labels: SplitLabels) -> np.ndarray:
    """Rows of the queries and the gallery, in the order of their names."""
    order = np.argsort(labels.sample_id)
    return order[(labels.is_query | labels.is_gallery)[order]]
