import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_catalog.errors import CatalogError
from experiments import compare
from experiments.evaluating.query_scores import scores_of_file
from experiments.experiment_config import ConfigError
from stmi.retrieval import metrics
from stmi.retrieval.metrics import RetrievalSet


def split(seed=0, noise=1.0, identities=8, each=6):
    """Columns of a made-up test split: samples of some identities, each seen by three cameras."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(identities, 16))
    identity = np.repeat(np.arange(identities), each)
    values = centres[identity] + noise * random.normal(size=(len(identity), 16))
    return {
        "sample_id": np.array([f"{number:04}" for number in range(len(identity))]),
        "identity": identity,
        "camera_id": np.tile(np.arange(3), len(identity) // 3),
        "U": values.astype(np.float32),
    }


def write(file, columns):
    if file.suffix == ".npz":
        np.savez(file, **columns)
    else:
        lists = {name: list(values) if values.ndim == 2 else values for name, values in columns.items()}
        pq.write_table(pa.table(lists), file)
    return str(file)


@pytest.fixture
def ours(tmp_path):
    return write(tmp_path / "ours.parquet", split(0, noise=1.5))


@pytest.fixture
def theirs(tmp_path):
    return write(tmp_path / "theirs.npz", split(1, noise=0.9))


def compared(capsys, *arguments):
    status = compare.main([*arguments, "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


def expected_scores(columns):
    everything = RetrievalSet(columns["U"], columns["identity"], columns["camera_id"])
    return metrics.evaluate(everything, everything)


def test_metrics_of_both_are_those_of_their_embeddings(ours, theirs, capsys):
    result = compared(capsys, ours, theirs)
    for model, columns in zip(result["models"], (split(0, 1.5), split(1, 0.9)), strict=True):
        summary = expected_scores(columns).summary()
        assert model["metrics"] == pytest.approx(summary)
    first, second = (model["metrics"] for model in result["models"])
    assert second["mAP"] > first["mAP"]
    for metric, difference in result["differences"].items():
        assert difference["difference"] == pytest.approx(second[metric] - first[metric])
        low, high = difference["interval"]
        assert low <= difference["difference"] <= high
    assert (result["queries"], result["identities"], result["junk"]) == (48, 8, "camera")


def test_disagreements_are_the_queries_with_the_largest_differences(ours, theirs, capsys):
    result = compared(capsys, ours, theirs, "--top", "5")
    first, second = (expected_scores(columns) for columns in (split(0, 1.5), split(1, 0.9)))
    gaps = np.abs(second.average_precision - first.average_precision)
    found = [int(query["sample_id"]) for query in result["disagreements"]]
    assert sorted(gaps[found]) == sorted(np.sort(gaps)[-5:])
    for query, number in zip(result["disagreements"], found, strict=True):
        assert query["first_match_rank"] == [first.first_match_rank[number], second.first_match_rank[number]]


def test_order_of_samples_and_numbers_of_identities_do_not_matter(ours, theirs, tmp_path, capsys):
    columns = split(1, 0.9)
    order = np.random.default_rng(5).permutation(48)
    shuffled = {name: values[order] for name, values in columns.items()}
    shuffled["identity"] = 1000 - 7 * shuffled["identity"]
    other = compared(capsys, ours, write(tmp_path / "theirs.parquet", shuffled))
    plain = compared(capsys, ours, theirs)
    assert other["differences"] == plain["differences"]


def test_the_same_model_twice_differs_in_nothing(ours, capsys):
    result = compared(capsys, ours, ours)
    assert {found["difference"] for found in result["differences"].values()} == {0}
    assert result["disagreements"] == []


def test_query_and_gallery_are_those_that_the_file_names(tmp_path):
    columns = split()
    is_query = np.arange(48) % 6 == 0
    columns |= {"is_query": is_query, "is_gallery": ~is_query}
    scores = scores_of_file(write(tmp_path / "half.npz", columns), None, "camera")
    rows = [columns[name] for name in ("U", "identity", "camera_id")]
    query, gallery = (RetrievalSet(*(values[chosen] for values in rows)) for chosen in (is_query, ~is_query))
    assert scores.average_precision.mean() == metrics.evaluate(query, gallery).mean_average_precision


def test_names_of_identities_and_cameras_are_as_good_as_numbers(ours, tmp_path, capsys):
    columns = split(1, 0.9)
    numbers = write(tmp_path / "numbers.npz", columns)
    named = columns | {
        "identity": np.char.add("p", columns["identity"].astype(str)),
        "camera_id": np.char.add("cam", columns["camera_id"].astype(str)),
        "path": np.char.add("images/", columns["sample_id"]),
    }
    plain = compared(capsys, ours, numbers)
    for suffix in (".npz", ".parquet"):
        found = compared(capsys, ours, write(tmp_path / f"named{suffix}", named))
        assert found["differences"] == plain["differences"]


def test_what_is_no_column_of_the_samples_does_not_matter(ours, tmp_path, capsys):
    columns = split(1, 0.9) | {"epoch": np.array(7), "losses": np.zeros((3, 2))}
    found = compared(capsys, ours, write(tmp_path / "more.npz", columns))
    assert found["models"][1]["feature"] == "U"


def test_scene_rule_reads_the_scenes(ours, theirs, tmp_path, capsys):
    columns = split()
    columns["scene_id"] = columns.pop("camera_id")
    file = write(tmp_path / "scenes.npz", columns)
    result = compared(capsys, file, file, "--junk", "scene")
    assert result["junk"] == "scene"
    assert result["models"][0]["metrics"]["mAP"] == expected_scores(split()).mean_average_precision


def test_labels_are_read_only_where_two_runs_have_different_test_views(ours, tmp_path):
    scores = scores_of_file(ours, None, "camera")

    def run(view, samples, labels=scores.read_labels):
        return replace(scores, tables={"view/test": view, "samples": samples}, read_labels=labels)

    def out_of_reach():
        raise CatalogError("the test view is out of reach")

    assert compare.compare(run("a", "s", out_of_reach), run("a", "s", out_of_reach), "camera").notes == ()
    with pytest.raises(CatalogError, match="out of reach"):
        compare.compare(run("a", "s"), run("b", "s", out_of_reach), "camera")
    assert compare.compare(run("a", "s"), run("b", "s"), "camera").notes == ()
    assert compare.compare(run("a", "s"), run("b", "t"), "camera").notes == (compare.OTHER_IMAGES,)
    half = scores_of_file(write(tmp_path / "half.npz", split(each=3)), None, "camera")
    with pytest.raises(ConfigError, match="48 queries"):
        compare.compare(run("a", "s"), run("b", "s", half.read_labels), "camera")


def test_picture_shows_both_models(ours, theirs, tmp_path, capsys):
    compared(capsys, ours, theirs, "--picture", str(tmp_path / "both.png"))
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.size == (720, 720)


def test_table_for_a_person_has_every_metric(ours, theirs, capsys):
    assert compare.main([ours, theirs]) == 0
    printed = capsys.readouterr().out
    for text in (
        "ours.parquet, U",
        "theirs.npz, U",
        "mAP",
        "rank 10",
        "query's identity and camera do not count",
        "48 queries of 8 identities",
    ):
        assert text in printed
    assert max(map(len, printed.splitlines())) <= 80


def without(columns, name):
    return {key: values for key, values in columns.items() if key != name}


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        (without(split(), "identity"), [], "no identity; expected sample_id, identity, camera_id of each"),
        (without(split(), "U"), [], "no feature; expected"),
        (split() | {"camera_id": np.arange(3)}, [], "camera_id has the shape (3,) and sample_id (48,)"),
        (split() | {"G": split()["U"]}, ["--feature", "V"], "choose --feature from U"),
        (without(split() | {"G": split()["U"], "H": split()["U"]}, "U"), [], "choose --feature from G, H"),
        (split() | {"U": split()["U"][:, 0]}, [], r"U is float32 (48,); expected real numbers (48, width)"),
        (split() | {"U": split()["U"].astype(int)}, [], "U is int64 (48, 16); expected real numbers"),
        (split() | {"U": split()["U"] * np.nan}, [], "embeddings are not finite, first in row 0"),
        (split() | {"sample_id": np.full(48, "a")}, [], "a sample_id occurs twice"),
        (split(), ["--junk", "scene"], "no scene_id"),
        (split() | {"identity": np.full(48, 5)}, [], "the gallery holds one identity, 5, so every ranking"),
        (split(each=3), [], "24 are in ours.parquet alone, such as 0024"),
        (split() | {"identity": np.arange(48) // 3 % 8}, [], "do not agree on which samples show one"),
        (split() | {"camera_id": np.arange(48)}, [], "which samples are junk for"),
        (split() | {"is_gallery": np.arange(48) % 3 < 2}, [], "48 gallery samples and theirs.npz 32; 16"),
        (split() | {"is_query": np.arange(48) % 3 < 2}, [], "has 48 queries and theirs.npz 32; 16 are"),
        (split() | {"is_query": np.zeros(48, dtype=bool)}, [], "is_query is true of no sample"),
        (split() | {"is_query": np.full(48, "yes")}, [], "is_query is <U3; expected true and false"),
        (split() | {"identity": np.array([np.nan] * 48)}, [], "identity of sample 0000 is missing"),
        (split(), ["--top", "-1"], "--top=-1: expected 0 or more"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_compared_are_refused_in_one_line(
    ours, tmp_path, capsys, changed, options, message
):
    assert compare.main([ours, write(tmp_path / "theirs.npz", changed), *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_lists_of_different_lengths_are_refused_by_their_rows(ours, tmp_path, capsys):
    """Cut into rows of one length they would give numbers, which mean nothing."""
    whole = list(split()["U"])
    ragged = [np.append(whole[0], whole[1][:1]), whole[1][:-1], *whole[2:]]
    empty = [None, np.append(whole[1], whole[0]), *whole[2:]]
    for values, message in (
        (ragged, "U has 17 numbers in row 0 and 15 in row 1"),
        (empty, "U has 0 numbers in row 0 and 32 in row 1"),
    ):
        pq.write_table(pa.table(without(split(), "U") | {"U": values}), tmp_path / "theirs.parquet")
        assert compare.main([ours, str(tmp_path / "theirs.parquet")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x80\x04N."])
@pytest.mark.parametrize("name", ["broken.npz", "broken.parquet"])
def test_damaged_or_pickled_files_are_refused_in_one_line(ours, tmp_path, capsys, content, name):
    (tmp_path / name).write_bytes(content)
    assert compare.main([ours, str(tmp_path / name)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_missing_places_are_refused_by_name(ours, tmp_path, capsys):
    for place, message in ((tmp_path / "none.npz", "cannot be read"), (tmp_path, "is no run's folder")):
        assert compare.main([ours, str(place)]) == 2
        assert message in capsys.readouterr().err
