"""The ends of Ray's processes in one line, from exceptions as Ray makes them."""

import numpy as np
import pytest
import torch
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from data_catalog.errors import CatalogError
from data_catalog.ray_failures import describe_failure, ran_out_of_memory

SHORT_OF_MEMORY = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: b) "
    "was 15.21GB used / 16.00GB limit (0.951)\nOOM kill reason: Memory usage exceeded threshold\nConsidered "
    "workers: [\nSelected to kill: (Task: ...)\n]\nRefer to the documentation on how to address it."
)
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
    "detail: Worker unexpectedly exits with a connection error code 2. End of file. Common causes: (1) the "
    "process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called"
)
LOST = "The actor died because its node has died. Node Id: 0ab1\n\tthe node was preempted"


def died(message: str) -> exceptions.ActorDiedError:
    """What Ray raises for an actor that ended: the message of its core behind facts of the actor."""
    return exceptions.ActorDiedError(
        ActorDiedErrorContext(
            error_message=message,
            class_name="ShardWriter",
            actor_id=b"\1" * 16,
            pid=7,
            node_ip_address="10.0.0.7",
        )
    )


def raised(error: Exception) -> exceptions.RayTaskError:
    """What Ray raises for an exception of a task or an actor's method."""
    return exceptions.RayTaskError(
        "f()", "Traceback (most recent call last):\n  File x\nE: y", error, "f", 1, "ip"
    )


MEMORY = "because the memory of the node ran out (15.21GB of 16.00GB in use); lower it"


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (exceptions.OutOfMemoryError(SHORT_OF_MEMORY), ["on node 10.0.0.7", MEMORY]),
        (died(SHORT_OF_MEMORY), ["on node 10.0.0.7", MEMORY]),
        (raised(MemoryError()), ["memory ran out", "lower it"]),
        (
            raised(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore")),
            ["CUDA out of memory", "lower it"],
        ),
        (exceptions.ObjectStoreFullError("full"), ["object store is full", "lower it"]),
        (died(KILLED), ["on node 10.0.0.7", "was killed or crashed", "memory", "lower it"]),
        (exceptions.WorkerCrashedError(), ["was killed or crashed", "lower it"]),
        (died(LOST), ["a node of the cluster was lost", "10.0.0.7", "ray status"]),
        (exceptions.NodeDiedError("node died, ip: 10.0.0.9"), ["a node of the cluster was lost", "10.0.0.9"]),
        (exceptions.ObjectLostError("ab", None, ""), ["was lost with a process or a node"]),
        (exceptions.OwnerDiedError("ab", None, ""), ["was lost with a process or a node"]),
        (
            exceptions.RaySystemError("raylet gone", "Traceback (most\nmany\nlines"),
            ["Ray itself", "raylet gone"],
        ),
        (exceptions.LocalRayletDiedError(), ["Ray itself"]),
        (exceptions.RuntimeEnvSetupError("pip\nno space"), ["environment of the workers", "no space"]),
        (exceptions.OutOfDiskError("full"), ["disk of Ray's temporary folder", "--temp-dir"]),
        (WorkerGroupError("page", {0: RuntimeError("peer"), 1: died(KILLED)}), ["was killed or crashed"]),
        (
            WorkerGroupError("page", {0: WorkerHealthCheckFailedError("w", died(LOST))}),
            ["node of the cluster"],
        ),
        (ControllerError(WorkerGroupStartupTimeoutError(4)), ["no room for the workers", "fewer workers"]),
        (
            WorkerGroupError(
                "page", {0: UserExceptionWithTraceback(KeyError("pixels"), "Traceback (m\n  F\nK")}
            ),
            ["KeyError: 'pixels'"],
        ),
        (raised(ValueError("the images are upside down\nin all rows")), ["the images are upside down"]),
        (TrainingFailedError("a page\nof text"), ["a page"]),
        (RuntimeError("Traceback (most recent call last):\n  File x\nValueError: y"), ["ValueError: y"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_end_of_a_process_is_one_line_with_its_cause_and_a_remedy(error, parts):
    line = describe_failure(error, "lower it")
    assert "\n" not in line
    assert "Traceback" not in line
    for part in parts:
        assert part in line


def test_the_cause_of_other_failures_is_named_and_not_what_it_made_of_others():
    """The worker that waits for a killed one fails first."""
    broken = raised(RuntimeError("Connection closed by peer [10.0.0.7]:4"))
    line = describe_failure(
        WorkerGroupError("page", {0: broken, 1: exceptions.OutOfMemoryError(SHORT_OF_MEMORY)})
    )
    assert MEMORY.removesuffix("lower it") in line


def test_causes_that_name_each_other_are_no_endless_loop():
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert describe_failure(first) == "second"


def test_what_the_project_says_of_a_failure_stays_and_not_what_it_was_made_of():
    refused = CatalogError("shard 3 is damaged; make the view again")
    refused.__cause__ = OSError("truncated")
    assert describe_failure(ControllerError(refused)) == str(refused)


def test_first_cause_of_a_library_error_is_named_and_not_what_its_wrapper_guesses():
    guessed = RuntimeError("typically invalid data\n[SQL: INSERT]")
    guessed.__cause__ = OSError("No space left on device")
    assert describe_failure(raised(guessed)) == "No space left on device"
    assert describe_failure(WorkerGroupError("page", {0: guessed})) == "No space left on device"


@pytest.mark.parametrize("allocate", [torch.empty, np.empty, bytearray])
def test_failed_allocation_is_known_whatever_failed_to_allocate(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as refused:
        allocate(2**50)
    assert ran_out_of_memory(refused.value)


def test_failed_allocation_of_one_dnn_is_known():
    """What it said in a worker whose address space was limited."""
    assert ran_out_of_memory(RuntimeError("could not create a primitive"))


def test_other_errors_are_no_failed_allocations():
    assert not ran_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    assert not ran_out_of_memory(RuntimeError("Connection closed by peer [10.0.0.7]:4"))
    assert not ran_out_of_memory(ValueError("mat1 and mat2 shapes cannot be multiplied"))
