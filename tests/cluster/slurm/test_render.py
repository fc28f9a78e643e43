"""The batch script that `render.py` prints, without Slurm."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.slurm import render, wait_for_nodes

ROOT = Path(__file__).parents[3]
TRAIN = ("--", "experiments/train.py", "--recipe", "demo")


def rendered(capsys, *arguments):
    assert render.main(list(arguments)) == 0
    return capsys.readouterr().out


def directives(script):
    return {
        key: value
        for line in script.splitlines()
        if line.startswith("#SBATCH ")
        for key, _, value in [line.removeprefix("#SBATCH --").partition("=")]
    }


def test_script_asks_for_what_the_options_say(capsys):
    given = (
        "--nodes",
        "4",
        "--gpus-per-node",
        "2",
        "--cpus-per-node",
        "16",
        "--mem",
        "64G",
        "--time",
        "8:00:00",
    )
    found = directives(rendered(capsys, *given, "--partition", "gpu", "--sbatch=--qos=low", *TRAIN))
    expected = {"nodes": "4", "gpus-per-node": "2", "cpus-per-task": "16", "mem": "64G", "time": "8:00:00"}
    expected |= {"partition": "gpu", "qos": "low", "ntasks-per-node": "1", "job-name": "train-demo"}
    assert found.items() >= (expected | {"requeue": "", "signal": "B:USR1@180"}).items()
    assert "account" not in found


def test_script_is_valid_for_the_shell(capsys):
    script = rendered(capsys, *TRAIN, "--set", "a='b c'; echo \"$HOME\"")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("value", ["a b", "it's", '"$HOME"', "$(touch /tmp/x)", "seed={task}", "{task}"])
def test_command_reaches_the_script_as_it_was_given(capsys, value):
    script = rendered(capsys, "--array", "0-3", *TRAIN, "--set", value)
    (line,) = [line for line in script.splitlines() if line.startswith("python experiments/train.py")]
    shown = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}; {line.removesuffix(' &')}"],
        env={"SLURM_ARRAY_TASK_ID": "2", "HOME": "/root"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.splitlines() == [*TRAIN[1:], "--set", value.replace("{task}", "2")]


def test_array_has_a_job_and_a_log_for_each_task(capsys):
    found = directives(rendered(capsys, "--array", "0-4", *TRAIN))
    assert (found["array"], found["output"]) == ("0-4", "train-demo-%A-%a.log")
    assert "array" not in directives(rendered(capsys, *TRAIN))


@pytest.mark.parametrize(
    "given",
    [("--recipe", "ours/v 2.yaml"), ("--recipe=ours/v 2.yaml", "--set", "seed=1"), ("--recipe", "v 2")],
)
def test_job_and_log_have_a_name_that_is_no_path(capsys, given):
    found = directives(rendered(capsys, "--", "experiments/train.py", *given))
    assert (found["job-name"], found["output"]) == ("train-v-2", "train-v-2-%j.log")


def test_script_is_written_to_a_file(capsys, tmp_path):
    assert rendered(capsys, "--out", str(tmp_path / "job.sh"), *TRAIN) == ""
    assert (tmp_path / "job.sh").read_text() == rendered(capsys, *TRAIN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--",), "the command is nothing; expected a script of"),
        (("--", "python", "experiments/train.py"), "the command is python experiments/train.py; expected a"),
        (("--", "experiments/trian.py"), "experiments/trian.py; expected a script"),
        ((*TRAIN, "--set", "seed={task}"), "needs --array"),
        (("--name", "my run", *TRAIN), "--name 'my run': expected letters"),
        (("--out", "/nosuch/job.sh", *TRAIN), "No such file or directory: '/nosuch/job.sh'"),
    ],
)
def test_command_that_cannot_run_is_refused_in_one_line(capsys, arguments, message):
    assert render.main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize("option", [("--nodes", "0"), ("--nodes", "x"), ("--time", "tomorrow")])
def test_impossible_options_are_refused(capsys, option):
    with pytest.raises(SystemExit, match="2"):
        render.main([*option, *TRAIN])
    assert f"{option[1]}: expected" in capsys.readouterr().err


def test_nodes_that_do_not_come_are_counted(monkeypatch, capsys):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        unused_port = one.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port}")
    assert wait_for_nodes.main(["2", "--seconds", "1"]) == 1
    assert "error: 0 of 2 Ray nodes are at 127.0.0.1:" in capsys.readouterr().err


def test_script_is_found_without_the_tree_on_the_path(tmp_path):
    shown = subprocess.run(
        [sys.executable, str(ROOT / "cluster/slurm/render.py"), *TRAIN],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"cd {ROOT}" in shown
    assert shutil.which("bash")
