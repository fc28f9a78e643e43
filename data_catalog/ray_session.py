"""The Ray session of a process: it joins a cluster, or starts Ray on this machine."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from data_catalog.errors import CatalogError

WORKER_VARIABLES: dict[str, str] = {}
"""Environment of the workers beside that of this process; set before Ray is started or joined."""


def ensure_ray(include_dashboard: bool = False) -> None:
    """Join the Ray session of this process, or start one.

    A process can have only one session, so a caller who needs other settings starts Ray first. If
    `RAY_ADDRESS` is set, that cluster is joined; otherwise Ray runs on this machine until this process ends.
    Workers import from the `PYTHONPATH` of this process.

    Args:
        include_dashboard: If Ray is started, start its dashboard (on loopback) too.

    Raises:
        CatalogError: If no cluster answers at `RAY_ADDRESS`.
    """
    import ray  # noqa: PLC0415 - its import takes seconds; `show` and `--help` do without

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        # Since version 2.59 Ray requires a token if there is a token file in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        port = None
        if include_dashboard:
            port = _free_port()
            # Ray's processes inherit this. Otherwise they look for a dashboard on the whole machine, and fail
            # if a second Ray runs there.
            os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        with _worker_environment():
            ray.init(
                address=address,
                include_dashboard=include_dashboard,
                dashboard_port=port,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        return
    # The cluster was started without it. A submitted job brings its own tree and path.
    path = None if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else os.environ.get("PYTHONPATH")
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": WORKER_VARIABLES | ({"PYTHONPATH": path} if path else {})},
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise CatalogError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start one, or unset RAY_ADDRESS "
            "to run on this machine"
        ) from error


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Ray's processes, which are started meanwhile, have the environment of workers; this process has not."""
    own = {name: os.environ.get(name) for name in WORKER_VARIABLES}
    os.environ.update(WORKER_VARIABLES)
    try:
        yield
    finally:
        for name, value in own.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
