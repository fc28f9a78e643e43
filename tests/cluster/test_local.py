"""The local cluster, with a real Ray head and a real MLflow server."""

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import psutil
import pytest

from experiments.tracking.mlflow_store import local_store

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
JOB = """
import os
import experiments, mlflow, ray

ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)

@ray.remote
def where():
    import experiments
    return experiments.__file__

for file in (experiments.__file__, ray.get(where.remote())):
    print("RUNS", open(file).read().strip(), os.path.exists("runs"))
print("WORKSPACE", os.environ["STMI_WORKSPACE"])
with mlflow.start_run(run_name="from a job"):
    mlflow.log_metric("answer", 42)
    mlflow.log_text("kept", "note.txt")
"""


def local(command: str, workspace: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "cluster" / "local.py", command, "--workspace", workspace, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def up(workspace: Path) -> dict:
    done = local("up", workspace, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def submit(cluster: dict, folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [RAY, "job", "submit", "--address", cluster["dashboard"], "--working-dir", ".", "--", *command],
        cwd=folder,
        env=os.environ | cluster["environment"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ask(url: str, method: str = "GET", body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def without_processes(status: dict) -> dict:
    services = {name: service | {"process": None} for name, service in status["services"].items()}
    return status | {"services": services}


def note_of(run_id: str, workspace: Path) -> str:
    client = mlflow.MlflowClient(local_store(workspace))
    assert client.get_run(run_id).data.metrics == {"answer": 42}
    return Path(client.download_artifacts(run_id, "note.txt", str(workspace))).read_text()


def known_processes(cluster: dict) -> list[int]:
    state = json.loads((Path(cluster["folder"]) / "state.json").read_text())
    return [number for keys in state["processes"].values() for number, _ in keys]


@pytest.fixture
def workspace(tmp_path):
    yield tmp_path / "workspace"
    done = local("down", tmp_path / "workspace")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_cluster_is_started_used_repaired_and_ended(workspace, tmp_path):
    cluster = up(workspace)
    token_file = Path(cluster["environment"]["RAY_AUTH_TOKEN_PATH"])
    token = token_file.read_text()
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(token_file.parent.stat().st_mode) == 0o700
    logs = [Path(service["log"]).read_text() for service in cluster["services"].values()]
    commands = [" ".join(psutil.Process(number).cmdline()) for number in known_processes(cluster)]
    assert not any(token in text for text in (*logs, *commands, json.dumps(cluster)))

    # A client without the token is refused.
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(f"{cluster['dashboard']}/api/jobs/")
    assert refused.value.code == 401

    # The submitted tree runs, on driver and workers, although this project is installed; runs reach MLflow.
    tree = tmp_path / "tree"
    (tree / "experiments").mkdir(parents=True)
    (tree / "experiments" / "__init__.py").write_text("# the submitted tree\n")
    (tree / "job.py").write_text(JOB)
    (tree / ".gitignore").write_text("runs/\n")
    (tree / "runs").mkdir()
    (tree / "runs" / "data").write_text("stays here")
    job = submit(cluster, tree, "python", "job.py")
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count("RUNS # the submitted tree False") == 2
    assert f"WORKSPACE {workspace}" in job.stdout
    found = ask(f"{cluster['mlflow']}/api/2.0/mlflow/runs/search", "POST", {"experiment_ids": ["0"]})
    (run,) = found["runs"]
    assert run["info"]["run_name"] == "from a job"
    assert note_of(run["info"]["run_id"], workspace) == "kept"

    # A tree that is too large is refused before it is packed.
    (tree / "weights.bin").touch()
    os.truncate(tree / "weights.bin", 101 * 2**20)
    refusal = submit(cluster, tree, "python", "job.py")
    assert refusal.returncode != 0
    assert "101.0 MiB  weights.bin" in refusal.stderr
    assert "Uploading package" not in refusal.stdout + refusal.stderr

    # A second `up` starts nothing.
    assert up(workspace) == cluster
    assert local("status", workspace).returncode == 0

    # A service that died is found, and started again on the same port; the other keeps running.
    before = known_processes(cluster)
    for victim, other in (("mlflow", "ray"), ("ray", "mlflow")):
        os.kill(cluster["services"][victim]["process"], signal.SIGKILL)
        status = local("status", workspace, "--json")
        assert status.returncode == 1
        seen = json.loads(status.stdout)
        assert (seen["state"], seen["services"][victim]["state"]) == ("partly up", "died")
        repaired = up(workspace)
        assert without_processes(repaired) == without_processes(cluster)
        assert repaired["services"][other] == cluster["services"][other]
        assert repaired["services"][victim]["process"] != cluster["services"][victim]["process"]
        cluster = repaired
    before += known_processes(cluster)

    ended = json.loads(local("down", workspace, "--json").stdout)["ended"]
    assert min(ended.values()) > 0
    assert [number for number in before if psutil.pid_exists(number)] == []
    left = [
        p.pid for p in psutil.process_iter(["cmdline"]) if str(workspace) in " ".join(p.info["cmdline"] or ())
    ]
    assert left == []
    assert not token_file.exists()
    assert list(Path(cluster["folder"]).glob("logs/session_*/*.log"))
    status = local("status", workspace, "--json")
    assert (status.returncode, json.loads(status.stdout)["state"]) == (1, "down")
    # A client of the database needs no server.
    assert note_of(run["info"]["run_id"], workspace) == "kept"
    assert json.loads(local("down", workspace, "--json").stdout)["ended"] == {"ray": 0, "mlflow": 0}
