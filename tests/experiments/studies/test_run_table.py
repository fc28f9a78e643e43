"""The table of a study's runs, read by pandas."""

import json

import pandas
import pytest

from experiments import report
from experiments.run.run_folder import RunFolder
from experiments.studies.study_folder import StoredRun
from tests.experiments import made_up

RUNS = {
    "full-0": (["seed=0"], {"stmi.rows": "table3 D full; table4 B full"}),
    "full-1": (["seed=1"], {"stmi.rows": "table3 D full; table4 B full"}),
    "plain-0": (["seed=0", "model.sfm=off", "data.synthetic.darkness=[0]"], {"stmi.rows": "table3 A"}),
    "lost-0": (["seed=0", "model.str.tokens=2"], {"stmi.rows": "row K = 2"}),
}


@pytest.fixture
def study(tmp_path):
    """A study of four runs, of which the last has failed."""
    folder = made_up.study_folder(tmp_path)
    for number, (name, (changes, _)) in enumerate(RUNS.items()):
        run = RunFolder(tmp_path / "train" / name)
        run.path.mkdir(parents=True)
        made_up.write_config(run, *changes)
        if name != "lost-0":
            metrics = {"U": made_up.metrics(0.1 * number), "T": made_up.metrics(0.5)}
            result = made_up.run_result(
                run=name, metrics=metrics, seconds={"total": 60.0 + number}, validation=None
            )
            run.write_result(result)
    folder.write_runs(
        {
            name: StoredRun(name=name, tags=tags, status="FAILED" if name == "lost-0" else "FINISHED")
            for name, (_, tags) in RUNS.items()
        }
    )
    return folder


def write(study, file, capsys):
    asked = ["--study", "s", "--workspace", str(study.parent.parent), "--table", str(file), "--json"]
    assert report.main(asked) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("ending", "read"), [("parquet", pandas.read_parquet), ("csv", pandas.read_csv)])
def test_each_run_is_a_row_with_its_metrics_and_changed_settings(study, tmp_path, capsys, ending, read):
    printed = write(study, tmp_path / f"runs.{ending}", capsys)
    table = read(tmp_path / f"runs.{ending}")
    assert printed["table"] == str(tmp_path / f"runs.{ending}")
    assert (printed["runs"], printed["columns"]) == (4, list(table.columns))
    assert list(table["run"]) == list(RUNS)
    assert list(table["row"]) == [tags["stmi.rows"] for _, tags in RUNS.values()]
    assert list(table["seed"]) == [0, 1, 0, 0]
    assert list(table["status"]) == ["FINISHED"] * 3 + ["FAILED"]
    assert list(table["seconds"][:3]) == [60.0, 61.0, 62.0]
    assert list(table["U.mAP"][:3]) == pytest.approx([0.0, 0.1, 0.2])
    assert list(table["T.rank10"][:3]) == [0.5] * 3
    assert table.loc[3, ["seconds", "epoch", "U.mAP"]].isna().all()
    settings = ["model.sfm.enabled", "data.synthetic.darkness", "model.str.tokens"]
    assert set(settings) <= set(table.columns[-3:])
    assert list(table["model.sfm.enabled"]) == [True, True, False, True]
    assert list(table["data.synthetic.darkness"])[2] == "[0.0]"
    assert list(table["model.str.tokens"])[3] == 2


def test_trials_of_a_sweep_have_their_number(study, tmp_path, capsys):
    trials = [
        StoredRun(name=f"trial {number}", tags={"stmi.trial": str(number)}, status="KILLED")
        for number in range(2)
    ]
    study.write_runs(dict(zip(RUNS, trials, strict=False)))
    write(study, tmp_path / "trials.parquet", capsys)
    table = pandas.read_parquet(tmp_path / "trials.parquet")
    assert list(table["trial"]) == [0, 1]
    assert "row" not in table.columns


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ["--study", "s", "--table", "runs.xlsx"],
            "--table=runs.xlsx: expected a file that ends with .parquet",
        ),
        (["--study", "other", "--table", "runs.csv"], "the workspace has s"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(study, capsys, asked, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert report.main([*asked, "--workspace", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_whose_folder_is_gone_is_named(study, tmp_path, capsys):
    (tmp_path / "train" / "plain-0" / "config.json").unlink()
    asked = ["--study", "s", "--table", str(tmp_path / "runs.csv"), "--workspace", str(tmp_path)]
    assert report.main(asked) == 2
    assert "plain-0 is no run's folder" in capsys.readouterr().err
    assert not (tmp_path / "runs.csv").exists()


@pytest.mark.parametrize("asked", [[], ["--study", "s", "--out", "page.html"], ["--mlflow-again"]])
def test_a_table_belongs_to_a_study_alone(asked, capsys):
    with pytest.raises(SystemExit) as ended:
        report.main([*asked, "--table", "runs.csv"])
    assert ended.value.code == 2
    assert "--table goes with --study" in capsys.readouterr().err
