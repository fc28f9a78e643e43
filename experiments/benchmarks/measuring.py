"""Seconds and memory of some work: what every benchmark of the models' parts reports."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def measure(
    variant: str, work: Callable[[], Any], repeats: int, samples: int = 0, warm_up: bool = True
) -> dict[str, Any]:
    """Time some work after one warm-up: median, spread, throughput, and the most memory held meanwhile."""
    if warm_up:
        work()
    _forget_peak_memory()
    seconds = [_seconds_of(work) for _ in range(repeats)]
    return _result(variant, seconds, _peak_memory(), samples)


def measure_in_turns(
    works: Mapping[str, Callable[[], Callable[[], Any]]], repeats: int, samples: int
) -> list[dict[str, Any]]:
    """As `measure`, several works in turns: a machine whose speed drifts is as fast for one as for another.

    Each work is made when it is first needed, after the memory of those before it was measured, in a run
    that does not count for time.
    """
    made, peaks = {}, {}
    for variant, make in works.items():
        made[variant] = work = make()
        work()
        _forget_peak_memory()
        work()
        peaks[variant] = _peak_memory()
    for work in made.values():  # a turn that does not count: what was forgotten is fetched again
        work()
    turns = [{variant: _seconds_of(work) for variant, work in made.items()} for _ in range(repeats)]
    return [_result(variant, [turn[variant] for turn in turns], peaks[variant], samples) for variant in made]


def _seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _result(variant: str, seconds: list[float], peak_memory: int | None, samples: int) -> dict[str, Any]:
    median = statistics.median(seconds)
    result: dict[str, Any] = {
        "variant": variant,
        "median_seconds": median,
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "peak_memory_bytes": peak_memory,
    }
    return result | ({"samples_per_second": samples / median} if samples else {})


def compare(result: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """A result with the ratio of its median seconds to those of another of the same run."""
    ratio = result["median_seconds"] / base["median_seconds"]
    return result | {"ratio": ratio, "ratio_to": base["variant"]}


def _forget_peak_memory() -> None:
    gc.collect()
    # What is free already must not count as held: glibc keeps it until it is asked.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def _peak_memory() -> int | None:
    """Most resident memory since it was last forgotten, bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
