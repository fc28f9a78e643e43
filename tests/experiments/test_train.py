import re
from pathlib import Path

import mlflow
import pytest

from data_catalog.storage.claims import claim
from data_catalog.tables import building
from experiments import demo, report, train
from experiments.run import lifecycle
from experiments.run.run_options import RunOptions
from experiments.run.workers import ray_train
from experiments.tracking.journal import Journal
from experiments.tracking.mlflow_store import local_store
from stmi.model import FEATURES
from tests.experiments import small_run
from tests.experiments.small_run import run

ROOT = Path(__file__).parents[2]


def test_result_has_every_feature_and_says_where_it_came_from(trained):
    assert trained["status"] == "finished"
    assert set(trained["metrics"]) == set(FEATURES)
    for metrics in (*trained["metrics"].values(), trained["untrained"]):
        assert set(metrics) == {"mAP", "rank1", "rank5", "rank10", "cmc"}
        assert 0 < metrics["mAP"] <= 1
    assert [losses["epoch"] for losses in trained["losses"]] == [1, 2, 3]
    tables = {"samples", "masks", "captions", "text_features", "view/train", "view/val", "view/test", "clip"}
    assert set(trained["tables"]) == tables


def test_result_gives_three_choices_of_epoch_and_says_which_it_reports(trained):
    choices, reported = trained["choices"], trained["reported"]
    events = Journal(Path(trained["folder"]) / "journal.jsonl").epochs()
    validated = {event["epoch"]: event["validation"]["U"]["mAP"] for event in events if "validation" in event}
    on_test = {event["epoch"]: event["test"]["U"]["mAP"] for event in events if "test" in event}
    on_test[3] = trained["metrics"]["U"]["mAP"]
    assert set(validated) == set(on_test) == {2, 3}
    assert choices["last"]["epoch"] == 3
    assert choices["validation"]["epoch"] == max(validated, key=validated.get)
    assert choices["best_on_test"]["epoch"] == max(on_test, key=on_test.get)
    for choice in choices.values():
        assert choice["metrics"]["U"]["mAP"] == on_test[choice["epoch"]]
    assert (reported["feature"], reported["chosen_by"], reported["epoch"]) == ("U", "last", 3)
    assert reported["metrics"] == trained["metrics"]["U"]


def test_hyperedges_are_logged_by_epoch_and_split_and_apart_from_the_losses(trained):
    journal = Journal(Path(trained["folder"]) / "journal.jsonl")
    events = journal.epochs()
    assert [sorted(event["hyperedges"]) for event in events] == [
        ["train"],
        ["test", "train", "validation"],
        ["train", "validation"],
    ]
    assert list(journal.find("untrained")["hyperedges"]) == ["test"]
    assert trained["hyperedges"] == {
        **{split: events[-1]["hyperedges"][split] for split in ("train", "validation")},
        "test": journal.find("test")["hyperedges"]["test"],
    }
    for facts in trained["hyperedges"].values():
        assert facts["size"] == pytest.approx(15 * facts["density"])
        assert 0 <= facts["across"] + facts["by_text"] <= 1
    assert {name.partition("/")[0] for name in events[0]["losses"]} == {"total", "identity", "triplet"}
    assert [list(event["losses_without_gradient"]) for event in events] == [["triplet/T"]] * 3
    assert "triplet/T" not in events[0]["losses"]
    parts = [value for name, value in events[0]["losses"].items() if name != "total"]
    total = sum(parts) + events[0]["losses_without_gradient"]["triplet/T"]
    assert events[0]["losses"]["total"] == pytest.approx(total)


def test_journal_says_where_the_time_went(trained):
    journal = Journal(Path(trained["folder"]) / "journal.jsonl")
    seconds = journal.last("finished")["seconds"]
    parts = ("setup", "input", "steps", "evaluation", "checkpoint", "report", "other")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["workers"], abs=0.01)
    assert seconds["input"] > 0
    working = (seconds["steps"] + seconds["evaluation"]) / seconds["workers"]
    assert seconds["share_in_steps_and_evaluation"] == pytest.approx(working)


def test_journal_has_the_digest_of_each_checkpoint_and_the_time_of_each_worker(trained):
    events = Journal(Path(trained["folder"]) / "journal.jsonl").read()
    stored = [event for event in events if event.get("checkpoint")]
    assert [event["event"] for event in stored] == ["checkpoint"] * 3 + ["test"]
    assert len({event["weights"] for event in stored}) == 3
    assert stored[-1]["weights"] == stored[-2]["weights"]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert all(len(event["worker_seconds"]) == 2 and min(event["worker_seconds"]) > 0 for event in epochs)


def test_mlflow_has_parameters_curves_and_pictures(trained, workspace):
    client = mlflow.MlflowClient(local_store(workspace))
    stored = client.get_run(trained["mlflow"]["run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["model.sfm.perturbation"] == "0.2"
    assert stored.data.params["table.view/train"] == trained["tables"]["view/train"]
    assert stored.data.metrics["test/U/mAP"] == pytest.approx(trained["metrics"]["U"]["mAP"])
    assert len(client.get_metric_history(stored.info.run_id, "loss/total")) == 3
    assert stored.data.metrics["test/hyperedges/size"] == trained["hyperedges"]["test"]["size"]
    assert "loss_without_gradient/triplet/T" in stored.data.metrics
    pictures = {item.path for item in client.list_artifacts(stored.info.run_id, "pictures")}
    assert pictures == {f"pictures/{name}.png" for name in ("cmc", "rank_lists", "training_curves")}


def test_finished_run_is_shown_and_not_repeated(trained, ray_session, capsys, clip, workspace):
    before = Journal(Path(trained["folder"]) / "journal.jsonl").read()
    again = run(capsys, clip, workspace, "--workers", "2")
    assert again["reused"]
    assert again["metrics"] == trained["metrics"]
    assert Journal(Path(trained["folder"]) / "journal.jsonl").read() == before


def test_finished_run_of_other_code_is_shown_with_a_warning(trained, capsys, clip, workspace, caplog):
    journal = Path(trained["folder"]) / "journal.jsonl"
    written = journal.read_bytes()
    journal.write_text(re.sub(r'"code.digest": "\w+"', '"code.digest": "0123abcd"', written.decode()))
    try:
        assert run(capsys, clip, workspace, "--workers", "2")["reused"]
    finally:
        journal.write_bytes(written)
    (warning,) = [record.getMessage() for record in caplog.records if "other code" in record.message]
    assert trained["run"] in warning
    assert "was finished by other code (digest 0123abcd" in warning


def test_run_that_another_process_trains_is_left_alone(trained, clip, workspace, capsys):
    with claim(trained["folder"]):
        assert train.main(small_run.arguments(clip, workspace, "--workers", "2")) == 2
    assert "is being trained by another process" in capsys.readouterr().err


def test_run_whose_output_is_no_terminal_prints_a_line_per_epoch(trained, clip, workspace, tmp_path, capsys):
    config, tables = small_run.configured(clip, workspace)
    lifecycle.run(config, tables, RunOptions.resolve(tmp_path), threads=1)
    lines = [line for line in re.split(r"[\n\r]", capsys.readouterr().err) if " epochs" in line]
    # The first one says what it starts with, and two short epochs may have one line together.
    assert 2 <= len(lines) <= 1 + 3
    assert lines[-1].startswith("training: 3/3 epochs, ")
    assert re.search(r"00:00 left, loss=\d+\.\d+, validation mAP=", lines[-1])


def test_resume_goes_on_with_a_run_that_was_begun_and_refuses_a_new_one(trained, capsys, clip, workspace):
    assert run(capsys, clip, workspace, "--workers", "2", "--resume")["run"] == trained["run"]
    new = small_run.arguments(clip, workspace, "--workers", "2", "--resume", "--seed", "77")
    assert train.main(new) == 2
    error = capsys.readouterr().err
    assert "no run of these settings and tables to resume" in error
    assert trained["run"] in error


def test_report_shows_the_table_and_where_everything_is(trained, workspace, capsys):
    capsys.readouterr()
    assert report.main(["--workspace", str(workspace), "--run", trained["folder"]]) == 0
    shown = capsys.readouterr().out
    for part in (
        "U, fused",
        "T, text alone",
        "U before training",
        "rank_lists.png",
        "mlflow server",
        "journal",
    ):
        assert part in shown


def test_floor_fails_a_demo_that_is_worse(trained, clip, workspace, capsys):
    arguments = small_run.arguments(clip, workspace, "--workers", "2", "--floor")
    assert demo.main([*arguments, "0.01"]) == 0
    assert demo.main([*arguments, "1.01"]) == 1
    assert "is under the floor 1.01" in capsys.readouterr().err
    assert demo.main(arguments) == 1
    assert f"is under the floor {demo.FLOOR}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.sfm.perturbation=1.5", "error: model.sfm.perturbation=1.5"),
        ("trian.epochs=3", "error: setting trian.epochs is unknown; did you mean train.epochs?"),
        ("batch.size=9", "error: batch.size=9 is not a multiple"),
        ("batch.size=40", "error: batch.size=40 with batch.samples_per_identity=2 needs 20 identities"),
        ("model.image.height=30", "error: model.image=30x16 is not a whole number of 8x8 patches"),
        ("model.sfm.perturbation=[0, 0, 0]", "error: model.sfm.perturbation has a list of 3 numbers"),
        ("model.str.heads=5", "error: model.str.heads=5 does not divide the token width 16"),
        ("model.clip.source=nowhere", "error: clip source 'nowhere' is neither a folder"),
    ],
)
def test_impossible_settings_are_refused_before_ray_starts(
    setting, message, capsys, clip, tmp_path, monkeypatch
):
    for module in (building, ray_train):
        monkeypatch.setattr(module, "ensure_ray", lambda: pytest.fail("Ray was asked for"))
    assert train.main([*small_run.arguments(clip, tmp_path), "--set", setting]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert not (tmp_path / "train").exists()


def test_catalog_that_cannot_be_opened_is_refused_before_anything_is_made(capsys, tmp_path):
    assert train.main(["--workspace", str(tmp_path), "--catalog", "ftp://host/catalog"]) == 2
    assert capsys.readouterr().err.startswith("error: ftp://host/catalog cannot be opened")
    assert not list(tmp_path.iterdir())


def test_data_set_that_is_not_in_the_catalog_is_refused_with_what_to_do(ray_session, clip, tmp_path, capsys):
    arguments = [
        "--recipe",
        "rgbnt201-paper",
        "--workspace",
        str(tmp_path),
        "--set",
        f"model.clip.source={clip}",
    ]
    assert train.main(arguments) == 2
    assert "data set 'rgbnt201'" in capsys.readouterr().err
