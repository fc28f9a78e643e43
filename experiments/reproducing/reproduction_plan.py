"""What it takes to reproduce the paper's tables on a data set: what is missing, and what it costs."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from data_catalog.captions.llm.expected_cost import ExpectedAnswers, expect_answers
from data_catalog.cards import load_card
from data_catalog.errors import CatalogError
from data_catalog.formats import SIDE_BY_SIDE, Listing
from data_catalog.records import Record
from data_catalog.samples.images import IMAGE_COLUMNS, SIDE_BY_SIDE_COLUMN, decode_triplets
from experiments.planning.study_plan import StudyPlan
from experiments.reproducing.table_origins import CaptionOrigin, MaskOrigin, read_source
from stmi.modality import MODALITIES
from stmi.processors import usable_processors

MEASURED = 4
"""Samples that are segmented to know how long all of them take."""
MEASURED_SECONDS = 20.0
"""No further sample is begun after so long."""


class ExpectedMasks(Record):
    """How long masks will take on this machine."""

    samples: int
    seconds_per_sample: float
    """Measured on this machine."""
    measured: int
    """Samples that were segmented for it."""
    processes: int
    """How many have room on this machine at once."""
    hours: float


class ReproductionPlan(Record):
    """What `reproduce.py` would do."""

    dataset: str
    images: int | None
    """Samples in the source folder; None where it is missing."""
    masks: ExpectedMasks | None
    """None where they are there, or in files, or there are no images to measure it on."""
    captions: ExpectedAnswers | None
    """None where they are there, or no language model is asked, or there are no images."""
    study: StudyPlan
    """Its tables are those of the data set; its times are for the runs alone."""
    errors: tuple[str, ...]
    """What is missing or would stop it."""


def make_reproduction_plan(
    dataset: str,
    folder: Path,
    masks: MaskOrigin,
    captions: CaptionOrigin,
    study: StudyPlan,
    faults: Sequence[str],
) -> ReproductionPlan:
    """The plan of a reproduction; segments a few images where masks are still to be made.

    Args:
        dataset: A published data set.
        folder: Its images.
        masks: Where masks come from.
        captions: Where captions come from.
        study: Plan of the tables' runs.
        faults: As `find_faults` gives them.
    """
    missing = {table.name for table in study.tables if table.key is None}
    try:
        listing = read_source(dataset, folder)
    except CatalogError:
        # It is among the faults.
        listing = None
    count = None if listing is None else len(listing.samples)
    rows = None if listing is None else _read_rows(listing)
    expected_masks, expected_answers = None, None
    if rows is not None and count is not None and len(rows):
        if "masks" in missing and masks.kind != "files":
            # Without its checkpoint, which is among the faults, a segmenter cannot be measured.
            with suppress(CatalogError):
                expected_masks = _measure_masks(masks, rows, count)
        if "captions" in missing and captions.kind == "llm":
            settings, card = captions.settings(dataset), load_card(dataset)
            expected_answers = expect_answers(rows.to_pylist()[0], count, card, settings, captions.prices)
    return ReproductionPlan(
        dataset=dataset,
        images=count,
        masks=expected_masks,
        captions=expected_answers,
        study=study,
        errors=(*faults, *study.errors),
    )


def _read_rows(listing: Listing) -> pa.Table:
    """Some samples from all over a source folder, as rows of a samples table; without broken ones."""
    rows = []
    for sample in listing.samples[:: max(1, len(listing.samples) // MEASURED)][:MEASURED]:
        if len(sample.files) not in (1, len(MODALITIES)):
            continue
        try:
            files = {name: (listing.root / file).read_bytes() for name, file in sample.files.items()}
            columns = dict(
                zip(IMAGE_COLUMNS, (files.get(modality) for modality in MODALITIES), strict=True)
            ) | {SIDE_BY_SIDE_COLUMN: files.get(SIDE_BY_SIDE)}
            row = pa.Table.from_pylist([{"sample_id": sample.sample_id, **columns}], schema=_ROWS)
            decode_triplets(row)
        except (CatalogError, OSError, ValueError):
            # Ingest says what is wrong with it.
            continue
        rows.append(row)
    return pa.concat_tables(rows) if rows else _ROWS.empty_table()


_ROWS = pa.schema(
    [("sample_id", pa.string()), *((name, pa.binary()) for name in (*IMAGE_COLUMNS, SIDE_BY_SIDE_COLUMN))]
)


def _measure_masks(origin: MaskOrigin, rows: pa.Table, samples: int) -> ExpectedMasks:
    settings = origin.segmenter()
    segmenter = settings.build()
    seconds: list[float] = []
    for triplet in decode_triplets(rows):
        if sum(seconds) > MEASURED_SECONDS:
            break
        start = time.perf_counter()
        segmenter.segment([triplet])
        seconds.append(time.perf_counter() - start)
    # The first one also readies libraries.
    counted = seconds[1:] or seconds
    each = sum(counted) / len(counted)
    processes = _processes(settings.gpus_per_actor, settings.cpus_per_actor)
    return ExpectedMasks(
        samples=samples,
        seconds_per_sample=each,
        measured=len(counted),
        processes=processes,
        hours=samples * each / processes / 3600,
    )


def _processes(gpus_per_actor: float, cpus_per_actor: float) -> int:
    """Actors of a segmenter that have room on this machine."""
    if gpus_per_actor:
        import torch  # noqa: PLC0415 - takes seconds; a segmenter that asks for a GPU has it loaded

        if torch.cuda.is_available():
            return max(1, int(torch.cuda.device_count() // gpus_per_actor))
    return max(1, int(usable_processors() // cpus_per_actor))
