import json
import os
import shlex
import signal
import sys

import pytest

from experiments import ablate, demo, evaluate, recipes, report, sweep_sfm, train
from experiments.command_line import USAGE_STATUS, report_command, run_command
from experiments.experiment_config import ConfigError
from experiments.planning import expected_tables
from experiments.run.run_result import FailedRunError, InterruptedRunError, StoppedError
from experiments.settings_list import SettingsList
from tests.experiments import made_up


@pytest.mark.parametrize(
    ("script", "record"),
    [
        (train, train.printed_training()),
        (demo, train.RunReport),
        (ablate, ablate.printed_ablation()),
        (sweep_sfm, sweep_sfm.printed_sweep()),
        (evaluate, evaluate.PrintedEvaluation),
    ],
)
def test_scripts_print_the_schema_of_their_json(script, record, capsys):
    with pytest.raises(SystemExit) as ended:
        script.main(["--json-schema"])
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    for part in (record, SettingsList):
        definitions = part.model_json_schema(mode="serialization").pop("$defs", {})
        assert printed["$defs"].items() >= definitions.items()
    named = {part["$ref"].rpartition("/")[2] for part in printed["anyOf"]}
    assert named == {record.__name__, "SettingsList"}


@pytest.mark.parametrize("script", [train, demo, ablate, sweep_sfm, evaluate])
def test_scripts_list_the_settings_of_a_recipe_with_its_changes(script, capsys):
    arguments = ["--list-settings", "--recipe", "rgbnt100-paper", "--set", "sfm.sharing=per_head", "--json"]
    assert script.main(arguments) == 0
    listed = SettingsList.model_validate_json(capsys.readouterr().out)
    values = {setting.name: (setting.value, setting.recipe) for setting in listed.settings}
    assert values["model.sfm.sharing"] == ("per_head", "per_layer")
    assert values["train.epochs"] == (20, 20)


def test_a_setting_that_is_listed_and_unknown_is_refused_in_one_line(capsys):
    assert ablate.main(["--list-settings", "--set", "sfm.sharring=per_head"]) == USAGE_STATUS
    error = capsys.readouterr().err
    assert error == "error: setting model.sfm.sharring is unknown; did you mean model.sfm.sharing?\n"


def test_demo_refuses_to_plan_instead_of_training(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--plan"])
    assert "unrecognized arguments: --plan" in capsys.readouterr().err


@pytest.mark.parametrize("run", [[], ["--run", "runs/train/demo-seed0-1a2b3c4d"]])
def test_report_of_a_run_refuses_the_option_of_a_studys(run, capsys):
    assert report.main([*run, "--tracking-uri", "somewhere"]) == USAGE_STATUS
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = "error: --tracking-uri=somewhere belongs to a study; add --study NAME, or leave it out\n"
    assert captured.err == expected


def test_json_is_all_that_a_script_prints_and_its_status_is_that_of_the_result(capsys):
    result = made_up.sweep_result(missing=1)

    def command():
        sys.stdout.write("a library prints something")
        return result

    assert run_command(command, True, print, lambda result: result.missing) == 1
    assert json.loads(capsys.readouterr().out) == json.loads(result.to_json())


def test_an_error_is_one_line_without_a_traceback(capsys):
    def command():
        raise ConfigError("seed=-1")

    assert run_command(command, True, print) == USAGE_STATUS
    assert capsys.readouterr() == ("", "error: seed=-1\n")


@pytest.mark.parametrize("kind", [FailedRunError, StoppedError])
def test_a_run_that_failed_is_no_fault_of_the_command_line(kind, capsys):
    def command():
        raise kind("run demo-1 failed")

    assert run_command(command, True, print) == 1
    assert capsys.readouterr() == ("", "error: run demo-1 failed\n")


def test_a_run_that_was_stopped_by_sigterm_asks_to_come_again(capsys):
    def command():
        raise InterruptedRunError("run demo-1 was stopped")

    # EX_TEMPFAIL of sysexits.h
    assert run_command(command, True, print) == os.EX_TEMPFAIL
    assert capsys.readouterr() == ("", "error: run demo-1 was stopped\n")


def test_an_interrupt_is_one_line_that_says_how_to_continue(capsys):
    def command():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_command(command, True, print)
    assert ended.value.code == 128 + signal.SIGINT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "run the same command again to continue" in captured.err
    assert captured.err.count("\n") == 1


SPACED = "/data of the lab/runs"


@pytest.mark.parametrize("workspace", [SPACED, "s3://lab/runs?endpoint_override=host:9000&scheme=http"])
def test_printed_commands_can_be_pasted_into_a_shell_whatever_a_path_holds(workspace):
    assert shlex.split(report_command("demo-table3", workspace)) == [
        *("python", "experiments/report.py", "--study", "demo-table3", "--workspace", workspace)
    ]
    config = recipes.resolve("rgbnt201-paper", [f"model.clip.source={SPACED}", "model.sfm=off"])
    commands = {
        name: shlex.split(expected_tables._command(config, name, workspace))
        for name in ("samples", "masks", "captions", "text_features", "view/train")
    }
    for command in commands.values():
        assert command[:3] == ["python", "-m", "data_catalog"]
        assert command[-4:] == ["--catalog", workspace, "--dataset", "rgbnt201"]
    assert commands["text_features"][3:6] == ["text-features", "--clip", SPACED]
    assert commands["view/train"][3:9] == ["view", "--split", "train", "--size", "256x128", "--no-masks"]
