import json
import shutil

import pyarrow.parquet as pq
import pytest
from PIL import Image

import stmi
from experiments import evaluate
from experiments.evaluating.image_folder import read_folder
from experiments.experiment_config import ConfigError
from tests import json_samples, kept_workspace
from tests.tolerances import GOLDEN_VALUE


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32)).save(folder / name)


def test_samples_are_the_names_of_all_subfolders_in_order(tmp_path):
    write(tmp_path, "rgb/b.jpg", "rgb/a-1.png", "nir/b.png", "tir/c.jpg", "mask/b.png", "rgb/.hidden.jpg")
    (tmp_path / "captions.txt").write_text("first\u2028of all\r\n\n third \n")
    folder = read_folder(tmp_path)
    assert folder.names == ("a-1", "b", "c")
    assert folder.files == {
        "rgb": ("rgb/a-1.png", "rgb/b.jpg", None),
        "nir": (None, "nir/b.png", None),
        "tir": (None, None, "tir/c.jpg"),
        "mask": (None, "mask/b.png", None),
    }
    assert folder.captions == ("first\u2028of all", None, "third")
    assert folder.lacks == {"rgb": 1, "nir": 2, "tir": 2, "mask": 2, "caption": 1}


def test_content_of_a_sample_changes_with_its_files_and_its_caption(tmp_path):
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "captions.txt").write_text("one\ntwo")
    first = read_folder(tmp_path).contents()
    shutil.copytree(tmp_path, tmp_path / "copied" / "folder")
    assert read_folder(tmp_path / "copied" / "folder").contents() == first
    Image.new("RGB", (16, 32), "red").save(tmp_path / "a.jpg")
    second = read_folder(tmp_path).contents()
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True]
    (tmp_path / "captions.txt").write_text("one\nthree")
    third = read_folder(tmp_path).contents()
    assert [a == b for a, b in zip(second, third, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("files", "captions", "expected"),
    [
        ([], None, "has no images; expected images, or the subfolders rgb, nir, tir"),
        (["RGB/a.jpg", "NI/a.jpg"], None, "has no images"),
        (["rgb/a.jpg", "rgb/a.png"], None, "rgb/a.jpg and rgb/a.png have one name"),
        (["rgb/a.jpg", "mask/b.png"], None, "mask: b belong to no image"),
        (["a.jpg", "b.jpg"], "one line", "captions.txt has 1 lines, expected 2"),
    ],
)
def test_folder_that_does_not_fit_the_layout_is_refused(tmp_path, files, captions, expected):
    write(tmp_path, *files)
    if captions:
        (tmp_path / "captions.txt").write_text(captions)
    with pytest.raises(ConfigError, match=expected):
        read_folder(tmp_path)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    kept = kept_workspace.unpack(tmp_path_factory.mktemp("kept"))
    return kept / "train" / json.loads((json_samples.FOLDER / "train.json").read_text())["run"]


def test_folder_is_embedded_to_parquet_as_embed_does_it(run_folder, tmp_path, capsys):
    source = next(run_folder.parents[1].glob("data/*/RGBNT201/test"))
    shutil.copytree(source / "RGB", tmp_path / "yard" / "rgb")
    files = sorted((tmp_path / "yard" / "rgb").iterdir())
    files[1].write_bytes(b"")
    out = tmp_path / "yard.parquet"
    given = ["--run", run_folder, "--images", tmp_path / "yard", "--embeddings", out, "--json"]
    assert evaluate.main([str(one) for one in given]) == 0
    result = json.loads(capsys.readouterr().out)
    table = pq.read_table(out)
    used = [file for file in files if file != files[1]]
    assert table["sample_id"].to_pylist() == [file.stem for file in used]
    assert list(result["left_out"]) == [files[1].stem]
    with pytest.warns(UserWarning, match="no sample has a"):
        expected = stmi.load(run_folder, device="cpu").embed(rgb=used)
    assert result["features"] == {name: values.shape[1] for name, values in expected.features.items()}
    for name, values in expected.features.items():
        rows = [pytest.approx(row.tolist(), abs=GOLDEN_VALUE) for row in values]
        assert table[name].to_pylist() == rows


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            ["--embeddings", "a.parquet", "--rerank"],
            "--images goes with --run and --embeddings, not with --rerank",
        ),
        (["--embeddings", "a.parquet", "--set", "x=1"], "not with --set"),
        (["--embeddings", "a.parquet", "--recipe", "demo"], "not with --recipe"),
        (["--embeddings", "a.parquet", "--catalog", "c"], "not with --catalog"),
        (["--embeddings", "."], "--embeddings=.: this is a folder"),
        ([], "needs --embeddings FILE"),
        (["--embeddings", "a.parquet"], "there is no such folder"),
    ],
)
def test_images_with_other_options_are_refused(run_folder, more, expected, capsys, tmp_path):
    given = ["--run", run_folder, "--images", tmp_path / "nosuch", *more]
    assert evaluate.main([str(one) for one in given]) == 2
    assert expected in capsys.readouterr().err
