"""The steps from ten photographs to a view, as the README of the manifest shows them."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_catalog.__main__ import main
from data_catalog.formats.manifest_columns import COLUMNS, IMAGES
from data_catalog.formats.manifest_template import example_rows
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import find_table
from experiments import train

ROOT = Path(__file__).parents[3]
README = (ROOT / "data_catalog" / "formats" / "README.md").read_text(encoding="utf-8")


def write_photographs(folder: Path) -> None:
    """An image and a mask for each file that the example of a template names; thermal ones of 16 bits."""
    rng = np.random.default_rng(0)
    for row in example_rows():
        look = rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)
        for name in (*IMAGES, "mask"):
            (folder / row[name]).parent.mkdir(exist_ok=True)
        Image.fromarray(look).save(folder / row["rgb"])
        Image.fromarray(look[..., 0]).save(folder / row["nir"])
        Image.fromarray(look[..., 1].astype(np.uint16) * 9 + 7000).save(folder / row["tir"])
        mask = np.zeros((64, 32), dtype=np.uint8)
        mask[10:60, 8:24] = 255
        Image.fromarray(mask).save(folder / row["mask"])


def test_every_command_of_the_readme_works_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photographs(tmp_path)
    [block] = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    for arguments in lines:
        if arguments[:3] == ["python", "-m", "data_catalog"]:
            # The folder of the demo's CLIP is named as from the project.
            given = [str(ROOT / one) if one.startswith("stmi/") else one for one in arguments[3:]]
            assert main(given) == 0, given
    catalog = tmp_path / "runs" / "catalog"
    samples = find_table(catalog, "photos", TableKind.SAMPLES)
    assert (len(samples), samples.statistics["quarantined"]) == (10, [])
    assert (tmp_path / "photos.png").is_file()
    capsys.readouterr()
    # The training itself is what another test does; here it must be ready to start.
    [training] = [arguments for arguments in lines if arguments[1] == "experiments/train.py"]
    assert train.main([*training[2:], "--workspace", str(tmp_path / "runs"), "--plan"]) == 0


def test_readme_explains_every_column() -> None:
    table = README.partition("## The columns")[2].partition("##")[0]
    shown = [
        name
        for line in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", line)
    ]
    assert shown == [column.name for column in COLUMNS]
