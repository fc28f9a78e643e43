import json

import pytest

from experiments import benchmark
from experiments.benchmarks.measuring import measure_in_turns

FACTS = {"variant", "median_seconds", "fastest_seconds", "slowest_seconds", "peak_memory_bytes"}


def test_benchmark_says_what_was_measured_as_one_json_document(capsys):
    assert benchmark.main(["augment", "--repeats", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "augment"
    assert report["settings"] == {"image": [256, 128], "samples": 72, "threads": benchmark.THREADS}
    base, whole = report["results"]
    assert base.keys() >= FACTS
    assert whole["ratio_to"] == base["variant"]
    assert whole["ratio"] == pytest.approx(whole["median_seconds"] / base["median_seconds"])
    assert whole["samples_per_second"] == pytest.approx(72 / whole["median_seconds"])


def test_matrix_products_of_a_step_are_recorded_forward_and_backward():
    layer = benchmark.torch.nn.Linear(4, 5)
    rows = benchmark.torch.randn(3, 4, requires_grad=True)
    products = benchmark._products_of(lambda: layer(rows).sum().backward())
    assert products == [((3, 4), (4, 5)), ((3, 5), (5, 4)), ((5, 3), (3, 4))]
    fewer = benchmark._products_of(lambda: layer(rows).sum().backward(), left_out=((3, 5), (5, 4)))
    assert fewer == [products[0], products[2]]


def test_works_measured_in_turns_are_made_one_after_the_other_and_then_run_alternately():
    log = []

    def making(name):
        log.append(f"make {name}")
        return lambda: log.append(name)

    works = {name: (lambda name=name: making(name)) for name in "ab"}
    results = measure_in_turns(works, repeats=2, samples=4)
    assert log == ["make a", "a", "a", "make b", "b", "b", *"ababab"]
    assert [result["variant"] for result in results] == ["a", "b"]
    assert results[0].keys() == FACTS | {"samples_per_second"}
    assert results[0]["fastest_seconds"] <= results[0]["median_seconds"] <= results[0]["slowest_seconds"]


def test_no_repeats_and_unknown_names_are_refused(capsys):
    for arguments in (["augment", "--repeats", "0"], ["sorting"]):
        with pytest.raises(SystemExit):
            benchmark.main(arguments)
    assert "--repeats=0: at least 1 is needed" in capsys.readouterr().err
