import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from experiments import chaos
from experiments.faults.mlflow_server import LOOPBACK
from experiments.faults.storage_gate import StorageGate
from tests.experiments import small_run


@pytest.fixture
def storage():
    """The address of a server that gives back what it is sent, and keeps connections open."""

    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Print no line for every request."""

    with ThreadingHTTPServer((LOOPBACK, 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_address[1]}"
        server.shutdown()


def put(url, body):
    request = urllib.request.Request(url, data=body, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def test_gate_passes_everything_on_answers_503_while_it_is_shut_and_opens_again(storage):
    body = bytes(range(256)) * 4000
    with StorageGate(storage) as gate:
        assert put(gate.url, body) == body
        with gate.shut():
            for _ in range(3):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    put(gate.url, b"x")
                assert refused.value.code == 503
        assert put(gate.url, body) == body
        assert gate.refused == 3


def test_open_connection_ends_when_the_gate_is_shut(storage):
    with StorageGate(storage) as gate:
        connection = HTTPConnection(gate.url.removeprefix("http://"), timeout=10)
        for _ in range(2):
            connection.request("PUT", "/", b"x")
            assert connection.getresponse().read() == b"x"
        with gate.shut():
            time.sleep(0.5)
            with contextlib.suppress(ConnectionError):
                connection.request("PUT", "/", b"x")
            with pytest.raises(ConnectionError):
                connection.getresponse()


@pytest.mark.fault
@pytest.mark.slow
def test_run_whose_storage_goes_away_ends_as_undisturbed(clip, workspace, private_store, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in private_store.environment.items():
        monkeypatch.setenv(name, value)
    remote = private_store.uri("chaos")
    options = ["--workers", "1", "--catalog", str(workspace / "catalog"), "--fault", "storage"]
    given = [*small_run.arguments(clip, remote, *options, "--set", "train.epochs=16"), "--away-seconds", "8"]
    assert chaos.main(given) == 0
    [outcome] = json.loads(capsys.readouterr().out)["outcomes"]
    assert (outcome["lost"], outcome["equal_weights"], outcome["starts"]) == ([], True, 1)
    assert 8 < outcome["seconds_until_training"][0] < 60
    assert outcome["not_tried"] is None
