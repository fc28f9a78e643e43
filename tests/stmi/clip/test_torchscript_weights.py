import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from stmi.clip.torchscript_weights import TorchScriptError, read_tensors
from tests.stmi.clip import torchscript


class Opener:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def zipped(**entries: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"root/{name}", content)
    return file


def test_tensors_are_those_of_the_state_dict(tmp_path):
    base = torch.arange(24.0)
    weights = {
        "a.weight": base.view(4, 6).T,  # not contiguous
        "a.b.small": torch.randn(3, 2).half(),
        "a.b.number": torch.tensor(3),
        "shared": base[2:5],  # within the storage of another
        "scale": torch.tensor(2.5),
    }
    torchscript.write(tmp_path / "module.pt", weights)
    with (tmp_path / "module.pt").open("rb") as file:
        read = read_tensors(file)
    assert set(read) == set(weights)
    for name, value in weights.items():
        assert torch.equal(read[name], value), name
        assert read[name].dtype == value.dtype


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2, 2), nn.LayerNorm(4))
        self.sizes = [1, 2]
        self.names = {"a": 1.5}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_attributes_that_are_not_tensors_are_ignored(tmp_path):
    module = Convolution()
    torch.jit.save(torch.jit.script(module), str(tmp_path / "module.pt"))
    with (tmp_path / "module.pt").open("rb") as file:
        read = read_tensors(file)
    assert {name: value.tolist() for name, value in read.items()} == {
        name: value.tolist() for name, value in module.state_dict().items()
    }


def test_pickle_that_would_call_a_function_is_refused_and_calls_nothing(tmp_path):
    content = pickle.dumps(Opener(tmp_path / "made"), protocol=2)
    pickle.loads(content).close()
    assert (tmp_path / "made").exists()  # what the usual way to read it would do
    (tmp_path / "made").unlink()
    file = zipped(**{"data.pkl": content})
    with pytest.raises(TorchScriptError, match=r"asks for \w+\.open, which no weight needs; nothing was run"):
        read_tensors(file)
    assert not (tmp_path / "made").exists()


def test_archive_without_a_module_is_refused():
    with pytest.raises(TorchScriptError, match=r"0 entries are called data\.pkl, expected 1"):
        read_tensors(zipped(other=b""))
    with pytest.raises(TorchScriptError, match="it holds a int, expected a module"):
        read_tensors(zipped(**{"data.pkl": pickle.dumps(3, protocol=2)}))
    with pytest.raises(TorchScriptError, match="not a TorchScript archive"):
        read_tensors(zipped(**{"data.pkl": b"\x80\x02}"}))


def test_storage_of_another_length_is_refused(tmp_path):
    torchscript.write(tmp_path / "module.pt", {"weight": torch.randn(8)})
    shorter = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "module.pt") as source, zipfile.ZipFile(shorter, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:-4] if name.endswith("data/0") else content)
    with pytest.raises(TorchScriptError, match=r"data/0 has 28 bytes, expected 8 of torch\.float32"):
        read_tensors(shorter)
