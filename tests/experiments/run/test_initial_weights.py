"""`train.py --init`: a run that begins with the weights of another one."""

import json
import os

import pytest
import torch

from experiments import train
from experiments.experiment_config import ConfigError
from experiments.recipes import resolve
from experiments.run import initial_weights, lifecycle
from experiments.run.initial_weights import choose, stored_initial, with_initial_weights
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_tables import RunTables
from stmi.errors import ClipFileError
from stmi.released import released_checkpoint
from tests.experiments import small_run
from tests.stmi.released import released_oracle

SHAPES = {
    "image_tower.proj": (2, 3),
    "image_tower.camera_embedding": (4, 2),
    "reallocation.RGB.queries": (4, 2),
    "heads.G.classifier.weight": (6, 2),
}


TABLES = RunTables(views={}, captions={}, digests={"samples": "0"})


def weights_of(shapes):
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def test_weights_that_belong_to_identities_or_cameras_are_taken_on_the_same_samples_only():
    taken, left = choose(weights_of(SHAPES), SHAPES, is_same_data=True)
    assert (set(taken), left) == (set(SHAPES), {})
    taken, left = choose(weights_of(SHAPES), SHAPES, is_same_data=False)
    assert set(taken) == {"image_tower.proj", "reallocation.RGB.queries"}
    assert left == {
        "image_tower.camera_embedding": "of other cameras",
        "heads.G.classifier.weight": "of other identities",
    }


def test_weights_that_are_missing_or_of_another_shape_are_left_with_the_reason():
    there = weights_of(SHAPES | {"reallocation.RGB.queries": (8, 2)})
    del there["image_tower.proj"]
    taken, left = choose(there, SHAPES, is_same_data=True)
    assert left == {"image_tower.proj": "not there", "reallocation.RGB.queries": "(8, 2) there, (4, 2) here"}
    assert set(taken) | set(left) == set(SHAPES)


def test_checkpoint_of_the_released_code_begins_a_run_with_new_heads(tmp_path, monkeypatch):
    file = tmp_path / "STMI_best.pth"
    torch.save(released_oracle.small_checkpoint(), file)
    model = released_checkpoint.load(released_oracle.small_checkpoint(), (64, 32))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    monkeypatch.setattr(initial_weights, "_expected", lambda tables, config: shapes)
    config = resolve("rgbnt201-released", ["model.image.height=64", "model.image.width=32"])
    tables = TABLES
    found = with_initial_weights(tables, config, str(file)).initial
    heads = {name for name in shapes if name.startswith("heads.")}
    assert set(found.facts.left) == heads | {"image_tower.camera_embedding"}
    for name, value in found.weights.items():
        assert torch.equal(value, model.state_dict()[name])
    monkeypatch.setattr(initial_weights, "_expected", lambda tables, config: {"image_tower.proj": (1, 1)})
    with pytest.raises(ConfigError, match=r"none of its weights fits .*image_tower\.proj: \(.*\) there"):
        with_initial_weights(tables, config, str(file))


@pytest.mark.parametrize("source", ["run", "checkpoint", "file", "uri"])
def test_run_begins_where_the_other_one_ended_and_keeps_what_it_took(
    ray_session, clip, workspace, tmp_path, source
):
    first = small_run.alone(clip, workspace)
    checkpoint = first.result.checkpoint
    file = f"{checkpoint}/model.safetensors"
    location = {
        "run": first.location,
        "checkpoint": checkpoint,
        "file": file,
        "uri": f"file://{file}",
    }[source]
    config, tables = small_run.configured(clip, workspace, "seed=1", "train.epochs=1")
    given = with_initial_weights(tables, config, location)
    options = RunOptions.resolve(tmp_path).without_tracking()
    begun = RunFolder(lifecycle.run(config, given, options, threads=len(os.sched_getaffinity(0))).folder)
    assert begun.result.untrained == first.result.metrics["U"]
    assert begun.result.tables["init"] == given.digests["init"]
    assert begun.result.initial.left == {}
    assert begun.name != RunFolder.of(options.workspace, config, tables).name
    kept = stored_initial(begun)
    assert kept.facts == given.initial.facts
    assert all(torch.equal(kept.weights[name], value) for name, value in given.initial.weights.items())


@pytest.mark.slow
def test_command_begins_another_data_set_with_the_weights_of_a_run_and_finds_its_run_again(
    ray_session, clip, workspace, tmp_path, capsys
):
    """Vehicles have other identities and cameras than the people of the first run."""
    first = small_run.alone(clip, workspace)
    vehicles = ("data.synthetic.kind=vehicle", "data.dataset=synthetic_vehicle", "train.epochs=1")
    changes = [part for setting in vehicles for part in ("--set", setting)]
    arguments = small_run.arguments(clip, tmp_path, *changes, "--init", first.location)
    results = []
    for _ in range(2):
        assert train.main(arguments) == 0
        printed = capsys.readouterr()
        results.append(json.loads(printed.out))
        assert f"begins with {first.location}: took " in printed.err
        assert "not taken, of other identities: heads." in printed.err
    begun, again = results
    assert (begun["reused"], again["reused"]) == (False, True)
    assert begun["run"] == again["run"]
    assert all(name.startswith("heads.") for name in begun["initial"]["left"])


def test_what_is_no_run_and_no_checkpoint_is_refused_with_what_is_expected(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"--init=.*: expected the folder of a finished run"):
        with_initial_weights(TABLES, resolve("demo"), str(tmp_path))
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    missing = str(tmp_path / "none.pth")
    with pytest.raises(ConfigError, match=rf"--init={missing}: .*, and there is nothing of this name$"):
        with_initial_weights(TABLES, resolve("demo"), missing)
    for prefix in ("", "file://"):
        with pytest.raises(ConfigError, match="not a file of weights alone"):
            with_initial_weights(TABLES, resolve("demo"), f"{prefix}{tmp_path}/weights.pth")
        with pytest.raises(ClipFileError, match=r"weights\.safetensors cannot be read as weights"):
            with_initial_weights(TABLES, resolve("demo"), f"{prefix}{tmp_path}/weights.safetensors")
    with pytest.raises(SystemExit):
        train.main(["--plan", "--init", str(tmp_path)])
    assert "leave one of them out" in capsys.readouterr().err
