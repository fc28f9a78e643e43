"""Writes the journal of each run as an event file of TensorBoard.

The file is a function of the journal: what a journal has is in the file once, whichever process writes it, in
whichever order, and a file that was cut off is completed. TensorBoard reads it on a disk and, like the
workspace, at a URI.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyarrow import fs

from data_catalog.storage import filesystems
from experiments.experiment_config import ConfigError
from experiments.tracking.journal import BEGINNINGS, Event
from experiments.tracking.journal_folder import JournalFolder
from experiments.tracking.mlflow_logger import metrics_of
from experiments.tracking.polling import polling

EVENT_FILES = "tensorboard"
"""Folder of the event file, in that of a run or a study."""
WRITE_SECONDS = 5.0

Sources = Callable[[], Mapping[JournalFolder, Mapping[str, Any]]]
"""Gives the folders of runs and studies, each with its flat settings."""


def check_package() -> None:
    """Make sure that TensorBoard is installed where event files are written.

    Raises:
        ConfigError: It is not.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "--log-to tensorboard needs the package tensorboard: pip install 'tensorboard>=2.20' (the "
            "project's extra `tensorboard`), or leave the option out"
        )


@contextmanager
def event_files_written(sources: Sources) -> Iterator[None]:
    """Write event files meanwhile, and once more at the end. What cannot be written ends nothing."""
    files: dict[JournalFolder, EventFile] = {}

    def write() -> None:
        for folder, settings in sources().items():
            files.setdefault(folder, EventFile(folder, settings)).write()

    with polling(write, WRITE_SECONDS):
        yield


class EventFile:
    """The event file of a run or a study.

    Args:
        folder: The run's or the study's.
        settings: Flat, for TensorBoard's tab of hyperparameters.
    """

    def __init__(self, folder: JournalFolder, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self._written = 0
        self._is_complete = False

    def write(self) -> None:
        """Write what the journal has and the file has not.

        Raises:
            CatalogError: The folder cannot be reached or written to.
        """
        # A finished run has no more events; each look into a journal in object storage is a request.
        events = [] if self._is_complete else self.folder.journal.read()
        if len(events) == self._written or not events:
            return
        name = f"{EVENT_FILES}/events.out.tfevents.{int(events[0]['time'])}.{self.folder.name}"
        data = encode(events, self.settings)
        filesystem, path = filesystems.open_root(self.folder.file(name))
        try:
            known = filesystems.read_bytes(filesystem, path)
        except FileNotFoundError:
            known = b""
        if known and data.startswith(known) and isinstance(filesystem, fs.LocalFileSystem):
            # A TensorBoard that shows the run has the file open.
            _extend(Path(path), len(known), data[len(known) :])
        elif data != known:
            self.folder.write(name, data)
        self._written, self._is_complete = len(events), events[-1]["event"] == "finished"


def _extend(path: Path, size: int, data: bytes) -> None:
    """Add to a file at the place where it ended: another process that does so too writes the same there."""
    try:
        with path.open("r+b") as file:
            file.seek(size)
            file.write(data)
    except OSError as error:
        raise filesystems.not_written(str(path), error) from error


def encode(events: Sequence[Event], settings: Mapping[str, Any]) -> bytes:
    """The event file of a journal; that of a longer journal begins with the same bytes.

    Args:
        events: At least one.
        settings: As in `EventFile`.
    """
    from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: PLC0415 - an optional package
    from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415

    file = io.BytesIO()
    writer, began = RecordWriter(file), events[0]["time"]

    def add(time: float, **facts: Any) -> None:
        writer.write(event_pb2.Event(wall_time=time, **facts).SerializeToString(deterministic=True))

    add(began, file_version="brain.Event:2")
    if settings:
        add(began, summary=_hyperparameters(settings, began))
    for event in events:
        if event["event"] in BEGINNINGS and "epoch" in event:
            # Epochs that training goes back behind are shown once they are repeated.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            add(event["time"], step=event["epoch"] + 1, session_log=start)
        if metrics := metrics_of(event):
            values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value, _, _ in metrics]
            add(event["time"], step=metrics[0][3], summary=summary_pb2.Summary(value=values))
    return file.getvalue()


def _hyperparameters(settings: Mapping[str, Any], began: float) -> Any:
    """The summary that TensorBoard's tab of hyperparameters reads."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # noqa: PLC0415
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # noqa: PLC0415

    plain = (bool, int, float, str)
    values = {name: value if isinstance(value, plain) else str(value) for name, value in settings.items()}
    summary = hparams_pb(values, start_time_secs=began)
    for entry in summary.value:
        # It holds a map, whose order would be another one in each process.
        content = HParamsPluginData.FromString(entry.metadata.plugin_data.content)
        entry.metadata.plugin_data.content = content.SerializeToString(deterministic=True)
    return summary
