from pathlib import Path

import pytest
import yaml

from experiments.studies.published import (
    PUBLISHED,
    PublishedError,
    find_stmi_result,
    load_published,
    published,
    published_methods,
)

TABLES = ["table1", "table2", "table3", "table4", "table5"]


# Copied from the paper a second time, by hand.
@pytest.mark.parametrize(
    ("table", "row", "dataset", "values"),
    [
        ("table1", "STMI", "rgbnt201", [81.2, 83.4, 90.2, 91.6]),
        ("table1", "IDEA", "rgbnt201", [80.2, 82.1, 90.0, 93.3]),
        ("table1", "PFNet", "rgbnt201", [38.5, 38.9, 52.0, 58.4]),
        ("table1", "UniCat", "rgbnt201", [57.0, 55.7, None, None]),
        ("table2", "STMI", "rgbnt100", [89.1, 97.1, None, None]),
        ("table2", "STMI", "msvr310", [64.8, 76.1, None, None]),
        ("table2", "DeMo", "rgbnt100", [86.2, 97.6, None, None]),
        ("table2", "PHT", "msvr310", [None] * 4),
        ("table3", "A", "rgbnt201", [70.3, 72.1, None, None]),
        ("table3", "B", "rgbnt201", [76.1, 78.1, None, None]),
        ("table4", "B", "rgbnt201", [78.0, 82.4, 87.3, 90.0]),
        ("table4", "C", "rgbnt201", [78.4, 81.5, 86.2, 89.2]),
        ("table5", "A", "rgbnt201", [77.2, 80.9, 86.6, 90.3]),
        ("table5", "B", "rgbnt201", [73.5, 74.3, 83.9, 87.9]),
        ("table5", "D", "rgbnt201", [77.1, 79.9, 86.6, 91.0]),
    ],
)
def test_numbers_equal_those_of_the_paper(table, row, dataset, values):
    printed = published(table).row(row).values.get(dataset, {})
    assert [printed.get(metric) for metric in ("mAP", "rank1", "rank5", "rank10")] == values


def test_tables_have_as_many_rows_and_numbers_as_the_paper():
    def numbers(table: str) -> int:
        values = [
            value for row in published(table).rows for part in row.values.values() for value in part.values()
        ]
        return sum(value is not None for value in values)

    assert {table: len(published(table).rows) for table in TABLES} == {
        "table1": 14,
        "table2": 18,
        "table3": 4,
        "table4": 4,
        "table5": 5,
    }
    # A dash of the paper is no number: 4 in Table 1, 12 in Table 2.
    assert {table: numbers(table) for table in TABLES} == {
        "table1": 14 * 4 - 4,
        "table2": 18 * 4 - 12,
        "table3": 4 * 2,
        "table4": 4 * 4,
        "table5": 5 * 4,
    }


def test_row_of_several_tables_has_the_same_numbers_in_each():
    full = [("table1", "STMI"), ("table3", "D"), ("table4", "D"), ("table5", "E")]
    without_chi = [("table3", "C"), ("table4", "A")]
    for rows_of_table in (full, without_chi):
        rows = [published(table).row(key).values["rgbnt201"] for table, key in rows_of_table]
        for metric in ("mAP", "rank1"):
            assert len({row[metric] for row in rows}) == 1
    assert published("table4").row("D").values == published("table5").row("E").values


@pytest.mark.parametrize("table", TABLES)
def test_cmc_does_not_fall_with_the_rank(table):
    for row in published(table).rows:
        for values in row.values.values():
            ranks = [values[m] for m in ("rank1", "rank5", "rank10") if values.get(m) is not None]
            assert ranks == sorted(ranks), row.name


@pytest.mark.parametrize("table", TABLES)
def test_every_row_names_its_source(table):
    number = table.removeprefix("table")
    for row in published(table).rows:
        assert published(table).row_source(row.name) == f"Table {number}, row {row.index or row.name}"
        assert row.index or (row.kind and row.cites), "a row of another method says whose it is"


def test_figure_without_printed_numbers_has_claims_instead():
    figure = published("figure5")
    assert figure.rows == ()
    assert any("K = 4" in claim for claim in figure.claims)


def test_unknown_tables_and_rows_are_refused_by_name():
    with pytest.raises(PublishedError, match="table 'table6' is not known; use one of table1, table2"):
        published("table6")
    with pytest.raises(PublishedError, match="row 'F' is not in Table 5 of the paper; its rows are A, B"):
        published("table5").row("F")


def edited(tmp_path: Path, edit) -> Path:
    content = yaml.safe_load(PUBLISHED.read_text())
    edit(content["tables"])
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda tables: tables["table3"]["rows"][1]["values"]["rgbnt201"].update(mAP=761),
            r"tables\.table3\.rows\.1\.values\.rgbnt201\.mAP: .*less than or equal to 100, got 761",
        ),
        (
            lambda tables: tables["table3"]["rows"][1]["values"]["rgbnt201"].update(mAP=-1),
            r"rgbnt201\.mAP: .*greater than or equal to 0",
        ),
        (
            lambda tables: tables["table1"]["rows"][0]["values"]["rgbnt201"].update(rank20=50.0),
            r"tables\.table1\.rows\.0\.values\.rgbnt201\.rank20.*'mAP'",
        ),
        (lambda tables: tables["table4"].pop("source"), r"tables\.table4\.source: Field required"),
        (lambda tables: tables["table4"].update(source=""), r"tables\.table4\.source: .*at least 1 char"),
        (lambda tables: tables["table4"].update(page=7), r"tables\.table4\.page: Extra inputs"),
        (
            lambda tables: tables["table5"]["rows"][0].pop("values"),
            r"table5\.rows\.0: .*row Shared All Layers has no values; only one that is to be checked may",
        ),
        (
            lambda tables: tables["table5"]["rows"][0].update(index="B"),
            "table5.*names B stand for more than one",
        ),
    ],
)
def test_malformed_file_is_refused_with_the_field(tmp_path, edit, message):
    with pytest.raises(PublishedError, match=message):
        load_published(edited(tmp_path, edit))


def test_file_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text("tables: [")
    with pytest.raises(PublishedError, match=r"published\.yaml is not YAML"):
        load_published(path)
    path.write_text("")
    with pytest.raises(PublishedError, match=r"published\.yaml: the file: "):
        load_published(path)


def test_papers_numbers_of_stmi_are_found_by_data_set():
    found = find_stmi_result("rgbnt201")
    assert found.source == "Table 1, row STMI"
    assert found.metrics == {"mAP": 0.812, "rank1": 0.834, "rank5": 0.902, "rank10": 0.916}
    assert find_stmi_result("msvr310").metrics == {"mAP": 0.648, "rank1": 0.761}
    assert find_stmi_result("synthetic_person") is None
    assert find_stmi_result("rgbnt100").describe() == (
        "Table 2, row STMI of the paper, as printed and not measured here: mAP 89.1, rank 1 97.1"
    )


def test_methods_of_a_data_set_are_the_papers_and_later_ones_with_the_best_first():
    methods = published_methods("rgbnt201")
    assert len(methods) == 14 + 5
    assert [(method.name, method.metrics["mAP"]) for method in methods[:3]] == [
        ("ProxyTTT", 0.85),
        ("MDReID", 0.821),
        ("MHCF", 0.817),
    ]
    precisions = [method.metrics["mAP"] for method in methods]
    assert precisions == sorted(precisions, reverse=True)
    sources = {method.name: (method.kind, method.source, method.to_check) for method in methods}
    assert sources["STMI"] == ("CLIP", "Table 1 of the paper", False)
    assert sources["UGG-ReID"] == ("CLIP", "arXiv 2507.04638", True)
    # What trains on the test images, too, is no peer.
    assert [method.note for method in methods[:2]] == ["trains on the test images", None]
    # A dash of the paper is no method on this data set.
    assert "PHT" not in {method.name for method in published_methods("msvr310")}
    assert published_methods("synthetic_person") == ()


def test_later_methods_name_where_their_numbers_were_read():
    for row in published("later").rows:
        assert None not in (row.source, row.at, row.cites), row.name
        assert row.values or row.to_check, row.name
