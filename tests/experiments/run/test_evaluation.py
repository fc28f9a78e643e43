from types import SimpleNamespace

import numpy as np
import pytest

from data_catalog.errors import CatalogError
from experiments.run import evaluation


@pytest.fixture
def view():
    """Two people under two cameras, one under the first alone; each row is a query and in the gallery."""
    return SimpleNamespace(
        sample_index=np.arange(10, 15),
        sample_id=np.array(["a1", "a2", "b1", "b2", "c1"]),
        identity=np.array([7, 7, 8, 8, 9]),
        camera_id=np.array([0, 1, 0, 1, 0], dtype=np.int32),
        scene_id=np.full(5, -1, dtype=np.int32),
        is_query=np.array([True, True, True, False, True]),
        is_gallery=np.ones(5, dtype=bool),
        missing=None,
    )


def test_query_table_has_the_precision_of_each_query(view):
    angle = np.array([0.0, 0.1, 1.0, 1.3, 1.2])
    embeddings = {"U": np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)}
    rows = evaluation.query_table(view, evaluation.score_each(view, embeddings, "camera")).to_pylist()
    # b1 finds c1 (0.2 away) before b2 (0.3 away); c1's only own picture is junk.
    found = {row["sample_id"]: (row["average_precision"], row["first_match_rank"]) for row in rows}
    assert found == {"a1": (1, 1), "a2": (1, 1), "b1": (0.5, 2), "c1": (None, None)}
    assert [row["sample_index"] for row in rows] == [10, 11, 12, 14]
    assert [row["identity"] for row in rows] == [7, 7, 8, 9]
    assert [row["camera_id"] for row in rows] == [0, 1, 0, 0]


def test_means_of_the_query_table_are_the_metrics(view):
    random = np.random.default_rng(0)
    embeddings = {name: random.normal(size=(5, 4)).astype(np.float32) for name in ("U", "G")}
    scored = evaluation.score_each(view, embeddings, "camera")
    queries, metrics = evaluation.query_table(view, scored).to_pandas(), evaluation.summarise(scored)
    for name, rows in queries.groupby("feature"):
        matched = rows.dropna()
        assert matched["average_precision"].mean() == pytest.approx(metrics[name].mean_average_precision)
        assert (matched["first_match_rank"] == 1).mean() == pytest.approx(metrics[name].rank1)
    assert len(queries) == 2 * view.is_query.sum()


def with_table(view, **changes):
    manifest = SimpleNamespace(settings={"split": "test"})
    table = SimpleNamespace(path="catalog/small/view/1", manifest=manifest)
    return SimpleNamespace(**vars(view) | {"table": table} | changes)


def test_evaluation_of_a_degenerate_view_is_refused(view):
    with pytest.raises(
        CatalogError, match=r"view catalog/small/view/1 is no measure .* holds one identity, 7"
    ):
        evaluation.check_view(with_table(view, identity=np.full(5, 7)), "camera")
    with pytest.raises(CatalogError, match="have no match in the gallery under another scene"):
        evaluation.check_view(with_table(view), "scene")
    with pytest.raises(CatalogError, match="split 'test' has no queries"):
        evaluation.check_view(with_table(view, is_query=np.zeros(5, dtype=bool)), "camera")


def test_evaluation_notes_what_is_to_be_borne_in_mind(view):
    notes = evaluation.check_view(with_table(view), "camera")
    assert [note.check for note in notes] == ["query_without_match", "small_gallery"]
