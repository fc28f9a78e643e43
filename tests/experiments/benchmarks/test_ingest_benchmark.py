import pytest

from experiments import benchmark
from experiments.benchmarks.ingest_benchmark import build_view, ingest_images
from experiments.benchmarks.measuring import BenchmarkReport, Measurement


@pytest.fixture(autouse=True)
def own_cluster(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The benchmarks set it.
    monkeypatch.setenv("RAY_ADDRESS", "local")


def check(report: BenchmarkReport, name: str, samples: list[int]) -> tuple[Measurement, ...]:
    assert benchmark.find_benchmark(name) in (ingest_images, build_view)
    assert report.name == name
    assert report.settings["format"] == "rgbnt100"
    for result, count in zip(report.results, samples, strict=True):
        assert f"{count} samples" in result.variant
        assert result.samples_per_second == pytest.approx(count / result.median_seconds)
        # Ray's processes are included.
        assert result.peak_memory_bytes > 200e6
    return report.results


def test_ingest_is_measured_at_two_sizes_and_their_peaks_are_compared() -> None:
    single, double = check(ingest_images(1, samples=40), "ingest", [40, 80])
    assert double.ratio == double.peak_memory_bytes / single.peak_memory_bytes
    assert double.ratio_to == "peak memory of 40 samples"


def test_view_of_the_training_split_is_measured() -> None:
    check(build_view(1, samples=20), "view-build", [20])
