"""The steps of a small catalog one after the other; also in a process that kills itself while it writes."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from data_catalog.captions.caption_table import make_captions
from data_catalog.captions.text_feature_table import make_text_features
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.storage import filesystems
from data_catalog.tables.table import Table
from data_catalog.views.training_view import ViewSettings, make_view
from tests.data_catalog.folders import HEIGHT, WIDTH, load_fake_tower

STEPS = ("samples", "masks", "captions", "text_features", "view")


def all_steps(source: Path, catalog: Path) -> dict[str, Table]:
    """Every table of the small data set; those that exist are found."""
    samples = ingest(source, catalog, "small", IngestSettings(samples_per_shard=3))
    found = make_masks(samples, GrabCutSettings(), true_masks=source / "true_masks")
    captions = make_captions(samples, source / "readings")
    text_features = make_text_features(captions, "fake", load=load_fake_tower)
    settings = ViewSettings(split="train", height=HEIGHT, width=WIDTH, samples_per_shard=4)
    view = make_view(samples, found, text_features, settings)
    return dict(zip(STEPS, (samples, found, captions, text_features, view), strict=True))


def die(source: Path, catalog: Path, files: int) -> None:
    """Run the steps, and kill this process before the last of so many files gets its final name."""
    write, left = filesystems.written_atomically, files

    @contextmanager
    def deadly(filesystem: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
        nonlocal left
        with write(filesystem, path) as stream:
            yield stream
            left -= 1
            if left == 0:
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    # For good: this process ends.
    pytest.MonkeyPatch().setattr(filesystems, "written_atomically", deadly)
    all_steps(source, catalog)
