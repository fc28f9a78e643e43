"""What `cluster/local.py` reads of the environment, and what it prints for a shell; nothing is started."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import local
from cluster.cluster_status import EndedProcesses, ServiceStatus, StartedCluster
from cluster.local_cluster import EXPORTED, LocalCluster

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "cluster" / "local.py", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_workspace_of_the_environment_is_that_of_the_cluster(tmp_path):
    named = run("status", "--json", STMI_WORKSPACE=str(tmp_path / "of the lab"))
    assert f'"folder":"{tmp_path}/of the lab/cluster"' in named.stdout.replace('": "', '":"')
    for given in (run("status", "--workspace", "", STMI_WORKSPACE=""), run("status", STMI_WORKSPACE="")):
        assert given.returncode == 1, given.stderr
    home = run("status", "--json", STMI_WORKSPACE="~/runs", HOME=str(tmp_path))
    assert f"{tmp_path}/runs/cluster" in home.stdout
    option = run("status", "--json", "--workspace", str(tmp_path / "own"), STMI_WORKSPACE="/nosuch")
    assert "/own/cluster" in option.stdout


@pytest.mark.parametrize("where", ["environment", "option"])
def test_a_workspace_that_is_no_folder_is_refused(where):
    uri = "s3://lab/runs"
    done = run("up", STMI_WORKSPACE=uri) if where == "environment" else run("up", "--workspace", uri)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"local.py up: error: argument --workspace: {uri}")


def started(tmp_path: Path, **changes) -> StartedCluster:
    well = ServiceStatus(state="well", process=1, log=str(tmp_path / "a log"))
    values = {
        "state": "up",
        "services": {"ray": well, "mlflow": well},
        "folder": str(tmp_path),
        "ray_address": "127.0.0.1:6379",
        "dashboard": "http://127.0.0.1:8265",
        "mlflow": "http://127.0.0.1:5000",
        "backend": "sqlite:///x",
        "environment": {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "my runs" / "token")},
    }
    return StartedCluster(**values | changes)


def evaluated(text: str, name: str, environment: dict[str, str]) -> str:
    """The value of a variable in a shell that has evaluated a text."""
    script = f'eval {shlex.quote(text)}; printf %s "${{{name}-unset}}"'
    return subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_what_up_exports_down_unsets(tmp_path, capsys):
    local.show(started(tmp_path), exports=True)
    text = capsys.readouterr().out
    assert evaluated(text, "RAY_AUTH_TOKEN_PATH", {}) == f"{tmp_path}/my runs/token"
    local.show(EndedProcesses(ended={"ray": 7, "mlflow": 3}), exports=False)
    text = capsys.readouterr().out
    for name in EXPORTED:
        assert evaluated(text, name, {name: "of the cluster", "PATH": os.environ["PATH"]}) == "unset"


def test_printed_commands_are_those_of_a_shell_where_a_path_has_a_space(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local.sys, "executable", "/opt/my tools/bin/python")
    earlier = f"sqlite:///{tmp_path}/my runs/mlflow.db"
    local.show(started(tmp_path, earlier_backend=earlier), exports=True)
    lines = [line.lstrip("# ").rstrip("\\ ") for line in capsys.readouterr().out.splitlines()]
    (submit,) = (line for line in lines if "job submit" in line)
    assert shlex.split(submit)[0] == "/opt/my tools/bin/ray"
    (again,) = (line for line in lines if "--backend-store-uri" in line)
    assert shlex.split(again.split("`")[3])[-1] == earlier


@pytest.mark.parametrize("proxy", ["http_proxy", "ALL_PROXY"])
def test_where_a_proxy_is_set_up_exports_that_this_machine_is_asked_without_it(tmp_path, monkeypatch, proxy):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    ports = {"ray": {"gcs": 1, "dashboard": 2, "client": 3}, "mlflow": {"http": 4}}

    def exported() -> dict[str, str]:
        cluster = LocalCluster(tmp_path, services={})
        cluster._state = local_state(ports)
        return cluster._describe().environment

    assert not exported().keys() & {"NO_PROXY", "no_proxy"}
    monkeypatch.setenv(proxy, "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intern.example")
    assert exported()["NO_PROXY"] == "intern.example,localhost,127.0.0.1,::1"


def local_state(ports):
    from cluster.cluster_state import ClusterState  # noqa: PLC0415

    return ClusterState(host="here", backend="sqlite:///x", ports=ports, processes={})
