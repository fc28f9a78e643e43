"""Memory that is allocated while a view is opened."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa


@contextmanager
def no_copies(pixel_bytes: int) -> Iterator[None]:
    """Fail if NumPy or Arrow keep more than a tenth of the bytes of the pixels; assign what is opened."""
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        yield
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    arrays = snapshot.filter_traces([tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)])
    allocated = sum(trace.size for trace in arrays.traces)
    assert allocated + pa.total_allocated_bytes() - before < pixel_bytes / 10
