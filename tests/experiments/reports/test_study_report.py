import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import pandas
import pytest

from data_catalog.storage.folders import Folder
from experiments import report as report_script
from experiments.experiment_config import ConfigError
from experiments.reports import study_sources
from experiments.reports.ablation_sections import ablation_sections
from experiments.reports.recorded_study import read_study
from experiments.reports.report_files import StudyReport
from experiments.reports.report_page import make_section
from experiments.reports.study_report import write_report
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import RunError
from experiments.studies.ablation.ablation_result import SeedSpread
from experiments.studies.published import published
from experiments.studies.run_table import write_run_table
from experiments.tracking.mlflow_store import local_store
from stmi.errors import TrainedRunError
from tests import json_samples


class Page(HTMLParser):
    """Cells of each table's rows, ids, and everything that an element refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, list[tuple[str, str]]] = {}
        self.ids: list[str] = []
        self.references: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self._row: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.references += [(name, given[name]) for name in ("src", "href") if name in given]
        if tag == "tr":
            self._row = given.get("id")
            self.rows.setdefault(self._row or "", [])
        if tag == "td":
            self.rows[self._row or ""].append((given.get("class", ""), ""))

    def handle_data(self, data):
        if self._row and self.rows[self._row]:
            kind, text = self.rows[self._row][-1]
            self.rows[self._row][-1] = (kind, text + data.strip())


def test_json_of_a_report_has_the_keys_it_always_had():
    json_samples.check("report_study", StudyReport)


@pytest.fixture(scope="module")
def page(report):
    return Page(Path(report["page"]).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded(study, workspace):
    return read_study(local_store(workspace), study["study"])


def test_table_shows_the_mean_of_the_runs_beside_the_papers_number(page, study, workspace):
    for number, letter in enumerate("ABCD"):
        cells = page.rows[f"table3-{number}"]
        names = study["rows"][number]["runs"].values()
        measured = [
            RunFolder.open(workspace / "train" / name).result.metrics["U"].mean_average_precision
            for name in names
        ]
        assert cells[0][1].startswith(letter)
        assert cells[1][1].startswith(f"{100 * sum(measured) / len(measured):.1f} ±")
        printed = published("table3").row(letter).values["rgbnt201"]["mAP"]
        assert next(text for kind, text in cells if kind == "paper") == f"{printed:.1f}"
    assert [page.rows[f"table3-{number}"][0][1] for number in (4, 5, 6)] == ["T alone", "G alone", "no text"]


def test_page_refers_to_nothing_outside_itself(page):
    outside = [ref for ref in page.references if not re.match(r"data:|#", ref[1])]
    assert outside == []
    assert page.tags.isdisjoint({"script", "iframe", "object", "embed", "form"})
    assert all(name[1:] in page.ids for _, name in page.references if name.startswith("#"))
    assert len(page.ids) == len(set(page.ids))


def test_every_picture_of_both_tables_is_drawn(report, page):
    assert report["missing"] == {}
    names = {Path(path).name for path in report["pictures"]}
    suffixes = ("differences.svg", "curves.svg", "tsne.svg", "ranks.png", "strengths.svg")
    assert {f"{table}_{name}" for table in ("table3", "table4") for name in suffixes} <= names
    assert {"table3.png", "attention_shares.svg", "attention_0.png"} <= names
    assert sum(name == "src" for name, _ in page.references) == len(report["pictures"])


def test_provenance_names_run_folder_code_data_and_versions(report, recorded):
    for kind in ("page", "markdown"):
        text = Path(report[kind]).read_text(encoding="utf-8")
        for run in recorded.runs:
            shown = [run.mlflow.run_id, str(run.folder), run.tags["code.digest"], run.digests["view/test"]]
            assert [fact for fact in shown if fact not in text] == []
            assert run.tags["environment.torch"] in text
    links = {target for name, target in Page(Path(report["page"]).read_text()).references if name == "href"}
    assert {f"#run-{run.run}" for run in recorded.runs} <= links


def test_markdown_shows_the_pictures_beside_it(report):
    markdown = Path(report["markdown"])
    shown = re.findall(r"!\[.*?\]\((.*?)\)", markdown.read_text(encoding="utf-8"))
    assert [str(markdown.parent / name) for name in shown] == report["pictures"]
    assert all(Path(path).stat().st_size > 0 for path in report["pictures"])


def test_curves_equal_those_of_the_journals(recorded):
    for run in recorded.runs:
        epochs = RunFolder.open(run.folder).journal.epochs()
        assert run.curves["loss"] == pytest.approx({e["epoch"]: e["losses"]["total"] for e in epochs})
        validated = {e["epoch"]: e["validation"]["U"]["mAP"] for e in epochs if "validation" in e}
        assert run.curves["validation"] == pytest.approx(validated)


def test_unreachable_folders_are_named_and_the_rest_is_shown(recorded, tmp_path):
    away = tuple(replace(run, folder=RunFolder(Path("/elsewhere") / run.run)) for run in recorded.runs)
    written = write_report(replace(recorded, runs=away), tmp_path / "report.html")
    names = {Path(path).name for path in written.pictures}
    assert {"table3.png", "table3_differences.svg", "table3_curves.svg"} <= names
    assert names.isdisjoint({"table3_tsne.svg", "table3_ranks.png", "attention_0.png"})
    assert len(written.missing) == 2 * 3 + 3
    assert all("/elsewhere/" in reason for reason in written.missing.values())
    assert "Not drawn: the folder /elsewhere/" in Path(written.page).read_text(encoding="utf-8")


def test_study_that_no_store_has_is_read_from_its_workspace_by_its_own_name(study, workspace, monkeypatch):
    def lost(uri, name):
        raise ConfigError(f"{uri} has no study {name}")

    monkeypatch.setattr(study_sources, "read_study", lost)
    found = study_sources.find_study(None, workspace, study["study"])
    assert (found.name, set(found.pictures)) == (study["study"], {"table3.png", "table4.png"})
    assert {run.run for run in found.runs} == {run for row in study["rows"] for run in row["runs"].values()}


def test_section_that_a_run_cannot_be_loaded_for_says_so():
    """The others are drawn, and the page is written."""

    def draw():
        yield from ()
        raise TrainedRunError("runs/demo-seed0: there is no model.safetensors")

    section = make_section("attention", "Attention", "", draw)
    assert (section.pictures, section.missing) == ((), "runs/demo-seed0: there is no model.safetensors")


def test_page_that_its_markdown_would_overwrite_is_refused(capsys, tmp_path):
    arguments = ["--study", "demo-table3", "--workspace", str(tmp_path), "--out", str(tmp_path / "page.md")]
    assert report_script.main(arguments) == 2
    assert "name the page, .html; its Markdown is written beside it" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_without_a_shared_seed_are_in_no_figure_together(recorded, tmp_path):
    # As if the second run of the first row had failed, and the first run of the last row.
    first, last = (recorded.result.rows[number].runs for number in (0, 3))
    left = tuple(run for run in recorded.runs if run.run not in (first[1], last[0]))
    written = write_report(replace(recorded, runs=left), tmp_path / "report.html")
    missing = {title for title, reason in written.missing.items() if "no seed in common" in reason}
    assert {title.rpartition(": ")[2] for title in missing} == {"identities"}
    pictures = {Path(path).name for path in written.pictures}
    # Others of the rows have seeds in common.
    assert pictures >= {"table3.png", "table3_strengths.svg", "table3_ranks.png"}


def test_run_without_tags_in_mlflow_is_omitted(recorded, study, workspace):
    client = mlflow.MlflowClient(local_store(workspace))
    tags = {"mlflow.parentRunId": study["mlflow"]["run_id"]}
    begun = client.create_run(study["mlflow"]["experiment_id"], tags=tags, run_name="begun")
    try:
        runs = read_study(local_store(workspace), study["study"]).runs
    finally:
        client.delete_run(begun.info.run_id)
    assert [run.run for run in runs] == [run.run for run in recorded.runs]


@pytest.mark.parametrize(("reported", "table"), [("last", "as the table"), ("best_on_test", "best on test")])
def test_figures_of_the_last_epoch_name_the_epoch_of_the_table(recorded, reported, table):
    away = tuple(replace(run, folder=RunFolder(Path("/elsewhere") / run.run)) for run in recorded.runs)
    result = recorded.result.model_copy(update={"epoch": reported})
    sections = ablation_sections(replace(recorded, runs=away, result=result))
    texts = {part.key: part.text for part in sections}
    for key in ("table3-identities", "table3-ranks", "table3-strengths", "attention"):
        assert "After the last epoch" in texts[key]
        assert table in texts[key]


def test_hypergraphs_are_shown_without_sfm_too_and_those_of_the_largest_hyperedges_beside(recorded):
    def titles(runs, rows):
        # Without their folders nothing is drawn, which would take seconds.
        away = tuple(replace(run, folder=RunFolder(Path("/elsewhere") / run.run)) for run in runs)
        result = recorded.result.model_copy(update={"rows": rows})
        return [part.key for part in ablation_sections(replace(recorded, runs=away, result=result))]

    def sized(size, *names):
        """The rows, those of these names with hyperedges of this size."""
        spread = SeedSpread.of({0: size, 1: size})
        return tuple(
            row.model_copy(update={"hyperedge_size": spread}) if row.name in names else row
            for row in recorded.result.rows
        )

    rows = sized(1.0, *(row.name for row in recorded.result.rows if row.hyperedge_size))
    assert [key for key in titles(recorded.runs, rows) if "hyper" in key] == ["hypergraphs"]
    off = {"model.sfm.enabled": "False"}
    without = tuple(replace(run, parameters=run.parameters | off) for run in recorded.runs)
    assert {"attention", "hypergraphs"} & set(titles(without, rows)) == {"hypergraphs"}
    keys = titles(recorded.runs, sized(9.0, "SFM + STR"))
    assert [key for key in keys if "hyper" in key] == ["hypergraphs", "hypergraphs-largest"]


def test_page_is_in_the_studys_folder_and_names_its_run_in_mlflow(report, study, workspace):
    folder = workspace / "studies" / study["study"]
    assert (report["page"], report["markdown"]) == (str(folder / "report.html"), str(folder / "report.md"))
    assert report["mlflow"] == study["mlflow"]


def test_unknown_study_is_refused_with_the_known_ones(study, workspace):
    with pytest.raises(ConfigError, match=f"study 'demo-nothing' is not in MLflow.*{study['study']}"):
        read_study(local_store(workspace), "demo-nothing")


def test_missing_store_is_refused_and_not_created(tmp_path):
    with pytest.raises(ConfigError, match="there is no MLflow store"):
        read_study(local_store(tmp_path), "demo-table3")
    assert list(tmp_path.iterdir()) == []


def test_unfinished_study_is_refused(study, workspace):
    client = mlflow.MlflowClient(local_store(workspace))
    tags = {"stmi.kind": "ablation", "stmi.study": "begun"}
    begun = client.create_run(study["mlflow"]["experiment_id"], tags=tags, run_name="begun")
    with pytest.raises(RunError, match="begun is not finished"):
        read_study(local_store(workspace), "begun")
    client.delete_run(begun.info.run_id)


def test_dead_server_is_named_without_its_password():
    # Nothing listens on the discard port.
    with pytest.raises(ConnectionError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be read") as refused:
        read_study("http://me:secret@127.0.0.1:9", "demo-table3")
    assert "secret" not in str(refused.value)


def test_table_of_the_runs_has_the_values_of_the_rows_by_seed(study, workspace, tmp_path):
    write_run_table(Folder(workspace), study["study"], str(tmp_path / "runs.csv"))
    table = pandas.read_csv(tmp_path / "runs.csv", index_col="run")
    assert len(table) == len({run for row in study["rows"] for run in row["runs"].values()})
    assert set(table["status"]) == {"FINISHED"}
    for row in study["rows"]:
        for seed, run in row["runs"].items():
            assert table.loc[run, "seed"] == int(seed)
            assert table.loc[run, f"{row['feature']}.mAP"] == pytest.approx(row["mAP"]["values"][seed])
