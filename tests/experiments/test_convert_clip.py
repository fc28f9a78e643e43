import json

import pytest

from experiments import convert_clip
from stmi.clip.loading import load_clip
from tests.stmi.clip import torchscript


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "tiny.pt"
    return path, torchscript.archive(path, torchscript.tiny_clip())


def test_archive_is_converted_to_a_folder_for_recipes(archive, tmp_path, capsys):
    path, digest = archive
    out = tmp_path / "clips" / "tiny"
    command = ["--archive", str(path), "--out", str(out), "--sha256", digest]
    assert convert_clip.main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folder"] == str(out)
    assert result["digest"] == load_clip(out).digest
    assert convert_clip.main(command) == 2
    assert "exists; name another folder" in capsys.readouterr().err


def test_printed_result_names_the_setting_for_recipes(archive, tmp_path, capsys):
    path, digest = archive
    out = tmp_path / "tiny"
    assert convert_clip.main(["--archive", str(path), "--out", str(out), "--sha256", digest]) == 0
    assert f"--set model.clip.source={out}" in capsys.readouterr().out


def test_wrong_or_missing_archive_gives_an_error_of_one_line(archive, tmp_path, capsys):
    path, _ = archive
    missing = f"archive {tmp_path / 'none.pt'} cannot be read (No such file or directory); name the file"
    for given, message in ((path, "expected one of OpenAI's"), (tmp_path / "none.pt", missing)):
        assert convert_clip.main(["--archive", str(given), "--out", str(tmp_path / "tiny")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "tiny").exists()
