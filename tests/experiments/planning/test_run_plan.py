import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_catalog.checks.findings import CheckReport, Finding
from experiments import train
from experiments.experiment_config import ConfigError
from experiments.planning import calibration, run_plan
from experiments.planning.expected_tables import measure_extent
from experiments.planning.expected_time import (
    HARDWARE,
    USABLE_MEMORY,
    Workload,
    expect_time,
    known_hardware,
)
from experiments.planning.memory_use import Memory
from experiments.planning.run_plan import RunPlan
from experiments.recipes import resolve
from experiments.run.made_tables import look_up_tables
from experiments.tracking.journal import Journal
from stmi.clip.loading import load_clip
from tests import json_samples
from tests.experiments import small_run

WORKLOAD = Workload(
    steps=100,
    batch=10,
    step_flops=3_000_000_000,
    embedded=1000,
    forward_flops=1_000_000_000,
    workers=4,
    precision="bfloat16",
    peak_bytes=10 * 2**30,
)


def plan(capsys, *arguments):
    capsys.readouterr()
    assert train.main([*arguments, "--plan", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_of_a_plan_has_the_keys_it_always_had():
    json_samples.check("plan", RunPlan)


@pytest.mark.slow
def test_plan_of_the_paper_needs_neither_data_nor_weights(tmp_path, capsys):
    settings = ["train.workers=36", "train.evaluation_batch=2"]
    planned = plan(
        capsys,
        *("--recipe", "rgbnt201-paper", "--workspace", str(tmp_path)),
        *(part for setting in settings for part in ("--set", setting)),
        *("--hardware", "T4", "--hardware", "Xeon-2-cores"),
    )
    # 72 samples a batch; the card of RGBNT201 has 3951 and 836 samples, evaluated every five of 50 epochs.
    extent = planned["extent"]
    assert extent["source"] == "the card of rgbnt201"
    assert 50 * (3951 // 72 - 20) < extent["steps"] <= 50 * (3951 // 72)
    assert extent["embedded"] == 836 * (10 + 1)
    commands = {table["name"]: table["command"] for table in planned["tables"]}
    assert set(commands) == {"samples", "masks", "captions", "text_features", "view/train", "view/test"}
    assert all(f"--catalog {tmp_path / 'catalog'}" in command for command in commands.values())
    assert "view --split test --size 256x128" in commands["view/test"]
    missing, memory = planned["warnings"]
    assert planned["losses_without_gradient"] == ["triplet/T"]
    assert missing == f"6 tables are missing ({', '.join(commands)}): no run can start yet"
    # Each of the 36 holds weights, gradients and two running means of 97 M parameters, 4 bytes each.
    assert float(memory.removeprefix("Xeon-2-cores: ").split()[0]) > 36 * 4 * 4 * 97e6 / 2**30
    assert "take fewer train.workers, or a smaller batch.size" in memory
    assert planned["parameters"]["total"] == sum(
        planned["parameters"]["by_part"][part]["total"] for part in planned["parameters"]["by_part"]
    )
    assert planned["memory"]["samples"] == 2
    assert not any(tmp_path.iterdir())


def test_plan_without_masks_and_text_asks_for_neither(tmp_path, capsys):
    off = ("--set", "model.sfm=off", "--set", "model.text=off")
    planned = plan(capsys, "--recipe", "rgbnt201-paper", "--workspace", str(tmp_path), *off)
    commands = {table["name"]: table["command"] for table in planned["tables"]}
    assert set(commands) == {"samples", "view/train", "view/test"}
    assert "view --split train --size 256x128 --no-masks --no-text" in commands["view/train"]


def test_plan_takes_a_perturbation_for_each_modality(tmp_path, capsys):
    mapping = "model.sfm.perturbation={RGB: 0, NIR: 0.01, TIR: 0.02}"
    planned = plan(capsys, "--recipe", "demo", "--workspace", str(tmp_path), "--set", mapping)
    assert planned["config"]["model.sfm.perturbation.TIR"] == 0.02


def test_plan_names_the_differences_to_the_other_recipe_of_the_data_set(clip, capsys):
    small = (f"model.clip.source={clip}", "model.image.height=32", "model.image.width=64")
    settings = (*small, "train.evaluation_batch=2", "train.workers=64")
    arguments = [part for setting in settings for part in ("--set", setting)]
    planned = plan(capsys, "--recipe", "rgbnt100-released", *arguments)
    assert planned["counterpart"] == "rgbnt100-paper"
    assert planned["changed"] == {
        "model.clip.source": {"recipe": "ViT-B-16-quickgelu/openai", "here": str(clip)},
        "model.image.height": {"recipe": 128, "here": 32},
        "model.image.width": {"recipe": 256, "here": 64},
        "train.workers": {"recipe": 1, "here": 64},
        "train.evaluation_batch": {"recipe": 128, "here": 2},
    }
    assert planned["differences"]["model.chi.incidence"] == {"here": "euclidean", "there": "cosine"}
    assert planned["differences"]["report.feature"] == {"here": "GTTT", "there": "U"}


def test_plan_finds_the_tables_of_the_run_and_counts_its_steps(trained, clip, workspace):
    config = resolve("demo", [*small_run.SETTINGS, f"model.clip.source={clip}", "train.workers=2"])
    tables = look_up_tables(config, load_clip(clip).digest, str(workspace / "catalog"))
    digests = {name: table.digest for name, table in tables.items()}
    assert digests == {name: digest for name, digest in trained["tables"].items() if name != "clip"}
    extent = measure_extent(config, tables)
    last = Journal(Path(trained["folder"]) / "journal.jsonl").epochs()[-1]
    assert (extent.source, extent.steps) == ("the training view", last["step"])
    # Evaluated after epochs 2 and 3; test also before the first.
    assert extent.embedded == 2 * extent.samples["val"] + 3 * extent.samples["test"]
    other = resolve("demo", [*small_run.SETTINGS, f"model.clip.source={clip}", "data.synthetic.cameras=3"])
    assert not any(look_up_tables(other, None, str(workspace / "catalog")).values())


def test_plan_before_the_first_run_gets_the_size_from_the_settings(trained, clip, workspace, tmp_path):
    config = resolve("demo", [*small_run.SETTINGS, f"model.clip.source={clip}", "train.workers=2"])
    before, after = (
        measure_extent(config, look_up_tables(config, load_clip(clip).digest, str(folder / "catalog")))
        for folder in (tmp_path, workspace)
    )
    assert before.source == "the benchmark's settings"
    assert (before.identities, before.cameras, before.samples) == (
        after.identities,
        after.cameras,
        after.samples,
    )
    assert before.embedded == after.embedded


def test_calibration_times_the_step_of_one_worker(clip, tmp_path, capsys):
    threads = torch.get_num_threads()
    planned = plan(capsys, *small_run.arguments(clip, tmp_path, "--calibrate", "--hardware", "T4"))
    measured, extent = planned["calibration"], planned["extent"]
    assert torch.get_num_threads() == threads
    assert measured["samples"] == planned["memory"]["samples"] == 4
    assert measured["steps"] == calibration.STEPS
    step_flops = planned["flops"]["training_step"]["total"]
    assert measured["achieved_flops"] == pytest.approx(4 * step_flops / measured["step_seconds"])
    steps = extent["steps"] * measured["step_seconds"]
    evaluation = extent["embedded"] * measured["embedding_seconds"] / 2
    assert measured["seconds"] == pytest.approx(steps + evaluation)
    assert [entry["name"] for entry in planned["hardware"]] == ["T4"]


def test_calibration_without_enough_memory_is_refused():
    workload = replace(WORKLOAD, peak_bytes=2**60)
    with pytest.raises(ConfigError, match=r"a step of one worker needs 1073741824\.0 GiB"):
        calibration.calibrate(resolve("demo"), workload, identities=60, cameras=4)


def test_plan_refuses_hardware_without_the_memory_and_names_the_micro_batches_that_fit(
    tmp_path, capsys, monkeypatch
):
    def measure(config, identities, cameras, number):
        activations = 6 * 2**20 // number
        used = {"training_peak": 2**20 + activations, "activations": activations, "evaluation_peak": 2**20}
        return Memory.model_construct(**used, peak=used["training_peak"])

    monkeypatch.setattr(run_plan, "measure_micro_batches", measure)
    finding = Finding(check="rank", message="rank 5 counts queries of four")
    monkeypatch.setattr(
        run_plan, "check_where_possible", lambda *_: CheckReport(errors=(), warnings=(finding,))
    )
    base, known = known_hardware()["T4"], known_hardware()
    for name, mebibytes in (("Small", 3.1 / USABLE_MEMORY), ("Tiny", 0.5)):
        known[name] = base.model_copy(update={"memory_gib": mebibytes / 2**10})
    try:
        command = ["--recipe", "demo", "--workspace", str(tmp_path), "--plan"]
        assert train.main([*command, "--hardware", "Small", "--hardware", "Tiny"]) == 2
    finally:
        del known["Small"], known["Tiny"]
    (line,) = capsys.readouterr().err.splitlines()
    small, tiny = line.split("; Tiny: ")
    # The smallest divisor of a share of 24 samples with which 1 + 6 / n is at most 3.1.
    assert small.startswith("error: the run fits on none of the named hardware: Small: ")
    assert "take train.micro_batches=3, more train.workers, or" in small
    assert "micro_batches" not in tiny
    assert "rank 5" not in line


def test_plan_of_workers_with_a_sample_each_has_a_memory(clip, tmp_path, capsys):
    """The batch norm of the heads takes no single sample; in training it sees the whole batch."""
    options = [*small_run.options(clip, "train.workers"), "--workspace", str(tmp_path)]
    size = resolve("demo", small_run.settings(clip)).batch.size
    one, two = (plan(capsys, *options, "--workers", str(size // share))["memory"] for share in (1, 2))
    assert one["training_peak"] == two["training_peak"] > 0


def test_plan_of_an_elastic_run_has_the_memory_of_its_fewest_workers(clip, tmp_path, capsys):
    """A worker's share of the batch grows where others are lost."""

    def memory(workers):
        asked = small_run.options(clip, "train.workers")
        return plan(capsys, *asked, "--workspace", str(tmp_path), "--workers", workers)["memory"]

    assert memory("1-4") == memory("1") != memory("4")
    assert memory("1-4")["samples"] == 8


def test_expected_time_is_the_flops_divided_by_the_assumed_rate():
    gpu = expect_time(WORKLOAD, "A100-80GB")
    rate = 4 * 312e12 * gpu.utilisation
    assert gpu.step_seconds == pytest.approx(10 * 3e9 / rate)
    assert gpu.seconds == pytest.approx((100 * 10 * 3e9 + 1000 * 1e9) / rate)
    assert gpu.gpu_hours == pytest.approx(4 * gpu.seconds / 3600)
    assert gpu.fits


def test_workers_share_the_cpus_of_a_machine_and_its_memory():
    alone = expect_time(replace(WORKLOAD, workers=1), "Xeon-2-cores")
    shared = expect_time(WORKLOAD, "Xeon-2-cores")
    assert shared.seconds == alone.seconds
    assert (alone.needed_bytes, shared.needed_bytes) == (10 * 2**30, 40 * 2**30)
    assert (alone.fits, shared.fits) == (True, False)
    assert shared.gpu_hours == 0


def test_workers_that_share_a_gpu_share_its_speed_and_its_memory():
    workload = Workload(100, 64, 10**9, 1000, 10**8, 4, "bfloat16", 10**9)
    whole = expect_time(workload, "T4")
    shared = expect_time(replace(workload, gpus_per_worker=0.5), "T4")
    assert shared.seconds == pytest.approx(2 * whole.seconds)
    assert shared.gpu_hours == pytest.approx(whole.gpu_hours)
    assert (whole.needed_bytes, shared.needed_bytes) == (10**9, 2 * 10**9)
    double = expect_time(replace(workload, gpus_per_worker=2), "T4")
    assert double.seconds == whole.seconds
    assert double.gpu_hours == pytest.approx(2 * whole.gpu_hours)


def test_every_hardware_names_its_assumptions_and_its_source():
    text = HARDWARE.read_text()
    assert "ASSUMED" in text
    for name, hardware in known_hardware().items():
        assert set(hardware.peak_flops) == {"bfloat16", "float32"}, name
        assert hardware.source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "--hardware", "A100"], "hardware 'A100' is not known; use one of A100-80GB, H100-SXM"),
        (
            ["--plan", "--recipe", "rgbnt201-paper", "--set", "data.dataset=mine"],
            "'mine' has neither a samples",
        ),
        (
            ["--plan", "--set", "model.clip.source=RN50-quickgelu/openai"],
            "plain vision transformer is needed",
        ),
        (["--plan", "--set", "batch.size=400"], "batch.size=400 with batch.samples_per_identity=4 needs 100"),
    ],
)
def test_impossible_plan_names_the_reason(arguments, message, tmp_path, capsys):
    assert train.main([*arguments, "--workspace", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_options_of_a_plan_are_refused_without_plan(capsys):
    with pytest.raises(SystemExit):
        train.main(["--calibrate"])
    assert "--hardware and --calibrate belong to --plan" in capsys.readouterr().err


def test_plan_for_a_terminal_shows_every_part(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    arguments = ["--plan", "--workspace", str(tmp_path), "--hardware", "RTX-4090", "--calibrate"]
    assert train.main(arguments) == 0
    shown = capsys.readouterr().out
    for part in (
        "image tower",
        "GFLOP",
        "optimiser state",
        "missing view/train: the run itself makes it",
        "assumed",
        "is an assumption, not a measurement",
        "82.6 TFLOP/s",
        "GPU-",
        "measured here (processor",
        "Losses that train nothing: triplet/T.",
    ):
        assert part in shown
