"""The tree of folders that help and messages show for a layout is one that the layout reads."""

import re
import shutil
from pathlib import Path, PurePosixPath

import pytest

import data_catalog
from data_catalog.__main__ import main
from data_catalog.formats import FORMATS

EACH_FORMAT = pytest.mark.parametrize(
    "name", [name for name, layout in FORMATS.items() if not layout.is_manifest]
)


def write_tree(tree: str, folder: Path) -> dict[str, str]:
    """Write the folders and empty files of a tree.

    Returns:
        Path of each file below the root to what the tree says of it.
    """
    files: dict[str, str] = {}
    copies = []
    open_folders: list[str] = []
    for line in tree.splitlines():
        name, _, about = line.strip().partition("  ")
        depth = (len(line) - len(line.lstrip())) // 2
        if depth > len(open_folders):
            continue  # what is said of the line above goes on
        path = PurePosixPath(*open_folders[:depth], name)
        if name.endswith("/"):
            open_folders = [*open_folders[:depth], name]
            if like := re.search(r"like (\w+)", about):
                copies.append((path.with_name(like[1]), path))
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
            files["/".join(path.parts[1:])] = about.strip()
    for source, target in copies:
        shutil.copytree(folder / source, folder / target)
    return files


@EACH_FORMAT
def test_a_folder_that_is_made_like_the_tree_is_read_whole(name: str, tmp_path: Path) -> None:
    layout = FORMATS[name]
    files = write_tree(layout.tree, tmp_path)
    listing = layout.read(tmp_path)
    assert listing.rejected == ()
    assert {sample.split for sample in listing.samples} >= {"train", "test"}
    listed = {file for sample in listing.samples for file in sample.files.values()}
    assert {file for file in files if file.endswith(".jpg")} <= listed | {
        file for sample in listing.samples for file in sample.query_files.values()
    }
    (mask,) = (file for file in files if file.endswith(".npy"))
    assert mask in {path for sample in listing.samples for path in layout.mask_files(sample.sample_id)}
    (captions,) = (file for file in files if file.endswith(".json"))
    assert captions == layout.caption_files("train")[""]


@EACH_FORMAT
def test_the_labels_that_the_tree_says_are_those_that_are_read(name: str, tmp_path: Path) -> None:
    layout = FORMATS[name]
    write_tree(layout.tree, tmp_path)
    said = " ".join(layout.tree.split())
    identity = re.search(r"identity (\d+)", said)
    camera = re.search(r"camera_id (\d+)", said)
    assert identity
    assert camera
    sample = next(sample for sample in layout.read(tmp_path).samples if sample.split == "train")
    assert (sample.identity, sample.camera_id) == (int(identity[1]), int(camera[1]))


@EACH_FORMAT
def test_help_of_ingest_shows_the_tree_within_80_columns(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["ingest", "--help"])
    shown = capsys.readouterr().out
    lines = [f"  {line}" for line in FORMATS[name].tree.splitlines()]
    assert "\n".join([f"--format {name}:", *lines]) in shown
    assert max(map(len, lines)) <= 80


@EACH_FORMAT
def test_a_folder_of_another_layout_is_refused_with_the_tree(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    assert (
        main(["ingest", "--format", name, "--source", str(tmp_path), "--catalog", str(tmp_path / "c")]) == 2
    )
    first, second, *tree = capsys.readouterr().err.splitlines()
    assert re.match(r"data_catalog ingest: source .* holds no folder \w+", first)
    assert (second, tree) == ("expected:", FORMATS[name].tree.splitlines())


@EACH_FORMAT
def test_readme_shows_the_tree(name: str) -> None:
    readme = Path(data_catalog.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert f"\n{FORMATS[name].tree}" in readme
