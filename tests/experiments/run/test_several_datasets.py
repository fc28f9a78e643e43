"""A run on several data sets together: what it reads, trains, measures and shows."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

import stmi
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import TableKind, find_table
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import open_view
from experiments import evaluate, recipes, report, train
from experiments.evaluating.evaluation_target import load_run
from experiments.experiment_config import ConfigError, ExperimentConfig
from experiments.planning.run_checks import check_recipe
from experiments.run import lifecycle, run_data
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.initial_weights import with_initial_weights
from experiments.run.preflight import preflight
from experiments.run.run_data import benchmark_folder
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_tables import number_cameras
from experiments.run.workers.training_loop import _Run
from stmi.clip.loading import load_clip
from tests.experiments import small_run
from tests.tolerances import ROUNDING_FLOAT32

PERSON, VEHICLE = "synthetic_person", "synthetic_vehicle"
VEHICLES = [
    "data.synthetic.kind=vehicle",
    f"data.dataset={VEHICLE}",
    "data.synthetic.train_identities=5",
    "data.synthetic.test_identities=3",
    "data.synthetic.cameras=3",
]
TOGETHER = [
    "data.synthetic=null",
    f"data.datasets=[{PERSON},{VEHICLE}]",
    "model.camera_embedding=on",
    "train.validate_every=1",
    # Of the first data set alone.
    "data.junk=none",
]


def settings(clip: Path, *changes: str) -> list[str]:
    return [*small_run.settings(clip), *TOGETHER, *changes]


def configured(
    clip: Path, catalog: str, runs: Path, *changes: str
) -> tuple[ExperimentConfig, Any, RunOptions]:
    config = recipes.resolve("demo", settings(clip, *changes))
    options = RunOptions.resolve(runs, catalog)
    tables = preflight(config, options, lambda check: check(config), lambda: None, lambda found: False)
    return config, tables, options


@pytest.fixture(scope="module")
def catalog(ray_session: None, clip: Path, workspace: Path) -> str:
    """A catalog with people and vehicles: 6 and 5 identities for training, 2 and 3 cameras."""
    for changes in ([], VEHICLES):
        rendered = recipes.resolve("demo", [*small_run.settings(clip), *changes])
        run_data.prepare_tables(rendered, load_clip(str(clip)), RunOptions.resolve(workspace))
    return str(workspace / "catalog")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def together(catalog: str, clip: Path, runs: Path) -> RunFolder:
    """A run on both, in this process."""
    config, tables, options = configured(clip, catalog, runs)
    result = lifecycle.run(config, tables, options, threads=len(os.sched_getaffinity(0)))
    return RunFolder(result.folder)


def test_heads_and_camera_vectors_are_those_of_all_data_sets(together: RunFolder) -> None:
    facts = together.journal.find("untrained")
    assert (facts["identities"], facts["cameras"]) == (6 + 5, 2 + 3)
    model = stmi.load(together.location, device="cpu").model
    assert model.image_tower.camera_embedding is not None
    assert len(model.image_tower.camera_embedding) == 5


def test_cameras_of_each_data_set_have_numbers_of_their_own(together: RunFolder) -> None:
    views = {name: together.view(name) for name in together.splits}
    assert list(views) == [
        *("train", "val", "test"),
        *(f"{split}/{VEHICLE}" for split in ("train", "val", "test")),
    ]
    assert number_cameras(views, (PERSON, VEHICLE)) == {PERSON: range(2), VEHICLE: range(2, 5)}


def test_batches_hold_each_data_set_by_its_share(catalog: str, clip: Path) -> None:
    views = [
        find_table(catalog, name, TableKind.VIEW, settings={"split": "train"}) for name in (PERSON, VEHICLE)
    ]
    config = recipes.resolve("demo", settings(clip, "data.shares=[0.25,0.75]", "train.workers=2"))
    schedule = BatchSchedule(views, config)
    identities = [open_view(view).identity for view in views]
    names = [f"{number} {identity}" for number, own in enumerate(identities) for identity in own]
    _, expected = np.unique(names, return_inverse=True)
    labels = schedule.labels[0]
    # Other numbers for the same identities.
    assert len({*zip(labels.tolist(), expected.tolist(), strict=True)}) == len(set(labels)) == 11
    for rows in np.concatenate([schedule.rows(rank, 0) for rank in range(2)], axis=1):
        assert [(rows < len(views[0])).sum(), (rows >= len(views[0])).sum()] == [2, 6]


def test_training_views_are_read_as_one(catalog: str, clip: Path, runs: Path, monkeypatch: Any) -> None:
    rows: list[Any] = []
    monkeypatch.setattr(
        _Run, "restore", lambda run: rows.append(run.train_view) or (_ for _ in ()).throw(KeyError)
    )
    config, tables, options = configured(clip, catalog, runs, "seed=9")
    with pytest.raises(KeyError):
        lifecycle.run(config, tables, options.without_tracking(), threads=1)
    [joined] = rows
    parts = [open_view(tables.views[name]) for name in ("train", f"train/{VEHICLE}")]
    batch = joined.batch(np.arange(len(joined)))
    naive = [part.batch(np.arange(len(part))) for part in parts]
    assert np.array_equal(batch.pixels, np.concatenate([part.pixels for part in naive]))
    assert np.array_equal(batch.camera_id, np.concatenate([naive[0].camera_id, naive[1].camera_id + 2]))


def test_each_data_set_is_measured_among_its_own_gallery_as_evaluate_does(together: RunFolder) -> None:
    result = together.finished_result
    assert list(result.datasets) == [PERSON, VEHICLE]
    assert result.datasets[PERSON].metrics == result.metrics
    assert result.datasets[PERSON].validation == result.validation
    for name, junk, queries in ((PERSON, "none", 4), (VEHICLE, "camera", 3)):
        target = load_run(together.location, name)
        assert target.table.manifest.dataset == name
        assert target.junk == junk
        assert len(np.unique(open_view(target.table).identity)) == queries
        [alone] = evaluate.evaluate(target, [()], workers=0).settings
        for feature, metrics in result.datasets[name].metrics.items():
            expected = alone.metrics[feature].model_dump(exclude={"cmc"})
            assert metrics.model_dump(exclude={"cmc"}) == pytest.approx(expected, abs=1e-6)


def test_all_data_sets_are_evaluated_by_one_command(
    together: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = ["--run", together.location, "--workers", "0"]
    assert evaluate.main([*run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [other] = found["others"]
    assert (found["dataset"], other["dataset"], other["others"]) == (PERSON, VEHICLE, [])
    assert (found["junk"], other["junk"]) == ("none", "camera")
    assert evaluate.main([*run, "--dataset", VEHICLE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == other
    assert evaluate.main(run) == 0
    shown = capsys.readouterr().out
    assert f"on {PERSON}" in shown
    assert f"on {VEHICLE}" in shown
    assert evaluate.main([*run, "--queries", str(tmp_path / "q.parquet")]) == 2
    assert "--queries is one file, and run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_journal_mlflow_and_report_show_each_data_set(
    together: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    result = together.finished_result
    measured = result.datasets[VEHICLE]
    epochs = together.journal.epochs()
    assert [[*epoch["datasets"][VEHICLE]] for epoch in epochs] == [["validation", "test"]] * 2 + [
        ["validation"]
    ]
    assert measured.validation is not None
    logged = mlflow.MlflowClient(together.mlflow.uri).get_run(together.mlflow.run_id).data.metrics  # type: ignore[union-attr]
    mean = {
        f"test/{VEHICLE}/U/mAP": measured.metrics["U"],
        f"validation/{VEHICLE}/U/mAP": measured.validation["U"],
        f"untrained/{VEHICLE}/U/mAP": measured.untrained,
        f"{VEHICLE}/mAP": measured.reported,
        "mAP": result.metrics["U"],
    }
    splits = ["test", f"test/{VEHICLE}", "train", "validation", f"validation/{VEHICLE}"]
    assert sorted(result.hyperedges) == splits
    mean_size = result.hyperedges[f"test/{VEHICLE}"].size
    assert logged[f"test/{VEHICLE}/hyperedges/size"] == pytest.approx(mean_size)
    assert {name: logged[name] for name in mean} == pytest.approx(
        {name: metrics.mean_average_precision for name, metrics in mean.items()}
    )
    assert report.main(["--run", together.location]) == 0
    shown = capsys.readouterr().out
    assert f"test identities of {PERSON}, %" in shown
    assert f"test identities of {VEHICLE}, %" in shown


@pytest.mark.slow
def test_any_number_of_workers_trains_the_same_model(
    together: RunFolder, catalog: str, clip: Path, runs: Path
) -> None:
    config, tables, options = configured(clip, catalog, runs, "train.workers=2")
    other = RunFolder(lifecycle.run(config, tables, options).folder)
    one, two = (
        [loss for epoch in run.journal.epochs() for loss in epoch["step_losses"]] for run in (together, other)
    )
    # The same weights, then what Adam makes of the rounding of their gradients.
    assert two[0] == pytest.approx(one[0], abs=ROUNDING_FLOAT32)
    assert two == pytest.approx(one, abs=1e-3)
    untrained = [run.journal.find("untrained")["datasets"] for run in (together, other)]
    assert untrained[0] == untrained[1]


def test_interrupted_run_goes_on_to_the_same_result(
    together: RunFolder, catalog: str, clip: Path, tmp_path: Path
) -> None:
    config, tables, _ = configured(clip, catalog, tmp_path)
    options = RunOptions.resolve(tmp_path, catalog).without_tracking()

    def die(facts: Any) -> None:
        if facts["event"] == "epoch" and facts["epoch"] == 2:
            raise SystemError

    threads = len(os.sched_getaffinity(0))
    with pytest.raises(SystemError):
        lifecycle.run(config, tables, options, threads=threads, on_report=die)
    result = lifecycle.run(config, tables, options, threads=threads)
    assert result.resumed
    expected = together.finished_result
    assert (result.losses, result.datasets) == (expected.losses, expected.datasets)


def test_plan_counts_all_data_sets_and_finds_the_run(
    together: RunFolder, catalog: str, clip: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [part for setting in settings(clip) for part in ("--set", setting)]
    arguments = ["--plan", "--json", "--workspace", str(runs), "--catalog", catalog, *changes]
    assert train.main(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["extent"]["identities"], plan["extent"]["cameras"]) == (11, 5)
    assert plan["extent"]["samples"] == {"train": 24 + 30, "val": 12 + 18, "test": 16 + 18}
    steps = [event["step"] for event in together.journal.epochs()][-1]
    assert plan["extent"]["steps"] == steps
    assert {f"view/train/{VEHICLE}", f"masks/{VEHICLE}", "view/train"} <= {t["name"] for t in plan["tables"]}
    assert train.main([*(a for a in arguments if a != "--plan")]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == together.name


def test_plan_names_the_command_that_makes_a_missing_table_of_a_data_set(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["data.datasets=[msvr310,rgbnt100]", f"model.clip.source={clip}", "model.str.heads=2"]
    changes += ["model.image.height=32", "model.image.width=16"]
    options = [part for setting in changes for part in ("--set", setting)]
    recipe = ["--recipe", "msvr310-paper", "--workspace", str(tmp_path)]
    assert train.main([*recipe, "--plan", "--json", *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    commands = {table["name"]: table["command"] for table in plan["tables"]}
    assert commands["samples/rgbnt100"].endswith("--dataset rgbnt100")
    assert "--split test" in commands["view/test/rgbnt100"]
    assert commands["samples"].endswith("--dataset msvr310")


def test_data_sets_that_do_not_fit_together_are_named_before_any_work(
    catalog: str, clip: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*changes: str) -> str:
        options = [part for setting in settings(clip, *changes) for part in ("--set", setting)]
        assert train.main(["--workspace", str(runs), "--catalog", catalog, *options]) == 2
        return capsys.readouterr().err

    assert "data set 'other' of catalog" in refused(f"data.datasets=[{PERSON},other]")
    size = refused("model.image.height=64", "model.image.width=32")
    assert f"data set '{PERSON}' of catalog" in size
    assert "has no view table" in size
    shares = refused("data.shares=[0.01,0.99]", "batch.size=12")
    assert f"data set '{VEHICLE}' has 5 training identities" in shares


def test_recipe_is_checked_for_each_of_its_data_sets(catalog: str, clip: Path) -> None:
    for dataset in (PERSON, VEHICLE):
        checked = check_recipe("demo", settings(clip), dataset, catalog)
        assert checked.errors == ()


@pytest.fixture(scope="module")
def without_test(catalog: str, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The catalog's people, and vehicles of no camera that are all for training and have no captions."""
    folder = tmp_path_factory.mktemp("without_test")
    shutil.copytree(Path(catalog) / PERSON, folder / "catalog" / PERSON)
    rendered = recipes.resolve("demo", [*small_run.settings(clip), *VEHICLES])
    images = benchmark_folder(rendered, Path(catalog).parent) / "RGBNT201" / "train_171"
    rows = [
        {
            "name": path.stem,
            "identity": int(path.stem[:6]),
            "split": "train",
            **{
                name: str(images / own / path.name)
                for name, own in (("rgb", "RGB"), ("nir", "NI"), ("tir", "TI"))
            },
        }
        for path in sorted((images / "RGB").glob("*.jpg"))
    ]
    manifest = folder / "vehicles.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    samples = ingest(manifest, folder / "catalog", VEHICLE, IngestSettings(format="manifest"))
    masks = make_masks(samples, GrabCutSettings())
    make_view(samples, masks, None, ViewSettings(split="train", height=32, width=16, text_dim=16))
    return str(folder / "catalog")


def test_data_set_without_a_test_split_is_only_trained_on(
    without_test: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["train.epochs=1", "model.text=off"]
    config, tables, options = configured(clip, without_test, tmp_path, *changes)
    assert list(tables.views) == ["train", "val", "test", f"train/{VEHICLE}"]
    folder = RunFolder(lifecycle.run(config, tables, options.without_tracking(), threads=1).folder)
    assert list(folder.finished_result.datasets) == [PERSON]
    untrained = folder.journal.find("untrained")
    assert (untrained["identities"], untrained["cameras"]) == (11, 3)
    assert np.isfinite([loss["total"] for loss in folder.finished_result.losses]).all()
    capsys.readouterr()
    assert evaluate.main(["--run", folder.location, "--workers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["others"] == []
    other = recipes.resolve("demo", settings(clip, *changes, f"data.datasets=[{VEHICLE},{PERSON}]"))
    with pytest.raises(ConfigError, match=f"data set '{VEHICLE}' has no test split"):
        run_data.find_tables(other, load_clip(str(clip)), without_test)


def test_chosen_epoch_and_trained_text_tower_hold_for_each_data_set(
    catalog: str, clip: Path, tmp_path: Path
) -> None:
    changes = ["report.epoch=best_on_test", "model.text.fine_tune=on"]
    config, tables, options = configured(clip, catalog, tmp_path, *changes)
    assert {name: captions.manifest.dataset for name, captions in tables.captions.items()} == {
        PERSON: PERSON,
        VEHICLE: VEHICLE,
    }
    result = lifecycle.run(config, tables, options.without_tracking(), threads=1)
    assert result.reported is not None
    for name in (PERSON, VEHICLE):
        target = load_run(result.folder, name)
        assert target.epoch == result.reported.epoch
        [alone] = evaluate.evaluate(target, [()], workers=0).settings
        expected = alone.metrics["U"].model_dump(exclude={"cmc"})
        found = result.datasets[name].reported.model_dump(exclude={"cmc"})
        assert found == pytest.approx(expected, abs=1e-6)


def test_run_on_several_data_sets_begins_with_the_weights_of_a_run_on_one_but_its_heads_and_cameras(
    together: RunFolder, catalog: str, clip: Path, tmp_path: Path
) -> None:
    alone = recipes.resolve("demo", [*small_run.settings(clip), "model.camera_embedding=on"])
    one = ExperimentConfig.model_validate({**alone.model_dump(), "data": {"dataset": PERSON, "junk": "none"}})
    options = RunOptions.resolve(tmp_path, catalog).without_tracking()
    loaded = load_clip(str(clip))
    result = lifecycle.run(one, run_data.prepare_tables(one, loaded, options), options, threads=1)
    config, tables, _ = configured(clip, catalog, tmp_path)
    facts = with_initial_weights(tables, config, result.folder).initial.facts  # type: ignore[union-attr]
    assert {name.partition(".")[0] for name in facts.left} == {"heads", "image_tower"}
    assert "image_tower.camera_embedding" in facts.left
    # From the same data sets, all is taken.
    assert with_initial_weights(tables, config, together.location).initial.facts.left == {}  # type: ignore[union-attr]
