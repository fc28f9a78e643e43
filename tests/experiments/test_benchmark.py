import json
import time

import pytest
import torch

from experiments import benchmark
from experiments.benchmarks.measuring import family_memory, measure, measure_in_turns
from experiments.benchmarks.training_benchmarks import find_products

FACTS = {"variant", "median_seconds", "fastest_seconds", "slowest_seconds", "peak_memory_bytes"}


def test_benchmark_prints_its_measurements_as_one_json_document(capsys):
    assert benchmark.main(["augment", "--repeats", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "augment"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    assert report["settings"] == {
        "image": [256, 128],
        "samples": 72,
        "device": device,
        "threads": benchmark.THREADS,
    }
    base, whole = report["results"]
    assert base.keys() >= FACTS
    assert whole["ratio_to"] == base["variant"]
    assert whole["ratio"] == pytest.approx(whole["median_seconds"] / base["median_seconds"])
    assert whole["samples_per_second"] == pytest.approx(72 / whole["median_seconds"])


def test_matrix_products_of_a_step_are_recorded_forward_and_backward():
    layer = torch.nn.Linear(4, 5)
    rows = torch.randn(3, 4, requires_grad=True)
    products = find_products(lambda: layer(rows).sum().backward())
    assert products == [((3, 4), (4, 5)), ((3, 5), (5, 4)), ((5, 3), (3, 4))]
    fewer = find_products(lambda: layer(rows).sum().backward(), excluded=((3, 5), (5, 4)))
    assert fewer == [products[0], products[2]]


@pytest.mark.parametrize("name", [*benchmark.BENCHMARKS, *benchmark.LONG_BENCHMARKS])
def test_every_benchmark_is_found(name):
    assert callable(benchmark.find_benchmark(name))


def test_variants_are_made_one_after_the_other_and_measured_in_turns():
    log = []

    def make(name):
        log.append(f"make {name}")
        return lambda: log.append(name)

    variants = {name: (lambda name=name: make(name)) for name in "ab"}
    results = measure_in_turns(variants, repeats=2, samples=4)
    assert log == ["make a", "a", "a", "make b", "b", "b", *"ababab"]
    assert [result.variant for result in results] == ["a", "b"]
    assert results[0].fastest_seconds <= results[0].median_seconds <= results[0].slowest_seconds
    assert results[0].samples_per_second == 4 / results[0].median_seconds


def test_results_are_cleaned_up_and_memory_of_their_making_is_seen():
    kept = []

    def fill():
        kept.append(torch.ones(2**25))
        time.sleep(0.3)
        return len(kept)

    result = measure("fill", fill, 1, clean_up=lambda count: kept.clear(), memory=family_memory)
    assert kept == []
    assert result.peak_memory_bytes - result.memory_before_bytes > 2**26


def test_no_repeats_and_unknown_names_are_refused(capsys):
    for arguments in (["augment", "--repeats", "0"], ["sorting"]):
        with pytest.raises(SystemExit):
            benchmark.main(arguments)
    assert "--repeats=0: at least 1 is needed" in capsys.readouterr().err


def test_repeats_of_what_is_measured_once_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["retrieval-large", "--repeats", "5"])
    assert "--repeats=5: retrieval-large is measured once; leave it out" in capsys.readouterr().err
