"""A node that dies while it trains."""

import json

import pytest


@pytest.mark.fault
def test_run_that_loses_a_node_ends_as_if_undisturbed_once_it_is_back(hosts, options, local):
    before = hosts.actors()
    storage = ["--storage", hosts.store.uri("lost-node")]
    process = hosts.spawn(hosts.first, "train.py", *options, *storage, "--workers", "2", "--json")

    def is_checkpointed():
        texts = [path.read_text() for path in hosts.first.path("runs", "train").rglob("journal.jsonl")]
        # The last line may be being written.
        lines = [line for text in texts for line in text.rpartition("\n")[0].splitlines()]
        return any(json.loads(line).get("checkpoint") for line in lines)

    hosts.wait(process, is_checkpointed)
    hosts.kill_raylet(hosts.second)
    hosts.start_node(hosts.second)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    # One before the kill, and one after.
    assert {name: (new - before[name])["RayTrainWorker"] for name, new in hosts.actors().items()} == {
        "first": 2,
        "second": 2,
    }
    result, expected = json.loads(out), json.loads(local.finished_result.to_json())
    assert result["resumed"]
    for part in ("metrics", "choices", "reported", "untrained"):
        assert result[part] == expected[part], part
