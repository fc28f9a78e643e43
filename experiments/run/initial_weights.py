"""The weights with which a run begins where it does not begin with CLIP alone: `train.py --init`.

They come from a finished run, from a checkpoint, or from a checkpoint of the authors' code. What fits the
model of the run is taken; what belongs to other identities or cameras is not. The run's folder keeps what was
taken, so that the run needs its source no more.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from data_catalog.errors import DamagedFileError
from data_catalog.storage.folders import Folder
from experiments.experiment_config import ConfigError, ExperimentConfig
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.checkpoints import digest_weights
from experiments.run.run_folder import CONFIG_FILE, INITIAL_FILE, RunFolder
from experiments.run.run_result import InitialFacts
from experiments.run.run_tables import (
    InitialWeights,
    RunTables,
    count_cameras,
    split_name,
    training_views,
)
from stmi.checkpoint_files import MODEL_FILE
from stmi.clip.loading import untrained_clip
from stmi.clip.weights import read_weights
from stmi.model import STMI
from stmi.released import released_checkpoint
from stmi.stored_run import StoredRun
from stmi.uris import presentable_uri

INIT = "init"
"""Among the digests of what a run starts from."""
OF_THE_DATA = {"heads": "identities", "image_tower.camera_embedding": "cameras"}
"""Start of the names of weights to what of the training data they belong to."""


def with_initial_weights(tables: RunTables, config: ExperimentConfig, source: str) -> RunTables:
    """What a run reads, with the weights that it begins with.

    Args:
        tables: What it reads beside them.
        config: The run.
        source: Folder or URI of a finished run (the weights that it reports), of a checkpoint, of its file of
            weights, or of a checkpoint of the authors' code.

    Raises:
        ConfigError: There are no such weights, or none of them fits the image tower.
        ClipFileError: The file is damaged.
        TrainedRunError: The run is not finished, or its weights were not kept.
    """
    weights, samples = _read(source, config)
    expected = _expected(tables, config)
    is_same_data = samples == _samples(tables.digests)
    taken, left = choose(weights, expected, is_same_data)
    if not any(name.startswith("image_tower.") for name in taken):
        name, reason = next(iter(left.items()))
        raise ConfigError(
            f"--init={source}: none of its weights fits the image tower of this run ({name}: {reason}); name "
            "weights that began with the same CLIP architecture, at the same image size"
        )
    facts = InitialFacts(
        source=presentable_uri(source),
        digest=digest_weights(taken),
        taken=dict(Counter(_part(name) for name in taken)),
        left=left,
        unused=tuple(name for name in weights if name not in expected),
    )
    own = InitialWeights(taken, facts)
    return replace(tables, digests=tables.digests | {INIT: facts.digest}, initial=own)


def choose(
    weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], is_same_data: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights that are taken, and the reason why each other one of the model is not.

    Args:
        weights: What is there, by name.
        expected: Shape of each weight of the model, by name.
        is_same_data: Whether they were trained on the same samples, so that identities and cameras have the
            same numbers.
    """
    left: dict[str, str] = {}
    for name, shape in expected.items():
        of_the_data = [what for start, what in OF_THE_DATA.items() if name.startswith(start)]
        if name not in weights:
            left[name] = "not there"
        elif tuple(weights[name].shape) != tuple(shape):
            left[name] = f"{tuple(weights[name].shape)} there, {tuple(shape)} here"
        elif of_the_data and not is_same_data:
            left[name] = f"of other {of_the_data[0]}"
    return {name: weights[name] for name in expected if name not in left}, left


def as_file(weights: Mapping[str, Tensor]) -> bytes:
    """Weights as the content of `INITIAL_FILE`."""
    return save({name: value.contiguous() for name, value in weights.items()})


def stored_initial(run: RunFolder) -> InitialWeights | None:
    """The weights with which a run began, for one that repeats it; None for those of CLIP alone.

    Raises:
        DamagedFileError: The file is damaged or missing.
    """
    if (event := run.journal.last("initialised")) is None:
        return None
    return InitialWeights(_load(run), InitialFacts.of(event))


def load_initial(model: STMI, folder: Folder) -> None:
    """Load the weights with which a run begins into its model, from the run's folder.

    Raises:
        DamagedFileError: The file is damaged.
    """
    model.load_state_dict(_load(folder), strict=False)


def _load(folder: Folder) -> dict[str, Tensor]:
    try:
        return load(folder.read(INITIAL_FILE))
    except (OSError, SafetensorError) as error:
        remedy = "move the run's folder away, and begin it anew"
        raise DamagedFileError(folder.file(INITIAL_FILE), str(error)[:200], remedy) from None


def _part(name: str) -> str:
    """The part of the model that a weight belongs to."""
    return name.partition(".")[0]


def _expected(tables: RunTables, config: ExperimentConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each weight of a run's model, by name."""
    datasets = config.data.names
    identities = BatchSchedule(training_views(tables.views, datasets), config).identities
    cameras = count_cameras(tables.views, datasets)
    with nullcontext() if config.model.text.fine_tune else torch.device("meta"):
        model = STMI(config.model, untrained_clip(config.clip_source), identities, cameras, config.seed)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _samples(digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and digest of the samples of each data set of a run, in their order."""
    return [(name, digest) for name, digest in digests.items() if split_name(name)[0] == "samples"]


def _read(source: str, config: ExperimentConfig) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The weights of a source by our names, and the samples that they were trained on, as far as known."""
    folder = Folder(source)
    if folder.has_file(CONFIG_FILE):
        digests = RunFolder.open(folder).digests
        return StoredRun(folder.location).weights("reported"), _samples(digests)
    if folder.has_file(MODEL_FILE):
        return _read_file(folder, MODEL_FILE), _samples_of_run(folder.parent)
    if not folder.parent.has_file(folder.name):
        there = "" if folder.parent.has_folder(folder.name) else ", and there is nothing of this name"
        raise ConfigError(
            f"--init={source}: expected the folder of a finished run (with {CONFIG_FILE}), that of a "
            f"checkpoint (with {MODEL_FILE}), its {MODEL_FILE}, or the file of a released checkpoint{there}"
        )
    if folder.name.endswith(".safetensors"):
        return _read_file(folder.parent, folder.name), _samples_of_run(folder.parent.parent)
    size = config.model.image
    try:
        with folder.parent.local_file(folder.name) as path:
            weights = released_checkpoint.read(path)
        return dict(released_checkpoint.load(weights, (size.height, size.width)).state_dict()), []
    except released_checkpoint.ReleasedCheckpointError as error:
        raise ConfigError(f"--init={source}: {error}") from None


def _read_file(folder: Folder, name: str) -> dict[str, Tensor]:
    with folder.local_file(name) as path:
        return read_weights(path)


def _samples_of_run(folder: Folder) -> list[tuple[str, str]]:
    """The samples of the run in whose folder a checkpoint is; none where it was copied to elsewhere."""
    return _samples(RunFolder.open(folder).digests) if folder.has_file(CONFIG_FILE) else []
