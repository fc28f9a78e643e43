"""What an exported file says of itself, and what an export gives."""

from data_catalog.records import Record


class ExportedInput(Record):
    """An input of the file; the first number of its shape is the batch, of any size."""

    dtype: str
    shape: tuple[int, ...]
    """Without the batch."""
    meaning: str


class ExportedModel(Record):
    """What is stored in the file (`stmi` in the metadata of ONNX, `stmi.json` in that of torch.export)."""

    run: str
    fingerprint: str
    """Fingerprint of the run's settings and data."""
    model: str
    """Digest of weights and settings: `stmi.TrainedRun.digest`."""
    epoch: int
    feature: str
    """The one that the run reports; compare features by their cosines."""
    image_height: int
    image_width: int
    mean: tuple[float, ...]
    """By channel of pixels from 0 to 1; the file subtracts it itself."""
    deviation: tuple[float, ...]
    """By channel; the file divides by it itself."""
    inputs: dict[str, ExportedInput]
    outputs: dict[str, int]
    """Name of each feature to its width, in the order of the file's outputs."""


class ExportResult(Record):
    """An exported file, checked against the model."""

    file: str
    format: str
    is_kept: bool
    """Whether the file computes what the model does; otherwise it was removed."""
    bytes: int
    sha256: str
    checked_rows: int
    """Test samples that were compared, also without two of the modalities."""
    differences: dict[str, float]
    """Largest absolute difference from the model in float32, by feature."""
    tolerance: float
    exported: ExportedModel
    notes: tuple[str, ...]
