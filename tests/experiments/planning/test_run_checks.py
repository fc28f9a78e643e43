"""`checks --recipe` has exactly the rules of a run: no error means that the run starts."""

import json
from pathlib import Path
from shutil import copytree, rmtree

import pytest

from data_catalog.__main__ import main
from data_catalog.captions.caption_table import make_captions
from data_catalog.captions.text_feature_table import make_text_features
from data_catalog.errors import CatalogError
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.samples.ingestion import ingest
from data_catalog.views.training_view import ViewSettings, make_view
from experiments import train
from experiments.experiment_config import ConfigError, ExperimentConfig
from experiments.planning.run_checks import check_run
from experiments.planning.run_plan import check_where_possible
from experiments.recipes import resolve
from experiments.run import made_tables, run_data
from experiments.run.preflight import preflight
from experiments.run.run_options import RunOptions
from stmi.clip.loading import load_clip
from stmi.errors import ClipFileError
from tests.data_catalog.folders import write_data_set

SETTINGS = [
    "data.synthetic=null",
    "data.dataset=small",
    "model.image.height=32",
    "model.image.width=16",
    "model.str.heads=2",
    "batch.size=4",
    "batch.samples_per_identity=2",
    "train.epochs=1",
]


@pytest.fixture(scope="module")
def catalogs(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> dict[str, str]:
    """Catalogs of a small data set: one with everything, one with images alone, one with both views, ..."""
    folder = tmp_path_factory.mktemp("catalogs")
    write_data_set(folder / "source")
    rmtree(folder / "source" / "RGBNT201" / "val")
    copytree(folder / "source", folder / "one identity")
    for path in (folder / "one identity" / "RGBNT201" / "test").rglob("000022*"):
        path.unlink()
    made = {}
    for name in ("whole", "images", "texts without views", "one identity", "no views"):
        source = folder / ("one identity" if name == "one identity" else "source")
        catalog = made[name] = str(folder / name.replace(" ", "_"))
        samples = ingest(source / "RGBNT201", catalog, "small")
        masks = features = None
        if name in ("whole", "one identity", "texts without views"):
            captions = make_captions(samples, source / "readings")
            features = make_text_features(captions, str(clip))
            masks = make_masks(samples, GrabCutSettings())
        if name == "texts without views":
            features = None
        for split in ("train", "test") if name != "no views" else ():
            make_view(samples, masks, features, ViewSettings(split=split, height=32, width=16))
    return made


def configured(clip: Path, *settings: str) -> ExperimentConfig:
    return resolve("demo", [*SETTINGS, f"model.clip.source={clip}", *settings])


def starts(config: ExperimentConfig, workspace: Path, catalog: str) -> bool:
    """Whether a run gets to its training: the oracle."""
    options = RunOptions.resolve(workspace, catalog)
    try:
        preflight(config, options, lambda check: check(config), lambda: None, lambda tables: False)
    except (CatalogError, ConfigError, ClipFileError):
        return False
    return True


@pytest.mark.parametrize(
    ("catalog", "settings", "expected"),
    [
        ("whole", [], None),
        ("whole", ["model.text=off", "model.sfm=off"], None),
        ("images", ["model.text=off", "model.sfm=off"], None),
        ("images", ["model.sfm=off"], "no text_features table"),
        ("images", ["model.text=off"], "was made without masks"),
        ("texts without views", ["model.text=off"], None),
        ("texts without views", [], "no view table"),
        ("no views", ["model.text=off", "model.sfm=off"], "no view table"),
        ("one identity", [], "holds one identity, 21,"),
        ("whole", ["batch.size=16"], "needs 8 identities; the training data has 3"),
        ("whole", ["model.image.height=40"], "no view table"),
        ("whole", ["model.image.height=33"], "not a whole number of 8x8 patches"),
        ("whole", ["data.junk=scene"], "have no match in the gallery under another scene"),
        ("whole", ["data.dataset=other"], "data set 'other' of catalog"),
        ("whole", ["model.str.heads=7"], "model.str.heads=7 does not divide"),
        ("whole", ["model.clip.source=/nowhere"], "/nowhere"),
        ("whole", ["data.placement=by_identity", "train.workers=2"], "2 workers cannot share 1 shards"),
    ],
)
def test_there_is_an_error_exactly_where_the_run_does_not_start(
    catalog: str,
    settings: list[str],
    expected: str | None,
    catalogs: dict[str, str],
    clip: Path,
    tmp_path: Path,
) -> None:
    config = configured(clip, *settings)
    errors = check_run(config, catalogs[catalog]).errors
    assert starts(config, tmp_path, catalogs[catalog]) == (errors == ())
    if expected is not None:
        assert any(expected in error.message for error in errors), errors


@pytest.mark.parametrize("text", ["on", "off"])
@pytest.mark.parametrize("catalog", ["whole", "texts without views"])
def test_plan_finds_the_tables_that_the_run_takes(
    text: str, catalog: str, catalogs: dict[str, str], clip: Path
) -> None:
    config, loaded = configured(clip, f"model.text={text}"), load_clip(str(clip))
    planned = made_tables.look_up_tables(config, loaded.digest, catalogs[catalog])
    if (catalog, text) == ("texts without views", "on"):
        assert planned["view/train"] is planned["view/test"] is None
        return
    taken = run_data.find_tables(config, loaded, catalogs[catalog])
    assert {name: table and table.digest for name, table in planned.items() if name in taken} == {
        name: table.digest for name, table in taken.items()
    }


def test_plan_names_what_stops_the_run(catalogs: dict[str, str], clip: Path) -> None:
    catalog, digest = catalogs["images"], load_clip(str(clip)).digest

    def errors(*settings: str, clip_digest: str | None = digest) -> list[str]:
        config = configured(clip, *settings)
        tables = made_tables.look_up_tables(config, clip_digest, catalog)
        report = check_where_possible(config, tables, catalog, clip_digest)
        return [error.message for error in report.errors]

    [error] = errors("model.text=off")
    assert "was made without masks; make it with masks, or set model.sfm=off" in error
    assert errors("model.text=off", "model.sfm=off") == []
    # What is not there yet is listed with the command that makes it.
    assert errors() == []
    assert errors("model.text=off", clip_digest=None) == []


def test_status_of_a_plan_says_whether_the_run_would_be_refused(
    catalogs: dict[str, str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SETTINGS, f"model.clip.source={clip}", "model.text=off"]
    asked = ["--plan", "--json", "--workspace", str(tmp_path), "--catalog", catalogs["images"]]
    asked += [part for setting in settings for part in ("--set", setting)]

    def found(*more: str) -> tuple[int, int]:
        status = train.main([*asked, *more])
        return status, len(json.loads(capsys.readouterr().out)["errors"])

    assert found() == (1, 1)
    assert found("--set", "model.sfm=off") == (0, 0)


@pytest.mark.parametrize("command", ["checks", "show"])
def test_commands_have_the_rules_of_the_recipe(
    command: str,
    catalogs: dict[str, str],
    clip: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [command, "small", "--catalog", catalogs["images"], "--json", "--recipe", "demo"]
    asked += [part for setting in [*SETTINGS, f"model.clip.source={clip}"] for part in ("--set", setting)]

    def found(*settings: str) -> tuple[int, list[str]]:
        status = main([*asked, *(part for setting in settings for part in ("--set", setting))])
        return status, [error["check"] for error in json.loads(capsys.readouterr().out)["errors"]]

    failed = 1 if command == "checks" else 0
    assert found() == (failed, ["run_refused"])
    assert found("model.text=off", "model.sfm=off") == (0, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--recipe", "demo"],
            "trains on data set 'synthetic_person', not on 'small'; add --set data.dataset",
        ),
        (["--recipe", "nothing"], "recipe 'nothing' is unknown"),
        (["--recipe", "nothing.yaml"], "file nothing.yaml: it cannot be read"),
        (["--recipe", "demo", "--set", "model.nothing=1"], "model.nothing"),
        (["--set", "model.text=off"], "--set model.text=off changes a recipe; name it with --recipe"),
        (["--recipe", "demo", "--junk", "scene"], "--junk: with --recipe the run decides"),
    ],
)
def test_recipe_that_is_impossible_is_named_in_one_line(
    options: list[str], message: str, catalogs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checks", "small", "--catalog", catalogs["whole"], *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_benchmark_whose_tables_the_run_makes_has_no_error(clip: Path, tmp_path: Path) -> None:
    config = resolve("demo", [f"model.clip.source={clip}", "model.str.heads=2"])
    report = check_run(config, str(tmp_path / "catalog"))
    assert report.errors == ()
    [warning] = report.warnings
    assert warning.message.startswith("the run itself makes the tables that are missing: samples, masks,")
    assert list(tmp_path.iterdir()) == []
