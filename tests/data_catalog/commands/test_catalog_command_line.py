import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from data_catalog import commands
from data_catalog.__main__ import main
from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE
from tests import json_samples
from tests.data_catalog.folders import HEIGHT, WIDTH, image_path, sample_ids

COMMANDS = tuple(command.name for command in commands.COMMANDS)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """The JSON document that a command prints; fails unless it is all of standard output."""
    status = main([*map(str, arguments), "--json"])
    output = capsys.readouterr()
    assert status == 0, output.err
    return json.loads(output.out)


def read_error(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(list(map(str, arguments))) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err.strip().splitlines()[-1]


def test_commands_work_one_after_another(
    built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = ("--catalog", tmp_path / "catalog")
    source = Path(shutil.copytree(built.source, tmp_path / "source"))
    broken = image_path(source, sample_ids()[0], 2)
    broken.write_bytes(b"")

    samples = run(capsys, "ingest", "--source", source / "RGBNT201", *catalog, "--dataset", "small")
    assert (samples["dataset"], samples["samples"], samples["reused"]) == ("small", 27, False)
    assert samples["splits"]["train"] == {"samples": 12, "identities": 3}
    assert samples["quarantined"] == [
        {"file": str(broken.relative_to(source / "RGBNT201")), "reason": "is empty (zero bytes)"}
    ]
    masks = run(capsys, "masks", *catalog, "--segmenter", "grabcut", "--true-masks", source / "true_masks")
    assert masks["mean_iou"] > 0.8
    captions = run(capsys, "captions", *catalog, "--captioner", "readings", "--readings", source / "readings")
    assert captions["unused"] == 1
    size = ("--size", f"{HEIGHT}x{WIDTH}")
    views = run(capsys, "view", *catalog, "--no-text", "--split", "test", *size)["views"]
    assert {split: view["rows"] for split, view in views.items()} == {"test": 7}
    assert run(capsys, "masks", *catalog, "--true-masks", source / "true_masks")["reused"]

    shown = run(capsys, "show", "small", *catalog)
    assert [table["table"] for table in shown["tables"]] == ["samples", "masks", "captions", "view"]
    assert [table["digest"] for table in shown["tables"][:3]] == [
        samples["digest"],
        masks["digest"],
        captions["digest"],
    ]
    assert shown["tables"][1]["inputs"] == {"samples": samples["digest"]}
    assert read_error(capsys, "text-features", *catalog, "--clip", tmp_path / "no").startswith(
        "data_catalog text-features: clip"
    )
    assert "has no text_features table" in read_error(capsys, "view", *catalog, "--size", "8x4")

    assert main(["show", "small", *map(str, catalog)]) == 0
    assert samples["digest"][:12] in capsys.readouterr().out


def test_synthesize_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = [f"{split}_identities=2" for split in ("train", "validation", "test")]
    arguments = ["synthesize", "--out", tmp_path / "out", "--size", "32x16", "--set", "shots=1"]
    arguments += [part for count in counts for part in ("--set", count)]
    result = run(capsys, *arguments)
    assert result["samples"] == {"train": 8, "val": 8, "test": 8}
    assert run(capsys, *arguments)["reused"]
    assert "seed is 0 there and 1 here" in read_error(capsys, *arguments, "--seed", "1")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("shots=0", "shots: Input should be"),
        ("shoots=1", "shoots: Extra inputs"),
        ("shots", "write name=value"),
        ("=1", "--set '=1' sets nothing; write name=value"),
        (" =1", "--set ' =1' sets nothing; write name=value"),
        ("seed=99999999999999999999", "seed: Input should be less than or equal to 9223372036854775807"),
        (f"seed={'9' * 5000}", "seed: Unable to parse input string as an integer"),
        ("test_identities=1000000", "test_identities: Input should be less than or equal to 999999"),
    ],
)
def test_impossible_setting_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    assert message in read_error(capsys, "synthesize", "--out", tmp_path / "out", "--set", setting)
    assert not (tmp_path / "out").exists()


def test_data_set_whose_ingest_failed_does_not_have_to_be_told_from_the_only_one(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "ingest", "--source", source, "--catalog", tmp_path / "catalog", "--dataset", "small")
    broken = tmp_path / "broken.csv"
    broken.write_text("name,split,identity,rgb\na,test,1,none.jpg\n")
    more = ("--format", "manifest", "--dataset", "typo", "--catalog", tmp_path / "catalog")
    read_error(capsys, "ingest", "--source", broken, *more)
    assert (tmp_path / "catalog" / "typo").is_dir()
    # It takes the data set that has samples, and then lacks their masks.
    assert "28 of 28 samples have no mask" in read_error(
        capsys, "masks", "--segmenter", "files", "--masks", tmp_path, "--catalog", tmp_path / "catalog"
    )


def test_user_errors_are_one_line_with_status_2(
    built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    too_long = tmp_path / ("a" * 300)
    assert f"{too_long} cannot be used (File name too long); correct the path" in read_error(
        capsys, "ingest", "--source", too_long, "--catalog", tmp_path
    )
    assert "name one with --dataset" in read_error(capsys, "masks", "--catalog", tmp_path)
    assert "data set 'big' is not in catalog" in read_error(capsys, "show", "big", "--catalog", built.catalog)
    assert "run `python -m data_catalog ingest` first" in read_error(
        capsys, "masks", "--catalog", built.catalog, "--dataset", "small", "--samples-key", "abc"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example:\n  python -m data_catalog {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_documents_that_commands_print_keep_their_keys(
    command: commands.Command[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    json_samples.check(command.name.replace("-", "_"), command.result)
    with pytest.raises(SystemExit) as stop:
        main([command.name, "--json-schema"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["title"] == command.result.__name__


@pytest.mark.parametrize("size", ["64", "64x", "0x32", "axb", "-1x2"])
def test_image_size_must_be_height_times_width(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["view", "--catalog", "c", f"--size={size}"])
    assert stop.value.code == 2
    assert "write height x width" in capsys.readouterr().err


def test_process_of_its_own_prints_only_json(built: Any, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "data_catalog"]
    done = subprocess.run(
        [*command, "ingest", "--source", built.source, "--catalog", tmp_path, "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    # The data set's name is that of its format where none is given.
    assert json.loads(done.stdout)["dataset"] == "rgbnt201"
    failed = subprocess.run(
        [*command, "show", "nothing", "--catalog", tmp_path, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1


def test_two_processes_that_synthesize_the_same_data_set_both_get_it(tmp_path: Path) -> None:
    small = ["train_identities=4", "validation_identities=2", "test_identities=2", "shots=1"]
    settings = [part for setting in small for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "data_catalog",
        "synthesize",
        "--out",
        str(tmp_path / "data"),
        *settings,
        "--json",
    ]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    reports = [json.loads(process.communicate()[0]) for process in processes]
    assert sorted(report["reused"] for report in reports) == [False, True]
    assert reports[0]["samples"] == reports[1]["samples"]


def test_cluster_that_does_not_answer_is_named(
    built: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: Any) -> None:
        raise ConnectionError("timed out")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv(LOCAL_SECONDS_VARIABLE, "10")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    error = read_error(capsys, "masks", "--catalog", built.catalog, "--dataset", "small")
    assert "RAY_ADDRESS=10.0.0.1:6379: no Ray cluster answers there (timed out)" in error


def test_data_set_whose_name_leads_out_of_the_catalog_is_refused(
    built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Beside the catalog of the command lies one that the name would lead to.
    shutil.copytree(built.catalog, tmp_path / "other")
    catalog = ("--catalog", tmp_path / "catalog")
    (tmp_path / "catalog").mkdir()
    for name in ("../other/small", "../../etc", "..", "/etc", "a b", ""):
        refused = f"data set {name!r} cannot name a folder; use letters, digits"
        view = ("view", *catalog, "--dataset", name, "--size", "32x16", "--no-masks", "--no-text")
        if name:
            assert refused in read_error(capsys, *view)
            assert refused in read_error(capsys, "masks", *catalog, "--dataset", name)
            assert refused in read_error(
                capsys, "ingest", *catalog, "--dataset", name, "--source", built.source
            )
        assert f"data set {name!r} is not in catalog" in read_error(capsys, "show", name, *catalog)
    assert list((tmp_path / "catalog").iterdir()) == []


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("7x7", "size 7x7 is no whole number of square patches of 8 pixels or more, so no model takes it"),
        ("32x12", "size 32x12 is no whole number of square patches"),
        ("257x128", "size 257x128 is no whole number of square patches"),
        ("8192x8192", "size 8192x8192: a model's image has at most 4096 pixels a side"),
    ],
)
def test_view_of_a_size_that_no_model_takes_is_refused(
    size: str, message: str, built: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("view", "--catalog", built.catalog, "--dataset", "small", "--no-masks", "--no-text")
    before = sorted((built.catalog / "small" / "view").iterdir())
    assert message in read_error(capsys, *asked, "--size", size)
    assert sorted((built.catalog / "small" / "view").iterdir()) == before


@pytest.mark.parametrize("number", ["99999999999999999999", "1000001"])
def test_numbers_beyond_all_bounds_are_refused(
    number: str, built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--catalog", built.catalog, "--dataset", "small")
    message = "Input should be less than or equal to 1000000"
    for option in ("--samples-per-shard", "--validation-identities"):
        asked = ("ingest", *small, "--source", built.source, option, number)
        assert message in read_error(capsys, *asked)
    view = ("view", *small, "--size", "32x16", "--no-masks", "--no-text", "--samples-per-shard", number)
    assert message in read_error(capsys, *view)
    asked = ("checks", "small", "--catalog", built.catalog, "--samples-per-identity", number)
    assert message in read_error(capsys, *asked)
