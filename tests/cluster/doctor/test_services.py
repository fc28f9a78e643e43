"""What the doctor finds of MLflow, of the catalog, and of services that ask for no token."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from cluster.doctor.exposure import check_exposure, find_open_services
from cluster.doctor.services import check_catalog, check_mlflow
from data_catalog.checks.findings import Findings
from experiments.recipes import resolve
from experiments.run.run_options import RunOptions
from stmi.network import why_unreachable
from tests import kept_workspace


@contextmanager
def server(status: int, document: object, authorization: str | None = None):
    """Answers every request alike, with 401 those without the authorization; yields its host and port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            is_known = authorization in (None, self.headers["Authorization"])
            self.send_response(status if is_known else 401)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, *_):
            return

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def mlflow_findings(uri: str, asks=None) -> list[str]:
    findings = Findings()
    check_mlflow(uri, {"alpha": why_unreachable, "beta": why_unreachable} if asks is None else asks, findings)
    return [f"{finding.check}: {finding.message}" for finding in findings.errors]


def with_artifacts(location: str) -> dict:
    return {"experiment": {"experiment_id": "0", "artifact_location": location}}


@pytest.mark.parametrize("location", ["mlflow-artifacts:/0", "{folder}/not-yet-there/0", "file://{folder}"])
def test_server_whose_artifacts_can_be_written_has_no_finding(tmp_path, location):
    with server(200, with_artifacts(location.format(folder=tmp_path))) as address:
        assert mlflow_findings(f"http://{address}") == []


def test_mlflow_that_some_nodes_do_not_reach_is_named_with_them():
    with server(200, with_artifacts("mlflow-artifacts:/0")) as address:
        asks = {"alpha": why_unreachable, "beta": lambda url: "no route", "gamma": lambda url: "no route"}
        (finding,) = mlflow_findings(f"http://me:geheim@{address}", asks)
    assert "cannot be reached from beta, gamma (no route)" in finding
    assert "geheim" not in finding


@pytest.mark.parametrize(
    ("address", "variables", "authorization"),
    [
        ("http://{}", {"USERNAME": "me", "PASSWORD": "geheim"}, "Basic bWU6Z2VoZWlt"),
        ("http://{}", {"TOKEN": "geheim"}, "Bearer geheim"),
        ("http://me:geheim@{}", {}, "Basic bWU6Z2VoZWlt"),
    ],
)
def test_server_that_asks_who_is_there_is_told_as_by_mlflows_client(
    address, variables, authorization, monkeypatch
):
    document = with_artifacts("mlflow-artifacts:/0")
    with server(200, document, authorization) as found:
        for name, value in variables.items():
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        assert mlflow_findings(address.format(found)) == []


def test_server_that_does_not_let_the_user_in_says_so():
    with server(200, {}, "Basic bWU6Z2VoZWlt") as address:
        (finding,) = mlflow_findings(f"http://me:wrong@{address}")
    assert "lets nobody in without a right name and password (401); set MLFLOW_TRACKING_USERNAME" in finding
    assert "wrong" not in finding


def test_password_of_an_address_is_not_printed_with_an_error():
    with server(500, {}) as address:
        (finding,) = mlflow_findings(f"http://me:geheim@{address}")
    assert "500" in finding
    assert "geheim" not in finding


@pytest.mark.parametrize("document", [{}, [], {"experiment": None}])
def test_server_that_is_no_mlflow_is_named(document):
    with server(200, document) as address:
        (finding,) = mlflow_findings(f"http://{address}")
    assert "does not answer as MLflow does" in finding


def test_folder_of_artifacts_that_is_on_another_machine_is_an_error():
    with server(200, with_artifacts("/folder-of-the-server/artifacts")) as address:
        (finding,) = mlflow_findings(f"http://{address}")
    assert "/folder-of-the-server/artifacts, which this machine does not have" in finding


def test_artifacts_in_a_bucket_that_does_not_exist_are_an_error(object_storage):
    bucket = object_storage("x").replace("s3://lab/", "s3://no-such-bucket/")
    with server(200, with_artifacts(bucket)) as address:
        (finding,) = mlflow_findings(f"http://{address}")
    assert finding.startswith("mlflow_artifacts: ")
    assert "no-such-bucket" in finding


def test_database_is_not_asked_from_the_nodes():
    assert mlflow_findings("sqlite:////nowhere/mlflow.db") == []


OPEN_RAY = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.fixture
def open_head():
    """The address of a Ray that asks for no token."""
    command, environment = [sys.executable, "-c", OPEN_RAY], os.environ | {"RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


def test_head_that_asks_for_a_token_is_not_open(ray_session):
    assert find_open_services(ray.get_runtime_context().gcs_address, None) == {}


def test_head_without_a_token_is_found_and_judged_by_where_it_listens(open_head):
    head, port = open_head, int(open_head.rpartition(":")[2])
    with server(200, []) as dashboard:
        services = find_open_services(head, dashboard)
        assert services == {
            port: "the head of Ray",
            int(dashboard.rpartition(":")[2]): "the dashboard with its job API",
        }
    for addresses, is_own, errors, warnings in (
        (("0.0.0.0",), False, 1, 0),
        (("127.0.0.1", "10.0.0.1"), False, 1, 0),
        (("::",), True, 0, 1),
        (("127.0.0.1", "::1"), False, 0, 0),
    ):
        findings = Findings()
        check_exposure({port: services[port]}, {port: addresses}, is_own, findings)
        assert (len(findings.errors), len(findings.warnings)) == (errors, warnings), addresses
        for finding in (*findings.errors, *findings.warnings):
            assert "asks for no token" in finding.message


def test_dashboard_that_asks_for_a_token_is_not_open():
    with server(401, {}) as dashboard:
        assert find_open_services("127.0.0.1:1", dashboard) == {}


def test_damaged_and_missing_tables_of_the_catalog_are_errors(tmp_path):
    workspace = kept_workspace.unpack(tmp_path)
    findings = Findings()
    check_catalog(None, RunOptions.resolve(workspace), findings)
    assert findings.errors == []
    shard = sorted((workspace / "catalog").rglob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    check_catalog(None, RunOptions.resolve(workspace), findings)
    (finding,) = findings.errors
    assert shard.name in finding.message
    findings = Findings()
    recipe = resolve("rgbnt201-paper")
    check_catalog(recipe, RunOptions.resolve(workspace), findings)
    assert "data set 'rgbnt201'" in findings.errors[0].message
