"""The demo, which makes its tables, over two hosts; its driver is killed, and another machine finishes it."""

import json

from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE
from experiments.tracking.journal import current_epochs
from tests.experiments import small_run
from tests.two_hosts.machine import kill


def test_demo_whose_driver_is_killed_ends_on_another_machine_with_the_tables_of_the_first(hosts, clip, local):
    workspace = hosts.store.uri("demo")
    demo = ["train.py", *small_run.options(clip), "--workspace", workspace, "--workers", "2"]
    before = hosts.actors()
    driver = hosts.spawn(hosts.first, *demo, "--json", **{LOCAL_SECONDS_VARIABLE: "0"})

    def is_checkpointed():
        names = [name for name in hosts.store.names("demo/train") if name.endswith("journal.jsonl")]
        lines = [line for name in names for line in hosts.store.read(f"demo/train/{name}").splitlines()]
        return any(json.loads(line).get("checkpoint") for line in lines)

    # Before the journal names a checkpoint, there is nothing to continue from.
    hosts.wait(driver, is_checkpointed)
    kill(driver)
    for name, actors in hosts.actors().items():
        started = actors - before[name]
        assert started["RayTrainWorker"] == 1
        # Makes tables.
        assert started["MapWorker"]
    tables = hosts.store.names("demo/catalog")
    third = hosts.boot("third")
    hosts.start_node(third, cpus=0)
    result = hosts.result(third, *demo)
    assert result["resumed"]
    assert hosts.store.names("demo/catalog") == tables
    run = f"demo/train/{result['run']}"
    journal = [json.loads(line) for line in hosts.store.read(f"{run}/journal.jsonl").decode().splitlines()]
    assert [event["epoch"] for event in current_epochs(journal)] == [1, 2, 3]
    # What came after the checkpoint is repeated, and nothing else.
    (again,) = [number for number, event in enumerate(journal) if event["event"] == "resumed"]
    repeated = [event["epoch"] for event in journal[again:] if event["event"] == "epoch"]
    assert repeated == list(range(journal[again]["epoch"] + 1, 4))
    # One process on one disk makes the same tables.
    assert json.loads(hosts.store.read(f"{run}/config.json"))["tables"] == local.digests
