import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from data_catalog.captions.text_feature_table import make_text_features
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import open_view
from experiments import compare, evaluate
from experiments.evaluating import evaluation_target
from experiments.run import evaluation, run_tables
from stmi import checkpoint_files
from stmi.clip import architecture, clip_files
from stmi.modality import Modality
from stmi.released import released_checkpoint
from tests import json_samples
from tests.experiments import small_run
from tests.stmi.released import released_oracle
from tests.tolerances import GOLDEN_VALUE

SINGLE_AND_PAIRS = [["RGB"], ["NIR"], ["TIR"], ["RGB", "NIR"], ["RGB", "TIR"], ["NIR", "TIR"]]
RELEASED_SETTINGS = [
    "--set=data.dataset=synthetic_person",
    "--set=model.image.height=64",
    "--set=model.image.width=32",
]


def evaluated(capsys, *arguments: str, workers: str = "0") -> dict:
    capsys.readouterr()
    assert evaluate.main([*arguments, "--workers", workers, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def summary(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "cmc"}


def test_json_of_an_evaluation_has_the_keys_it_always_had():
    json_samples.check("evaluate", evaluate.Evaluation)


def test_finished_run_is_evaluated_to_the_same_metrics(trained, capsys):
    result = evaluated(capsys, "--run", trained["folder"], workers="2")
    (setting,) = result["settings"]
    assert (result["subject"], setting["missing"], setting["reranked"]) == (trained["run"], [], False)
    for name, metrics in trained["metrics"].items():
        assert summary(setting["metrics"][name]) == pytest.approx(summary(metrics), abs=1e-6)


@pytest.fixture(scope="module")
def best_on_test(ray_session, clip, workspace, tmp_path_factory):
    """A run that got worse after an early epoch, which it reports; it was killed after the second."""

    def die(facts):
        if facts["event"] == "epoch" and facts["epoch"] == 2:
            raise SystemError

    # With which learning rate a run gets worse is different from processor to processor.
    for rate in ("0.2", "0.4", "1", "2", "4"):
        settings = ["report.epoch=best_on_test", "train.validate_every=1", f"optim.learning_rate={rate}"]
        runs = tmp_path_factory.mktemp("best")
        with pytest.raises(SystemError):
            small_run.alone(clip, workspace, *settings, runs=runs, on_report=die)
        run = small_run.alone(clip, workspace, *settings, runs=runs)
        if run.result.choices.best_on_test.epoch < run.result.choices.last.epoch:
            return run
    raise AssertionError("no run got worse")


def test_run_is_evaluated_with_the_weights_of_the_epoch_that_it_reports(best_on_test, capsys):
    choices = best_on_test.result.choices.model_dump(mode="json")
    assert choices["best_on_test"]["epoch"] < choices["last"]["epoch"] == 3
    for arguments, choice in (((), "best_on_test"), (("--epoch", "last"), "last")):
        result = evaluated(capsys, "--run", str(best_on_test.path), *arguments)
        assert result["epoch"] == choices[choice]["epoch"]
        for name, metrics in choices[choice]["metrics"].items():
            found = result["settings"][0]["metrics"][name]
            assert summary(found) == pytest.approx(summary(metrics), abs=1e-6)


def test_epoch_whose_weights_were_not_kept_is_refused(best_on_test, capsys, tmp_path):
    run = tmp_path / "train" / best_on_test.name
    shutil.copytree(best_on_test.path, run)
    for kept in run.glob(f"*/{checkpoint_files.REPORTED_FILE}"):
        kept.unlink()
    text = (run / "result.json").read_text()
    (run / "result.json").write_text(text.replace(str(best_on_test.path), str(run)))
    assert evaluate.main(["--run", str(run), "--workers", "0"]) == 2
    assert "whose weights were not kept; evaluate its last one with --epoch last" in capsys.readouterr().err


def test_missing_modalities_and_reranking_are_measured_side_by_side(trained, capsys):
    settings = evaluated(capsys, "--run", trained["folder"], "--missing", "all", "--rerank")["settings"]
    plain = [setting for setting in settings if not setting["reranked"]]
    assert [setting["missing"] for setting in plain] == [[], *SINGLE_AND_PAIRS]
    assert len(settings) == 2 * len(plain)
    complete = plain[0]["metrics"]
    for setting in plain[1:]:
        for name in ("RGB", "NIR", "TIR"):
            # A modality that is present gives the same features.
            same = setting["metrics"][name] == complete[name]
            assert same == (name not in setting["missing"])
        assert setting["metrics"]["T"] == complete["T"]


def test_embeddings_are_written_once_for_every_row(trained, capsys, tmp_path):
    evaluated(capsys, "--run", trained["folder"], "--embeddings", str(tmp_path / "test.parquet"))
    rows = pq.read_table(tmp_path / "test.parquet")
    ids = rows["sample_id"].to_pylist()
    assert len(set(ids)) == len(ids) == evaluated(capsys, "--run", trained["folder"])["samples"]
    assert np.isfinite(np.stack(rows["U"].to_numpy())).all()


def test_run_and_a_file_of_its_embeddings_rank_alike(trained, capsys, tmp_path):
    file = str(tmp_path / "test.parquet")
    evaluated(capsys, "--run", trained["folder"], "--embeddings", file)
    assert compare.main([trained["folder"], file, "--feature", "G", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in result["models"]] == [trained["run"], "test.parquet"]
    for model in result["models"]:
        assert model["metrics"]["mAP"] == pytest.approx(trained["metrics"]["G"]["mAP"])
    assert max(abs(found["difference"]) for found in result["differences"].values()) < GOLDEN_VALUE
    few = str(tmp_path / "few.parquet")
    pq.write_table(pq.read_table(file)[:-1], few)
    assert compare.main([trained["folder"], few, "--feature", "G"]) == 2
    assert f"1 are in {trained['run']} alone" in capsys.readouterr().err
    assert compare.main([trained["folder"], file, "--junk", "scene"]) == 2
    assert "--junk=scene: a run has the rule camera" in capsys.readouterr().err
    assert compare.main([trained["folder"], file, "--feature", "V"]) == 2
    assert f"--feature=V: expected one that run {trained['run']} has: U, G" in capsys.readouterr().err


def test_every_query_is_written_for_every_setting(trained, capsys, tmp_path):
    arguments = ["--run", trained["folder"], "--missing", "NIR+TIR", "--rerank"]
    result = evaluated(capsys, *arguments, "--queries", str(tmp_path / "queries.parquet"))
    queries = pq.read_table(tmp_path / "queries.parquet").to_pandas()
    assert len(queries) == 4 * len(trained["metrics"]) * queries["sample_id"].nunique()
    for setting in result["settings"]:
        selected = queries["missing"].eq("+".join(setting["missing"]))
        selected &= queries["reranked"].eq(setting["reranked"])
        means = queries[selected].groupby("feature")["average_precision"].mean()
        assert means.to_dict() == pytest.approx({f: m["mAP"] for f, m in setting["metrics"].items()})


@pytest.fixture
def other_data_set(trained, workspace):
    """Folder of a data set of another name with the same tables."""
    catalog = workspace / "catalog"
    shutil.copytree(catalog / "synthetic_person", catalog / "other")
    for file in (catalog / "other").rglob("manifest.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset": "other"}))
    yield catalog / "other"
    shutil.rmtree(catalog / "other")


def test_run_is_evaluated_on_another_data_set(trained, other_data_set, capsys):
    own = evaluated(capsys, "--run", trained["folder"])
    other = evaluated(capsys, "--run", trained["folder"], "--dataset", "other")
    assert (other["dataset"], other["junk"]) == ("other", "camera")
    # This model has no camera embedding, so the same images give the same metrics under another name.
    assert other["settings"] == own["settings"]


def test_view_without_the_masks_that_the_model_needs_is_refused(trained, other_data_set, capsys):
    for file in other_data_set.glob("view/*/manifest.json"):
        manifest = json.loads(file.read_text())
        del manifest["inputs"]["masks"]
        file.write_text(json.dumps(manifest))
    assert evaluate.main(["--run", trained["folder"], "--dataset", "other"]) == 2
    assert "was made without masks" in capsys.readouterr().err


def test_every_camera_of_another_data_set_is_the_mean_camera():
    model = released_checkpoint.load(released_oracle.small_checkpoint(), (64, 32))
    learned = model.image_tower.camera_embedding.detach().numpy()
    evaluation_target.forget_cameras(model, 9)
    expected = np.tile(learned.mean(axis=0), (9, 1))
    assert np.allclose(model.image_tower.camera_embedding.detach().numpy(), expected)


@pytest.mark.parametrize(("scenes", "rule"), [([0, 3, 1], "scene"), ([-1, -1, -1], "camera")])
def test_another_data_set_has_its_own_junk_rule(scenes, rule):
    assert run_tables.own_junk_rule(SimpleNamespace(scene_id=np.array(scenes))) == rule


VOCABULARY = 49408
"""Of OpenAI's tokenizer, which a checkpoint's text tower needs."""


def with_whole_vocabulary(seed: int) -> dict[str, torch.Tensor]:
    weights = released_oracle.small_checkpoint(seed)
    random = torch.Generator().manual_seed(seed)
    embedding = 0.3 * torch.randn(VOCABULARY, 64, generator=random)
    return weights | {"BACKBONE.base.token_embedding.weight": embedding}


def write_clip(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A CLIP with the text tower of a checkpoint."""
    folder.mkdir()
    vision = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": VOCABULARY, "width": 64, "heads": 1, "layers": 2}
    settings = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / clip_files.CONFIG_FILE).write_text(json.dumps({"model_cfg": settings}))
    model = architecture.build_clip(folder)
    model.load_state_dict(released_checkpoint.text_weights(weights), strict=False)
    save_file(model.state_dict(), folder / clip_files.WEIGHTS_FILE)
    return folder


@pytest.fixture(scope="module")
def weights():
    return with_whole_vocabulary(0)


@pytest.fixture(scope="module")
def other_weights():
    return with_whole_vocabulary(1)


@pytest.fixture(scope="module")
def clips(weights, other_weights, tmp_path_factory):
    """CLIPs with the text tower of the one checkpoint and of the other."""
    folder = tmp_path_factory.mktemp("clips")
    return {
        "own": write_clip(folder / "own", weights),
        "other": write_clip(folder / "other", other_weights),
    }


@pytest.fixture
def view_with(trained, workspace, clips):
    """Makes the view of a released model, with the text features of a checkpoint's text tower, or without."""

    def make(weights: str | None, masks: bool = True) -> Table:
        catalog = str(workspace / "catalog")
        samples, found, captions = (
            find_table(catalog, "synthetic_person", kind)
            for kind in (TableKind.SAMPLES, TableKind.MASKS, TableKind.CAPTIONS)
        )
        text = None if weights is None else make_text_features(captions, clips[weights])
        settings = ViewSettings(split="test", height=64, width=32, text_dim=32)
        return make_view(samples, found if masks else None, text, settings)

    return make


def test_checkpoint_of_the_released_code_is_evaluated(view_with, weights, capsys, workspace, tmp_path):
    released_view, file = view_with("own"), tmp_path / "STMI_best.pth"
    torch.save(weights, file)
    result = evaluated(
        capsys,
        *("--released-checkpoint", str(file), "--recipe", "rgbnt201-released"),
        *("--workspace", str(workspace), *RELEASED_SETTINGS),
    )
    (setting,) = result["settings"]
    model = released_checkpoint.load(weights, (64, 32))
    view = open_view(released_view)
    features = evaluation.embed(model, view, 16, autocast=False).features
    expected = evaluation.summarise(evaluation.score_each(view, features, "camera"))
    assert summary(setting["metrics"]["U"]) == pytest.approx(
        summary(expected["U"].model_dump(mode="json")), abs=1e-4
    )


@pytest.mark.parametrize(
    ("made_with", "settings", "message"),
    [
        ({"weights": None}, [], "was made without text_features"),
        ({"weights": "own", "masks": False}, [], "was made without masks"),
        ({"weights": "other"}, [], "are not those of the checkpoint's own text tower"),
        ({"weights": "own"}, ["--set=model.sfm=off"], r"model.sfm.enabled=False (it has True)"),
        ({"weights": "own"}, ["--recipe=rgbnt201-paper"], r"model.chi.convolution=paper (it has released)"),
    ],
)
def test_view_or_recipe_that_does_not_fit_a_released_checkpoint_is_refused(
    made_with, settings, message, view_with, weights, capsys, workspace, tmp_path
):
    view_with(**made_with)
    torch.save(weights, tmp_path / "STMI_best.pth")
    arguments = ["--released-checkpoint", str(tmp_path / "STMI_best.pth"), "--recipe", "rgbnt201-released"]
    arguments += ["--workspace", str(workspace), "--workers", "0", *RELEASED_SETTINGS, *settings]
    assert evaluate.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_pickled_checkpoint_is_refused_and_not_executed(view_with, capsys, workspace, tmp_path):
    view_with("own")

    class Intruder:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    file = tmp_path / "STMI_best.pth"
    file.write_bytes(pickle.dumps(Intruder()))
    arguments = ["--released-checkpoint", str(file), "--recipe", "rgbnt201-released"]
    assert evaluate.main([*arguments, "--workspace", str(workspace), *RELEASED_SETTINGS]) == 2
    assert "not a file of weights alone" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "a", "--workers", "-1"], "--workers=-1: expected a number of actors, or 0"),
        (["--run", "a", "--embeddings", "gopher://b"], "cannot be opened"),
        (["--run", "a", "--queries", "."], "--queries=.: this is a folder; name a file in it"),
        (["--run", "a", "--embeddings", "e", "--queries", "./e"], "--queries both name ./e; name two files"),
        (["--released-checkpoint", "a", "--recipe", "demo", "--dataset", "b"], "use --set data.dataset=b"),
    ],
)
def test_impossible_options_are_refused_before_any_work(arguments, message, capsys):
    assert evaluate.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["XYZ", "RGB+NIR+TIR", "RGB+RGB", ""])
def test_impossible_missing_modalities_are_refused(text):
    with pytest.raises(evaluate.ConfigError, match="expected one or two of RGB, NIR, TIR"):
        evaluate.parse_missing(text)
    assert evaluate.parse_missing("tir+rgb") == [(Modality.RGB, Modality.TIR)]
