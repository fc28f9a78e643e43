"""A finished run as its folder stores it: the settings of its model, and the weights that it reports.

Of a run's folder only `config.json`, `result.json` and the last checkpoint are read. A folder may be moved or
copied: its checkpoint is looked for in it first, then where the run wrote it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import safe_open
from torch import Tensor

from stmi.checkpoint_files import MODEL_FILE, REPORTED_FILE
from stmi.checksums import SUMS_FILE, find_change
from stmi.clip.weights import read_weights
from stmi.config import ModelConfig
from stmi.errors import TrainedRunError
from stmi.uris import presentable_uri

CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"

Content = TypeVar("Content", bound=BaseModel)
EpochChoice = Literal["reported", "last"]


class _Train(BaseModel):
    precision: Literal["float32", "bfloat16"]
    evaluation_batch: int


class RunConfig(BaseModel):
    """What an embedding depends on, of all settings of a run."""

    model: ModelConfig
    seed: int
    train: _Train


class _StoredConfig(BaseModel):
    config: RunConfig
    tables: dict[str, str]


class _Epoch(BaseModel):
    epoch: int


class _Choices(BaseModel):
    last: _Epoch


class _Reported(BaseModel):
    feature: str
    epoch: int


class _StoredResult(BaseModel):
    run: str
    checkpoint: str
    choices: _Choices | None = None
    reported: _Reported | None = None


class StoredRun:
    """The folder of a finished run.

    Args:
        location: The folder, or its URI on any PyArrow filesystem (`s3://bucket/runs/train/...`).

    Attributes:
        location: The same.
        name: The run's.
        config: Its settings.
        clip_digest: Digest of the CLIP that it started from.
        feature: The feature that it reports.

    Raises:
        TrainedRunError: There is no run, it is not finished, or a file is damaged.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        shown = presentable_uri(self.location)
        stored = self._read(CONFIG_FILE, _StoredConfig)
        if stored is None:
            raise TrainedRunError(
                f"{shown} is no run's folder: it has no {CONFIG_FILE}; name one such as "
                "runs/train/demo-seed0-1a2b3c4d"
            )
        result = self._read(RESULT_FILE, _StoredResult)
        if result is None:
            raise TrainedRunError(f"{shown} is not finished; run the command that started it again")
        if result.reported is None or result.choices is None:
            raise TrainedRunError(f"{shown} was finished by an older version; move it away and train it anew")
        self.name = result.run
        self.config = stored.config
        self.clip_digest = stored.tables.get("clip")
        self.feature = result.reported.feature
        self._checkpoint = result.checkpoint
        self._epochs = {"reported": result.reported.epoch, "last": result.choices.last.epoch}

    def epoch(self, choice: EpochChoice) -> int:
        """The number of an epoch, from 1."""
        if choice not in self._epochs:
            raise TrainedRunError(f"epoch={choice!r}: expected one of {', '.join(self._epochs)}")
        return self._epochs[choice]

    def weights(self, choice: EpochChoice) -> dict[str, Tensor]:
        """The model's weights at an epoch, on the CPU.

        Raises:
            TrainedRunError: They were not kept, or are not where the run says.
            stmi.clip.weights.ClipFileError: The file is damaged.
        """
        epoch, run = self.epoch(choice), presentable_uri(self.location)
        name = MODEL_FILE if epoch == self._epochs["last"] else REPORTED_FILE
        with self._weights_file(name) as path:
            if path is not None and (name == MODEL_FILE or _epoch_of(path) == epoch):
                return read_weights(path)
        if name == REPORTED_FILE:
            raise TrainedRunError(
                f"{run} reports epoch {epoch}, whose weights were not kept; evaluate its last one with "
                "--epoch last (in Python epoch='last')"
            )
        raise TrainedRunError(
            f"{run}: there is no {name}, neither in {_base_name(self._checkpoint)} in this folder nor in "
            f"{presentable_uri(self._checkpoint)}; copy that checkpoint into the run's folder"
        )

    @contextmanager
    def _weights_file(self, name: str) -> Iterator[Path | None]:
        for folder, below in ((self.location, f"{_base_name(self._checkpoint)}/"), (self._checkpoint, "")):
            with fetched(folder, below + name) as path, fetched(folder, below + SUMS_FILE) as sums:
                if path is None:
                    continue
                if sums is not None and (change := find_change(path, sums)) is not None:
                    raise TrainedRunError(
                        f"{presentable_uri(folder)}: {below}{name} is damaged ({change}); restore it from a "
                        "copy, or move the run's folder away and train it anew"
                    )
                yield path
                return
        yield None

    def _read(self, name: str, content: type[Content]) -> Content | None:
        with fetched(self.location, name) as path:
            if path is None:
                return None
            try:
                return content.model_validate_json(path.read_bytes())
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "the file"
                raise TrainedRunError(
                    f"{presentable_uri(self.location)}: {name} is damaged, or of another version "
                    f"({where}: {first['msg']}); restore it"
                ) from None


@contextmanager
def fetched(folder: str, name: str) -> Iterator[Path | None]:
    """A file below a folder as a file on this machine, or None where there is none.

    Args:
        folder: Folder or URI; a file below a URI is copied for as long as it is needed.
        name: Path of the file below the folder.

    Raises:
        TrainedRunError: The URI cannot be opened or reached.
    """
    if "://" not in folder:
        path = Path(folder) / name
        yield path if path.is_file() else None
        return
    from pyarrow import fs  # noqa: PLC0415 - only a URI needs it

    with tempfile.TemporaryDirectory() as copies:
        copy = Path(copies) / Path(name).name
        try:
            filesystem, root = fs.FileSystem.from_uri(folder)
            source = f"{root.rstrip('/')}/{name}"
            is_file = filesystem.get_file_info(source).type == fs.FileType.File
            if is_file:
                fs.copy_files(source, str(copy), filesystem, fs.LocalFileSystem())
        except (OSError, ValueError, NotImplementedError) as error:
            # Arrow's message quotes the URI.
            reason = str(error).replace(folder, presentable_uri(folder))
            raise TrainedRunError(f"{presentable_uri(folder)} cannot be read ({reason})") from None
        yield copy if is_file else None


def _base_name(location: str) -> str:
    return location.partition("?")[0].rstrip("/").rpartition("/")[2]


def _epoch_of(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(file.metadata()["epoch"])
