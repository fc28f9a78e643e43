import json
import os
import sys
from pathlib import Path

import pytest
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import create_package

from cluster import local

sys.path.insert(0, str(local.HOOKS))
import stmi_upload


@pytest.fixture
def folder(tmp_path):
    """A project with data, an environment and history in it."""
    files = {
        ".gitignore": "runs/\n*.tmp\n",
        "code/.gitignore": "!kept.tmp\nsecret\n",
        ".rayignore": "notes/\n",
        "code/main.py": "print()",
        "code/secret": "x",
        "secret": "not ignored here",
        "a.tmp": "x",
        "notes/todo": "x",
        "runs/data/image": "x",
        ".venv/lib/big": "x",
        ".git/objects/1": "x",
        "code/__pycache__/main.pyc": "x",
    }
    for name, text in files.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    return tmp_path / "project"


def sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def test_data_environment_and_history_stay_out_of_the_upload(folder):
    uploaded = stmi_upload.files_to_upload(folder)
    assert set(uploaded) == {".gitignore", "code/.gitignore", ".rayignore", "code/main.py", "secret"}
    assert set(stmi_upload.files_to_upload(folder, ["code"])) == {".gitignore", ".rayignore", "secret"}


def test_the_projects_own_upload_is_small(capsys):
    assert local.main(["check-upload", str(local.ROOT), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] < 20 * 2**20


def test_limit_is_that_of_ray_and_includes_the_archives_own_bytes(folder, tmp_path):
    assert stmi_upload.LIMIT_BYTES == DASHBOARD_CLIENT_MAX_SIZE
    for number in range(2000):
        (folder / f"a_file_with_a_rather_long_name_{number}").touch()
    sizes = stmi_upload.files_to_upload(folder)
    counted = sum(size + stmi_upload.BYTES_PER_ENTRY + 2 * len(name) for name, size in sizes.items())
    create_package(
        str(folder), tmp_path / "p.zip", include_gitignore=True, excludes=[".git", ".venv", "__pycache__"]
    )
    packed = (tmp_path / "p.zip").stat().st_size
    assert counted == pytest.approx(packed, abs=100)


def test_folder_too_large_is_refused_with_its_largest_files_first(folder, capsys):
    sparse(folder / "code" / "weights.bin", 60 * 2**20)
    sparse(folder / "video.mp4", 41 * 2**20)
    sparse(folder / "runs" / "data" / "huge", 500 * 2**20)
    assert local.main(["check-upload", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "101.0 MiB in 7 files, the limit is 100 MiB" in message
    assert message.index("60.0 MiB  code/weights.bin") < message.index("41.0 MiB  video.mp4")
    assert "huge" not in message


def test_hook_refuses_a_submission_however_the_folder_is_named(folder, tmp_path):
    sparse(folder / "big", 101 * 2**20)
    excluded = {"working_dir": str(folder), "excludes": ["big"]}
    (tmp_path / "env.yaml").write_text(json.dumps({"working_dir": str(folder)}))
    for given in (
        {"working_dir": str(folder)},
        {"runtime_env": str(tmp_path / "env.yaml")},
        {"runtime_env_json": json.dumps({"working_dir": str(folder)})},
    ):
        with pytest.raises(SystemExit, match="too large to submit"):
            stmi_upload.refuse_too_large(**given, address="x", entrypoint=())
    for given in (
        {},
        {"runtime_env_json": json.dumps(excluded)},
        {"working_dir": "https://example.org/a.zip"},
    ):
        stmi_upload.refuse_too_large(**given)


def test_missing_folder_is_refused(tmp_path, capsys):
    assert local.main(["check-upload", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
