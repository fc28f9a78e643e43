import csv
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from pyarrow import parquet

from experiments.run.run_folder import RunFolder
from experiments.run.run_result import FeatureMetrics, Hyperedges
from experiments.studies.ablation.ablation_result import AblationResult, SeedSpread
from experiments.studies.ablation.ablation_table import (
    RowRuns,
    best_on_validation,
    degenerate_rows,
    table_rows,
)
from experiments.studies.ablation.rows import ABLATIONS, Row
from experiments.studies.ablation.table_figure import draw
from experiments.studies.ablation.table_text import HEADER, as_csv, as_markdown, cells
from experiments.studies.significance import bootstrap_over_queries, holm, paired_over_seeds
from tests import json_samples
from tests.experiments import made_up

TABLE = ABLATIONS["table3"]
IDENTITY = np.repeat(np.arange(12), 3)


ALONE = Hyperedges(size=1.4, density=1.4 / 15, alone=1, across=0, by_text=0.2)


def finished_run(path, precision, epoch=3, hyperedges=None):
    """A run's folder as far as a table reads it: the result, and the queries' precision with U and G."""
    path.mkdir(parents=True)
    queries = []
    for feature, shift in (("U", 0.0), ("G", -0.1)):
        for when in (1, epoch):
            values = np.clip(precision + shift - (when != epoch) * 0.2, 0, 1)
            columns = {
                "sample_index": np.arange(len(IDENTITY))[::-1],
                "identity": IDENTITY[::-1],
                "feature": [feature] * len(IDENTITY),
                "average_precision": values[::-1],
                "epoch": [when] * len(IDENTITY),
            }
            queries.append(pa.table(columns))
    run = RunFolder(path)
    parquet.write_table(pa.concat_tables(queries), path / "queries.parquet")
    metrics = {
        feature: made_up.metrics(float(np.clip(precision + shift, 0, 1).mean()))
        for feature, shift in (("U", 0.0), ("G", -0.1))
    }
    best = {name: made_up.metrics(0.9) for name in metrics}
    chosen = {
        "last": {"epoch": epoch, "metrics": metrics},
        "validation": None,
        "best_on_test": {"epoch": 1, "metrics": best},
    }
    reported = {"feature": "U", "chosen_by": "last", "epoch": epoch, "metrics": metrics["U"]}
    run.journal.append("epoch", epoch=1, losses={}, seconds={}, test=best)
    run.journal.append("test", epochs=epoch, metrics=metrics)
    made_up.write_config(run)
    run.write_result(made_up.run_result(choices=chosen, reported=reported, hyperedges=hyperedges or {}))
    return run


@pytest.fixture
def measured(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    levels = {"baseline": 0.4, "SFM": 0.6, "SFM + STR": 0.6, "SFM + STR + CHI": 0.62}
    hardness = generator.normal(0, 0.05, len(IDENTITY))
    for row in TABLE.rows:
        runs = {
            seed: finished_run(
                tmp_path / f"{row.index}{seed}",
                np.clip(levels[row.name] + hardness + generator.normal(0, 0.02, len(IDENTITY)), 0, 1),
                hyperedges={"test": ALONE} if row.index == "D" and seed != 2 else None,
            )
            for seed in (0, 1, 2)
        }
        rows.append(RowRuns(row, "U", runs, {"sfm.enabled": row.index != "A"}))
    full = rows[-1]
    return [*rows, RowRuns(Row("G alone", feature="G", against=full.row.name), "G", full.runs, {})]


def test_difference_interval_and_p_are_those_of_the_tests_on_the_runs_values(measured):
    rows = {row.name: row for row in table_rows(TABLE, measured, "rgbnt201")}
    baseline, sfm = measured[:2]
    values = rows["SFM"].mean_average_precision
    seeds = paired_over_seeds(sfm.values("mAP"), baseline.values("mAP"))
    assert (values.difference, values.difference_interval) == (seeds.difference, seeds.interval)
    precision, identity = sfm.precision([0, 1, 2])
    queries = bootstrap_over_queries(precision, baseline.precision([0, 1, 2])[0], identity)
    assert values.query_interval == queries.interval
    assert values.p_value == max(seeds.p_value, queries.p_value)
    compared = [row.mean_average_precision for row in rows.values()]
    p_values = [row.p_value for row in compared if row.against]
    corrected = [row.p_adjusted for row in compared if row.against]
    assert corrected == holm(p_values)


def test_queries_are_read_at_the_reported_epoch_in_the_order_of_the_samples(measured):
    precision, identity = measured[0].precision([0, 1, 2])
    assert identity.tolist() == IDENTITY.tolist()
    means = [measured[0].values("mAP")[seed] for seed in (0, 1, 2)]
    assert precision.mean(axis=1) == pytest.approx(means)


def test_large_difference_is_real_and_no_difference_is_not(measured):
    rows = {row.name: row.mean_average_precision for row in table_rows(TABLE, measured, "rgbnt201")}
    assert rows["baseline"].real is None
    assert rows["SFM"].real
    assert not rows["SFM + STR"].real
    assert [rows[name].verdict for name in ("baseline", "SFM", "SFM + STR")] == [None, "real", "not real"]
    assert rows["G alone"].difference == pytest.approx(-0.1, abs=0.001)


def test_markdown_says_what_would_decide_an_undecided_difference(measured):
    short = [replace(one, runs={seed: one.runs[seed] for seed in (0, 1)}) for one in measured]
    rows = table_rows(TABLE, short, "rgbnt201")
    line = "- SFM + STR + CHI minus SFM + STR: undecided; 2 seeds cannot decide, use 3 or more"
    assert line in as_markdown("t", rows, [])


def test_markdown_says_which_rows_are_compared(measured):
    lines = as_markdown("t", table_rows(TABLE, measured, "rgbnt201"), ["a note"]).splitlines()
    assert lines[-2:] == [
        "- Compared: SFM with baseline; SFM + STR with SFM; SFM + STR + CHI with SFM + STR; "
        "G alone with SFM + STR + CHI.",
        "- a note",
    ]


def test_papers_numbers_stand_beside_the_measured_ones_in_the_same_unit(measured):
    rows = table_rows(TABLE, measured, "synthetic_person")
    assert [row.mean_average_precision.paper for row in rows] == [0.703, 0.761, 0.781, 0.812, None]
    assert [row.mean_average_precision.paper_difference for row in rows] == [None, 0.058, 0.02, 0.031, None]
    assert rows[3].rank1.paper == 0.834


def test_row_without_a_finished_run_is_shown_as_that_and_compared_with_none(measured):
    broken = measured[1]
    measured[1] = replace(broken, runs={})
    rows = table_rows(TABLE, measured, "rgbnt201")
    assert rows[1].mean_average_precision.mean is None
    assert rows[1].mean_average_precision.real is None
    assert rows[2].mean_average_precision.difference is None
    assert "not finished" in as_markdown("t", rows, [])


def test_rows_with_other_seeds_are_compared_over_those_that_both_have(measured):
    sfm = measured[1]
    measured[1] = replace(sfm, runs={s: sfm.runs[s] for s in (0, 2)})
    rows = table_rows(TABLE, measured, "rgbnt201")
    both = {s: measured[0].values("mAP")[s] for s in (0, 2)}
    expected = paired_over_seeds(measured[1].values("mAP"), both)
    assert rows[1].mean_average_precision.difference == expected.difference
    assert rows[1].seeds == (0, 2)


def test_every_choice_of_epoch_stands_side_by_side_and_says_which_it_is(measured):
    rows = table_rows(TABLE, measured, "rgbnt201")
    for row in rows:
        assert row.epochs["last"].values == row.mean_average_precision.values
        assert row.epochs["validation"].mean is None
        assert row.epochs["best_on_test"].mean == pytest.approx(0.9)
        shown = dict(zip(HEADER, cells(row), strict=True))
        assert shown["mAP, last epoch"] == shown["mAP, mean ± std"]
        assert shown["mAP, epoch by validation"] == ""
        assert shown["mAP, epoch best on test (flatters)"] == "90.0 ± 0.0"
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["mAP_last"] for row in read] == [row["mAP"] for row in read]
    assert {row["mAP_validation"] for row in read} == {""}
    assert {float(row["mAP_best_on_test"]) for row in read} == {0.9}


def test_row_with_hypergraphs_shows_their_size_and_whether_they_do_anything(measured):
    rows = table_rows(TABLE, measured, "rgbnt201")
    sizes = [dict(zip(HEADER, cells(row), strict=True))["hyperedge size"] for row in rows]
    assert sizes == ["", "", "", "1.4 ± 0.0", ""]
    [last] = [row for row in csv.DictReader(io.StringIO(as_csv(rows))) if row["hyperedge_size"]]
    assert (last["name"], float(last["hyperedge_size"])) == ("SFM + STR + CHI", 1.4)
    [note] = degenerate_rows(measured)
    assert note == f"SFM + STR + CHI, 2 of 2 runs: {ALONE.warning}."


def test_best_rule_is_chosen_on_validation_identities_and_not_on_test(measured):
    assert best_on_validation(measured[:1]) is not None
    for one, validated in zip(measured, (0.3, 0.5, 0.4, 0.1, 0.1), strict=True):
        for run in one.runs.values():
            metrics = {"U": made_up.metrics(validated), "G": made_up.metrics(validated)}
            run.write_result(run.result.model_copy(update={"validation": as_metrics(metrics)}))
    fresh = [
        replace(one, runs={seed: RunFolder(run.path) for seed, run in one.runs.items()}) for one in measured
    ]
    sentence = best_on_validation(fresh)
    tested = np.mean(list(fresh[1].values("mAP").values()))
    assert sentence.startswith("Of all rules, SFM (--set model.str=off --set model.chi=off) is best")
    assert f"mAP 50.0% there, {tested:.1%} on test" in sentence


def as_metrics(metrics):
    return {name: FeatureMetrics.model_validate(value) for name, value in metrics.items()}


@pytest.mark.parametrize(("key", "panels"), [("figure_tau", 2), ("figure_density", 2), ("figure5", 1)])
def test_figure_of_a_rule_shows_the_size_of_the_hyperedges_below_the_map(key, panels, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    rows = [
        made_up.table_row(row.name).model_copy(
            update={"hyperedge_size": SeedSpread.of({0: 2.0 + number, 1: 3.0 + number})}
        )
        for number, row in enumerate(ABLATIONS[key].rows)
    ]
    draw(ABLATIONS[key], "title", rows)
    [figure] = drawn
    assert len(figure.axes) == panels
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert labels == [row.name.partition(" = ")[2] for row in rows]
    if panels == 2:
        means = figure.axes[1].lines[0].get_ydata()
        assert means == pytest.approx([2.5 + number for number in range(len(rows))])


@pytest.mark.parametrize(("key", "axis"), [("figure_tau", "y"), ("table3", "x")])
def test_rows_that_differ_by_hundredths_of_a_point_look_alike(key, axis, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    values = [0.5 + number / 1e5 for number, _ in enumerate(ABLATIONS[key].rows)]
    rows = [
        made_up.table_row(row.name, mean=value, values={0: value})
        for row, value in zip(ABLATIONS[key].rows, values, strict=True)
    ]
    draw(ABLATIONS[key], "title", rows)
    low, high = getattr(drawn[0].axes[0], f"get_{axis}lim")()
    assert (low, high) == (pytest.approx(49, abs=0.1), pytest.approx(51, abs=0.1))


def test_markdown_and_csv_hold_every_row(measured):
    rows = table_rows(TABLE, measured, "rgbnt201")
    lines = as_markdown("Table 3", rows, ["a note"]).splitlines()
    body = [line for line in lines if line.startswith("| ")]
    assert len(body) == 1 + len(rows)
    assert all(line.count(" | ") == len(HEADER) - 1 for line in body)
    assert "70.3" in body[1]
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [float(row["mAP"]) for row in read] == [row.mean_average_precision.mean for row in rows]
    assert read[0]["difference"] == ""
    assert float(read[1]["paper_difference"]) == 0.058
    assert len(cells(rows[0])) == len(HEADER)


def test_printed_ablation_keeps_its_keys():
    json_samples.check("ablate", AblationResult)


def test_ablation_of_the_first_version_is_read():
    """Rows of that version have the reported epoch only."""
    sample = json.loads((json_samples.FOLDER / "ablate.json").read_text())
    for row in sample["rows"]:
        del row["epochs"]
    for row in AblationResult.model_validate(sample).rows:
        shown = dict(zip(HEADER, cells(row), strict=True))
        assert shown["mAP, last epoch"] == shown["mAP, epoch by validation"] == ""
        assert shown["hyperedge size"] == ""
        assert shown["verdict"] == ("" if row.mean_average_precision.difference is None else "undecided")
