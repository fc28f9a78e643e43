"""Runs on tables of a catalog: which rows each worker reads, and what stops a run before it starts."""

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest

from data_catalog.errors import CatalogError
from data_catalog.tables.table import TableKind, find_table
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import open_view
from experiments import recipes, train
from experiments.evaluate import evaluate
from experiments.evaluating.evaluation_target import load_run
from experiments.experiment_config import ConfigError, DataConfig, ExperimentConfig
from experiments.run import config_checks, lifecycle, made_tables, run_data
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.run_options import RunOptions
from experiments.tracking.journal import Journal
from stmi.clip.loading import load_clip
from tests.experiments import small_run

ONE_EPOCH = ["train.epochs=1", "train.validate_every=1"]


def own(clip, *settings: str, placement: str = "replicated") -> ExperimentConfig:
    """The small run for one epoch, on its tables, as if they were those of a user's data set."""
    config = recipes.resolve(
        "demo", [*small_run.SETTINGS, *ONE_EPOCH, f"model.clip.source={clip}", *settings]
    )
    data = DataConfig(dataset="synthetic_person", placement=placement)
    return ExperimentConfig.model_validate({**config.model_dump(), "data": data.model_dump()})


@pytest.fixture(scope="module")
def catalog(ray_session, clip, workspace, tmp_path_factory):
    """The small run's tables in a catalog where the training view has two identities a shard."""
    rendered = recipes.resolve("demo", [*small_run.SETTINGS, f"model.clip.source={clip}"])
    run_data.prepare_tables(rendered, load_clip(clip), RunOptions.resolve(workspace))
    catalog = tmp_path_factory.mktemp("own") / "catalog"
    shutil.copytree(workspace / "catalog", catalog)
    samples, masks, text_features = (
        find_table(catalog, "synthetic_person", kind)
        for kind in (TableKind.SAMPLES, TableKind.MASKS, TableKind.TEXT_FEATURES)
    )
    settings = ViewSettings(split="train", height=32, width=16, samples_per_shard=8)
    make_view(samples, masks, text_features, settings)
    return str(catalog)


@pytest.fixture(scope="module")
def ran(catalog, clip, workspace):
    """Tables and result of a run of two workers that share no identity and want more samples of each."""
    settings = ("train.workers=2", "batch.size=10", "batch.samples_per_identity=5")
    config, loaded = own(clip, *settings, placement="by_identity"), load_clip(clip)
    options = RunOptions.resolve(workspace, catalog)
    tables = run_data.prepare_tables(config, loaded, options)
    config_checks.check_tables(config, loaded, tables)
    return tables, lifecycle.run(config, tables, options)


@pytest.fixture
def train_view(catalog):
    return find_table(catalog, "synthetic_person", TableKind.VIEW, settings={"split": "train"})


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_open_the_shards_of_their_own_identities_alone(train_view, clip, workers):
    config = own(clip, f"train.workers={workers}", "batch.size=12", placement="by_identity")
    schedule, whole = BatchSchedule([train_view], config), open_view(train_view)
    views = [open_view(train_view, shards) for shards in schedule.shards]
    assert sorted(name for view in views for name in view.sample_id) == sorted(whole.sample_id)
    for labels, view in zip(schedule.labels, views, strict=True):
        assert np.array_equal(np.unique(whole.identity)[labels], view.identity)
    batches = [view.identity[schedule.rows(rank, epoch=0)] for rank, view in enumerate(views)]
    # A batch over all workers: six identities, two samples each.
    for step in np.concatenate(batches, axis=1):
        assert np.unique(step, return_counts=True)[1].tolist() == [2] * 6


def test_one_worker_has_the_same_batches_under_both_placements(train_view, clip):
    replicated, by_identity = (
        BatchSchedule([train_view], own(clip, "train.workers=1", placement=placement)).rows(rank=0, epoch=3)
        for placement in ("replicated", "by_identity")
    )
    assert np.array_equal(replicated, by_identity)


@pytest.mark.slow
def test_workers_with_identities_of_their_own_train_together(ran):
    tables, result = ran
    assert len(tables.views["train"].manifest.shards) == 3
    assert (result.status, len(result.losses)) == ("finished", 1)
    assert np.isfinite(result.losses[0]["total"])


def test_warnings_of_the_checks_are_logged_with_the_run(ran):
    tables, result = ran
    assert [finding.check for finding in tables.warnings] == ["few_samples"]
    [finding] = tables.warnings
    logged = Journal(Path(result.folder) / "journal.jsonl").last("checks")["warnings"]
    assert logged == [{"check": "few_samples", "message": finding.message, "samples": 24}]
    run = mlflow.MlflowClient(result.mlflow.uri).get_run(result.mlflow.run_id)
    assert run.data.tags["stmi.warnings"] == "few_samples"


@pytest.mark.parametrize(
    ("setting", "kind"), [("readings_wrong=0.5", "captions"), ("masks=shifted", "masks")]
)
def test_benchmarks_of_equal_images_and_other_artifacts_share_no_table(setting, kind, clip, tmp_path):
    options, loaded = RunOptions.resolve(tmp_path), load_clip(clip)
    made = []
    for changes in ([], [f"data.synthetic.{setting}"]):
        config = recipes.resolve("demo", [*small_run.SETTINGS, f"model.clip.source={clip}", *changes])
        run_data.prepare_tables(config, loaded, options)
        made.append((config, made_tables.find_made_tables(config, loaded, options.catalog)))
    (first, before), (_, other) = made
    images = [tables["samples"].read(["rgb", "nir", "tir"]) for tables in (before, other)]
    assert images[0] == images[1]
    assert before[kind].read() != other[kind].read()
    assert not {t.digest for t in before.values()} & {t.digest for t in other.values()}
    # Asked for once more, the first finds its own, though the others were asked for last.
    assert made_tables.find_made_tables(first, loaded, options.catalog) == before


@pytest.fixture(scope="module")
def images_only(catalog, tmp_path_factory):
    """A catalog with samples and views alone: no masks, no captions."""
    bare = tmp_path_factory.mktemp("bare") / "catalog"
    kept = ("samples", "image_hashes")
    for kind in kept:
        if (folder := Path(catalog) / "synthetic_person" / kind).is_dir():
            shutil.copytree(folder, bare / "synthetic_person" / kind)
    samples = find_table(bare, "synthetic_person", TableKind.SAMPLES)
    for split in samples.statistics["splits"]:
        make_view(samples, None, None, ViewSettings(split=split, height=32, width=16))
    return str(bare)


def test_views_without_masks_and_text_serve_a_run_that_uses_neither(images_only, clip, workspace):
    config, loaded = own(clip, "model.text=off", "model.sfm=off", "train.workers=1"), load_clip(clip)
    options = RunOptions.resolve(workspace, images_only)
    tables = run_data.prepare_tables(config, loaded, options)
    config_checks.check_tables(config, loaded, tables)
    assert tables.captions == {}
    assert not {"masks", "captions", "text_features"} & tables.digests.keys()
    result = lifecycle.run(config, tables, options, threads=1)
    assert (result.status, len(result.losses)) == ("finished", 1)
    target = load_run(Path(result.folder))
    assert 0 < evaluate(target, [()], workers=0).settings[0].metrics["U"].mean_average_precision <= 1


def test_run_with_text_on_views_without_is_refused_with_the_way_out(images_only, clip, workspace):
    with pytest.raises(
        CatalogError, match=r"text_features.*To train without captions: --set model\.text=off"
    ):
        run_data.prepare_tables(own(clip), load_clip(clip), RunOptions.resolve(workspace, images_only))


def test_run_without_text_keeps_its_views_with_text(catalog, clip, workspace):
    tables = [
        run_data.prepare_tables(
            own(clip, f"model.text={text}"), load_clip(clip), RunOptions.resolve(workspace, catalog)
        )
        for text in ("on", "off")
    ]
    assert tables[0].digests == tables[1].digests


def test_too_many_workers_for_the_identities_of_a_batch_are_refused(clip):
    with pytest.raises(
        ConfigError, match=r"data\.placement=by_identity: train\.workers=8 does not divide the 4"
    ):
        recipes.resolve("demo", [*small_run.SETTINGS, "train.workers=8", "data.placement=by_identity"])


def test_more_workers_than_shards_are_refused_before_ray_train_starts(catalog, clip, workspace, capsys):
    arguments = small_run.arguments(clip, workspace, "--workers", "2", "--set", "data.placement=by_identity")
    assert train.main(arguments) == 2
    assert "2 workers cannot share 1 shards of whole identities" in capsys.readouterr().err


def test_data_with_errors_stops_a_run_before_ray_train_starts(catalog, clip, workspace, capsys):
    before = sorted(workspace.glob("train/*"))
    # The benchmark has no scenes, so by this rule every match is junk.
    assert train.main([*small_run.arguments(clip, workspace), "--set", "data.junk=scene"]) == 2
    error = capsys.readouterr().err
    assert "error: data set 'synthetic_person' is not fit for a run: query_without_match: 16 of 16" in error
    assert "test/000011_cam1_0_00" in error
    assert sorted(workspace.glob("train/*")) == before


@pytest.mark.parametrize("fast", [True, False])
def test_precision_that_is_slow_on_this_cpu_gives_a_warning(fast, clip, monkeypatch, caplog):
    monkeypatch.setattr(config_checks, "cpu_multiplies_bfloat16", lambda: fast)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(config_checks.torch.cuda, "is_available", lambda: False)
    said = []
    for precision in ("float32", "bfloat16"):
        config_checks.check_settings(own(clip, f"train.precision={precision}"), load_clip(clip))
        said.append("set train.precision=float32" in caplog.text)
    assert said == [False, not fast]
