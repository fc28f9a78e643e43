import urllib.error
import urllib.request

import mlflow
import pytest

from cluster import services
from tests.mlflow_server import free_port, serving


def note(client, experiment):
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "kept", "note.txt")
    return run


@pytest.mark.slow
def test_artifacts_are_found_without_the_server_and_older_ones_with_it(tmp_path):
    store, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "server"
    with serving(store, folder, free_port()) as address:
        client = mlflow.MlflowClient(address)
        run = note(client, client.create_experiment("new"))
        # As servers of older versions made experiments.
        older = note(client, client.create_experiment("older", "mlflow-artifacts:/1"))
        for made in (run, older):
            # What a click in MLflow's UI asks for.
            with urllib.request.urlopen(f"{address}/get-artifact?path=note.txt&run_uuid={made}") as answer:
                assert answer.read() == b"kept"
    assert len(list((folder / "earlier_artifacts").rglob("note.txt"))) == 1
    (kept,) = (folder / "artifacts").rglob("note.txt")
    direct = mlflow.MlflowClient(store)
    assert [item.path for item in direct.list_artifacts(run)] == ["note.txt"]
    assert direct.get_run(run).info.artifact_uri == kept.parent.as_uri()


def status(address: str, host: str) -> int:
    """How the server answers a request for its page under a name of its host."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host})) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_mlflow_answers_through_a_tunnel_and_no_page_of_another_host(tmp_path):
    """`ssh -L 15000:localhost:5000`: the browser names the port of its own machine."""
    with serving(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "server", port := free_port()) as address:
        api = f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0"
        for host in (f"127.0.0.1:{port}", "localhost:15000", "127.0.0.1:8080", "localhost", "[::1]:15000"):
            assert (host, status(api, host)) == (host, 200)
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "localhost.evil.example:5000",
            "127.0.0.1.evil:80",
        ):
            assert (host, status(api, host)) == (host, 403)


@pytest.fixture
def settings(tmp_path):
    ports = {"ray": {"gcs": 1, "dashboard": 2, "client": 3}, "mlflow": {"http": 4}}
    folders = dict.fromkeys(
        ("workspace", "token_file", "sessions", "artifacts", "earlier_artifacts"), tmp_path
    )
    return services.ClusterSettings(**folders, ports=ports, backend_store_uri="sqlite://")


@pytest.mark.parametrize("name", sorted(services.SERVICES))
def test_services_and_their_jobs_ask_this_machine_without_a_proxy(settings, monkeypatch, name):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intern.example")
    monkeypatch.delenv("no_proxy", raising=False)
    environment = services.SERVICES[name](settings).environment
    assert environment["http_proxy"] == "http://proxy.example:3128"
    assert environment["NO_PROXY"] == "intern.example,localhost,127.0.0.1,::1"
    assert environment["no_proxy"] == "localhost,127.0.0.1,::1"


def test_options_of_another_mlflow_server_are_none_of_this_one(settings, monkeypatch):
    for variable in ("MLFLOW_ARTIFACTS_ONLY", "MLFLOW_STATIC_PREFIX", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, "1")
    environment = services.SERVICES["mlflow"](settings).environment
    assert {name for name in environment if name.startswith("MLFLOW_")} == {
        "MLFLOW_BACKEND_STORE_URI",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
        "MLFLOW_DISABLE_TELEMETRY",
    }
