"""`search.py` against a naive ranking of what `stmi.load(...).embed` gives, on a real finished run."""

import importlib.util
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_catalog.samples.images import decode_mask
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import find_table
from data_catalog.views.view_reader import open_view
from experiments import search
from experiments.evaluating.evaluation_target import load_run
from experiments.run import evaluation
from experiments.searching import galleries, kept_gallery
from experiments.searching.gallery_search import choose_feature
from experiments.searching.search_result import SearchResult


@pytest.fixture
def searched(capsys, run_folder, tmp_path):
    """Calls search.py and gives the JSON document that it prints."""

    def call(*arguments):
        capsys.readouterr()
        given = ["--run", run_folder, "--workspace", tmp_path / "ws", *arguments, "--json"]
        status = search.main([str(argument) for argument in given])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        result = json.loads(printed.out)
        SearchResult.model_validate(result)
        return result

    return call


@pytest.fixture
def refused(capsys, run_folder, tmp_path):
    """Calls search.py, which must refuse its arguments, and gives the line that it prints."""

    def call(*arguments):
        capsys.readouterr()
        given = ["--run", run_folder, "--workspace", tmp_path / "ws", *arguments]
        assert search.main([str(argument) for argument in given]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    return call


@pytest.fixture
def query(images):
    """Three files as `--query` takes them, of the fourth sample."""
    return ",".join(str(images[name][3]) for name in ("rgb", "nir", "tir"))


def naive_ranking(query, gallery):
    """Rows and distances from nearest to farthest, of one feature each, by loops."""

    def unit(values):
        length = math.sqrt(sum(float(value) ** 2 for value in values))
        return [float(value) / length for value in values]

    near = unit(query)
    distances = [
        math.sqrt(sum((a - b) ** 2 for a, b in zip(near, unit(row), strict=True))) for row in gallery
    ]
    order = sorted(range(len(gallery)), key=lambda row: distances[row])
    return order, [distances[row] for row in order]


def assert_ranked(result, names, query, gallery):
    order, distances = naive_ranking(query, gallery)
    assert [match["sample_id"] for match in result["matches"]] == [names[row] for row in order]
    assert [match["rank"] for match in result["matches"]] == list(range(1, len(order) + 1))
    # Squares: the root makes much of what rounding leaves of the distance of equal features.
    squares = [match["distance"] ** 2 for match in result["matches"]]
    assert squares == pytest.approx([distance**2 for distance in distances], abs=1e-6)


def test_data_set_is_ranked_as_its_evaluation_embeds_it(searched, query, run_folder, kept, images, tmp_path):
    target = load_run(run_folder)
    view = open_view(target.table)
    features = evaluation.embed(target.model, view, 128, target.autocast).features["U"]
    mask, caption = mask_and_caption(kept, view, images["rgb"][3].stem)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    result = searched(
        *("--query", query, "--mask", tmp_path / "mask.png", "--caption", caption),
        *("--gallery", "synthetic_person", "--top", "1000"),
    )
    [row] = np.flatnonzero([name.endswith(images["rgb"][3].stem) for name in view.sample_id])
    gallery = np.flatnonzero(view.is_gallery)
    assert_ranked(result, view.sample_id[gallery].tolist(), features[row], features[gallery])
    assert (result["feature"], result["notes"], result["is_exact"]) == ("U", [], True)
    first = result["matches"][0]
    assert first["distance"] < 1e-3
    assert (first["identity"], first["camera_id"]) == (view.identity[row], view.camera_id[row])


def mask_and_caption(kept, view, name):
    """Of the sample of this name, from the tables."""
    [index] = view.sample_index[[sample_id.endswith(name) for sample_id in view.sample_id]]
    found = []
    for column, kind in (("mask", TableKind.MASKS), ("caption", TableKind.CAPTIONS)):
        rows = find_table(str(kept / "catalog"), "synthetic_person", kind).read(["sample_index", column])
        found.append(rows.to_pandas().set_index("sample_index")[column][index])
    return decode_mask(found[0]), found[1]


def test_kept_data_set_is_searched_again_without_embedding(searched, query, monkeypatch):
    first = searched("--query", query, "--gallery", "synthetic_person", "--feature", "G")
    assert first["embedded"] == first["samples"] == 16

    def fail(*_):
        raise AssertionError("embedded a second time")

    monkeypatch.setattr(galleries, "embed_here", fail)
    again = searched("--query", query, "--gallery", "synthetic_person", "--feature", "G")
    assert again["embedded"] == 0
    assert again["matches"] == first["matches"]
    # Another feature needs another index, of the features that are kept.
    other = searched("--query", query, "--gallery", "synthetic_person", "--feature", "RGB")
    assert (other["embedded"], other["feature"]) == (0, "RGB")


def test_features_of_a_modality_are_made_of_the_kept_ones(searched, query, run, yard):
    result = searched("--query", query, "--gallery", yard, "--feature", "TIR", "--top", "8")
    names, embedded = embed_yard(run, yard)
    own = dict(zip(("rgb", "nir", "tir"), query.split(","), strict=True))
    with pytest.warns(UserWarning, match="no sample has a"):
        assert_ranked(result, names, run.embed(**own)["TIR"][0], embedded["TIR"])


def embed_yard(run, yard):
    """Names and features of the samples of a folder, with nothing where a file is missing."""
    names = sorted({file.stem for name in ("rgb", "nir", "tir") for file in (yard / name).glob("*")})
    lists = {
        name: [next((yard / name).glob(f"{sample}.*"), None) for sample in names]
        for name in ("rgb", "nir", "tir")
    }
    with pytest.warns(UserWarning, match="no sample has a"):
        return names, run.embed(**lists)


def test_folder_is_ranked_by_g_with_zeros_for_what_is_missing(searched, run, images, yard):
    result = searched("--query", f"{images['rgb'][3]},,{images['tir'][3]}", "--gallery", yard, "--top", "8")
    names, gallery = embed_yard(run, yard)
    with pytest.warns(UserWarning, match="no sample has a"):
        query = run.embed(rgb=images["rgb"][3], tir=images["tir"][3])
    assert_ranked(result, names, query["G"][0], gallery["G"])
    assert result["notes"] == [
        "compared by G, which needs no text, in place of U: no captions of the query and the gallery",
        "the query has no NIR image: it becomes zeros",
        "the query has no mask: all of the image counts as foreground",
        "1 of 8 samples of the gallery have no NIR image: it becomes zeros",
        "8 of 8 samples of the gallery have no mask: all of the image counts as foreground",
    ]


def test_photographs_alone_are_visible_images(searched, run, images, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for file in images["rgb"][:5]:
        shutil.copy(file, folder)
    result = searched("--query", images["rgb"][3], "--gallery", folder)
    with pytest.warns(UserWarning, match="no sample has a"):
        embedded = run.embed(rgb=images["rgb"][:5])
    assert_ranked(result, [file.stem for file in images["rgb"][:5]], embedded["G"][3], embedded["G"])


def test_changed_file_alone_is_embedded_again(searched, query, run, images, yard, tmp_path):
    first = searched("--query", query, "--gallery", yard, "--top", "8")
    assert first["embedded"] == 8
    changed = yard / "rgb" / images["rgb"][5].name
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    (yard / "tir" / images["tir"][0].name).unlink()
    shutil.copy(images["rgb"][9], yard / "rgb")
    second = searched("--query", query, "--gallery", yard, "--top", "9")
    assert (second["embedded"], second["samples"]) == (3, 9)
    names, gallery = embed_yard(run, yard)
    own = dict(zip(("rgb", "nir", "tir"), query.split(","), strict=True))
    with pytest.warns(UserWarning, match="no sample has a"):
        assert_ranked(second, names, run.embed(**own)["G"][0], gallery["G"])
    assert second["kept_in"] != first["kept_in"]
    [kept] = (path for path in (tmp_path / "ws/search").glob("*/*/*") if path.is_dir())
    assert str(kept) == second["kept_in"]


def test_embeddings_by_another_model_are_kept(tmp_path):
    """Such as of another epoch of the run: one that is asked for in turn with it is embedded once."""

    def embed(earlier):
        features = {"G": np.ones((1, 2), np.float32)}
        return SimpleNamespace(labels={"sample_id": ["a"]}, features=features, left_out={}, embedded=1)

    def keep(model, digest):
        gallery = SimpleNamespace(name="yard", location="yard", digest=digest, embed=embed)
        return kept_gallery.keep(gallery, model, tmp_path)

    first, other = keep("model a", "1"), keep("model b", "1")
    (first.folder.parent / "incomplete").mkdir()
    again = keep("model a", "1")
    assert (again.folder, again.embedded) == (first.folder, 0)
    changed = keep("model a", "2")
    there = {path for path in first.folder.parent.iterdir() if path.is_dir()}
    assert there == {other.folder, changed.folder}


def test_images_that_cannot_be_used_are_left_out_with_the_reason(searched, query, images, yard):
    broken = images["tir"][4]
    (yard / "tir" / broken.name).write_bytes(b"not an image")
    result = searched("--query", query, "--gallery", yard)
    assert result["samples"] == 7
    [(name, reason)] = result["left_out"].items()
    assert name == broken.stem
    assert "tir[0] cannot be read as an image" in reason


@pytest.mark.parametrize(
    ("asked", "texts", "reported", "expected"),
    [
        (None, (True, True, True), "U", "U"),
        (None, (True, False, True), "U", "G"),
        (None, (True, True, False), "T", "G"),
        (None, (True, False, False), "RGB", "RGB"),
        (None, (False, False, False), "U", "U"),
        ("T", (True, False, False), "U", "T"),
    ],
)
def test_feature_is_the_reported_one_unless_text_is_lacking(asked, texts, reported, expected):
    has_text, *sides = texts
    text = SimpleNamespace(text=SimpleNamespace(enabled=has_text))
    run = SimpleNamespace(name="run", feature=reported, config=SimpleNamespace(model=text))
    feature, notes = choose_feature(asked, run, *sides)
    assert feature == expected
    assert bool(notes) == (asked is None and feature != reported)


def test_approximate_index_says_that_it_is_one(searched, query, yard):
    exact = searched("--query", query, "--gallery", yard, "--top", "3")
    found = searched("--query", query, "--gallery", yard, "--top", "3", "--index", "HNSW8")
    assert (found["is_exact"], found["embedded"]) == (False, 0)
    # Eight samples are so few that the graph reaches all of them.
    assert found["matches"] == exact["matches"]


def test_index_that_the_gallery_is_too_small_for_is_refused(searched, refused, query, yard):
    searched("--query", query, "--gallery", yard)
    line = refused("--query", query, "--gallery", yard, "--index", "IVF64,Flat")
    assert "--index=IVF64,Flat cannot be made of the 8 samples of the gallery (Number of training" in line
    assert line.endswith("use Flat, which compares all")


def test_gallery_may_be_the_folder_that_one_is_in(searched, query, yard, monkeypatch):
    named = searched("--query", query, "--gallery", yard)
    for folder, gallery in ((yard, "."), (yard / "rgb", "..")):
        monkeypatch.chdir(folder)
        found = searched("--query", query, "--gallery", gallery)
        assert (found["gallery"], found["matches"]) == (yard.name, named["matches"])
        assert found["embedded"] == 0


def test_contact_sheet_is_drawn_and_the_table_printed(capsys, run_folder, query, yard, tmp_path):
    arguments = ["--run", run_folder, "--query", query, "--gallery", yard, "--workspace", tmp_path / "ws"]
    sheet = tmp_path / "sheets" / "found.png"
    assert search.main([str(one) for one in (*arguments, "--picture", sheet, "--top", "7")]) == 0
    printed = capsys.readouterr().out
    assert "8 samples embedded, searched in" in printed
    assert printed.count("_cam") == 7
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10


def test_damaged_index_is_named_and_made_again_once_deleted(searched, refused, query, yard, tmp_path):
    first = searched("--query", query, "--gallery", yard)
    [index] = (tmp_path / "ws").rglob("*.faiss")
    index.write_bytes(index.read_bytes()[:100])
    assert f"{index} is damaged" in refused("--query", query, "--gallery", yard)
    index.unlink()
    assert searched("--query", query, "--gallery", yard)["matches"] == first["matches"]


def test_damaged_embeddings_are_named_and_made_again_once_deleted(searched, refused, query, yard, tmp_path):
    first = searched("--query", query, "--gallery", yard)
    [file] = (tmp_path / "ws").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:100])
    line = refused("--query", query, "--gallery", yard)
    assert f"{file} is damaged" in line
    assert f"delete the folder {file.parent}, and the same command embeds the gallery anew" in line
    shutil.rmtree(file.parent)
    assert searched("--query", query, "--gallery", yard)["matches"] == first["matches"]


def test_names_of_samples_are_printed_and_drawn_as_they_are(capsys, run_folder, query, images, tmp_path):
    names = ["x[bold].jpg", "x[red].jpg", "u$a_b^$c.jpg"]
    yard = tmp_path / "yard"
    yard.mkdir()
    for name, path in zip(names, images["rgb"], strict=False):
        shutil.copy(path, yard / name)
    arguments = ["--run", run_folder, "--query", query, "--gallery", yard, "--workspace", tmp_path / "ws"]
    assert search.main([str(one) for one in (*arguments, "--picture", tmp_path / "found.png")]) == 0
    printed = capsys.readouterr().out
    for name in names:
        assert f" {name.removesuffix('.jpg')} " in printed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--query": "a.jpg,b.jpg,c.jpg,d.jpg"}, "expected RGB[,NIR[,TIR]]"),
        ({"--query": ",,"}, "expected RGB[,NIR[,TIR]]"),
        ({"--query": ",nosuch.jpg"}, "there is no nir image nosuch.jpg"),
        ({"--mask": "nosuch.png"}, "--mask=nosuch.png: there is no such file"),
        ({"--gallery": "nosuch"}, "--gallery=nosuch: neither a data set of catalog"),
        ({"--top": "0"}, "--top=0: expected a number from 1"),
        ({"--workers": "-1"}, "--workers=-1: expected a number from 0"),
        ({"--index": "Nosuch9"}, "--index=Nosuch9: faiss.index_factory makes none"),
        ({"--picture": "nosuch://bucket/a.png"}, "nosuch://bucket"),
        ({"--picture": "."}, "--picture=.: this is a folder; name a file in it"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(refused, query, yard, changes, expected):
    arguments = {"--query": query, "--gallery": str(yard)} | changes
    assert expected in refused(*(part for pair in arguments.items() for part in pair))


def test_query_that_is_no_image_is_refused_before_the_gallery_is_embedded(refused, yard, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    line = refused("--query", tmp_path / "text.jpg", "--gallery", yard)
    assert "--query: rgb[0] cannot be read as an image" in line
    assert not (tmp_path / "ws").exists()


def test_missing_faiss_is_named_with_what_installs_it(refused, query, yard, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else found(name))
    assert "pip install 'stmi[search]'" in refused("--query", query, "--gallery", yard)
