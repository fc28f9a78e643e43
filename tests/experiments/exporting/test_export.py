"""`export.py` on a real finished run, its files computed by onnxruntime and by PyTorch alone."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

import stmi
from experiments import export
from experiments.evaluating.evaluation_target import load_run
from experiments.exporting import checked_export, model_files
from experiments.exporting.export_result import ExportedModel, ExportResult
from experiments.exporting.exported_network import ExportedNetwork, describe_inputs
from stmi.clip.loading import load_clip
from stmi.config import ModelConfig
from stmi.images import read_image
from stmi.model import STMI
from tests import json_samples, kept_workspace, tiny_clip
from tests.examples.command_line import EXAMPLES

FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    kept = kept_workspace.unpack(tmp_path_factory.mktemp("kept"))
    return kept / "train" / json.loads((json_samples.FOLDER / "train.json").read_text())["run"]


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    """The ONNX file, and what the command that wrote it printed."""
    file = tmp_path_factory.mktemp("exported") / "run.onnx"
    target = load_run(run_folder)
    return file, checked_export.export(target, "fingerprint", "digest", file, "onnx", rows=5)


@pytest.fixture(scope="module")
def images(run_folder):
    root = next(run_folder.parents[1].glob("data/*/RGBNT201/test"))
    return {name: sorted((root / sub).iterdir())[:3] for name, sub in FOLDERS.items()}


def test_onnx_file_is_checked_on_test_samples_and_kept(exported):
    file, result = exported
    assert result.is_kept
    assert result.checked_rows == 5
    assert list(result.differences) == ["U", "G", "T"]
    assert max(result.differences.values()) < TOLERANCE
    assert result.bytes == file.stat().st_size
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_file_says_what_it_takes_and_gives(exported, run_folder):
    file, result = exported
    session = onnxruntime.InferenceSession(str(file))
    about = ExportedModel.model_validate_json(session.get_modelmeta().custom_metadata_map["stmi"])
    assert about == result.exported
    assert (about.run, about.image_height, about.image_width) == (run_folder.name, 32, 16)
    found = {one.name: (tuple(one.shape[1:]), one.type) for one in session.get_inputs()}
    types = {"uint8": "tensor(uint8)", "bool": "tensor(bool)", "float32": "tensor(float)"}
    assert found == {name: (one.shape, types[one.dtype]) for name, one in about.inputs.items()}
    assert {one.name: one.shape[1] for one in session.get_outputs()} == about.outputs


def test_program_without_pytorch_gives_the_features_of_embed(exported, run_folder, images, tmp_path):
    file, _ = exported
    paths = [images[name][1] for name in FOLDERS]
    program = (EXAMPLES / "embed_with_onnx.py").read_text()
    checked = "import sys\nsys.modules['torch'] = sys.modules['stmi'] = None\n" + program
    given = [sys.executable, "-c", checked, file, *paths, tmp_path / "out.npz"]
    done = subprocess.run([str(one) for one in given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.warns(UserWarning, match="no sample has a"):
        expected = stmi.load(run_folder, device="cpu").embed(*paths)
    found = np.load(tmp_path / "out.npz")
    assert found.files == ["U", "G", "T"]
    for name in found.files:
        assert np.allclose(found[name], expected[name], rtol=0, atol=TOLERANCE)


def test_command_writes_a_file_of_torch_export(run_folder, images, capsys, tmp_path):
    file = tmp_path / "new" / "run.pt2"
    arguments = ["--run", run_folder, "--format", "torch-export", "--out", file, "--json"]
    assert export.main([str(one) for one in arguments]) == 0
    result = ExportResult.model_validate_json(capsys.readouterr().out)
    extra = {"stmi.json": ""}
    module = torch.export.load(file, extra_files=extra).module()
    about = ExportedModel.model_validate_json(extra["stmi.json"])
    run = stmi.load(run_folder, device="cpu")
    assert (about.model, about.fingerprint[:8]) == (run.digest, run_folder.name[-8:])
    assert about == result.exported
    # Two samples, of which the first has no NIR image.
    given = {name: list(files[:2]) for name, files in images.items()}
    given["nir"][0] = None
    samples = run.embed(
        **given,
        mask=[np.ones((32, 16), dtype=bool)] * 2,
        caption=["", ""],
    )
    pixels = np.stack([[sample_pixels(images[name][row]) for name in FOLDERS] for row in (0, 1)])
    text = torch.from_numpy(samples["T"])
    present = torch.tensor([[True, False, True], [True, True, True]])
    mask = torch.full((2, 32, 16), 255, dtype=torch.uint8)
    found = module(images=torch.from_numpy(pixels), present=present, mask=mask, text=text)
    for name, values in found.items():
        assert np.allclose(values.numpy(), samples[name], rtol=0, atol=TOLERANCE)


def sample_pixels(file):
    return read_image(file, (32, 16), grey=True)[0].transpose(2, 0, 1)


@pytest.mark.parametrize("error", [0, 1e-3, np.nan])
def test_only_a_file_that_equals_the_model_is_kept(run_folder, tmp_path, monkeypatch, error):
    file = tmp_path / "run.pt2"
    file.write_bytes(b"an older file")

    # What the network computes stands in for a file, which takes long to write.
    networks = []

    def compute(inputs):
        with torch.no_grad():
            found = {name: values.numpy() for name, values in networks[0](**inputs).items()}
        found["G"][-1, -1] += error
        return found

    def write(program, outputs, about, path):
        networks.append(program)
        path.write_bytes(b"a file")

    monkeypatch.setattr(checked_export, "trace", lambda network, example: network)
    monkeypatch.setitem(model_files.FORMATS, "torch-export", (write, lambda path: compute))
    arguments = ["--run", run_folder, "--format", "torch-export", "--out", file]
    assert export.main([str(one) for one in arguments]) == (0 if error == 0 else 1)
    assert file.read_bytes() == (b"a file" if error == 0 else b"an older file")
    assert list(tmp_path.iterdir()) == [file]


VARIANTS = {
    "released": {
        "camera_embedding": True,
        "chi": {"convolution": "released", "incidence": "euclidean", "activation": "silu"},
    },
    "nearest": {"chi": {"incidence": "nearest", "exclude_text_copies": True}, "pixels": "clip"},
    "baseline": {
        "sfm": {"enabled": False},
        "str": {"enabled": False, "heads": 2},
        "chi": {"enabled": False},
        "text": {"enabled": False},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_network_is_traced_for_any_batch(variant, tmp_path_factory):
    clip = load_clip(tiny_clip.write(tmp_path_factory.mktemp("clip")))
    settings = {"image": {"height": 32, "width": 16}, "str": {"heads": 2}} | VARIANTS[variant]
    config = ModelConfig.model_validate(settings)
    model = STMI(config, clip, identities=3, cameras=2, seed=0).eval()
    cameras = 2 if config.camera_embedding else 0
    described = describe_inputs(config, 16, 77, cameras)
    random = torch.Generator().manual_seed(0)

    def given(count):
        made = {}
        for name, one in described.items():
            shape = (count, *one.shape)
            if one.dtype == "float32":
                made[name] = torch.randn(shape, generator=random)
            else:
                high = {"uint8": 256, "bool": 2, "int64": 2}[one.dtype]
                made[name] = torch.randint(0, high, shape, generator=random).to(getattr(torch, one.dtype))
        return made

    network = ExportedNetwork(model)
    module = model_files.trace(network, given(2)).module()
    for count in (1, 4):
        inputs = given(count)
        with torch.no_grad():
            expected = network(**inputs)
        found = module(**inputs)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.allclose(found[name], values, rtol=0, atol=TOLERANCE), name


def test_operations_that_onnx_lacks_are_replaced_by_equal_ones():
    cdist, sort = model_files.WITHOUT_ONNX.values()
    first, second = torch.randn(2, 3, 5, 7).unbind()
    expected = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.allclose(cdist(first, second, 2.0, 2), expected, rtol=0, atol=TOLERANCE)
    distances = torch.randperm(60).reshape(3, 4, 5).float()
    found = sort(distances, stable=True, dim=-2, descending=True)
    for one, other in zip(found, distances.sort(dim=-2, descending=True, stable=True), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--out": "model.pt2"}, "--out=model.pt2: expected a file that ends in .onnx"),
        ({"--out": "model.onnx", "--format": "torch-export"}, "expected a file that ends in .pt2"),
        ({"--run": "nosuch"}, "nosuch is no run's folder"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(run_folder, changes, expected, capsys):
    arguments = {"--run": str(run_folder), "--out": "model.onnx"} | changes
    assert export.main([part for pair in arguments.items() for part in pair]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert expected in line


def test_file_at_a_uri_is_refused(run_folder, capsys):
    """`Path` would make a folder `s3:` of it, and the file would seem to be written."""
    with pytest.raises(SystemExit, match="2"):
        export.main(["--run", str(run_folder), "--out", "s3://bucket/model.onnx"])
    message = "--out: s3://bucket/model.onnx: expected a path on this machine, not a URI"
    assert message in capsys.readouterr().err


def test_missing_packages_are_named_with_what_installs_them(run_folder, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name))
    assert export.main(["--run", str(run_folder), "--out", "model.onnx"]) == 2
    assert "needs onnx, onnxruntime, onnxscript; pip install 'stmi[export]'" in capsys.readouterr().err
