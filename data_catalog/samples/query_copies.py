"""Queries that are no copies of the gallery's files of the same name: each becomes a sample of its own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from data_catalog.formats import QUERY_SUFFIX, Listing, SourceSample
from data_catalog.samples.source_images import failing_disk_ends_ingest, read_source

_READERS = 8


def separate_queries(listing: Listing) -> tuple[SourceSample, ...]:
    """The samples, sorted by id; a query with other bytes than the gallery has its own pixels.

    A table stores one triplet a sample, so the query would be measured with the gallery's pixels. Its sample
    has the id `NAME.query` and is not in the gallery, whose own sample is no query then.

    Args:
        listing: What was found.

    Raises:
        CatalogError: If the disk or the network fails.
    """

    def separate(sample: SourceSample) -> Sequence[SourceSample]:
        with failing_disk_ends_ingest():
            if not sample.query_files or _are_copies(listing, sample):
                return [sample]
        query = replace(
            sample,
            sample_id=sample.sample_id + QUERY_SUFFIX,
            is_gallery=False,
            files=sample.query_files,
            query_files={},
        )
        return [replace(sample, is_query=False, query_files={}), query]

    with ThreadPoolExecutor(_READERS) as readers:
        samples = [one for found in readers.map(separate, listing.samples) for one in found]
    return tuple(sorted(samples, key=lambda sample: sample.sample_id))


def _are_copies(listing: Listing, sample: SourceSample) -> bool:
    if sample.files.keys() != sample.query_files.keys():
        return False
    try:
        return all(
            read_source(listing.root, file) == read_source(listing.root, sample.query_files[name])
            for name, file in sample.files.items()
        )
    except ValueError:
        # Which of the two cannot be read is found where their samples are made.
        return False
