"""The tensors of a TorchScript archive, without executing anything in it.

Such an archive is a zip file with code, the bytes of tensors, and a pickle, `data.pkl`, that says which
tensor is which attribute of which module. `torch.jit.load` would execute the code, and
`torch.load(weights_only=True)` refuses the format. Here the code is not read. Of the functions that a pickle
can call, only the few that describe tensors and modules are allowed, and each is replaced by a harmless one.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO

import torch
from torch import Tensor

_STORAGES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}


class TorchScriptError(ValueError):
    """A file that is not a TorchScript archive of a module, or whose pickle asks for more than tensors."""


def read_tensors(file: BinaryIO) -> dict[str, Tensor]:
    """Every tensor of the archive's module by its dotted name: weights and other attributes.

    Args:
        file: A file opened for reading bytes, with random access.

    Raises:
        TorchScriptError: It is not such an archive, or its pickle asks for more than tensors and modules.
    """
    try:
        with zipfile.ZipFile(file) as entries:
            tables = [name for name in entries.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            if len(tables) != 1:
                raise pickle.UnpicklingError(f"{len(tables)} entries are called data.pkl, expected 1")
            with entries.open(tables[0]) as table:
                module = _Unpickler(table, entries, tables[0].removesuffix(".pkl")).load()
    # The errors that malformed bytes may raise, by the documentation of pickle.
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise TorchScriptError(f"not a TorchScript archive of weights: {error}") from error
    if not isinstance(module, _ScriptModule):
        raise TorchScriptError(f"it holds a {type(module).__name__}, expected a module")
    return _tensors(module)


class _ScriptModule:
    """Stands for a module of the archive: attributes without behaviour."""


class _Unpickler(pickle.Unpickler):
    """Reads the attributes of a scripted module and refuses everything else that a pickle can ask for.

    Args:
        table: The pickle file, at its start.
        entries: The archive, for the bytes of the tensors.
        root: The folder of those bytes in the archive.
    """

    def __init__(self, table: Any, entries: zipfile.ZipFile, root: str) -> None:
        super().__init__(table)
        self._entries = entries
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The object for a name in the pickle.

        Raises:
            pickle.UnpicklingError: The name is not one of those that describe attributes of a module.
        """
        if module.partition(".")[0] == "__torch__":
            return _ScriptModule
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        known: dict[tuple[str, str], Any] = {
            ("torch.jit._pickle", "restore_type_tag"): _first,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weight needs; nothing was run")

    def persistent_load(self, pid: Any) -> Tensor:
        """The bytes of one storage as a flat tensor; `pid` is ("storage", type, key, device, elements)."""
        _, dtype, key, _, count = pid
        if key not in self._storages:
            content = self._entries.read(f"{self._root}/{key}")
            if len(content) != count * dtype.itemsize or not content:
                raise pickle.UnpicklingError(
                    f"{self._root}/{key} has {len(content)} bytes, expected {count} of {dtype}"
                )
            self._storages[key] = torch.frombuffer(bytearray(content), dtype=dtype)
        return self._storages[key]


def _first(value: Any, _: str) -> Any:
    return value


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or reach >= len(storage):
        raise pickle.UnpicklingError(f"a tensor of {size} reaches beyond its {len(storage)} numbers")
    return storage.as_strided(size, stride, offset)


def _tensors(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor among the attributes of a module and of its submodules, by dotted name."""
    found: dict[str, Tensor] = {}
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, _ScriptModule):
            found |= _tensors(value, f"{prefix}{name}.")
    return found
