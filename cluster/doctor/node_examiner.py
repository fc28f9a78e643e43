"""What runs on a node for the doctor: it says what is there, and takes part in an all-reduce.

Ray sends this module to the nodes by value, so it also runs where the project's code is missing.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "mlflow", "optuna", "open_clip_torch", "sam2", "numpy")
"""Packages whose versions must be the same on all nodes."""
CODE = ("stmi", "data_catalog", "experiments")
SHARED_MEMORY = Path("/dev/shm")
LOOPBACK = "127.0.0.1"
_NVIDIA_SMI_SECONDS = 20
_ALL_REDUCES = 5


class NodeExaminer:
    """Looks at the node on which it runs."""

    def facts(self, temporary_folder: str, ports: Sequence[int]) -> dict[str, Any]:
        """What `node_facts.NodeFacts` needs of a node.

        Args:
            temporary_folder: Where Ray keeps its session.
            ports: Ports of the cluster's services; those to which this node listens are described.
        """
        files, processes = (
            resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
        )
        gpus, gpu_fault = _find_gpus()
        return {
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "code": _code_digest(),
            "gpus": gpus,
            "gpu_fault": gpu_fault,
            "torch_sees": _torch_gpus(),
            "disk_free_bytes": shutil.disk_usage(temporary_folder).free,
            "shared_memory_free_bytes": (
                shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None
            ),
            "open_files": None if files == resource.RLIM_INFINITY else files,
            "processes": None if processes == resource.RLIM_INFINITY else processes,
            "proxied_loopback": [
                proxy
                for scheme, proxy in getproxies().items()
                if scheme in ("http", "https", "all") and not proxy_bypass(LOOPBACK)
            ],
            "listeners": _listeners(set(ports)),
        }

    def clock(self) -> float:
        """The node's time, in seconds since 1970."""
        return time.time()

    def unreachable(self, url: str) -> str | None:
        """Why no request can be sent to a server from this node; None where it answers.

        Raises:
            ImportError: The project's code is not here.
        """
        from stmi.network import why_unreachable  # noqa: PLC0415 - it may be missing on this node

        return why_unreachable(url)

    def meeting_point(self) -> str:
        """Where the others of a process group find this node, as a URL."""
        import ray  # noqa: PLC0415

        host = ray.util.get_node_ip_address()
        with socket.socket() as listener:
            listener.bind((host, 0))
            return f"tcp://{host}:{listener.getsockname()[1]}"

    def all_reduce(self, url: str, rank: int, count: int, size: int, seconds: float) -> float:
        """Sum a tensor over all nodes; returns the seconds of the fastest try.

        Args:
            url: URL of `meeting_point` of the first rank.
            rank: The number of this node among them, from 0.
            count: How many nodes there are.
            size: Bytes of the tensor.
            seconds: How long to wait for the others.

        Raises:
            RuntimeError: The nodes do not reach each other, or the sum is wrong.
        """
        import torch  # noqa: PLC0415 - takes seconds
        from torch import distributed as dist  # noqa: PLC0415

        device = "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") and torch.cuda.is_available() else "cpu"
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method=url,
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=seconds),
        )
        try:
            times = []
            for _ in range(_ALL_REDUCES):
                values = torch.full((size // 4,), float(rank), device=device)
                dist.barrier()
                begun = time.perf_counter()
                dist.all_reduce(values)
                result = float(values[-1])  # waits for a GPU
                times.append(time.perf_counter() - begun)
                if result != sum(range(count)):
                    raise RuntimeError(f"the sum over {count} nodes is {result}, not {sum(range(count))}")
            return min(times)
        finally:
            dist.destroy_process_group()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code_digest() -> str | None:
    """Digest of the project's Python files that a process of this node imports; None where one is missing."""
    digest = hashlib.sha256()
    for package in CODE:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            return None
        folder = Path(found.submodule_search_locations[0])
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{file.relative_to(folder)}".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _find_gpus() -> tuple[list[dict[str, Any]], str | None]:
    """The node's NVIDIA GPUs as in `node_facts.Gpu`, and why its driver does not say; None where it does."""
    try:
        return _gpus(), None
    except subprocess.CalledProcessError as error:
        return [], " ".join((error.stdout + error.stderr).split()) or str(error)
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        return [], f"{type(error).__name__}: {error}"


def _gpus() -> list[dict[str, Any]]:
    if shutil.which("nvidia-smi") is None:
        return []
    fields = "uuid,name,memory.total,memory.used"
    found: dict[str, dict[str, Any]] = {
        uuid: {
            "name": name,
            "total_mebibytes": _number(total),
            "used_mebibytes": _number(used),
            "processes": [],
        }
        for uuid, name, total, used in _ask_driver(f"--query-gpu={fields}")
    }
    for uuid, number in _ask_driver("--query-compute-apps=gpu_uuid,pid"):
        found[uuid]["processes"].append(int(number))
    return list(found.values())


def _number(text: str) -> int | None:
    # `[N/A]` for memory that a GPU shares with the processor, or that is divided.
    return int(text) if text.isdecimal() else None


def _ask_driver(query: str) -> list[list[str]]:
    asked = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)
    return [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _torch_gpus() -> int:
    """How many GPUs PyTorch sees where nothing is hidden from it; none where it cannot be imported."""
    # Ray hides GPUs from tasks that ask for none.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        import torch  # noqa: PLC0415 - takes seconds
    except (ImportError, OSError):
        # Its version, or the lack of one, is another fact.
        return 0
    return torch.cuda.device_count()


def _listeners(ports: set[int]) -> dict[int, list[str]]:
    """Port to the addresses of this node at which a program listens to it."""
    import psutil  # noqa: PLC0415

    found: dict[int, list[str]] = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in ports:
            found.setdefault(connection.laddr.port, []).append(connection.laddr.ip)
    return found
