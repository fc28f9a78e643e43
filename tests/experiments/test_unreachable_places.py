"""Places that cannot be used are refused in one line, before anything else is done."""

import time

import pytest

from data_catalog.errors import StorageAwayError
from data_catalog.records import Record
from data_catalog.storage import patience
from experiments import ablate, sweep_sfm, train
from experiments.command_line import run_command, run_options

SCRIPTS = [(train, []), (sweep_sfm, ["--trials", "1"]), (ablate, ["--table", "3"])]
LIMIT_SECONDS = 30


@pytest.fixture
def refusal(capsys):
    """What a script says that refuses a command line."""

    def say(script, *arguments):
        began = time.monotonic()
        assert script.main(list(arguments)) == 2
        assert time.monotonic() - began < LIMIT_SECONDS
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return say


@pytest.fixture
def workspace(tmp_path):
    """A folder in which nothing is written."""
    yield tmp_path / "runs"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--workspace", "--storage", "--catalog"])
@pytest.mark.parametrize(("script", "given"), SCRIPTS)
def test_bucket_that_does_not_exist(script, given, option, object_storage, workspace, refusal):
    nowhere = object_storage("runs").replace("s3://lab/", "s3://no-such-bucket/")
    line = refusal(script, *given, "--workspace", str(workspace), option, nowhere)
    assert line == (
        "error: bucket no-such-bucket of s3://no-such-bucket does not exist; correct its name, or make it"
    )


@pytest.mark.parametrize("option", ["--workspace", "--storage", "--catalog"])
def test_server_that_does_not_answer(option, workspace, refusal, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    line = refusal(train, "--workspace", str(workspace), option, f"s3://away{option}/x?region=us-east-1")
    assert line.startswith(f"error: away{option}/x cannot be reached (")
    assert line.endswith("check its address, your rights and the network")


def test_missing_credentials(workspace, refusal, monkeypatch, private_store):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", private_store.environment["AWS_ENDPOINT_URL"])
    line = refusal(train, "--workspace", str(workspace), "--storage", private_store.uri("x"))
    assert "cannot be reached: there are no credentials for it" in line
    assert "Set AWS_ACCESS_KEY_ID" in line
    assert "role" in line


def test_storage_that_went_away_is_no_wrong_input(capsys):
    def train_and_lose_it() -> Record:
        raise StorageAwayError("s3://lab has not answered")

    assert run_command(train_and_lose_it, False, print) == 1
    assert capsys.readouterr().err == "error: s3://lab has not answered\n"


def test_storage_patience_is_that_of_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "WORKER_VARIABLES", workers := {})
    given = ["--workspace", str(tmp_path)]
    run_options(train.parser().parse_args(given))
    assert list(workers.values()) == ["600.0"]
    run_options(train.parser().parse_args([*given, "--storage-patience", "20"]))
    assert list(workers.values()) == ["20.0"]


@pytest.mark.parametrize("text", ["-1", "long", "nan", "inf"])
def test_storage_patience_is_a_number_of_seconds(text, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--storage-patience", text])
    assert ended.value.code == 2
    assert f"--storage-patience: {text}: expected a number of seconds" in capsys.readouterr().err
