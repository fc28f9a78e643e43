from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.evaluating.parquet_files import embedding_parts, read_features, view_labels, write_parquet


def test_embeddings_are_written_in_parts_to_a_uri(tmp_path):
    labels = {name: np.arange(10) for name in ("identity", "camera_id", "scene_id")}
    view = SimpleNamespace(
        **labels,
        sample_id=np.array([f"sample {row}" for row in range(10)]),
        is_query=np.arange(10) < 3,
        is_gallery=np.ones(10, dtype=bool),
    )
    wide = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    features = {"U": wide[:, :5], "G": wide[:, 5:]}
    write_parquet(f"file://{tmp_path}/new/test.parquet", embedding_parts(view_labels(view), features, 4))
    file = pq.ParquetFile(tmp_path / "new" / "test.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 2]
    rows = file.read()
    assert rows["sample_id"].to_pylist() == view.sample_id.tolist()
    assert rows["is_query"].to_pylist() == view.is_query.tolist()
    for name, values in features.items():
        assert np.array_equal(np.stack(rows[name].to_numpy()), values)
    read = read_features(tmp_path / "new" / "test.parquet", ["T", "U"])
    assert read.keys() == {"U"}
    assert np.array_equal(read["U"], features["U"])


def test_incomplete_file_does_not_appear(tmp_path):
    def parts():
        yield pa.table({"a": [1]})
        raise RuntimeError("the cluster is gone")

    with pytest.raises(RuntimeError, match="the cluster is gone"):
        write_parquet(str(tmp_path / "test.parquet"), parts())
    assert not list(tmp_path.iterdir())
