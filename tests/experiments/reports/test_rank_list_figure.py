import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from data_catalog.views.view_reader import open_view
from experiments.reports.rank_list_figure import (
    RANKS,
    find_disagreements,
    load_embeddings,
    plot_rank_lists,
)
from experiments.run.evaluation import QUERY_SCHEMA
from experiments.run.run_folder import RunFolder, RunFolderError


def run(folder, precisions, epoch=3, feature="U"):
    """A folder with the queries' average precision; None for a query without a match."""
    folder.mkdir()
    count = len(precisions)
    matched = pa.array(precisions, pa.float64())
    table = pa.table(
        {
            "sample_index": np.arange(count) + 40,
            "sample_id": [f"test/{n}" for n in range(count)],
            "identity": np.zeros(count, np.int64),
            "camera_id": np.zeros(count, np.int32),
            "scene_id": np.full(count, -1, np.int32),
            "feature": [feature] * count,
            "average_precision": matched,
            "first_match_rank": pa.array([None if p is None else 1 for p in precisions], pa.int64()),
        },
        schema=QUERY_SCHEMA,
    )
    earlier = table.set_column(6, QUERY_SCHEMA.field("average_precision"), pa.array([0.5] * count))
    other = table.set_column(5, QUERY_SCHEMA.field("feature"), pa.array(["G"] * count))
    rows = [(earlier, epoch - 1), (other, epoch), (table, epoch)]
    written = pa.concat_tables(
        [part.append_column("epoch", pa.array([at] * count, pa.int64())) for part, at in rows]
    )
    parquet.write_table(written, folder / "queries.parquet")
    return RunFolder(folder)


def test_queries_that_gain_most_come_first_and_losers_last(tmp_path):
    first = {
        0: run(tmp_path / "a0", [0.1, 0.9, 0.5, 0.5, None]),
        1: run(tmp_path / "a1", [0.3, 0.9, 0.5, 0.1, None]),
    }
    second = {
        0: run(tmp_path / "b0", [0.9, 0.2, 0.5, 0.6, None]),
        1: run(tmp_path / "b1", [0.7, 0.4, 0.5, 0.6, None]),
        2: run(tmp_path / "b2", [0.0, 1.0, 0.0, 0.0, None]),
    }
    found = find_disagreements(first, second, "U")
    assert [one.sample_index for one in found] == [40, 43, 41]
    assert [one.gain for one in found] == pytest.approx([0.6, 0.3, -0.6])
    assert [one.sample_index for one in find_disagreements(first, second, "U", each_way=1)] == [40, 41]


def test_equal_rows_have_no_disagreements(tmp_path):
    one = {0: run(tmp_path / "a", [0.1, 0.9])}
    assert find_disagreements(one, one, "U") == []


def test_rows_without_a_seed_in_common_are_not_compared(tmp_path):
    first, second = run(tmp_path / "a0", [0.1]), run(tmp_path / "b1", [0.2])
    with pytest.raises(RunFolderError, match=r"no seed in common \(finished are 0; 1, 2\)"):
        find_disagreements({0: first}, {1: second, 2: second}, "U")


def test_rank_lists_equal_a_plain_search_without_junk(study, workspace):
    measured = {row["name"]: row for row in study["rows"] if row["table"] == "table3"}
    rows = {
        name: {
            int(seed): RunFolder.open(workspace / "train" / run)
            for seed, run in measured[name]["runs"].items()
        }
        for name in ("baseline", "SFM + STR + CHI")
    }
    found = find_disagreements(*rows.values(), "U")
    assert found
    lines = np.array(plot_rank_lists(rows, "U", found).axes).reshape(-1, 2 + RANKS)
    assert len(lines) == 2 * len(found)
    view = open_view(rows["baseline"][0].view("test"))
    for number, line in enumerate(lines):
        run = list(rows.values())[number % 2][0]
        embeddings = load_embeddings(run, "U")
        query = view.sample_index.tolist().index(found[number // 2].sample_index)
        cosines = embeddings @ embeddings[query] / np.linalg.norm(embeddings, axis=1)
        same = view.identity == view.identity[query]
        junk = same & (view.camera_id == view.camera_id[query])
        nearest = [row for row in np.argsort(-cosines) if view.is_gallery[row] and not junk[row]][:RANKS]
        expected = [f"{'hit' if same[row] else 'miss'} {rank}" for rank, row in enumerate(nearest, start=1)]
        assert [cell.get_title() for cell in line[2:]] == expected
