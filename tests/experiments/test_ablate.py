import html
import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from data_catalog.storage.claims import claim
from experiments import ablate, recipes, report
from experiments.experiment_config import ConfigError
from experiments.run.run_options import RunOptions
from experiments.run.run_result import RunError
from experiments.studies.ablation import ablation
from experiments.studies.ablation.ablation_spec import specify_ablation
from experiments.studies.ablation.added_rows import add_rows, parse_row
from experiments.studies.ablation.rows import ABLATIONS, Ablation, Row
from experiments.studies.published import published
from experiments.studies.study_folder import StudyFolder
from experiments.tracking.journal import Journal
from experiments.tracking.mlflow_store import local_store
from stmi.config import SfmConfig
from tests.experiments import small_run

RULES = [row for row in ABLATIONS["table4"].rows if row.optional]
"""The rows of Table 4 with other rules of hyperedges, which the paper does not have."""


def study(capsys, clip, workspace, *extra, status=0):
    capsys.readouterr()
    arguments = ["--seeds", "2", *small_run.options(clip), "--workspace", str(workspace), "--json", *extra]
    assert ablate.main(arguments) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def finished(ray_session, capsys, clip, workspace):
    """Tables 3 and 4, trained by the first test that asks and found by the others."""
    return study(capsys, clip, workspace, "--table", "3", "4")


def test_rows_are_the_papers_with_its_numbers_beside_the_measured(finished):
    for key in ("table3", "table4"):
        rows = [row for row in finished["rows"] if row["table"] == key]
        printed = published(key).rows
        others = [*([row.name for row in RULES] if key == "table4" else []), "T alone", "G alone", "no text"]
        assert [row["index"] for row in rows] == [*(row.index for row in printed), *(None for _ in others)]
        for row, of_paper in zip(rows, printed, strict=False):
            assert row["mAP"]["paper"] == pytest.approx(of_paper.values["rgbnt201"]["mAP"] / 100)
            assert row["mAP"]["mean"] == pytest.approx(sum(row["mAP"]["values"].values()) / 2)
        assert [row["name"] for row in rows[len(printed) :]] == others
    text_alone, g_alone = (
        next(r for r in finished["rows"] if r["name"] == n) for n in ("T alone", "G alone")
    )
    assert text_alone["mAP"]["std"] == 0
    assert text_alone["runs"] == g_alone["runs"]


def test_row_that_stands_in_several_tables_is_trained_once(finished, workspace):
    runs = {run for row in finished["rows"] for run in row["runs"].values()}
    assert len(runs) == 2 * (4 + 2 + len(RULES) + 1)
    rows = {(row["table"], row["index"]): row["runs"] for row in finished["rows"]}
    assert rows["table3", "D"] == rows["table4", "D"]
    assert rows["table3", "C"] == rows["table4", "A"]


def test_mlflow_has_a_parent_with_the_tables_and_a_child_for_each_run(finished, workspace):
    client = mlflow.MlflowClient(local_store(workspace))
    parent = client.get_run(finished["mlflow"]["run_id"])
    assert parent.info.run_name == finished["study"]
    assert parent.info.status == "FINISHED"
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"result.json", "table3.md", "table3.csv", "table3.json", "table4.md"} <= files
    pictures = {item.path for item in client.list_artifacts(parent.info.run_id, "pictures")}
    assert pictures == {"pictures/table3.png", "pictures/table4.png"}
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert len(children) == 2 * (4 + 2 + len(RULES) + 1)
    assert {child.info.status for child in children} == {"FINISHED"}
    by_name = {child.info.run_name: child for child in children}
    assert "table3 A baseline, seed 0" in by_name
    baseline = by_name["table3 A baseline, seed 0"]
    assert baseline.data.params["model.sfm.enabled"] == "False"
    row = next(row for row in finished["rows"] if row["index"] == "A")
    assert baseline.data.metrics["test/U/mAP"] == pytest.approx(row["mAP"]["values"]["0"])


def test_asked_for_again_nothing_is_trained_and_the_table_is_the_same(
    finished, ray_session, capsys, clip, workspace
):
    journals = sorted(workspace.glob("train/*/journal.jsonl"))
    before = [Journal(path).read() for path in journals]
    again = study(capsys, clip, workspace, "--table", "3", "4")
    assert again["rows"] == finished["rows"]
    assert [Journal(path).read() for path in journals] == before


@pytest.fixture(scope="module")
def figure(ray_session, clip, workspace):
    """Figure 5 with one seed of one epoch."""
    asked = ["--figure", "5", "--seeds", "1", "--set", "train.epochs=1", "--workspace", str(workspace)]
    options = small_run.options(clip, without="model.sfm.perturbation")
    return json.loads(ablate.ablate(ablate.parser().parse_args([*asked, *options])).to_json())


@pytest.mark.slow
def test_points_of_figure_5_have_their_p_and_k_and_the_full_model_is_trained_once(figure):
    points = {
        key: [row for row in figure["rows"] if row["table"] == key] for key in ("figure5", "figure5_tokens")
    }
    assert [row["x"] for row in points["figure5"]] == [0, 0.005, 0.01, 0.02, 0.05, 0.1]
    assert [row["x"] for row in points["figure5_tokens"]] == [1, 2, 4, 8, 16]
    full = recipes.resolve("demo", [])
    names = {"figure5": "model.sfm.perturbation", "figure5_tokens": "model.str.tokens"}
    for key, rows in points.items():
        for row in rows:
            assert row["config"].get(names[key], full.flat()[names[key]]) == row["x"]
            assert 0 < row["mAP"]["mean"] <= 1
            assert row["mAP"]["paper"] is None
    assert len({row["runs"]["0"] for row in figure["rows"]}) == 6 + 5 - 1
    for key in points:
        assert Path(figure["files"][f"{key}.png"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_report_of_figure_5_has_both_curves_and_what_the_paper_says_of_them(
    figure, workspace, tmp_path, capsys
):
    out = tmp_path / "report.html"
    assert report.main(["--study", figure["study"], "--workspace", str(workspace), "--out", str(out)]) == 0, (
        capsys.readouterr().err
    )
    page = out.read_text()
    assert 'id="figure5"' in page
    assert 'id="figure5_tokens"' in page
    for sentence in published("figure5").claims:
        assert html.escape(sentence) in page


@pytest.mark.slow
def test_runs_that_stop_themselves_leave_a_table_that_says_so(ray_session, capsys, clip, workspace):
    hot = ["--set", "optim.learning_rate=1e30", "--set", "optim.gradient_clip=0", "--seeds", "1"]
    broken = study(capsys, clip, workspace, "--table", "4", *hot, status=1)
    assert len(broken["wrong"]) == 5 + len(RULES)
    assert all(
        "the loss of epoch 1, or its gradient, is not finite" in reason for reason in broken["wrong"].values()
    )
    assert "not finished" in Path(broken["table"]).read_text()


def test_runs_that_other_code_trained_are_named_in_the_notes(finished, ray_session, capsys, clip, workspace):
    journal = workspace / "train" / finished["rows"][0]["runs"]["0"] / "journal.jsonl"
    written = journal.read_bytes()
    started = Journal(journal).last("started")
    Journal(journal).append(**started | {"code.digest": "0123abcd"})
    try:
        noted = study(capsys, clip, workspace, "--table", "3", "4")["notes"]
    finally:
        journal.write_bytes(written)
    (note,) = [note for note in noted if "0123abcd" in note]
    assert "1 of the 18 runs" in note
    assert journal.parent.name in note


def test_row_that_failed_and_was_repaired_is_whole_in_mlflow_too(
    finished, clip, workspace, tmp_path, monkeypatch
):
    # Runs of the shared study stand for those that are trained: all but one at first.
    spec = specify_ablation([ABLATIONS["table4"]], "demo", small_run.settings(clip), 1)
    tables = small_run.configured(clip, workspace)[1]
    options = RunOptions.resolve(tmp_path, tracking_uri=local_store(tmp_path))

    def finish_all_but(count):
        def train_runs(runs, *given):
            for run in runs[count:]:
                source = workspace / "train" / run.folder.name
                shutil.copytree(source, run.folder.path, dirs_exist_ok=True)
            return {run.folder.name: "out of memory" for run in runs[:count]}

        monkeypatch.setattr(ablation, "train_runs", train_runs)
        return ablation.AblationStudy(spec, tables, options).run()

    client = mlflow.MlflowClient(local_store(tmp_path))
    for failed, status in ((1, "FAILED"), (0, "FINISHED")):
        result = finish_all_but(failed)
        parent = client.get_run(result.mlflow.run_id)
        assert parent.info.status == status
        table = Path(client.download_artifacts(parent.info.run_id, "table4.md")).read_text()
        assert table == Path(result.table).read_text()
        assert ("not finished" in table) == bool(failed)
    assert len(client.search_runs([parent.info.experiment_id], "tags.`stmi.kind` = 'ablation'")) == 1


def test_study_that_another_process_runs_is_left_alone(clip, workspace, tmp_path, ray_session):
    spec = specify_ablation([ABLATIONS["table4"]], "demo", small_run.settings(clip), 1)
    tables = small_run.configured(clip, workspace)[1]
    folder = StudyFolder.of(tmp_path, spec.name(tables))
    study = ablation.AblationStudy(spec, tables, RunOptions.resolve(tmp_path))
    with claim(folder.path), pytest.raises(RunError, match="is being run by another process"):
        study.run()
    assert folder.journal.read() == []


def test_every_value_of_sharing_is_a_row_of_table_5_and_each_row_differs():
    spec = specify_ablation([ABLATIONS["table5"]], "demo", [], 1)
    paper_rows = spec.rows[0][1][:5]
    sharing = [spec.config_of[row, 0].model.sfm.sharing for row in paper_rows]
    assert sorted(sharing) == sorted(SfmConfig.model_fields["sharing"].annotation.__args__)
    assert spec.config_of[paper_rows[-1], 0] == recipes.resolve("demo", ["seed=0"])


@pytest.mark.parametrize("recipe", [name for name in recipes.RECIPES if name != "demo"])
def test_all_tables_and_figures_can_be_planned_for_every_recipe(recipe):
    spec = specify_ablation(list(ABLATIONS.values()), recipe, ["train.workers=4"], 2)
    assert len({config.model_dump_json() for config in spec.configs}) == len(spec.configs)
    assert {config.seed for config in spec.configs} == set(spec.seeds)
    for config in spec.configs:
        assert spec.labels(config)


def test_rows_that_come_out_the_same_are_named():
    rows = (
        Row("first", against=None),
        Row("without STR", ("model.str=off",), against="first"),
        Row("again the same", ("model.str=off",), against="first"),
    )
    twice = Ablation("table3", "Modules", rows, full="first")
    with pytest.raises(ConfigError, match="rows 'without STR' and 'again the same' of table3 have the same"):
        specify_ablation([twice], "demo", [], 1)


def test_comparisons_of_the_papers_rows_are_those_that_they_always_were():
    compared = {
        key: {row.index or row.name: row.against for row in ablation.all_rows()}
        for key, ablation in ABLATIONS.items()
    }
    names = {key: [row.name for row in ablation.rows] for key, ablation in ABLATIONS.items()}
    for key in ("table3", "table4", "table5"):
        rules = [row.name for row in RULES] if key == "table4" else []
        *others, full = [name for name in names[key] if name not in rules]
        letters = dict(zip("ABCDE", [None, *others], strict=False))
        assert compared[key] == letters | dict.fromkeys([*rules, "T alone", "G alone", "no text"], full)
    assert list(compared["figure5"].values()) == [None, *names["figure5"][:-1]]
    assert list(compared["figure5_tokens"].values()) == [None, *names["figure5_tokens"][:-1]]


def test_order_of_rows_means_nothing():
    table = ABLATIONS["table3"]
    backwards = replace(table, rows=table.rows[::-1])
    planned, turned = (specify_ablation([one], "demo", [], 1) for one in (table, backwards))
    assert {row.name: row for row in turned.rows[0][1]} == {row.name: row for row in planned.rows[0][1]}
    assert turned.config_of == planned.config_of


def test_full_model_of_every_table_is_the_recipe_itself():
    spec = specify_ablation(list(ABLATIONS.values()), "demo", [], 1)
    for table, rows in spec.rows:
        (full,) = [row for row in rows if row.name == table.full]
        # Of another rule there is none; that row has the default of the rule's own setting.
        own = {"figure_nearest": "nearest", "figure_density": "density"}.get(table.key, "cosine")
        assert spec.config_of[full, 0] == recipes.resolve("demo", ["seed=0", f"chi.incidence={own}"])


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("no SFM: model.sfm=off", Row("no SFM", ("model.sfm=off",), against=None)),
        (
            "K = 2 (no SFM):model.sfm=off  model.str.tokens=2 against SFM + STR",
            Row("K = 2 (no SFM)", ("model.sfm=off", "model.str.tokens=2"), against="SFM + STR"),
        ),
        (
            "against all: model.sfm=off against against all",
            Row("against all", ("model.sfm=off",), against="against all"),
        ),
    ],
)
def test_row_of_the_command_line_has_name_settings_and_comparison(text, row):
    assert parse_row(text) == row


def test_added_rows_are_compared_with_each_tables_full_model_or_with_the_named_row():
    tables = [ABLATIONS["table3"], ABLATIONS["table5"], ABLATIONS["figure5"]]
    rows = [parse_row("K = 2: model.str.tokens=2"), parse_row("K = 8: model.str.tokens=8 against B")]
    third, fifth, figure = add_rows(tables, [*rows, parse_row("K = 1: model.str.tokens=1 against K = 8")])
    assert [row.against for row in third.added] == ["SFM + STR + CHI", "SFM", "K = 8"]
    assert [row.against for row in fifth.added] == [fifth.full, "early half of the layers", "K = 8"]
    assert figure == ABLATIONS["figure5"]


def test_name_of_a_study_says_that_rows_were_added_and_depends_on_their_comparison(clip, workspace):
    tables = small_run.configured(clip, workspace)[1]

    def name(*rows):
        ablations = add_rows([ABLATIONS["table4"]], [parse_row(row) for row in rows])
        return specify_ablation(ablations, "demo", small_run.settings(clip), 2).name(tables)

    row = "K = 2: model.str.tokens=2"
    names = [name(), name(row), name(f"{row} against A"), name("K = 8: model.str.tokens=8")]
    assert len(set(names)) == len(names)
    assert names[0].startswith("demo-table4-2seeds-")
    assert all(added.startswith("demo-table4-rows-2seeds-") for added in names[1:])
    assert name(f"{row} against CHI (full model)") == name(row)


@pytest.mark.slow
def test_added_rows_are_trained_compared_and_shown_in_tables_mlflow_and_report(
    finished, ray_session, capsys, clip, workspace
):
    two = "K = 2: model.str.tokens=2"
    without = "K = 2, no CHI: model.str.tokens=2 model.chi=off against K = 2"
    asked = study(capsys, clip, workspace, "--table", "4", "--row", two, "--row", without)
    paper = [row for row in finished["rows"] if row["table"] == "table4"]
    found = [row["name"] for row in asked["rows"]]
    assert found == [*(row["name"] for row in paper), "K = 2", "K = 2, no CHI"]
    for before, row in zip(paper, asked["rows"], strict=False):
        assert row["runs"] == before["runs"]
        assert row["mAP"]["difference"] == before["mAP"]["difference"]
    for row, against in zip(asked["rows"][-2:], (paper[3], asked["rows"][-2]), strict=True):
        expected = sum(row["mAP"]["values"].values()) - sum(against["mAP"]["values"].values())
        assert row["mAP"]["against"] == against["name"]
        assert row["mAP"]["difference"] == pytest.approx(expected / 2)
        assert (row["index"], row["mAP"]["paper"]) == (None, None)
        assert row["config"]["model.str.tokens"] == 2
        assert row["runs"].keys() == {"0", "1"}
    assert (asked["full"], asked["added"]) == ({"table4": paper[3]["name"]}, ["K = 2", "K = 2, no CHI"])
    assert any("K = 2 (model.str.tokens=2)" in note for note in asked["notes"])
    assert "| K = 2, no CHI |" in Path(asked["table"]).read_text()
    client = mlflow.MlflowClient(local_store(workspace))
    parent = client.get_run(asked["mlflow"]["run_id"])
    assert "K = 2 (model.str.tokens=2)" in parent.data.params["added_rows"]
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert "table4 K = 2, seed 1" in {child.info.run_name for child in children}
    out = workspace / "added.html"
    assert report.main(["--study", asked["study"], "--workspace", str(workspace), "--out", str(out)]) == 0
    assert "K = 2, no CHI minus K = 2" in out.read_text()


@pytest.mark.slow
def test_rows_without_a_table_stand_beside_the_full_model(finished, ray_session, capsys, clip, workspace):
    asked = study(capsys, clip, workspace, "--row", "no SFM: model.sfm=off", "--seeds", "1")
    assert asked["study"].startswith("demo-rows-1seeds-")
    assert [(row["table"], row["name"]) for row in asked["rows"]] == [
        ("rows", "full model"),
        ("rows", "no SFM"),
    ]
    full, added = asked["rows"]
    table3 = {row["index"]: row["runs"] for row in finished["rows"] if row["table"] == "table3"}
    assert full["runs"]["0"] == table3["D"]["0"]
    assert added["mAP"]["difference"] == pytest.approx(added["mAP"]["mean"] - full["mAP"]["mean"])
    out = workspace / "rows.html"
    assert report.main(["--study", asked["study"], "--workspace", str(workspace), "--out", str(out)]) == 0
    assert "no SFM minus full model" in out.read_text()


def test_settings_inside_a_module_that_rows_switch_as_a_whole_are_taken():
    spec = specify_ablation(
        [ABLATIONS["table3"]], "demo", ["model.chi.mixer=mlp", "model.sfm.sharing=per_head"], 1
    )
    full = spec.config_of[spec.rows[0][1][3], 0].model
    assert (full.chi.mixer, full.sfm.sharing) == ("mlp", "per_head")


@pytest.mark.parametrize("text", ["on", "off"])
def test_rows_about_the_text_are_left_out_where_the_text_is_set_for_all_rows(text):
    """Otherwise `--over model.text=on,off` could not be asked for."""
    spec = specify_ablation([ABLATIONS["table3"]], "demo", [f"model.text={text}"], 1)
    assert [row.name for row in spec.rows[0][1]] == ["baseline", "SFM", "SFM + STR", "SFM + STR + CHI"]
    assert {config.model.text.enabled for config in spec.configs} == {text == "on"}


@pytest.mark.parametrize(
    ("recipe", "settings", "left"),
    [
        ("demo", [], [0, 1]),
        ("demo", ["model.chi.similarity_threshold=0.2", "model.chi.exclude_text_copies=on"], [0, 1]),
        ("demo", ["model.chi.incidence=density"], []),
        ("demo", ["chi.neighbours=8"], [0]),
        ("rgbnt201-released", [], [1]),
    ],
)
def test_rules_of_hyperedges_are_rows_of_table_4_but_where_all_rows_have_them(recipe, settings, left):
    """Otherwise `--over model.chi.incidence=cosine,nearest` could not be asked for."""
    spec = specify_ablation([ABLATIONS["table4"]], recipe, settings, 1)
    rules = [row for row in spec.rows[0][1] if row.optional]
    assert rules == [RULES[number] for number in left]
    incidences = [spec.config_of[row, spec.seeds[0]].model.chi.incidence for row in rules]
    assert incidences == [("euclidean", "nearest")[number] for number in left]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to train"),
        (["--table", "3", "--seeds", "0"], "--seeds=0"),
        (["--table", "3", "--recipe", "dmeo"], "recipe 'dmeo' is unknown"),
        (["--table", "3", "--set", "trian.epochs=1"], "did you mean train.epochs"),
        (["--table", "3", "--set", "model.chi=off"], "row 'baseline' of table3 sets model.chi itself"),
        (["--table", "4", "--set", "model.chi.enabled=false"], "row 'without CHI' of table4 sets model.chi"),
        (["--table", "4", "--set", "model.chi.mixer=mlp"], "of table4 sets model.chi.mixer itself"),
        (["--table", "5", "--set", "model.sfm=off"], "of table5 sets model.sfm.sharing itself"),
        (["--figure", "5", "--set", "model.str.tokens=2"], "row 'K = 1' of figure5_tokens sets"),
        (["--row", "model.sfm=off"], "expected 'NAME: setting=value"),
        (["--row", "no SFM:"], "at least one setting"),
        (["--row", "[bold]: model.sfm=off"], "a name of letters, digits"),
        (["--row", "no SFM: model.sfmm=off"], "--row 'no SFM': setting model.sfmm is unknown; did you mean"),
        (["--row", "K = 99: model.str.tokens=99"], "--row 'K = 99': model.str.tokens=99"),
        (["--row", "other: seed=3"], "seed is the same in all rows"),
        (["--row", "other: data.dataset=rgbnt100"], "data is the same in all rows"),
        (["--row", "other: image.height=32"], "model.image is the same in all rows"),
        (["--row", "a: model.sfm=off", "--row", "a: model.str=off"], "two rows of rows have the name 'a'"),
        (["--row", "full: model.sfm=on"], "rows 'full model' and 'full' of rows have the same settings"),
        (["--table", "3", "--row", "SFM: model.sfm=off"], "two rows of table3 have the name 'SFM'"),
        (["--table", "3", "--row", "no text: model.text=off"], "two rows of table3 have the name 'no text'"),
        (["--table", "3", "--row", "C again: model.chi=off"], "change the settings of --row 'C again'"),
        (["--table", "3", "--row", "a: model.str=off against Z"], "'a' of table3 is compared with 'Z', but"),
        (["--table", "3", "--row", "a: model.str=off against a"], "'a' of table3 is compared with 'a', but"),
        (
            ["--figure", "5", "--row", "a: model.str=off against K = 4"],
            "'a' of rows is compared with 'K = 4'",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(arguments, message, capsys, tmp_path):
    assert ablate.main([*arguments, "--workspace", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
