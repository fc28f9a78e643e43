import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pyarrow import fs
from safetensors.torch import save_file

import stmi


def test_run_that_was_moved_loads_with_the_weights_in_its_folder(run, copied):
    moved = stmi.load(copied, device="cpu")
    assert (
        (moved.name, moved.epoch, moved.feature) == (run.name, run.epoch, run.feature) == (run.name, 3, "U")
    )
    assert all(
        torch.equal(a, b) for a, b in zip(moved.model.parameters(), run.model.parameters(), strict=True)
    )


def test_run_in_object_storage_is_loaded_by_its_uri(run, copied, object_storage, tmp_path):
    uri = object_storage("runs/moved")
    filesystem, path = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(copied), path, destination_filesystem=filesystem)
    remote = stmi.load(uri, device="cpu")
    assert all(
        torch.equal(a, b) for a, b in zip(remote.model.parameters(), run.model.parameters(), strict=True)
    )
    # Its checkpoint may also be elsewhere, where the run wrote it.
    [checkpoint] = copied.glob("checkpoint_*")
    shutil.move(checkpoint, tmp_path / checkpoint.name)
    stored = json.loads((copied / "result.json").read_text())
    where = uri.replace("runs/moved", f"runs/moved/{checkpoint.name}")
    (copied / "result.json").write_text(json.dumps(stored | {"checkpoint": where}))
    assert stmi.load(copied, device="cpu").epoch == run.epoch
    with pytest.raises(stmi.TrainedRunError, match=r"s3://lab/catalogs/runs/none is no run's folder"):
        stmi.load(object_storage("runs/none"))
    with pytest.raises(
        stmi.TrainedRunError, match=r"^ftp://\.\.\.@host/run cannot be read \(.*ftp://\.\.\.@host/run\)"
    ):
        stmi.load("ftp://me:secret@host/run?token=1")


def test_run_that_cannot_be_loaded_says_what_is_missing(copied, tmp_path):
    with pytest.raises(stmi.TrainedRunError, match=r"is no run's folder: it has no config\.json"):
        stmi.load(tmp_path)
    with pytest.raises(stmi.TrainedRunError, match="epoch='best': expected one of reported, last"):
        stmi.load(copied, epoch="best")
    with pytest.raises(stmi.TrainedRunError, match=r"neither a folder nor an open_clip name.*clip=folder"):
        stmi.load(copied, clip="nowhere")
    [weights] = copied.glob("*/model.safetensors")
    weights.unlink()
    with pytest.raises(stmi.TrainedRunError, match="copy that checkpoint into the run's folder"):
        stmi.load(copied)
    (copied / "result.json").write_text("{")
    with pytest.raises(stmi.TrainedRunError, match=r"result\.json is damaged"):
        stmi.load(copied)
    (copied / "result.json").unlink()
    with pytest.raises(stmi.TrainedRunError, match="is not finished"):
        stmi.load(copied)


def test_weights_are_those_of_the_epoch_that_is_asked_for(run, copied):
    result = json.loads((copied / "result.json").read_text())
    result["reported"]["epoch"] = 2
    (copied / "result.json").write_text(json.dumps(result))
    with pytest.raises(stmi.TrainedRunError, match="reports epoch 2, whose weights were not kept"):
        stmi.load(copied)
    best = {name: value + 1 for name, value in run.model.state_dict().items()}
    [checkpoint] = copied.glob("checkpoint_*")
    for epoch, is_kept in (("1", False), ("2", True)):
        save_file(best, checkpoint / "reported.safetensors", metadata={"epoch": epoch})
        if is_kept:
            loaded = stmi.load(copied, device="cpu")
            assert loaded.epoch == 2
            assert all(torch.equal(value, best[name]) for name, value in loaded.model.state_dict().items())
        else:
            with pytest.raises(stmi.TrainedRunError, match="whose weights were not kept"):
                stmi.load(copied)
    last = stmi.load(copied, epoch="last", device="cpu")
    assert last.epoch == 3
    assert torch.equal(last.model.image_tower.proj, run.model.image_tower.proj)


PROBE = """
import sys
import numpy as np
import stmi
assert "torch" not in sys.modules
run = stmi.load(sys.argv[1], device="cpu")
one = run.embed(np.zeros((32, 16, 3), np.uint8), mask=np.ones((32, 16), bool), caption="a man")
run.rank(one, one, rerank=True)
print(*sorted({"ray", "mlflow", "optuna", "pyarrow", "data_catalog", "experiments"} & set(sys.modules)))
"""


def test_neither_ray_nor_the_catalog_is_imported_and_torch_only_when_used(folder):
    command = [sys.executable, "-c", PROBE, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_there():
    assert {name: getattr(stmi, name).__name__ for name in stmi.__all__} == {n: n for n in stmi.__all__}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = stmi.nothing
