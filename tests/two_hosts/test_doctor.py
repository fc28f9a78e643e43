"""The doctor on two nodes."""

import json


def test_doctor_names_what_two_nodes_lack_and_measures_their_network(hosts):
    # The workspace is on the first node's disk, and nothing listens where MLflow is said to be.
    options = ["--catalog", hosts.store.uri("catalog"), "--tracking-uri", "http://127.0.0.1:9"]
    process = hosts.first.start(
        *("python", "-m", "cluster.doctor", "--json", *options), environment=hosts.environment
    )
    printed, errors = process.communicate(timeout=240)
    found = json.loads(printed)
    assert {node["node"].partition(" ")[0] for node in found["nodes"]} == {"first", "second"}
    assert len({node["code"] for node in found["nodes"]} - {None}) == 1
    assert found["all_reduce"]["nodes"] == 2
    assert found["all_reduce"]["bytes_per_second"] > 0
    # And nothing else: the nodes are alike, and Ray asks for the token.
    messages = {finding["check"]: finding["message"] for finding in found["errors"]}
    assert list(messages) == ["places", "mlflow"]
    assert "is not shared by the nodes of the Ray cluster: second (127.0.0.3)" in messages["places"]
    assert "from first (127.0.0.2), second (127.0.0.3)" in messages["mlflow"]
    assert (process.returncode, found["not_checked"]) == (1, {})
    assert hosts.environment["RAY_AUTH_TOKEN"] not in errors + printed
