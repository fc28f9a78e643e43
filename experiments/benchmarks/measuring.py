"""Time and memory of a function, as every benchmark measures and reports them."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from data_catalog.records import Record
from experiments.tracking.polling import polling

_POLL_SECONDS = 0.1


class Measurement(Record):
    """Time and memory of one variant; fields that a benchmark does not measure are None."""

    variant: str
    median_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    peak_memory_bytes: int | None
    """Peak while it ran; None where the system does not report it."""
    memory_before_bytes: int | None = None
    """Memory before it ran."""
    samples_per_second: float | None = None
    ratio: float | None = None
    """Ratio of the median time, or of what `ratio_to` names, to that of another variant."""
    ratio_to: str | None = None
    """Name of the other variant."""
    kept_bytes: int | None = None
    """What a forward pass keeps for the backward pass."""
    kept_ratio: float | None = None
    """Ratio of `kept_bytes` to those of the plain attention."""
    runs: int | None = None
    """Number of runs of a sweep."""
    median_seconds_in_training: float | None = None
    """Median time in training of a run of a sweep."""
    seconds_outside_training_per_trial: float | None = None
    overlap: float | None = None
    """Time of a step over that of the longer of its parts; 1 where they overlap in full."""
    times_faster: float | None = None
    """1 / `ratio`."""

    def compared_with(self, base: "Measurement") -> "Measurement":
        """The same with the ratio of its median time to that of another variant."""
        ratio = self.median_seconds / base.median_seconds
        return self.model_copy(update={"ratio": ratio, "ratio_to": base.variant})


class BenchmarkReport(Record):
    """The result of one benchmark."""

    name: str
    settings: dict[str, Any]
    results: tuple[Measurement, ...]


@dataclass
class MemoryUse:
    """Bytes before a block ran, and their peak while it ran; None where the system does not report them."""

    before: int | None = None
    peak: int | None = None


@contextmanager
def process_memory() -> Iterator[MemoryUse]:
    """Measure the resident memory of this process while the block runs."""
    gc.collect()
    # glibc keeps freed memory until it is told to return it; without that it would be counted.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    reset_peak = Path("/proc/self/clear_refs")
    if reset_peak.exists():
        reset_peak.write_text("5")
    memory = MemoryUse(before=_process_status("VmRSS"))
    yield memory
    memory.peak = _process_status("VmHWM")


@contextmanager
def family_memory() -> Iterator[MemoryUse]:
    """Measure the memory of this process and all its descendants, several times a second, in a thread.

    Pages that processes share count once.
    """
    gc.collect()
    first = _family_bytes()
    memory = MemoryUse(before=first, peak=first)

    def update_peak() -> None:
        memory.peak = max(memory.peak or 0, _family_bytes())

    with polling(update_peak, _POLL_SECONDS, final_call=False):
        yield memory


def measure(
    variant: str,
    function: Callable[[], Any],
    repeats: int,
    samples: int = 0,
    warm_up: bool = True,
    clean_up: Callable[[Any], None] = lambda result: None,
    memory: Callable[[], AbstractContextManager[MemoryUse]] = process_memory,
) -> Measurement:
    """Measure a function.

    Args:
        variant: Name of the variant.
        function: Is called without arguments.
        repeats: Number of measured calls.
        samples: Samples of a call; 0 where it has none.
        warm_up: Call it once more, before.
        clean_up: Is called with each result, without being measured.
        memory: Measures the memory.
    """
    if warm_up:
        clean_up(function())
    seconds = []
    with memory() as used:
        for _ in range(repeats):
            start = time.perf_counter()
            result = function()
            seconds.append(time.perf_counter() - start)
            clean_up(result)
    return _measurement(variant, seconds, used, samples)


def measure_in_turns(
    variants: Mapping[str, Callable[[], Callable[[], Any]]], repeats: int, samples: int
) -> list[Measurement]:
    """Measure several functions in turns, so that a change of the machine's speed affects all of them.

    A function is made when it is first needed, after the memory of those before it was measured, in a call
    whose time does not count.

    Args:
        variants: Name to what makes the function.
        repeats: Number of measured turns.
        samples: Samples of a call.
    """
    functions, used = {}, {}
    for variant, make in variants.items():
        functions[variant] = function = make()
        function()
        with process_memory() as used[variant]:
            function()
    for function in functions.values():  # a turn that does not count: it fills the caches again
        function()
    seconds: dict[str, list[float]] = {variant: [] for variant in functions}
    for _ in range(repeats):
        for variant, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[variant].append(time.perf_counter() - start)
    return [_measurement(variant, seconds[variant], used[variant], samples) for variant in functions]


def _measurement(variant: str, seconds: list[float], used: MemoryUse, samples: int) -> Measurement:
    median = statistics.median(seconds)
    return Measurement(
        variant=variant,
        median_seconds=median,
        fastest_seconds=min(seconds),
        slowest_seconds=max(seconds),
        peak_memory_bytes=used.peak,
        memory_before_bytes=used.before,
        samples_per_second=samples / median if samples else None,
    )


def _process_status(field: str) -> int | None:
    """A field of this process's status in bytes; None where the system does not report it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _family_bytes() -> int:
    process, total = psutil.Process(), 0
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            full = member.memory_full_info()
            # Not every system reports the proportional share.
            total += getattr(full, "pss", full.rss)
    return total
