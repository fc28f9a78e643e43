"""The machines on which workers run, and what is done to processes there: on this one, or through Ray."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from data_catalog.ray_session import ensure_ray, ray_address

WORKER = "RayTrainWorker"
PERIOD_SECONDS = 0.2
STOPPED_SHARE = 0.75
"""How much of each period a worker that is made slow stands still: it takes four times as long."""
CALL_SECONDS = 60.0


class ClusterNodes:
    """The nodes of the cluster that `RAY_ADDRESS` names, or this machine.

    Raises:
        CatalogError: No cluster answers there.
    """

    def __init__(self) -> None:
        self.is_cluster = ray_address() != "local"
        if self.is_cluster:
            ensure_ray()

    @property
    def has_gpus(self) -> bool:
        """Whether workers may get one."""
        if not self.is_cluster:
            import torch  # noqa: PLC0415 - takes seconds

            return torch.cuda.is_available()
        import ray  # noqa: PLC0415 - after the environment is prepared

        return ray.cluster_resources().get("GPU", 0) > 0

    def call(self, host: str, function: Callable[[int], None], pid: int, *, wait: bool = True) -> None:
        """Call a function with the number of a process, on its machine.

        Args:
            host: Name of the machine.
            function: Function of this module.
            pid: PID of a process there.
            wait: Whether to wait for its end.
        """
        if host == socket.gethostname():
            if wait:
                function(pid)
            else:
                threading.Thread(target=function, args=(pid,), daemon=True).start()
            return
        import ray  # noqa: PLC0415 - after the environment is prepared
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        (node,) = (
            one["NodeID"] for one in ray.nodes() if one["Alive"] and one["NodeManagerHostname"] == host
        )
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        called = (
            ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(pid)
        )
        if wait:
            ray.get(called, timeout=CALL_SECONDS)

    def kill_node(self, host: str, pid: int) -> None:
        """End a node of Ray with SIGKILL, the one on which a worker runs; returns once Ray knows of it."""
        import ray  # noqa: PLC0415 - after the environment is prepared

        # What is called there ends with the node.
        with suppress(ray.exceptions.RayError):
            self.call(host, kill_raylet, pid)
        deadline = time.monotonic() + CALL_SECONDS
        while any(node["Alive"] and node["NodeManagerHostname"] == host for node in ray.nodes()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Ray still counts on node {host}, {CALL_SECONDS:.0f} s after its end")
            time.sleep(0.1)

    def find_head(self) -> str | None:
        """Name of the machine with the head; None where there is no cluster."""
        if not self.is_cluster:
            return None
        import ray  # noqa: PLC0415 - after the environment is prepared

        heads = (node for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
        return next((head["NodeManagerHostname"] for head in heads), None)


def kill_worker(pid: int) -> None:
    """End a worker with SIGKILL."""
    _worker(pid).kill()


def limit_memory(pid: int) -> None:
    """Let a worker have no more address space than it has now: the next large allocation in it fails."""
    worker = _worker(pid)
    size = worker.memory_info().vms
    worker.rlimit(psutil.RLIMIT_AS, (size, psutil.RLIM_INFINITY))


def slow_down(pid: int) -> None:
    """Let a worker stand still most of the time, as one whose machine others use, until it ends."""
    with suppress(psutil.NoSuchProcess):
        worker = _worker(pid)
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            try:
                worker.suspend()
                time.sleep(STOPPED_SHARE * PERIOD_SECONDS)
            finally:
                worker.resume()
            time.sleep((1 - STOPPED_SHARE) * PERIOD_SECONDS)


def kill_raylet(pid: int) -> None:
    """End the node of Ray that started a worker."""
    (raylet,) = (parent for parent in _worker(pid).parents() if parent.name() == "raylet")
    os.kill(raylet.pid, signal.SIGKILL)


def _worker(pid: int) -> psutil.Process:
    """The process with a number, which must be a worker's: numbers are given again."""
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    if WORKER not in " ".join(process.cmdline()):
        raise ProcessLookupError(f"process {pid} is no worker of Ray Train any more")
    return process
